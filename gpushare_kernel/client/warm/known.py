"""Whose code a callable is: the kernel's own packages may run while memory is away, nobody else's."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

_OURS = ("ipykernel", "tornado", "zmq", "jupyter_client", "gpushare_kernel", "gpushare_magics")
_LOOP = "asyncio"
_FILES = ("torch.utils.data._utils.signal_handling",)
"""Other code that is known: it says that a worker of a DataLoader has died."""
_STEPS = ("TaskStepMethWrapper",)
"""What takes a task one step further; the tasks themselves are looked at."""


class Known:
    """The folders of the kernel's packages, and its streams."""

    def __init__(self, kernel: Any) -> None:
        self._ours = tuple(folder for name in _OURS if (folder := _folder(name)))
        self._asyncio = _folder(_LOOP)
        self.loops = [getattr(kernel, "io_loop", None)]

    def is_file(self, file: str, *, loop: bool = True) -> bool:
        """Say whether code of this file is the kernel's, or asyncio's own."""
        if file.startswith(self._ours) or (loop and file.startswith(self._asyncio)):
            return True
        return any(file == getattr(sys.modules.get(name), "__file__", None) for name in _FILES)

    def is_ours(self, call: object) -> bool:
        """Say whether nothing but code of the kernel's packages runs when `call` is called."""
        try:
            return all(self.is_file(one.__code__.co_filename) for one in self._functions(call))
        except _StrangerError:
            return False

    def _functions(self, call: Any) -> Iterator[FunctionType]:
        """Yield the functions that a callable leads to."""
        if type(call) is functools.partial:
            yield from self._functions(call.func)
            for value in (*call.args, *call.keywords.values()):
                if callable(value):
                    yield from self._functions(value)
        elif type(call) is MethodType:
            yield from self._functions(call.__func__)
            yield from self._inside(call.__self__)
        elif type(call) is FunctionType:
            yield call
            for cell in call.__closure__ or ():
                yield from self._enclosed(cell)
        elif type(call).__name__ not in _STEPS and not _is_wakeup(call):
            raise _StrangerError(call)

    def _enclosed(self, cell: Any) -> Iterator[FunctionType]:
        """A closure of the kernel's may wrap somebody else's function."""
        try:
            value = cell.cell_contents
        except ValueError:
            return  # not yet set
        if type(value) in (FunctionType, MethodType, functools.partial):
            yield from self._functions(value)

    def _inside(self, owner: Any) -> Iterator[FunctionType]:
        """A stream and a periodic timer call what they were given."""
        kind = type(owner)
        names = {"ZMQStream": ("_recv_callback", "_send_callback"), "PeriodicCallback": ("callback",)}  # fmt: skip
        for name in names.get(kind.__name__, ()):
            given = vars(owner).get(name)
            if given is not None:
                yield from self._functions(given)
        if kind.__module__.startswith("asyncio.") and not hasattr(owner, "_selector"):
            raise _StrangerError(owner)  # a connection or a pipe: what reads it is the user's


def _is_wakeup(call: Any) -> bool:
    """What wakes a task is a method of it."""
    owner = getattr(call, "__self__", None)
    return type(owner).__module__ == "_asyncio" and type(owner).__name__ == "Task"


class _StrangerError(Exception):
    """Something whose code cannot be told."""


def _folder(package: str) -> str:
    file = getattr(sys.modules.get(package), "__file__", None)
    return "" if file is None else str(Path(file).parent) + "/"
