"""Who deserves the next turn: max-min by user, then by session, weighted; credit bounded both ways (I6)."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tests_core_world import Kernel, World  # type: ignore[import-not-found]

from gpushare_kernel.core import events as ev
from gpushare_kernel.core.accounts import Accounts
from gpushare_kernel.core.policies import policy_named
from gpushare_kernel.core.records import Job, Session, User
from gpushare_kernel.core.values import GiB, JobId, Need, SessionId, UserId


def fair(credit: float = 1.0) -> Accounts:
    return Accounts(policy_named("fair"), credit)


def session(name: str, user: User, order: int, *, weight: float = 1.0) -> Session:
    return Session(SessionId(name), user, order, weight=weight)


def order_of(accounts: Accounts) -> list[str]:
    """Who would be taken, one after the other, each for a second of the device."""
    taken = []
    for one in accounts.ranked(lambda _: 1.0):
        accounts.leave(one)
        taken.append(str(one.id))
    return taken


def test_users_come_before_their_sessions() -> None:
    """Three kernels do not make one user three: the first of each comes before the second of any."""
    accounts, ann, bob = fair(), User(UserId("ann")), User(UserId("bob"))
    for order, (name, user) in enumerate([("a1", ann), ("a2", ann), ("a3", ann), ("b", bob)]):
        accounts.join(session(name, user, order))
    assert order_of(accounts) == ["a1", "b", "a2", "a3"]


def test_what_was_used_is_divided_by_the_weight() -> None:
    """A user of weight 3 is as far as one of weight 1 after three times the use."""
    accounts, ann, bob = fair(), User(UserId("ann"), weight=3.0), User(UserId("bob"))
    a, b = session("a", ann, 1, weight=2.0), session("b", bob, 2)
    accounts.charge(a, 3.0)
    accounts.charge(b, 1.0)
    assert (ann.vtime, a.vtime, bob.vtime, b.vtime) == (1.0, 1.5, 1.0, 1.0)


def test_who_is_charged_while_waiting_is_ranked_anew() -> None:
    """Drains are charged too, and count at once."""
    accounts, ann, bob = fair(), User(UserId("ann")), User(UserId("bob"))
    a, b = session("a", ann, 1), session("b", bob, 2)
    accounts.join(a)
    accounts.join(b)
    accounts.charge(a, 0.5)
    assert order_of(accounts) == ["b", "a"]


def test_a_newcomer_is_one_turn_ahead_of_those_who_compete_and_no_more() -> None:
    """After an hour of competition nobody who slept has an hour's credit."""
    accounts, ann, late = fair(credit=2.0), User(UserId("ann")), User(UserId("late"), weight=4.0)
    a = session("a", ann, 1)
    accounts.charge(a, 3600.0)
    accounts.join(a)
    accounts.advance()
    newcomer = session("n", late, 2)
    accounts.join(newcomer)
    assert late.vtime == 3600.0 - 2.0 / 1.0 - 2.0 / 4.0
    assert next(iter(accounts.ranked(lambda _: 0.0))) is newcomer


def test_a_debt_is_kept_when_one_leaves_and_comes_back() -> None:
    """Leaving the queue for a moment wins nothing: what was used stays used."""
    accounts, ann = fair(), User(UserId("ann"))
    a = session("a", ann, 1)
    accounts.join(a)
    accounts.charge(a, 10.0)
    accounts.leave(a)
    accounts.join(a)
    assert (ann.vtime, a.vtime) == (10.0, 10.0)


def test_who_is_squeezed_moves_the_present_on() -> None:
    """It is in every frame and never waits, yet it competes: a newcomer must not find the present of long ago."""
    accounts, wide = fair(), User(UserId("wide"))
    w = session("w", wide, 1)
    accounts.charge(w, 500.0)
    accounts.advance(w)
    late = User(UserId("late"))
    accounts.join(session("n", late, 2))
    assert late.vtime == 498.0


def test_another_policy_begins_with_equal_accounts() -> None:
    """What FIFO gave is not paid back under FAIR; who waits goes on waiting."""
    accounts, ann, bob = fair(), User(UserId("ann")), User(UserId("bob"))
    a, b = session("a", ann, 1), session("b", bob, 2)
    for one in (a, b):
        accounts.join(one)
    accounts.charge(a, 9.0)
    accounts.follow(policy_named("fifo"), [ann, bob], [a, b])
    assert (ann.vtime, a.vtime, accounts.now) == (0.0, 0.0, 0.0)
    assert accounts.policy.name == "fifo"
    assert {s.id for s in accounts.sessions()} == {"a", "b"}


def test_who_does_not_wait_can_leave_and_be_charged() -> None:
    """Leaving twice harms nobody."""
    accounts, ann = fair(), User(UserId("ann"))
    a = session("a", ann, 1)
    accounts.join(a)
    accounts.leave(a)
    accounts.leave(a)
    accounts.charge(a, 1.0)
    assert not accounts.waits(a)
    assert accounts.users == 0
    assert order_of(accounts) == []


# --- The promise, against an exact solution ---------------------------------------------------------------


def max_min(total: float, claims: Sequence[tuple[float, float]]) -> list[float]:
    """Divide `total` among (weight, most it can use): fill all at the same level, who is full leaves the rest."""
    got, left, thirsty = [0.0] * len(claims), total, set(range(len(claims)))
    while thirsty:
        level = left / sum(claims[n][0] for n in thirsty)
        full = [n for n in thirsty if claims[n][1] <= level * claims[n][0] + 1e-12]
        if not full:
            for n in thirsty:
                got[n] = level * claims[n][0]
            break
        for n in full:
            got[n] = claims[n][1]
            left -= got[n]
            thirsty.discard(n)
    return got


@pytest.mark.parametrize(
    ("total", "claims", "due"),
    [
        (2.0, [(1.0, 9.0), (1.0, 9.0)], [1.0, 1.0]),
        (2.0, [(3.0, 9.0), (1.0, 9.0)], [1.5, 0.5]),
        (4.0, [(1.0, 0.5), (1.0, 9.0), (1.0, 9.0)], [0.5, 1.75, 1.75]),
        (4.0, [(1.0, 1.0), (1.0, 1.0)], [1.0, 1.0]),
    ],
)
def test_the_solution_compared_with_is_right(
    total: float, claims: list[tuple[float, float]], due: list[float]
) -> None:
    """Examples worked out by hand."""
    assert max_min(total, claims) == pytest.approx(due)


Claims = list[tuple[float, list[tuple[float, float]]]]
"""Users: (weight, sessions); a session: (weight, cores it can use)."""


weights = st.sampled_from([0.5, 1.0, 1.0, 2.0, 3.0])


def claims_of(
    demands: st.SearchStrategy[float], users: st.SearchStrategy[float]
) -> st.SearchStrategy[Claims]:
    sessions = st.lists(st.tuples(weights, demands), min_size=1, max_size=4)
    return st.lists(st.tuples(users, sessions), min_size=1, max_size=4)


def compete(
    compute: float, claims: Claims, *, seconds: float
) -> tuple[list[list[float]], list[float]]:
    """Return the cores each session got (by user), and what each user is due."""
    world = World(compute=compute)
    names = []
    for u, (weight, sessions) in enumerate(claims):
        names.append([f"{u}.{n}" for n in range(len(sessions))])
        for name, (own, demand) in zip(names[-1], sessions, strict=True):
            user, key = UserId(f"u{u}"), SessionId(name)
            world.send(
                ev.SessionOpened(
                    at=world.now, session=key, user=user, weight=own, user_weight=weight
                )
            )
            world.send(ev.SessionReady(at=world.now, session=key, bare=False, context=0))
            world.kernels[name] = Kernel(min(compute, demand))
            world.cell(name)
    world.run(3.0)
    before = {name: kernel.device_time for name, kernel in world.kernels.items()}
    world.run(seconds, step=0.02)
    got = [
        [(world.kernels[name].device_time - before[name]) / seconds for name in user]
        for user in names
    ]
    wants = [
        (weight, min(compute, sum(min(compute, demand) for _, demand in sessions)))
        for weight, sessions in claims
    ]
    return got, max_min(compute, wants)


@settings(max_examples=40, deadline=None)
@given(compute=st.sampled_from([1.0, 2.0, 4.0]), claims=claims_of(st.just(1.0), weights))
def test_one_thread_kernels_share_exactly(compute: float, claims: Claims) -> None:
    """I6 for whatever users, weights and numbers of one-thread kernels: within 2 % of a core of the exact solution."""
    got, due = compete(compute, claims, seconds=30.0)
    for user, share in zip(got, due, strict=True):
        assert sum(user) == pytest.approx(share, abs=0.02)
    assert sum(map(sum, got)) == pytest.approx(sum(due), rel=0.01)


@settings(max_examples=40, deadline=None)
@given(
    compute=st.sampled_from([1.0, 2.0, 4.0]),
    claims=claims_of(st.sampled_from([0.3, 1.0, 1.3, 2.0, 4.0]), st.just(1.0)),
)
def test_kernels_of_any_width_are_never_far_below_their_share(
    compute: float, claims: Claims
) -> None:
    """Widths that do not fill the cores exactly cost something, but no user falls below half of its share, no kernel starves."""
    got, due = compete(compute, claims, seconds=30.0)
    assert sum(map(sum, got)) >= 0.7 * sum(due)
    for user, share, (_, sessions) in zip(got, due, claims, strict=True):
        assert sum(user) >= 0.5 * share - 0.02
        own = max_min(sum(user), [(weight, min(compute, demand)) for weight, demand in sessions])
        assert all(part >= 0.3 * right for part, right in zip(user, own, strict=True))


@pytest.mark.parametrize("cores", [2.0, 4.0, 16.0])
def test_a_wide_kernel_gets_all_that_a_narrow_one_leaves(cores: float) -> None:
    """One thread and one kernel that uses every core: no core idles, and the one thread runs at full speed."""
    (a, b), _ = compete(cores, [(1.0, [(1.0, 1.0)]), (1.0, [(1.0, cores)])], seconds=10.0)
    assert a[0] == pytest.approx(1.0, abs=0.02)
    assert b[0] == pytest.approx(cores - 1.0, abs=0.05 * cores)


def test_a_wide_kernel_of_ones_own_does_not_starve_behind_a_narrow_one() -> None:
    """Who has a wide and a narrow kernel beside somebody's narrow one gets both forward."""
    (_, (wide, narrow)), _ = compete(
        2.0, [(1.0, [(1.0, 1.0)]), (1.0, [(1.0, 2.0), (1.0, 1.0)])], seconds=20.0
    )
    assert wide == pytest.approx(0.5, abs=0.05)
    assert narrow == pytest.approx(0.5, abs=0.05)


def test_a_session_is_one_turn_ahead_of_its_users_others_and_no_more() -> None:
    """Like users among each other: one turn of whoever competes, and one of its own."""
    accounts, ann = fair(credit=2.0), User(UserId("ann"))
    busy, late = session("busy", ann, 1, weight=4.0), session("late", ann, 2, weight=0.5)
    accounts.charge(busy, 400.0)
    accounts.join(busy)
    accounts.advance()
    assert (ann.floor, ann.floor_turn) == (100.0, 0.5)
    accounts.join(late)
    assert late.vtime == 100.0 - 0.5 - 4.0


def test_what_a_users_own_sessions_have_had_never_falls() -> None:
    """One with an old account that competes again takes none of its own user's back."""
    accounts, ann = fair(), User(UserId("ann"))
    first, old = session("first", ann, 1), session("old", ann, 2)
    accounts.join(old)
    accounts.charge(first, 50.0)
    accounts.join(first)
    accounts.leave(old)
    accounts.advance()
    assert ann.floor == 50.0
    accounts.leave(first)
    accounts.join(old)
    old.vtime = 7.0
    accounts.advance()
    assert ann.floor == 50.0


def test_the_first_of_all_has_nothing_to_make_up_for() -> None:
    """The present begins at 0."""
    accounts, ann = fair(credit=0.25), User(UserId("ann"))
    accounts.join(session("a", ann, 1))
    assert ann.vtime == 0.0


def test_the_present_never_falls() -> None:
    """Somebody with an old account who competes again does not take everybody back."""
    accounts, ann, bob = fair(), User(UserId("ann")), User(UserId("bob"), weight=2.0)
    a, b = session("a", ann, 1), session("b", bob, 2)
    accounts.charge(a, 50.0)
    accounts.join(a)
    accounts.advance()
    assert (accounts.now, accounts.now_turn) == (50.0, 1.0)
    accounts.leave(a)
    accounts.join(b)
    assert bob.vtime == 50.0 - 1.0 - 0.5
    accounts.advance()
    assert (accounts.now, accounts.now_turn) == (50.0, 1.0)
    accounts.charge(b, 3.0)
    accounts.advance()
    assert (accounts.now, accounts.now_turn) == (50.0, 0.5)


def test_whoever_is_where_the_present_is_is_told_nothing() -> None:
    """Only an account that is lifted has changed."""
    accounts, ann = fair(), User(UserId("ann"))
    told: list[User] = []
    accounts.charged = told.append
    accounts.now, accounts.now_turn = 5.0, 1.0
    ann.vtime = 3.0  # one turn of those who compete, and one of its own: the bound itself
    accounts.lift(ann)
    assert told == []
    ann.vtime = 2.9
    accounts.lift(ann)
    assert (told, ann.vtime) == ([ann], 3.0)


def test_who_waits_for_memory_competes() -> None:
    """What others use meanwhile is charged, where the policy shares; nobody waits, and nobody pays. Its time stands still, and is not the present."""
    accounts, ann, bob = fair(), User(UserId("ann")), User(UserId("bob"))
    assert not accounts.contended
    queued = session("q", bob, 1)
    accounts.queued = lambda: queued
    assert accounts.contended
    bob.vtime = 4.0
    ann.vtime = 7.0
    accounts.join(session("a", ann, 2))
    accounts.advance()
    assert accounts.now == 7.0
    assert not Accounts(policy_named("fifo"), 1.0).contended


def ranks(accounts: Accounts, waiting: float, running: float, served_since: float | None) -> bool:
    """Whether a job with `waiting` seconds to go ranks before one that runs and has `running`."""
    jobs = []
    for order, seconds in enumerate((running, waiting)):
        user = User(UserId(f"u{order}"))
        one = session(f"s{order}", user, order)
        its = Job(JobId(f"j{order}"), one.id, order, Need(0, 0), None, 0.0, time=seconds)
        one.jobs[its.id] = its
        jobs.append(one)
    jobs[0].served_since = served_since
    accounts.join(jobs[1])
    return accounts.better_waits(jobs[:1])


@pytest.mark.parametrize(
    ("waiting", "running", "margin", "better"),
    [(5.0, 10.0, 0.0, True), (10.0, 5.0, 0.0, False), (5.0, 10.0, 4.0, True), (5.0, 10.0, 6.0, False)],
)  # fmt: skip
def test_a_better_one_takes_the_turn_where_it_is_better_by_the_margin(
    waiting: float, running: float, margin: float, better: bool
) -> None:
    """Seconds to go, and by how many the one is to be shorter."""
    accounts = Accounts(policy_named("srtf"), 1.0)
    assert accounts.margin == 0.0
    accounts.margin = margin
    assert ranks(accounts, waiting, running, None) is better


def test_nobody_waits_and_nobody_is_better() -> None:
    """An empty queue takes nothing from anybody."""
    accounts = Accounts(policy_named("srtf"), 1.0)
    assert not accounts.better_waits([session("s", User(UserId("u")), 1)])


def late_beside(*, waiter: str, leaves: bool, names: str) -> dict[str, float]:
    """`c` comes with two notebooks after 300 s in which somebody waited for memory."""
    world = World(compute=1.0, policy="fair")
    for name in names:
        world.open(name, user=name, interval=0.05)
        world.submit(f"{name}/1", name, 4 * GiB, 0)
    world.open("waiter", user=waiter, interval=0.05)
    world.submit("waiter/1", "waiter", 9 * GiB, 0)
    world.run(300, step=0.05)
    if leaves:
        world.send(ev.JobCancelled(at=world.now, job=JobId("waiter/1")))
    for name in ("c1", "c2"):
        world.open(name, user="c", interval=0.05)
        world.submit(f"{name}/1", name, GiB, 0)
    had = {name: kernel.device_time for name, kernel in world.kernels.items()}
    world.run(60, step=0.05)
    had = {name: (kernel.device_time - had[name]) / 60 for name, kernel in world.kernels.items()}
    return {name: had[name] for name in names} | {"c": had["c1"] + had["c2"]}


@pytest.mark.parametrize("names", ["a", "ab"])
@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("waiter", ["w", "c"])
def test_nobody_is_ahead_for_what_others_used_while_somebody_waited_for_memory(
    names: str, waiter: str, *, leaves: bool
) -> None:
    """I6: a newcomer has its share, not the device; nor by a decoy of its own, nor once that has given up."""
    got = late_beside(waiter=waiter, leaves=leaves, names=names)
    assert got == pytest.approx(dict.fromkeys(got, 1 / len(got)), abs=0.03)


@pytest.mark.parametrize("number", [1, 2])
def test_who_has_waited_for_memory_has_its_share_of_time_once_it_is_in(number: int) -> None:
    """Its claim is not lost, and is one turn: the others were not idle for its sake."""
    world = World(compute=1.0, policy="fair")
    for name, user, size in [("a", "a", 4), ("b", "b", 4), *(("w1", "w", 3), ("w2", "w", 3))[:number]]:  # fmt: skip
        world.open(name, user=user, interval=0.05)
        world.submit(f"{name}/1", name, size * GiB, 0)
    world.run(60, step=0.05)
    world.close("a")
    had = {name: kernel.device_time for name, kernel in world.kernels.items()}
    world.run(20, step=0.05)
    assert world.kernels["b"].device_time - had["b"] == pytest.approx(10.0, abs=0.5)
    assert sum(kernel.device_time - had[name] for name, kernel in world.kernels.items()) > 19.8  # fmt: skip
