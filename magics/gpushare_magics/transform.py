"""`%%gpulane` by input transformer: its line becomes a call, the cell below runs as it is.

Pure: IPython runs it for history and for "is this input complete" too. The number of lines stays, so
that tracebacks point at the user's own lines; the body keeps its last expression and its `await`.
"""

from __future__ import annotations

import re

_MAGIC = re.compile(r"%%gpulane(?:[ \t]+(?P<arguments>.*?))?[ \t]*$")
_DRY_RUN = re.compile(r"(?:^|\s)--dry-run(?:\s|$)")


def rewrite(lines: list[str]) -> list[str]:
    """Return the cell's lines with a leading `%%gpulane` replaced by the call that enters the lane.

    A magic below it (`%%time`), blank lines between them or not, cannot be read as Python: then all is left to IPython, which runs
    `%%gpulane` as an ordinary cell magic around it.
    """
    found = _find(lines)
    if found is None:
        return lines
    index, arguments = found
    below = next((line for line in lines[index + 1 :] if not line.isspace()), "")
    if below.startswith("%%"):
        return lines[index:]
    if _DRY_RUN.search(arguments):
        return [f"{_call('dry_run', arguments)}\n"]
    return [*lines[:index], f"{_call('enter', arguments)}\n", *lines[index + 1 :]]


def arguments_of(cell: str) -> str | None:
    """Return what stands behind a leading `%%gpulane`; None where the cell declares nothing."""
    found = _find(cell.splitlines(keepends=True))
    return None if found is None else found[1]


def body_of(cell: str) -> str:
    """Return the cell without a leading `%%gpulane` line: what is run, however it is declared."""
    lines = cell.splitlines(keepends=True)
    found = _find(lines)
    return cell if found is None else "".join(lines[found[0] + 1 :])


def _find(lines: list[str]) -> tuple[int, str] | None:
    """Return the magic's line number and arguments. Blank lines and comments may stand above it."""
    for index, line in enumerate(lines):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            match = _MAGIC.match(line.rstrip("\r\n"))
            arguments = (match["arguments"] or "") if match else ""
            return None if match is None or arguments.endswith("?") else (index, arguments)
    return None


def _call(function: str, arguments: str) -> str:
    return (
        f'__import__("gpushare_magics").{function}({arguments!r})  # %%gpulane {arguments}'.rstrip()
    )
