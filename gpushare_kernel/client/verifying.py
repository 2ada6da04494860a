"""Copies that are looked at: what is set aside is hashed before and after, both ways (rule A13 in docs/arena.md).

It reads the device's memory three times more and is for tests, and for whoever wants to be sure: BLAKE2b of the standard
library, about 1 GB/s; no dependency of ours has a faster hash.
"""

from __future__ import annotations

import ctypes
import hashlib
import weakref
from collections.abc import Sequence

from gpushare_kernel.client.copying import Copier, Piece, Place
from gpushare_kernel.core.errors import DeviceError, InternalError

_AT_ONCE = 32 * 2**20
Hashes = dict[tuple[int, int], bytes]


class VerifiedCopier:
    """A copier that believes nothing.

    `out` raises before anybody gives the original up, `back` before anybody gives the lease back.
    """

    def __init__(self, copier: Copier) -> None:
        self._copier = copier
        self._known: weakref.WeakKeyDictionary[Place, Hashes] = weakref.WeakKeyDictionary()

    def out(self, pieces: Sequence[Piece], lease: Place) -> float:
        """Copy, and compare the device before, the device after, and the lease.

        Raises
        ------
        DeviceError
            Where they differ. The original is what counts.
        """
        before = self._device(pieces)
        seconds = self._copier.out(pieces, lease)
        after, there = self._device(pieces), _lease(pieces, lease)
        if after != before:
            _differ(before, after, "was written to while it was copied out: it was not quiet")
        if there != before:
            _differ(before, there, "is not the same in the lease")
        self._known[lease] = self._known.get(lease, {}) | before
        return seconds

    def back(self, pieces: Sequence[Piece], lease: Place) -> float:
        """Copy, and compare the lease with what was copied out, and then the device.

        Raises
        ------
        InternalError
            Where the lease is to give what was never copied out.
        DeviceError
            Where they differ. The lease is what counts; where it is the lease that has changed, nothing was copied.
        """
        known = self._known.get(lease, {})
        keys = [(piece.offset, piece.size) for piece in pieces]
        if any(key not in known for key in keys):
            problem = f"a lease gives back what was copied into it, and of {len(keys)} pieces some never were. Nothing was copied."
            raise InternalError(problem)
        expected = {key: known[key] for key in keys}
        there = _lease(pieces, lease)
        if there != expected:
            _differ(expected, there, "has changed in the lease since it was copied out")
        seconds = self._copier.back(pieces, lease)
        after = self._device(pieces)
        if after != expected:
            _differ(expected, after, "is not the same on the device")
        return seconds

    def read(self, address: int, size: int) -> bytes:
        """Return some bytes of the device."""
        return self._copier.read(address, size)

    def _device(self, pieces: Sequence[Piece]) -> Hashes:
        found = {}
        for piece in pieces:
            hashed = hashlib.blake2b(digest_size=16)
            for start in range(0, piece.size, _AT_ONCE):
                hashed.update(
                    self._copier.read(piece.address + start, min(_AT_ONCE, piece.size - start))
                )
            found[piece.offset, piece.size] = hashed.digest()
        return found


def _lease(pieces: Sequence[Piece], lease: Place) -> Hashes:
    found = {}
    for piece in pieces:
        data = (ctypes.c_char * piece.size).from_address(lease.address + piece.offset)
        found[piece.offset, piece.size] = hashlib.blake2b(data, digest_size=16).digest()
    return found


def _differ(one: Hashes, other: Hashes, how: str) -> None:
    key = next(key for key in one if one[key] != other[key])
    wrong = sum(one[key] != other[key] for key in one)
    problem = (
        f"every byte of a copy is compared, and a piece of {key[1]} bytes at {key[0]} {how} ({one[key].hex()[:8]}, {other[key].hex()[:8]}; "
        f"{wrong} of {len(one)} pieces). Nothing was given up; please report it."
    )
    raise DeviceError(problem)
