"""Copies out of a device and back: with a driver that does nothing before it is waited for, and with one in C (docs/arena.md)."""

from __future__ import annotations

import ctypes
import mmap
import random
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpushare_kernel.client.copy_ring import Part, Ring, chunks, runs
from gpushare_kernel.client.copying import CudaCopier, Piece, Way, checked
from gpushare_kernel.client.libcuda import Cuda
from gpushare_kernel.core.errors import DeviceError, InternalError

KiB = 1024
SLOT = 64 * KiB
STUB = r"""
#include <string.h>
#include <stdlib.h>
#include <stdint.h>
static int live, failing; static _Thread_local void *current; static char context;
int stub_live(void) { return live; } void stub_fail(int n) { failing = n; }
int cuGetErrorName(int e, const char **s) { *s = "CUDA_ERROR_STUB"; return 0; }
int cuInit(unsigned f) { return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return n > 1 ? 101 : 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = &context; live++; return 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { live--; return 0; }
int cuCtxSetCurrent(void *c) { current = c; return c == &context ? 0 : 201; }
#define IN if (current != &context) return 201; if (failing && !--failing) return 700;
int cuCtxSynchronize(void) { IN return 0; }
int cuStreamCreate(void **s, unsigned f) { IN if (f != 1) return 1; *s = malloc(1); live++; return 0; }
int cuStreamSynchronize(void *s) { IN return 0; }
int cuStreamDestroy_v2(void *s) { IN free(s); live--; return 0; }
int cuEventCreate(void **e, unsigned f) { IN if (f != 2) return 1; *e = malloc(1); live++; return 0; }
int cuEventRecord(void *e, void *s) { IN return 0; }
int cuEventSynchronize(void *e) { IN return 0; }
int cuEventDestroy_v2(void *e) { IN free(e); live--; return 0; }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *s) { IN memcpy(to, (void *)from, n); return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *s) { IN memcpy((void *)to, from, n); return 0; }
int cuMemHostAlloc(void **p, size_t n, unsigned f) { IN *p = malloc(n); live++; return 0; }
int cuMemFreeHost(void *p) { IN free(p); live--; return 0; }
int cuMemHostRegister_v2(void *p, size_t n, unsigned f) { IN if ((uintptr_t)p % 4096 || n % 4096) return 1; live++; return 0; }
int cuMemHostUnregister(void *p) { IN live--; return 0; }
"""


class Place:
    """Memory of the host, as a lease has it."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size)
        self.size = size
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def write(self, offset: int, data: bytes) -> None:
        self._map[offset : offset + len(data)] = data

    def read(self, offset: int, size: int) -> bytes:
        return self._map[offset : offset + size]


class PlayedDriver:
    """A device whose memory is this process's. Nothing that is asked of a stream happens before somebody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 1
        self._asked: dict[int, deque[tuple[int, int, int]]] = {}
        self._events: dict[int, tuple[int, int] | None] = {}
        self._begun: dict[int, int] = {}
        self._done: dict[int, int] = {}
        self._pinned: dict[int, Any] = {}
        self.registered: dict[int, int] = {}
        self.was_registered: list[tuple[int, int]] = []
        self.entered: set[int] = set()
        self.settled = 0
        #: Whether memory that is not pinned will do: it does, slowly, where bytes are only read.
        #: The copy that fails (1 is the first), and how.
        self.fails = 0
        #: The event that cannot be made, likewise.
        self.lacks = 0

    def left(self) -> int:
        """What was not given back."""
        return len(self._asked) + len(self._events) + len(self._pinned) + len(self.registered)

    def enter(self) -> None:
        self.entered.add(threading.get_ident())

    def settle_all(self) -> None:
        self._here()
        self.settled += 1

    def stream(self) -> int:
        with self._lock:
            self._here()
            self._next += 1
            self._asked[self._next], self._begun[self._next], self._done[self._next] = deque(), 0, 0
            return self._next

    def settle(self, stream: int) -> None:
        self._work_off(stream, self._begun[stream])

    def end_stream(self, stream: int) -> None:
        assert not self._asked[stream], "a stream is ended with work in it"
        del self._asked[stream]

    def event(self) -> int:
        with self._lock:
            self._here()
            self.lacks -= 1
            if self.lacks == 0:
                raise DeviceError("the played device fails.")  # noqa: EM101
            self._next += 1
            self._events[self._next] = None
            return self._next

    def record(self, event: int, stream: int) -> None:
        self._events[event] = stream, self._begun[stream]

    def wait(self, event: int) -> None:
        recorded = self._events[event]
        if recorded is not None and recorded[0] in self._asked:
            self._work_off(*recorded)

    def end_event(self, event: int) -> None:
        del self._events[event]

    def to_host(self, to: int, address: int, size: int, stream: int) -> None:
        self._ask(to, address, size, stream, to)

    def to_device(self, address: int, source: int, size: int, stream: int) -> None:
        self._ask(address, source, size, stream, source)

    def pin(self, size: int) -> int:
        self._here()
        memory = (ctypes.c_char * size).from_buffer(bytearray(b"\xee" * size))
        address = ctypes.addressof(memory)
        self._pinned[address] = memory
        return address

    def unpin(self, address: int) -> None:
        self._here()
        del self._pinned[address]

    def register(self, address: int, size: int) -> None:
        self._here()
        assert address % 4096 == size % 4096 == 0
        self.registered[address] = size
        self.was_registered.append((address, size))

    def unregister(self, address: int) -> None:
        assert not any(self._asked.values()), "memory is unregistered while the device copies"
        del self.registered[address]

    def _here(self) -> None:
        assert threading.get_ident() in self.entered, "this thread has no context"

    def _ask(self, to: int, source: int, size: int, stream: int, host: int) -> None:
        self._here()
        known = [(a, len(m)) for a, m in self._pinned.items()] + [*self.registered.items()]
        pinned = any(a <= host and host + size <= a + n for a, n in known)
        assert pinned, "it is not pinned"
        with self._lock:
            self.fails -= 1
            if self.fails == 0:
                raise DeviceError("the played device fails.")  # noqa: EM101
            self._asked[stream].append((to, source, size))
            self._begun[stream] += 1

    def _work_off(self, stream: int, until: int) -> None:
        while self._done[stream] < until:
            ctypes.memmove(*self._asked[stream].popleft())
            self._done[stream] += 1


def memory(size: int, seed: int) -> Any:
    """Memory of the device, with chance in it."""
    return ctypes.create_string_buffer(random.Random(seed).randbytes(size), size)


def laid_out(sizes: list[int], gap: int = 0) -> tuple[list[Any], list[Piece], int]:
    """Return pieces of such sizes, where they lie, and the lease's size."""
    blocks, pieces, offset = [], [], 0
    for seed, size in enumerate(sizes):
        blocks.append(memory(size, seed))
        pieces.append(Piece(ctypes.addressof(blocks[-1]), size, offset))
        offset += size + gap
    return blocks, pieces, offset + 1


SIZES = {
    "one": [100],
    "a slot": [SLOT],
    "several slots": [10 * SLOT + 17],
    "many small": [n % 700 for n in range(400)],
    "mixed": [3 * SLOT + 1, 5, 0, SLOT - 6, 900, 7 * SLOT, 1],
}


def ring(driver: Any, threads: int = 3) -> Ring:
    return Ring(driver, threads=threads, slot=SLOT)


WAYS: dict[str, Callable[[Any], CudaCopier]] = {
    "ring": lambda driver: CudaCopier(driver, Way.RING, ring(driver)),
    "one thread": lambda driver: CudaCopier(driver, Way.RING, ring(driver, threads=1)),
    "register": lambda driver: CudaCopier(driver, Way.REGISTER),
}


@pytest.mark.parametrize("gap", [0, 512])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_byte_is_where_it_belongs(way: Callable[[Any], CudaCopier], sizes: list[int], gap: int) -> None:  # fmt: skip
    """A11: out, into other addresses back, twice (the ring is used again); bytes beside the pieces are not touched."""
    driver = PlayedDriver()
    copier = way(driver)
    for _ in range(2):
        blocks, pieces, size = laid_out(sizes, gap)
        place = Place(size)
        place.write(0, b"\xaa" * size)
        assert copier.out(pieces, place) >= 0.0
        for block, piece in zip(blocks, pieces, strict=True):
            assert place.read(piece.offset, piece.size) == block.raw
            assert place.read(piece.offset + piece.size, gap) == b"\xaa" * gap
        others = [ctypes.create_string_buffer(piece.size) for piece in pieces]
        moved = [piece._replace(address=ctypes.addressof(other)) for piece, other in zip(pieces, others, strict=True)]  # fmt: skip
        random.Random(3).shuffle(moved)
        assert copier.back(moved, place) >= 0.0
        assert [other.raw for other in others] == [block.raw for block in blocks]
    assert driver.settled >= 4
    copier.close()
    assert driver.left() == 0


def test_what_the_driver_is_told_of_a_lease() -> None:
    """A12: by way of the ring nothing; by registering only the pages that are used, and nothing afterwards."""
    _, pieces, size = laid_out([SLOT, SLOT])
    pieces = [piece._replace(offset=piece.offset + 2 * SLOT + 100) for piece in pieces]
    place = Place(size + 8 * SLOT)
    for way, expected in ((Way.RING, []), (Way.REGISTER, [(place.address + 2 * SLOT, 2 * SLOT + 4096)])):  # fmt: skip
        driver = PlayedDriver()
        copier = CudaCopier(driver, way, ring(driver))
        copier.out(pieces, place)
        assert driver.was_registered == expected
        assert driver.registered == {}
        copier.close()


@pytest.mark.parametrize("out", [True, False], ids=["out", "back"])
@pytest.mark.parametrize("fails", [1, 4, 9])
@pytest.mark.parametrize("way", Way)
def test_a_driver_that_fails_leaves_nothing_behind(way: Way, fails: int, *, out: bool) -> None:
    """A11: the error comes out when all that was begun has ended; the source is as it was, and the next copy works."""
    driver = PlayedDriver()
    copier = CudaCopier(driver, way, ring(driver))
    blocks, pieces, size = laid_out([SLOT] * 12)
    place = Place(size)
    copier.out(pieces, place)
    driver.fails = fails
    with pytest.raises(DeviceError, match="the played device fails"):
        (copier.out if out else copier.back)(pieces, place)
    assert driver.registered == {}
    for block, piece in zip(blocks, pieces, strict=True):
        assert place.read(piece.offset, piece.size) == block.raw
    for block in blocks:
        ctypes.memset(block, 0, SLOT)
    copier.back(pieces, place)
    assert [block.raw for block in blocks] == [memory(SLOT, seed).raw for seed in range(12)]
    copier.close()
    assert driver.left() == 0


@pytest.mark.parametrize("lacks", [1, 2, 6])
def test_a_ring_that_cannot_be_made_whole_is_not_made(lacks: int) -> None:
    """A11: one of which a part is missing would copy a part of the bytes, and say that it has copied all."""
    driver = PlayedDriver()
    copier = CudaCopier(driver, Way.RING, ring(driver))
    blocks, pieces, size = laid_out([SLOT] * 12)
    place = Place(size)
    driver.lacks = lacks
    with pytest.raises(DeviceError, match="the played device fails"):
        copier.out(pieces, place)
    assert driver.left() == 0
    copier.out(pieces, place)
    assert [place.read(piece.offset, piece.size) for piece in pieces] == [b.raw for b in blocks]
    copier.close()
    assert driver.left() == 0


@pytest.mark.parametrize("places", [[(0, 10), (5, 10)], [(95, 10)], [(-1, 5)], [(0, -5)]], ids=str)
def test_pieces_that_would_write_over_each_other_are_refused(places: list[tuple[int, int]]) -> None:
    """A11: before anything is copied."""
    with pytest.raises(InternalError, match="one behind the other inside their lease of 100 bytes"):
        checked([Piece(4096, size, offset) for offset, size in places], Place(100))


# --- how a copy is cut ----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=20), st.integers(1, 16))
def test_chunks_have_every_byte_once_and_fit_into_a_slot(
    sizes: list[tuple[int, int]], slot: int
) -> None:
    """A11: and a run is never longer than what lies side by side at both ends of the slot."""
    pieces, offset = [], 0
    for size, gap in sizes:
        pieces.append(Piece(10**6 + 7 * offset, size, offset))
        offset += size + gap
    expected = {p.offset + n: p.address + n for p in pieces for n in range(p.size)}
    seen: dict[int, int] = {}
    for chunk in chunks(pieces, slot):
        assert chunk
        at = 0
        for part in chunk:
            assert (part.at, part.size > 0) == (at, True)
            at += part.size
            for n in range(part.size):
                assert part.offset + n not in seen
                seen[part.offset + n] = part.address + n
        assert at <= slot
        cut = [(run.offset + n, run.at + n) for run in runs(chunk) for n in range(run.size)]
        assert cut == [(part.offset + n, part.at + n) for part in chunk for n in range(part.size)]
    assert seen == expected


def test_neighbours_are_one_run() -> None:
    """What lies side by side in the lease is copied by one call."""
    parts = [Part(1, 100, 0, 10), Part(2, 110, 10, 5), Part(3, 120, 15, 5)]
    assert [*runs(parts)] == [Part(1, 100, 0, 15), Part(3, 120, 15, 5)]


# --- the driver's calls -----------------------------------------------------------------------------------------------


@pytest.fixture
def stub(tmp_path: Path) -> Any:
    """A driver in C, whose device is this process's memory: calls must have the right arguments, and a context."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "stub.c").write_text(STUB)
    library = tmp_path / "libcuda.so.1"
    command = [compiler, "-w", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "stub.c")]
    subprocess.run(command, check=True, timeout=60)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("way", Way)
def test_the_calls_of_the_driver_have_their_arguments(stub: Any, way: Way) -> None:
    """A12, A13: every pointer is whole, each thread has the context, and all that is made is given back."""
    cuda = Cuda(0, stub._name)
    copier = CudaCopier(cuda, way, ring(cuda))
    blocks, pieces, size = laid_out([3 * SLOT + 5, 100, 2 * SLOT])
    place = Place(size)
    copier.out(pieces, place)
    assert [place.read(piece.offset, piece.size) for piece in pieces] == [b.raw for b in blocks]
    kept = [block.raw for block in blocks]
    for block in blocks:
        ctypes.memset(block, 0, len(block))
    copier.back(pieces, place)
    assert [block.raw for block in blocks] == kept
    stub.stub_fail(2)
    with pytest.raises(DeviceError, match=r"^cu\w+: CUDA_ERROR_STUB\. What was being copied"):
        copier.out(pieces, place)
    copier.close()
    cuda.close()
    assert stub.stub_live() == 0


def test_a_device_that_is_not_there(stub: Any) -> None:
    """A13: by its own error."""
    with pytest.raises(DeviceError, match="cuDeviceGet: CUDA_ERROR_STUB"):
        Cuda(7, stub._name)
    with pytest.raises(DeviceError, match="need the CUDA driver, and there is none here"):
        Cuda(0, "/nowhere/libcuda.so.1")
