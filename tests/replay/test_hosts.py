"""Several hosts on one clock: each is as if alone, nothing is lost between them, and where jobs go is as said."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpushare_kernel.core.values import GiB
from gpushare_kernel.replay.costs import FREE
from gpushare_kernel.replay.engine import Settings, replay
from gpushare_kernel.replay.hosts import PLACINGS, POOL, Placing, replay_hosts
from gpushare_kernel.replay.outcome import Outcome
from gpushare_kernel.replay.rows import BadTrace
from gpushare_kernel.replay.trace import TraceJob

FAIR = Settings(policy="fair", costs=FREE, turn=0.1)


def job(name: str, at: float, takes: float, *, needs: int = 1, user: str = "") -> TraceJob:
    """One that keeps `needs` GiB, with steps of a tenth of a second."""
    return TraceJob(name, at, takes, user, needs * GiB, 0, 0.1, declared=takes)


def completions(outcome: Outcome) -> dict[str, float]:
    """How long each took, from its submission."""
    return {one.name: one.completion for one in outcome.jobs}


@pytest.mark.parametrize("policy", ["fifo", "srtf", "fair", "pack"])
def test_one_host_is_the_replay_there_was(policy):
    """Event for event, whatever the way of placing."""
    jobs = [
        job(f"j{n}", n * 1.5, 1.0 + n % 5, needs=1 + n % 6, user=f"u{n % 3}") for n in range(24)
    ]
    settings = Settings(policy=policy, turn=0.1)
    alone = replay(jobs, settings)
    for placing in PLACINGS:
        assert replay_hosts(jobs, settings, 1, placing) == alone


def test_on_as_many_hosts_as_jobs_each_is_alone():
    """A gateway counts what it has just sent, though no host has reported it."""
    jobs = [job(f"j{n}", 0.0, 10.0) for n in range(4)]
    took = completions(replay_hosts(jobs, FAIR, 4, "soonest"))
    assert took == pytest.approx({f"j{n}": 10.0 for n in range(4)})
    shared = completions(replay_hosts(jobs, FAIR, 2, "soonest"))
    assert shared == pytest.approx({f"j{n}": 20.0 for n in range(4)}, abs=0.5)


def test_one_that_is_large_goes_where_there_is_room():
    """Though fewer are elsewhere; who does not know what it needs sends it into the queue."""
    jobs = [
        job("wide", 0.0, 100.0, needs=12),
        *(job(f"small{n}", 5.0 + n, 100.0) for n in range(2)),
        job("large", 10.0, 1.0, needs=10),
    ]
    knows = {one.name: one for one in replay_hosts(jobs, FAIR, 2, "soonest").jobs}
    assert knows["large"].queued == 0.0
    waits = {one.name: one for one in replay_hosts(jobs, FAIR, 2, "blind").jobs}
    assert waits["large"].queued > 50.0


def test_turns_go_round_and_random_is_drawn_by_the_seed():
    """Every third on the third; another seed, another draw; the same one, the same."""
    jobs = [job(f"j{n}", 0.0, 10.0) for n in range(3)]
    took = completions(replay_hosts(jobs, FAIR, 3, "turns"))
    assert took == pytest.approx({"j0": 10.0, "j1": 10.0, "j2": 10.0})
    many = [job(f"j{n}", n * 0.5, 10.0) for n in range(20)]
    first = replay_hosts(many, FAIR, 4, "random", 1)
    assert first == replay_hosts(many, FAIR, 4, "random", 1)
    assert completions(first) != completions(replay_hosts(many, FAIR, 4, "random", 2))


def test_ones_own_count_knows_nothing_of_others():
    """Four who come when every second host is taken: by their own counts some meet others, by the hosts' nobody does."""
    short = [job(f"s{n}", 0.0, 1.0, user="ann") for n in range(4)]
    jobs = [
        *short[:2],
        job("b", 0.5, 10.0, user="bob"),
        *short[3:],
        job("c", 0.6, 10.0, user="cyd"),
    ]
    jobs = sorted(jobs, key=lambda one: one.submitted)
    hosts = completions(replay_hosts(jobs, FAIR, 5, "soonest"))
    assert hosts["b"] == hosts["c"] == pytest.approx(10.0)
    theirs = completions(replay_hosts(jobs * 1, FAIR, 2, "own"))
    assert max(theirs["b"], theirs["c"]) > 10.0


def test_the_pool_binds_nobody():
    """Two devices, three jobs: everybody has two thirds; first come first served, the third waits for the first end."""
    jobs = [job(name, 0.0, 10.0, user=name) for name in "abc"]
    fair = completions(replay_hosts(jobs, FAIR, 2, POOL))
    assert fair == pytest.approx(dict.fromkeys("abc", 15.0))
    fifo = completions(replay_hosts(jobs, Settings(policy="fifo"), 2, POOL))
    assert fifo == pytest.approx({"a": 10.0, "b": 10.0, "c": 20.0})
    short = [job("a", 0.0, 10.0), job("b", 0.0, 10.0), job("c", 1.0, 2.0)]
    assert completions(replay_hosts(short, Settings(policy="srtf"), 2, POOL))["c"] == pytest.approx(2.0)  # fmt: skip


@pytest.mark.parametrize("policy", ["fifo", "srtf", "fair", "pack"])
@pytest.mark.parametrize(
    ("at", "takes"),
    [(1e5, (0.001, 0.003)), (1e9, (0.1, 0.37, 3.3)), (1e9, (1e-8, 1e-8, 1e-8)), (0.0, (1e6, 0.1))],
)
def test_the_pool_comes_to_its_end_late_in_a_trace(policy, at, takes):
    """There the clock's own steps (1e-7 s after 30 years) are longer than what rounding leaves of a job: it once went on for ever."""
    jobs = [job(f"j{n}", at, one) for n, one in enumerate(takes)]
    took = completions(replay_hosts(jobs, Settings(policy=policy), 2, POOL))
    assert all(took[one.name] >= one.duration - 1e-6 for one in jobs)
    assert max(took.values()) <= sum(takes) + 1e-6


def test_people_are_equal_in_the_pool():
    """One with three jobs has as much of two devices as one with one can use: the rest."""
    jobs = [
        *(job(f"a{n}", 0.0, 10.0, user="ann") for n in range(3)),
        job("b", 0.0, 10.0, user="bob"),
    ]
    took = completions(replay_hosts(jobs, FAIR, 2, POOL))
    assert took["b"] == pytest.approx(10.0)
    assert took["a0"] == pytest.approx(20.0)


def test_who_never_fits_one_host_is_refused():
    """Two halves on two hosts are no room."""
    with pytest.raises(BadTrace, match="job a never fits"):
        replay_hosts([job("a", 0.0, 1.0, needs=20)], FAIR, 8, "soonest")


_jobs = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 8), st.integers(1, 15), st.sampled_from("abc")),
    min_size=1,
    max_size=12,
).map(
    lambda rows: [
        job(f"j{n}", float(at), float(takes), needs=needs, user=user)
        for n, (at, takes, needs, user) in enumerate(sorted(rows))
    ]
)


@given(_jobs, st.integers(1, 4), st.sampled_from([*PLACINGS, POOL]), st.sampled_from(["fifo", "srtf", "fair", "pack"]))  # fmt: skip
def test_every_job_ends_and_none_faster_than_alone(jobs, number, placing, policy):
    """On any number of hosts, chosen in any way; and again it is the same."""
    settings = Settings(policy=policy, costs=FREE, turn=0.5)
    outcome = replay_hosts(jobs, settings, number, placing)
    assert [one.name for one in outcome.jobs] == [one.name for one in jobs]
    for one, known in zip(outcome.jobs, jobs, strict=True):
        assert one.completion >= known.duration - 1e-6
        assert one.submitted <= one.lane_at <= one.first_run + 1e-9
    assert replay_hosts(jobs, settings, number, placing) == outcome


def test_the_ways_are_what_they_are_called():
    """Each is one, and what they decide is a host's number."""
    assert all(issubclass(way, Placing) for way in PLACINGS.values())
    assert POOL not in PLACINGS
    assert dataclasses.is_dataclass(replay_hosts([job("a", 0.0, 1.0)], FAIR, 2, "own"))
