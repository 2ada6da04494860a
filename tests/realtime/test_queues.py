"""P1, P2: who is next on a node, without a process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gpushare_kernel.realtime.model import Kind
from gpushare_kernel.realtime.queues import Mode, Queues, Work
from gpushare_kernel.realtime.runner import Runner


def work(task: int, kind: Kind = Kind.RT, weight: float = 1.0) -> Work:
    """A job of which only this matters."""
    return Work(task, 0, 0, 0, kind, weight, None)


def order(queues: Queues) -> list[int]:
    """Take all."""
    taken = []
    while (one := queues.take()) is not None:
        taken.append(one.task)
    return taken


def test_the_weightiest_first_equals_as_they_came_best_effort_last() -> None:
    """P1."""
    queues = Queues()
    for task, kind, weight in [(0, Kind.BE, 9), (1, Kind.RT, 1), (2, Kind.RT, 2), (3, Kind.BE, 1), (4, Kind.RT, 1), (5, Kind.RT, 2)]:  # fmt: skip
        queues.add(work(task, kind, weight))
    assert len(queues) == 6
    assert order(queues) == [2, 5, 1, 4, 0, 3]


def test_who_is_put_aside_keeps_its_place() -> None:
    """Among equals it goes on before those that came after it."""
    queues = Queues()
    queues.add(work(0))
    running = queues.take()
    assert running is not None
    queues.add(work(1))
    queues.add(work(2, weight=5))
    assert queues.before(running)
    queues.put_back(running)
    assert order(queues) == [2, 0, 1]


@pytest.mark.parametrize("mode", list(Mode))
def test_best_effort_makes_room_in_both_modes(mode: Mode) -> None:
    """P2: at the end of its layer."""
    queues = Queues(mode)
    queues.add(work(1))
    assert queues.before(work(0, Kind.BE, 100))


def test_a_deadline_makes_room_for_a_weightier_one_by_mode() -> None:
    """P2: at the end of its layer, or of its stage only; never for an equal."""
    for mode, yields in ((Mode.LAYER, True), (Mode.STAGE, False)):
        queues = Queues(mode)
        queues.add(work(0))
        running = queues.take()
        assert running is not None
        queues.add(work(1))
        assert not queues.before(running)
        queues.add(work(2, weight=2))
        assert queues.before(running) is yields


def test_a_task_that_loses_its_class_waits_behind_deadlines() -> None:
    """P6: those that wait already lose it too."""
    queues = Queues()
    for task in (0, 1, 0):
        queues.add(work(task, weight=5 - 4 * task))
    queues.demote(0)
    assert [one.task for one in queues.rt] == [1]
    queues.add(work(0, weight=5))  # it has behaved: what is released from now on
    assert order(queues) == [0, 1, 0, 0]


def test_who_is_forgotten_is_gone() -> None:
    """In both queues."""
    queues = Queues()
    for task, kind in ((0, Kind.RT), (1, Kind.BE), (1, Kind.RT), (0, Kind.BE)):
        queues.add(work(task, kind))
    queues.forget(1)
    assert order(queues) == [0, 0]


def test_the_one_that_waited_longest_is_given_away() -> None:
    """Of those that may go."""
    queues = Queues()
    for task in (0, 1, 2):
        queues.add(work(task, Kind.BE))
    given = queues.give_away(lambda one: one.task > 0)
    assert given is not None
    assert given.task == 1
    assert order(queues) == [0, 2]
    assert queues.give_away(lambda _: True) is None


def test_who_lost_its_class_goes_before_other_best_effort() -> None:
    """It has the class again after three good jobs: behind a full queue it would wait for them long. It is still behind real time."""
    queues = Queues()
    for task in (0, 1):
        queues.add(work(task, Kind.BE))
    lost = work(2)
    lost.timed = True
    queues.add(lost)
    queues.add(work(3))
    queues.demote(2)
    assert order(queues) == [3, 2, 0, 1]


def test_who_cannot_be_handed_on_fails_and_not_the_job_that_runs() -> None:
    """P7: Its value is its own: too large for its slot, or an object that cannot be pickled."""
    waits, problem = work(1, Kind.BE), ValueError("too large")
    failed: list[Any] = []

    def refuse(*_: object) -> None:
        raise problem

    runner = SimpleNamespace(
        queues=Queues(),
        held={1: "its holding"},
        _idle_for=lambda _: 1,
        _send_on=refuse,
        _fail=lambda *what: failed.append(what),
    )
    runner.queues.add(waits)
    Runner._spread(runner)  # type: ignore[arg-type]
    assert failed == [("its holding", waits, problem)]
    assert not runner.queues
