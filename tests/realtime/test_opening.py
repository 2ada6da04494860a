"""A pipeline that opens: what is said meanwhile, and that it can be given up."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from torch import nn

from gpushare_kernel.client import display
from gpushare_kernel.core.errors import BadDeclaration, Refused, UserError
from gpushare_kernel.realtime.admissions import AtBroker, Own
from gpushare_kernel.realtime.grid import Grid
from gpushare_kernel.realtime.model import Kind, Layer, NodeType, Stage, Task
from gpushare_kernel.realtime.nodes import Nodes
from gpushare_kernel.realtime.pipeline import Pipeline
from gpushare_kernel.realtime.placement import Fixed
from gpushare_kernel.wire.messages import RealtimeBeside, RealtimePlaced, Submit
from gpushare_kernel.wire.realtime import RealtimePlacement
from tests.realtime.pieces import ONE, Gate, X, opened, profile_of, stages


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the line says while pipelines open."""
    lines: list[str] = []
    display.use_steps(lambda: lines.append)
    yield lines
    display.use_steps(None)


def test_each_step_is_said_and_the_line_goes_at_the_end(said: list[str]) -> None:
    """It is one line, and there is none afterwards; also where it was refused."""
    nodes = Nodes(Fixed((ONE,)))
    with Pipeline([abs], X, name="net", nodes=nodes, period=1, deadline=1):
        assert [text.split(":")[0] for text in said] == ["Measuring 1 layer of net on c1", "Proving the deadline of net.", "Loading net on c1", ""]  # fmt: skip
        said.clear()
        with Pipeline([abs], X, name="other", class_="BE", nodes=nodes, profile=profile_of([abs], X)):  # fmt: skip
            assert said[0] == "Placing other beside 1 other."
        said.clear()
        with pytest.raises(BadDeclaration, match="later than its period"):
            Pipeline([abs], X, nodes=nodes, period=1, deadline=2)
        assert said == []  # it is looked at before anything is measured


@pytest.mark.parametrize("step", ["Measuring", "Proving", "Loading"])
def test_an_interrupt_is_one_line_and_leaves_nothing(step: str) -> None:
    """Wherever it comes: no node, no name that is taken, no frames of ours."""

    def put(text: str) -> None:
        if text.startswith(step):
            raise KeyboardInterrupt

    nodes = Nodes(Fixed((ONE,)))
    display.use_steps(lambda: put)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            Pipeline([abs], X, name="net", nodes=nodes, period=1, deadline=1)
    finally:
        display.use_steps(None)
    shown = caught.value._render_traceback_()  # type: ignore[attr-defined]
    assert shown == ["gpushare: Interrupted: the pipeline of net was opening, and is not open."]
    assert nodes.types == ()
    profile = profile_of([abs], X, worst=0.1)
    Pipeline([abs], X, name="net", nodes=nodes, period=1, deadline=1, profile=profile).close()


class _Branching(nn.Module):
    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x


def test_a_model_that_stays_whole_is_told_of() -> None:
    """With the reason, for others wait for all of it; a callable is one piece as it stands, and everybody knows."""
    import torch

    told: list[str] = []
    x = torch.ones(4)
    branching, nodes = _Branching().eval(), Nodes(Fixed((ONE,)))
    profile = profile_of(branching, x, [x])
    Pipeline(branching, x, class_="BE", nodes=nodes, profile=profile, tell=told.append).close()
    (text,) = told
    assert text.startswith("model _Branching is one piece, for which others wait: torch.fx cannot follow it behind node gt")  # fmt: skip
    assert text.endswith("To divide it, pass a list of its parts.")
    Pipeline(np.abs, X, class_="BE", nodes=nodes, profile=profile_of(np.abs, X), tell=told.append).close()  # fmt: skip
    assert told == [text]


class _Camera:
    """A source that stops in its second call until the test says go, and knows how many are in it."""

    def __init__(self) -> None:
        self.inside = self.most = self.calls = 0
        self.entered, self.go = threading.Event(), threading.Event()

    def read(self) -> int:
        self.inside += 1
        self.calls += 1
        self.most = max(self.most, self.inside)
        if self.calls == 2:
            self.entered.set()
            self.go.wait()
        self.inside -= 1
        return self.calls


def _grid(source: Any) -> Grid:
    def release(value: Any, _: float) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(value)
        return future

    return Grid(0.001, source, release, lambda _: None, lambda _: None)


def test_a_source_is_never_in_two_threads(said: list[str]) -> None:
    """A loop that was left while its source was read is waited for by the next one with that source; by others not."""
    camera, other = _Camera(), itertools.count()
    first = _grid(camera.read).results()
    next(first)
    camera.entered.wait()
    first.close()  # type: ignore[attr-defined]  # as an interrupt does
    assert next(_grid(other).results()) == 0
    again, got = _grid(camera.read).results(), threading.Event()

    def read() -> None:
        next(again)
        got.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert not got.is_set()
    assert camera.calls == 2
    camera.go.set()
    reader.join()
    assert got.is_set()
    assert camera.most == 1
    again.close()  # type: ignore[attr-defined]


def test_best_effort_that_leaves_a_deadline_no_room_reads_whose() -> None:
    """It has no deadline itself; the one that it would break is of this notebook, and has a name."""
    admission, cores = Own(), len(os.sched_getaffinity(0))

    def task(name: str, kind: Kind, worst: float) -> Task:
        times = (0.2, 0.15) if kind is Kind.RT else (None, None)
        return Task(name, kind, (Layer({NodeType(cores): worst}),), *times)

    camera, slow = task("camera", Kind.RT, 0.01), task("slow", Kind.BE, 0.3)
    with pytest.raises(Refused, match=r"^pipeline slow: beside it not every deadline could be promised: pipeline camera may take .* than its deadline of 150 ms"):  # fmt: skip
        admission.admit(slow, [camera])
    with pytest.raises(Refused, match=r"^pipeline camera: its deadline cannot be promised: pipeline camera may take"):  # fmt: skip
        admission.admit(camera, [slow])


def test_a_report_says_what_is_promised_now() -> None:
    """Another notebook's deadline may have changed it; a broker that came back may not have proven it again."""

    class Elsewhere(Fixed):
        now: ClassVar[dict[str, float | None]] = {}

        def promised(self) -> dict[str, float | None]:
            return self.now

    admission = Elsewhere((ONE,), bounds={"net": 0.4})
    profile = profile_of([abs], X, worst=0.1)
    with Pipeline([abs], X, name="net", nodes=Nodes(admission), period=1, deadline=1, profile=profile) as pipe:  # fmt: skip
        assert pipe.report().bound == 0.4
        Elsewhere.now = {"net": 0.6}
        assert pipe.report().bound == 0.6
        assert "not promised any more" not in str(pipe.report())
        Elsewhere.now = {"net": None}
        report = pipe.report()
        assert (report.bound, report.lapsed) == (None, True)
        assert "Its bound is not promised any more" in str(report)
        assert "this placement promises nothing" not in str(report)
        Elsewhere.now = {"net": 0.5}
    report = pipe.report()
    assert (report.bound, report.lapsed) == (0.5, False)


def _moves(nodes: Nodes, name: str) -> None:
    """The next pipeline moves `name` to the second node: its jobs must end first."""
    assert isinstance(nodes.admission, Fixed)
    nodes.admission.stages[name] = stages(-1, 0)


def test_an_interrupt_while_jobs_are_waited_for_leaves_the_others_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes have not changed yet: the jobs of pipelines that were there go on, and so do new ones."""

    def interrupted(_timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    gate, nodes = Gate(tmp_path, "gate"), Nodes(Fixed((ONE, ONE), {"a": stages(0)}))
    with opened(nodes, "a", [gate], [gate], class_="BE") as there:
        first = there.submit(X)
        gate.entered()
        _moves(nodes, "a")
        with monkeypatch.context() as patch:
            patch.setattr(nodes._changed, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                opened(nodes, "b", [abs])
        gate.open()
        first.result(60)
        gate.pass_all(1)
        there.submit(X).result(60)


def test_a_layer_that_hangs_does_not_hold_the_others_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs are waited for, and not longer: the newcomer is told whose, and everybody goes on."""
    monkeypatch.setattr("gpushare_kernel.realtime.nodes.CLEARED", 0.05)
    gate, nodes = Gate(tmp_path, "gate"), Nodes(Fixed((ONE, ONE), {"a": stages(0)}))
    with opened(nodes, "a", [gate], [gate], class_="BE") as there, opened(nodes, "c", [abs]) as other:  # fmt: skip
        first = there.submit(X)
        gate.entered()
        _moves(nodes, "a")
        with pytest.raises(UserError, match=r"jobs of a have not ended in 0\.05 s\. Wait for them, or close that pipeline"):  # fmt: skip
            opened(nodes, "b", [abs])
        other.submit(X).result(60)
        gate.open()
        first.result(60)


def test_who_does_not_want_to_wait_for_its_last_jobs_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P9: closing is given up with its jobs, not with the promise and the nodes: these would stay for good."""

    def interrupted(_timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    gate, nodes = Gate(tmp_path, "gate"), Nodes(Fixed((ONE,)))
    pipe = opened(nodes, "net", [gate], [gate])
    future = pipe.submit(X)
    gate.entered()
    monkeypatch.setattr(nodes._changed, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipe.close()
    with pytest.raises(CancelledError):
        future.result(60)
    assert nodes.types == ()
    assert pipe.report().releases == 1


class _Session:
    """A broker's word for each pipeline, as it came back: those in `lapsed` it cannot promise again."""

    def __init__(self) -> None:
        self.lapsed: set[str] = set()
        self.jobs: dict[str, SimpleNamespace] = {}

    def submit(self, submit: Submit) -> SimpleNamespace:
        job = SimpleNamespace(id=submit.job, placement=None, realtime=None)
        job.leave = lambda **_: self.jobs.pop(submit.name)
        self.jobs[submit.name] = job
        job.placement = self.placement()
        return job

    def request(self, body: RealtimeBeside, *_: Any, **__: Any) -> RealtimePlaced:
        there = {job.id: self.placement(*body.chains) for name, job in self.jobs.items() if name not in self.lapsed}  # fmt: skip
        return RealtimePlaced(there)

    def post(self, _: Any) -> None:
        """Who left is of no interest here."""

    def placement(self, *chains: Any) -> RealtimePlacement:
        bounds = {job.id: 0.1 for job in self.jobs.values()}
        beside = {chain.name: ((0, 0, 1),) for chain in chains}
        return RealtimePlacement(("c1",), ((0, 0, 1),), 0.1, 0.01, beside, bounds)


def test_who_lost_its_promise_stays_where_it_is_beside_newcomers() -> None:
    """W11: A broker that came back promised one of two again: the next pipeline opens beside both."""
    broker, layers = _Session(), (Layer({ONE: 0.01}),)
    admission = AtBroker(broker)  # type: ignore[arg-type]
    first, second = (Task(name, Kind.RT, layers, 1.0, 1.0) for name in ("first", "second"))
    admission.admit(first, [])
    admission.admit(second, [first])
    broker.lapsed.add("first")
    placement = admission.admit(Task("be", Kind.BE, layers), [first, second])
    assert placement.stages == dict.fromkeys(("first", "second", "be"), (Stage(0, 0, 0),))
    assert placement.bounds.keys() >= {"second"}


def test_who_cannot_be_placed_is_promised_nothing() -> None:
    """Where what was promised elsewhere has other nodes by now: it is one line, and no promise is left behind."""
    broker, layers = _Session(), (Layer({ONE: 0.01}),)
    admission = AtBroker(broker)  # type: ignore[arg-type]
    unknown, new = (Task(name, Kind.RT, layers, 1.0, 1.0) for name in ("unknown", "new"))
    with pytest.raises(Refused, match="pipeline unknown is promised no deadline since the broker has restarted"):  # fmt: skip
        admission.admit(new, [unknown])
    assert not broker.jobs
