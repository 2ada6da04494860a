"""`%%gpulane --class RT`: what the line says, the pipeline that the cell has, and what is shown after it. No broker runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gpushare_magics.args import Declaration, RealTime, next_line, parse
from IPython.core.error import UsageError
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

from gpushare_kernel.client import display
from gpushare_kernel.client.shown import Report
from gpushare_kernel.core.errors import BadDeclaration, BadTime
from gpushare_kernel.realtime import shared_nodes

Run = Callable[[str], ExecutionResult]
Capture = pytest.CaptureFixture[str]
LINE = "%%gpulane --class RT --period 1s --deadline 900ms"


@pytest.fixture
def run(shell: InteractiveShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run cells in a shell that has a model and an example; no node is left behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert shell.extension_manager is not None
    shell.extension_manager.load_extension("gpushare_magics")
    shell.user_ns.update(net=[np.negative, np.abs], frame=np.arange(3.0), seen=[])
    yield lambda cell: shell.run_cell(cell, store_history=False)
    assert shared_nodes.shared().types == ()


def test_a_line_is_read() -> None:
    """Times as they are written, names as they are."""
    given = parse("2GiB --class rt --period 33ms --deadline=0.03 --weight 2 --model net --input x")
    assert given == Declaration(size="2GiB", weight=2.0, realtime=RealTime(0.033, 0.03, "net", "x"))
    assert parse("--class BE 2GiB").realtime is None


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("--class fast", BadDeclaration, r"--class is RT \(with a deadline\) or BE .*, not FAST"),
        ("--class RT --period 33ms", BadDeclaration, "--class RT needs --deadline"),
        ("--class RT", BadDeclaration, "needs --period"),
        ("--period 33ms", BadDeclaration, "--period is for cells with a deadline"),
        ("--class RT --period 1s --deadline 1s --model net", BadDeclaration, "go together"),
        ("--class RT --period soon --deadline 1s", BadTime, "'soon' is not a time"),
    ],
)
def test_a_line_that_contradicts_itself_is_refused(text: str, error: type[Exception], says: str) -> None:  # fmt: skip
    """The rule, what was seen, what to write."""
    with pytest.raises(error, match=says):
        parse(text)


def test_the_line_for_next_time_keeps_the_deadline() -> None:
    """All of what was written."""
    text = "2GiB --class RT --period 33ms --deadline 30ms --model net --input x --weight 2"
    said = next_line(parse(text), Report("j1", *(0,) * 10))  # type: ignore[arg-type]
    assert "--class RT --period 33ms --deadline 30ms --model net --input x --weight 2" in said


def test_a_cell_has_its_pipe(run: Run, shell: InteractiveShell, capsys: Capture) -> None:
    """With the line's deadline and weight; afterwards it is closed, and what became of it is shown."""
    cell = "seen += [pipe(frame), pipe.task.period, pipe.task.deadline, pipe.task.weight, pipe.task.name]"  # fmt: skip
    assert run(f"{LINE} --weight 3 --name cam --model net --input frame\n{cell}").success
    answer, *said = shell.user_ns["seen"]
    np.testing.assert_array_equal(answer, [0, 1, 2])
    assert said == [1.0, 0.9, 3.0, "cam"]
    assert shell.user_ns["pipe"].report().done == 1
    out = capsys.readouterr().out
    assert "Pipeline cam (RT, every 1000 ms)" in out


def test_a_cell_opens_its_own(run: Run, shell: InteractiveShell, capsys: Capture) -> None:
    """It is as the line says, also where it is not closed."""
    cell = "import gpushare_kernel as gpushare\nmine = gpushare.realtime.Pipeline(net, frame)\nseen += [mine(frame), mine.task.deadline]"  # fmt: skip
    assert run(f"{LINE}\n{cell}").success
    assert shell.user_ns["seen"][1] == 0.9
    assert "Pipeline list-" in capsys.readouterr().out


def test_best_effort_beside_it_is_no_second_one(run: Run, shell: InteractiveShell) -> None:
    """It has no deadline, so the cell opens one that has."""
    cell = "import gpushare_kernel as gpushare\nother = gpushare.realtime.Pipeline(net, frame, class_='BE')\nmine = gpushare.realtime.Pipeline(net, frame)\nseen += [mine(frame), other(frame)]\nother.close()"  # fmt: skip
    assert run(f"{LINE}\n{cell}").success
    assert len(shell.user_ns["seen"]) == 2


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (f"{LINE}\nseen.append(1)", "must open exactly one gpushare.realtime.Pipeline, and opens 0"),
        (f"{LINE}\nseen.append(1)\nPipeline(a, b)\ngpushare.realtime.Pipeline(c, d)", "and opens 2"),
        (f"{LINE}\nseen.append(1)\ngpushare.realtime.Pipeline(net, frame, class_='BE')", "and opens 0"),
        (f"{LINE} --model gone --input frame\nseen.append(1)", "--model gone: there is no variable of that name"),
        (f"{LINE} --model net --input gone\nseen.append(1)", "--input gone: there is no variable"),
        ("%%gpulane --class RT --period 1s --deadline 2s --model net --input frame\nseen.append(1)", "later than its period"),
    ],
)  # fmt: skip
def test_what_cannot_have_a_deadline_does_not_run(run: Run, shell: InteractiveShell, capsys: Capture, cell: str, says: str) -> None:  # fmt: skip
    """It is said, and nothing of the cell has run."""
    assert not run(cell).success
    out = capsys.readouterr()
    assert says in out.out + out.err
    assert shell.user_ns["seen"] == []


def test_an_error_in_the_cell_ends_the_pipeline(run: Run, capsys: Capture) -> None:
    """Jobs on their way are not waited for; a second pipeline, and one that says another deadline, are such errors."""
    assert not run(f"{LINE} --model net --input frame\n1 / 0").success
    cell = "import gpushare_kernel as gpushare\nfor _ in range(2): gpushare.realtime.Pipeline(net, frame)"  # fmt: skip
    assert not run(f"{LINE}\n{cell}").success
    cell = (
        "import gpushare_kernel as gpushare\ngpushare.realtime.Pipeline(net, frame, deadline=0.5)"
    )
    assert not run(f"{LINE}\n{cell}").success
    out = capsys.readouterr().out
    assert "ZeroDivisionError" in out
    assert "a cell with --class RT has one pipeline" in out
    assert "the cell's line says --deadline 0.9, and its pipeline deadline=0.5" in out


def test_what_is_wrong_with_the_line_is_one_kind(run: Run, capsys: Capture) -> None:
    """It is shown in one way, whoever finds it."""
    for cell in (f"{LINE}\n1", f"{LINE} --model gone --input frame\n1", "%%gpulane --class RT --period 1s\n1", "%%gpulane --class RT --period 1s --deadline 2s --model net --input frame\n1"):  # fmt: skip
        assert isinstance(run(cell).error_in_exec, BadDeclaration)
        out = capsys.readouterr()
        assert sum(line.startswith("gpushare: ") for line in out.out.splitlines()) == 1
        assert "UsageError" not in out.out + out.err
    with pytest.raises(UsageError):
        raise run(f"{LINE}\n1").error_in_exec  # type: ignore[misc]


def test_a_wrong_input_is_one_line(run: Run, capsys: Capture) -> None:
    """The model itself as its input, say."""
    assert not run(f"{LINE} --model net --input net\n1").success
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("gpushare: ")]
    assert len(lines) == 1
    assert "fails with the example: TypeError" in lines[0]
    assert "Traceback" not in out


def test_an_interrupt_while_it_opens_is_one_line(run: Run, shell: InteractiveShell, capsys: Capture) -> None:  # fmt: skip
    """It has left no queue; the next cell has its pipe."""

    def put(text: str) -> None:
        if text.startswith("Proving"):
            raise KeyboardInterrupt

    display.use_steps(lambda: put)
    assert not run(f"{LINE} --name cam --model net --input frame\nseen.append(1)").success
    out = capsys.readouterr().out
    assert "gpushare: Interrupted: the pipeline of cam was opening, and is not open." in out
    assert "Traceback" not in out
    display.use_steps(None)
    assert run(f"{LINE} --name cam --model net --input frame\nseen.append(2)").success
    assert shell.user_ns["seen"] == [2]
