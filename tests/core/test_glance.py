"""What is seen of a session on a GPU: late, and of one process at a time."""

from __future__ import annotations

from tests_gpu_world import GpuKernel, GpuWorld  # type: ignore[import-not-found]

from gpushare_kernel.core import events as ev
from gpushare_kernel.core.budget import budget
from gpushare_kernel.core.values import GiB, JobId, SessionId, Usage, UserId

A = SessionId("a")


def world() -> GpuWorld:
    made = GpuWorld()
    made.send(ev.SessionOpened(at=0.0, session=A, user=UserId("ann")))
    made.send(ev.SessionReady(at=0.0, session=A, bare=False, context=0))
    return made


def look(made: GpuWorld, at: float, **usage: object) -> bool:
    """Sample the session; say whether it has a job then."""
    made.now = at
    seen = {"contexts": 1} | usage
    made.send(ev.Sampled(at=at, used={A: Usage(0.0, 0.0, **seen)}))  # type: ignore[arg-type]
    return bool(made.core.sessions[A].jobs)


def test_a_cell_that_does_not_use_the_device_is_no_job() -> None:
    """1+1 never queues and never takes a turn."""
    made = world()
    made.send(ev.CellStarted(at=1.0, session=A, usage=Usage(0.0, 0.0)))
    assert not look(made, 1.2, active=False)
    assert not look(made, 5.0, active=None)
    assert not look(made, 6.0, active=True, contexts=0), "no context: it was not this process"


def test_a_cell_is_a_job_once_it_is_seen_at_work() -> None:
    """By the driver's word, or by a boundary."""
    made = world()
    made.send(ev.CellStarted(at=1.0, session=A, usage=Usage(0.0, 0.0)))
    assert look(made, 1.5, active=True)
    made.send(ev.CellEnded(at=2.0, session=A, persistent=0))
    assert not made.core.sessions[A].jobs
    made.send(ev.CellStarted(at=10.0, session=A, usage=Usage(0.0, 0.0, progress=3)))
    assert look(made, 10.2, progress=4)


def test_what_a_cell_did_is_not_taken_for_work_after_it() -> None:
    """The driver's word comes up to four seconds late; who works on after that is a job without a cell."""
    made = world()
    made.send(ev.CellStarted(at=1.0, session=A, usage=Usage(0.0, 0.0)))
    assert look(made, 1.5, active=True)
    made.send(ev.CellEnded(at=2.0, session=A, persistent=0))
    assert not look(made, 5.5, active=True)
    assert not look(made, 6.5, active=True), "perhaps done before"
    assert look(made, 7.5, active=True)


def test_what_a_cell_did_is_not_taken_for_work_after_it_however_seldom_it_is_looked() -> None:
    """Nobody asks about who is idle for a long while, then the first answer is about the cell that it had."""
    made = world()
    made.send(ev.CellStarted(at=1.0, session=A, usage=Usage(0.0, 0.0)))
    assert look(made, 1.5, active=True)
    made.send(ev.CellEnded(at=2.0, session=A, persistent=0))
    assert not look(made, 60.0, active=True)
    assert not look(made, 60.5, active=None)
    assert not made.core.sessions[A].roams
    assert look(made, 61.0, active=True)
    assert made.core.sessions[A].roams


def test_what_a_client_does_not_know_of_is_held_until_the_driver_says_otherwise() -> None:
    """I1: children and unknown frameworks hold memory of which the client says nothing when its cell ends."""
    made = world()
    made.send(ev.CellStarted(at=1.0, session=A, usage=Usage(0.0, 0.0)))
    assert look(made, 1.5, active=True, memory=12 * GiB)
    session = made.core.sessions[A]
    made.send(ev.CellEnded(at=2.0, session=A, persistent=0))
    assert session.measured == 12 * GiB
    look(made, 3.0, memory=5 * GiB)
    assert (session.measured, session.unseen) == (5 * GiB, 5 * GiB)


def resident() -> GpuWorld:
    """A kernel that has a context on the device."""
    made = GpuWorld(reserve=GiB // 2, plain_grace=0.1)
    made.send(ev.SessionOpened(at=0.0, session=A, user=UserId("ann")))
    made.send(ev.SessionReady(at=0.0, session=A, bare=False, context=0))
    made.send(ev.Sampled(at=0.5, used={A: Usage(0.0, 0.0, contexts=1)}))
    return made


def test_a_cell_of_a_resident_kernel_is_a_job_before_anybody_saw_it_at_work() -> None:
    """The driver names one process at a time, and late: classified within 2 s means not to wait for that."""
    made = resident()
    made.send(ev.CellStarted(at=1.0, session=A, usage=Usage(0.0, 0.0)))
    assert not look(made, 1.05, contexts=None), "1+1 is over before"
    assert look(made, 1.11, contexts=None)


def test_what_left_the_device_idle_is_taken_for_idle_again() -> None:
    """A notebook that goes on without the GPU costs others one measurement, not one in each cell."""
    made = resident()
    for start in (1.0, 10.0):
        made.send(ev.CellStarted(at=start, session=A, usage=Usage(0.0, 0.0)))
        look(made, start + 0.2, contexts=None)
        session = made.core.sessions[A]
        if start > 1.0:
            assert session.counted == 0.0
        session.demand = 0.01
        made.send(ev.CellEnded(at=start + 3, session=A, persistent=0))
    made.send(ev.CellStarted(at=100.0, session=A, usage=Usage(0.0, 0.0)))
    look(made, 100.2, contexts=None)
    assert made.core.sessions[A].demand is None, "long ago"


def test_what_the_driver_said_before_the_client_did_is_old() -> None:
    """Its list is read from time to time: what was given back meanwhile is no memory that nobody knows of."""
    made = resident()
    made.send(ev.CellStarted(at=1.0, session=A, usage=Usage(0.0, 0.0)))
    look(made, 1.5, active=True, memory=12 * GiB)
    made.send(ev.CellEnded(at=2.0, session=A, persistent=GiB))
    session = made.core.sessions[A]
    look(made, 2.5, memory=12 * GiB, memory_at=1.9)
    assert (session.measured, session.unseen) == (12 * GiB, 0), "free once the driver says so"
    assert session.holds == GiB
    look(made, 3.0, memory=GiB, memory_at=2.9)
    assert (session.measured, session.holds, session.unseen) == (GiB, GiB, 0)


def test_what_the_driver_said_before_a_new_kernel_s_first_word_is_old_too() -> None:
    """I1: its first reading may come after its first cell's end, and be from before: what that cell holds is not free."""
    made = resident()
    made.send(ev.CellStarted(at=1.0, session=A, usage=Usage(0.0, 0.0)))
    assert look(made, 1.2, contexts=None)
    made.send(ev.CellEnded(at=2.0, session=A, persistent=3 * GiB))
    session = made.core.sessions[A]
    look(made, 2.5, memory=0, memory_at=1.9)
    assert session.measured == 3 * GiB
    look(made, 3.0, memory=3 * GiB, memory_at=2.9)
    assert (session.measured, session.holds, session.unseen) == (3 * GiB, 3 * GiB, 0)


def test_a_job_is_judged_by_what_its_client_holds_and_not_by_an_old_reading() -> None:
    """A notebook that freed its memory a moment ago is not told that it keeps too much, nor is its cap that much."""
    made = resident()
    made.kernels["a"] = GpuKernel("heavy", seen=False)
    made.send(ev.CellStarted(at=1.0, session=A, usage=Usage(0.0, 0.0)))
    look(made, 1.5, active=True, memory=60 * GiB)
    submit = ev.JobSubmitted(at=2.0, job=JobId("a/j"), session=A, size=4 * GiB, held=GiB)
    made.send(submit)
    job = made.core.jobs[JobId("a/j")]
    assert (job.need.persistent, job.need.ephemeral) == (GiB, 3 * GiB)
    session = made.core.sessions[A]
    assert session.charged == 60 * GiB, "nobody else is given it until the driver says it is free"
    assert budget(made.core, session) == 4 * GiB
    made.send(ev.JobEnded(at=3.0, job=job.id, persistent=9 * GiB))
    again = ev.JobSubmitted(at=4.0, job=JobId("a/k"), session=A, size=4 * GiB, held=9 * GiB)
    made.send(again)
    assert JobId("a/k") not in made.core.jobs, "its own word is more than it is to hold"


def test_who_waits_for_memory_that_it_holds_itself_on_paper_gets_it_when_the_driver_says() -> None:
    """A job that waits holds nothing yet: what its session is seen to hold is what it keeps."""
    made = GpuWorld(reserve=GiB // 2, plain_grace=0.1, capacity=64 * GiB)
    made.send(ev.SessionOpened(at=0.0, session=A, user=UserId("ann")))
    made.send(ev.SessionReady(at=0.0, session=A, bare=False, context=0))
    made.kernels["a"] = GpuKernel("heavy", seen=False)
    made.send(ev.CellStarted(at=1.0, session=A, usage=Usage(0.0, 0.0)))
    look(made, 1.5, active=True, memory=60 * GiB)
    submit = ev.JobSubmitted(at=2.0, job=JobId("a/j"), session=A, size=8 * GiB, held=GiB)
    made.send(submit)
    assert made.core.jobs[JobId("a/j")].lane is None
    look(made, 3.0, memory=GiB, memory_at=2.5)
    assert made.core.jobs[JobId("a/j")].lane is not None


def test_who_works_without_a_cell_is_at_rest_when_the_driver_says_so_for_a_while() -> None:
    """Most samples find no new word of the driver: that is neither work nor rest."""
    made = world()
    made.send(ev.CellStarted(at=1.0, session=A, usage=Usage(0.0, 0.0)))
    assert look(made, 1.5, active=True)
    made.send(ev.CellEnded(at=2.0, session=A, persistent=0))
    look(made, 7.0, active=True)
    assert look(made, 7.4, active=True)
    for n in range(1, 240):
        at = 7.4 + n * 0.04
        if not look(made, at, active=False if n % 10 == 0 else None):
            break
    assert 12 < at < 13, "five seconds of rest"
