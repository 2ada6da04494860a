"""Turns on a GPU: nobody below its share, and above that nothing wasted."""

from __future__ import annotations

import pytest
from tests_gpu_world import FREE, GpuWorld  # type: ignore[import-not-found]

from gpushare_kernel.core import instructions as do

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
    """Each job has at least 95 % of its share, and all together at least 90 % of free co-run."""
    rates = progress(mixed(mix, seen=True), 20)
    free = sum(FREE[mix][kind] for kind in mix)
    assert min(rates.values()) >= 0.95 / len(mix), rates
    assert sum(rates.values()) >= 0.90 * free, rates


@pytest.mark.parametrize("mix", MIXES, ids="-".join)
def test_enforced_from_outside_shares_hold_too(mix: tuple[str, ...]) -> None:
    """Nobody tells its progress: each has at least 92 % of its share, and all 80 % of free co-run."""
    rates = progress(mixed(mix, seen=False), 20)
    free = sum(FREE[mix][kind] for kind in mix)
    assert min(rates.values()) >= 0.92 / len(mix), rates
    assert sum(rates.values()) >= 0.80 * free, rates


@pytest.mark.parametrize("seen", [True, False])
def test_four_that_do_not_saturate_are_left_to_run(seen: bool) -> None:
    """Launch-bound jobs co-run; once that is known nobody is paused any more."""
    world = mixed(("light",) * 4, seen=seen)
    world.log.clear()
    rates = progress(world, 10)
    assert not [i for i in world.log if isinstance(i, do.Pause)]
    assert sum(rates.values()) >= 0.99 * 4 * 0.61


def test_alone_no_lock_is_ever_taken() -> None:
    """Alone on a GPU: no pause."""
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
    """Exclusive turns: equal within a point, nearly all of the device used."""
    world = mixed((kind,) * number, seen=seen)
    rates = progress(world, 20)
    total = sum(rates.values())
    assert total >= 0.97
    assert max(rates.values()) - min(rates.values()) <= 0.02 * total, rates


@pytest.mark.parametrize("weights", [(3.0, 1.0), (0.3, 0.7)])
def test_weights_hold(weights: tuple[float, float]) -> None:
    """75/25 and 30/70 of one user's two sessions, within a point."""
    world = GpuWorld()
    for n, weight in enumerate(weights):
        world.start(f"k{n}", "heavy", user="ann", weight=weight)
    world.run(4)
    rates = progress(world, 30)
    share = rates["k0"] / sum(rates.values())
    assert abs(share - weights[0] / sum(weights)) < 0.01, rates


def test_three_kernels_against_one_is_half_and_half() -> None:
    """I6: by user first."""
    world = GpuWorld()
    for n in range(3):
        world.start(f"a{n}", "heavy", user="ann")
    world.start("b", "heavy", user="bob")
    world.run(4)
    rates = progress(world, 20)
    assert abs(rates["b"] / sum(rates.values()) - 0.5) < 0.01, rates


def test_who_does_next_to_nothing_is_never_paused() -> None:
    """An idle kernel whose cell is open costs the others nothing."""
    world = mixed(("heavy", "heavy", "idle"), seen=False)
    world.log.clear()
    rates = progress(world, 10)
    paused = {i.session for i in world.log if isinstance(i, do.Pause)}
    assert "idle2" not in paused
    assert rates["heavy0"] + rates["heavy1"] >= 0.97


@pytest.mark.parametrize("seen", [True, False])
def test_a_change_of_phase_is_seen_within_seconds(seen: bool) -> None:
    """A session that begins to saturate gets its share again; one that stops to is co-run.

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
    """Beside three hogs a short job of a new user runs within two turns and a drain."""
    world = mixed(("conv",) * 3, seen=False)
    began = world.now
    kernel = world.start("short", "heavy", seen=False)
    while kernel.done < 0.05:
        world.run(0.005)
        assert world.now - began < 0.25


def test_the_background_yields_to_every_notebook() -> None:
    """A background session runs while nobody else wants the GPU, and not beside a notebook."""
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
    """Cooperative only: those who meet boundaries share by turns, and one that never does runs beside them."""
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
