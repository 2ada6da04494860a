"""What stays of what a user prints: in a reopened notebook, in HTML and Markdown made of it, and where styles are taken out."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from gpushare_widgets import markup, plain, static, strips, words
from gpushare_widgets.scene import scene
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_code_cell, new_notebook, new_output
from rich.cells import cell_len

from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.client.lanes import Lane, Reports
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.values import GiB, JobId, MiB, SessionId
from gpushare_kernel.kernel_session import KERNEL_VARIABLES
from gpushare_kernel.transport.places import places
from gpushare_kernel.wire.messages import Attached, Report, Submit
from tests.widgets.snapshots import EMPTY, FULL, IDLE, NOW, SCREEN_BREAKERS, crowd, hostile

LIMIT = 60
VOID = {"br", "meta", "img", "hr", "input", "link"}
ASKS = re.compile(r"\b(src|href|on\w+|class|id)\s*=|url\(|var\(|@import|<(script|style|link|iframe|svg|img)", re.I)  # fmt: skip
REPORT = Report(JobId("j"), 75.0, 300.0, 240.0, 0.8, 2 * GiB, 1900 * MiB, 4 * GiB, 3 * GiB, 600, 42)
EVERYTHING = pytest.mark.parametrize("snapshot", [FULL, IDLE, EMPTY, crowd(200), hostile()], ids=["full", "idle", "empty", "crowd", "hostile"])  # fmt: skip


class Read(HTMLParser):
    """What a browser makes of HTML: the text, the tags, whether they close, and every attribute."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.seen.append(f"<{tag} {sorted(attrs)}>")
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        self.seen.append(data)


def sanitised(html: str) -> str:
    """What is left where a site allows neither styles nor frames: tags without attributes."""
    return re.sub(r"</?(?:div|span|bdi)\b[^>]*>", "", re.sub(r'\s(?:style|title|align)="[^"]*"', "", html))  # fmt: skip


@EVERYTHING
def test_html_needs_nothing(snapshot):
    """No script, no style sheet, no picture, nothing of Jupyter's; every tag closes; no blank line ends it in Markdown."""
    html = static.of_snapshot(snapshot, NOW).html
    read = Read(html)
    assert not read.open
    assert read.tags <= {"div", "p", "b", "small", "table", "tbody", "tr", "th", "td", "bdi", "br", "code", "span"}  # fmt: skip
    assert read.attributes <= {"style", "width", "align", "title"}
    assert not ASKS.search(re.sub(r">[^<]*<", "><", re.sub(r'title="[^"]*"', "", html)))
    assert not re.search(r"\n\s*\n", html)
    assert (
        "repeating-" not in html
    )  # JupyterLab takes those out of a notebook that it does not trust


@EVERYTHING
def test_html_and_text_say_the_same(snapshot):
    """Each cell of each table is in both, whole or cut."""
    record = static.of_snapshot(snapshot, NOW)
    shown = scene(snapshot, now=NOW)
    text = "".join(Read(record.html).text)
    for queued in shown.get("queue", ()):
        assert queued["text"] in text
        assert queued["text"] in record.text
    for device in shown.get("devices", ()):
        assert device["name"] in text
        assert device["name"] in record.text
    assert ("Nothing is shared here." in record.text) == (snapshot is EMPTY)


def test_what_administrators_say_is_kept_above_the_rest():
    """And below it what one's group allows, in HTML as in text."""
    record, shown = static.of_snapshot(FULL, NOW), scene(FULL, now=NOW)
    first, second = shown["news"]
    assert record.text.startswith(f"{first}\n{second}\n\n")
    assert shown["account"] in record.text
    read = re.sub(r"<[^>]+>", "\n", record.html)
    places = [read.index(said) for said in (first, second, "NVIDIA", shown["account"])]
    assert places == sorted(places)


def test_numbers_remain_where_styles_are_taken_out():
    """As GitHub does: memory, who ran, shares and why one waits are words in tables."""
    text = re.sub(r"<[^>]*>", " ", sanitised(static.of_snapshot(FULL, NOW).html))
    text = " ".join(text.split())
    for told in ("train.ipynb keeps 14.0 GiB", "9.0 of 12.0 GiB", "contexts 1.3 GiB", "old.ipynb 3.0 GiB", "desktop 410 MiB",
                 "14.0 s 3.0 s", "50% 25%", "needs 30.0 GiB, 24.0 free", "4.0 ms 0", "eyes 640 512 5.0 GiB", "As of 2026-"):  # fmt: skip
        assert told in text


def test_the_browser_says_it_in_the_same_words():
    """What the signs of a strip mean, and the headings, are live.js's."""
    script = Path(words.__file__).with_name("live.js").read_text("utf-8")
    (spans,) = re.findall(r"^const SPANS = \{(.+)\};$", script, re.MULTILINE)
    said = re.findall(r'\w+: "([^"]+)"', spans)
    assert len(said) == 4
    assert [sign.split(" ", 1)[1] for sign in words.LEGEND.split("  ")] == said
    titles = {table.title for table in words.tables(scene(FULL, now=NOW), width=80)}
    assert "Models that share pages" in titles
    for title in titles & {
        "Memory",
        "Waiting",
        "Notebooks",
        "Deadlines",
        "Models that share pages",
    }:
        assert f'"{title}"' in script


def test_hostile_names_stay_text():
    """Markup is shown, not obeyed; no formula begins in a name."""
    record = static.of_snapshot(hostile(), NOW)
    assert "<script>alert(1)</script>" in "".join(Read(record.html).text)
    assert "<script" not in record.html
    assert "<img" not in record.html
    assert not set(SCREEN_BREAKERS) & set(record.html)
    assert not (set(SCREEN_BREAKERS) - {"\n"}) & set(record.text)
    assert markup.escape("$x$ \\(y\\)").count("<span>") == 4
    assert "".join(Read(markup.escape("$x$ \\(y\\)")).text) == "$x$ \\(y\\)"


def test_text_is_tables():
    """Columns stand below each other, wide signs too; the memory's bar is to scale."""
    lines = plain.text(scene(FULL, now=NOW)).splitlines()
    bar = next(line for line in lines if line.startswith("["))
    assert cell_len(bar) == 80
    assert bar.count(".") / 78 == pytest.approx(24 / 79.9, abs=0.02)
    assert {bar.count(sign) for sign in "AGH"} == {1}
    assert (
        lines[lines.index(bar) + 3] == "B  train.ipynb       kept                         14.0 GiB"
    )
    for name in ("👩‍🔬🔥 ünï", "plain"):
        row = plain.table(static.Table("", ("a", "b"), ((name, "x"), ("wide enough here", "x"))))
        ends = {cell_len(line) for line in row.splitlines()[1:]}
        assert len(ends) == 1


def test_an_idle_device_is_one_line():
    """Where all is free there is nothing to draw."""
    assert plain.text(scene(IDLE, now=NOW), when=False) == (
        "AMD EPYC (CPU, no GPU) (host): shares 8.0 GiB of memory, 8.0 GiB free, policy fair"
    )


@pytest.mark.parametrize(
    ("spans", "signs"),
    [
        ([], "··········"),
        ([[10.0, 0.0, "turn"]], "██████████"),
        ([[10.0, 9.5, "turn"], [2.0, 1.0, "pause"], [1.0, 0.0, "park"]], "▅·······=≡"),
        ([[9.0, 8.9, "turn"], [9.0, 8.1, "drain"]], "·░········"),
        ([[1.0, 0.0, "dream"]], "·········█"),
        ([[99.0, -9.0, "turn"]], "██████████"),
    ],
)
def test_a_strip_of_time(spans, signs):
    """The oldest first; how much of each moment, or why it stood still."""
    assert strips.strip(spans, 10.0, 10) == signs


def test_every_piece_has_a_cell():
    """To scale otherwise, and all of them together are the width."""
    for sizes in ([1, 10**12, 5], [0, 3], [1] * 30, [7]):
        cells = strips.shares(sizes, 40)
        assert sum(cells) == 40
        assert all((count > 0) == (size > 0) for count, size in zip(cells, sizes, strict=True))
    assert strips.shares([1] * 50, 40) == [1] * 50
    assert strips.shares([0, 0], 40) == [0, 0]


def lane(**more: object) -> Lane:
    made = Lane(None, Submit(JobId("j"), "fit $x$ <b>", persistent=2 * GiB, ephemeral=GiB))
    for name, value in more.items():
        setattr(made, name, value)
    return made


def session(**more: object) -> SimpleNamespace:
    attached = Attached(SessionId("s"), "GPU-5f3c", "cuda", "NVIDIA H100", 78 * GiB, 1.0)
    return SimpleNamespace(**{"up": True, "attached": attached, "noun": "GPU memory", **more})


def test_a_report():
    """What it declared beside what it took."""
    text = static.of_report(REPORT).text
    assert "2.0 GiB + 4.0 GiB" in text
    assert "1.9 GiB + 3.0 GiB" in text
    assert "80%" in text
    assert static.of_reports(Reports([REPORT, REPORT])).html.count("<tr") == 3
    assert "Nothing has run yet" in static.of_reports(Reports()).text


def test_a_lane_and_a_session():
    """A lane that is left says what became of it; a session says what it knows without asking."""
    assert "What became of it" not in static.of_lane(lane()).text
    assert "not entered" in static.of_lane(lane()).text
    left = static.of_lane(lane(report=REPORT, _pid=-1))
    assert "left" in left.text
    assert "What became of it" in left.text
    assert "<b>" not in left.text.replace("<b>", "", 1)
    assert "NVIDIA H100 (GPU-5f3c)" in static.of_session(session()).text
    assert "as much as is free" in static.of_session(session()).text
    assert "away from the broker" in static.of_session(session(up=False, attached=None)).text


def notebook(folder: Path) -> Path:
    """Write a notebook that was run and saved: the records are its outputs."""
    data = [static.of_snapshot(one, NOW)._repr_mimebundle_() for one in (FULL, hostile())]
    outputs = [new_output("display_data", data=one) for one in data]
    made = new_notebook(cells=[new_code_cell("%gpushare live --static", outputs=outputs)])
    path = folder / "record.ipynb"
    nbformat.write(made, path)
    return path


@pytest.mark.parametrize(("kind", "ending"), [("html", "html"), ("markdown", "md")])
def test_nbconvert_keeps_it_without_network(tmp_path: Path, kind: str, ending: str):
    """Made by the command itself, in a process that can reach nobody; the record is in it as it was, tag by tag."""
    path = notebook(tmp_path)
    made = subprocess.run(
        [sys.executable, "-m", "jupyter", "nbconvert", "--to", kind, str(path)],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    page = path.with_suffix(f".{ending}").read_text()
    for snapshot in (FULL, hostile()):
        record = Read(static.of_snapshot(snapshot, NOW).html)
        assert "".join(record.seen) in "".join(Read(page).seen)
    if kind == "markdown":
        assert not (tmp_path / "record_files").exists()


def test_a_notebook_that_is_run_and_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a kernel of ours, with a broker: what its cells print is in the page, and nothing in it failed."""
    for name, folder in (("GPUSHARE_RUNTIME_DIR", "run"), ("IPYTHONDIR", "ipython"), ("JUPYTER_RUNTIME_DIR", "jupyter")):  # fmt: skip
        monkeypatch.setenv(name, str(tmp_path / folder))
    for name in KERNEL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "gpushare")
    cells = (
        "%load_ext gpushare_magics",
        "import gpushare_kernel as gpushare\nfrom gpushare_kernel.client.api import get_session",
        'with gpushare.lane(size="64MiB", name="fit <b>") as lane:\n    lane.step()',
        "%gpushare live --static",
        "lane",
        "gpushare.reports()",
        "get_session().snapshot()",
        "get_session()",
    )
    path = tmp_path / "run.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in cells]), path)
    ensure_broker(places(), LIMIT, ["--capacity", "1GiB", "--device", "host"])
    try:
        made = subprocess.run(
            [sys.executable, "-m", "jupyter", "nbconvert", "--execute", "--to", "notebook", "--inplace", str(path)],
            capture_output=True, text=True, check=False, timeout=2 * LIMIT,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
    finally:
        stop_broker(places(), LIMIT)
    shown = [
        ["".join(Read(one.data["text/html"]).text) for one in cell.outputs if "data" in one and "text/html" in one.data]
        for cell in nbformat.read(path, 4).cells
    ]  # fmt: skip
    assert [len(one) for one in shown[3:]] == [1] * 5
    live, lane_, reports, snapshot, session_ = (one[0] for one in shown[3:])
    assert "shares 1.0 GiB of memory" in live
    assert "As of 20" in live
    assert "Lane fit <b>" in lane_
    assert "What became of it" in lane_
    assert "What became of it" in reports
    assert "shares 1.0 GiB of memory" in snapshot
    assert "connected" in session_


def test_a_reopened_notebook_has_it(tmp_path: Path):
    """Without a kernel: nothing in the file refers to a widget."""
    saved = notebook(tmp_path).read_text()
    assert "widget" not in saved
    (cell,) = nbformat.read(tmp_path / "record.ipynb", 4).cells
    assert set(cell.outputs[0].data) == {"text/html", "text/plain"}


@pytest.fixture
def shown() -> Callable[[object], dict[str, str]]:
    """What a shell with our records shows of something."""
    from gpushare_magics import records

    shell = InteractiveShell()
    records.register(shell)
    return lambda one: shell.display_formatter.format(one)[0]


@pytest.mark.parametrize("made", [FULL.devices[0], None, [REPORT], "text"])
def test_other_things_are_shown_as_ever(shown, made):
    """Only what is ours has a record."""
    assert "text/html" not in shown(made)


def test_ipython_shows_records(shown):
    """Of a snapshot, a report, several, and a lane: HTML and text."""
    from gpushare_kernel.wire.snapshot import Snapshot

    plain_snapshot = Snapshot(1, None, IDLE.devices)
    for made, told in ((plain_snapshot, "AMD EPYC"), (REPORT, "2.0 GiB + 4.0 GiB"), (Reports([REPORT]), "80%"), (lane(), "not entered")):  # fmt: skip
        bundle = shown(made)
        assert set(bundle) == {"text/html", "text/plain"}, made
        assert told in bundle["text/plain"]
        assert told in bundle["text/html"]


def test_what_cannot_be_shown_is_shown_as_ever(shown):
    """A record that fails is no traceback for the user."""
    from gpushare_kernel.wire.snapshot import Snapshot

    broken = Snapshot(1, None, devices=(None,))  # type: ignore[arg-type]
    bundle = shown(broken)
    assert "text/html" not in bundle
    assert bundle["text/plain"].startswith("Snapshot(")


def test_unregistered_they_are_shown_as_ever(shown):
    """`%unload_ext` takes the records back."""
    from gpushare_magics import records

    shell = InteractiveShell()
    records.register(shell)
    records.unregister(shell)
    assert "text/html" not in shell.display_formatter.format(REPORT)[0]
