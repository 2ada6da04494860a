"""Kernels in a pid namespace of their own, as in a container, and the broker outside: as a DaemonSet with hostPID has it.

The socket is found by its path, as by a hostPath. What crosses: pidfds, credentials and shared pages by descriptor. What
does not: numbers of processes, which both sides count anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from gpushare_kernel import procfs
from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.transport.places import SYSTEM_MARK, SYSTEM_RUNTIME
from tests.faults.conftest import host
from tests.procs import eventually

__all__ = ["host"]
ROOT = Path(__file__).parents[2]

INSIDE = """
import json, os, sys, time
from jupyter_client.manager import KernelManager
manager = KernelManager(kernel_name="python3")
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(60)
print(json.dumps({"inside": manager.provisioner.pid}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    said = []
    if asked["do"] == "send":
        client.execute(asked["code"])
    elif asked["do"] == "interrupt":
        manager.interrupt_kernel()
    elif asked["do"] == "alive":
        said = [str(manager.is_alive())]
    else:
        client.execute_interactive(asked["code"], timeout=60, output_hook=lambda m: said.append(m["content"].get("text", "")))
    print(json.dumps({"said": "".join(said)}), flush=True)
client.stop_channels()
manager.shutdown_kernel()
"""
_UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def may_unshare() -> bool:
    """Whether this machine gives us pid namespaces."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not may_unshare(), reason="needs root and pid namespaces (unshare)"),
]


class Container:
    """A server with one kernel in a pid namespace of their own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [*_UNSHARE, sys.executable, "-c", INSIDE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.inside = self._line()["inside"]

    def ask(self, do: str, code: str = "") -> str:
        """Have it do something; what the kernel printed."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, "code": code}) + "\n")
        self.process.stdin.flush()
        return str(self._line()["said"]).strip()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        """End it as a pod ends: its input first, then all of it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture
def container(host) -> Iterator[Container]:
    """One, beside a broker that sees all processes."""
    host.start()
    made = Container()
    yield made
    made.close()


def test_a_kernel_in_a_container_is_a_session_and_its_own_client_is_known(host, container):
    """By the broker's numbers it is another pid than by its own; its client attaches; its end is seen."""
    [session] = host.snapshot().sessions
    assert session.pid is not None
    assert session.pid != container.inside
    assert procfs.children(procfs.parent(session.pid) or 0)  # a process here, too
    assert container.ask("run", "import os; print(os.getpid())") == str(container.inside)
    eventually(lambda: host.snapshot().sessions[0].state == "idle")
    lane = "import gpushare_kernel as gpushare\nwith gpushare.lane(persistent='8MiB'): print('granted')"
    assert "granted" in container.ask("run", lane)
    container.close()
    eventually(lambda: not host.snapshot().sessions)


def test_it_is_paused_from_outside_and_interrupted_from_inside(host, container, tmp_path):
    """The broker stops it by its own numbers; the server inside has it resumed before the signal."""
    begun = tmp_path / "begun"
    code = f"open({str(begun)!r}, 'w').close()\ntry:\n    while True: sum(range(1000))\nexcept KeyboardInterrupt: done = 1"
    container.ask("send", code)
    eventually(lambda: begun.exists() and host.snapshot().sessions[0].mode, 30)
    [session] = host.snapshot().sessions
    with host.line() as line:
        line.pause(session.id)
    eventually(lambda: procfs.state(session.pid or 0) == "T")
    container.ask("interrupt")
    assert container.ask("run", "print(done)") == "1"


def test_a_broker_that_is_killed_is_missed_inside(host, container):
    """Its pid says nothing there; its socket does: the kernel goes on, and is a session of the next one."""
    [before] = host.snapshot().sessions
    broker = host.broker
    os.kill(broker.pid, 9)
    eventually(lambda: not procfs.alive(broker))
    host.start()

    def again() -> bool:
        sessions = host.snapshot().sessions
        return [s.id for s in sessions] == [before.id] and sessions[0].state == "idle"

    eventually(again, 30)
    assert container.ask("alive") == "True"
    assert container.ask("run", "print(6 * 7)") == "42"


def test_a_broker_that_does_not_see_the_hosts_processes_says_so(host):
    """hostPID forgotten: the kernel starts, shares nothing, and its log names the reason."""
    broker = subprocess.Popen(
        [*_UNSHARE, sys.executable, "-m", "gpushare_kernel.app.main", "broker", "--device=host"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(host.places.socket.exists, 30)
        launcher = [sys.executable, "-m", "gpushare_kernel.app.launcher", "--", sys.executable, "-c", "print('runs')"]  # fmt: skip
        done = subprocess.run(launcher, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout == "runs\n"
        assert (
            "this kernel shares nothing: a kernel's process must be alive where the broker runs"
            in done.stderr
        )
        assert "is in a pid namespace the broker cannot see" in done.stderr
    finally:
        stop_broker(host.places, 30)
        broker.wait(30)


def test_the_folder_may_be_read_only_where_kernels_are(host):
    """A mount that nothing can be written to has sockets that can be connected to."""
    host.start()
    run = host.places.runtime
    code = "import os; print('shared' if 'GPUSHARE_SESSION' in os.environ else 'alone')"
    script = (
        f"mount --bind {run} {run} && mount -o remount,ro,bind {run} && ! touch {run}/x 2>/dev/null && "
        f'exec {sys.executable} -m gpushare_kernel.app.launcher -- {sys.executable} -c "{code}"'
    )
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.stdout == "shared\n", done.stderr


def test_the_recipe_for_containers_has_the_socket_and_the_mark() -> None:
    """As a hub reads it: two folders, read-only."""
    text = (ROOT / "docs/admin/jupyterhub.md").read_text(encoding="utf-8")
    [block] = [one for one in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "DockerSpawner" in one]  # fmt: skip
    config = Config()
    exec(block, {"c": config})
    assert config.DockerSpawner.read_only_volumes == {str(one): str(one) for one in (SYSTEM_RUNTIME, SYSTEM_MARK)}  # fmt: skip
    assert "volumes" not in config.DockerSpawner


NOBODY = 65534
_LAUNCH = "import os; print('shared' if 'GPUSHARE_SESSION' in os.environ else 'alone')"


@pytest.mark.parametrize("marked", [True, False])
def test_while_the_socket_is_away_the_mark_keeps_kernels_from_a_broker_of_their_own(*, marked: bool) -> None:  # fmt: skip
    """The two folders as a container's user has them, read-only, and no broker on the host. Without the mark it has one for itself alone: that is what the mark is for."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        shutil.copytree("/etc", folder / "etc", symlinks=True, ignore=shutil.ignore_patterns("gpushare"))  # fmt: skip
        own = folder / "own"
        own.mkdir(mode=0o700)
        os.chown(own, NOBODY, NOBODY)
        if marked:
            (folder / "etc/gpushare").mkdir()
            (folder / "etc/gpushare/service").write_text("gpushare.service\n")
        script = (
            f"mount --bind {folder}/etc /etc && mount -o remount,ro,bind /etc && mount -t tmpfs none /run && mkdir /run/gpushare && "
            # It may read this checkout and its interpreter, wherever they are; root it is not.
            f"exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search "
            f'{sys.executable} -m gpushare_kernel.app.launcher -- {sys.executable} -c "{_LAUNCH}"'
        )
        done = subprocess.run(
            [*_UNSHARE, "--mount", "sh", "-c", script],
            env={"PATH": os.environ["PATH"], "HOME": str(own), "XDG_RUNTIME_DIR": str(own)},
            cwd="/", capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        started = (own / "gpushare").exists()
    assert (done.stdout, started) == (("alone\n", False) if marked else ("shared\n", True)), (
        done.stderr
    )
    if marked:
        assert "no broker answers at /run/gpushare/broker.sock" in done.stderr
