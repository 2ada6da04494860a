"""Storages out of the device and back: nothing changes before all bytes are away, and coming back can be tried again (W6 to W9)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gpushare_kernel.client.copying import Copier, Piece, Place
from gpushare_kernel.core.errors import NotPutBack, NotSetAside

ALIGN = 512
"""Storages lie at multiples of this in the lease."""


class Lease(Place, Protocol):
    """Host memory, ours until it is closed."""

    def close(self) -> None:
        """Give it back."""


class Store(Protocol):
    """What is asked of the framework whose storages these are."""

    def address(self, storage: Any) -> int:
        """Return where a storage's bytes are on the device."""

    def size(self, storage: Any) -> int:
        """Return its bytes."""

    def resize(self, storage: Any, size: int) -> None:
        """Give its memory back (0), or take some anew."""

    def digest(self, storage: Any) -> bytes:
        """Return a hash of its bytes, read in another way than the copier does."""

    def settle(self) -> None:
        """Wait for all work that was launched."""

    def trim(self) -> None:
        """Give what is unused back to the driver."""


@dataclass(slots=True)
class Entry:
    """One storage that is away: its bytes, where they lie, and their hash where it is verified."""

    storage: Any
    size: int
    offset: int
    digest: bytes = b""


def plan(storages: Sequence[Any], store: Store) -> tuple[list[Entry], int]:
    """Return where each storage goes, and the bytes of all."""
    entries, at = [], 0
    for storage in storages:
        size = store.size(storage)
        entries.append(Entry(storage, size, at))
        at += -(-size // ALIGN) * ALIGN
    return entries, at


class Aside:
    """Storages that are away. `seconds` is what copying them out took."""

    def __init__(self, entries: list[Entry], lease: Lease, copier: Copier, store: Store) -> None:
        self.entries = entries
        self.lease = lease
        self.seconds = 0.0
        self._copier, self._store = copier, store
        self._verified = False

    @property
    def size(self) -> int:
        """The bytes that are away."""
        return sum(entry.size for entry in self.entries)

    def out(self, digest: Callable[[int, int], bytes] | None) -> None:
        """Copy all of it out, then empty the storages. `digest` hashes host memory: where it is given, every byte is verified."""
        self._store.settle()
        if digest is not None:
            for entry in self.entries:
                entry.digest = self._store.digest(entry.storage)
        self.seconds = self._copier.out(self._pieces(), self.lease)
        if digest is not None:
            self._verified = True
            for entry in self.entries:
                if digest(self.lease.address + entry.offset, entry.size) != entry.digest:
                    raise NotSetAside(_differs("the copy in the host's memory", entry))
        try:
            for entry in self.entries:
                self._store.resize(entry.storage, 0)
        except BaseException as error:
            try:
                self.back()
            except BaseException:  # noqa: BLE001 - all of it is away then, as it was meant to be
                return
            raise NotSetAside(_FAILED) from error
        _try(self._store.trim)

    def back(self) -> float:
        """Bring all of it back; returns the seconds that copying took. Where that fails all of it is away as before."""
        if not self.entries:
            return 0.0
        try:
            for entry in self.entries:
                if self._store.size(entry.storage) != entry.size:
                    self._store.resize(entry.storage, entry.size)
            seconds = self._copier.back(self._pieces(), self.lease)
            self._store.settle()
            self._verify()
        except BaseException as error:
            self._shrink()
            if isinstance(error, NotPutBack) or not isinstance(error, Exception):
                raise
            msg = f"{_STILL} ({type(error).__name__}: {error})"
            raise NotPutBack(msg) from error
        self.entries = []
        self.lease.close()
        return seconds

    def _verify(self) -> None:
        if self._verified:
            for entry in self.entries:
                if self._store.digest(entry.storage) != entry.digest:
                    raise NotPutBack(_differs("what came back", entry))

    def _shrink(self) -> None:
        """Some came back and some did not: what is in the lease is whole, so all of it goes."""
        for entry in self.entries:
            with contextlib.suppress(Exception):
                self._store.resize(entry.storage, 0)
        _try(self._store.trim)

    def _pieces(self) -> list[Piece]:
        return [Piece(self._store.address(e.storage), e.size, e.offset) for e in self.entries]


def set_aside(
    storages: Sequence[Any],
    store: Store,
    lease_of: Callable[[int], Lease],
    copier: Copier,
    digest: Callable[[int, int], bytes] | None,
) -> Aside:
    """Set storages aside.

    Raises
    ------
    NotSetAside
        Where the lease is too small, or the copy is not what it should be. Like any other error: nothing has changed.
    """
    entries, total = plan(storages, store)
    lease = lease_of(total)
    aside = Aside(entries, lease, copier, store)
    try:
        _check(lease, total)
        aside.out(digest)
    except BaseException:
        if aside.entries:  # else it came back, and gave its lease back
            lease.close()
        raise
    return aside


def _check(lease: Lease, total: int) -> None:
    if lease.size < total:
        msg = f"host memory for {total} bytes was asked for, and {lease.size} came: nothing was set aside. Try again later."
        raise NotSetAside(msg)


_FAILED = "a storage could not be emptied: all that was set aside is put back."
_STILL = "the memory could not be put back yet; nothing is lost, and it can be tried again"


def _differs(what: str, entry: Entry) -> str:
    return f"every byte is verified, and {what} is not the same in a storage of {entry.size} bytes: it is not used. Report this, please."


def _try(call: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):  # what is unused stays for later
        call()
