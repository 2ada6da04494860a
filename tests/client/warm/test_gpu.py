"""What only a GPU has: graphs, streams, pinned memory, CuPy, the allocator's pools, memory that is free in fact."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from gpushare_kernel.client.warm import finding, graphs, pools, quiet
from gpushare_kernel.core.errors import NotPutBack
from tests.client.warm.conftest import Tier, is_away
from tests.client.warm.host_memory import Buffer, torch

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("device", ["cuda"])]
MiB = 1 << 20


def reasons() -> list[str]:
    """Return why torch is not at rest."""
    gc.collect()  # a graph of the test before, perhaps
    return list(quiet.of_torch(torch))


def test_memory_is_free_in_fact(tier: Tier, device: str) -> None:
    """What is away is free on the device, not kept by torch's cache."""
    one = torch.ones(64 * MiB, device=device)  # 256 MiB
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    tier.out()
    assert torch.cuda.mem_get_info()[0] - before >= 256 * MiB
    tier.back()
    assert one.sum() == 64 * MiB


def test_launched_work_ends_first(tier: Tier, device: str) -> None:
    """Work that still runs when it is set aside has its result in the copy."""
    one = torch.zeros(1 << 22, device=device)
    torch.cuda._sleep(200_000_000)
    one.add_(1)
    tier.there_and_back(one)
    assert one.sum() == 1 << 22


def test_running_work_is_not_quiet(tier: Tier, device: str) -> None:
    """As long as the stream is not empty it is not quiet."""
    torch.cuda.synchronize()
    assert reasons() == []
    torch.cuda._sleep(2_000_000_000)
    assert reasons() == ["work that was launched still runs on the GPU"]
    torch.cuda.synchronize()
    assert reasons() == []


def test_streams(tier: Tier, device: str) -> None:
    """What was allocated on a stream of the user's stays; with such a stream as the current one it is not quiet."""
    stream, usual = torch.cuda.Stream(), torch.full((MiB,), 2.0, device=device)
    with torch.cuda.stream(stream):
        its = torch.full((MiB,), 3.0, device=device)
        torch.cuda._sleep(100_000_000)
        its.mul_(2)
        usual.record_stream(stream)
        assert "the current stream is not the default one" in reasons()
    assert tier.why_kept(its) == pools.STREAM
    tier.there_and_back(usual)
    assert its.sum() == 6 * MiB
    assert usual.sum() == 2 * MiB


def captured(device: str) -> tuple[Any, Any, Any]:
    """Return a graph with its input and output."""
    weight, given = torch.nn.Linear(64, 64, device=device), torch.randn(8, 64, device=device)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            weight(given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = weight(given)
    return graph, given, result


def test_graph(tier: Tier, device: str) -> None:
    """While a graph lives nothing is moved and it is not quiet; its replay is bit-equal. Once its pool is gone too, all is as before."""
    graph, given, result = captured(device)
    graph.replay()
    kept, other = result.clone(), torch.ones(100, device=device)
    torch.cuda.synchronize()
    assert "CUDA graphs were captured: they know the addresses of what they use" in reasons()
    found = tier.find()
    assert found.movable == []
    assert {one.why for one in found.kept} <= {pools.PRIVATE, finding.UNSEEN}
    result.zero_()
    graph.replay()
    assert torch.equal(result, kept)
    del graph, result
    gc.collect()
    torch.cuda.empty_cache()
    assert not graphs.any_alive(torch)
    assert (
        tier.why_kept(other) == pools.PRIVATE
    )  # cuBLAS' workspace of the capture lives in its pool
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    assert tier.why_kept(other) == ""
    assert given is not None


def test_pinned(tier: Tier, device: str) -> None:
    """Pinned memory is the host's: it is not moved, and copies from it work afterwards."""
    pinned = torch.arange(1000.0).pin_memory()
    there = pinned.to(device, non_blocking=True)
    tier.there_and_back(there)
    assert pinned.is_pinned()
    assert torch.equal(there.cpu(), pinned)
    there.copy_(pinned * 2)
    assert torch.equal(there.cpu(), pinned * 2)


def test_cupy(tier: Tier, device: str) -> None:
    """Memory that CuPy shares with torch stays, whoever allocated it; both still see the other's changes."""
    cupy = pytest.importorskip("cupy")
    given, asked, other = (torch.ones(1000, device=device) for _ in range(3))
    by_dlpack, by_interface, own = cupy.from_dlpack(given), cupy.asarray(asked), cupy.ones(1000)
    taken = torch.from_dlpack(own)
    assert [tier.why_kept(one) for one in (given, asked)] == [finding.GIVEN] * 2
    assert tier.why_kept(taken) in (finding.GIVEN, finding.FOREIGN)
    tier.there_and_back(other)
    given.add_(1)
    asked.add_(2)
    own += 3
    torch.cuda.synchronize()
    cupy.cuda.Device().synchronize()
    assert (float(by_dlpack.sum()), float(by_interface.sum()), float(taken.sum())) == (2000, 3000, 4000)  # fmt: skip


def test_interface(tier: Tier, device: str) -> None:
    """Whoever asks for `__cuda_array_interface__` keeps an address."""
    asked, other = torch.ones(100, device=device), torch.ones(100, device=device)
    assert asked.__cuda_array_interface__["data"][0]
    assert tier.why_kept(asked) == finding.GIVEN
    assert tier.why_kept(other) == ""


def test_no_room_on_the_device(tier: Tier, device: str) -> None:
    """A device that is full: all stays away, nothing is held meanwhile, and it comes back once there is room."""
    one, two = torch.full((64 * MiB,), 3.0, device=device), torch.full((64 * MiB,), 4.0, device=device)  # fmt: skip
    tier.out()
    torch.cuda.set_per_process_memory_fraction(300 * MiB / torch.cuda.mem_get_info()[1])
    try:
        with pytest.raises(NotPutBack, match="nothing is lost"):
            tier.back()
        assert is_away(one)
        assert is_away(two)
        assert torch.cuda.memory_allocated() < 256 * MiB
        assert Buffer.open == 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    tier.back()
    assert (one[:10].sum(), two[:10].sum()) == (30, 40)


def test_pools(tier: Tier, device: str) -> None:
    """A memory pool of the user's stays, and while it is there all else does."""
    if not hasattr(torch.cuda, "MemPool"):
        pytest.skip("this torch has no pools")
    pool, other = torch.cuda.MemPool(), torch.ones(100, device=device)
    with torch.cuda.use_mem_pool(pool):
        its = torch.ones(MiB, device=device)
    assert tier.why_kept(its) == pools.PRIVATE
    assert tier.why_kept(other) == pools.PRIVATE
    assert its.sum() == MiB
    del its, pool
    gc.collect()
    torch.cuda.empty_cache()
    assert tier.why_kept(other) == ""


def test_recurrent_weights(tier: Tier, device: str) -> None:
    """cuDNN's flat weights of an LSTM are one storage with views; it computes the same, and needs no new flattening."""
    torch.manual_seed(0)
    model, given = torch.nn.LSTM(32, 32, 2).to(device), torch.randn(5, 3, 32, device=device)
    kept = model(given)[0].detach().clone()
    torch.cuda.synchronize()
    tier.there_and_back(model.weight_ih_l0)
    assert torch.equal(model(given)[0].detach(), kept)


def test_mixed_precision(tier: Tier, device: str) -> None:
    """The scaler and autocast go on; their state is tensors like others."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64, device=device)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler()
    given = torch.randn(4, 64, device=device)

    def step() -> None:
        with torch.autocast(device, torch.float16):
            loss = model(given).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    step()
    before, scale = model.weight.detach().clone(), scaler.get_scale()
    tier.there_and_back(model.weight)
    assert torch.equal(model.weight.detach(), before)
    assert scaler.get_scale() == scale
    step()
    assert not torch.equal(model.weight.detach(), before)
