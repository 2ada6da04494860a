"""Which code a job runs, as a short hash made here: no source leaves the kernel.

What does not change what is run (comments, blank lines, spaces) does not change the hash; names do. The word before the
hash says what was hashed: `cell:`, `lane:` or `run:`.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Sequence
from types import FrameType

_BYTES = 8
_FRAMEWORKS = ("torch", "cupy", "jax")


def of_cell(source: str) -> str:
    """Return the hash of a cell's Python, or of its text where it is none."""
    try:
        shape = ast.dump(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        shape = "\n".join(line.strip() for line in source.splitlines() if line.strip())
    return _named("cell", shape)


def of_place(frame: FrameType) -> str:
    """Return the hash of where a lane is made: the file, the function, its code, and which call in it.

    A notebook's cells have files that change with every kernel: these do not count.
    """
    code = frame.f_code
    passing = code.co_filename.startswith("<") or "ipykernel_" in code.co_filename
    where = "" if passing else code.co_filename
    names = (code.co_names, code.co_varnames, code.co_freevars)
    return _named(
        "lane", where, code.co_qualname, code.co_code.hex(), repr(names), str(frame.f_lasti)
    )


def of_command(command: Sequence[str], folder: str) -> str:
    """Return the hash of a command line run in `folder`."""
    return _named("run", folder, *command)


def frameworks() -> tuple[str, ...]:
    """Return the frameworks this process has loaded, with their versions. Imports none."""
    loaded = ((name, getattr(sys.modules.get(name), "__version__", None)) for name in _FRAMEWORKS)
    return tuple(f"{name} {version}"[:64] for name, version in loaded if isinstance(version, str))


def _named(what: str, *parts: str) -> str:
    whole = "\0".join(parts).encode("utf-8", "surrogatepass")
    return f"{what}:{hashlib.blake2b(whole, digest_size=_BYTES).hexdigest()}"
