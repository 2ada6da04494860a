"""Holds one user's notebooks, as that user. Lines of JSON come in, lines of JSON go out; notebooks end with stdin.

{"start": [arm, number, kinds, place]}        -> {"pids": [...], "uid": ...}, a new group
{"begin": [group, [[code, value], ...]]}      -> {}
{"finish": [group, seconds]}                  -> [[value, [[at, text], ...]], ...]
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.notebooks import ENFORCED, FREE, SEEN, Notebook, notebooks, several

ARMS = {arm.name: arm for arm in (FREE, SEEN, ENFORCED)}


def main() -> None:
    """Answer until stdin ends."""
    groups: list[list[Notebook]] = []
    with contextlib.ExitStack() as ends:
        for line in sys.stdin:
            ((order, given),) = json.loads(line).items()
            answer: Any = {}
            if order == "start":
                arm, number, kinds, place = given
                wanted = several(ARMS[arm], number)
                groups.append(ends.enter_context(notebooks(wanted, place, kinds)))
                answer = {"pids": [one.pid for one in groups[-1]], "uid": os.getuid()}
            elif order == "begin":
                for notebook, cell in zip(groups[given[0]], given[1], strict=True):
                    notebook.begin(*cell)
            else:
                answer = [_finished(notebook, given[1]) for notebook in groups[given[0]]]
            print(json.dumps(answer), flush=True)


def _finished(notebook: Notebook, timeout: float | None) -> list[Any]:
    known = len(notebook.lines)
    value = notebook.finish(timeout)
    return [value, [[line.at, line.text] for line in notebook.lines[known:]]]


if __name__ == "__main__":
    main()
