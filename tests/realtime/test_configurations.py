"""Node configurations: as many as the closed form says, each once, and the same as permuting and cutting gives."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest

from gpushare_kernel.realtime.configurations import (
    Configuration,
    coarse,
    configurations,
    count,
    neighbours,
)
from gpushare_kernel.realtime.model import NodeType


@pytest.mark.parametrize(
    ("cpus", "gpus", "most", "ordered", "unordered"),
    [
        (8, 1, 4, 218, 31),
        (8, 1, 6, 519, 42),
        (16, 1, 3, 346, 72),
        (16, 1, 4, 2166, 174),
        (16, 1, 6, 27009, 408),
        (16, 2, 3, 330, 64),
        (16, 2, 4, 3060, 204),
    ],
)
def test_there_are_as_many_as_the_closed_form_says(cpus, gpus, most, ordered, unordered) -> None:
    found = list(configurations(cpus, gpus, most))
    assert len(found) == len(set(found)) == count(cpus, gpus, most) == ordered
    assert len({tuple(sorted(one)) for one in found}) == unordered
    for one in found:
        assert sum(node.cpus for node in one) == cpus
        assert sum(node.gpus for node in one) == gpus
        assert all(node.cpus >= 1 and node.gpus <= 1 for node in one)


@pytest.mark.parametrize(("cpus", "most", "raw"), [(8, 4, 837), (8, 6, 1971), (4, 3, None)])
def test_algorithm_2_as_published_finds_the_same(cpus: int, most: int, raw: int | None) -> None:
    """Permute cores and GPUs, cut each row everywhere, keep what is valid: R1."""
    rows = set(permutations("C" * cpus + "G", cpus + 1)) if cpus < 6 else _rows(cpus)
    cut = [
        tuple(row[a:b] for a, b in zip((0, *cuts), (*cuts, len(row)), strict=True))
        for row in rows
        for k in range(1, most + 1)
        for cuts in combinations(range(1, cpus + 1), k - 1)
    ]
    assert raw is None or len(cut) == raw
    valid = {
        tuple(NodeType(group.count("C"), group.count("G")) for group in groups)
        for groups in cut
        if all("C" in group for group in groups)
    }
    assert valid == set(configurations(cpus, 1, most))


def _rows(cpus: int) -> set[tuple[str, ...]]:
    """All different permutations of so many cores and one GPU."""
    return {(*"C" * place, "G", *"C" * (cpus - place)) for place in range(cpus + 1)}


@pytest.mark.parametrize("machine", [(8, 1, 4), (7, 0, 2), (6, 2, 5), (1, 1, 4), (31, 1, 3)])
def test_the_coarse_ones_are_some_of_them(machine: tuple[int, int, int]) -> None:
    found, known = list(coarse(*machine)), set(configurations(*machine))
    assert len(found) == len(set(found)) <= len(known)
    assert set(found) <= known
    assert {len(one) for one in found} == {len(one) for one in known}


def test_neighbours_are_configurations_and_lead_everywhere() -> None:
    """From any one, to every other of the same number of nodes."""
    known = {one for one in configurations(6, 1, 3) if len(one) == 3}
    reached: set[Configuration] = set()
    todo = [next(iter(sorted(known)))]
    while todo:
        one = todo.pop()
        if one not in reached:
            reached.add(one)
            todo += neighbours(one)
    assert reached == known
