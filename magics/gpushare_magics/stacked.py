"""The body of a `%%gpulane` that runs as an ordinary cell magic: another magic, or code.

Code run this way has no top-level await and shows no last expression, as under `%%time`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_BLANK = re.compile(r"\A(?:[ \t]*\r?\n)+")


def run(shell: InteractiveShell, cell: str) -> object:
    """Run the body; its errors come out as they are."""
    __tracebackhide__ = True
    below = _BLANK.sub("", cell)
    if below.startswith("%%"):
        first, _, rest = below.partition("\n")
        name, _, line = first.removeprefix("%%").partition(" ")
        return shell.run_cell_magic(name, line.strip(), rest)  # type: ignore[no-untyped-call]
    code = shell.transform_cell(cell)  # type: ignore[no-untyped-call]
    # IPython's compiler remembers the source, so that a traceback shows the user's own lines.
    compiled = shell.compile(code, shell.compile.cache(code), "exec")
    exec(compiled, shell.user_ns)  # noqa: S102 - the user's own cell
    return None
