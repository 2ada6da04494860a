"""The line of a declared cell in real kernels: one place, from waiting to what stays; the test plays the broker."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from nbconvert import HTMLExporter

from gpushare_kernel.wire import cell_texts, texts
from gpushare_kernel.wire.messages import Cancel, End, Failure, Submit, Waiting
from tests.client.scripted_broker import Peer, ScriptedBroker, report
from tests.magics.conftest import ROOT, STARTUP, Kernel, text_of
from tests.magics.test_kernel import LINE, WAIT
from tests.magics.test_shell import play

Message = dict[str, Any]
USED = "used 5.2 GiB; next time: %%gpulane 6GiB"
STEPS = """%%gpulane 6GiB
import pathlib, time
import gpushare_kernel as gpushare
def rounds():
    for n in range(100):
        if n == 7:
            print("seven", flush=True)
            while not pathlib.Path("go").exists(): time.sleep(0.02)
        yield n
class Sized:
    __iter__ = lambda self: rounds()
    __len__ = lambda self: 100
for _ in gpushare.current_lane().steps(Sized()): pass
"""


def is_row(out: Message) -> bool:
    return out["msg_type"] in ("display_data", "update_display_data")


def kind(out: Message) -> tuple[str, str]:
    """How something was shown, and where."""
    return out["msg_type"], out["content"]["transient"].get("display_id")


def admit(broker: ScriptedBroker) -> tuple[Peer, Submit]:
    """Take a kernel's next job and let it run."""
    peer = broker.accept()
    number, asked = peer.expect(Submit)
    peer.grant(number, asked)
    return peer, asked


def finish(peer: Peer, asked: Submit) -> None:
    """Answer the job's end."""
    number, _ = peer.expect(End)
    peer.reply(number, report(asked.job))


def until(outputs: Iterator[Message], seen: list[Message], pattern: str) -> str:
    """Read outputs until a line of the row says this."""
    for out in outputs:
        seen.append(out)
        if is_row(out) and re.search(pattern, text_of(out)[0]):
            return text_of(out)[0]
    raise AssertionError((pattern, [text_of(out) for out in seen]))


def test_waiting_then_running_then_what_stays(
    broker: ScriptedBroker, kernel: Kernel, tmp_path: Path
) -> None:
    """One display changes: why it waits, how far its loop is, what it took. It has text and HTML, and comes before what the cell prints."""
    peer = broker.accept()
    message = kernel.start(STEPS)
    number, asked = peer.expect(Submit)
    peer.notice(Waiting(asked.job, WAIT))
    outputs, seen = kernel.outputs(message), []
    assert until(outputs, seen, "^Waiting for") == LINE
    peer.grant(number, asked)
    running = until(outputs, seen, "step 7 of 100")
    assert re.match(r"Running( \d+ s)? · step 7 of 100(, .+)? · holds .+ of 6.0 GiB$", running)
    (tmp_path / "kernel0/go").touch()
    finish(peer, asked)
    seen += list(outputs)
    rows = [out for out in seen if is_row(out)]
    (place,) = {kind(out)[1] for out in rows}
    assert place
    assert [kind(out)[0] for out in rows] == ["display_data", *["update_display_data"] * (len(rows) - 1)]  # fmt: skip
    assert text_of(rows[-1]) == [USED]
    for out in rows:
        assert set(out["content"]["data"]) == {"text/plain", "text/html"}
    html = rows[-1]["content"]["data"]["text/html"]
    assert "<code>%%gpulane 6GiB</code>" in html
    assert not re.search(r"<script|\bid=|https?:|url\(", html)
    order = [out["msg_type"] for out in seen if is_row(out) or out["msg_type"] == "stream"]
    assert order.index("display_data") < order.index("stream")
    lines = [text_of(out)[0] for out in rows]
    assert all(one != other for one, other in pairwise(lines))


@pytest.mark.parametrize("end", ["raise ValueError('mine')", "interrupt"])
def test_an_end_by_error_replaces_it_too(broker: ScriptedBroker, kernel: Kernel, end: str) -> None:
    """Whatever ends the cell, the line says what it took, and the error is the cell's own."""
    body = "print('in', flush=True)\nimport time; time.sleep(60)" if end == "interrupt" else end
    message = kernel.start(f"%%gpulane 6GiB\n{body}")
    peer, asked = admit(broker)
    outputs, seen = kernel.outputs(message), []
    for out in outputs:
        seen.append(out)
        if text_of(out) == ["in"]:
            kernel.manager.interrupt_kernel()
        if end != "interrupt" or text_of(out) == ["in"]:
            break
    finish(peer, asked)
    seen += list(outputs)
    rows = [out for out in seen if is_row(out)]
    assert text_of(rows[0])[0].startswith("Running")
    assert text_of(rows[-1]) == [USED]
    assert len({kind(out)[1] for out in rows}) == 1
    (error,) = [out["content"]["ename"] for out in seen if out["msg_type"] == "error"]
    assert error == ("KeyboardInterrupt" if end == "interrupt" else "ValueError")


def test_a_place_given_up_is_no_line_that_waits(broker: ScriptedBroker, kernel: Kernel) -> None:
    """Interrupted in the queue, the line waits no more."""
    peer = broker.accept()
    message = kernel.start("%%gpulane 6GiB\nprint('ran')")
    number, asked = peer.expect(Submit)
    peer.notice(Waiting(asked.job, WAIT))
    outputs, seen = kernel.outputs(message), []
    until(outputs, seen, "^Waiting for")
    kernel.manager.interrupt_kernel()
    peer.expect(Cancel)
    peer.reply(number, Failure("Cancelled", "left the queue"))
    seen += list(outputs)
    rows = [out for out in seen if is_row(out)]
    assert re.fullmatch(r"Waited .+ s\.", text_of(rows[-1])[0])
    assert [kind(out)[0] for out in rows] == ["display_data", "update_display_data"]


def test_cleared_outputs(broker: ScriptedBroker, kernel: Kernel, tmp_path: Path) -> None:
    """A cell that clears its output, as live plots do, is left alone from then on, and has its record at the end."""
    message = kernel.start(
        "%%gpulane 6GiB\n"
        "import pathlib, time\nfrom IPython.display import clear_output\nclear_output(wait=True)\n"
        "print('frame', flush=True)\nwhile not pathlib.Path('go').exists(): time.sleep(0.02)"
    )
    peer, asked = admit(broker)
    outputs, seen = kernel.outputs(message), []
    for out in outputs:
        seen.append(out)
        if text_of(out) == ["frame"]:
            (tmp_path / "kernel0/go").touch()
            finish(peer, asked)
    rows = [out for out in seen if is_row(out)]
    assert [kind(out)[0] for out in rows] == ["display_data", "update_display_data", "display_data"]
    assert [text_of(out)[0] for out in rows[1:]] == [USED, USED]
    assert seen.index(rows[-1]) > [out["msg_type"] for out in seen].index("clear_output")


def test_a_console_gets_lines(broker: ScriptedBroker, kernel: Kernel) -> None:
    """A front end that names no cell and can be asked for input shows no changes: it is sent what it took as a line of its own."""
    message = kernel.client.execute("%%gpulane 6GiB\nprint('in')", allow_stdin=True)
    peer, asked = admit(broker)
    finish(peer, asked)
    rows = [out for out in kernel.outputs(message) if is_row(out)]
    assert [(text_of(out), kind(out)[0]) for out in rows] == [([USED], "display_data")]
    assert set(rows[0]["content"]["data"]) == {"text/plain"}


def test_a_console_gets_no_widgets(broker: ScriptedBroker, kernel: Kernel) -> None:
    """`jupyter console` has the picture, and that it will not change; a notebook has the view."""
    broker.serve(play)
    message = kernel.client.execute("%gpushare live", allow_stdin=True)
    picture, said = [out["content"]["data"] for out in kernel.outputs(message) if is_row(out)]
    assert "text/html" in picture
    assert said == {"text/plain": texts.LIVE_STANDS_STILL}
    message = kernel.client.execute("%gpushare notify on", allow_stdin=True)
    (error,) = [text_of(out) for out in kernel.outputs(message) if out["msg_type"] == "error"]
    assert cell_texts.NOBODY_TO_NOTIFY in error[-1]
    (view,) = [
        out["content"]["data"]
        for out in kernel.outputs(kernel.start("%gpushare live"))
        if is_row(out)
    ]
    assert "application/vnd.jupyter.widget-view+json" in view


def test_captured_outputs_are_what_stays(broker: ScriptedBroker, kernel: Kernel) -> None:
    """`%%capture` keeps the record, and none of what it replaced."""
    broker.serve()
    shown = kernel.run("%%capture seen\n%%gpulane 6GiB\nprint('inside')")
    assert shown == []
    assert kernel.run("[one.data for one in seen.outputs]") == [str([{"text/plain": USED}])]


def test_lanes_in_cells_in_cells(broker: ScriptedBroker, kernel: Kernel) -> None:
    """A declared cell that runs a declared cell has one line."""
    broker.serve()
    message = kernel.start("%%gpulane 6GiB\n_ = get_ipython().run_cell('%%gpulane 1GiB\\n1')")
    rows = [out for out in kernel.outputs(message) if is_row(out)]
    assert len({kind(out)[1] for out in rows}) == 1
    assert text_of(rows[-1]) == [USED]


def test_off_is_silent(broker: ScriptedBroker, kernel: Kernel) -> None:
    """After `%gpushare off` a declared cell shows nothing of ours."""
    broker.serve()
    kernel.run("%gpushare off")
    assert kernel.run("%%gpulane 6GiB\nprint('in')") == ["in"]


@pytest.fixture
def executed(
    broker: ScriptedBroker,
    kernel_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Any:
    """A notebook run by nbclient, as papermill does it."""
    startup = tmp_path / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    monkeypatch.delenv("GPUSHARE_ROOT", raising=False)  # of a shell in this process
    (startup / STARTUP.name).write_bytes(STARTUP.read_bytes())
    for name, value in {**kernel_environment, "IPYTHONDIR": str(tmp_path / "ipython")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "magics"))))
    broker.serve()
    cells = [nbformat.v4.new_code_cell(STEPS), nbformat.v4.new_code_cell("'after'")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    (tmp_path / "go").touch()
    nbclient.NotebookClient(
        notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    return notebook


def test_an_executed_notebook_holds_what_stays(executed: Any) -> None:
    """Run by nbclient and converted, the cell has its record and what it printed, and nothing of the way there."""
    first, *printed = executed.cells[0].outputs
    assert first["data"]["text/plain"] == USED
    assert [out["output_type"] for out in printed] == ["stream"]
    html, _ = HTMLExporter().from_notebook_node(executed)
    assert html.count("used 5.2 GiB") == 1
    assert "Running" not in re.sub(r"<style.*?</style>|<script.*?</script>", "", html, flags=re.S)
    assert "display_id" not in json.dumps(executed)


def test_a_terminal_gets_text(
    broker: ScriptedBroker,
    kernel_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """IPython in a terminal writes lines: no HTML, no carriage return, nothing while the cell runs."""
    monkeypatch.delenv("GPUSHARE_ROOT", raising=False)
    broker.serve()
    code = "%load_ext gpushare_magics\nget_ipython().run_cell_magic('gpulane', '6GiB', 'print(40 + 2)')"
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=nocolor", "-c", code],
        env={**os.environ, **kernel_environment, "IPYTHONDIR": str(tmp_path / "ipython")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"42\n{USED}\n"
