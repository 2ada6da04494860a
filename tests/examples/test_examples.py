"""Every example runs, in a real kernel beside a real broker, and shows what it is there for."""

from __future__ import annotations

import re

import nbformat
import pytest

from tests.examples.conftest import EXAMPLES, Execute, shown

SHOWS = {
    "two_users": (r"MiB/s here, .* there: \d+% are this notebook's", "two_users.ipynb"),
    "out_of_memory": (
        "It would run at once: needs 614 MiB",
        "this can never fit: it needs 900.0 TiB",
        "still no memory after 0.2 s, as long as --wait says; the cell has not run",
        "200 MiB are there",
        "What became of it",
        r"declare .* instead of 614: nobody waits for what you do not use",
    ),
    "idle_and_back": (
        r"the memory of idle_and_back.ipynb cannot be set aside: this device cannot park memory",
        "nothing is lost either way: 25600 pages are as they were",
        "parking off",
        "parking on",
    ),
    "sweep": (r"\(CPU, no GPU\): pack", r"\(CPU, no GPU\): fair", r"rate 0.01 +\d+.\d% right"),
    "camera": ("8 of 8 pictures", r"Pipeline list-1 \(RT, every 200 ms\)", "8 done"),
    "packed": (
        r"4 models in \d+ pages",
        "times smaller, all bytes counted",
        "int8, not shared",
        "Bundle of 4 models",
    ),
    "class_of_30": (
        "180 cells, 16 min of work",
        r"fair +\d+ s +\d+ s +\d+ s",
        r"fifo +\d+ s +\d+ s",
    ),
}
"""What each one shows, as patterns: its parts, and no figure of this machine."""
PARAMETERS = {"two_users": {"seconds": 2.0}, "camera": {"frames": 8}, "packed": {"steps": 100}}
OF_THE_DEMO = {"digits", "letters", "neighbours"}
"""These are executed by `tests/app/test_demo.py`, three at a time."""


@pytest.mark.parametrize("name", SHOWS)
def test_it_runs_and_shows_its_point(name: str, execute: Execute) -> None:
    """No cell fails but those that say so, and what it is about is there to read."""
    notebook = execute(name, **PARAMETERS.get(name, {}))
    text = "\n".join(shown(cell) for cell in notebook.cells)
    for pattern in SHOWS[name]:
        assert re.search(pattern, text), (pattern, text)
    for cell in notebook.cells:
        failed = [out for out in cell.get("outputs", []) if out.output_type == "error"]
        announced = "raises-exception" in cell.metadata.get("tags", [])
        assert not failed or announced, shown(cell)
        for out in failed:  # a notebook's user never sees our frames
            assert "gpushare_kernel/" not in "\n".join(out.traceback)


def test_each_is_listed_executed_and_says_what_it_runs_on() -> None:
    """A notebook that is added is in the README, in a test, and claims no device that it does not use."""
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    names = {path.stem for path in EXAMPLES.glob("*.ipynb")}
    assert names == set(SHOWS) | OF_THE_DEMO
    for name in names:
        assert f"({name}.ipynb)" in listed
    for name in SHOWS:
        first = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4).cells[0].source
        assert "Runs on the **CPU**" in first or "A **replay**" in first
