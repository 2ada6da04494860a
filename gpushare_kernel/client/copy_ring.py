"""A small pinned ring between the device and memory that the driver does not know: it copies at one end, threads at the other.

A thread has two slots and a stream of its own. While the driver fills one slot the thread empties the other, so nobody waits
for anybody else's slot. ctypes lets the GIL go in every call: of the driver, and in `memmove`.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle
from typing import NamedTuple, Protocol

MiB = 2**20
SLOT = 4 * MiB
"""Bytes of a slot. Smaller ones have the threads wait for each other's GIL: 16 of them copied 35 GB/s by 4 MiB, 13 by 2, 6 by 1."""
MOST_THREADS = 16
"""With two slots each the ring has 128 MiB. On 16 cores beside an H200: 21 GB/s with 4 threads, 27 with 8, 36 to 39 with 16 (benchmarks/gpu_arena)."""
SLOTS = 2
_PAGE = 4096
_POPULATE_READ, _POPULATE_WRITE = 22, 23  # Linux 5.14; the mmap module does not name them
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Driver(Protocol):
    """What copies need of a device's driver. A stream, an event and a slot are numbers of its own."""

    def enter(self) -> None:
        """Have this thread work on the device; called first on every thread."""

    def settle_all(self) -> None:
        """Wait until the device has done all that this process asked of it."""

    def stream(self) -> int:
        """Return a new stream, which waits for no other."""

    def settle(self, stream: int) -> None:
        """Wait until a stream has done all that was asked of it."""

    def end_stream(self, stream: int) -> None:
        """Give a stream back."""

    def event(self) -> int:
        """Return a new event."""

    def record(self, event: int, stream: int) -> None:
        """Have the event happen when the stream has done all that was asked of it so far."""

    def wait(self, event: int) -> None:
        """Wait until it has happened as last recorded; one that was never recorded has."""

    def end_event(self, event: int) -> None:
        """Give an event back."""

    def to_host(self, to: int, address: int, size: int, stream: int) -> None:
        """Begin to copy from the device."""

    def to_device(self, address: int, source: int, size: int, stream: int) -> None:
        """Begin to copy to the device."""

    def pin(self, size: int) -> int:
        """Return the address of new pinned memory of the host."""

    def unpin(self, address: int) -> None:
        """Give it back."""

    def register(self, address: int, size: int) -> None:
        """Pin memory that is there already."""

    def unregister(self, address: int) -> None:
        """Undo it."""


class Part(NamedTuple):
    """Bytes that are copied by one call at the device's end: where they lie there, in the lease, and in the slot."""

    address: int
    offset: int
    at: int
    size: int


class _Piece(Protocol):
    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def offset(self) -> int: ...


def chunks(pieces: Iterable[_Piece], slot: int) -> Iterator[list[Part]]:
    """Cut pieces into what fits into a slot each: large ones into several, small ones together."""
    chunk: list[Part] = []
    at = 0
    for piece in pieces:
        done = 0
        while done < piece.size:
            size = min(piece.size - done, slot - at)
            chunk.append(Part(piece.address + done, piece.offset + done, at, size))
            done, at = done + size, at + size
            if at == slot:
                yield chunk
                chunk, at = [], 0
    if chunk:
        yield chunk


def runs(chunk: Sequence[Part]) -> Iterator[Part]:
    """Return a chunk's parts as few as the lease's end needs: those that lie side by side there are one."""
    last: Part | None = None
    for part in chunk:
        if last is not None and last.offset + last.size == part.offset:
            last = last._replace(size=last.size + part.size)
            continue
        if last is not None:
            yield last
        last = part
    if last is not None:
        yield last


class _Slot:
    def __init__(self, driver: Driver, address: int) -> None:
        self.address, self.event = address, driver.event()


class Ring:
    """Pinned slots, made at the first copy and kept. One copy at a time.

    Parameters
    ----------
    driver
        The device's.
    threads, slot
        How many threads copy at the host's end, and the bytes of a slot, of which each has two.
    """

    def __init__(self, driver: Driver, threads: int | None = None, slot: int = SLOT) -> None:
        self._driver = driver
        self._threads = threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))
        self._slot = slot
        self._pinned = 0
        self._slots: list[list[_Slot]] = []

    @property
    def size(self) -> int:
        """Bytes of pinned memory that it takes."""
        return self._threads * SLOTS * self._slot

    def copy(self, pieces: Sequence[_Piece], base: int, *, out: bool) -> None:
        """Copy pieces between the device and the lease at `base`; every byte is there when it returns."""
        self._make()
        todo = deque(chunks(pieces, self._slot))
        work = self._out if out else self._back
        count = min(self._threads, len(todo))
        with ThreadPoolExecutor(count, thread_name_prefix="gpushare-copy") as pool:
            jobs = [pool.submit(work, slots, todo, base) for slots in self._slots[:count]]
        for job in jobs:
            job.result()

    def close(self) -> None:
        """Free it; a later copy makes it anew."""
        if not self._pinned:
            return
        for slot in (slot for slots in self._slots for slot in slots):
            self._driver.end_event(slot.event)
        self._driver.unpin(self._pinned)
        self._pinned, self._slots = 0, []

    def _make(self) -> None:
        if self._pinned:
            return
        address, slots = self._driver.pin(self.size), []
        with ExitStack() as undo:  # a ring of which a part is missing would copy a part, or nothing
            undo.callback(self._driver.unpin, address)
            for start in range(address, address + self.size, self._slot):
                slots.append(_Slot(self._driver, start))
                undo.callback(self._driver.end_event, slots[-1].event)
            undo.pop_all()
        self._pinned = address
        self._slots = [slots[at : at + SLOTS] for at in range(0, len(slots), SLOTS)]

    def _out(self, slots: Sequence[_Slot], todo: deque[list[Part]], base: int) -> None:
        driver = self._driver
        driver.enter()
        stream = driver.stream()
        filled: tuple[_Slot, list[Part]] | None = None
        try:
            for slot, chunk in zip(cycle(slots), _taken(todo), strict=False):
                for part in chunk:
                    driver.to_host(slot.address + part.at, part.address, part.size, stream)
                driver.record(slot.event, stream)
                if filled is not None:
                    self._empty(*filled, base)
                filled = slot, chunk
            if filled is not None:
                self._empty(*filled, base)
        finally:
            todo.clear()  # where this one failed, nobody begins anything more
            driver.settle(stream)
            driver.end_stream(stream)

    def _empty(self, slot: _Slot, chunk: Sequence[Part], base: int) -> None:
        self._driver.wait(slot.event)
        for run in runs(chunk):
            _populate(base + run.offset, run.size, _POPULATE_WRITE)
            ctypes.memmove(base + run.offset, slot.address + run.at, run.size)

    def _back(self, slots: Sequence[_Slot], todo: deque[list[Part]], base: int) -> None:
        driver = self._driver
        driver.enter()
        stream = driver.stream()
        try:
            for slot, chunk in zip(cycle(slots), _taken(todo), strict=False):
                driver.wait(slot.event)  # the device has read what this slot had before
                for run in runs(chunk):
                    _populate(base + run.offset, run.size, _POPULATE_READ)
                    ctypes.memmove(slot.address + run.at, base + run.offset, run.size)
                for part in chunk:
                    driver.to_device(part.address, slot.address + part.at, part.size, stream)
                driver.record(slot.event, stream)
        finally:
            todo.clear()
            driver.settle(stream)
            driver.end_stream(stream)


def _taken(todo: deque[list[Part]]) -> Iterator[list[Part]]:
    while True:
        try:
            yield todo.popleft()
        except IndexError:
            return


def _populate(address: int, size: int, how: int) -> None:
    """Fill in our page table in one call rather than by a fault for each page. Older kernels refuse, and then it is faults."""
    start = address - address % _PAGE
    _libc.madvise(start, address + size - start, how)
