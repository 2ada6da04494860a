"""Which variables hold memory, and what else pins it: a walk from names, results and the last error to the arrays behind them.

The walk (`reach.py`) goes from all roots at once, so what lies near a name is found first; then, from each root, only what leads
to arrays is followed again: so every array has all its roots. It is told with one of them, the others are what pins it, too.
"""

from __future__ import annotations

import gc
import re
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from time import perf_counter
from types import ModuleType, TracebackType

from gpushare_kernel.client.aftermath import errors_of
from gpushare_kernel.client.arrays import Arrays, Piece, is_one
from gpushare_kernel.client.reach import DEPTH, OTHERS, SECONDS, Walk, locals_of, no_collection

_LONGEST = 60
"""Characters of a name that are told."""
_HISTORY = re.compile(r"_(\d+|_{0,2}|i+|i\d+|ih|oh|dh)")


class Kind(IntEnum):
    """What a root is. Where several hold the same memory, it is told with the first kind of them."""

    NAME = 0
    MODULE = 1
    RESULT = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Root:
    """Where a walk begins: a variable of the notebook or of a module of the user's, a kept result, the last error."""

    label: str
    kind: Kind
    values: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Holder:
    """What one root holds in bytes, in how many arrays; `also` are those that pin some of it too, with how much of it."""

    label: str
    kind: Kind
    size: int
    arrays: int
    type: str
    also: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """Who holds what, the largest first. `cut` says that not everything was looked at."""

    holders: tuple[Holder, ...]
    cut: bool

    @property
    def size(self) -> int:
        """Bytes that belong to somebody."""
        return sum(holder.size for holder in self.holders)


# --- Roots -----------------------------------------------------------------------------------------------


def roots(
    namespace: Mapping[str, object],
    *,
    hidden: Mapping[str, object] | None = None,
    error: BaseException | None = None,
    cell: Callable[[str], str | None] = lambda _file: None,
) -> list[Root]:
    """Return the roots of a notebook.

    Parameters
    ----------
    namespace
        Its variables, with IPython's history of results among them.
    hidden
        Names that IPython puts there, with what it put there.
    error
        The last error.
    cell
        Says which cell a file of code is, `14`; None where it is none.
    """
    found: list[Root] = []
    results = dict(_results(namespace))
    for name, value in [*namespace.items()]:
        ours = type(name) is not str or (hidden or {}).get(name, found) is value
        if not ours and not _HISTORY.fullmatch(name) and name not in ("In", "Out"):
            found.append(Root(name, Kind.NAME, (value,)))
    found += _of_modules(namespace)
    found += [Root(f"Out[{n}]", Kind.RESULT, (value,)) for n, value in sorted(results.items())]
    known = {id(value) for value in results.values()}
    for name in ("_", "__", "___"):
        if name in namespace and id(namespace[name]) not in known:
            found.append(Root(name, Kind.RESULT, (namespace[name],)))
    if error is not None:
        found.append(_of_error(error, namespace, cell))
    return found


def _results(namespace: Mapping[str, object]) -> Iterable[tuple[int, object]]:
    kept = namespace.get("_oh")
    if type(kept) is dict:
        yield from ((n, value) for n, value in [*kept.items()] if type(n) is int)
    for name, value in [*namespace.items()]:
        if name[:1] == "_" and name[1:].isdecimal():
            yield int(name[1:]), value


def _of_modules(namespace: Mapping[str, object]) -> list[Root]:
    """Return the variables of modules that the user wrote: not installed, not Python's own."""
    installed = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})  # fmt: skip
    found = []
    for name, module in [*sys.modules.items()]:
        inside = vars(module) if type(module) is ModuleType else {}
        file = inside.get("__file__")
        if type(file) is not str or inside is namespace or name in ("__main__", "__mp_main__"):
            continue
        if name.partition(".")[0] in OTHERS or file.startswith(installed) or "site-packages" in file or "dist-packages" in file:  # fmt: skip
            continue
        found += [
            Root(f"{name}.{key}", Kind.MODULE, (value,))
            for key, value in [*inside.items()]
            if type(key) is str and not key.startswith("__")
        ]
    return found


def _of_error(
    error: BaseException, namespace: Mapping[str, object], cell: Callable[[str], str | None]
) -> Root:
    """Return what the frames of an error keep, those of its causes included. Frames before the notebook's own are IPython's."""
    values: list[object] = []
    number = None
    for one in errors_of(error):
        # Its frames follow one by one, its causes have a turn of their own.
        values += [
            value
            for value in gc.get_referents(one)
            if type(value) is not TracebackType and not is_one(type(value), BaseException)
        ]
        trace, inside = one.__traceback__, False
        while trace is not None:
            frame = trace.tb_frame
            inside = inside or frame.f_globals is namespace
            if inside:
                number = number or cell(frame.f_code.co_filename)
                values += locals_of(frame)
            trace = trace.tb_next
    label = f"traceback of cell {number}" if number else "traceback of the last error"
    return Root(label, Kind.ERROR, tuple(values))


# --- The walk ----------------------------------------------------------------------------------------------


def find(
    roots: Collection[Root],
    arrays: Arrays,
    *,
    opaque: Iterable[object] = (),
    seconds: float = SECONDS,
    depth: int = DEPTH,
) -> Found:
    """Return what the roots hold.

    Parameters
    ----------
    roots
        Where to begin; the first of equals is the one that is named.
    arrays
        What holds memory.
    opaque
        Objects that are not looked into: the namespace itself, the shell.
    seconds, depth
        How long, and how far from a root, is looked.
    """
    walk = Walk(arrays, opaque, perf_counter() + seconds)
    with arrays.asking(), no_collection():
        starts = [[n for v in root.values if (n := walk.meet(v)) is not None] for root in roots]
        walk.spread(depth)
        reached = walk.reached(starts)
    return Found(_holders([*roots], reached, walk.pieces, arrays), walk.cut)


# --- The result ----------------------------------------------------------------------------------------------


def short(name: str) -> str:
    """Return a name as long as a table bears it."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _holders(
    roots: list[Root],
    reached: list[dict[int, int]],
    pieces: dict[int, list[Piece]],
    arrays: Arrays,
) -> tuple[Holder, ...]:
    sizes: dict[object, int] = {}
    far: dict[object, dict[int, int]] = {}
    for root, found in enumerate(reached):
        for number, distance in found.items():
            for key, size in pieces[number]:
                sizes[key] = max(size, sizes.get(key, 0))
                by = far.setdefault(key, {})
                by[root] = min(distance, by.get(root, distance))
    roles = [arrays.role(r.values[0]) if r.kind is Kind.NAME else 1 for r in roots]
    held: dict[int, dict[object, int]] = {}
    also: dict[int, dict[int, int]] = {}
    for key, by in far.items():
        owner = min(by, key=lambda r: (roots[r].kind, roles[r], by[r], r))
        held.setdefault(owner, {})[key] = sizes[key]
        for other in by:
            if other != owner:
                shared = also.setdefault(owner, {})
                shared[other] = shared.get(other, 0) + sizes[key]
    found_ = [
        Holder(
            short(roots[root].label),
            roots[root].kind,
            sum(mine.values()),
            len(mine),
            "" if roots[root].kind is Kind.ERROR else _type_of(roots[root].values[0]),
            tuple(
                (short(roots[other].label), size)
                for other, size in sorted(also.get(root, {}).items(), key=lambda it: -it[1])
            ),
        )
        for root, mine in held.items()
    ]
    return tuple(sorted(found_, key=lambda holder: -holder.size))


def _type_of(value: object) -> str:
    name = type.__dict__["__name__"].__get__(type(value))
    return short(name) if isinstance(name, str) else ""
