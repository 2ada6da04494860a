"""Counts beside a scheduler: as many as happened, by a virtual broker that keeps books of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.core_events.world import World
from gpushare_kernel.broker.counts import PARK, RESTORE, Counts
from gpushare_kernel.broker.families import Spread
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.values import GiB, JobId, MoveStatus, Promise, SessionId, UserId


class Counted:
    """A scheduler whose events are counted, as the engine does it."""

    def __init__(self, core: Scheduler) -> None:
        self.core, self.counts = core, Counts(core)
        self.first: set[str] = set()
        self._before = {name for name, job in core.jobs.items() if job.granted is not None}

    def handle(self, event: ev.Event) -> Sequence[do.Instruction]:
        out = self.core.handle(event)
        self.counts.note(event, out)
        for one in out:
            if isinstance(one, do.Grant) and one.job not in self._before:
                self.first.add(one.job)
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)


@pytest.fixture(scope="module")
def world() -> World:
    """3,000 events of the mix that the core is measured with: turns, lanes, parks, restarts."""
    made = World(60)
    made.core = Counted(made.core)  # type: ignore[assignment]  # it passes for one
    made.counts.clear()
    made.outcomes.clear()
    made.run(3000)
    return made


def test_every_event_and_pause_is_counted_once(world: World) -> None:
    """What the virtual broker wrote down itself is what was counted; something of each was there."""
    counts: Counts = world.core.counts
    assert counts.events == sum(world.counts.values())
    assert sum(counts.pauses.values()) == world.outcomes["Pause"] > 0
    assert sum(counts.results.values()) == world.counts["Paused"] > 0
    assert sum(counts.drains.counts) == counts.results["paused"]
    assert counts.restarts == world.counts["SessionRestarted"] > 0
    assert sum(sum(spread.counts) for spread in counts.waits.values()) == len(world.core.first) > 0


def test_parks_and_restores_are_counted_with_their_bytes(world: World) -> None:
    """By what came of them."""
    counts: Counts = world.core.counts
    moved = Counter({way: sum(n for (one, _), n in counts.moves.items() if one == way) for way in (PARK, RESTORE)})  # fmt: skip
    assert moved[PARK] == world.counts["Parked"]
    assert moved[RESTORE] == world.counts["Restored"]
    for way in (PARK, RESTORE):
        assert sum(counts.move_times[way].counts) == counts.moves[way, MoveStatus.DONE]


def scheduler() -> tuple[Scheduler, Counts]:
    """One of a GPU, with a session on it."""
    core = Scheduler(Config(capacity=8 * GiB, compute=1.0, can_park=True).for_gpu(0))
    counts = Counts(core)
    for event in (
        ev.SessionOpened(at=0.0, session=SessionId("s"), user=UserId("ann")),
        ev.SessionReady(at=0.0, session=SessionId("s"), bare=False, context=0),
    ):
        counts.note(event, core.handle(event))
    return core, counts


def test_a_restore_moves_what_it_was_to_put_back() -> None:
    """The answer does not say how much that was; what was asked for does."""
    _, counts = scheduler()
    at, session = 1.0, SessionId("s")
    counts.note(ev.Parked(at=at, session=session, ticket=1, freed=3 * GiB, took=0.5), [do.Restore(session, 2, 2 * GiB)])  # fmt: skip
    counts.note(ev.Restored(at=at, session=session, ticket=2, status=MoveStatus.NOT_NOW), [do.Restore(session, 3, 3 * GiB)])  # fmt: skip
    counts.note(ev.Restored(at=at, session=session, ticket=3, took=0.2), [])
    assert dict(counts.moved) == {PARK: 3 * GiB, RESTORE: 3 * GiB}
    assert (counts.moves[RESTORE, MoveStatus.NOT_NOW], counts.moves[RESTORE, MoveStatus.DONE]) == (
        1,
        1,
    )
    assert counts.move_times[PARK].total == 0.5


def test_deadlines_are_counted_to_the_job_s_end() -> None:
    """Releases and misses of a job that is over stay counted; none is counted twice, however often one looks."""
    core, counts = scheduler()
    session, job = SessionId("s"), JobId("s/camera")

    def send(event: ev.Event) -> None:
        counts.note(event, core.handle(event))

    promise = Promise(period=0.1, deadline=0.05, bound=0.04, drain=0.01, absorbs=0.01)
    send(
        ev.JobSubmitted(at=1.0, job=job, session=session, size=GiB, realtime=True, promise=promise)
    )
    for at, took in ((2.0, 0.01), (2.1, 0.06), (2.2, 0.01)):
        send(ev.RealtimeReleased(at=at, job=job))
        send(ev.Rung(at=at + min(took, 0.045)))
        counts.look_at_deadlines(at + took)
        send(ev.RealtimeDone(at=at + took, job=job))
        counts.look_at_deadlines(at + took)
    assert (counts.releases, counts.misses, counts.overruns) == (3, 1, 1)
    send(ev.JobEnded(at=3.0, job=job, persistent=0))
    counts.look_at_deadlines(3.0)
    assert not core.turns.gate.windows.standing
    assert (counts.releases, counts.misses) == (3, 1)
    assert sum(counts.waits["realtime"].counts) == 1


def test_a_spread_has_a_place_for_every_value() -> None:
    """At most a bound, and beyond the last."""
    spread = Spread.over((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.1, 99.0):
        spread.add(value)
    assert spread.counts == [2, 2, 2]
    assert spread.total == pytest.approx(105.6)
