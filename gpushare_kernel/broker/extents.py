"""Which parts of an arena are leased, which rest with memory behind them, and which are holes. Pure: no file is touched here.

Spans are half open and of whole blocks. A free span is a hole but for the rests in it; free neighbours are one span. What is
on its way back to the machine (`draining`) is none of these until it has arrived.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

BLOCK = 2 * 2**20
"""What everything here is a multiple of: a huge page, the driver's granularity."""


class Span(NamedTuple):
    """Bytes from `start` to before `end`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class Rest(NamedTuple):
    """A free span with memory behind it, which nobody has used since `since`."""

    start: int
    end: int
    since: float

    @property
    def span(self) -> Span:
        """Without the time."""
        return Span(self.start, self.end)


def rounded(size: int, block: int = BLOCK) -> int:
    """Return `size` in whole blocks."""
    return -(-size // block) * block


class Extents:
    """The map of one arena.

    Attributes
    ----------
    size
        How long its file is to be. It never shrinks: holes cost nothing.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self.size = 0
        self._leased: dict[int, Span] = {}
        self._free: list[Span] = []
        self._rests: list[Rest] = []
        self._draining: list[Span] = []

    @property
    def leased(self) -> int:
        """Bytes in leases."""
        return sum(span.size for span in self._leased.values())

    @property
    def resting(self) -> int:
        """Bytes that are free, with memory behind them."""
        return sum(rest.span.size for rest in self._rests)

    @property
    def rests(self) -> Sequence[Rest]:
        """What rests, the longest unused first."""
        return sorted(self._rests, key=lambda rest: rest.since)

    @property
    def draining(self) -> bool:
        """Whether something is on its way back to the machine."""
        return bool(self._draining)

    @property
    def empty(self) -> bool:
        """Whether nothing is here that costs anything."""
        return not (self._leased or self._rests or self._draining)

    def take(self, size: int) -> tuple[Span, tuple[Span, ...]]:
        """Lease `size` bytes (whole blocks): first fit, at what rests first; return where, and the holes in it."""
        span = self._place(size)
        self._free = [*_without(self._free, span)]
        held = [rest for rest in self._rests if _meet(rest, span)]
        self._rests = [*_cut(self._rests, span)]
        self._leased[span.start] = span
        return span, tuple(_without([span], *(rest.span for rest in held)))

    def release(self, span: Span, now: float) -> None:
        """End a lease; its memory rests."""
        del self._leased[span.start]
        self._rests.append(Rest(span.start, span.end, now))
        self._give(span)

    def discard(self, span: Span) -> None:
        """End a lease whose memory goes back, whatever of it there is; `drained` follows."""
        del self._leased[span.start]
        self._draining.append(span)

    def drain(self, rest: Rest, most: int) -> Span:
        """Take at least `most` bytes of a rest (all of it at most) out of use, from its end; `drained` follows."""
        size = min(rest.span.size, rounded(most))
        span = Span(rest.end - size, rest.end)
        self._rests = [*_cut(self._rests, span)]
        self._free = [*_without(self._free, span)]
        self._draining.append(span)
        return span

    def drained(self, span: Span) -> None:
        """Its memory has gone back: it is a hole."""
        self._draining.remove(span)
        self._give(span)

    def holes(self) -> list[Span]:
        """Return the spans behind which no memory is to be."""
        return [*_without(self._free, *(rest.span for rest in self._rests))]

    def check(self) -> None:
        """Raise AssertionError where spans overlap, leave bytes out, or free neighbours are two (tests)."""
        spans = sorted([*self._leased.values(), *self._free, *self._draining])
        ends = [0, *(span.end for span in spans)]
        assert [span.start for span in spans] == ends[:-1], spans  # noqa: S101
        assert ends[-1] == self.size, (spans, self.size)  # noqa: S101
        assert self._free == [*_joined(self._free)], self._free  # noqa: S101
        inside = all(any(f.start <= r.start < r.end <= f.end for f in self._free) for r in self._rests)  # fmt: skip
        assert inside, (self._rests, self._free)  # noqa: S101
        assert sum(span.size for span in _joined(r.span for r in self._rests)) == self.resting  # noqa: S101

    def _place(self, size: int) -> Span:
        for spans in (_joined(rest.span for rest in self._rests), self._free):
            for span in spans:
                if span.size >= size:
                    return Span(span.start, span.start + size)
        last = self._free[-1] if self._free else None
        start = last.start if last is not None and last.end == self.size else self.size
        self._grow(start + size)
        return Span(start, start + size)

    def _grow(self, least: int) -> None:
        size = rounded(least, self._step)
        self._give(Span(self.size, size))
        self.size = size

    def _give(self, span: Span) -> None:
        self._free = [*_joined([*self._free, span])]


def _meet(one: Span | Rest, other: Span) -> bool:
    return one.start < other.end and other.start < one.end


def _joined(spans: Iterable[Span]) -> Iterator[Span]:
    """Return them in order, neighbours as one."""
    last: Span | None = None
    for span in sorted(spans):
        if last is not None and last.end >= span.start:
            last = Span(last.start, max(last.end, span.end))
            continue
        if last is not None:
            yield last
        last = span
    if last is not None:
        yield last


def _without(spans: Iterable[Span], *gone: Span) -> Iterator[Span]:
    """Return what is left of spans."""
    left = [*spans]
    for one in gone:
        parts = ((Span(s.start, min(s.end, one.start)), Span(max(s.start, one.end), s.end)) if _meet(s, one) else (s,) for s in left)  # fmt: skip
        left = [part for several in parts for part in several if part.size > 0]
    yield from left


def _cut(rests: Iterable[Rest], gone: Span) -> Iterator[Rest]:
    """Return what is left of rests; each part has rested as long as the whole."""
    for rest in rests:
        for part in _without([rest.span], gone):
            yield Rest(part.start, part.end, rest.since)
