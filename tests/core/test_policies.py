"""The order of turns: FIFO by arrival, FAIR by least weighted use."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.core.policies import (
    AGEING,
    PATIENT,
    POLICIES,
    UNKNOWN_TIME,
    policy_named,
    remaining,
)
from gpushare_kernel.core.records import Job, Session, User
from gpushare_kernel.core.values import JobId, LaneId, Need, SessionId, UserId

OWNER = Session(SessionId("s"), User(UserId("ann")), 1)
times = st.floats(0.0, 1e5)


def job(order: int, *, time: float | None = None, at: float = 0.0, part: float = 0.0) -> Job:
    return Job(JobId(str(order)), OWNER.id, order, Need(0, 0), None, at, time=time, part=part)


def had(one: Job, seconds: float) -> Session:
    """Return a session that has had turns for so long since `one` began."""
    one.granted = 0.0
    return Session(SessionId("s"), User(UserId("ann")), 1, served_before=seconds)


def session(order: int, *jobs: int, vtime: float = 0.0, user: User | None = None) -> Session:
    made = Session(SessionId(f"s{order}"), user or User(UserId("ann")), order, vtime=vtime)
    for one in jobs:
        made.jobs[JobId(str(one))] = Job(JobId(str(one)), made.id, one, Need(0, 0), None, 0.0)
    return made


def test_fair_takes_who_used_least() -> None:
    """Among sessions and among users the least virtual time comes first; ties go to the older session."""
    fair = policy_named("fair")
    sessions = [session(1, vtime=2.0), session(2, vtime=0.5), session(3, vtime=0.5)]
    assert [s.order for s in sorted(sessions, key=lambda s: fair.session_key(s, 0.0))] == [2, 3, 1]
    lazy, busy = User(UserId("lazy"), vtime=1.0), User(UserId("busy"), vtime=3.0)
    old, new = session(1, user=busy), session(2, user=lazy)
    first, second = fair.session_key(old, 0.0), fair.session_key(new, 0.0)
    assert fair.user_key(lazy, second, 0.0) < fair.user_key(busy, first, 0.0)
    assert fair.user_key(lazy, second, 2.5) > fair.user_key(busy, first, 0.0), (
        "what it was given in this turn counts"
    )


def test_fifo_takes_the_oldest_job_of_anybody() -> None:
    """Users and use do not matter: the session with the oldest job is first, and keeps the device."""
    fifo = policy_named("fifo")
    late, early = session(1, 9), session(2, 7, 12, vtime=100.0)
    assert sorted([late, early], key=lambda s: fifo.session_key(s, 0.0)) == [early, late]
    first, second = fifo.session_key(early, 0.0), fifo.session_key(late, 0.0)
    assert fifo.user_key(early.user, first, 50.0) < fifo.user_key(late.user, second, 0.0)
    assert not fifo.rotates
    assert policy_named("fair").rotates


def test_srtf_takes_what_is_done_soonest() -> None:
    """By what is left, not by what was declared."""
    srtf = policy_named("srtf")
    long, short = job(1, time=3000.0), job(2, time=60.0)
    assert srtf.job_key(short, OWNER, 0.0) < srtf.job_key(long, OWNER, 0.0)
    nearly_done = had(long, 2970.0)
    assert remaining(long, nearly_done, 0.0) == pytest.approx(30.0)
    assert srtf.job_key(long, nearly_done, 0.0) < srtf.job_key(short, OWNER, 0.0)
    assert srtf.preempts


def test_without_a_time_nobody_wins_by_default() -> None:
    """Salus took a job without one for done, and it won for ever. Here who was served least comes first among them."""
    unknown, short = job(1), job(2, time=UNKNOWN_TIME - 1)
    assert remaining(unknown, OWNER, 0.0) > remaining(short, OWNER, 0.0)
    served = had(unknown, 500.0)
    assert remaining(unknown, served, 0.0) > remaining(job(3), OWNER, 0.0)


@given(declared=st.floats(0.1, 1e4), ran=st.floats(0.0, 1e5))
def test_an_overrun_does_not_win_for_ever(declared: float, ran: float) -> None:
    """What is left is always something, and grows with the overrun."""
    one = job(1, time=declared)
    left = remaining(one, had(one, ran), 0.0)
    assert left > 0
    assert left >= ran - declared


@given(left=st.floats(0.1, 1e4), others=st.floats(0.1, 1e4), at=times, later=times)
def test_how_far_srtf_lets_others_pass(left: float, others: float, at: float, later: float) -> None:
    """Who still needs r seconds is passed by nobody that was submitted more than r / AGEING seconds later."""
    srtf = policy_named("srtf")
    mine = srtf.job_key(job(1, time=left, at=at), OWNER, at)
    theirs = srtf.job_key(job(2, time=others, at=at + left / AGEING + later), OWNER, at)
    assert mine <= theirs


@given(part=st.floats(0.0, 1.0), others=st.floats(0.0, 1.0), at=times, later=times)
def test_how_far_pack_lets_others_pass(part: float, others: float, at: float, later: float) -> None:
    """The largest first, but who needs the part f is passed by nobody submitted more than (1 - f) x PATIENT later."""
    pack = policy_named("pack")
    mine = pack.job_key(job(1, part=part, at=at), OWNER, at)
    theirs = pack.job_key(job(2, part=others, at=at + (1.0 - part) * PATIENT + later), OWNER, at)
    assert mine[0] <= theirs[0] + 1e-6
    if part > others + 1e-6:
        assert mine < pack.job_key(job(2, part=others, at=at), OWNER, at)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_real_time_ranks_above_all(name: str) -> None:
    """Under every policy, whoever it belongs to; who has waited too long comes next."""
    policy, busy = policy_named(name), User(UserId("busy"), vtime=1e6)
    urgent, patient, usual = job(9, time=1e5, part=1.0), job(8, part=1.0), job(1, time=0.1)
    urgent.realtime = patient.promoted = True
    keys = [
        policy.user_key(busy, policy.job_key(urgent, OWNER, 0.0), 5.0),
        policy.user_key(busy, policy.job_key(patient, OWNER, 0.0), 5.0),
        policy.user_key(OWNER.user, policy.job_key(usual, OWNER, 0.0), 0.0),
    ]
    assert keys[0] < min(keys[1:])
    if policy.patience is not None:
        assert keys == sorted(keys)


def test_turns_of_srtf_are_as_long_as_nothing_can_change() -> None:
    """Long where the time is known, a usual one for a newcomer without, then a part of what it had."""
    srtf = policy_named("srtf")
    known, unknown = session(1, 1), session(2, 2)
    known.jobs[JobId("1")].time = 50.0
    assert srtf.turn(known, 0.1, 0.0) == pytest.approx(1.0)
    assert srtf.turn(unknown, 0.1, 0.0) == pytest.approx(0.1)
    unknown.served_before, unknown.jobs[JobId("2")].granted = 80.0, 0.0
    assert srtf.turn(unknown, 0.1, 0.0) == pytest.approx(10.0)


def test_a_policy_that_is_meant_is_suggested() -> None:
    """In any case of letters."""
    assert policy_named("SRTF").name == "srtf"
    with pytest.raises(BadDeclaration, match=r"'fiar' is not known. Did you mean 'fair'\?"):
        policy_named("fiar")


def test_a_policy_that_is_not_known_is_refused_with_those_that_are() -> None:
    """The message lists every policy there is."""
    with pytest.raises(
        BadDeclaration, match=r"'lottery' is not known. There are: fair, fifo, pack, srtf."
    ):
        policy_named("lottery")
    assert all(policy_named(name).name == name for name in POLICIES)


def test_a_rank_is_lent_for_as_long_as_both_are_in_the_lane() -> None:
    """S2: who holds a lane has turns by the rank of who waits for it; gone with that one's cancel, and with its own leave."""
    policy = policy_named("srtf")
    session = Session(SessionId("long"), User(UserId("u")), 0)
    holds, waits = (Job(JobId(name), session.id, n, Need(0, 1), None, 0.0, time=seconds) for n, (name, seconds) in enumerate((("long/1", 200.0), ("short/1", 1.0))))  # fmt: skip
    session.jobs[holds.id] = holds
    own = policy.session_key(session, 0.0)
    holds.lane = waits.lane = LaneId(1)
    holds.lent = waits, (1.0, 1)
    assert policy.session_key(session, 0.0) == (1.0, 1)
    waits.lane = None
    assert policy.session_key(session, 0.0) == own
    waits.lane, holds.lane = LaneId(1), None
    assert policy.session_key(session, 0.0) == own
    holds.lane, waits.lane = LaneId(1), LaneId(2)
    assert policy.session_key(session, 0.0) == own
