"""Whoever holds locks on a real GPU is killed: everybody runs again within a second (I4, L3).

A real guardian, real lock workers and a real device, driven by a broker that does nothing else.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.broker.intents import IntentTable, resume_all
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices.base import Hold
from tests.devices.gpu_programs import Counting, matmuls
from tests.faults.conftest import Measured
from tests.faults.host import kill
from tests.procs import eventually

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch"),
]

BROKER = '''
"""Locks the processes it is told, with a guardian, and waits. As a restart it says so, and leaves."""
import asyncio, sys
from pathlib import Path
from gpushare_kernel.broker.guardian import spawn_guardian
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices.base import Hold, Target
from gpushare_kernel.devices.cuda import WORKER, CudaDevice
from gpushare_kernel.transport.launch import report_ready
from gpushare_kernel.transport.places import Places

places = Places(Path(sys.argv[2]), system=False, named=True)
if sys.argv[1] == "again":
    report_ready(int(sys.argv[sys.argv.index("--ready-fd") + 1]))
    sys.exit()
table = IntentTable(places.intents)
guardian = spawn_guardian(table, places, [sys.executable, __file__, "again", sys.argv[2]], WORKER)
device = CudaDevice(table)
print("up", guardian.pid, flush=True)

async def serve():
    for line in sys.stdin:
        keys = iter(map(int, line.split()))
        targets = [Target(ProcessKey(*pair)) for pair in zip(keys, keys)]
        outcomes = [await device.pause(target, limit=2.0) for target in targets]
        workers = [key.pid for key in table.held(Hold.WORKER)]
        print(*[outcome.status for outcome in outcomes], *workers, flush=True)

asyncio.run(serve())
'''


class Scene:
    """A broker with a guardian, and two torch processes that it has locked."""

    def __init__(self, folder: Path, programs: list[Counting]) -> None:
        self.runtime = folder
        self.programs = programs
        script = folder / "broker.py"
        script.write_text(BROKER)
        self.process = subprocess.Popen(
            [sys.executable, str(script), "first", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        up, guardian = self._line()
        assert up == "up"
        self.guardian = key_of(int(guardian))
        # They come up while the broker finds out what the GPU allows, which takes as long.
        eventually(lambda: len(procfs.children(self.guardian.pid)) == 2)
        self.workers: list[ProcessKey] = []

    def lock(self) -> None:
        """Have both locked, and look that they are."""
        assert self.process.stdin is not None
        keys = [number for p in self.programs for number in (p.key.pid, p.key.start_time)]
        print(*keys, file=self.process.stdin, flush=True)
        first, second, *workers = self._line()
        assert (first, second) == ("paused", "paused")
        self.workers = [key_of(int(pid)) for pid in workers]
        assert all(program.stands_still() for program in self.programs)

    def all_run(self, since: float) -> float:
        """Wait until both go on; return the seconds since `since`."""
        for program in self.programs:
            program.goes_on(steps=3)
        return time.monotonic() - since

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        eventually(lambda: procfs.state_of(self.guardian) in (None, "Z"), 60)

    def _line(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()


def key_of(pid: int) -> ProcessKey:
    key = procfs.process_key(pid)
    assert key is not None
    return key


@pytest.fixture(scope="module")
def programs() -> Iterator[list[Counting]]:
    """Two torch processes at work."""
    with matmuls() as one, matmuls() as two:
        one.up()
        two.up()
        yield [one, two]


@pytest.fixture
def scene(tmp_path: Path, programs: list[Counting]) -> Iterator[Scene]:
    """Both locked; afterwards both run."""
    scene = Scene(tmp_path, programs)
    try:
        scene.lock()
        yield scene
    finally:
        scene.close()
    for program in programs:
        program.goes_on(steps=3)


def test_broker_killed(scene: Scene, measured: Measured) -> None:
    """L3: its workers see the end of their line and unlock; the guardian finds them gone."""
    began = time.monotonic()
    scene.process.kill()
    measured("all run again, broker killed", scene.all_run(began))
    eventually(lambda: not any(procfs.alive(worker) for worker in scene.workers))


def test_workers_and_broker_killed(scene: Scene, measured: Measured) -> None:
    """L3: a killed worker leaves its lock; the guardian's own undo it, by what is on record."""
    os.kill(scene.process.pid, signal.SIGSTOP)  # it must not replace them meanwhile
    for worker in scene.workers:
        kill(worker)
    assert all(program.stands_still() for program in scene.programs)
    began = time.monotonic()
    scene.process.kill()
    measured("all run again, broker and workers killed", scene.all_run(began))


def test_workers_that_do_not_answer_are_ended_first(scene: Scene, measured: Measured) -> None:
    """L6: stopped, they can neither unlock nor end: the guardian kills them, sees them gone, and unlocks."""
    for worker in scene.workers:
        os.kill(worker.pid, signal.SIGSTOP)
    began = time.monotonic()
    scene.process.kill()
    measured("all run again, broker killed, workers stopped", scene.all_run(began))
    eventually(lambda: not any(procfs.alive(worker) for worker in scene.workers))


def test_guardian_workers_and_broker_killed(scene: Scene, measured: Measured) -> None:
    """The next broker finds them on record and undoes their locks, with workers that it must start first."""
    os.kill(scene.process.pid, signal.SIGSTOP)
    kill(scene.guardian)
    for worker in scene.workers:
        kill(worker)
    scene.process.kill()
    scene.process.wait()
    assert all(program.stands_still() for program in scene.programs)
    table = IntentTable.open_existing(scene.runtime / "intents")
    assert table is not None
    assert set(table.held(Hold.LOCK)) == {program.key for program in scene.programs}
    began = time.monotonic()
    assert set(resume_all(table)) == {program.key for program in scene.programs}
    measured("all run again, everybody killed", scene.all_run(began))
    table.close()


def test_the_last_resort_needs_no_record(scene: Scene, measured: Measured) -> None:
    """What a notebook server does for its own kernel when broker and guardian are gone."""
    os.kill(scene.process.pid, signal.SIGSTOP)
    for key in (scene.guardian, *scene.workers):
        kill(key)
    scene.process.kill()
    scene.process.wait()
    numbers = [str(n) for p in scene.programs for n in (p.key.pid, p.key.start_time)]
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-P", "-m", "gpushare_kernel.devices.unlocking", *numbers], check=True
    )
    measured("all run again, by a program of its own", scene.all_run(began))


def test_a_kernel_stopped_by_its_user_while_it_is_locked(scene: Scene) -> None:
    """L5: nobody waits for it; the other one runs; continued, it is still on record and can be unlocked."""
    one, two = scene.programs
    os.kill(one.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(one.pid) == "T")
    for worker in scene.workers:
        kill(worker)
    scene.process.kill()
    scene.process.wait()
    two.goes_on(steps=3)
    eventually(lambda: procfs.state_of(scene.guardian) in (None, "Z"), 60)
    table = IntentTable.open_existing(scene.runtime / "intents")
    assert table is not None
    assert table.held(Hold.LOCK) == (one.key,)
    os.kill(one.pid, signal.SIGCONT)
    assert resume_all(table) == [one.key]
    one.goes_on(steps=3)
    table.close()
