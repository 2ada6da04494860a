"""The queue for memory: what fits may pass, but nobody is passed for ever."""

from __future__ import annotations

from itertools import count

import hypothesis.strategies as st
from hypothesis import given

from gpushare_kernel.core.admission import WINDOW, AdmissionQueue
from gpushare_kernel.core.policies import Fifo, policy_named
from gpushare_kernel.core.records import Job, Session, User
from gpushare_kernel.core.values import JobId, Need, SessionId, UserId

ORDER = count(1)


OWNER = Session(SessionId("s"), User(UserId("ann")), 1)


def job(name: object, ephemeral: int = 1) -> Job:
    return Job(JobId(str(name)), OWNER.id, next(ORDER), Need(0, ephemeral), None, 0.0)


def admitted(queue: AdmissionQueue, free: int) -> list[str]:
    """Let in what fits into `free`, as the book does."""

    def fits(one: Job) -> bool:
        nonlocal free
        if one.need.ephemeral > free:
            return False
        free -= one.need.ephemeral
        return True

    return [str(one.id) for one in queue.admit(fits)]


def test_what_fits_passes_what_does_not() -> None:
    """Memory does not lie idle behind a big job."""
    queue = AdmissionQueue(policy_named("fifo"))
    for name, size in (("big", 9), ("a", 2), ("b", 3), ("c", 4)):
        queue.push(job(name, size), OWNER, 0.0)
    assert admitted(queue, 6) == ["a", "b"]
    assert [str(one.id) for one in queue] == ["big", "c"]
    assert [one.overtaken for one in queue] == [2, 0]


def test_who_was_passed_often_is_passed_no_more() -> None:
    """After Fifo.passes of them the others wait too, however well they fit."""
    queue = AdmissionQueue(policy_named("fifo"))
    queue.push(job("big", 9), OWNER, 0.0)
    for n in range(Fifo.passes + 3):
        queue.push(job(n), OWNER, 0.0)
    assert len(admitted(queue, 8)) == Fifo.passes
    assert admitted(queue, 8) == []
    assert admitted(queue, 9) == ["big"]
    assert admitted(queue, 9) == ["8", "9", "10"]


def test_only_the_first_ones_are_looked_at() -> None:
    """A pass costs at most WINDOW looks, however long the queue."""
    queue = AdmissionQueue(policy_named("fifo"))
    for n in range(WINDOW):
        queue.push(job(n, 9), OWNER, 0.0)
    queue.push(job("behind"), OWNER, 0.0)
    looks = []
    assert list(queue.admit(lambda one: bool(looks.append(one)))) == []
    assert len(looks) == WINDOW
    assert JobId("behind") in queue


def test_places_are_counted_from_the_front() -> None:
    """What a waiter is told: how many stand before it; whoever leaves is gone."""
    queue = AdmissionQueue(policy_named("fifo"))
    jobs = [job(n) for n in range(4)]
    for one in jobs:
        queue.push(one, OWNER, 0.0)
    assert [queue.ahead(one.id) for one in jobs] == [0, 1, 2, 3]
    queue.remove(jobs[1])
    queue.remove(jobs[1])
    assert queue.ahead(jobs[3].id) == 2
    assert queue.ahead(JobId("nobody")) == len(queue) == 3


@given(
    st.lists(
        st.one_of(st.integers(1, 12), st.integers(0, 12).map(lambda free: -free)), max_size=120
    )
)
def test_overtaking_is_bounded_whatever_comes(steps: list[int]) -> None:
    """No job is overtaken more than Fifo.passes times, and nobody passes one who was: later arrivals stay behind it."""
    queue = AdmissionQueue(policy_named("fifo"))
    arrived: dict[str, Job] = {}
    overtaken: dict[str, int] = {}
    for n, step in enumerate(steps):
        if step > 0:
            arrived[str(n)] = job(n, step)
            queue.push(arrived[str(n)], OWNER, 0.0)
            continue
        before = [str(one.id) for one in queue]
        let_in = admitted(queue, -step)
        for name in let_in:
            for earlier in before[: before.index(name)]:
                if earlier not in let_in:
                    overtaken[earlier] = overtaken.get(earlier, 0) + 1
    assert all(times <= Fifo.passes for times in overtaken.values())
    assert all(one.overtaken == overtaken.get(str(one.id), 0) for one in queue)
    order = [int(one.id) for one in queue]
    assert order == sorted(order)


def test_under_srtf_nobody_longer_takes_memory_that_the_first_waits_for() -> None:
    """It would hold it for long, and nothing takes it back."""
    queue = AdmissionQueue(policy_named("srtf"))
    for name, size, time in (("short", 9, 10.0), ("long", 2, 100.0)):
        one = job(name, size)
        one.time = time
        queue.push(one, OWNER, 0.0)
    assert admitted(queue, 8) == []
    assert admitted(queue, 11) == ["short", "long"]


def test_a_late_promise_of_a_job_that_is_gone_promotes_nobody_else() -> None:
    """Another job may have its name by then."""
    queue = AdmissionQueue(policy_named("fair"))
    gone, first, same = job("same"), job("first"), job("same")
    queue.push(gone, OWNER, 0.0)
    queue.remove(gone)
    queue.push(first, OWNER, 0.0)
    queue.push(same, OWNER, 0.0)
    queue.promote(gone, 1.0)
    assert [one.id for one in queue] == [first.id, same.id]
    queue.promote(same, 1.0)
    assert [one.id for one in queue] == [same.id, first.id]
    assert len(queue) == 2
