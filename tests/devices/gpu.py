"""A fake GPU for tests: a driver whose state lies in files (it outlives every worker), and an NVML of our own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import MiB, PauseStatus, ProcessKey
from gpushare_kernel.devices.base import MoveOutcome, PauseOutcome, Target
from gpushare_kernel.devices.cuda import CudaDevice
from gpushare_kernel.devices.nvml import AtWork, DeviceMemory, GpuInfo, GpuLost, Running
from gpushare_kernel.devices.verdict import Probe, Verdict
from tests.devices.records import Record

FAKE = f"""
import os, sys
sys.path[:0] = {[str(Path.cwd()), *sys.path]!r}
from pathlib import Path
from gpushare_kernel.devices.answers import ProcessState
from gpushare_kernel.devices.cuda_worker import Worker

place = Path(sys.argv[1])

def read(name, default):
    file = place / name
    return file.read_text() if file.exists() else default

def of(name, pid, default):
    return read(f"{{name}}.{{pid}}", read(name, default))

def put(pid, state):  # whole: whoever is killed in it leaves the one before
    fresh = place / f"fresh.{{os.getpid()}}"
    fresh.write_text(state)
    fresh.rename(place / f"state.{{pid}}")

def gate(pid, kind="gate"):
    for name in (f"{{kind}}.{{pid}}", kind):
        if (place / name).exists():
            (place / name).open().read()
            return

def alive(pid):
    try: return Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError: return False

def fits(pid):
    held = {{file.suffix[1:]: int(file.read_text() or 0) for file in place.glob("held.*")}}
    used = sum(size for one, size in held.items() if one != str(pid) and alive(one) and of("state", one, "") != "checkpointed")
    return used + int(read("rogue", 0)) + held.get(str(pid), 0) <= int(read("total", 0))

class Fake:
    def init(self):
        return read("init", "CUDA_SUCCESS")
    def note(self, *words):
        with (place / "log").open("a") as log: print(*words, file=log)
    def lock(self, pid, milliseconds):
        self.note("lock", pid, milliseconds)
        if of("crash", pid, ""): sys.exit(1)
        gate(pid)
        if answer := of("answer", pid, ""): return answer
        if self.state(pid) != "running":
            if of("dies", pid, ""): sys.exit(1)
            return "CUDA_ERROR_ILLEGAL_STATE"
        put(pid, "locked")
        if of("dies", pid, ""): sys.exit(1)
        return "CUDA_SUCCESS"
    def unlock(self, pid):
        self.note("unlock", pid)
        if of("stays", pid, ""): sys.exit(1)
        gate(pid)
        if self.now(pid) != "locked": return "CUDA_ERROR_ILLEGAL_STATE"
        put(pid, "running")
        return "CUDA_SUCCESS"
    def checkpoint(self, pid):
        self.note("checkpoint", pid)
        return self.move(pid, "locked", "checkpointed", "checkpoint")
    def restore(self, pid):
        self.note("restore", pid)
        return self.move(pid, "checkpointed", "locked", "restore")
    def move(self, pid, before, after, name):
        gate(pid, "move")
        if of(f"crash-{{name}}", pid, ""): sys.exit(1)
        if answer := of(f"no-{{name}}", pid, ""):
            if name == "restore": put(pid, "failed")
            return answer
        if self.state(pid) != before: return "CUDA_ERROR_ILLEGAL_STATE"
        if name == "restore" and (place / "total").exists() and not fits(pid):
            put(pid, "failed")
            return "CUDA_ERROR_OUT_OF_MEMORY"
        moved = ("data", "stowed") if name == "checkpoint" else ("stowed", "data")
        if (place / f"{{moved[0]}}.{{pid}}").exists():
            (place / f"{{moved[0]}}.{{pid}}").rename(place / f"{{moved[1]}}.{{pid}}")
        put(pid, after)
        if of(f"dies-{{name}}", pid, ""): sys.exit(1)
        return "CUDA_SUCCESS"
    def now(self, pid):
        gate(pid, "look")
        return ProcessState(of("state", pid, "running"))
    def state(self, pid):
        found = self.now(pid)
        if (worker := read(f"late.{{pid}}", "")) and not alive(worker):
            (place / f"late.{{pid}}").unlink()
            put(pid, "locked")
        return found

sys.exit(not Worker(Fake()).serve(sys.stdin, sys.stdout))
"""
"""`answer.PID`, `state.PID`, `crash.PID` (a worker dies of its lock before it holds), `dies.PID` (once it holds),
`stays.PID` (of an unlock) and `gate.PID` (a fifo: calls wait for its writer) script one process, the same names without a pid all of them; `init` is what cuInit says. `no-checkpoint.PID` and `no-restore.PID` are what these answer (the
process has failed after such a restore), a worker dies of a move by `crash-...` before and by `dies-...` after it was made,
moves wait for the writer of `move.PID`, a lock that the worker named in `late.PID` was making comes through once it is dead and
somebody was told that the process runs, and whoever asks for the state for that of `look.PID`. Where there is a `total` (bytes), a restore of `held.PID` that finds less free than
that (`rogue` is what others took) fails, as a real one does. A move takes `data.PID` along, to `stowed.PID` and back."""

INFO = GpuInfo(0, "GPU-fake", "Fake GPU", 1000 * MiB)


class FakeNvml:
    """A GPU of 1000 MiB; the test sets what is free, who holds what, and who is seen at work."""

    def __init__(self, info: GpuInfo = INFO, place: Path | None = None) -> None:
        self.info = info
        #: Where the driver's states are: what is checkpointed holds nothing.
        self.place = place
        self.free = 900 * MiB
        self.held: dict[int, int] = {}
        self.displays: Collection[int] = ()
        self.busy = 0.5
        self.seen: list[tuple[int, int]] = []
        self.part = 0.5
        self.failure: DeviceError | None = None
        self.calls: list[str] = []
        self.closed = False

    def memory(self) -> DeviceMemory:
        self._called("memory")
        gone = sum(size for pid, size in self.held.items() if self._is_gone(pid))
        free = self.free + gone
        return DeviceMemory(1000 * MiB, free, 1000 * MiB - free)

    def processes(self) -> Sequence[Running]:
        self._called("processes")
        return [
            Running(pid, size, pid in self.displays)
            for pid, size in self.held.items()
            if not self._is_gone(pid)
        ]

    def _is_gone(self, pid: int) -> bool:
        file = None if self.place is None else self.place / f"state.{pid}"
        return file is not None and file.exists() and file.read_text() == "checkpointed"

    def utilization(self) -> float:
        self._called("utilization")
        return self.busy

    def process_utilization(self, since: int) -> Sequence[AtWork]:
        self._called("process_utilization")
        return [AtWork(pid, at, self.part) for pid, at in self.seen if at > since]

    def reopen(self) -> None:
        self._called("reopen")

    def close(self) -> None:
        self.closed = True

    def gone(self, *, lost: bool = False) -> None:
        """NVML fails from now on."""
        self.failure = GpuLost("the GPU is lost") if lost else DeviceError("NVML is gone")

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.failure is not None:
            raise self.failure


class Gpu:
    """A device on a fake driver."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.worker = fake_worker(place)
        self.record = Record()
        self.nvml = FakeNvml(place=place)
        self.device = self.make()

    def make(self, capacity: int | None = None) -> CudaDevice:
        """Make another device, as another broker would."""
        probe = Probe(Verdict.FULL)
        return CudaDevice(
            self.record, nvml=self.nvml, worker=self.worker, probe=probe, capacity=capacity
        )

    def set(self, name: str, value: str) -> None:
        """Script the driver."""
        (self.place / name).write_text(value)

    def shut(self, name: str) -> None:
        """Have the driver hang; `opened` lets it go on."""
        os.mkfifo(self.place / name)

    def opened(self, name: str) -> None:
        """Let whoever hangs go on, and nobody hang again. Waits for one to hang."""
        with (self.place / name).open("w"):
            (self.place / name).unlink()

    def state(self, key: ProcessKey) -> str:
        """How a process stands."""
        file = self.place / f"state.{key.pid}"
        return file.read_text() if file.exists() else "running"

    def log(self) -> list[str]:
        """What the driver was asked to do."""
        log = self.place / "log"
        return log.read_text().splitlines() if log.exists() else []

    def moves(self) -> list[str]:
        """What the driver was asked to do, without the processes."""
        return [line.split()[0] for line in self.log()]

    def holds(self, *keys: ProcessKey, size: int = 600 * MiB) -> None:
        """NVML sees these processes from now on."""
        self.nvml.held = {key.pid: size for key in keys}
        self.device._sampler.look()

    def pause(self, target: Target, limit: float = 20.0) -> PauseOutcome:
        return asyncio.run(self.device.pause(target, limit=limit))

    def resume(self, target: Target) -> PauseStatus:
        return asyncio.run(self.device.resume(target)).status

    def park(self, target: Target, limit: float = 20.0) -> MoveOutcome:
        return asyncio.run(self.device.park(target, limit=limit))

    def restore(self, target: Target, margin: int = 0) -> MoveOutcome:
        return asyncio.run(self.device.restore(target, margin=margin))

    def still(self, target: Target) -> bool:
        return asyncio.run(self.device.still(target))

    def worker_of(self, key: ProcessKey) -> int:
        """The worker that holds a process."""
        for session in self.device._sessions.values():
            if key in session.lockers and (link := session.lockers[key]._link) is not None:
                return link.pid
        raise LookupError(key)

    def busy_with(self, key: ProcessKey) -> bool:
        """Whether a worker that we hung up on is still at it."""
        return self.device._crew.busy_with(key)

    def close(self) -> None:
        """End it: nothing is on record then."""
        self.device.close()
        assert self.record.hows == {}
        assert self.nvml.closed


def fake_worker(place: Path) -> list[str]:
    """Return the command of a worker with a fake driver."""
    (place / "worker.py").write_text(FAKE)
    return [sys.executable, str(place / "worker.py"), str(place)]
