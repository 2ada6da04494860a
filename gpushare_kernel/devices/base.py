"""What a device can do for the broker: say what it is, measure, pause and resume.

Who calls: the broker's loop, one call at a time per target. Nothing here may block the loop: a call
that can take longer than a millisecond awaits (a worker process, a thread). Sizes are bytes, times
seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

from gpushare_kernel.core.values import DeviceId, MiB, MoveStatus, PauseStatus, ProcessKey, Usage

TORCH_CONTEXT = 520 * MiB
"""The context of a torch process on a GPU, as long as none is measured."""
NVML_WINDOW = 0.2
"""Seconds over which NVML says how busy a GPU was (measured: one value each 200 ms)."""


@dataclass(frozen=True, slots=True)
class Target:
    """A session as a device sees it: its root process; sub-trees in `without` are sessions of their own."""

    root: ProcessKey
    without: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this device cannot do is said here, not found out later.

    `can_pause` False: turns are cooperative only (who meets boundaries gives its turn back there, the rest is
    co-run), and `why` says what stands in the way and what to do about it.
    """

    can_pause: bool
    can_park: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the device is. `compute` is how much it can run at once (cores; 1.0 for a GPU), `reserve`
    the estimate of one context before it is measured, `capacity` what was free when we started.

    `total` is all the memory it has, 0 where that is no number to plan with. `divisible`: what it can run at once
    is divided like cores; a GPU runs one saturating process at a time and is divided by turns.
    """

    id: DeviceId
    kind: str
    name: str
    capacity: int
    compute: float
    reserve: int
    total: int = 0
    divisible: bool = True


class Busy(NamedTuple):
    """Part of the time (0 to 1) in which the device was busy, over some window of `window` seconds.

    The window lies between `since` and `at` (monotonic clock; `at` is when it was read).
    """

    since: float
    at: float
    part: float


@dataclass(frozen=True, slots=True)
class Stranger:
    """A process that uses the device and belongs to no session; `size` in bytes. `display`: it draws a screen."""

    key: ProcessKey
    uid: int
    size: int
    name: str
    display: bool = False


@dataclass(frozen=True, slots=True)
class PauseOutcome:
    """What came of a pause: `drain` is the time from asking until it stood still."""

    status: PauseStatus
    drain: float = 0.0


@dataclass(frozen=True, slots=True)
class MoveOutcome:
    """What came of a park or a restore: `freed` bytes of the device's memory were given back (contexts included), in `took` seconds.

    `why` says what stood in the way, for people: the rule, the numbers, what to do.
    """

    status: MoveStatus
    freed: int = 0
    took: float = 0.0
    why: str = ""


class Hold(IntEnum):
    """How a process on record stands still, and so what makes it run again."""

    SIGNAL = 0  # SIGCONT
    LOCK = 1  # the driver's unlock, from any process that may
    WORKER = 2  # not paused: it is a worker that holds locks, and must be gone before anybody else unlocks
    PARK = 3  # a restore, where there is room; nobody else ever: it is (perhaps) CHECKPOINTED
    MOVER = (
        4  # not paused: it is a worker that is parking or restoring somebody, and is left to finish
    )


class Intents(Protocol):
    """Where intent is on record *before* each pause (I4); the guardian reads it when the broker dies."""

    def add(self, key: ProcessKey, how: Hold = Hold.SIGNAL) -> None:
        """Record that `key` is about to be paused."""

    def change(self, key: ProcessKey, how: Hold, size: int = 0) -> None:
        """`key`, which is on record, stands still in another way from now on; `size` are the bytes that a park takes."""

    def size(self, key: ProcessKey) -> int:
        """Return the bytes that were recorded with `key`, rounded up to MiB."""

    def remove(self, key: ProcessKey) -> None:
        """`key` runs again, or is gone."""

    def held(self, *hows: Hold) -> Sequence[ProcessKey]:
        """Every process on record that is (or may be) paused in one of these ways; by signal or lock where none is given."""


class Device(Protocol):
    """One device."""

    inventory: Inventory
    capabilities: Capabilities

    @property
    def lost(self) -> str | None:
        """Why nothing can be said or done on this device any more, and what to do; None while all is well."""

    def usage(self, target: Target, *, memory: bool = False, active: bool = False) -> Usage | None:
        """Cumulative device time and demand of the session's tree; None where there is no sample.

        `memory` and `active` say what of that is asked for; who was at work takes a driver's time to find out.

        Its root is gone, or nobody can measure (NVML gone, device lost). Whether the root is gone is
        for the pidfd to say, not for this.
        """

    async def look(self) -> None:
        """Read who holds what: `usage` is no older than this call then, where anybody can tell."""

    def moving(self) -> AbstractContextManager[None]:
        """While the block runs, memory is moved: who seems to be at work meanwhile is no word of anybody's own work."""

    def utilization(self) -> Busy | None:
        """How busy the device was, as last read; None where nobody measures."""

    @property
    def window(self) -> float:
        """Length of a window of `utilization`, in seconds; 0 where it is never measured."""

    def environment(self, needs: int = 0) -> Mapping[str, str]:
        """Return what a kernel on this device is to have in its environment when it is launched.

        `needs` are the bytes it is to get, for frameworks that read their limit only then; 0: nothing is known.
        """

    def strangers(self, targets: Collection[Target]) -> Sequence[Stranger]:
        """Return who uses the device and is in none of the sessions `targets`, as last seen."""

    def foreign(self, managed: int) -> int:
        """Bytes in use beyond `managed` and beyond what was in use when we started.

        May be negative: what was in use when we started is given back as far as its holders are gone, or in a session.
        """

    async def pause(self, target: Target, *, limit: float) -> PauseOutcome:
        """Stop the session's work within `limit` seconds; its memory stays. Never continues what others stopped.

        Any other status than PAUSED (and GONE, see `survivors`): it is to run on, and `resume` is to be asked for until all of it does: a part of it
        may stand still that could not be undone at once.
        """

    async def still(self, target: Target) -> bool:
        """Tell whether all that we paused of this session has stood still since; asked for once a second.

        False: something of it ran (it was continued, or unlocked itself). It has been paused again where that was
        possible: `paused` says. Processes that are new in a paused session are paused too, which is no False.
        """

    async def resume(self, target: Target) -> PauseOutcome:
        """Let run again whatever *we* paused of this session.

        NOTHING: nothing of it stands still on our account any more. GONE: its root is gone (whom it
        left behind runs again). Any other status: it could not be done now, and why; ask again.
        PAUSED never comes back from here.
        """

    def paused(self, target: Target) -> Collection[ProcessKey]:
        """What of this session stands still on our account."""

    def runs_on(self, target: Target) -> str:
        """Return what its user can do about it that this session could not be paused when that was asked for last, and why; "" where it could, or where there is nothing to do."""

    async def park(self, target: Target, *, limit: float) -> MoveOutcome:
        """Pause the session within `limit` seconds and give its device memory back, with its state kept in the host's memory (docs/parking.md).

        DONE: it stands still, without memory on the device, until `restore`. Any other status: nothing has changed,
        and where `park` had to pause it, it runs again.
        """

    async def restore(self, target: Target, *, margin: int) -> MoveOutcome:
        """Put back what `park` took; it stands still until `resume`. Whoever asks holds everybody else still meanwhile.

        NOT_NOW: the device has less free in fact than what was parked and `margin` bytes; nothing was begun (I5).
        """

    def parked(self, target: Target) -> int:
        """Return how many bytes of the session `park` took from the device; 0 where it is not parked."""

    def loose(self, target: Target) -> int:
        """Return how many processes of a parked session have a context and run: they were not there when it was parked."""

    async def bring_back(self, targets: Collection[Target], *, margin: int) -> Sequence[ProcessKey]:
        """Restore and resume who was parked by a broker before us and is in none of these sessions; return who runs again.

        Nobody is held still for it, so each waits for room for it twice, and `margin` twice. Asked again and again.
        """

    def survivors(self, target: Target) -> Sequence[ProcessKey]:
        """Living processes of a session whose root has ended, those at the top of what is left of its tree.

        Asked once, when the session has no use for this root any more: the device may forget it.
        """

    def close(self) -> None:
        """Resume everything and give all handles back."""
