"""What the five-minute start has people run, runs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat

from tests.examples.conftest import Execute, shown

START = Path(__file__).parents[2] / "docs/start.md"
CELL = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_the_cells_of_the_five_minute_start(execute: Execute) -> None:
    """The first declares and computes, for a shorter time here; the second says who is there."""
    first, second = CELL.findall(START.read_text(encoding="utf-8"))
    assert "+ 60" in first
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell(cell) for cell in (first.replace("+ 60", "+ 1"), second)
    ]
    done = execute(notebook)
    said, status = map(shown, done.cells)
    assert re.search(r"used 6\d\d MiB; .*next time: %%gpulane", said), said
    assert "(CPU, no GPU)" in status
    assert "page.ipynb" in status
