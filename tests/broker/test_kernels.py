"""Which session's process lies below which other's: a session inside another is no part of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.broker.kernels import Kernel, Registry
from gpushare_kernel.broker.persons import Person
from tests.procs import Program
from tests.test_procfs import FAMILY


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry; the processes' descriptors are closed after the test."""
    made = Registry()
    yield made
    for kernel in made:
        made.drop(kernel)


def bound(registry: Registry, pid: int) -> Kernel:
    """Return a session whose process has this number."""
    kernel, _ = registry.open(Person(os.getuid()), "hw.ipynb", 1.0, None)
    registry.bind(kernel, os.pidfd_open(pid), pid)
    return kernel


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_session_below_another_is_left_out_of_it(
    registry: Registry, order: tuple[int, ...]
) -> None:
    """Whichever is bound first; who is gone is left out no longer."""
    with Program(FAMILY) as program:
        pids = [program.pid, *program.said_pids()]
        found = {pids[n]: bound(registry, pids[n]) for n in order}
        above, middle, below = (found[pid] for pid in pids)
        assert (above.without, middle.without, below.without) == ({*pids[1:]}, {pids[2]}, set())
        registry.unbind(below)
        assert (above.without, middle.without) == ({pids[1]}, set())


def test_a_number_that_was_an_ancestors_is_no_ancestor(registry: Registry) -> None:
    """A line is read once: what was in it may have ended since, and its number be another process's."""
    with Program("say(1); wait()") as one, Program("say(1); wait()") as other:
        first = bound(registry, one.pid)
        first.line |= {other.pid}
        assert bound(registry, other.pid).without == set()


def test_many_sessions_do_not_read_each_other(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that takes over hundreds at once reads each one's line, not every pair's: that took seconds."""
    read: list[int] = []
    parent = procfs.parent

    def noted(pid: int) -> int | None:
        read.append(pid)
        return parent(pid)

    with Program("say(1); wait()") as one, Program("say(1); wait()") as other:
        bound(registry, one.pid)
        monkeypatch.setattr(procfs, "parent", noted)
        bound(registry, other.pid)
    assert set(read) == procfs.line(os.getpid()) | {other.pid}
