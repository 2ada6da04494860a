"""Pages that kernels of one user share: a real broker, a real holder, real processes that map (docs/bundles.md)."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from gpushare_kernel import procfs
from gpushare_kernel.broker.bundles import MAPS
from gpushare_kernel.broker.persons import Person
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import (
    BadFrame,
    BadToken,
    DeviceError,
    NotYours,
    Refused,
    UserError,
)
from gpushare_kernel.core.values import GiB, MiB
from gpushare_kernel.nwv import flat, lease
from gpushare_kernel.nwv.bundle import Bundle
from gpushare_kernel.nwv.region import SEALS, Region
from gpushare_kernel.nwv.store import Shared
from gpushare_kernel.transport.peers import Peer
from gpushare_kernel.wire import messages as msg
from tests.broker.house import House
from tests.nwv.bundles import made, nets
from tests.nwv.held import charged, held, held_names

OTHER = """
import os, pickle, sys
sys.stdin.readline()
import torch
torch.set_num_threads(1)
from gpushare_kernel.nwv.bundle import Bundle
from tests.nwv.bundles import nets
os.environ["GPUSHARE_TOKEN"], os.environ["GPUSHARE_SOCKET"] = sys.stdin.readline().split()
bundle = Bundle.shared("eyes", nets(2), device="cpu")
x = torch.ones(1, 1, 8, 8)
with open("/proc/self/maps") as file: inodes = {line.split()[4] for line in file if "gpushare-pages" in line}
answers = {name: bundle[name](x) for name in bundle}
pickle.dump((inodes, answers), sys.stdout.buffer); sys.stdout.flush()
sys.stdin.readline()
"""


def regions() -> set[str]:
    """Return the inodes of the pages that this process maps, those that another test left included."""
    lines = Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
    return {line.split()[4] for line in lines if "gpushare-pages" in line}


class Other:
    """Another kernel of the same user, which maps the bundle `eyes`."""

    def __init__(self, house: House) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path.cwd())})  # fmt: skip
        opened = house.open("other.ipynb")
        house.bind(opened, self.process.pid)
        self._say(f"\n{opened.token} {house.path}\n")
        self.inodes, self.answers = pickle.load(self.process.stdout)  # type: ignore[arg-type]

    def end(self) -> None:
        """Let it go."""
        with contextlib.suppress(BrokenPipeError):
            self._say("\n")
        self.process.wait(20)
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]

    def _say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()


def test_kernels_of_one_user_map_the_same_pages_and_they_are_charged_once(house: House) -> None:
    """B9, B11: the same memory in two processes, the same answers; one charge, at the holder; it ends with the last use."""
    one = made(nets(2), bits=8)
    bundle = Bundle(one.packed, one.modules, device="cpu")
    before = charged(house)
    bundle.share("eyes")
    (there,) = held(house)
    assert charged(house) - before == there.size
    other = Other(house)
    try:
        assert charged(house) - before == there.size
        assert bundle.region is not None
        assert other.inodes == {str(os.fstat(bundle.region.fd).st_ino)}
        for name, answer in other.answers.items():
            with torch.no_grad():
                expected = one.plain[name](torch.ones(1, 1, 8, 8))
            assert torch.equal(answer, expected)
            assert torch.equal(bundle[name](torch.ones(1, 1, 8, 8)), expected)
        (view,) = house.do(lambda: house.broker.snapshot(Person(os.getuid()))).bundles
        assert (view.name, view.size, view.users, view.pages) == ("eyes", there.size, 2, len(one.packed.pages))  # fmt: skip
        assert 0 < view.shared <= view.pages
        assert set(msgspec.to_builtins(view)) == {"name", "session", "pages", "shared", "size", "users"}  # fmt: skip
        session = next(s for s in house.do(lambda: house.broker.snapshot(Person(os.getuid()))).sessions if s.id == view.session)  # fmt: skip
        assert (session.name, session.p, session.own) == ("bundle eyes", there.size, True)
        assert house.do(lambda: house.broker.snapshot(Person(12345))).bundles == ()
        assert "shared as 'eyes'" in repr(bundle)
        del bundle
        house.saw(lambda: len(there.users) == 1)
        assert charged(house) - before == there.size
    finally:
        other.end()
    house.saw(lambda: house.broker.bundles._held == {})
    assert charged(house) == before
    there.process.wait(20)


def test_a_bundle_that_cannot_be_opened_is_no_use_of_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B11: with a model missing, or where its pages cannot be mapped; the holder ends with the one real use."""
    one = made(nets(2))
    bundle = Bundle(one.packed, one.modules, device="cpu")
    bundle.share("eyes")
    (there,) = held(house)
    for _ in range(3):
        with pytest.raises(UserError) as refused:
            Bundle.shared("eyes", {"net0": one.modules["net0"]}, device="cpu")
        house.saw(lambda: len(there.users) == 1)
    assert "net1" in str(refused.value)  # a traceback that is kept keeps no use
    with monkeypatch.context() as patch:
        patch.setattr(Shared, "map", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Bundle(one.packed, one.modules, device="cpu").share("other")
        house.saw(lambda: held_names(house) == ["eyes"])
    del bundle
    house.saw(lambda: house.broker.bundles._held == {})


def test_a_use_that_comes_when_its_bundle_has_ended_is_hung_up(house: House) -> None:
    """B11: its answer was on the way while the last other use went."""
    bundle = Bundle(made(nets(2)).packed, made(nets(2)).modules, device="cpu")
    bundle.share("eyes")
    (there,) = held(house)
    hung_up: list[str] = []
    late: Any = SimpleNamespace(close=lambda: hung_up.append("late"))
    house.do(lambda: house.broker.bundles._end(there))
    house.do(lambda: house.broker.bundles.lease(there, late))
    assert hung_up == ["late"]


def test_a_holders_own_start_is_charged_to_nobody(house: House) -> None:
    """B11: that Python takes time and memory to start makes no job of it (64 MiB, for a bundle of 12 KiB)."""
    bundle = Bundle(made(nets(2)).packed, made(nets(2)).modules, device="cpu")
    bundle.share("eyes")
    (there,) = held(house)
    house.device.busy = True
    seen = house.do(
        lambda: house.broker.engine_of(there.kernel.id).usage(there.kernel, memory=True)
    )
    assert seen is None
    assert procfs.alive(there.kernel.key)


def test_a_holder_knows_nothing_of_its_brokers_environment(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I9: it runs as its user, who may read all that it was started with."""
    monkeypatch.setenv("SECRET_OF_THE_BROKER", "s3cret")
    bundle = Bundle(made(nets(2)).packed, made(nets(2)).modules, device="cpu")
    bundle.share("eyes")
    (there,) = held(house)
    told = Path(f"/proc/{there.process.pid}/environ").read_bytes()
    assert b"s3cret" not in told
    assert b"PATH=" in told


def test_it_is_unmapped_and_mapped_again(house: House) -> None:
    """B12: no page is mapped in between, the holder keeps them, calls say what to do, and the answers are the same after it."""
    one = made(nets(2))
    bundle = Bundle(one.packed, one.modules, device="cpu", mode="layers")
    before = regions()
    with pytest.raises(UserError, match=r"nothing to unmap\. Share it first"):
        bundle.unmap()
    bundle.share("eyes")
    x = torch.randn(2, 1, 8, 8)
    expected = {name: bundle[name](x) for name in bundle}
    (there,) = held(house)
    for _ in range(2):
        bundle.unmap()
        assert regions() <= before
        for use in (lambda: bundle["net0"](x), bundle["net0"].load, bundle["net0"].unpacked):
            with pytest.raises(UserError, match=r"'eyes' is unmapped. Map it again: bundle.remap\(\)"):  # fmt: skip
                use()
        assert procfs.alive(there.kernel.key)
        bundle.remap()
        assert len(regions() - before) == 1
        for name in bundle:
            assert torch.equal(bundle[name](x), expected[name])
    house.saw(lambda: len(there.users) == 1)
    assert held(house) == [there]


def test_a_holder_that_dies_takes_nothing_with_it_but_its_charge(house: House) -> None:
    """B11: what is mapped stays mapped; nobody new finds it."""
    one = made(nets(1))
    bundle = Bundle(one.packed, one.modules, device="cpu")
    before = charged(house)
    bundle.share("eyes")
    (there,) = held(house)
    os.kill(there.process.pid, signal.SIGKILL)
    house.saw(lambda: house.broker.bundles._held == {})
    house.saw(lambda: house.broker.scheduler.book.table.persistent == before)
    x = torch.ones(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(bundle["net0"](x), one.plain["net0"](x))
    with pytest.raises(UserError, match="no bundle 'eyes' on this device; there are: none"):
        lease.mapped("eyes")
    bundle.share("eyes")
    assert charged(house) == before + held(house)[0].size
    assert lease.mapped("eyes").size == held(house)[0].size
    with torch.no_grad():
        assert torch.equal(bundle["net0"](x), one.plain["net0"](x))


def test_a_holder_ends_with_its_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B11: and what is mapped stays mapped."""
    one = made(nets(1))
    bundle = Bundle(one.packed, one.modules, device="cpu")
    with House(tmp_path, capacity=GiB) as house:
        opened = house.open()
        house.bind(opened)
        monkeypatch.setenv("GPUSHARE_TOKEN", opened.token)
        monkeypatch.setenv("GPUSHARE_SOCKET", str(house.path))
        bundle.share("eyes")
        (there,) = held(house)
    assert there.process.wait(20) == 0
    x = torch.ones(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(bundle["net0"](x), one.plain["net0"](x))


def test_pages_that_do_not_fit_are_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """B11, I1: nothing is charged, no holder stays, and the bundle is as before."""
    one = made({"big": torch.nn.Linear(1024, 1024)}, page_size=1024, keep=())
    first, bundle = (Bundle(one.packed, one.modules, device="cpu") for _ in range(2))
    with House(tmp_path, capacity=8 * MiB) as house:
        opened = house.open()
        house.bind(opened)
        monkeypatch.setenv("GPUSHARE_TOKEN", opened.token)
        monkeypatch.setenv("GPUSHARE_SOCKET", str(house.path))
        first.share("first")
        (there,) = held(house)
        with pytest.raises(Refused, match=r"5 MiB does not fit now: [23] MiB are free"):
            bundle.share("eyes")
        assert held(house) == [there]
        assert charged(house) == there.size
    assert bundle.store is None
    assert bundle["big"](torch.ones(1, 1024)).shape == (1, 1024)


def test_who_may_share_and_map(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """I9: from inside its own kernel only, by its own token; one bundle of a name."""
    one = made(nets(1))
    bundle = Bundle(one.packed, one.modules, device="cpu")
    bundle.share("eyes")
    with pytest.raises(UserError, match="shared already, as 'eyes'"):
        bundle.share("ears")
    with pytest.raises(UserError, match="you have a bundle 'eyes' on this device already"):
        Bundle(one.packed, one.modules, device="cpu").share("eyes")
    with subprocess.Popen(["/bin/sleep", "60"]) as sleeper:
        try:
            opened = house.open("other.ipynb")
            house.bind(opened, sleeper.pid)
            monkeypatch.setenv("GPUSHARE_TOKEN", opened.token)
            with pytest.raises(BadToken, match=f"process {os.getpid()} is not in it"):
                lease.mapped("eyes")
        finally:
            sleeper.kill()
    monkeypatch.setenv("GPUSHARE_TOKEN", "no such token")
    with pytest.raises(BadToken):
        lease.mapped("eyes")
    monkeypatch.delenv("GPUSHARE_TOKEN")
    with pytest.raises(UserError, match="this process is in none"):
        lease.mapped("eyes")


def test_what_is_no_bundle_is_refused(house: House) -> None:
    """B9: pages come sealed and of the size that was said; other messages on such a connection are answered."""
    region = Region.of({"pages": torch.ones(4096)})
    with pytest.raises(
        BadFrame, match=f"of its {region.size + 1} bytes, and one of {region.size} came"
    ):
        lease.offered("eyes", region.size + 1, fd=region.fd)
    with pytest.raises(BadFrame, match=f"of its {region.size} bytes, and none came"):
        lease.offered("eyes", region.size)
    with pytest.raises(UserError, match="under a name, and this one is empty"):
        lease.offered(" ", region.size, fd=region.fd)
    unsealed = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, 4096)
    with pytest.raises(BadFrame, match="sealed against shrinking"):
        lease.offered("eyes", 4096, fd=unsealed)
    os.close(unsealed)
    assert held(house) == []
    caller = house.notebook("third.ipynb")
    answer = caller.ask(msg.BundleFilled())
    assert isinstance(answer, msg.Failure)
    assert answer.code == NotYours.__name__


def test_what_can_never_fit_is_not_told_to_come_later(house: House) -> None:
    """Nor is it charged."""
    large = os.memfd_create("large", os.MFD_ALLOW_SEALING)
    os.ftruncate(large, 2 * GiB)  # none of it is in memory
    fcntl.fcntl(large, fcntl.F_ADD_SEALS, SEALS)
    before = charged(house)
    with pytest.raises(Refused, match=r"2\.0 GiB can never fit: the device has 1\.0 GiB in all"):
        lease.offered("eyes", 2 * GiB, fd=large)
    os.close(large)
    assert (held(house), charged(house)) == ([], before)


def test_an_offer_whose_kernel_left_before_the_answer_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """B11: nobody uses it after a while: the holder ends."""
    from gpushare_kernel.broker import bundles

    monkeypatch.setattr(bundles, "UNUSED", 0.2)
    region = Region.of({"pages": torch.ones(64)})
    offer = msg.OfferBundle(os.environ["GPUSHARE_TOKEN"], "eyes", region.size)
    peer = Peer(os.getpid(), os.getuid(), os.getgid())
    there = house.wait(house.broker.bundles.offer(offer, [region.fd], peer))
    house.saw(lambda: there.ended)
    assert held(house) == []


def test_a_bundle_lies_flat_and_is_read_back() -> None:
    """All of it, with quantised pages and several private tensors."""
    for bits in (32, 8, 4):
        packed = made(nets(2), bits=bits).packed
        region = Region.of(flat.tensors_of(packed))
        again, parts = flat.read(region.whole)
        assert (again.page_size, again.bits, again.members) == (packed.page_size, packed.bits, packed.members)  # fmt: skip
        assert torch.equal(again.pages, packed.pages)
        assert (again.scales is None) == (packed.scales is None)
        for name in packed.members:
            assert torch.equal(again.tables[name], packed.tables[name])
            assert again.private[name].keys() == packed.private[name].keys()
            assert all(torch.equal(again.private[name][k], v) for k, v in packed.private[name].items())  # fmt: skip
        assert {part.name for part in parts} >= {"pages", "table/0", "table/1"}
        memory = torch.zeros(region.size, dtype=torch.uint8)
        flat.write(flat.tensors_of(packed), memory)
        assert torch.equal(flat.read(memory)[0].pages, packed.pages)


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a driver here")
def test_a_holder_that_cannot_take_memory_says_why(house: House) -> None:
    """B11: here for want of a driver; nothing is charged and nothing stays."""
    inventory = house.device.inventory
    house.device.inventory = dataclasses.replace(inventory, kind="cuda")
    before = charged(house)
    with pytest.raises(DeviceError, match=r"could not take 4 KiB: cu\w+: there is no CUDA driver"):
        lease.offered("eyes", 4096)
    assert held(house) == []
    assert charged(house) == before


def test_a_kernel_that_uses_a_bundle_on_a_gpu_is_not_parked(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K9, I5: the scheduler is told, with the reason; with its last use it may be again."""
    one = made(nets(2), bits=8)
    bundle = Bundle(one.packed, one.modules, device="cpu")
    bundle.share("eyes")
    (there,) = held(house)
    broker, told = house.broker, list[Any]()
    handle = broker.scheduler.handle

    def noted(event: Any) -> Any:
        told.append(event)
        return [] if isinstance(event, ev.ParkBarred) else handle(event)

    monkeypatch.setattr(broker.scheduler, "handle", noted)
    kernel = next(k for k in broker.registry if k.name == "mine.ipynb")
    house.device.inventory = dataclasses.replace(house.device.inventory, kind="cuda")
    first, second = (
        house.do(lambda: broker.bundles.lease(there, None, kernel))  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert "'eyes'" in kernel.barred
    house.do(lambda: broker.bundles.left(there, first))
    assert kernel.barred
    house.do(lambda: [broker.bundles.left(there, lease) for lease in [*there.users] if lease.kernel is kernel])  # fmt: skip
    assert kernel.barred == ""
    assert [event.why for event in told if isinstance(event, ev.ParkBarred)] == [
        MAPS.format("eyes"),
        "",
    ]
    assert second not in there.users
