"""What a notebook uses: releases by the clock, reports, and a class that is lost and had again."""

from __future__ import annotations

import itertools
import os
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpushare_kernel as gpushare
from gpushare_kernel.core.errors import BadDeclaration, BadTime, UserError
from gpushare_kernel.realtime import payload, shared_nodes
from gpushare_kernel.realtime.chain import BadModel, chain
from gpushare_kernel.realtime.conduct import AMENDS
from gpushare_kernel.realtime.grid import MOST_UNREAD, Grid
from gpushare_kernel.realtime.model import Kind, Task
from gpushare_kernel.realtime.nodes import Nodes
from gpushare_kernel.realtime.payload import ShapeChanged
from gpushare_kernel.realtime.pipeline import Pipeline
from gpushare_kernel.realtime.placement import Fixed
from gpushare_kernel.realtime.record import Responses
from gpushare_kernel.realtime.tenant import LATE, SLOTS, Flight, Tenant
from tests.procs import Program, eventually
from tests.realtime.pieces import ONE, Gate, X, opened, profile_of, stages


def plain(layers: Any, **more: Any) -> Pipeline:
    """Open a pipeline on nodes of its own, two by default."""
    more.setdefault("nodes", Nodes(Fixed((ONE, ONE), {"net": stages(0, len(layers) - 1)} if len(layers) > 1 else {})))  # fmt: skip
    more.setdefault("period", 60)
    more.setdefault("deadline", 50)
    worst = more["deadline"] / len(layers) / 1.3 if isinstance(more["deadline"], float) else 0.5
    more.setdefault("profile", profile_of(layers, X, [X] * len(layers), worst=worst))
    return Pipeline(layers, X, name="net", **more)


def test_by_its_public_name() -> None:
    """Measured, admitted, run, reported: with nothing but a model and an example; the nodes go with the last one."""
    with gpushare.realtime.Pipeline([np.negative, np.abs], X, period="1s", deadline="900ms") as pipe:  # fmt: skip
        np.testing.assert_array_equal(pipe(X - 9), np.abs(X - 9))
        running = shared_nodes.shared().types
        assert 1 <= sum(kind.cpus for kind in running) <= len(os.sched_getaffinity(0))
        assert pipe.task.name.startswith("list-")
    assert shared_nodes.shared().types == ()
    report = pipe.report()
    assert (report.releases, report.done, report.misses, report.delayed) == (1, 1, 0, 0)
    assert report.bound is not None
    assert 0 < report.bound <= 0.9
    assert "promises nothing" not in str(report)


def test_a_release_that_comes_too_early_is_held_back() -> None:
    """P12: until a period after the last one, and counted; what was given is taken at once."""
    period = 0.2
    with plain([lambda x: x], period=period, deadline=period) as pipe:
        frame, futures = X.copy(), []
        for n in range(3):
            frame[:] = n
            futures.append(pipe.submit(frame))
        assert [future.result()[0] for future in futures] == [0, 1, 2]
        released = pipe._earliest
    report = pipe.report()
    assert report.delayed == 2
    assert report.done == 3
    assert released >= 3 * period
    # A response counts from the moment to which a release was held back: two of them did not take two periods.
    assert report.longest < report.longest_delivered + period


def test_releases_held_back_are_a_period_apart() -> None:
    """P12: seen from the node, which notes when each ran."""
    period = 0.1
    with plain([lambda x: np.full(4, time.monotonic())], period=period, deadline=period) as pipe:
        times = [future.result()[0] for future in [pipe.submit(X) for _ in range(4)]]
        first = pipe._tenant.record
    assert times[3] - times[0] >= 3 * period - first.responses.longest


def test_best_effort_is_not_held_back() -> None:
    """It has no period."""
    with plain([lambda x: x], class_="BE") as pipe:
        futures = [pipe.submit(X) for _ in range(50)]
        assert all(future.result() is not None for future in futures)
        with pytest.raises(BadDeclaration, match="best effort has no period"):
            pipe.every_period([X])
    assert pipe.report().delayed == 0


class _Clocked:
    """A source that notes the tick of each release."""

    def __init__(self, count: int) -> None:
        self.left = iter(range(count))

    def __call__(self) -> Any:
        return np.full(4, float(next(self.left)))


def test_known_releases_are_on_a_grid(tmp_path: Path) -> None:
    """P13: results in order; the source's end is the end."""
    with plain([lambda x: x, lambda x: x], period=0.02, deadline=0.02) as pipe:
        found = [y[0] for y in pipe.every_period(_Clocked(10))]
        more = [y[0] for y in pipe.every_period([X + n for n in range(3)])]
    assert found == list(range(10))
    assert more == [0, 1, 2]
    assert pipe.report().releases == 13


def grid(period: float, source: Any, seen: list[float]) -> Any:
    """Return a grid whose jobs are done at once; the ticks of its releases go to `seen`."""
    skipped: list[int] = []

    def release(value: Any, at: float) -> Any:
        seen.append(at)
        future: Any = Future()
        future.set_result(value)
        return future

    return Grid(period, source, release, lambda _: None, skipped.append), skipped


def test_a_reader_that_is_behind_shifts_nothing() -> None:
    """P13: every tick is a whole number of periods after the first, and none is left out while the reader waits."""
    seen: list[float] = []
    all_there = threading.Event()

    def source() -> int:
        if len(seen) == 8:
            all_there.set()
            raise StopIteration
        return len(seen)

    ticks, skipped = grid(0.01, source, seen)
    results = ticks.results()
    assert next(results) == 0
    all_there.wait()  # the reader does nothing meanwhile
    assert list(results) == list(range(1, 8))
    gaps = [(at - seen[0]) / 0.01 for at in seen]
    assert gaps == pytest.approx([round(gap) for gap in gaps], abs=1e-6)
    assert round(gaps[-1]) == 7 + sum(skipped)


def test_a_source_that_is_behind_loses_ticks_and_shifts_nothing() -> None:
    """P13: those that have passed are skipped and counted; what comes is on the grid."""
    seen: list[float] = []
    pause = threading.Event()

    def source() -> int:
        if len(seen) == 1:
            pause.wait(0.055)  # five ticks pass
        if len(seen) == 3:
            raise StopIteration
        return len(seen)

    ticks, skipped = grid(0.01, source, seen)
    assert list(ticks.results()) == [0, 1, 2]
    gaps = [(at - seen[0]) / 0.01 for at in seen]
    assert gaps == pytest.approx([round(gap) for gap in gaps], abs=1e-6)
    assert sum(skipped) >= 3
    assert round(gaps[2]) >= 5


def test_results_that_nobody_reads_have_an_end() -> None:
    """P13: ticks are skipped then; memory is not filled."""
    seen: list[float] = []
    ticks, skipped = grid(0.0005, itertools.count().__next__, seen)
    results = ticks.results()
    next(results)
    pace = threading.Event()
    while sum(skipped) < 2 * MOST_UNREAD:
        pace.wait(0.01)
    assert len(seen) <= MOST_UNREAD + 2
    results.close()


def test_an_error_of_the_source_or_of_a_layer_ends_the_loop() -> None:
    """It is raised to the reader; the pipeline lives on."""

    def layer(x: Any) -> Any:
        if x[0] == 2:
            msg = "two"
            raise ArithmeticError(msg)
        return x

    def source() -> Any:
        msg = "the camera is away"
        raise OSError(msg)

    with plain([layer], period=0.01, deadline=0.01) as pipe:
        with pytest.raises(ArithmeticError, match="two"):
            for _ in pipe.every_period(X + n for n in range(5)):
                pass
        with pytest.raises(OSError, match="the camera is away"):
            list(pipe.every_period(source))
        np.testing.assert_array_equal(pipe(X), X)


def test_one_loop_at_a_time() -> None:
    """Known releases and others would come closer than a period."""
    with plain([lambda x: x], period=0.01, deadline=0.01) as pipe:
        loop = iter(pipe.every_period(itertools.repeat(X)))
        next(loop)
        with pytest.raises(UserError, match="every_period releases its jobs now"):
            pipe.submit(X)
        with pytest.raises(UserError, match="every_period is in use"):
            next(iter(pipe.every_period([X])))
        loop.close()  # type: ignore[attr-defined]
        pipe(X)


def test_who_overruns_loses_its_class_and_has_it_again(tmp_path: Path) -> None:
    """P6: told while the layer still runs; then best effort for AMENDS good jobs; its user is told both times."""
    gate = Gate(tmp_path, "gate")
    told: list[str] = []
    heard = threading.Semaphore(0)

    def tell(text: str) -> None:
        told.append(text)
        heard.release()

    def layer(x: Any) -> Any:
        return gate(x) if x[0] == 9 else x

    layers = [layer]
    profile = profile_of(layers, X, [X], worst=0.05)
    with plain(layers, profile=profile, tell=tell, period=0.07, deadline=0.07, nodes=Nodes(Fixed((ONE,)))) as pipe:  # fmt: skip
        release = lambda x: pipe.nodes.release(pipe._tenant, x, 0.0)  # noqa: E731
        release(X).result()
        late = release(np.full(4, 9.0))
        gate.entered()
        heard.acquire()  # the watchdog sees it: nobody has opened the gate
        assert "layer 0 (layer) of net is still running after" in told[0]
        assert "at most 60 when it was measured" in told[0]
        assert "not promised until it behaves again" in told[0]
        assert pipe.report().demoted
        gate.open()
        late.result()
        for _ in range(AMENDS):
            assert pipe.report().demoted
            release(X).result()
        heard.acquire()
        assert told[1] == "pipeline net has behaved for a while: its deadline counts again."
        assert len(told) == 2
    report = pipe.report()
    assert not report.demoted
    assert report.overruns == 1
    assert "1 had a layer that took longer than measured." in str(report)
    assert "It lost its deadline 1 times for that, and has it again." in str(report)


def test_a_second_loss_soon_after_is_in_the_report_only(tmp_path: Path) -> None:
    """P6: on a busy machine a class is lost and had again time after time: one line each is noise."""
    gate = Gate(tmp_path, "gate")
    told: list[str] = []
    layers = [lambda x: gate(x) if x[0] == 9 else x]
    profile = profile_of(layers, X, [X], worst=0.02)
    nodes = Nodes(Fixed((ONE,)))
    with plain(layers, profile=profile, tell=told.append, period=0.07, deadline=0.07, nodes=nodes) as pipe:  # fmt: skip
        release = lambda x: nodes.release(pipe._tenant, x, 0.0)  # noqa: E731
        pace = threading.Event()
        for losses in (1, 2):
            late = release(np.full(4, 9.0))
            gate.entered()
            while pipe.report().losses < losses:
                pace.wait(0.005)
            gate.open()
            late.result()
            for _ in range(AMENDS):
                release(X).result()
    assert len(told) == 2  # lost, and had again
    events = pipe.report().events
    assert sum("is not promised until" in text for text in events) == 2
    assert sum("its deadline counts again" in text for text in events) == 2


def test_without_its_class_jobs_come_one_at_a_time(tmp_path: Path) -> None:
    """P6: best effort is no place to pile them up; ticks are skipped and counted until the job before is done."""
    gate, pace = Gate(tmp_path, "gate"), threading.Event()
    layers = [lambda x: gate(x) if x[0] == 9 else x]
    inputs = itertools.chain([np.full(4, 9.0)], itertools.repeat(X))
    profile = profile_of(layers, X, [X], worst=0.03)
    with plain(layers, profile=profile, tell=lambda _: None, period=0.05, deadline=0.05) as pipe:
        results = pipe.every_period(inputs)
        first = threading.Thread(target=next, args=(results,))
        first.start()
        gate.entered()
        while not pipe.report().demoted:
            pace.wait(0.005)
        on_their_way = pipe.report().releases
        while pipe.report().skipped < 5:
            pace.wait(0.005)
        assert pipe.report().releases <= on_their_way + 1  # one tick may have asked before
        gate.open()
        first.join()
        while pipe.report().demoted:
            next(results)
        results.close()  # type: ignore[attr-defined]


def test_after_a_delay_jobs_do_not_come_at_once() -> None:
    """P12: what held one up holds up the next, so that they are a period apart (but for LATE); a grid that keeps its time is left alone."""
    tenant = Tenant(0, Task("net", Kind.RT, (), 0.1, 0.1), chain([lambda x: x], X), [payload.form_of(X)] * 2, X)  # fmt: skip
    released = [Flight(number, X, 5 + number / 10, Future()) for number in range(3)]
    tenant.waiting.extend(released)
    launches, now = [], 5.25  # nothing could be launched until then
    while tenant.waiting:
        now = max(now, tenant.due)
        launches.append(now)
        tenant.waiting.popleft()
        tenant.launched(now)
    tenant.close()
    assert launches == pytest.approx([5.25, 5.25 + 0.1 - LATE, 5.25 + 2 * (0.1 - LATE)])
    assert tenant.apart == pytest.approx(5.25 + 3 * (0.1 - LATE))


def test_a_grid_that_was_held_up_is_on_its_ticks_again_at_once(tmp_path: Path) -> None:
    """P12: what cannot be in time any more is skipped and counted; those after it come on their ticks, in order, and in time."""
    gate = Gate(tmp_path, "gate")
    nodes = Nodes(Fixed((ONE,)))
    layers = [lambda x: x]
    hog_layers = [lambda x: gate(x) if x[0] == 9 else x]
    profile = profile_of(layers, X, worst=0.02)
    with Pipeline(layers, X, name="net", nodes=nodes, period=0.05, deadline=0.045, profile=profile) as pipe:  # fmt: skip
        hog = Pipeline(hog_layers, X, name="hog", class_="BE", nodes=nodes, profile=profile_of(hog_layers, X, [X]))  # fmt: skip
        results = pipe.every_period(np.full(4, float(n)) for n in itertools.count())
        seen = [next(results)[0] for _ in range(3)]
        slow = hog.submit(np.full(4, 9.0))
        gate.entered()
        pace, before = threading.Event(), pipe.report().skipped
        while pipe.report().skipped < before + 4:
            pace.wait(0.005)  # all slots are taken: who waits for one is late
        gate.open()
        slow.result()
        seen += [next(results)[0] for _ in range(8)]  # the slots of before
        after = pipe.report()
        seen += [next(results)[0] for _ in range(20)]
        results.close()  # type: ignore[attr-defined]
        hog.close()
        report = pipe.report()
    assert seen == sorted(seen)
    assert after.misses >= 4
    assert report.misses <= after.misses + 2  # was nearly 20, each of them


def test_the_others_go_before_one_that_overran(tmp_path: Path) -> None:
    """P6: a weightier task that has lost its class waits for a light one's deadline."""
    gate, order = Gate(tmp_path, "gate"), []
    nodes = Nodes(Fixed((ONE,)))
    heavy_layers = [lambda x: gate(x) if x[0] == 9 else x, lambda x: x]
    light_layers = [lambda x: x]
    heavy = Pipeline(heavy_layers, X, name="heavy", weight=9, nodes=nodes, period=60, deadline=50, tell=lambda _: None, profile=profile_of(heavy_layers, X, [X] * 2, worst=0.02))  # fmt: skip
    light = Pipeline(light_layers, X, name="light", nodes=nodes, period=60, deadline=50, profile=profile_of(light_layers, X, worst=5))  # fmt: skip
    with heavy, light:
        one = heavy.submit(np.full(4, 9.0))
        gate.entered()
        pace = threading.Event()
        while not heavy.report().demoted:
            pace.wait(0.005)
        two = light.submit(X)
        one.add_done_callback(lambda _: order.append("heavy"))
        two.add_done_callback(lambda _: order.append("light"))
        gate.open()
        one.result()
        two.result()
    assert order == ["light", "heavy"]


def test_who_has_no_core_has_not_overrun() -> None:
    """P6: a layer is late by a stranger on its core: that is counted and said, and nobody is punished."""
    core = min(os.sched_getaffinity(0))

    def layer(x: Any) -> Any:
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass
        return x

    told: list[str] = []
    layers = [layer]
    profile = profile_of(layers, X, [X], worst=0.12)
    nodes = Nodes(Fixed((ONE,)))
    rival = f"os.sched_setaffinity(0, [{core}]); say('there')\nwhile True: pass"
    with plain(layers, nodes=nodes, profile=profile, tell=told.append) as pipe, Program(rival) as other:  # fmt: skip
        assert other.said() == ["there"]
        assert nodes.row[0].cores == [core]
        nodes.release(pipe._tenant, X, time.monotonic()).result()
    report = pipe.report()
    assert report.longest > 0.15
    assert (report.overruns, report.disturbed, told) == (0, 1, [])
    assert "1 had to wait for a core that somebody else was on" in str(report)


def test_a_report_says_what_became_of_it() -> None:
    """Figures, text, HTML, picture; the same after the end."""
    with plain([lambda x: x], period=0.05, deadline=0.05, nodes=Nodes(Fixed((ONE,), bounds={"net": 0.04}))) as pipe:  # fmt: skip
        list(pipe.every_period([X] * 20))
        live = pipe.report()
    report = pipe.report()
    assert live.done == report.done == len(report.responses) == 20
    assert report.bound == 0.04
    p50, p99 = report.percentile(50), report.percentile(99)
    assert p50 is not None
    assert p99 is not None
    assert 0 < p50 <= p99 <= report.longest <= report.longest_delivered
    assert report.misses == sum(one > 0.05 for one in report.responses)
    text = str(report)
    assert text.startswith("Pipeline net (RT, every 50 ms)\n")
    assert "layer 0 on node 0 (c1)" in text
    assert "<table" in report._repr_html_()
    (axes,) = report.plot().axes
    assert sum(bar.get_height() for bar in axes.patches) == 20
    assert len(axes.lines) == 2
    with pytest.raises(UserError, match="pipeline net is closed"):
        pipe.submit(X)


def test_responses_have_an_end_and_the_longest_is_known() -> None:
    """Of very many the latest are kept."""
    responses = Responses(most=3)
    for seconds in (9.0, 1.0, 2.0, 3.0, 4.0):
        responses.add(seconds)
    assert sorted(responses.kept()) == [2, 3, 4]
    assert (responses.count, responses.longest) == (5, 9)


def test_bad_input_is_refused_where_it_is_given() -> None:
    """Before any process is started, but for the form of an input, which needs the open pipeline."""
    with pytest.raises(BadDeclaration, match="class must be RT"):
        plain([abs], class_="fast")
    with pytest.raises(BadTime, match="'soon' is not a time"):
        plain([abs], period="soon")
    with pytest.raises(BadDeclaration, match="pipeline net: deadline 2 s is later than its period"):
        plain([abs], period=1, deadline=2)
    with pytest.raises(BadDeclaration, match="weight must be above 0"):
        plain([abs], weight=0)
    with pytest.raises(BadDeclaration, match="more than its deadline"):
        plain([abs], period=1, deadline=1, profile=profile_of([abs], X, worst=2.0))
    with pytest.raises(BadModel, match="must be of its 2 layers"):
        plain([abs, np.negative], profile=profile_of([abs], X))
    with plain([abs]) as pipe, pytest.raises(ShapeChanged, match=r"the input of net must be array 4 <f8.*not array 5 <f8"):  # fmt: skip
        pipe.submit(np.zeros(5))


def test_names_are_taken_once() -> None:
    """And are free again afterwards."""
    nodes = Nodes(Fixed((ONE,)))
    with plain([abs], nodes=nodes), pytest.raises(UserError, match="of that name is open"):
        plain([abs], nodes=nodes)
    plain([abs], nodes=nodes).close()


def test_a_callback_may_close_the_last_one() -> None:
    """It runs in the thread that reads: nothing waits for itself."""
    pipe = plain([lambda x: x], class_="BE")
    closed = threading.Event()

    def close(_: Any) -> None:
        pipe.close()
        closed.set()

    pipe.submit(X).add_done_callback(close)
    assert closed.wait(60)


def test_a_job_that_cannot_be_sent_fails_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P7: whatever happens where its input is written, its future says so; its slot is free again, and closing waits for nothing."""
    write, failures = payload.write, [MemoryError("no room")]

    def failing(value: Any, memory: memoryview) -> payload.Form:
        if failures:
            raise failures.pop()
        return write(value, memory)

    with opened(Nodes(Fixed((ONE,))), "net", [abs]) as pipe:
        monkeypatch.setattr(payload, "write", failing)
        with pytest.raises(MemoryError, match="no room"):
            pipe.submit(X).result(60)
        assert len(pipe._tenant._free) == SLOTS
        assert not pipe._tenant.flights
    report = pipe.report()
    assert (report.releases, report.failed) == (1, 1)


def test_a_value_that_is_too_large_is_its_own_job_only() -> None:
    """P7, P11: also where it is sent later, by the thread that keeps the time; who is told then may ask for more."""
    nodes, again = Nodes(Fixed((ONE,))), []
    profile = profile_of([str.lower], "A", ["a"], worst=0.01)
    with Pipeline([str.lower], "A", period=0.05, deadline=0.05, nodes=nodes, profile=profile) as pipe:  # fmt: skip
        first = pipe.submit("B")
        large = pipe.submit("C" * 100_000)
        large.add_done_callback(lambda _: again.append(pipe.submit("D")))
        assert first.result(60) == "b"
        with pytest.raises(ShapeChanged, match="must fit"):
            large.result(60)
        eventually(lambda: bool(again))
        assert again[0].result(60) == "d"


def test_who_submits_runs_no_callback_of_another_job() -> None:
    """It may submit to the same pipeline, which is being submitted to: that is the reader's to run."""
    nodes, again = Nodes(Fixed((ONE,))), []
    fell: Future[Any] = Future()
    with opened(nodes, "net", [abs], class_="BE") as pipe:
        fell.add_done_callback(lambda _: again.append((threading.current_thread().name, pipe.submit(X))))  # fmt: skip
        nodes._fallen.append((fell, ValueError("it fell meanwhile")))
        pipe.submit(X).result(60)
        eventually(lambda: bool(again))
        ((thread, future),) = again
        future.result(60)
    assert thread.startswith("gpushare-")


class Sour:
    """What some layers give: it cannot be read again where it was made of 1."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return (_spoilt if self.value == 1 else Sour, (self.value,))


def _spoilt(_: float) -> None:
    msg = "it is sour"
    raise ValueError(msg)


def test_a_result_that_cannot_be_read_here_is_an_error_of_its_job() -> None:
    """P7: the thread that hears what nodes say goes on."""
    model = [lambda x: Sour(float(x[0]))]
    profile = profile_of(model, X, [Sour(0.0)])
    with Pipeline(model, X, class_="BE", nodes=Nodes(Fixed((ONE,))), profile=profile) as pipe:
        with pytest.raises(ValueError, match="it is sour"):
            pipe.submit(X + 1).result(60)
        assert pipe.submit(X + 2).result(60).value == 2


def test_each_release_that_is_done_is_said(tmp_path: Path) -> None:
    """W3: with how many are still out, and not before the next one was released: else others would run between them."""
    said: list[tuple[str, int]] = []

    class Hears(Fixed):
        def released(self, task: Task) -> None:
            said.append(("released", 0))

        def done(self, task: Task, left: int) -> None:
            said.append(("done", left))

    gate = Gate(tmp_path, "gate")
    with opened(Nodes(Hears((ONE,))), "net", [gate], [gate]) as pipe:
        pipe._tenant.task = replace(pipe.task, period=0.01)
        pipe.task = pipe._tenant.task
        first, second = pipe.submit(X), pipe.submit(X)
        eventually(lambda: len(said) == 2)
        for future in (first, second):
            gate.pass_one()
            future.result(60)
    assert said == [("released", 0), ("released", 0), ("done", 1), ("done", 0)]
