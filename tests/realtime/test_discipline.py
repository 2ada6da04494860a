"""Best effort that takes longer than measured beside deadlines: one miss at most is its fault (I7)."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpushare_kernel.realtime import orders, payload
from gpushare_kernel.realtime.chain import chain
from gpushare_kernel.realtime.discipline import FIRST, LONGEST, Discipline
from gpushare_kernel.realtime.model import Kind, Task
from gpushare_kernel.realtime.nodes import Nodes
from gpushare_kernel.realtime.pipeline import Pipeline
from gpushare_kernel.realtime.placement import Fixed
from gpushare_kernel.realtime.tenant import Tenant
from tests.realtime.pieces import ONE, Gate, profile_of

X = np.arange(4.0)


def tenant(kind: Kind) -> Tenant:
    task = Task("train", kind, (), *((0.1, 0.1) if kind is Kind.RT else (None, None)))
    return Tenant(7, task, chain([abs], X), [payload.form_of(X)] * 2, X)


def overran(took: float, number: int = 0) -> orders.Overran:
    return orders.Overran(7, number, 0, 0, 0, took, worst=0.01, running=False)


def test_best_effort_waits_where_deadlines_have_no_room_for_it() -> None:
    """Told with the numbers; tried again after a while, then after twice as long; those that go are let go at once."""
    rules, one = Discipline(), tenant(Kind.BE)
    rules.spare = 0.005
    assert rules.overran(one, overran(0.014), 0.0, promised=True) == (None, None)
    assert rules.overran(one, overran(0.03), 0.0, promised=False) == (None, None)
    at, waits = 0.0, []
    for _ in range(7):
        told, order = rules.overran(one, overran(0.016), at, promised=True)
        assert told is not None
        assert "took 16 ms on node 0, at most 10 when it was measured" in told
        assert "room for 5 ms more: it waits until they have ended" in told
        assert order == orders.Bar(7, on=True)
        assert rules.overran(one, overran(0.016), at, promised=True) == (
            None,
            None,
        )  # it waits already
        (until,) = rules.until.values()
        waits.append(until - at)
        at = until
        assert rules.over(at - 0.001) == []
        assert rules.over(at) == [orders.Bar(7, on=False)]
    assert waits == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, 16 * FIRST, LONGEST, LONGEST]
    rules.overran(one, overran(0.016), at, promised=True)
    assert rules.clear() == [orders.Bar(7, on=False)]
    rules.overran(one, overran(0.016), at, promised=True)
    assert rules.until == {7: at + FIRST}
    one.close()


def test_a_task_that_lost_its_deadline_waits_like_best_effort() -> None:
    """P6, P14: its first overrun costs it the class; one more that the others have no room for, and it waits."""
    rules, one = Discipline(), tenant(Kind.RT)
    told, order = rules.overran(one, overran(0.5), 0.0, promised=True)
    assert told is not None
    assert "not promised until it behaves again" in told
    assert order == orders.Reclass(7, Kind.BE)
    assert rules.until == {}
    told, order = rules.overran(one, overran(0.5, number=1), 0.0, promised=True)
    assert order == orders.Bar(7, on=True)
    one.close()


def test_it_is_tried_again_for_weeks() -> None:
    """The time until the next try has an end, and so has the number that it is made of."""
    rules, one, at = Discipline(), tenant(Kind.BE), 0.0
    for _ in range(1100):
        assert rules.overran(one, overran(1.0), at, promised=True)[1] is not None
        at = rules.until[one.number]
        assert rules.over(at)
    assert rules.overran(one, overran(1.0), at, promised=True)[1] is not None
    assert rules.until[one.number] == at + LONGEST
    one.close()


def test_nobody_waits_for_one_that_waits(tmp_path: Path) -> None:
    """P14: nodes that change let it go first; closing it cancels its jobs."""
    gate, heard = Gate(tmp_path, "gate"), threading.Semaphore(0)

    class Growing(Fixed):
        def admit(self, task: Any, others: Any) -> Any:
            if task.name == "new":
                self.nodes = (ONE, ONE)
            return super().admit(task, others)

    nodes = Nodes(Growing((ONE,), bounds={"camera": 0.5, "new": 0.5}))
    layers: Any = [lambda x: gate(x) if x[0] == 9 else x, lambda x: x + 1]
    options: Any = {"class_": "BE", "nodes": nodes, "tell": lambda _: heard.release(), "profile": profile_of(layers, X, [X] * 2, worst=0.02)}  # fmt: skip
    timed: Any = {"period": 1, "deadline": 1, "nodes": nodes, "profile": profile_of([abs], X, worst=0.5)}  # fmt: skip
    camera = Pipeline([abs], X, name="camera", **timed)
    slow = Pipeline(layers, X, name="slow", **options)
    for _ in range(2):
        late = slow.submit(np.full(4, 9.0))
        gate.entered()
        heard.acquire()
        gate.open()
        if len(nodes.row) == 1:
            new = Pipeline([abs], X, name="new", **timed)
            np.testing.assert_array_equal(late.result(), np.full(4, 10.0))
    slow.close()
    with pytest.raises(CancelledError):
        late.result()
    new.close()
    camera.close()


def test_who_waits_runs_again_when_the_deadlines_are_gone(tmp_path: Path) -> None:
    """P14: at the end of the layer that took too long it is put aside; real-time jobs and others run on."""
    gate, told = Gate(tmp_path, "gate"), []
    heard = threading.Event()

    def tell(text: str) -> None:
        told.append(text)
        heard.set()

    nodes = Nodes(Fixed((ONE,), bounds={"camera": 0.5}))
    layers: Any = [lambda x: gate(x) if x[0] == 9 else x, lambda x: x + 1]
    with Pipeline([abs], X, name="camera", period=1, deadline=1, nodes=nodes, profile=profile_of([abs], X, worst=0.5)) as camera:  # fmt: skip
        slow = Pipeline(layers, X, name="slow", class_="BE", nodes=nodes, tell=tell, profile=profile_of(layers, X, [X] * 2, worst=0.02))  # fmt: skip
        other = Pipeline(
            [abs], X, name="other", class_="BE", nodes=nodes, profile=profile_of([abs], X)
        )
        late = slow.submit(np.full(4, 9.0))
        gate.entered()
        heard.wait()
        gate.open()
        assert "it waits until they have ended" in told[0]
        another = slow.submit(X)
        for _ in range(3):
            camera(X)
            np.testing.assert_array_equal(other(X), X)
        assert not late.done()
        assert not another.done()
    np.testing.assert_array_equal(late.result(), np.full(4, 10.0))
    np.testing.assert_array_equal(another.result(), X + 1)
    slow.close()
    other.close()
