"""Whether a kernel's interpreter has this package: only there its client loads, and only there nested kernels can use us."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

STARTUP_FILE = Path("etc/ipython/startup/00-gpushare.py")
"""Below a prefix: what the wheel installs, and what IPython there runs at its start."""

_PYTHON = re.compile(r"(python|pypy)[0-9.]*")
_BARE_PYTHON = {
    "python",
    f"python{sys.version_info[0]}",
    f"python{sys.version_info[0]}.{sys.version_info[1]}",
}
_FIND = "import importlib.util, sys; sys.exit(importlib.util.find_spec('gpushare_kernel') is None)"
_PATIENCE = 5.0


def has_package(command: str, path: str | None = None) -> bool:
    """Say whether `command`, the first word of a kernel's argv, runs in an environment with this package.

    Our own interpreter is known without a look; others cost one file test, and once per program a
    subprocess where that does not settle it. `path` is the kernel's PATH.
    """
    if command in _BARE_PYTHON:  # jupyter_client replaces these by its own interpreter
        return True
    found = shutil.which(command, path=path)
    if found is None:
        return False
    # Not resolved: in a virtual environment python is a link to one that is outside of it.
    program = Path(found).absolute()
    prefix = program.parent.parent
    if prefix == Path(sys.prefix) or (prefix / STARTUP_FILE).exists():
        return True
    if _PYTHON.fullmatch(program.name) is None:
        return False
    return _can_import(program, program.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _can_import(program: Path, _changed: int) -> bool:
    command = [str(program), "-c", _FIND]
    try:
        done = subprocess.run(command, cwd="/", timeout=_PATIENCE, capture_output=True, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
