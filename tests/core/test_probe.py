"""What samples say: when a plain cell becomes a job, how much a session could use, when it has fallen quiet."""

from __future__ import annotations

import pytest
from tests_core_world import World  # type: ignore[import-not-found]

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.probe import LONGEST_LOOK, Probe
from gpushare_kernel.core.records import Job, Session, User
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import JobId, Need, Presence, SessionId, Usage, UserId


def probe() -> Probe:
    return Probe(Config(capacity=100, compute=2.0))


def attached() -> Session:
    session = Session(SessionId("s"), User(UserId("ann")), 1)
    session.become(Presence.ATTACHED)
    session.begun = True
    return session


def test_a_plain_cell_becomes_a_job_after_50_ms_of_cpu_and_not_before() -> None:
    """What a cell used before it began does not count; 49 ms is no job, 50 ms is, with the demand it had."""
    looker, session = probe(), attached()
    looker.sample(session, Usage(7.0, 7.0), 0.0)
    looker.start(session, 0.0)
    assert not looker.sample(session, Usage(7.049, 7.049), 0.05).begins
    seen = looker.sample(session, Usage(7.1, 7.1), 0.1)
    assert seen.begins
    assert seen.demand == pytest.approx(1.0)


def test_a_starved_cell_is_known_by_what_it_wanted() -> None:
    """On a full machine it got half a core of the two it was ready to use."""
    looker, session = probe(), attached()
    looker.sample(session, Usage(0.0, 0.0), 0.0)
    looker.start(session, 0.0)
    seen = looker.sample(session, Usage(0.05, 0.2), 0.1)
    assert seen.begins
    assert seen.demand == pytest.approx(2.0)


def test_looks_back_off_but_never_stop() -> None:
    """A cell that sleeps is looked at less and less often, at last every half second."""
    looker, session = probe(), attached()
    looker.sample(session, Usage(0.0, 0.0), 0.0)
    looker.start(session, 0.0)
    at, waits = 0.0, []
    for _ in range(12):
        when = looker.next_look()
        assert when is not None
        assert looker.due(when) == [session.id]
        waits.append(when - at)
        at = when
        looker.sample(session, Usage(0.0, 0.0), at)
    assert waits[0] == pytest.approx(0.05)
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(LONGEST_LOOK)
    looker.forget(session)
    assert looker.next_look() is None
    assert looker.due(at + 9) == []


def test_a_session_with_a_declared_job_is_not_looked_at() -> None:
    """Its cell is a job already."""
    looker, session = probe(), attached()
    session.jobs[JobId("j")] = Job(JobId("j"), session.id, 1, Need(0, 0), None, 0.0)
    looker.start(session, 0.0)
    assert looker.next_look() is None


def test_thousands_of_short_cells_leave_nothing_behind() -> None:
    """Looks at cells that are over are dropped, not kept."""
    looker, session = probe(), attached()
    for n in range(5000):
        looker.start(session, float(n))
        looker.forget(session)
    assert len(looker._looks) <= 65
    assert looker.next_look() is None


def test_what_a_session_uses_without_a_job_is_seen_when_it_is_more_than_a_whiff() -> None:
    """A background thread or a kernel without our client: judged over 0.2 s at least, from a quarter of a core on."""
    looker, session = probe(), attached()
    looker.sample(session, Usage(0.0, 0.0), 0.0)
    assert not looker.sample(session, Usage(0.1, 0.1), 0.1).begins
    assert not looker.sample(session, Usage(0.15, 0.15), 0.5).begins
    seen = looker.sample(session, Usage(0.65, 0.65), 1.0)
    assert seen.begins
    assert seen.demand == pytest.approx(1.0)


@pytest.mark.parametrize("presence", [Presence.OPENED, Presence.ORPHANED])
def test_a_kernel_that_is_starting_is_left_alone(presence: Presence) -> None:
    """Imports at its start are not a job."""
    looker, session = probe(), Session(SessionId("s"), User(UserId("ann")), 1, presence=presence)
    looker.sample(session, Usage(0.0, 0.0), 0.0)
    assert not looker.sample(session, Usage(1.0, 1.0), 1.0).begins


def test_use_while_paused_is_noticed() -> None:
    """Somebody else continued it: what it uses after it was seen standing still is not its own."""
    looker, session = probe(), attached()
    session.phase = Phase.WAITING
    looker.sample(session, Usage(1.0, 1.0), 1.0)
    from gpushare_kernel.core.values import PauseReason

    session.stopped, session.stopped_at = PauseReason.TURN_ENDED, 0.9
    assert not looker.sample(session, Usage(1.01, 1.01), 1.1).cheated
    assert looker.sample(session, Usage(1.1, 1.1), 1.2).cheated


def test_a_clock_that_falls_back_uses_nothing() -> None:
    """A child that ended between two reads takes its seconds with it: never less than nothing."""
    looker, session = probe(), attached()
    looker.sample(session, Usage(5.0, 5.0), 0.0)
    assert looker.sample(session, Usage(4.0, 4.0), 1.0).used == 0.0
    assert session.device_time == 0.0


# --- in the scheduler --------------------------------------------------------------------------------------


def test_a_cell_that_only_prints_never_becomes_a_job() -> None:
    """No lane, no turn, nothing to tell anybody; and looking at it stops with it."""
    world = World()
    world.open("a", demand=0.02)
    world.cell("a")
    world.run(1.0)
    assert not world.core.jobs
    world.cell_ends("a")
    assert world.core.book.table.used == 0
    assert not any(isinstance(i, do.Grant | do.Pause | do.Queue) for i in world.log)
    assert world.log[-1] == do.Wake(None)


def test_a_plain_job_ends_with_its_cell_and_what_it_left_is_charged() -> None:
    """P stays as measured, the lane goes."""
    world = World()
    world.open("a")
    world.cell("a")
    world.run(1.0)
    session = world.core.sessions[SessionId("a")]
    assert session.plain_job is not None
    assert not session.plain_job.background
    world.cell_ends("a", persistent=1000)
    assert not session.jobs
    assert session.measured == 1000
    assert world.core.book.table.in_lanes == 0


def test_memory_of_plain_work_is_measured_and_that_of_declared_work_is_not() -> None:
    """A declared job's own memory is its lane; what a plain one holds is P as it is seen."""
    world = World()
    world.open("a")
    world.cell("a")
    world.run(1.0)
    seen = ev.Sampled(at=world.now, used={SessionId("a"): Usage(1.0, 1.0, 12345)})
    world.send(seen)
    assert world.core.sessions[SessionId("a")].measured == 12345
    world.open("b")
    world.submit("b/1", "b", 100, 100)
    world.send(ev.Sampled(at=world.now, used={SessionId("b"): Usage(1.0, 1.0, 777)}))
    assert world.core.sessions[SessionId("b")].measured == 0
