"""What stays on the device, and why (W2, W3, W4). Each reason has its counterpart: without it the same storage is moved."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from multiprocessing import resource_sharer
from types import SimpleNamespace
from typing import Any

import pytest

from gpushare_kernel.client.warm import finding, graphs, pools, quiet
from gpushare_kernel.client.warm.exports import Exports
from tests.client.warm.conftest import Tier
from tests.client.warm.host_memory import DEVICES, torch

EVERYWHERE = pytest.mark.parametrize("device", DEVICES)


@EVERYWHERE
def test_plain(tier: Tier, device: str) -> None:
    """What nobody else knows is moved; a view, a gradient and a second name change nothing."""
    one = torch.ones(100, requires_grad=True, device=device)
    (one * 2).sum().backward()
    names = [one, one[3:], one.detach()]
    assert [tier.why_kept(it) for it in (*names, one.grad)] == [""] * 4


@EVERYWHERE
def test_dlpack(tier: Tier, device: str) -> None:
    """Who was exported by DLPack, by any of its names, stays, its views too; and nobody else."""
    exported = [torch.ones(100, device=device) for _ in range(3)]
    other = torch.ones(100, device=device)
    capsules = [exported[0].__dlpack__(), torch.utils.dlpack.to_dlpack(exported[1]), torch.from_dlpack(exported[2])]  # fmt: skip
    assert [tier.why_kept(one) for one in exported] == [finding.GIVEN] * 3
    assert tier.why_kept(exported[0][5:]) == finding.GIVEN
    assert tier.why_kept(other) == ""
    del capsules  # who took it may have kept more than it shows
    assert tier.why_kept(exported[0]) == finding.GIVEN


def test_numpy(tier: Tier) -> None:
    """NumPy sees a tensor's memory: both ways, that memory stays."""
    np = pytest.importorskip("numpy")
    given, taken, other = torch.ones(100), torch.from_numpy(np.ones(100)), torch.ones(100)
    array, again = given.numpy(), np.asarray(torch.ones(3))
    assert tier.why_kept(given) == finding.GIVEN
    assert tier.why_kept(taken) == finding.FOREIGN
    assert tier.why_kept(other) == ""
    tier.out()
    given.add_(1)
    assert array[0] == 2
    assert again[0] == 1


def test_interface(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who answered `__cuda_array_interface__` stays; one on the CPU has no answer, and is moved."""
    asked, refused = torch.ones(100), torch.ones(100)
    with pytest.raises(AttributeError):
        _ = refused.__cuda_array_interface__
    tier.exports.remove()
    monkeypatch.setattr(torch.Tensor, "__cuda_array_interface__", property(lambda _self: {}))
    tier.exports.hook()
    assert asked.__cuda_array_interface__ == {}
    assert tier.why_kept(asked) == finding.GIVEN
    assert tier.why_kept(refused) == ""
    tier.exports.remove()


def test_shared_with_processes(tier: Tier) -> None:
    """What another process may see stays."""
    from multiprocessing.reduction import ForkingPickler

    shared, sent, other = torch.ones(100).share_memory_(), torch.ones(100), torch.ones(100)
    assert torch.multiprocessing.get_all_sharing_strategies()
    pickled = ForkingPickler.dumps(sent)
    assert pickled
    assert tier.why_kept(shared) == finding.GIVEN
    assert tier.why_kept(sent) == finding.GIVEN
    assert tier.why_kept(other) == ""
    assert not multiprocessing.active_children()
    resource_sharer.stop()  # torch has begun to serve descriptors to whoever unpickles them


@EVERYWHERE
def test_address_asked_for(tier: Tier, device: str) -> None:
    """Who keeps an address as a number has it still after the storage went: so it does not go. Torch itself may ask."""
    asked = [torch.ones(100, device=device) for _ in range(3)]
    saved = torch.ones(100, device=device)
    addresses = [asked[0].data_ptr(), asked[1].untyped_storage().data_ptr()]
    with pytest.warns(UserWarning, match="TypedStorage"):
        addresses.append(asked[2].storage().data_ptr())
    torch.save(saved, "/dev/null")
    assert all(addresses)
    assert [tier.why_kept(one) for one in asked] == [finding.GIVEN] * 3
    assert tier.why_kept(saved) == ""


def test_c_exchange(exports: Exports) -> None:
    """A library that exports by C functions tells nobody what it takes: from then on nothing is known."""
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch has no C functions for it")
    exports.all_seen = True
    assert torch.Tensor.__dlpack_c_exchange_api__
    assert not exports.all_seen


def test_exports_are_forgotten_with_their_storage(exports: Exports) -> None:
    """What was exported and is freed leaves nothing behind that a later storage could be taken for."""
    one = torch.ones(100)
    one.data_ptr()
    assert len(exports._known) == 1
    del one
    gc.collect()
    assert exports._known == {}


def test_hooks_are_taken_back() -> None:
    """After `remove` torch is what it was; what happens then is not seen, and that is said."""
    names = ["__dlpack__", "data_ptr", "numpy", "__array__", "__cuda_array_interface__", "__dlpack_c_exchange_api__"]  # fmt: skip
    before = [vars(torch.Tensor).get(name) for name in names]
    watched = Exports(torch)
    watched.hook()
    assert watched.all_seen == (not torch.cuda.is_initialized())
    assert [vars(torch.Tensor).get(name) for name in names] != before
    watched.remove()
    assert [vars(torch.Tensor).get(name) for name in names] == before
    assert not watched.all_seen


@EVERYWHERE
def test_unseen_owner(tier: Tier, device: str) -> None:
    """Who is held by something that Python does not see stays: the result that `exp` keeps for its backward pass."""
    one = torch.ones(100, device=device, requires_grad=True)
    result = one.exp()
    assert tier.why_kept(result) == finding.UNSEEN
    result.sum().backward()
    assert tier.why_kept(result) == ""


@EVERYWHERE
def test_subclass(tier: Tier, device: str) -> None:
    """A subclass of the user's is not asked, and what it holds stays; one that is registered is a tensor like others."""
    calls: list[str] = []

    class Meta(type(torch.Tensor)):  # type: ignore[misc]
        def __eq__(cls, other: object) -> bool:
            calls.append("eq")
            return cls is other

        def __hash__(cls) -> int:
            calls.append("hash")
            return id(cls)

    class Own(torch.Tensor, metaclass=Meta):
        @classmethod
        def __torch_function__(cls, *args: Any, **options: Any) -> Any:
            calls.append("function")
            return super().__torch_function__(*args, **options)

        def __getattribute__(self, name: str) -> Any:
            calls.append(name)
            return super().__getattribute__(name)

    plain = torch.ones(100, device=device)
    own = torch.Tensor._make_subclass(Own, plain)
    calls.clear()
    found = tier.find()
    storage = torch._C.TensorBase.untyped_storage(plain)
    assert calls == []
    assert storage not in found.movable
    assert any(kept.why == finding.UNSEEN for kept in found.kept)
    known = finding.Finder(torch, tier.exports, (device,), [Own]).find()
    assert any(one is storage for one in known.movable)
    assert own is not None


def test_foreign_memory(tier: Tier) -> None:
    """Memory that torch did not allocate stays, and so does what it lies over."""
    buffer = bytearray(4000)
    foreign = torch.frombuffer(buffer, dtype=torch.float32)
    assert tier.why_kept(foreign) == finding.FOREIGN
    below = torch.ones(1000)
    address = torch._C.TensorBase.data_ptr(below)  # nobody sees this
    alias = torch.frombuffer((ctypes.c_float * 10).from_address(address + 400), dtype=torch.float32)
    assert tier.why_kept(below) == "it overlaps"
    assert alias[0] == 1
    del alias
    assert tier.why_kept(below) == ""


def test_lazy_copy(tier: Tier) -> None:
    """A copy that is still to be made stays, and looking at it does not make it."""
    one = torch.ones(100)
    lazy = one._lazy_clone()
    assert tier.why_kept(lazy) == finding.LAZY
    assert torch._C._is_cow_tensor(lazy)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of each layout
@pytest.mark.parametrize("make", [
    lambda: torch.sparse_coo_tensor([[0, 2]], [1.0, 2.0], (3,)),
    lambda: torch.quantize_per_tensor(torch.ones(8), 0.1, 0, torch.qint8),
    lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(4)]),
    lambda: torch.eye(4).to_sparse_csr(),
    lambda: torch.ones(4, device="meta"),
], ids=["sparse", "quantized", "nested", "csr", "meta"])  # fmt: skip
def test_other_layouts(tier: Tier, make: Any) -> None:
    """Tensors of other layouts are moved or stay, and are the same afterwards."""
    one, other = make(), torch.ones(100)
    before = None if one.is_meta else (one.dequantize() if one.is_quantized else one.to_dense() if one.layout != torch.strided else one).clone()  # fmt: skip
    tier.there_and_back(other)
    after = None if one.is_meta else (one.dequantize() if one.is_quantized else one.to_dense() if one.layout != torch.strided else one)  # fmt: skip
    if before is None or before.is_nested:
        assert str(one) == str(make())
    else:
        assert torch.equal(before, after)


def test_inside_a_transformation(tier: Tier) -> None:
    """Tensors that a transformation wraps (vmap) are left alone, and the result is right."""
    other = torch.ones(100)

    def inner(row: Any) -> Any:
        tier.there_and_back(other)
        return row * 2

    assert torch.equal(torch.vmap(inner)(torch.ones(3, 4)), torch.full((3, 4), 2.0))


def test_frozen_garbage(tier: Tier) -> None:
    """What is hidden from the garbage collector (gc.freeze) stays: wholly, or because one of its owners is not seen."""
    hidden = torch.ones(100)
    gc.freeze()
    try:
        view = hidden.data
        assert tier.why_kept(view) == finding.UNSEEN
    finally:
        gc.unfreeze()
    assert tier.why_kept(view) == ""


SEGMENT = {"device": 0, "address": 1000, "stream": 0, "segment_pool_id": (0, 0)}
BLOCKS = [{"size": 512, "state": "active_allocated"}, {"size": 512, "state": "inactive"}, {"size": 512, "state": "active_pending_free"}]  # fmt: skip


def test_places() -> None:
    """Of the allocator's blocks those are moved that are in use, of the ordinary pool, and of the default stream."""
    ordinary = pools.Places([{**SEGMENT, "blocks": BLOCKS}])
    assert ordinary.why_not(0, 1000) == ""
    assert [ordinary.why_not(*place) for place in ((1, 1000), (0, 1001), (0, 1512), (0, 2024))] == [pools.NOT_CACHED] * 4  # fmt: skip
    assert pools.Places([{**SEGMENT, "stream": 7, "blocks": BLOCKS}]).why_not(0, 1000) == pools.STREAM  # fmt: skip
    graph = [{**SEGMENT, "blocks": BLOCKS}, {**SEGMENT, "address": 9000, "segment_pool_id": (0, 1), "blocks": BLOCKS}]  # fmt: skip
    assert pools.Places(graph).why_not(0, 1000) == pools.PRIVATE
    old = {key: value for key, value in SEGMENT.items() if key != "segment_pool_id"}
    assert pools.Places([{**old, "blocks": BLOCKS}]).why_not(0, 1000) != ""


def test_graph_objects() -> None:
    """A captured graph is seen while it lives, one of a class of the user's too."""

    class Base:
        pass

    class Own(Base):
        pass

    torch_ = SimpleNamespace(_C=SimpleNamespace(_CUDAGraph=Base), cuda=SimpleNamespace(CUDAGraph=Own))  # fmt: skip
    assert not graphs.any_alive(torch_)
    kept = Own()
    assert graphs.any_alive(torch_)
    del kept
    assert not graphs.any_alive(torch_)


@EVERYWHERE
def test_default_device(tier: Tier, device: str) -> None:
    """`torch.set_default_device` sees calls that make tensors: it is no reason, and none of ours goes through it."""
    one = torch.ones(100, device=device)
    torch.set_default_device("meta")
    try:
        assert not [why for why in quiet.of_torch(torch) if "mode" in why]
        tier.there_and_back(one)
        with torch.device("cpu"):
            assert "a mode of torch is active that sees every call" in [*quiet.of_torch(torch)]
    finally:
        torch.set_default_device(None)
    assert one.sum() == 100


class FakeCuda:
    """As much of torch.cuda as is asked whether it is at rest."""

    def __init__(self) -> None:
        self.default, self.current = self.stream(done=True), None
        self.backend = "native"
        self.memory = SimpleNamespace(get_allocator_backend=lambda: self.backend)

    @staticmethod
    def stream(*, done: bool) -> Any:
        return SimpleNamespace(query=lambda: done)

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def default_stream(self, _device: int) -> Any:
        return self.default

    def current_stream(self, _device: int) -> Any:
        return self.current or self.default


def test_cuda_at_rest() -> None:
    """The stream is the default one and empty, and the allocator is torch's own: else it is said what is not."""
    cuda = FakeCuda()
    assert [*quiet._of_cuda(cuda)] == []
    cuda.default = FakeCuda.stream(done=False)
    assert [*quiet._of_cuda(cuda)] == ["work that was launched still runs on the GPU"]
    cuda.current = FakeCuda.stream(done=True)
    assert [*quiet._of_cuda(cuda)] == ["the current stream is not the default one"]
    cuda.current, cuda.default, cuda.backend = None, cuda.current, "cudaMallocAsync"
    assert [*quiet._of_cuda(cuda)] == ["torch's memory is not allocated by its own caching allocator"]  # fmt: skip
