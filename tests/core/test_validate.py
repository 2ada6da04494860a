"""The checker checks: every rule it knows is found broken where a hand has broken it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests_core_world import World  # type: ignore[import-not-found]

from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import InvariantBroken
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.validate import validate
from gpushare_kernel.core.values import GiB, JobId, JobState, PauseReason, SessionId


def busy() -> Scheduler:
    """Two lane mates, one plain cell, one that waits for memory, one that is paused."""
    world = World(capacity=10 * GiB)
    for name in "abcde":
        world.open(name, user=name, demand=2.0, interval=0.01 if name in "ab" else None)
    world.submit("a/1", "a", 0, 6 * GiB)
    world.submit("b/1", "b", 0, 5 * GiB)
    world.cell("c")
    world.cell("e")
    world.submit("d/1", "d", 9 * GiB, 0)
    world.run(1.0)
    validate(world.core)
    return world.core


def session(core: Scheduler, phase: Phase) -> SessionId:
    return next(s.id for s in core.sessions.values() if s.phase is phase)


def _sums(core: Scheduler) -> None:
    core.book.table.persistent += 1


def _over(core: Scheduler) -> None:
    core.book.table.capacity = 0
    core.book.deficit = False


def _small(core: Scheduler) -> None:
    lane = core.book.table.lanes[core.jobs[JobId("a/1")].lane]  # type: ignore[index]
    core.book.table.in_lanes -= lane.size - 1
    lane.size = 1


def _empty(core: Scheduler) -> None:
    core.book.table.lanes[core.jobs[JobId("a/1")].lane].members.clear()  # type: ignore[index]


def _nobody(core: Scheduler) -> None:
    core.book.table.lanes[core.jobs[JobId("a/1")].lane].occupant = None  # type: ignore[index]


def _crowd(core: Scheduler) -> None:
    core.book.table.lanes[core.jobs[JobId("a/1")].lane].private = True  # type: ignore[index]


def _two_lanes(core: Scheduler) -> None:
    lane = core.book.table.lanes[core.jobs[JobId("c/plain")].lane]  # type: ignore[index]
    lane.members[JobId("a/1")] = core.jobs[JobId("a/1")]


def _both_on(core: Scheduler) -> None:
    lane = core.book.table.lanes[core.jobs[JobId("a/1")].lane]  # type: ignore[index]
    for job in lane.members.values():
        job.trimmed = False


def _unknown_phase(core: Scheduler) -> None:
    core.sessions[session(core, Phase.WAITING)].phase = Phase.ON


def _lost_from_sight(core: Scheduler) -> None:
    core.turns.using.clear()


def _runs(core: Scheduler) -> None:
    waiting = next(
        s for s in core.sessions.values() if s.phase is Phase.WAITING and s.stopped is not None
    )
    waiting.stopped = None


def _load(core: Scheduler) -> None:
    core.turns.load += 0.5


def _busy(core: Scheduler) -> None:
    core.turns.busy -= 0.5


def _stopped(core: Scheduler) -> None:
    core.sessions[session(core, Phase.OFF)].stopped = PauseReason.TURN_ENDED


def _exempt(core: Scheduler) -> None:
    for one in core.sessions.values():
        one.exempt_until = core.at + 1


def _dead_device(core: Scheduler) -> None:
    core.lost = True


def _queue(core: Scheduler) -> None:
    core.book.queue.remove(core.jobs[JobId("d/1")])


def _overlooked(core: Scheduler) -> None:
    core.book.table.capacity *= 2


def _orphan(core: Scheduler) -> None:
    del core.sessions[SessionId("d")].jobs[JobId("d/1")]


def _asleep(core: Scheduler) -> None:
    job = next(
        job
        for s in core.sessions.values()
        if s.phase is Phase.ON
        for job in s.jobs.values()
        if not job.waits
    )
    job.waits, job.trimmed, job.state = True, True, JobState.ADMITTED


@pytest.mark.parametrize(
    ("corrupt", "says"),
    [
        (_sums, "I1: sums"),
        (_over, "I1: .* bytes over capacity without a known cause"),
        (_small, "I2: lane .* has 1 bytes, a member needs"),
        (_empty, "I2: lane .* is empty and lives"),
        (_nobody, "I2: lane .* has members and no occupant"),
        (_crowd, "I2: private lane .* has 2 members"),
        (_two_lanes, "I2: job a/1 is not in one lane"),
        (_both_on, "I2: job .* has E on the device and does not occupy lane"),
        (_unknown_phase, "turns: session . is on and in the wrong set"),
        (_lost_from_sight, "turns: session . .* stands in 0 places"),
        (_lost_from_sight, "I6: somebody wants the device and nobody uses it"),
        (_runs, "I2: session . runs without a turn"),
        (_load, "turns: load is"),
        (_busy, "turns: busy is"),
        (_stopped, "I3: session . is off and stopped"),
        (_exempt, "I3: session . is exempt and stopped"),
        (_dead_device, "I3: session . is stopped on a lost device"),
        (_queue, "queue: job d/1 is queued and in the wrong place"),
        (_overlooked, "queue: job d/1 fits, and is taken for one that does not"),
        (_orphan, "jobs: d/1 belongs to no session"),
        (_asleep, "waits although its session has the turn and it the lane"),
    ],
)
def test_what_a_hand_has_broken_is_found(corrupt: Callable[[Scheduler], None], says: str) -> None:
    """Each rule by its number, with the numbers seen."""
    core = busy()
    corrupt(core)
    with pytest.raises(InvariantBroken, match=says):
        validate(core)


def test_all_that_is_broken_is_named_at_once() -> None:
    """One report, not one finding a run."""
    core = busy()
    _sums(core)
    _load(core)
    with pytest.raises(InvariantBroken, match=r"I1: sums.*; turns: load is"):
        validate(core)


def test_waiting_while_all_fit_is_found() -> None:
    """I6: nobody waits on a device with room."""
    world = World()
    world.open("a", demand=1.0)
    world.cell("a")
    world.run(1.0)
    world.open("b", demand=1.0)
    world.submit("b/1", "b", 0, GiB)
    world.run(1.0)
    world.send(ev.Sampled(at=world.now))
    b = world.core.sessions[SessionId("b")]
    turns = world.core.turns
    turns.busy -= b.counted
    del turns.using[b.id]
    b.phase = Phase.WAITING
    turns.accounts.join(b)
    for job in b.jobs.values():
        job.waits = True
    with pytest.raises(InvariantBroken, match="I6: somebody waits while all fit"):
        validate(world.core)
