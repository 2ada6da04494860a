"""Out and back, whole or not at all (W6 to W9): each step fails once, and nothing is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpushare_kernel.client.warm.aside import ALIGN, plan, set_aside
from gpushare_kernel.client.warm.warm import undisturbed
from gpushare_kernel.core.errors import NotPutBack, NotSetAside
from tests.client.warm.conftest import Tier, is_away
from tests.client.warm.host_memory import DEVICES, Buffer, torch

ROOT = Path(__file__).parents[3]
EVERYWHERE = pytest.mark.parametrize("device", DEVICES)


class FailingStore:
    """A store whose n-th `resize` of a kind fails."""

    def __init__(self, store: Any, *, shrink: int = 0, grow: int = 0) -> None:
        self._store, self.shrink, self.grow = store, shrink, grow

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def resize(self, storage: Any, size: int) -> None:
        kind = "grow" if size else "shrink"
        left = getattr(self, kind)
        setattr(self, kind, left - 1)
        if left == 1:
            msg = f"no {kind}"
            raise RuntimeError(msg)
        self._store.resize(storage, size)


def several(device: str) -> list[Any]:
    """Return tensors of odd sizes."""
    return [torch.arange(float(n), device=device) for n in (1, 127, 128, 129, 1000)]


def whole(tensors: list[Any]) -> bool:
    """Say whether `several` is what it was."""
    return all(torch.equal(one, torch.arange(float(len(one)), device=one.device)) for one in tensors)  # fmt: skip


@EVERYWHERE
def test_plan(tier: Tier, device: str) -> None:
    """Storages lie one behind the other, each at a multiple of 512."""
    entries, total = plan([one.untyped_storage() for one in several(device)], tier.store)
    assert [entry.offset for entry in entries] == [0, 512, 1024, 1536, 2560]
    assert total == 2560 + 4096
    assert total % ALIGN == 0


@EVERYWHERE
def test_sizes(tier: Tier, device: str) -> None:
    """What is away is what the storages held, and they hold nothing."""
    tensors = several(device)
    aside = tier.out()
    assert all(is_away(one) for one in tensors)
    assert aside.size == sum(entry.size for entry in aside.entries) >= 4 * (1 + 127 + 128 + 129 + 1000)  # fmt: skip
    assert aside.seconds == 0.5
    tier.back()
    assert aside.size == 0
    assert whole(tensors)


def test_back_twice(tier: Tier) -> None:
    """A second `back` does nothing: what was changed after the first stays changed."""
    tensors = several("cpu")
    tier.out()
    tier.back()
    tensors[4].fill_(5)
    tier.back()
    assert tensors[4].sum() == 5000


def test_lease_refused(tier: Tier) -> None:
    """No host memory: the error passes, nothing has changed."""
    tensors = several("cpu")

    def refuse(_size: int) -> Any:
        msg = "the arena is full"
        raise MemoryError(msg)

    tier.lease_of = refuse
    with pytest.raises(MemoryError, match=r"^the arena is full$"):
        tier.out()
    assert whole(tensors)


def test_lease_too_small(tier: Tier) -> None:
    """A lease that is too small is given back, and nothing was copied."""
    tensors = several("cpu")
    copied: list[Any] = []
    tier.copies.after_out = copied.append
    tier.lease_of = lambda size: Buffer(size - 1)
    with pytest.raises(NotSetAside, match=r"^host memory for \d+ bytes was asked for, and \d+ came"):  # fmt: skip
        tier.out()
    assert copied == []
    assert whole(tensors)


def test_copy_out_fails(tier: Tier) -> None:
    """The copy fails: nothing has changed, and the lease is given back."""
    tensors = several("cpu")

    def fail(_lease: Any) -> None:
        msg = "CUDA error"
        raise RuntimeError(msg)

    tier.copies.after_out = fail
    with pytest.raises(RuntimeError, match="CUDA error"):
        tier.out()
    assert whole(tensors)


@EVERYWHERE
def test_copy_is_not_the_same(tier: Tier, device: str) -> None:
    """One wrong byte in the copy is found before anything is emptied (part 5)."""
    tensors = several(device)
    tier.copies.after_out = Buffer.spoil
    with pytest.raises(NotSetAside, match="the copy in the host's memory is not the same"):
        tier.out()
    assert whole(tensors)


def test_unverified_copy_is_believed(tier: Tier) -> None:
    """The counterpart: without verification the same wrong byte comes back."""
    tensors = several("cpu")
    tier.copies.after_out = Buffer.spoil
    storages = [one.untyped_storage() for one in tensors]
    set_aside(storages, tier.store, Buffer, tier.copies, None).back()
    assert not whole(tensors)
    assert whole(tensors[1:])


@EVERYWHERE
@pytest.mark.parametrize("at", [1, 2, 5])
def test_emptying_fails(tier: Tier, device: str, at: int) -> None:
    """A storage cannot be emptied when others are already: all is put back, bit-equal, and the lease is given back."""
    tensors = several(device)
    tier.store = FailingStore(tier.store, shrink=at)  # type: ignore[assignment]
    with pytest.raises(NotSetAside, match="put back"):
        tier.out()
    assert whole(tensors)


def test_emptying_and_putting_back_fail(tier: Tier) -> None:
    """Neither forth nor back: then it counts as set aside, and nothing of the lease is lost."""
    tensors = several("cpu")
    tier.store = FailingStore(tier.store, shrink=3, grow=1)  # type: ignore[assignment]
    aside = tier.out()
    assert aside.size
    tier.back()
    assert whole(tensors)


@EVERYWHERE
@pytest.mark.parametrize("at", [1, 3, 5])
def test_no_room(tier: Tier, device: str, at: int) -> None:
    """No room for the n-th storage: all stays set aside, what came is given back at once, and the next time it comes."""
    tensors = several(device)
    tier.out()
    assert tier.aside is not None
    tier.aside._store = FailingStore(tier.store, grow=at)  # type: ignore[assignment]
    with pytest.raises(NotPutBack, match=r"nothing is lost.*no grow"):
        tier.back()
    assert all(is_away(one) for one in tensors)
    assert Buffer.open == 1
    tier.back()
    assert whole(tensors)


def test_copy_back_fails(tier: Tier) -> None:
    """The copy back fails: all stays set aside, and can be tried again."""
    tensors = several("cpu")
    tier.out()

    def fail(_lease: Any) -> None:
        tier.copies.before_back = lambda _lease: None
        msg = "CUDA error"
        raise RuntimeError(msg)

    tier.copies.before_back = fail
    with pytest.raises(NotPutBack, match="CUDA error"):
        tier.back()
    assert all(is_away(one) for one in tensors)
    tier.back()
    assert whole(tensors)


@EVERYWHERE
def test_what_came_back_is_not_the_same(tier: Tier, device: str) -> None:
    """One wrong byte on the way back is found; the memory stays set aside, and where the lease is whole again it comes back."""
    tensors = several(device)
    tier.out()
    tier.copies.before_back = Buffer.spoil
    with pytest.raises(NotPutBack, match="what came back is not the same"):
        tier.back()
    assert all(is_away(one) for one in tensors)
    tier.back()  # spoiled twice: the byte is what it was
    assert whole(tensors)


def test_interrupt_in_the_middle(tier: Tier) -> None:
    """An interrupt that comes while it is moved comes when all is moved."""
    tensors = several("cpu")
    tier.copies.after_out = lambda _lease: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), undisturbed():
        tier.out()
    assert all(is_away(one) for one in tensors)
    tier.back()
    assert whole(tensors)


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import tests.client.warm.conftest as c
from gpushare_kernel.client.warm.exports import Exports
from tests.client.warm.host_memory import torch
tier = c.Tier({device!r}, Exports(torch)); x = torch.ones(1000, device={device!r})
def end(_lease): os.kill(os.getpid(), signal.SIGKILL)
if {when!r} == "out": tier.copies.after_out = end
else: tier.copies.before_back = end
tier.out()
print("out", flush=True)
tier.back()
print("back", flush=True)
"""


@EVERYWHERE
@pytest.mark.parametrize("when", ["out", "back"])
def test_killed_while_it_moves(device: str, when: str) -> None:
    """A process that is killed in the middle is gone: it holds nothing that anybody waits for."""
    code = KILLED.format(root=str(ROOT), device=device, when=when)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.stdout == ("" if when == "out" else "out\n")
