"""The demo: what it shows, and that it leaves nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from gpushare_kernel.app.demo.history import History
from gpushare_kernel.wire.snapshot import DeviceView, LaneView, SessionView, Snapshot

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 100


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """The folder in which the demo makes its own: short, because a socket's path is."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def play(notebooks: Path, *words: str) -> subprocess.Popen[str]:
    # Tests may be started in the background, where SIGINT is ignored; the demo is for a terminal.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from gpushare_kernel.app.main import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "demo", "--notebooks", str(notebooks), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(folder: Path) -> list[str]:
    """Return who has the folder in its environment or command line, this process and its like aside."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder / "gpushare-demo") in text:
            found.append(process.name)
    return found


def test_three_notebooks_share_and_the_third_waits(empty, tmp_path, monkeypatch):
    """It says it is the CPU, shows the third's reason, tables every notebook, keeps the outputs, and leaves nothing."""
    monkeypatch.setenv("COLUMNS", "80")
    output = tmp_path / "out"
    with play(EXAMPLES, "--seconds", "1", "--output", str(output)) as process:
        shown, complaints = process.communicate(timeout=PATIENCE)
    assert (process.returncode, complaints) == (0, "")
    assert "Nothing here is a GPU" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80
    assert re.search(
        r"neighbours\.ipynb waits: Waiting for memory: needs .* free\. Your own ",
        " ".join(shown.split()),
    )
    for name in ("digits", "letters", "neighbours"):
        assert re.search(rf"^{name} +\d+\.\d s .* \d+/\d+ +\d+/\d+ +\d+ +\d+$", shown, re.MULTILINE)
        executed = nbformat.read(output / f"{name}.ipynb", as_version=4)
        assert executed.cells[-1].outputs
        assert "api.reports" not in executed.cells[-1].source
    assert shown.replace("\n", "").rstrip().endswith(f"The executed notebooks are in {output}.")
    strip = re.search(r"^lane \d+ +288 MiB +(\S+)$", shown, re.MULTILINE)[1]
    assert {"A", "B"} <= set(strip)
    assert list(empty.iterdir()) == []
    assert processes_of(empty) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(empty, signum):
    """Kernels, broker, guardian and files go, and that takes no traceback. What ran shared the CPU, whatever there is."""
    with play(EXAMPLES) as process:
        assert any("waits" in line for line in process.stdout)
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_of(empty)]
        brokers = [c for c in commands if b"-m\0gpushare_kernel.broker\0" in c]
        assert brokers
        assert all(b"--device\0host\0" in command for command in brokers)
        process.send_signal(signum)
        _, complaints = process.communicate(timeout=PATIENCE)
    assert (process.returncode, complaints) == (130, "gpushare: interrupted\n")
    assert list(empty.iterdir()) == []
    assert processes_of(empty) == []


def test_a_notebook_that_fails_is_named(empty, tmp_path):
    """Exit status 1, one line with the notebook and its error; the others are ended and nothing is left."""
    notebooks = shutil.copytree(EXAMPLES, tmp_path / "n")
    broken = nbformat.read(notebooks / "letters.ipynb", as_version=4)
    broken.cells.append(nbformat.v4.new_code_cell("raise ValueError('no such letter')"))
    nbformat.write(broken, notebooks / "letters.ipynb")
    with play(notebooks, "--seconds", "0.2") as process:
        _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert complaints.count("\n") == 1, complaints
    assert complaints.startswith("gpushare: letters.ipynb failed")
    assert "no such letter" in complaints
    assert list(empty.iterdir()) == []
    assert processes_of(empty) == []


def test_kernels_that_the_demo_ends_are_not_called_dead():
    """nbclient may still look at one and log that it died: that line is nobody's on the terminal."""
    code = "from gpushare_kernel.app.demo import act; act._logger.error('Kernel died')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == ""


def test_the_notebooks_are_looked_for_where_they_may_be(empty, tmp_path):
    """A folder without them is named, with the option that names another."""
    with play(tmp_path) as process:
        _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert str(tmp_path) in complaints
    assert "--notebooks DIR" in complaints


def test_examples_are_clean():
    """Notebooks in the repository have no outputs and no counts: differences are in what people wrote."""
    for path in EXAMPLES.glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs"), path
            assert cell.get("execution_count") is None, path


def snapshot(occupants: dict[int, str | None]) -> Snapshot:
    lanes = tuple(LaneView(n, 10 * n, f"job-{o}" if o else None, ()) for n, o in occupants.items())
    sessions = tuple(
        SessionView(o, "me", o, 1, "busy", None, 0, 0.0, jobs=(f"job-{o}",))
        for o in occupants.values()
        if o
    )
    return Snapshot(1, None, (DeviceView("d", "host", "CPU", 1, 0, 0, lanes),), sessions)


def test_the_lanes_history_is_a_line_of_letters():
    """A lane that comes later begins with nobody, one that goes ends so; each column is who used it most."""
    history = History()
    for occupants in ({1: "x"}, {1: "y", 2: "x"}, {1: None, 2: "x"}, {2: "z"}):
        history.add(snapshot(occupants))
    letters = {"x": "A", "y": "B"}
    assert history.strip(1, letters) == "AB.."
    assert history.strip(2, letters) == ".AA?"
    assert [lane.size for _, lane in sorted(history.lanes.items())] == [10, 20]


def test_a_long_history_fits_a_line():
    """However long it took, the strip is as wide as the terminal allows."""
    history = History()
    for number in range(1000):
        history.add(snapshot({1: "x" if number < 500 else "y"}))
    strip = history.strip(1, {"x": "A", "y": "B"})
    assert len(strip) <= 60
    assert strip == "A" * (len(strip) // 2) + "B" * (len(strip) // 2)
