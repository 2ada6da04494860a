"""A course for nbgrader: one assignment, submissions that are right, and what the gradebook says of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ASSIGNMENT, TESTS = "ps1", 3
_SOLVE = "def total(numbers):\n    {}"
_STUB = "### BEGIN SOLUTION\n    return sum(numbers)\n    ### END SOLUTION"
_TEST = "%%gpulane {}\nwork = bytearray(32 * 2**20)\nassert total([{n}, 1]) == {n} + 1\ndel work"


class Course:
    """A course in a folder. Its tests declare `size` of the device each."""

    def __init__(self, folder: Path, size: str, timeout: int) -> None:
        self._folder = folder
        (folder / "source" / ASSIGNMENT).mkdir(parents=True)
        nbformat.write(_assignment(size), folder / "source" / ASSIGNMENT / "problem.ipynb")
        (folder / "nbgrader_config.py").write_text(
            f"c = get_config()\nc.CourseDirectory.root = {str(folder)!r}\n"
            f"c.Execute.timeout = {timeout}\nc.ExecutePreprocessor.timeout = {timeout}\n",
            encoding="utf-8",
        )
        self.nbgrader("generate_assignment", ASSIGNMENT)

    def submit(self, students: int) -> None:
        """Have so many students hand in what is right."""
        release = self._folder / "release" / ASSIGNMENT / "problem.ipynb"
        for number in range(students):
            notebook = nbformat.read(release, 4)
            for cell in notebook.cells:
                if cell.metadata.get("nbgrader", {}).get("solution"):
                    cell.source = _SOLVE.format("return sum(numbers)")
            place = self._folder / "submitted" / f"student{number:02}" / ASSIGNMENT
            place.mkdir(parents=True)
            nbformat.write(notebook, place / "problem.ipynb")

    def command(self, *words: str) -> list[str]:
        """Return how nbgrader is run."""
        return [sys.executable, "-m", "nbgrader", *words]

    def nbgrader(self, *words: str) -> None:
        """Run it, and fail where it does."""
        subprocess.run(self.command(*words), cwd=self._folder, check=True, capture_output=True)

    def marks(self, students: int) -> tuple[float, float]:
        """Return the marks that there are for all students' work, and those that were given."""
        from nbgrader.api import Gradebook  # noqa: PLC0415  of nbgrader only

        with Gradebook(f"sqlite:///{self._folder / 'gradebook.db'}") as book:
            given = sum(one.score for one in book.assignment_submissions(ASSIGNMENT))
        return float(students * TESTS), float(given)


def _assignment(size: str) -> NotebookNode:
    cells = [_cell(_SOLVE.format(_STUB), "solve", solution=True)]
    cells += [
        _cell(_TEST.format(size, n=n), f"test{n}", grade=True, points=1) for n in range(TESTS)
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def _cell(source: str, name: str, **more: object) -> NotebookNode:
    known = {"grade": False, "solution": False, "locked": not more.get("solution"), "task": False}
    nbgrader = {"schema_version": 3, "grade_id": name, **known, **more}
    return nbformat.v4.new_code_cell(source, metadata={"nbgrader": nbgrader})
