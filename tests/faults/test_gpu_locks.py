"""Whoever holds locks on a GPU is killed: everybody runs again within a second (I4, L3).

A real guardian, real workers and a real device, driven by a broker that does nothing else; once on a driver that
lies in files, and once on a real GPU.
"""

from __future__ import annotations

import importlib.util
import json
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
from gpushare_kernel.devices.unlocking import WORKER, Unlockers
from tests.devices.gpu import fake_worker
from tests.devices.gpu_programs import Counting, matmuls
from tests.faults.conftest import Measured
from tests.faults.host import kill
from tests.procs import eventually, key_of

BROKER = '''
"""Locks the processes it is told, with a guardian, and waits. As a restart it says so, and leaves."""
import asyncio, json, sys
from pathlib import Path
from gpushare_kernel.broker.guardian import spawn_guardian
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices.base import Hold, Target
from gpushare_kernel.devices.cuda import CudaDevice
from gpushare_kernel.transport.launch import report_ready
from gpushare_kernel.transport.places import Places

worker = json.loads(sys.argv[3])
places = Places(Path(sys.argv[2]), system=False, named=True)
if sys.argv[1] == "again":
    report_ready(int(sys.argv[sys.argv.index("--ready-fd") + 1]))
    sys.exit()
table = IntentTable(places.intents)
again = [sys.executable, __file__, "again", *sys.argv[2:4]]
guardian = spawn_guardian(table, places, again, worker)
if sys.argv[4] == "real":
    device = CudaDevice(table)
else:
    sys.path.insert(0, sys.argv[5])
    from gpushare_kernel.devices.verdict import Probe, Verdict
    from tests.devices.gpu import FakeNvml
    device = CudaDevice(table, nvml=FakeNvml(), worker=worker, probe=Probe(Verdict.FULL))
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


UNLOCKED = """
say('up')
while True:
    try: locked = open({place!r} + f'/state.{{os.getpid()}}').read() == 'locked'
    except FileNotFoundError: locked = False
    time.sleep(0.0005)
    if not locked: counted()
"""
"""It goes on whenever the driver of files has not locked it."""


class Bench:
    """A driver, and two programs at work on it."""

    def __init__(self, kind: str, place: Path) -> None:
        self.kind, self.place = kind, place
        self.worker = list(WORKER) if kind == "real" else fake_worker(place)
        program = UNLOCKED.format(place=str(place))
        self.programs = [matmuls() if kind == "real" else Counting(program) for _ in range(2)]
        for each in self.programs:
            each.up()

    def undo(self, keys: list[ProcessKey]) -> None:
        """Undo locks as a notebook server does: by a command."""
        if self.kind == "real":
            numbers = [str(number) for key in keys for number in (key.pid, key.start_time)]
            command = [sys.executable, "-P", "-m", "gpushare_kernel.devices.unlocking", *numbers]
            subprocess.run(command, check=True)
        else:
            workers = Unlockers(self.worker)
            assert set(workers.unlock(keys, within=20)) == set(keys)
            workers.close()

    def undo_all(self, table: IntentTable) -> list[ProcessKey]:
        """Undo what is on record as a broker does that starts."""
        if self.kind == "real":
            return resume_all(table)
        workers = Unlockers(self.worker, spare=0)
        for _ in range(50):  # they have to come up first
            if resumed := resume_all(table, workers):
                break
        workers.close()
        return resumed


class Scene:
    """A broker with a guardian, and two processes that it has locked."""

    def __init__(self, folder: Path, bench: Bench) -> None:
        self.runtime = folder
        self.bench = bench
        self.programs = bench.programs
        script = folder / "broker.py"
        script.write_text(BROKER)
        root = str(Path(__file__).parents[2])
        told = ["first", str(folder), json.dumps(bench.worker), bench.kind, root]
        self.process = subprocess.Popen(
            [sys.executable, str(script), *told],
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

    def pause(self) -> tuple[str, str, list[str]]:
        """Have both paused; return what came of it, and the broker's workers."""
        assert self.process.stdin is not None
        keys = [number for p in self.programs for number in (p.key.pid, p.key.start_time)]
        print(*keys, file=self.process.stdin, flush=True)
        first, second, *workers = self._line()
        return first, second, workers

    def lock(self) -> None:
        """Have both locked, and look that they are."""
        first, second, workers = self.pause()
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


def _torch() -> list[pytest.MarkDecorator]:
    there = importlib.util.find_spec("torch") is not None
    return [pytest.mark.gpu, pytest.mark.skipif(not there, reason="needs torch")]


@pytest.fixture(scope="module", params=["files", pytest.param("real", marks=_torch())])
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    """Two processes at work."""
    bench = Bench(request.param, tmp_path_factory.mktemp("driver"))
    with bench.programs[0], bench.programs[1]:
        yield bench


@pytest.fixture
def scene(tmp_path: Path, bench: Bench) -> Iterator[Scene]:
    """Both locked; afterwards both run."""
    scene = Scene(tmp_path, bench)
    try:
        scene.lock()
        yield scene
    finally:
        scene.close()
    for program in bench.programs:
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
    assert set(scene.bench.undo_all(table)) == {program.key for program in scene.programs}
    measured("all run again, everybody killed", scene.all_run(began))
    table.close()


@pytest.mark.parametrize("guarded", [True, False])
def test_locks_that_the_broker_could_not_undo(scene: Scene, *, guarded: bool) -> None:
    """L3: its workers are dead and no others come up; its guardian has some that did, the next broker starts its own."""
    if scene.bench.kind == "real":
        pytest.skip("a real driver comes up")
    init = scene.bench.place / "init"
    init.write_text("CUDA_ERROR_OUT_OF_MEMORY")
    for worker in scene.workers:
        kill(worker)
    assert scene.pause()[:2] == ("unsupported", "unsupported")
    assert all(program.stands_still() for program in scene.programs)
    if not guarded:
        kill(scene.guardian)
    scene.process.kill()
    scene.process.wait()
    if not guarded:
        init.unlink()
        table = IntentTable.open_existing(scene.runtime / "intents")
        assert table is not None
        assert set(scene.bench.undo_all(table)) == {program.key for program in scene.programs}
        table.close()
    for program in scene.programs:
        program.goes_on(steps=3)
    init.unlink(missing_ok=True)


def test_the_last_resort_needs_no_record(scene: Scene, measured: Measured) -> None:
    """What a notebook server does for its own kernel when broker and guardian are gone."""
    os.kill(scene.process.pid, signal.SIGSTOP)
    for key in (scene.guardian, *scene.workers):
        kill(key)
    scene.process.kill()
    scene.process.wait()
    began = time.monotonic()
    scene.bench.undo([program.key for program in scene.programs])
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
    assert scene.bench.undo_all(table) == [one.key]
    one.goes_on(steps=3)
    table.close()
