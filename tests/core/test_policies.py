"""The order of turns: FIFO by arrival, FAIR by least weighted use."""

from __future__ import annotations

import pytest

from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.core.policies import POLICIES, policy_named
from gpushare_kernel.core.records import Job, Session, User
from gpushare_kernel.core.values import JobId, Need, SessionId, UserId


def session(order: int, *jobs: int, vtime: float = 0.0, user: User | None = None) -> Session:
    made = Session(SessionId(f"s{order}"), user or User(UserId("ann")), order, vtime=vtime)
    for one in jobs:
        made.jobs[JobId(str(one))] = Job(JobId(str(one)), made.id, one, Need(0, 0), None, 0.0)
    return made


def test_fair_takes_who_used_least() -> None:
    """Among sessions and among users the least virtual time comes first; ties go to the older session."""
    fair = policy_named("fair")
    sessions = [session(1, vtime=2.0), session(2, vtime=0.5), session(3, vtime=0.5)]
    assert [s.order for s in sorted(sessions, key=fair.session_key)] == [2, 3, 1]
    lazy, busy = User(UserId("lazy"), vtime=1.0), User(UserId("busy"), vtime=3.0)
    old, new = session(1, user=busy), session(2, user=lazy)
    assert fair.user_key(lazy, new, 0.0) < fair.user_key(busy, old, 0.0)
    assert fair.user_key(lazy, new, 2.5) > fair.user_key(busy, old, 0.0), (
        "what it was given in this turn counts"
    )


def test_fifo_takes_the_oldest_job_of_anybody() -> None:
    """Users and use do not matter: the session with the oldest job is first, and keeps the device."""
    fifo = policy_named("fifo")
    late, early = session(1, 9), session(2, 7, 12, vtime=100.0)
    assert sorted([late, early], key=fifo.session_key) == [early, late]
    assert fifo.user_key(early.user, early, 50.0) < fifo.user_key(late.user, late, 0.0)
    assert not fifo.rotates
    assert policy_named("fair").rotates


def test_a_policy_that_is_not_known_is_refused_with_those_that_are() -> None:
    """The message lists every policy there is."""
    with pytest.raises(BadDeclaration, match=r"'lottery' is not known. Choose one of: fair, fifo."):
        policy_named("lottery")
    assert all(policy_named(name).name == name for name in POLICIES)
