"""The client in real processes: forked, spawned and started children, and the interpreter's end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpushare_kernel.client import roots
from gpushare_kernel.client.hostmem import HostMemory
from gpushare_kernel.core.values import MiB
from gpushare_kernel.wire.messages import End, Submit
from tests.client.scripted_broker import ScriptedBroker

ROOT = Path(__file__).parents[2]


def python(code: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a user would, every warning on."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", *flags, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def served(environment: ScriptedBroker) -> ScriptedBroker:
    """An obliging broker, in the environment of this process's children."""
    environment.serve()
    return environment


def kinds(broker: ScriptedBroker) -> list[str]:
    """Return what clients asked for."""
    return [type(m).__name__ for m in broker.seen]


def test_script_ends_quietly(served: ScriptedBroker) -> None:
    """A script that leaves its lane ends without a warning, a thread in the way or a word on stderr."""
    done = python(
        "import gpushare_kernel as gpushare\n"
        "with gpushare.lane(size='1GiB') as lane: lane.step()\n"
        "print(lane.report.job)"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert kinds(served) == ["Submit", "End"]


def test_script_that_dies_in_its_lane_ends_quietly(served: ScriptedBroker) -> None:
    """An open lane, a running reader and sys.exit: only the exit status is seen."""
    done = python(
        "import sys, gpushare_kernel as gpushare\n"
        "gpushare.lane(size='1GiB').__enter__()\n"
        "sys.exit(3)"
    )
    assert (done.returncode, done.stderr) == (3, "")


def test_forked_child_is_itself(served: ScriptedBroker) -> None:
    """A fork inside a lane: the child is in none, ends nothing of its parent's, and may have its own."""
    done = python(
        """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import gpushare_kernel as gpushare
with gpushare.lane(size="1GiB", name="parent") as lane:
    pid = os.fork()
    if pid == 0:
        lane.step()
        assert gpushare.current_lane() is None
        with gpushare.lane(size="512MiB", name="child") as mine:
            assert mine.shared and mine.boundaries == 0
        lane.close()
        assert lane.report is None
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert gpushare.current_lane() is lane
assert lane.report is not None
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    submits = [m for m in served.seen if isinstance(m, Submit)]
    ends = [m for m in served.seen if isinstance(m, End)]
    assert [s.name for s in submits] == ["parent", "child"]
    assert {e.job for e in ends} == {s.job for s in submits}
    assert len(ends) == 2


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_multiprocessing_attaches_to_the_same_session(
    served: ScriptedBroker, tmp_path: Path, how: str
) -> None:
    """Workers of a pool attach with the inherited token, whatever way they are started."""
    script = tmp_path / "work.py"
    script.write_text(
        """
import multiprocessing, sys, warnings
import gpushare_kernel as gpushare

def work(n):
    with gpushare.lane(size="64MiB", name=f"worker {n}") as lane:
        return lane.shared

if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    with gpushare.lane(size="1GiB", name="main"):
        with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
            assert pool.map(work, range(2)) == [True, True]
            pool.close()
            pool.join()
""",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(script), how],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = sorted(m.name for m in served.seen if isinstance(m, Submit))
    assert names == ["main", "worker 0", "worker 1"]
    assert {peer.attach.token for peer in served._peers} == {"the-token"}


def test_no_broker_left_at_exit(environment: ScriptedBroker) -> None:
    """A reader that still looks for its broker does not hold up the end of the interpreter."""
    path = str(environment.path)
    environment.close()
    done = python(
        "from gpushare_kernel.client import api\n"
        "session = api.get_session()\n"
        "assert not session.up",
        GPUSHARE_SOCKET=path,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_gpushare_is_light() -> None:
    """The package alone imports nothing of a notebook, and no client before it is used."""
    done = python(
        "import sys, gpushare_kernel\n"
        "print([m for m in sys.modules if m.startswith(('msgspec', 'IPython', 'asyncio', 'gpushare_kernel.'))])"
    )
    assert done.stdout.strip() == "[]"


def test_kernel_is_marked_once(
    environment: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process of a session claims it; a child sees the claim; a nested kernel makes its own."""
    assert roots.claim()
    assert roots.claim()
    code = "from gpushare_kernel.client import roots; print(roots.claim())"
    assert python(code).stdout == "False\n"
    assert python(code, GPUSHARE_SESSION="another").stdout == "True\n"
    monkeypatch.setenv(roots.VARIABLE, "s1:999999999:5")  # somebody who is not above us
    assert roots.find() is None
    monkeypatch.setenv(roots.VARIABLE, "nonsense")
    assert roots.find() is None


def test_memory_is_what_came_since() -> None:
    """Held memory is measured from the baseline; the peak survives what is freed before it is read."""
    memory = HostMemory()
    memory.start_peak()
    block = bytearray(os.urandom(1)) * (64 * MiB)
    assert 60 * MiB < memory.now() < 80 * MiB
    assert memory.last == memory.recent()
    del block
    memory.trim()
    assert memory.now() < 20 * MiB
    assert 60 * MiB < memory.peak() < 90 * MiB
    memory.start_peak()
    assert memory.peak() < 20 * MiB


def test_children_count_as_held() -> None:
    """Memory of a child process is the session's."""
    memory = HostMemory()
    code = "b = bytearray(b'x') * (64 << 20); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert memory.now() > 60 * MiB
        child.communicate(b"\n")
    assert memory.now() < 20 * MiB


def test_peak_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the peak cannot be reset, samples stand in for it."""
    monkeypatch.setattr("gpushare_kernel.client.hostmem._CLEAR_REFS", "/proc/self/no-such-file")
    memory = HostMemory()
    memory.start_peak()
    block = bytearray(os.urandom(1)) * (32 * MiB)
    memory.now()
    del block
    memory.trim()
    assert 30 * MiB < memory.peak() < 50 * MiB
