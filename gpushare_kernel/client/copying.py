"""What is set aside is copied: out of the device's memory into a lease, and back. Rules A11 to A13 in docs/arena.md.

A `Copier` copies pieces; which memory of the device they are is the caller's business, and that nothing else uses it meanwhile.
`CudaCopier` has two ways, behind one switch, because only a measurement on the machine tells which is better (benchmarks/gpu_arena).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import Enum
from typing import NamedTuple, Protocol

from gpushare_kernel.client.copy_ring import Driver, Ring
from gpushare_kernel.core.errors import InternalError


class Piece(NamedTuple):
    """Bytes of the device, and where they lie in a lease."""

    address: int
    size: int
    offset: int


class Place(Protocol):
    """A lease, as far as copies need it."""

    @property
    def address(self) -> int:
        """Where it is mapped."""

    @property
    def size(self) -> int:
        """Bytes."""


class Copier(Protocol):
    """Copies pieces. Both directions return when every byte is where it belongs, and the seconds that it took.

    Where they raise, what they copied *from* is as it was.
    """

    def out(self, pieces: Sequence[Piece], lease: Place) -> float:
        """Copy pieces from the device into the lease."""

    def back(self, pieces: Sequence[Piece], lease: Place) -> float:
        """Copy pieces from the lease to the device."""


class Way(Enum):
    """How bytes get from the device into a lease that the driver does not know."""

    RING = "ring"
    """By way of a small pinned ring: the driver copies into it, threads from it. The lease is never registered."""
    REGISTER = "register"
    """Straight into the lease, which is registered with the driver for as long as the copy takes."""


class CudaCopier:
    """Copies between a GPU's memory and a lease.

    Parameters
    ----------
    driver
        The calls of the driver it takes: `client.libcuda.Cuda(device)`, or a played one in tests.
    way
        See `Way`.
    ring
        The ring, of which there is one for good; made at the first copy that needs it.
    """

    def __init__(self, driver: Driver, way: Way = Way.RING, ring: Ring | None = None) -> None:
        self._driver, self.way = driver, way
        self._ring = ring or Ring(driver)
        self._busy = threading.Lock()

    def out(self, pieces: Sequence[Piece], lease: Place) -> float:
        """Copy them into the lease, once the device has done all that was asked of it before."""
        return self._run(pieces, lease, out=True)

    def back(self, pieces: Sequence[Piece], lease: Place) -> float:
        """Copy them from it, likewise."""
        return self._run(pieces, lease, out=False)

    def close(self) -> None:
        """Free the ring."""
        self._in_a_thread(self._ring.close)

    def _run(self, pieces: Sequence[Piece], lease: Place, *, out: bool) -> float:
        good, base = checked(pieces, lease), lease.address
        work = self._ring.copy if self.way is Way.RING else self._registered
        began = time.perf_counter()
        if good:
            self._in_a_thread(lambda: work(good, base, out=out))
        return time.perf_counter() - began

    def _in_a_thread(self, work: Callable[[], None]) -> None:
        """Do it in a thread of its own: the caller's context stays, and an interrupt of the caller leaves no copy half done unnoticed."""

        def working() -> None:
            with self._busy:
                self._driver.enter()
                self._driver.settle_all()
                work()

        with ThreadPoolExecutor(1, thread_name_prefix="gpushare-copier") as pool:
            pool.submit(working).result()

    @contextmanager
    def _stream(self) -> Iterator[int]:
        """Return a stream; all that was asked of it is done when this ends, however it ends."""
        stream = self._driver.stream()
        try:
            yield stream
        finally:
            self._driver.settle(stream)
            self._driver.end_stream(stream)

    def _registered(self, pieces: Sequence[Piece], base: int, *, out: bool) -> None:
        """Register what is used of the lease, copy, and unregister: the cold tier finds nothing registered."""
        driver = self._driver
        first = base + min(piece.offset for piece in pieces)
        first -= first % _PAGE
        end = base + max(piece.offset + piece.size for piece in pieces)
        driver.register(first, -(-(end - first) // _PAGE) * _PAGE)
        try:
            with self._stream() as stream:  # all that was begun has ended before it is unregistered
                for piece in pieces:
                    there = base + piece.offset
                    if out:
                        driver.to_host(there, piece.address, piece.size, stream)
                    else:
                        driver.to_device(piece.address, there, piece.size, stream)
        finally:
            driver.unregister(first)


_PAGE = 4096


def checked(pieces: Sequence[Piece], lease: Place) -> list[Piece]:
    """Return the pieces that have bytes, in the order of the lease.

    Raises
    ------
    InternalError
        Where one lies outside the lease, or two lie in the same bytes of it: a copy would write over somebody's state.
    """
    good = sorted((piece for piece in pieces if piece.size), key=lambda piece: piece.offset)
    end = 0
    for piece in good:
        if piece.size < 0 or piece.offset < end or piece.offset + piece.size > lease.size:
            problem = f"pieces lie one behind the other inside their lease of {lease.size} bytes, and {piece.size} bytes at {piece.offset} do not (behind {end}). Nothing was copied."
            raise InternalError(problem)
        end = piece.offset + piece.size
    return good
