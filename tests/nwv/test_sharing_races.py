"""Shared pages at the wrong moment: two at once, an unmap beside a copy, a holder or a broker that ends (docs/bundles.md)."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpushare_kernel.core.errors import (
    DeviceError,
    UserError,
)
from gpushare_kernel.nwv import holder, travel
from gpushare_kernel.nwv.bundle import Bundle
from gpushare_kernel.nwv.packed import Packed
from gpushare_kernel.nwv.region import Region
from gpushare_kernel.nwv.store import Shared
from gpushare_kernel.transport.peers import Peer
from gpushare_kernel.wire import messages as msg
from tests.broker.house import House
from tests.nwv.bundles import made, nets
from tests.nwv.held import held


def test_two_that_share_at_once_share_once(house: House) -> None:
    """B11: the second one finds it shared; nobody's pages are replaced under a model that runs."""
    bundle = Bundle(made(nets(2)).packed, made(nets(2)).modules, device="cpu")
    start, said = threading.Barrier(2), []

    def share(name: str) -> None:
        start.wait()
        try:
            bundle.share(name)
        except UserError as problem:
            said.append(str(problem))

    threads = [threading.Thread(target=share, args=(name,)) for name in ("eyes", "ears")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 1
    assert "shared already, as" in said[0]
    assert len(held(house)) == 1


def test_nobody_unmaps_what_is_being_copied(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """B12: `unpacked` and a model on its way to another process read pages, so an unmap waits for them."""
    bundle = Bundle(made(nets(2)).packed, made(nets(2)).modules, device="cpu")
    bundle.share("eyes")
    free: list[bool] = []
    gather, departing = Bundle.gather, travel.departing

    def noted(*given: Any) -> Any:
        free.append(bundle.scratch._lock.acquire(blocking=False))
        return (gather if isinstance(given[1], str) and len(given) == 3 else departing)(*given)

    monkeypatch.setattr(Bundle, "gather", noted)
    monkeypatch.setattr(travel, "departing", noted)
    bundle["net0"].unpacked()
    pickle.dumps(bundle["net1"])
    assert free == [False, False]


def test_a_second_remap_changes_nothing(house: House, tmp_path: Path) -> None:
    """B12: on a GPU it would map over what is mapped."""
    bundle = Bundle(made(nets(1)).packed, made(nets(1)).modules, device="cpu")
    bundle.share("eyes")
    assert Packed.load(bundle.save(tmp_path / "b")).members == bundle.members
    there = bundle.region
    bundle.remap()
    assert bundle.region is there


def test_what_runs_on_the_device_ends_before_its_pages_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """B12: also where the last name of a bundle goes; and what fails there keeps no use."""
    done: list[str] = []

    def synchronize(_: object) -> None:
        done.append("waited")
        raise RuntimeError

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    store = Shared.__new__(Shared)
    store._device, store.region = torch.device("cuda", 0), None
    store._mapping = SimpleNamespace(mapped=True, close=lambda: done.append("unmapped"))  # type: ignore[assignment]
    store._lease = SimpleNamespace(close=lambda: done.append("left"))  # type: ignore[assignment]
    with pytest.raises(RuntimeError):
        store.close()
    assert done == ["waited", "unmapped", "left"]
    store._mapping = None


def test_a_broker_that_ends_waits_for_no_answer_of_a_holder(house: House) -> None:
    """A holder that is starting: who offers is told at once, and nothing stays."""
    house.broker.bundles._holder = ("/bin/sleep", "60")
    region = Region.of({"pages": torch.ones(64)})
    offer = msg.OfferBundle(os.environ["GPUSHARE_TOKEN"], "eyes", region.size)
    peer = Peer(os.getpid(), os.getuid(), os.getgid())

    async def offering() -> float:
        loop, bundles = asyncio.get_running_loop(), house.broker.bundles
        task = loop.create_task(bundles.offer(offer, [region.fd], peer))
        await asyncio.sleep(0)  # it goes up to its wait for the holder
        began = loop.time()
        (there,) = bundles._held.values()
        assert there.answered is not None
        bundles._end(there)
        there.process.kill()  # this one does not end with its line
        with pytest.raises(DeviceError, match="could not take"):
            await task
        return loop.time() - began

    assert house.wait(offering()) < 5
    assert held(house) == []


def test_a_holder_whose_broker_went_ends_quietly() -> None:
    """B11: its line has ended before it could answer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.close()
        holder.serve(theirs)
    assert ours.fileno() < 0
