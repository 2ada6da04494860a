"""The cold tier of parking: what it takes, that it loses nothing, and what a parked process can do. See README.md."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import random
import select
import subprocess
import sys
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, NotMeasured, Options, progress
from benchmarks.gpu.row import house, row
from gpushare_kernel import procfs
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import GiB, MiB, MoveStatus, PauseStatus
from gpushare_kernel.devices.base import MoveOutcome, Target
from gpushare_kernel.devices.cuda import CudaDevice
from gpushare_kernel.devices.nvml import Nvml

QUESTION = "Parked by the driver: what do 4 GiB take out and back, is anything lost, and what can a parked process do?"
FRAMEWORKS = ("torch", "jax", "cupy")
MARGIN = 256 * MiB
PATIENCE = 120.0
_T = TypeVar("_T")


class Holder:
    """A process with arrays on the GPU."""

    def __init__(self, framework: str, size: int) -> None:
        script = Path(__file__).with_name("holders.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), framework, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        key = procfs.process_key(self._process.pid)
        assert key is not None
        self.target = Target(key)
        self.heard()

    def asked(self, what: str) -> tuple[float, str]:
        """Ask it something; return the seconds it took, and what came of it."""
        self.tell(what)
        return self.heard()

    def tell(self, what: str) -> None:
        """Ask it something."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()

    def heard(self) -> tuple[float, str]:
        """Return its answer."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            msg = f"a process answers nothing for {PATIENCE:g} s: it is lost"
            raise AssertionError(msg)
        line = self._process.stdout.readline().split()
        if not line:
            msg = f"a process ended with {self._process.wait()}"
            raise AssertionError(msg)
        return float(line[1]), line[2]

    def end(self) -> None:
        """End it, however it stands."""
        self._process.kill()
        self._process.wait()


def measure(options: Options) -> Sequence[Figure]:
    """Measure the three rows at the device itself, without a broker."""
    if options.device == "host":
        reason = "a CPU has no device memory to park"
        raise NotMeasured(reason)
    with house() as stage, _device(stage.folder) as bench:
        figures = [
            figure
            for framework in FRAMEWORKS
            if importlib.util.find_spec(framework) is not None
            for figure in bench.cold(framework, 1 if options.quick else 3)
        ]
        return [*figures, *bench.rogue(6 if options.quick else 200), *bench.usable()]


class Bench:
    """A device and a loop."""

    def __init__(self, device: CudaDevice, runner: asyncio.Runner) -> None:
        self._device, self._runner = device, runner
        self._nvml = Nvml()

    def cold(self, framework: str, rounds: int) -> Sequence[Figure]:
        """Park and restore 4 GiB."""
        out, back, part, first, changed = [], [], [], [], 0
        with _holder(framework, 4 * GiB) as holder:
            _, before = holder.asked("hash")
            for _ in range(rounds):
                there = self._nvml.memory().free
                parked = self._park(holder)
                out.append(parked.took)
                part.append((self._nvml.memory().free - there) / parked.freed)
                restored = self._restore(holder)
                _expect(restored)
                back.append(restored.took)
                self._resume(holder)
                first.append(1000 * holder.asked("first")[0])
                changed += holder.asked("hash")[1] != before
            progress(f"{framework}: out {out[-1]:.2f} s, back {back[-1]:.2f} s")
        return [
            Figure(f"{framework}_out", "s", out),
            Figure(f"{framework}_back", "s", back),
            Figure(f"{framework}_freed", "of its bytes", part, at_least=0.97),
            Figure(f"{framework}_first_result", "ms", first),
            Figure(f"{framework}_changed", "", [float(changed)], at_most=0.0),
        ]

    def rogue(self, trials: int) -> Sequence[Figure]:
        """Let another process grab what is free before each restore; it is held still for the restore, as the engine does."""
        chance, begun, refused, changed = random.Random(7), 0, 0, 0
        with _holder("torch", 256 * MiB) as holder, _holder("torch", MiB) as rogue:
            _, before = holder.asked("hash")
            for trial in range(trials):
                size = self._park(holder).freed
                leaves = chance.randrange(0, 2 * (size + MARGIN))
                rogue.asked(f"take {leaves}")
                self._hold(rogue)
                room = self._nvml.memory().free
                outcome = self._restore(holder)
                done = outcome.status is MoveStatus.DONE
                begun += done and room < size
                refused += outcome.status is MoveStatus.NOT_NOW
                self._resume(rogue)
                rogue.asked("give")
                if not done:
                    _expect(self._restore(holder))
                self._resume(holder)
                changed += holder.asked("hash")[1] != before
                if trial % 20 == 0:
                    progress(f"trial {trial + 1} of {trials}: {refused} refused")
        return [
            Figure("rogue_trials", "", [float(trials)]),
            Figure("rogue_refused", "", [float(refused)]),
            Figure("rogue_begun_without_room", "", [float(begun)], at_most=0.0),
            Figure("rogue_changed", "", [float(changed)], at_most=0.0),
        ]

    def usable(self) -> Sequence[Figure]:
        """Save a file and compute 1 + 1 in a parked process, while the GPU is full."""
        with _holder("torch", 4 * GiB) as holder, _holder("torch", MiB) as other:
            _, before = holder.asked("hash")
            self._park(holder)
            other.asked(f"take {128 * MiB}")
            refused = self._restore(holder).status is MoveStatus.NOT_NOW
            seconds = [holder.asked("cpu")[0] for _ in range(5)]
            other.asked("give")
            _expect(self._restore(holder))
            self._resume(holder)
            changed = holder.asked("hash")[1] != before
        return [
            Figure("full_save_and_add", "s", seconds, at_most=1.0, worst=True),
            Figure("full_restore_refused", "", [float(refused)], at_least=1.0),
            Figure("full_changed", "", [float(changed)], at_most=0.0),
        ]

    def _park(self, holder: Holder) -> MoveOutcome:
        outcome = self._run(self._device.park(holder.target, limit=5.0))
        if outcome.status is MoveStatus.UNABLE:
            raise NotMeasured(outcome.why)
        _expect(outcome)
        return outcome

    def _restore(self, holder: Holder) -> MoveOutcome:
        return self._run(self._device.restore(holder.target, margin=MARGIN))

    def _resume(self, holder: Holder) -> None:
        self._run(self._device.resume(holder.target))

    def _hold(self, holder: Holder) -> None:
        outcome = self._run(self._device.pause(holder.target, limit=5.0))
        if outcome.status is not PauseStatus.PAUSED:
            reason = f"this device does not pause here: {outcome.status}"
            raise NotMeasured(reason)

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return self._runner.run(coroutine)

    def close(self) -> None:
        """Give all back."""
        self._nvml.close()
        self._device.close()


def _expect(outcome: MoveOutcome) -> None:
    if outcome.status is not MoveStatus.DONE:
        msg = f"it was not moved: {outcome.status}: {outcome.why}"
        raise AssertionError(msg)


@contextlib.contextmanager
def _device(folder: Path) -> Iterator[Bench]:
    try:
        device = CudaDevice(IntentTable(folder / "intents"))
    except DeviceError as problem:
        raise NotMeasured(str(problem)) from problem
    with asyncio.Runner() as runner, contextlib.closing(Bench(device, runner)) as bench:
        yield bench


@contextlib.contextmanager
def _holder(framework: str, size: int) -> Iterator[Holder]:
    holder = Holder(framework, size)
    try:
        yield holder
    finally:
        holder.end()


if __name__ == "__main__":
    sys.exit(row("gpu_parking", QUESTION, measure))
