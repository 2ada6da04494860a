"""The sum of a process tree's CPU seconds: complete, and never falling."""

from __future__ import annotations

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices.meter import TreeMeter

ROOT, CHILD, OTHER = (ProcessKey(pid, 1) for pid in (1000001, 1000002, 1000003))


class Tree:
    """A laid-out tree: key -> [own, reaped, delay]."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: dict[int, list[float]] = {}
        monkeypatch.setattr(procfs, "process_key", lambda pid: ProcessKey(pid, 1))
        monkeypatch.setattr(procfs, "cpu_seconds", lambda pid: self.values.get(pid, [None])[0])
        monkeypatch.setattr(procfs, "reaped_seconds", lambda pid: self.values[pid][1])
        monkeypatch.setattr(procfs, "run_delay", lambda pid: self.values[pid][2])

    def set(self, key: ProcessKey, own: float, reaped: float = 0.0, delay: float = 0.0) -> None:
        """Say what the kernel will say of a process from now on."""
        self.values[key.pid] = [own, reaped, delay]

    def end(self, key: ProcessKey) -> None:
        """Let a process be gone."""
        del self.values[key.pid]


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A tree with a root of 1 s."""
    laid = Tree(monkeypatch)
    laid.set(ROOT, 1.0)
    return laid


def test_a_child_s_seconds_are_counted_once_although_they_return_to_the_parent(tree: Tree) -> None:
    """Seen 2 s of the child; it used half a second more, ended, was waited for: 1 + 2.5."""
    meter = TreeMeter()
    tree.set(CHILD, 2.0)
    meter.sample([ROOT, CHILD])
    assert meter.device_time == 3.0
    tree.end(CHILD)
    tree.set(ROOT, 1.0, reaped=2.5)
    meter.sample([ROOT])
    assert meter.device_time == 3.5


def test_children_too_short_lived_for_any_sample_are_charged(tree: Tree) -> None:
    """A loop of `!make` lives between two samples, and costs what its parent reaped."""
    meter = TreeMeter()
    meter.sample([ROOT])
    tree.set(ROOT, 1.0, reaped=0.75)
    meter.sample([ROOT])
    assert meter.device_time == 1.75


def test_reaped_one_sample_late_is_not_counted_twice(tree: Tree) -> None:
    """The parent's reaped seconds may be read just before the child vanishes."""
    meter = TreeMeter()
    tree.set(CHILD, 2.0)
    meter.sample([ROOT, CHILD])
    tree.end(CHILD)
    meter.sample([ROOT])
    assert meter.device_time == 3.0
    tree.set(ROOT, 1.0, reaped=2.0)
    meter.sample([ROOT])
    assert meter.device_time == 3.0


def test_seconds_that_never_come_back_do_not_hide_later_children(tree: Tree) -> None:
    """With SIGCHLD ignored a child's seconds are lost to the kernel; the next child pays in full."""
    meter = TreeMeter()
    tree.set(CHILD, 5.0)
    meter.sample([ROOT, CHILD])
    tree.end(CHILD)
    meter.sample([ROOT])
    meter.sample([ROOT])
    tree.set(ROOT, 1.0, reaped=4.0)
    meter.sample([ROOT])
    assert meter.device_time == 10.0


def test_a_nested_session_s_end_is_not_charged_to_the_outer_one(tree: Tree) -> None:
    """Papermill in a notebook: the inner kernel paid for itself; then its parent reaps 60 s."""
    meter = TreeMeter()
    tree.set(OTHER, 60.0)
    meter.sample([ROOT], without={OTHER.pid})
    assert meter.device_time == 1.0
    tree.end(OTHER)
    tree.set(ROOT, 1.0, reaped=60.0)
    meter.sample([ROOT], without={OTHER.pid})
    assert meter.device_time == 1.0


def test_a_thread_s_end_does_not_lower_the_waiting_time(tree: Tree) -> None:
    """Run delay is kept per living thread; what an ended one had waited stays counted."""
    meter = TreeMeter()
    tree.set(ROOT, 1.0, delay=3.0)
    meter.sample([ROOT])
    tree.set(ROOT, 1.0, delay=1.0)
    meter.sample([ROOT])
    tree.set(ROOT, 1.0, delay=1.5)
    meter.sample([ROOT])
    assert meter.waited == 3.5


def test_a_reused_pid_starts_from_nothing(tree: Tree) -> None:
    """Another process under an old pid is charged from its first second."""
    meter = TreeMeter()
    tree.set(CHILD, 5.0)
    meter.sample([ROOT, CHILD])
    tree.set(CHILD, 0.5)
    meter.sample([ROOT, ProcessKey(CHILD.pid, 2)])
    assert meter.device_time == 6.5
