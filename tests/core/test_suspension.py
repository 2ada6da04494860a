"""Who holds more than it was granted is paused for a while, whatever the turns (I3: with a reason and a bound)."""

from __future__ import annotations

import pytest
from tests_core_world import World  # type: ignore[import-not-found]

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.values import (
    GiB,
    JobState,
    PauseReason,
    PauseStatus,
    SessionId,
)

A = SessionId("a")


def world(*, running: int = 1, **settings: object) -> World:
    """A machine with room for all; the first so many sessions have a job."""
    found = World(compute=4.0, **settings)
    for name in "ab"[:running]:
        found.open(name, user=name)
        found.submit(f"{name}/1", name, GiB, 0)
    return found


def suspend(world: World, seconds: float = 60.0) -> None:
    world.send(ev.Suspended(at=world.now, session=A, until=world.now + seconds))
    world.finish_drains()


def stands(world: World) -> bool:
    stopped = world.core.sessions[A].stopped
    assert (stopped is PauseReason.OVER_GRANT) == world.kernels["a"].paused
    return bool(world.kernels["a"].paused)


def test_it_stands_still_though_there_is_room_and_runs_again_when_the_time_is_over() -> None:
    """Its job keeps its lane and its memory; others run on; its user is told how long and why."""
    here = world(running=2)
    suspend(here, 60.0)
    assert stands(here)
    assert here.core.jobs["a/1"].state is JobState.PAUSED
    here.run(59.5, step=0.1)
    assert stands(here)
    assert not here.kernels["b"].paused
    here.run(1.0, step=0.1)
    assert not stands(here)
    assert here.running("a/1")
    (told,) = [i for i in here.log if isinstance(i, do.Slow)]
    assert told.reason is PauseReason.OVER_GRANT
    assert told.paused == pytest.approx(60.0, abs=0.5)


def test_what_it_used_until_it_stood_is_asked_for_once() -> None:
    """The sample before may have come while it still ran; one that closes is not asked for."""
    here = world(running=2)
    suspend(here)
    assert A in here.core.watched(here.now)
    here.sample()
    assert A not in here.core.watched(here.now)
    suspend(here)
    here.send(ev.SuspensionEnded(at=here.now, session=A))
    suspend(here)
    assert A in here.core.watched(here.now)
    here.send(ev.SessionClosed(at=here.now, session=A))
    assert A not in here.core.watched(here.now)


def test_it_runs_again_when_the_broker_says_so() -> None:
    """And is nothing to those who are not suspended, or not here."""
    here = world()
    suspend(here)
    for session in (A, SessionId("nobody")):
        here.send(ev.SuspensionEnded(at=here.now, session=session))
    assert not stands(here)
    log = len(here.log)
    here.send(ev.SuspensionEnded(at=here.now, session=A))
    assert not [i for i in here.log[log:] if isinstance(i, do.Resume)]


def test_its_owner_pauses_it_and_nothing_else_lets_it_on() -> None:
    """By hand: told so in the end; the end of another suspension is not that of this one, nor the other way round."""
    here = world(running=2)
    until = here.now + 600.0
    here.send(ev.Suspended(at=here.now, session=A, until=until, reason=PauseReason.OWNER))
    here.finish_drains()
    suspend(here, 1.0)  # it is over its grant as well: it stands already
    here.send(ev.SuspensionEnded(at=here.now, session=A))
    here.run(12.0, step=0.1)
    assert here.core.sessions[A].stopped is PauseReason.OWNER
    assert here.kernels["a"].paused
    here.send(ev.SuspensionEnded(at=here.now, session=A, reason=PauseReason.OWNER))
    assert not here.kernels["a"].paused
    (told,) = [i for i in here.log if isinstance(i, do.Slow)]
    assert told.reason is PauseReason.OWNER
    suspend(here)
    here.send(ev.SuspensionEnded(at=here.now, session=A, reason=PauseReason.OWNER))
    assert stands(here)


def test_a_second_time_has_a_bound_of_its_own() -> None:
    """The end of the first does not end it."""
    here = world()
    suspend(here, 10.0)
    here.run(5.0, step=0.1)
    here.send(ev.SuspensionEnded(at=here.now, session=A))
    suspend(here, 10.0)
    here.run(8.0, step=0.1)
    assert stands(here)
    here.run(3.0, step=0.1)
    assert not stands(here)


def test_a_signal_on_its_way_lets_it_run() -> None:
    """I3: before an interrupt or a shutdown it is resumed, and not suspended while that lasts."""
    here = world()
    suspend(here)
    here.send(ev.Exempted(at=here.now, session=A, until=here.now + 1.0))
    assert not stands(here)
    suspend(here)
    assert not stands(here)


def test_nobody_without_a_job_stands_still() -> None:
    """Its last job is over while it stands (its client was interrupted): nothing keeps it."""
    here = world()
    suspend(here)
    here.end("a/1")
    assert not stands(here)
    suspend(here)
    assert not stands(here)


def test_a_device_that_is_lost_holds_nobody() -> None:
    """And nobody is suspended on it."""
    here = world()
    suspend(here)
    here.send(ev.DeviceLost(at=here.now, lost=True))
    assert not stands(here)
    suspend(here)
    assert not stands(here)


def test_a_restarted_kernel_begins_free() -> None:
    """The process that stood still is gone."""
    here = world()
    suspend(here)
    here.send(ev.SessionRestarted(at=here.now, session=A))
    assert here.core.sessions[A].stopped is None
    assert here.core.sessions[A].suspended_until is None


def answer(world: World, status: PauseStatus) -> None:
    ticket = world.core.sessions[A].ticket
    world.drains.clear()
    world.send(ev.Paused(at=world.now, session=A, ticket=ticket, status=status))


def test_work_that_drains_longer_is_waited_for_longer() -> None:
    """The limit is doubled, as for turns."""
    here = world()
    here.drain = 1.0
    suspend(here)
    answer(here, PauseStatus.BUSY)
    here.run(0.1)
    first, second = [i.limit for i in here.log if isinstance(i, do.Pause)]
    assert second == 2 * first


def test_who_cannot_be_paused_runs_on() -> None:
    """A profiler, another's process: it is not asked for twice."""
    here = world()
    here.drain = 1.0
    suspend(here)
    answer(here, PauseStatus.UNSUPPORTED)
    assert here.core.sessions[A].stopped is None
    assert here.running("a/1")
    pauses = [i for i in here.log if isinstance(i, do.Pause)]
    suspend(here)
    assert [i for i in here.log if isinstance(i, do.Pause)] == pauses


def test_who_lets_itself_run_is_paused_again() -> None:
    """A process can unlock itself."""
    here = world()
    suspend(here)
    here.kernels["a"].paused = False
    here.send(ev.Continued(at=here.now, session=A))
    here.finish_drains()
    assert stands(here)


def test_what_it_submits_meanwhile_waits() -> None:
    """Another of its jobs gets its memory and no turn."""
    here = world()
    suspend(here)
    here.submit("a/2", "a", GiB, 0)
    assert not here.running("a/2")
    here.send(ev.SuspensionEnded(at=here.now, session=A))
    assert here.running("a/2")
