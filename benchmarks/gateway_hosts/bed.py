"""Several hosts on one machine: network namespaces, each with a real sshd and a broker of its own; and a gateway outside.

As root. Files and Unix sockets are shared between them, so each host's broker has a runtime folder of its own, which its
sshd puts into the environment of whoever logs in.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpushare_kernel import procfs
from gpushare_kernel.client.line import Line
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire.snapshot import Snapshot

PORT = 2222
PATIENCE = 30.0
_GATEWAY = Path(__file__).with_name("gateway.py")
_SPEC = "several"
_serial = itertools.count()


def missing() -> str:
    """Return what keeps this machine from having such hosts; empty where nothing does."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    for tool in ("ip", "sshd", "ssh-keygen"):
        if shutil.which(tool) is None:
            return f"needs {tool}: apt install iproute2 openssh-server"
    name = f"gpsprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"may not make network namespaces: {made.stderr.strip()}"
    _run("ip", "netns", "del", name)
    return ""


class Host:
    """One of them: a namespace, its sshd, its broker."""

    def __init__(self, bed: Path, number: int, *, driver: str = "") -> None:
        serial = next(_serial)
        nth = (os.getpid() * 8 + serial) % 250
        self.space, self.outside = f"gps{os.getpid()}n{serial}", f"gpv{os.getpid()}n{serial}"
        self.address, self.gateway = f"10.213.{nth}.2", f"10.213.{nth}.1"
        self.places = Places(bed / f"b{number}", system=True, named=True)
        self._bed, self._driver = bed, driver
        self._sshd: subprocess.Popen[bytes] | None = None
        _run("ip", "netns", "add", self.space)
        _run("ip", "link", "add", self.outside, "type", "veth", "peer", "name", "eth0", "netns", self.space)  # fmt: skip
        _run("ip", "addr", "add", f"{self.gateway}/24", "dev", self.outside)
        _run("ip", "link", "set", self.outside, "up")
        for words in (
            ("addr", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", self.gateway),
        ):
            _run("ip", "-n", self.space, *words)
        self.start_sshd()

    # --- the network and sshd -----------------------------------------------------------------------

    def cut(self) -> None:
        """Take its cable out."""
        _run("ip", "link", "set", self.outside, "down")

    def mend(self) -> None:
        """Put it back."""
        _run("ip", "link", "set", self.outside, "up")

    def start_sshd(self) -> None:
        """Start its sshd, and wait until it listens."""
        config = self._bed / f"{self.space}.conf"
        config.write_text(
            f"Port {PORT}\nListenAddress {self.address}\nHostKey {self._bed}/host_key\n"
            f"AuthorizedKeysFile {self._bed}/home/.ssh/id_ed25519.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
            f"PermitRootLogin yes\nMaxStartups 100\n"
            f"SetEnv GPUSHARE_RUNTIME_DIR={self.places.runtime} IPYTHONDIR={self._bed}/ipython "
            f"JUPYTER_RUNTIME_DIR={self._bed}/jupyter\n"
        )
        pretend = (
            f"mount -t tmpfs none /sys/module && mkdir /sys/module/nvidia && echo {self._driver} > /sys/module/nvidia/version && "
            if self._driver
            else ""
        )
        sshd = f"{pretend}exec {shutil.which('sshd')} -D -e -f {config}"
        self._sshd = subprocess.Popen(
            ["ip", "netns", "exec", self.space, "sh", "-c", sshd], stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((self.address, PORT), 1).close()
                return
            if time.monotonic() > until:
                msg = f"sshd does not listen in {self.space}"
                raise RuntimeError(msg)
            time.sleep(0.05)

    def kill_sshd(self) -> None:
        """Kill it and its connections; what they started lives on."""
        sshd = self._sshd
        if sshd is not None:
            for pid in (sshd.pid, *(key.pid for key in procfs.tree(sshd.pid))):
                if procfs.name(pid).startswith("sshd"):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            sshd.wait()

    # --- the broker ----------------------------------------------------------------------------------

    def start_broker(self, *arguments: str) -> None:
        """Start its broker."""
        self._broker("start", *arguments)

    def stop_broker(self) -> None:
        """End it."""
        self._broker("stop")

    def snapshot(self) -> Snapshot:
        """Return what its broker says."""
        with Line(self.places) as line:
            return line.snapshot()

    def _broker(self, *words: str) -> None:
        _run(
            sys.executable,
            "-P",
            "-m",
            "gpushare_kernel.app.main",
            *words,
            env={**os.environ, "GPUSHARE_RUNTIME_DIR": str(self.places.runtime)},
        )

    def close(self) -> None:
        """Take it all back, with what still runs there."""
        self.kill_sshd()
        pids = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True, check=False)  # fmt: skip
        for pid in pids.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if self.places.socket.exists():
            self.stop_broker()
        _run("ip", "netns", "del", self.space)
        subprocess.run(["ip", "link", "del", self.outside], capture_output=True, check=False)


class Gateway:
    """A process with jupyter_client's kernel manager and our provisioner; asked line by line (`gateway.py`)."""

    def __init__(
        self, bed: Path, hosts: Sequence[Host], also: Sequence[str], config: Mapping[str, Any]
    ) -> None:
        _spec(bed, [*(host.address for host in hosts), *also], config)
        with (bed / "gateway.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(_GATEWAY), _SPEC],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(bed, hosts[0].gateway),
            )
        self._bed = bed

    def log(self) -> str:
        """Return what it has logged."""
        return (self._bed / "gateway.log").read_text(encoding="utf-8")

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        """Have it do something; returns its answer, in which `error` is what went wrong."""
        source, sink = self._process.stdout, self._process.stdin
        if source is None or sink is None:
            msg = "the gateway has no streams"
            raise RuntimeError(msg)
        sink.write(json.dumps({"do": do, **given}) + "\n")
        sink.flush()
        line = source.readline()
        if not line:
            msg = f"the gateway ended:\n{self.log()}"
            raise RuntimeError(msg)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def start(self, **env: str) -> dict[str, Any]:
        """Start a kernel."""
        return self.ask("start", env=env)

    def run(self, kernel: str, code: str) -> str:
        """Run code in a kernel; returns what it prints."""
        answer = self.ask("run", kernel=kernel, code=code)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return str(answer["text"])

    def close(self) -> None:
        """End its kernels, and it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Bed:
    """Hosts, and what a gateway needs to reach them."""

    def __init__(self, folder: Path, drivers: Sequence[str] = ("", "")) -> None:
        self.folder, self.hosts = folder, list[Host]()
        Path("/run/sshd").mkdir(exist_ok=True)
        home = folder / "home/.ssh"
        home.mkdir(parents=True)
        for key in (folder / "host_key", home / "id_ed25519"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        for number, driver in enumerate(drivers):
            self.hosts.append(Host(folder, number, driver=driver))
        public = " ".join((folder / "host_key.pub").read_text().split()[:2])
        (home / "known_hosts").write_text(
            "".join(f"[{host.address}]:{PORT} {public}\n" for host in self.hosts)
        )

    @contextlib.contextmanager
    def gateway(self, *also: str, **config: Any) -> Iterator[Gateway]:
        """A gateway to these hosts, and to those that are named `also`; `config` is the provisioner's, in the kernelspec."""
        gateway = Gateway(self.folder, self.hosts, also, config)
        try:
            yield gateway
        finally:
            gateway.close()

    def close(self) -> None:
        """Take everything back."""
        for host in self.hosts:
            host.close()


@contextlib.contextmanager
def bed(drivers: Sequence[str] = ("", "")) -> Iterator[Bed]:
    """Hosts for a while; their brokers share two cores' worth of the CPU each, 2 GiB."""
    with tempfile.TemporaryDirectory(prefix="gpsbed") as folder:
        made = Bed(Path(folder), drivers)
        try:
            for host in made.hosts:
                host.start_broker("--device=host", "--capacity=2GiB", "--idle-exit=0")
            yield made
        finally:
            made.close()


def _spec(bed: Path, hosts: Sequence[str], config: Mapping[str, Any]) -> None:
    """Install the engine's own kernelspec, and name our provisioner in it: what docs/admin/several-hosts.md says."""
    shutil.rmtree(bed / "share/jupyter/kernels", ignore_errors=True)
    installer = [sys.executable, "-m", "gateway_provisioners.cli.ssh_specapp"]
    named = [f"--remote-hosts={host}" for host in hosts]
    _run(*installer, "install", f"--prefix={bed}", f"--kernel-name={_SPEC}", *named)
    path = bed / "share/jupyter/kernels" / _SPEC / "kernel.json"
    spec = json.loads(path.read_text())
    spec["argv"][0] = sys.executable
    stanza = spec["metadata"]["kernel_provisioner"]
    stanza["provisioner_name"] = "gpushare-distributed"
    stanza["config"].update(config)
    path.write_text(json.dumps(spec))


def _environment(bed: Path, response: str) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
    return {
        **kept,
        "HOME": str(bed / "home"),
        "JUPYTER_PATH": str(bed / "share/jupyter"),
        "GP_SSH_PORT": str(PORT),
        "GP_REMOTE_USER": "root",
        "GP_RESPONSE_IP": response,
        "GP_KERNEL_LOG_DIR": str(bed),
        "KERNEL_USERNAME": "ann",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }


def _run(*words: str, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        msg = f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}"
        raise RuntimeError(msg)
