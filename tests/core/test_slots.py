"""Turns on a GPU: nobody below its share, and above that nothing wasted. T1 to T12: docs/turns.md."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from tests_gpu_world import FREE, KINDS, LIGHT_ALONE, GpuWorld  # type: ignore[import-not-found]

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.values import GiB, SessionId

MIXES = [tuple(mix) for mix in FREE]


def progress(world: GpuWorld, seconds: float) -> dict[str, float]:
    before = {name: kernel.done for name, kernel in world.kernels.items()}
    world.run(seconds)
    return {name: (k.done - before[name]) / seconds for name, k in world.kernels.items()}


def mixed(mix: tuple[str, ...], *, seen: bool) -> GpuWorld:
    world = GpuWorld()
    for n, kind in enumerate(mix):
        world.start(f"{kind}{n}", kind, seen=seen)
    world.run(8)
    return world


@pytest.mark.parametrize("mix", MIXES, ids="-".join)
def test_with_boundaries_seen_nobody_falls_below_its_share_and_little_is_wasted(
    mix: tuple[str, ...],
) -> None:
    """T1: Each job has at least 95 % of its share, and all together at least 90 % of free co-run."""
    rates = progress(mixed(mix, seen=True), 20)
    free = sum(FREE[mix][kind] for kind in mix)
    assert min(rates.values()) >= 0.95 / len(mix), rates
    assert sum(rates.values()) >= 0.90 * free, rates


@pytest.mark.parametrize("mix", MIXES, ids="-".join)
def test_enforced_from_outside_shares_hold_too(mix: tuple[str, ...]) -> None:
    """T1: Nobody tells its progress: each has at least 92 % of its share, and all 80 % of free co-run."""
    rates = progress(mixed(mix, seen=False), 20)
    free = sum(FREE[mix][kind] for kind in mix)
    assert min(rates.values()) >= 0.92 / len(mix), rates
    assert sum(rates.values()) >= 0.80 * free, rates


@pytest.mark.parametrize("seen", [True, False])
def test_four_that_do_not_saturate_are_left_to_run(seen: bool) -> None:
    """T2: Launch-bound jobs co-run; once that is known nobody is paused any more."""
    world = mixed(("light",) * 4, seen=seen)
    world.log.clear()
    rates = progress(world, 10)
    assert not [i for i in world.log if isinstance(i, do.Pause)]
    assert sum(rates.values()) >= 0.99 * 4 * 0.61


def test_alone_no_lock_is_ever_taken() -> None:
    """T2: Alone on a GPU: no pause."""
    world = GpuWorld()
    world.start("a", "heavy")
    world.run(10)
    assert not [i for i in world.log if isinstance(i, do.Pause)]


@pytest.mark.parametrize("kind", ["heavy", "conv"])
@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("seen", [True, False])
def test_saturating_sessions_have_equal_shares_and_lose_little(
    kind: str, number: int, seen: bool
) -> None:
    """T3: Exclusive turns: equal within a point, nearly all of the device used."""
    world = mixed((kind,) * number, seen=seen)
    rates = progress(world, 20)
    total = sum(rates.values())
    assert total >= 0.97
    assert max(rates.values()) - min(rates.values()) <= 0.02 * total, rates


def test_time_in_which_nobody_decided_is_on_nobodys_account() -> None:
    """The broker was stopped for an hour, in somebody's slot: nobody pays for it, the slot goes on, shares hold as before."""
    world = mixed(("heavy", "heavy"), seen=False)
    world.sample()
    used = {name: one.device_time for name, one in world.core.sessions.items()}
    since, world.now = world.now, world.now + 3600.0
    world.send(ev.Absent(at=world.now, since=since))
    world.run(0.001)
    after = {name: one.device_time for name, one in world.core.sessions.items()}
    assert after == pytest.approx(used, abs=0.01)
    rates = progress(world, 20)
    total = sum(rates.values())
    assert total >= 0.97
    assert max(rates.values()) - min(rates.values()) <= 0.02 * total, rates


def test_who_is_stopped_by_its_own_user_keeps_no_turn() -> None:
    """It cannot be asked to drain, and is out of its turn all the same: the others go on, and it does once it is continued."""
    world = mixed(("heavy", "heavy", "heavy"), seen=False)
    stuck = world.kernels["heavy0"]
    stuck.stopped = True
    world.run(2)
    rates = progress(world, 10)
    assert rates["heavy0"] == 0.0
    assert min(rates["heavy1"], rates["heavy2"]) >= 0.3, rates
    stuck.stopped = False
    world.run(2)
    assert min(progress(world, 20).values()) >= 0.3


@pytest.mark.parametrize("weights", [(3.0, 1.0), (0.3, 0.7)])
def test_weights_hold(weights: tuple[float, float]) -> None:
    """T3: 75/25 and 30/70 of one user's two sessions, within a point."""
    world = GpuWorld()
    for n, weight in enumerate(weights):
        world.start(f"k{n}", "heavy", user="ann", weight=weight)
    world.run(4)
    rates = progress(world, 30)
    share = rates["k0"] / sum(rates.values())
    assert abs(share - weights[0] / sum(weights)) < 0.01, rates


def test_three_kernels_against_one_is_half_and_half() -> None:
    """T3: I6, by user first."""
    world = GpuWorld()
    for n in range(3):
        world.start(f"a{n}", "heavy", user="ann")
    world.start("b", "heavy", user="bob")
    world.run(4)
    rates = progress(world, 20)
    assert abs(rates["b"] / sum(rates.values()) - 0.5) < 0.01, rates


def test_who_does_next_to_nothing_is_never_paused() -> None:
    """T4: An idle kernel whose cell is open costs the others nothing."""
    world = mixed(("heavy", "heavy", "idle"), seen=False)
    world.log.clear()
    rates = progress(world, 10)
    paused = {i.session for i in world.log if isinstance(i, do.Pause)}
    assert "idle2" not in paused
    assert rates["heavy0"] + rates["heavy1"] >= 0.97


@pytest.mark.parametrize("seen", [True, False])
def test_a_change_of_phase_is_seen_within_seconds(seen: bool) -> None:
    """T6: A session that begins to saturate gets its share again; one that stops to is co-run.

    Whose progress nobody sees is looked at every 15 seconds: what begins to saturate is found late.
    """
    world = mixed(("heavy", "light", "light"), seen=seen)
    world.kernels["light1"].kind = "heavy"
    world.run(3 if seen else 16)
    rates = progress(world, 12)
    assert min(rates.values()) >= 0.92 / 3, rates
    world.kernels["light1"].kind = world.kernels["heavy0"].kind = "light"
    world.run(4)
    world.log.clear()
    rates = progress(world, 6)
    assert sum(rates.values()) >= 0.95 * 3 * 0.72, rates


def test_a_newcomer_comes_to_its_turn_at_once() -> None:
    """T7: Beside three hogs a short job of a new user runs within two turns and a drain."""
    world = mixed(("conv",) * 3, seen=False)
    began = world.now
    kernel = world.start("short", "heavy", seen=False)
    while kernel.done < 0.05:
        world.run(0.005)
        assert world.now - began < 0.25


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("mix", [("conv",) * 4, ("heavy", "conv", "conv", "light")], ids="-".join)
def test_plain_cells_that_begin_together_have_their_shares_two_seconds_later(
    mix: tuple[str, ...], seen: bool
) -> None:
    """T6: They are one trial, and measured once each; the second time, too, when other cells of theirs have ended."""
    world = GpuWorld(reserve=GiB // 2, plain_grace=0.1)
    names = [f"{kind}{n}" for n, kind in enumerate(mix)]
    for name, kind in zip(names, mix, strict=True):
        world.resident(name, kind, seen=seen)
    for _ in range(2):
        world.run(3)
        for name in names:
            world.begin_cell(name)
            world.run(0.004)
        world.run(2)
        rates = progress(world, 5)
        assert min(rates.values()) >= 0.85 / len(mix), rates
        for name in names:
            world.end_cell(name)


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("kind", ["heavy", "conv", "light"])
def test_who_did_next_to_nothing_before_and_now_works_has_its_share(kind: str, seen: bool) -> None:
    """T6: What three kernels of one user and one of another do at once is nobody's pace alone, whatever they did a moment ago."""
    world = GpuWorld()
    users = {"a0": "ann", "a1": "ann", "a2": "ann", "b": "bob"}
    for name, user in users.items():
        world.resident(name, "idle", seen=True, user=user)
        world.begin_cell(name)
    world.run(1.5)
    for name in users:
        world.end_cell(name)
    world.run(3)
    for name in users:
        world.kernels[name].kind, world.kernels[name].seen = kind, seen
        world.begin_cell(name)
    world.run(4)
    rates = progress(world, 10)
    if kind == "light":
        assert min(rates.values()) >= 0.95 * LIGHT_ALONE[4], rates
    else:
        assert abs(rates["b"] / sum(rates.values()) - 0.5) < 0.03, rates


@pytest.mark.parametrize("seed", range(10))
def test_whatever_comes_together_nobody_starves_and_little_is_wasted(seed: int) -> None:
    """T1, I6: Any kernels of up to three people, after any work: six seconds later each has most of its share, and the GPU is at work."""
    draw = random.Random(seed)
    world = GpuWorld(enforce=draw.random() < 0.5)
    owners = {f"s{n}": f"u{draw.randint(0, 2)}" for n in range(draw.randint(2, 5))}
    for name, owner in owners.items():
        before = draw.choice(["idle", "light", "heavy"])
        world.resident(name, before, seen=draw.random() < 0.6, user=owner)
        if draw.random() < 0.7:
            world.begin_cell(name)
    world.run(draw.choice([0.3, 1.5, 4]))
    for name in owners:
        if world.kernels[name].plain:
            world.end_cell(name)
    world.run(draw.choice([0.1, 1, 3]))
    for name in owners:
        world.kernels[name].kind = draw.choice(["heavy", "conv", "light", "products"])
        world.begin_cell(name)
        world.run(draw.choice([0, 0, 0.1, 1.0]))
    world.run(6)
    rates, people = progress(world, 10), Counter(owners.values())
    for name, owner in owners.items():
        assert rates[name] >= 0.6 / len(people) / people[owner], (owners, rates)
    assert sum(rates.values()) >= 0.85, rates


def test_whose_progress_nobody_sees_is_taken_to_make_what_its_demand_leaves_room_for() -> None:
    """T1: Three quarters of the device are no launch-bound half: beside two others it has a third of the time."""
    world = GpuWorld()
    world.start("torch", "heavy", seen=True)
    world.start("jax", "heavy", seen=False)
    world.start("cupy", "products", seen=False)
    world.run(8)
    rates = progress(world, 10)
    assert min(rates.values()) >= 0.95 / 3, rates


def test_who_is_found_at_work_late_takes_nobodys_share() -> None:
    """T6: What a notebook made beside a hog that nobody knew of yet is not taken for what it makes alone."""
    world = GpuWorld()
    world.stranger("hog", "heavy")
    world.start("note", "heavy")
    world.run(3)
    assert not world.core.sessions["hog"].jobs  # type: ignore[index]
    world.sample("hog")  # excused once: it may be word of what it did before
    world.run(1)
    world.sample("hog")
    world.run(2)
    rates = progress(world, 8)
    assert abs(rates["hog"] - rates["note"]) < 0.03, rates
    assert sum(rates.values()) > 0.97


def test_short_cells_beside_hogs_are_not_worth_a_trial() -> None:
    """T7: Neither their beginning nor their end has all run at once."""
    world = mixed(("heavy",) * 3, seen=True)
    began, slots = world.now, []
    for n in range(8):
        kernel = world.start(f"short{n}", "heavy", seen=False)
        while kernel.done < 0.05:
            world.run(0.005)
            slots.append(world.core.turns.slot)
        world.end(f"short{n}/job")
        world.run(0.3)
        slots.append(world.core.turns.slot)
    assert world.now - began < 8 * 0.55
    assert "all" not in slots


def test_the_background_yields_to_every_notebook() -> None:
    """T8: A background session runs while nobody else wants the GPU, and not beside a notebook."""
    world = GpuWorld()
    world.start("back", "heavy", background=True)
    world.run(2)
    assert progress(world, 2)["back"] > 0.99
    world.start("note", "light")
    world.run(0.2)
    rates = progress(world, 3)
    assert rates["back"] == 0.0
    assert rates["note"] > 0.98
    world.end("note/job")
    assert progress(world, 2)["back"] > 0.99


def test_where_nobody_can_be_paused_boundaries_pass_turns_on() -> None:
    """T9: Cooperative only: those who meet boundaries share by turns, and one that never does runs beside them."""
    world = GpuWorld(can_pause=False, enforce=False)
    for name in ("a", "b"):
        world.start(name, "heavy", cooperative=True).interval = 0.01
    world.run(3)
    rates = progress(world, 10)
    assert abs(rates["a"] - rates["b"]) < 0.05
    assert sum(rates.values()) > 0.95
    assert not [i for i in world.log if isinstance(i, do.Pause)]
    world.start("deaf", "heavy", cooperative=True)
    world.run(4)
    assert all(rate > 0.1 for rate in progress(world, 5).values())


def test_how_busy_the_device_was_is_word_only_about_whoever_had_it_alone() -> None:
    """T5: A window that began before the slot did says nothing of the one who has it now."""
    world = GpuWorld()
    world.start("a", "heavy", seen=False)
    world.start("b", "heavy", seen=False)
    slots = world.core.turns
    while not (slots.slot == "alone" and slots._begun):
        world.run(0.02)
    (running,) = slots.using.values()
    known = {s.id: s.demand for s in world.core.sessions.values()}
    tell = {"at": world.now, "used": {}, "utilization": 0.3}
    world.send(ev.Sampled(**tell, utilization_since=slots._since - 0.01))
    assert {s.id: s.demand for s in world.core.sessions.values()} == known
    world.send(ev.Sampled(**tell, utilization_since=slots._since))
    assert running.demand == 0.3
    assert {s.id: s.demand for s in world.core.sessions.values()} == known | {running.id: 0.3}


def test_who_cannot_be_paused_runs_beside_the_others_and_pays() -> None:
    """T9: A profiler keeps the driver from locking: the others take turns, and its time is on its account."""
    world = mixed(("heavy", "heavy", "heavy"), seen=False)
    deaf = world.core.sessions["heavy0"]  # type: ignore[index]
    deaf.pausable = False
    world.core.turns._recount(deaf)
    before = deaf.device_time
    world.log.clear()
    rates = progress(world, 10)
    assert "heavy0" not in {i.session for i in world.log if isinstance(i, do.Pause)}
    assert abs(rates["heavy1"] - rates["heavy2"]) < 0.02
    assert deaf.device_time - before > 3.0


def test_a_drain_is_paid_by_whoever_drains() -> None:
    """T10: Work that goes on for 30 ms after its turn buys nothing: both come as far."""
    rates = progress(mixed(("conv", "heavy"), seen=False), 20)
    assert abs(rates["conv0"] - rates["heavy1"]) < 0.02, rates


def test_a_false_tally_gains_no_more_than_its_share_alone() -> None:
    """T11: Who counts only while it is alone has slots alone for its share; the others keep theirs."""
    world = mixed(("heavy", "heavy", "light", "light"), seen=True)
    cheat = world.kernels["heavy0"]
    cheat.silent_beside = True
    world.run(20)
    alone = cheat.alone
    rates = progress(world, 20)
    assert (cheat.alone - alone) / 20 <= 0.27, rates
    assert min(rates.values()) >= 0.9 / 4, rates


def test_what_one_was_ahead_is_not_held_against_it() -> None:
    """T12: The ones that co-run well are never further ahead than one turn."""
    world = mixed(("heavy", "heavy", "light", "light"), seen=True)
    turns, ahead = world.core.turns, 0.0
    for _ in range(200):
        world.run(0.05)
        lags = [turns.pace(s).lag for s in world.core.sessions.values()]
        assert min(lags) >= -turns.config.turn - 0.05
        ahead = min(ahead, *lags)
    assert ahead < 0.0, "somebody was ahead"


def test_the_background_has_a_turn_in_the_end() -> None:
    """I3: what stands still has a bound, also in the background."""
    world = GpuWorld()
    world.start("back", "heavy", background=True)
    world.start("note", "heavy")
    world.run(5)
    rates = progress(world, 60)
    assert 0.001 < rates["back"] < 0.02


def test_who_was_chosen_may_be_gone_before_it_starts() -> None:
    """I6: the others have their turn then, at once (`validate` after every event)."""
    world = GpuWorld()
    for name in "abc":
        world.start(name, "conv", seen=False)
    world.run(5)
    for _ in range(20):
        while not world.core.turns.joining:
            world.run(0.005)
        chosen = next(iter(world.core.turns.joining))
        world.end(f"{chosen}/job")
        world.run(0.3)
        world.submit(f"{chosen}/job", chosen, 0, 1)
        world.run(0.3)


def in_using_once(world: GpuWorld) -> None:
    """Nobody who runs is chosen to come to its turn."""
    turns = world.core.turns
    assert not turns.using.keys() & turns.joining.keys()


@pytest.mark.parametrize(
    ("mix", "who", "seconds"),
    [
        (("heavy", "heavy", "light", "light"), "heavy0", 2.0),
        (("heavy", "conv", "conv", "light"), "heavy0", 1.0),
        (("heavy", "conv", "conv", "light"), "conv1", 10.0),
        (("heavy", "heavy"), "heavy0", 2.0),
    ],
    ids=str,
)
def test_a_signal_on_its_way_spoils_nobody_s_pace(
    mix: tuple[str, ...], who: str, seconds: float
) -> None:
    """T1: While one may not be paused the others' slots are not theirs alone: what they make there tells nothing of their paces."""
    world = mixed(mix, seen=True)
    until = world.now + seconds
    world.send(ev.Exempted(at=world.now, session=SessionId(who), until=until))
    while world.now < until:
        world.run(0.05)
        in_using_once(world)
    world.run(1)
    rates = progress(world, 15)
    assert min(rates.values()) >= 0.95 / len(mix), rates
    assert sum(rates.values()) >= 0.97


def test_a_kernel_that_drains_long_is_waited_for_as_long_as_it_was_seen_to_take() -> None:
    """T4: Once its limit is known it is paused at the first try."""
    world = GpuWorld()
    world.start("deep", "deep", seen=False)
    world.start("b", "heavy", seen=False)
    world.run(8)
    world.log.clear()
    world.run(12)
    limits = [i.limit for i in world.log if isinstance(i, do.Pause) and i.session == "deep"]
    assert len(limits) > 3
    assert min(limits) > KINDS["deep"][2], limits


def test_one_at_a_time_is_one_at_a_time_from_the_moment_on_that_it_is_chosen() -> None:
    """S1: Whoever runs at once, or has its turn, stands still for the first, whatever was followed before."""
    for mix in (("light",) * 3, ("heavy", "heavy", "light", "light"), ("conv",) * 3):
        world = mixed(mix, seen=True)
        world.send(ev.PolicyChanged(at=world.now, policy="fifo"))
        world.run(0.2)
        rates = progress(world, 5)
        first, *others = rates.values()
        assert first >= 0.99, rates
        assert max(others) == 0.0, rates
        world.send(ev.PolicyChanged(at=world.now, policy="fair"))
        world.run(4)
        assert min(progress(world, 5).values()) >= 0.85 / len(mix)
