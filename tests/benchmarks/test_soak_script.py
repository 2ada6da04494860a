"""The soak's script: from a seed alone, and with every kind of fault in it."""

from __future__ import annotations

from itertools import islice

from benchmarks.soak.faults import Adversary
from benchmarks.soak.script import INSIDE, LASTING, Fault, steps


def script(seed: int, length: int = 200) -> list[str]:
    return [str(step) for step in islice(steps(seed), length)]


def test_the_same_seed_is_the_same_script():
    """So that a failure can be had again; another seed is another one."""
    assert script(7) == script(7)
    assert script(7) != script(8)


def test_every_kind_comes_before_any_comes_twice():
    """A run of a minute has nearly all of them."""
    found = [step.fault for step in islice(steps(3), 2 * len(Fault))]
    assert set(found[: len(Fault)]) == set(found[len(Fault) :]) == set(Fault)


def test_some_kinds_alone():
    """As `--only` has it."""
    kinds = [Fault.DISK_FULL, Fault.FORKS]
    assert {step.fault for step in islice(steps(1, kinds), 50)} == set(kinds)


def test_what_lasts_is_as_long_as_it_says_and_has_others_inside():
    """And nothing else is, or has."""
    inside = set()
    for step in islice(steps(5), 2000):
        least, most = LASTING.get(step.fault, (0.0, 0.0))
        assert least <= step.seconds <= most
        if step.inside is not None:
            assert step.seconds
            inside.add(step.inside)
    assert inside == set(INSIDE)


def test_a_step_reads_as_a_line():
    """Which is printed before it is done."""
    assert script(1, 1) == [
        "1: +0.89 s workers-crash (at 29984) for 1.39 s with kernel-killed inside"
    ]


def test_the_adversary_can_do_all_of_them():
    """Each kind has a method by its name."""
    assert [fault for fault in Fault if not hasattr(Adversary, f"_{fault.name.lower()}")] == []
