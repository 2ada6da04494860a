"""A virtual GPU for the scheduler: who runs beside whom goes on as fast as was measured on an H200 (shared mixes)."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests_core_world import World  # type: ignore[import-not-found]

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.values import GiB, JobId, PauseStatus, SessionId, Usage, UserId

WINDOW = 0.2
KINDS = {
    # kind: (iterations a second alone, part of the time the device is busy then, seconds to drain)
    "heavy": (1200.0, 0.97, 0.001),
    "conv": (135.0, 0.99, 0.03),
    "light": (150.0, 0.55, 0.0005),
    "products": (1200.0, 0.74, 0.002),
    "idle": (1.0, 0.01, 0.0003),
    "deep": (1.25, 0.99, 0.8),
}
FREE = {
    ("heavy", "heavy", "light", "light"): {"heavy": 0.186, "light": 0.663},
    ("heavy", "light", "light", "light"): {"heavy": 0.169, "light": 0.60},
    ("conv", "conv", "light", "light"): {"conv": 0.274, "light": 0.443},
    ("conv", "conv", "conv", "conv"): {"conv": 0.234},
    ("conv", "conv", "heavy", "light"): {"heavy": 0.135, "conv": 0.297, "light": 0.481},
    ("heavy", "heavy", "products"): {"heavy": 0.342, "products": 0.45},
}
"""What a mix makes of each one's progress where the driver alone divides the GPU."""
LIGHT_ALONE = {1: 1.0, 2: 0.87, 3: 0.72, 4: 0.61}


def beside(kinds: list[str]) -> dict[str, float]:
    """Return the progress of each kind when these run at once."""
    kinds = sorted(kind for kind in kinds if kind != "idle")
    found = FREE.get(tuple(kinds))
    if found is not None:
        return found
    light, heavy = kinds.count("light"), len(kinds) - kinds.count("light")
    if not heavy:
        return {"light": LIGHT_ALONE.get(light, 2.4 / max(light, 1))}
    each = (0.94 if heavy > 1 else 1.0) / (heavy + 0.6 * light)
    return {"heavy": each, "conv": each, "light": min(0.9, 2.5 * each)}


@dataclass
class GpuKernel:
    """A process: what it does to the device, whether it stands still, how far it has come."""

    kind: str
    seen: bool
    contexts: int = 1
    paused: bool = False
    #: Its own user has stopped it.
    stopped: bool = False
    running: set[str] = field(default_factory=set)
    plain: bool = False
    interval: float | None = None
    starts: float = 0.0
    #: Progress in seconds of its rate alone.
    done: float = 0.0
    #: It counts only what it does alone; seconds it was alone, and progress that it kept to itself.
    silent_beside: bool = False
    alone: float = 0.0
    hidden: float = 0.0

    @property
    def works(self) -> bool:
        return not self.paused and not self.stopped and bool(self.running or self.plain)

    @property
    def count(self) -> int:
        return int((self.done - self.hidden) * KINDS[self.kind][0]) if self.seen else 0


class GpuWorld(World):
    """A scheduler of one GPU and its kernels on a virtual clock."""

    step = 0.001

    def __init__(self, **settings: object) -> None:
        settings = {"capacity": 80 * GiB, "divisible": False, "enforce": True} | settings
        super().__init__(compute=1.0, **settings)
        self.busy = 0.0
        self.busy_before: float | None = None
        self.window_ends = WINDOW
        self.resume_takes = 0.0004

    def carry_out(self, instruction: do.Instruction) -> None:
        match instruction:
            case do.Pause(session, _, _, ticket):
                self.log.append(instruction)
                drain = min(KINDS[self.kernels[session].kind][2], instruction.limit)
                self.drains.append((self.now + drain, session, ticket, drain < instruction.limit))
            case do.Resume(session):
                super().carry_out(instruction)
                if session in self.kernels:
                    self.kernels[session].starts = self.now + self.resume_takes
            case _:
                super().carry_out(instruction)

    def finish_drains(self) -> None:
        due = [d for d in self.drains if d[0] <= self.now + 1e-12]
        self.drains = [d for d in self.drains if d[0] > self.now + 1e-12]
        for _, session, ticket, drained in due:
            kernel = self.kernels.get(session)
            if kernel is None:
                continue
            kernel.paused = drained and not kernel.stopped
            self.sample(session)  # as the broker does: its count is final now
            drain = KINDS[kernel.kind][2]
            status = PauseStatus.PAUSED if drained else PauseStatus.BUSY
            if kernel.stopped:
                status = PauseStatus.STOPPED
            self.send(
                ev.Paused(at=self.now, session=session, ticket=ticket, status=status, drain=drain)
            )

    def usage(self, session: str) -> Usage:
        kernel = self.kernels[session]
        active = kernel.works and kernel.kind != "idle"
        return Usage(0.0, 0.0, contexts=kernel.contexts, progress=kernel.count, active=active)

    def sample(self, *more: str) -> None:
        names = {*self.core.watched(self.now), *more}
        used = {SessionId(s): self.usage(s) for s in names if s in self.kernels}
        self.send(
            ev.Sampled(
                at=self.now,
                used=used,
                utilization=self.busy_before,
                utilization_since=self.window_ends - 2 * WINDOW,
            )
        )

    def _let_work(self, seconds: float) -> None:
        working = [k for k in self.kernels.values() if k.works and self.now >= k.starts]
        rates = beside([k.kind for k in working]) if len(working) > 1 else {}
        for kernel in working:
            made = rates.get(kernel.kind, 1.0) * seconds
            kernel.done += made
            kernel.alone += seconds if not rates else 0.0
            kernel.hidden += made if rates and kernel.silent_beside else 0.0
        alone = sum(KINDS[k.kind][1] for k in working)
        self.busy += min(0.98, alone) * seconds
        if self.now + seconds >= self.window_ends:
            self.busy_before, self.busy = self.busy / WINDOW, 0.0
            self.window_ends += WINDOW

    def start(
        self,
        name: str,
        kind: str,
        *,
        user: str = "",
        seen: bool = True,
        weight: float = 1.0,
        background: bool = False,
        cooperative: bool = False,
    ) -> GpuKernel:
        """Open a session and let a declared job of it run."""
        session = SessionId(name)
        self.send(
            ev.SessionOpened(
                at=self.now,
                session=session,
                user=UserId(user or name),
                weight=weight,
                background=background,
            )
        )
        self.kernels[name] = kernel = GpuKernel(kind, seen)
        self.send(ev.SessionReady(at=self.now, session=session, bare=False, context=0))
        self.send(
            ev.JobSubmitted(
                at=self.now,
                job=JobId(f"{name}/job"),
                session=session,
                size=GiB,
                weight=weight,
                cooperative=cooperative,
            )
        )
        return kernel

    def resident(self, name: str, kind: str, *, seen: bool, user: str = "") -> GpuKernel:
        """Open a session of a kernel that has a context, and has no cell."""
        session = SessionId(name)
        self.send(ev.SessionOpened(at=self.now, session=session, user=UserId(user or name)))
        self.kernels[name] = kernel = GpuKernel(kind, seen)
        self.send(ev.SessionReady(at=self.now, session=session, bare=False, context=0))
        self.send(ev.Sampled(at=self.now, used={session: self.usage(name)}))
        return kernel

    def begin_cell(self, name: str) -> None:
        """Let a cell of a resident kernel begin, which declares nothing and works at once."""
        session = SessionId(name)
        self.send(ev.CellStarted(at=self.now, session=session, usage=self.usage(name)))
        self.kernels[name].plain = True

    def end_cell(self, name: str) -> None:
        """It is over."""
        self.kernels[name].plain = False
        self.send(ev.CellEnded(at=self.now, session=SessionId(name), persistent=0))

    def stranger(self, name: str, kind: str) -> GpuKernel:
        """Open a session for a process that works already: nobody announced its work, and none of it is seen."""
        session = SessionId(name)
        self.send(ev.SessionOpened(at=self.now, session=session, user=UserId(name)))
        self.kernels[name] = kernel = GpuKernel(kind, seen=False, plain=True)
        self.send(ev.SessionReady(at=self.now, session=session, bare=True, context=0))
        return kernel
