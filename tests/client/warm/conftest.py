"""Torch with its exports watched, and memory to set its storages aside in."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gpushare_kernel.client.warm.aside import Aside, set_aside
from gpushare_kernel.client.warm.exports import Exports
from gpushare_kernel.client.warm.finding import Finder, Found
from gpushare_kernel.client.warm.store import TorchStore, digest
from tests.client.warm.host_memory import Buffer, Copies, torch


class Tier:
    """Finding, moving and bringing back, without a kernel around it. Every byte is verified (part 5)."""

    def __init__(self, device: str, exports: Exports) -> None:
        self.device, self.exports = device, exports
        self.copies = Copies(device)
        cuda = device == "cuda"
        settle = torch.cuda.synchronize if cuda else lambda: None
        self.store = TorchStore(torch, settle, torch.cuda.empty_cache if cuda else lambda: None)
        self.finder = Finder(torch, exports, (device,))
        self.aside: Aside | None = None
        self.lease_of: Callable[[int], Any] = Buffer

    def find(self) -> Found:
        """Look, as it is done live: without garbage."""
        gc.collect()
        return self.finder.find()

    def out(self) -> Aside:
        """Set aside whatever can be."""
        found = self.find()
        assert found.movable, found
        self.aside = set_aside(found.movable, self.store, self.lease_of, self.copies, digest)
        return self.aside

    def back(self) -> None:
        """Bring it back."""
        assert self.aside is not None
        self.aside.back()

    def there_and_back(self, *moved: Any) -> None:
        """Set aside and bring back; `moved` must have been away in between."""
        self.out()
        for one in moved:
            assert is_away(one)
        self.back()
        for one in moved:
            assert not is_away(one)

    def why_kept(self, storage_of: Any) -> str:
        """Return why the storage of a tensor stays; nothing where it is moved."""
        storage = storage_of.untyped_storage()
        movable = {one._cdata for one in self.find().movable}
        if storage._cdata in movable:
            return ""
        places = None
        if self.device == "cuda":
            from gpushare_kernel.client.warm import pools

            places = pools.places(torch)
        held = self.finder._held()
        return self.finder._why_not(held[storage._cdata], places) or "it overlaps"


def is_away(tensor: Any) -> bool:
    """Say whether a tensor has a size and no memory."""
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


@pytest.fixture
def exports() -> Iterator[Exports]:
    """Torch's exports, watched for the length of the test."""
    watched = Exports(torch)
    watched.hook()
    yield watched
    watched.remove()


@pytest.fixture
def tier(request: pytest.FixtureRequest, exports: Exports) -> Iterator[Tier]:
    """The tier of the device that the test is run for (`device`, else the CPU). No lease is left open."""
    device = request.getfixturevalue("device") if "device" in request.fixturenames else "cpu"
    Buffer.open = 0
    made = Tier(device, exports)
    yield made
    if made.aside is not None:
        made.aside.back()
    assert Buffer.open == 0, "a lease was not given back"
