"""The walk from values to all that they keep alive: by what Python's garbage collector knows, for a bounded time.

No code of the user's runs: no property, no `__getattr__`, no `__iter__`.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from time import perf_counter
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType

from gpushare_kernel.client.arrays import Arrays, Look, Piece, Weigh, is_one, members

SECONDS = 0.25
"""For how long is looked."""
_REST = 0.1
"""How much longer it may take to say who holds what was found."""
DEPTH = 1000
"""How far from a name is looked: an autograd graph may be some hundreds of steps long."""
MANY = 100_000
"""Of a longer list or dict so many entries are looked into."""
_SURVEYED = 2_000_000
"""So many are looked at, whether they are numbers and texts only."""
_CROWD = 1000
"""What lies in a longer list comes after all that does not."""
_LONG = {id(kind) for kind in (list, tuple, set, frozenset, dict)}
_OFTEN = 4096
"""References after which the clock is looked at."""
_FLAGS = type.__dict__["__flags__"].__get__
_ATOMS = {id(kind) for kind in (type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, CodeType, ModuleType, type(Ellipsis), type(NotImplemented))}  # fmt: skip
OTHERS = {"IPython", "ipykernel", "traitlets", "zmq", "tornado", "asyncio", "logging", "gpushare_kernel", "gpushare_magics", "gpushare_widgets"}  # fmt: skip
"""Packages whose objects lead to everything and hold no arrays of the user's."""
_HOLDS = 1 << 14
"""The flag of classes whose objects the garbage collector looks into (Py_TPFLAGS_HAVE_GC)."""


class Walk:
    """One walk: `meet` where it begins, `spread`, then see what was `reached`."""

    def __init__(self, arrays: Arrays, opaque: Iterable[object], until: float) -> None:
        self.cut = False
        #: What was met, by number, which keeps it and so its id; the arrays among it.
        self.met: list[object] = []
        self.pieces: dict[int, list[Piece]] = {}
        self._arrays, self._until = arrays, until
        self._number: dict[int, int] = {}
        #: Who keeps whom, by number.
        self._keeps: list[tuple[int, int]] = []
        #: How to look into objects of a class, by its id (its metaclass may define equality); None where they lead nowhere.
        self._walkers: dict[int, Look | None] = {}
        self._weighers: dict[int, Weigh] = {}
        self._closed = {id(one) for one in opaque}

    def meet(self, value: object) -> int | None:
        """Return the number of a value; None where it holds nothing and leads nowhere."""
        number = self._number.get(id(value))
        if number is None and self._leads(type(value)) and id(value) not in self._closed:
            number = self._number[id(value)] = len(self.met)
            self.met.append(value)
        return number

    def spread(self, depth: int) -> None:
        """Walk from what was met so far to all that it keeps alive; what lies in long lists comes last."""
        near: deque[tuple[int, Sequence[int]]] = deque([(0, range(len(self.met)))])
        late: deque[tuple[int, Sequence[int]]] = deque()
        while near or late:
            far, edge = (near or late).popleft()
            if far >= depth:
                self.cut = True
                continue
            after: list[int] = []
            crowd: list[int] = []
            if not self._look(edge, after, crowd) or perf_counter() > self._until:
                self.cut = True
                return
            if after:
                near.append((far + 1, after))
            for first in range(0, len(crowd), _CROWD):
                late.append((far + 1, crowd[first : first + _CROWD]))

    def _look(self, edge: Sequence[int], after: list[int], crowd: list[int]) -> bool:
        """Look into those of `edge`; what is new there comes next, or later where it is one of many. False where the time is over."""
        walkers, weighers, numbers = self._walkers, self._weighers, self._number
        met, closed, keep = self.met, self._closed, self._keeps.append
        seen = 0
        for number in edge:
            value = met[number]
            kind = id(type(value))
            if kind in weighers:
                self._weigh(number, value, weighers[kind])
                seen += 8
            before, inside = len(met), self._inside(value, kind)
            for one in inside:
                walker = walkers.get(id(type(one)), _unknown)
                if walker is _unknown:
                    walker = self._learn(type(one))
                if walker is None:
                    continue
                key = id(one)
                found = numbers.get(key)
                if found is None:
                    if key in closed:
                        continue
                    found = numbers[key] = len(met)
                    met.append(one)
                keep((number, found))
            (crowd if len(inside) > _CROWD else after).extend(range(before, len(met)))
            seen += len(inside) + 1
            if seen > _OFTEN:
                seen = 0
                if perf_counter() > self._until:
                    return False
        return True

    def _weigh(self, number: int, value: object, weigh: Weigh) -> None:
        try:
            pieces = [*weigh(value)]
        except Exception:  # noqa: BLE001 - an array that cannot say is none: frameworks raise what they like
            return
        if pieces:
            self.pieces[number] = pieces

    def _inside(self, value: object, kind: int) -> Sequence[object]:
        if kind in _LONG and len(value) > MANY:  # type: ignore[arg-type]
            return self._some(value.values() if isinstance(value, dict) else value)  # type: ignore[arg-type]
        walker = self._walkers[kind]
        try:
            return () if walker is None else walker(value)
        except Exception:  # noqa: BLE001 - the same
            return ()

    def _some(self, entries: Collection[object]) -> Sequence[object]:
        """Return the first entries of many; none where all are numbers and texts."""
        kinds = {id(kind): kind for kind in map(type, islice(entries, _SURVEYED))}
        if not any(self._leads(kind) for kind in kinds.values()):
            self.cut = self.cut or len(entries) > _SURVEYED
            return ()
        self.cut = True
        return [*islice(entries, MANY)]

    def _leads(self, kind: type) -> bool:
        """Whether objects of a class are looked into."""
        known = id(kind) in self._walkers
        return (self._walkers[id(kind)] if known else self._learn(kind)) is not None

    def _learn(self, kind: type) -> Look | None:
        weigh = self._arrays.weigher(kind)
        if weigh is not None:
            self._weighers[id(kind)] = weigh
        walker = self._arrays.walker(kind) or _walker(kind)
        if weigh is not None and walker is None:
            walker = gc.get_referents
        self._walkers[id(kind)] = walker
        return walker

    def reached(self, starts: list[list[int]]) -> list[dict[int, int]]:
        """Return for each root the arrays that it keeps alive, with how far away they are."""
        leads = bytearray(len(self.met))
        for number in self.pieces:
            leads[number] = 1
        more = bool(self.pieces)
        while (
            more and perf_counter() < self._until + _REST
        ):  # holders have been met before what they hold, but for circles
            more = False
            for holder, held in reversed(self._keeps):
                if leads[held] and not leads[holder]:
                    leads[holder] = more = True
        inside: dict[int, list[int]] = {}
        for holder, held in self._keeps:
            if leads[held]:
                inside.setdefault(holder, []).append(held)
        return [self._from([n for n in start if leads[n]], inside) for start in starts]

    def _from(self, start: list[int], inside: dict[int, list[int]]) -> dict[int, int]:
        found = dict.fromkeys(start, 0)
        edge, far = start, 0
        while edge:
            if perf_counter() > self._until + _REST:
                self.cut = True
                break
            far += 1
            after = []
            for number in edge:
                for one in inside.get(number, ()):
                    if one not in found:
                        found[one] = far
                        after.append(one)
            edge = after
        return {number: far for number, far in found.items() if number in self.pieces}


def _unknown(_value: object) -> Sequence[object]:
    return ()


def _walker(kind: type) -> Look | None:
    """Return how to look into objects of a class that is no array; None where there is nothing to find."""
    if id(kind) in _ATOMS or not _FLAGS(kind) & _HOLDS:
        return None
    if kind is FunctionType:
        return _of_function
    if kind is FrameType:
        return locals_of
    if is_one(kind, type):
        return _of_class
    module = type.__getattribute__(kind, "__module__")
    if kind is BuiltinFunctionType or (
        isinstance(module, str) and module.partition(".")[0] in OTHERS
    ):
        return None
    return gc.get_referents


def _of_function(function: FunctionType) -> Sequence[object]:
    """Not its globals: they are roots of their own, or nobody's business."""
    return (
        function.__closure__,
        function.__defaults__,
        function.__kwdefaults__,
        function.__dict__,
    )


def _of_class(cls: type) -> Sequence[object]:
    """What a class of the notebook's, or of a module of the user's, keeps in its attributes."""
    module = type.__getattribute__(cls, "__module__")
    return [*members(cls).values()] if module == "__main__" else ()


def locals_of(frame: FrameType) -> list[object]:
    """Return what a frame keeps for itself. Asking for its `flocals_of` would leave a copy of them there."""
    other = {id(frame.f_back), id(frame.f_globals), id(frame.f_builtins), id(frame.f_code)}
    return [one for one in gc.get_referents(frame) if id(one) not in other]


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage is collected for all that a walk writes down: it is gone in a moment, and looking through it takes longer than the walk."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
