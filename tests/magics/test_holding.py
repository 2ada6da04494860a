"""`%gpushare memory` on a host, and the report as text and as HTML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator

import pytest
from gpushare_magics import holding
from gpushare_magics.holding import Report, Row
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

from gpushare_kernel.client import api
from gpushare_kernel.client.holders import Found, Holder, Kind
from gpushare_kernel.core.values import GiB, MiB
from tests.client.scripted_broker import ScriptedBroker
from tests.magics.conftest import Kernel
from tests.magics.test_shell import Capture, play

Run = Callable[..., ExecutionResult]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
    broker: ScriptedBroker,
    kernel_environment: dict[str, str],
    shell: InteractiveShell,
) -> Iterator[Run]:
    """Run cells in a shell of ours on a host without a GPU."""
    for name, value in kernel_environment.items():
        monkeypatch.setenv(name, value)
    broker.serve(play)
    shell.run_line_magic("load_ext", "gpushare_magics")
    assert api._session is not None
    api._session.wait_attached(20)
    yield shell.run_cell
    shell.reset()


def shown(run: Run, capsys: Capture, words: str = "") -> list[str]:
    capsys.readouterr()
    assert run(f"%gpushare memory{words}").success
    return capsys.readouterr().out.splitlines()


def test_the_memory_of_a_process(run: Run, capsys: Capture) -> None:
    """Without a GPU it says what it counts: torch's tensors and NumPy's arrays, and all the rest in one number."""
    run("import torch, numpy; model = torch.nn.Linear(4096, 2048, bias=False)")
    run("table = numpy.ones((2048, 1024)); table", store_history=True)
    title, line, *_ = shown(run, capsys)
    assert re.fullmatch(
        r"No GPU here: memory of this notebook's process, [\d.]+ [MG]iB\. "
        r"Counted are NumPy arrays, and torch tensors and JAX arrays on the CPU",
        title,
    )
    assert line.startswith("model 32 MiB · table 16 (also Out[1])")


def test_the_frames_of_an_error_are_let_go(run: Run, capsys: Capture) -> None:
    """The memory comes back, the user's names stay, and the second time there is nothing."""
    assert shown(run, capsys, " --free") == ["No error holds memory here."]
    run("import numpy; kept = numpy.ones((1024, 1024))")
    run(
        "def f():\n    x = numpy.ones((4096, 1024))\n    raise ValueError\nf()",
        store_history=True,
    )
    assert "traceback of cell 1 32 MiB [free] · kept 8" in shown(run, capsys)[1]
    (said,) = shown(run, capsys, " --free")
    assert re.match(
        r"[34]\d MiB of memory came back\. The frames of the last error are cleared", said
    )
    assert "traceback" not in "".join(shown(run, capsys))
    assert run("assert kept.sum() == 1024 * 1024").success


def test_it_needs_no_broker(run: Run, broker: ScriptedBroker, capsys: Capture) -> None:
    """One's own memory can be looked at while the broker is away."""
    run("import numpy; kept = numpy.ones((1024, 1024))")
    broker.close()
    lines = shown(run, capsys)  # that the broker is away may be said in between
    assert [line for line in lines if line.startswith("kept 8 MiB")]


def test_in_a_real_kernel(broker: ScriptedBroker, kernel: Kernel) -> None:
    """HTML beside the text; the cell's own number; results under their own name; IPython's things are nobody's."""
    broker.serve(play)
    assert kernel.run("import numpy\nimport torch") == []
    kernel.run("grown = torch.ones(1024, 1024)\ngrown[0, :2]")
    kernel.run("def f(x):\n    y = x + 1\n    raise ValueError\nf(numpy.ones((2048, 1024)))")
    kernel.run("numpy.ones((1024, 1024), numpy.uint8)")
    (out,) = [o for o in kernel.outputs(kernel.start("%gpushare memory")) if o["msg_type"] == "display_data"]  # fmt: skip
    line = out["content"]["data"]["text/plain"].splitlines()[1]
    assert line.startswith("traceback of cell 3 32 MiB [free] · grown 4 (also Out[2]) · Out[4] 1")
    ET.fromstring(out["content"]["data"]["text/html"])
    freed = kernel.run("%gpushare memory --free")
    assert re.match(r"\d+ MiB of memory came back\.", freed[0])
    assert kernel.run("%gpushare memory")[1].startswith("grown 4 MiB (also Out[2]) · Out[4] 1")
    kernel.run("%reset -f out")
    assert kernel.run("%gpushare memory")[1].startswith("grown 4 MiB · everything")


# --- The report ----------------------------------------------------------------------------------------------------


def holder(label: str, size: int, kind: Kind = Kind.NAME, **more: object) -> Holder:
    return Holder(label, kind, size, 3, "Linear", **more)  # type: ignore[arg-type]


FOUND = Found(
    (
        holder("model", 2150 * MiB, also=(("optimizer", GiB), ("Out[3]", 1), ("x", 1), ("y", 1))),
        holder("Out[12]", GiB, Kind.RESULT),
        holder("traceback of cell 14", 6350 * MiB, Kind.ERROR),
    ),
    cut=False,
)


def test_the_line_reads_as_people_say_it() -> None:
    """The unit once; marks for what can be let go."""
    report = holding.on_gpu(FOUND, 13 * GiB, 10 * GiB, 3 * GiB, {"jax": 2 * GiB})
    assert holding.text(report).splitlines() == [
        "GPU memory of this notebook: 13.0 GiB, its context apart",
        "model 2.1 GiB (also optimizer, Out[3], x, 1 more) · Out[12] 1.0 · traceback of cell 14 6.2 [free] · "
        "no name 716 MiB · unused 3.0 [%gpushare release] · unused (jax) 2.0",
        "[free]: %gpushare memory --free lets go of it.",
    ]


def test_the_table_says_how_to_let_go() -> None:
    """One row each; it is well-formed, and needs no script and nothing from elsewhere."""
    html = holding.html(holding.on_gpu(FOUND, 13 * GiB, 10 * GiB, 3 * GiB, {"jax": 2 * GiB}))
    table = ET.fromstring(html)
    rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    assert [row[0] for row in rows] == [
        "held by",
        "modelLinear, 3 arrays",
        "Out[12]Linear, 3 arrays",
        "traceback of cell 14Linear, 3 arrays",
        "no nameof no variable: what runs, libraries, garbage",
        "unusedkept by the frameworks for later",
        "unused (jax)kept until the kernel restarts",
    ]
    assert [row[2] for row in rows][1:] == [
        "del model",
        "%reset -f out",
        "%gpushare memory --free",
        "",
        "%gpushare release",
        "restart the kernel",
    ]
    assert (rows[1][1], rows[1][3]) == ("2.1 GiB", "optimizer, Out[3], x, 1 more")
    assert not re.search(r"<script|<style|src=|href=|url\(", html)


def test_hostile_names_stay_text() -> None:
    """A class may be called anything."""
    evil = '</td><script>alert("x")</script>\u202e'
    html = holding.html(Report(evil, (Row(evil, GiB, evil, evil, evil),), (evil,)))
    assert "<script" not in html
    ET.fromstring(html)
    assert html.count("<bdi>") == 4


def test_little_and_nothing() -> None:
    """What allocators round up is not told; an empty notebook says so; more than a page is summed up."""
    nothing = holding.on_gpu(Found((), cut=False), 0, 1000, 1000, {})
    assert holding.text(nothing).splitlines()[1:] == ["No array or tensor holds GPU memory."]
    assert "No array or tensor holds GPU memory." in holding.html(nothing)
    many = Found(tuple(holder(f"x{n}", GiB) for n in range(20)), cut=True)
    text = holding.text(holding.on_host(many, 20 * GiB))
    assert "· x11 1.0 · 8 more 8.0\n" in text
    assert text.endswith("what was not found is under no name.")
