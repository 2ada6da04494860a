"""Unlocking many without a loop, with a fake driver in real workers: what the guardian, a starting broker and a server do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices import unlocking
from gpushare_kernel.devices.unlocking import Caller, Unlockers
from tests.devices.gpu import fake_worker
from tests.procs import Program, eventually

PARENT = """
children = [subprocess.Popen(['sleep', '1000']) for _ in range({count})]
say(*[child.pid for child in children]); wait()
"""


class Locked:
    """Some processes that are locked; how they stand lies in files."""

    def __init__(self, place: Path, keys: list[ProcessKey]) -> None:
        self.place, self.keys = place, keys
        self.command = fake_worker(place)
        for key in keys:
            self.stand(key, "locked")

    def stand(self, key: ProcessKey, state: str) -> None:
        (self.place / f"state.{key.pid}").write_text(state)

    def state(self, key: ProcessKey) -> str:
        return (self.place / f"state.{key.pid}").read_text()


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Locked]:
    """Five processes."""
    with Program(PARENT.format(count=5)) as program:
        keys = [procfs.process_key(pid) for pid in program.said_pids()]
        yield Locked(tmp_path, [key for key in keys if key is not None])


@pytest.fixture
def workers(locked: Locked) -> Iterator[Unlockers]:
    """Two workers, ready in advance."""
    workers = Unlockers(locked.command, spare=2)
    yield workers
    workers.close()
    assert workers._callers == []
    eventually(lambda: all(process.poll() is not None for process in unlocking._left))


def test_few_workers_unlock_many(locked: Locked, workers: Unlockers) -> None:
    """L2: until the driver says that each runs."""
    assert set(workers.unlock(locked.keys, within=20)) == set(locked.keys)
    assert {locked.state(key) for key in locked.keys} == {"running"}
    assert set(workers.unlock(locked.keys, within=20)) == set(
        locked.keys
    )  # a second time: harmless


def test_without_workers_in_advance_some_are_started(locked: Locked) -> None:
    """A broker that starts, and a notebook server."""
    workers = Unlockers(locked.command, spare=0)
    assert set(workers.unlock(locked.keys, within=20)) == set(locked.keys)
    workers.close()


def test_one_that_hangs_keeps_nobody_waiting(locked: Locked, workers: Unlockers) -> None:
    """L5: its worker is left behind, and does its duty when the driver answers."""
    stuck, *others = locked.keys
    gate = locked.place / f"gate.{stuck.pid}"
    os.mkfifo(gate)
    assert set(workers.unlock(locked.keys, within=3)) == set(others)
    assert {locked.state(key) for key in others} == {"running"}
    with gate.open("w"):
        gate.unlink()
    eventually(lambda: locked.state(stuck) == "running")


def test_one_stopped_by_its_user_is_not_asked_about(locked: Locked, workers: Unlockers) -> None:
    """L5: the driver would not answer; it stays on record."""
    stopped, *others = locked.keys
    os.kill(stopped.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(stopped.pid) == "T")
    assert set(workers.unlock(locked.keys, within=20)) == set(others)
    assert locked.state(stopped) == "locked"


def test_the_dead_are_done_and_who_has_their_pid_is_left_alone(
    locked: Locked, workers: Unlockers
) -> None:
    """L2."""
    dead = ProcessKey(2**22 + 7, 1)
    reused = ProcessKey(locked.keys[0].pid, locked.keys[0].start_time - 1)
    assert set(workers.unlock([dead, reused], within=20)) == {dead, reused}
    assert locked.state(locked.keys[0]) == "locked"


@pytest.mark.parametrize("state", ["checkpointed", "failed"])
def test_what_an_unlock_does_not_bring_back_stays_on_record(
    locked: Locked, workers: Unlockers, state: str
) -> None:
    """It must be restored first, or is lost."""
    parked, *others = locked.keys
    locked.stand(parked, state)
    assert set(workers.unlock(locked.keys, within=20)) == set(others)


def test_workers_that_died_in_the_meantime_are_replaced(locked: Locked, workers: Unlockers) -> None:
    """Nobody looks after those that wait; they are looked at when they are needed."""
    for caller in workers._callers:
        caller.process.kill()
        caller.process.wait()
    assert set(workers.unlock(locked.keys, within=20)) == set(locked.keys)


def test_a_driver_that_does_not_come_up_is_given_up(locked: Locked) -> None:
    """Nobody is called unlocked."""
    (locked.place / "init").write_text("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH")
    workers = Unlockers(locked.command, spare=1)
    assert workers.unlock(locked.keys, within=1.0) == []
    workers.close()


def test_a_worker_that_dies_of_one_target_serves_it_a_few_times_only(
    locked: Locked, workers: Unlockers, tmp_path: Path
) -> None:
    """Nonsense instead of an answer: three tries, and the others are unlocked."""
    script = tmp_path / "worker.py"
    bad = locked.keys[0].pid
    script.write_text(
        script.read_text().replace(
            "    def unlock(self, pid):\n",
            f"    def unlock(self, pid):\n        if pid == {bad}: sys.exit(1)\n",
        )
    )
    again = Unlockers(locked.command, spare=1)
    assert set(again.unlock(locked.keys, within=20)) == set(locked.keys[1:])
    again.close()


def test_workers_do_not_depend_on_which_gpus_their_starter_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that was started from a kernel sees one; its workers lock processes on any."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script = tmp_path / "worker.py"
    script.write_text("import os\nprint('no' if 'CUDA_VISIBLE_DEVICES' in os.environ else 'CUDA_SUCCESS', 'none', flush=True)\ninput()\n")  # fmt: skip
    caller = Caller([sys.executable, str(script)])
    reply = caller.wait(20)
    caller.close(waits=20)
    assert reply is not None
    assert reply.answer == "CUDA_SUCCESS"


def test_as_a_command_it_says_whether_all_run() -> None:
    """A notebook server whose broker and guardian are gone; here with nobody who lives, so no driver is needed."""
    command = [sys.executable, "-P", "-m", "gpushare_kernel.devices.unlocking"]
    assert subprocess.run([*command, str(2**22 + 7), "1"], check=False).returncode == 0
    with pytest.raises(ValueError, match="shorter"):
        unlocking.main(["7"])


def test_it_loads_neither_a_loop_nor_cuda() -> None:
    """The guardian imports it."""
    code = "import sys, gpushare_kernel.devices.unlocking\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {"asyncio", "cuda", "pynvml"}.isdisjoint(done.stdout.split())
