"""Bundles on a real GPU: the kernel's bits, both modes, streams, graphs, and what memory they take."""

from __future__ import annotations

import gc
import importlib.util
import pickle
import threading
from collections.abc import Iterator

import pytest
import torch

from gpushare_kernel.core.errors import BadDeclaration, UserError
from gpushare_kernel.nwv import gather_cuda
from gpushare_kernel.nwv.bundle import Bundle
from gpushare_kernel.nwv.gather import Norm, Pages, TorchGather
from gpushare_kernel.nwv.layout import laid_out
from tests.nwv.bundles import Attends, Net, made, nets

pytestmark = pytest.mark.gpu

MODES = ("switch", "layers")
needs_cupy = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="needs CuPy")


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """The same bits whichever way: no TF32, one choice of algorithm."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch.backends.cudnn.deterministic = False


@needs_cupy
@pytest.mark.parametrize("page_size", [2, 24, 100, 1024])
@pytest.mark.parametrize(
    ("bits", "pages"),
    [(32, torch.float32), (16, torch.float16), (16, torch.bfloat16), (8, None), (4, None)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normal", [True, False])
def test_the_kernel_gives_the_bits_of_torch(page_size: int, bits: int, pages: torch.dtype | None, dtype: torch.dtype, normal: bool) -> None:  # fmt: skip
    """B1: every kind of page, weight and table; parameters that begin and end anywhere in a page; on CPU and GPU."""
    one = made({"a": Net(5, 7, dtype), "b": torch.nn.Linear(301, 67, dtype=dtype)}, page_size=page_size, bits=bits, dtype=pages, normal=normal, keep=("norm",)).packed  # fmt: skip
    for name, member in one.members.items():
        layout, norm = laid_out(member.pieces), Norm(member.shift, member.scale)
        host = Pages(one.pages, one.scales, one.page_size, one.bits)
        expected = torch.zeros(layout.size, dtype=torch.uint8)
        TorchGather(host, one.tables[name], norm, layout)(expected)
        scales = None if one.scales is None else one.scales.cuda()
        there = Pages(one.pages.cuda(), scales, one.page_size, one.bits)
        for kind in (torch.uint8, torch.uint16, torch.int32, torch.uint32, torch.int64):
            numbers = one.tables[name].to(torch.int64)
            if int(numbers.max()) > torch.iinfo(kind).max:
                continue
            table = numbers.to(kind).cuda()
            for gather in (gather_cuda.KernelGather, TorchGather):
                found = torch.zeros(layout.size, dtype=torch.uint8, device="cuda")
                gather(there, table, norm, layout)(found)
                assert torch.equal(found.cpu(), expected), (gather, kind)


@needs_cupy
def test_large_parameters_take_many_blocks() -> None:
    """B1: more than a block each, and odd sizes, so that the last block is a part."""
    one = made({"a": torch.nn.Linear(4097, 1023)}, page_size=1024, keep=())
    bundle = Bundle(one.packed, one.modules, device="cuda")
    found = bundle["a"].unpacked()
    assert torch.equal(found.weight.cpu(), one.plain["a"].weight)  # type: ignore[operator,arg-type]
    assert torch.equal(found.bias.cpu(), one.plain["a"].bias)  # type: ignore[operator,arg-type]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_a_model_computes_what_it_would_with_weights_of_its_own(mode: str, bits: int) -> None:
    """B1: bit by bit."""
    one = made(nets(), bits=bits)
    bundle = Bundle(one.packed, one.modules, mode=mode)
    assert bundle.device.type == "cuda"
    x = torch.randn(5, 1, 8, 8, device="cuda")
    for name in ("net0", "net2", "net2", "net1", "net0", "net0"):
        with torch.no_grad():
            expected = one.plain[name].cuda()(x)
        assert torch.equal(bundle[name](x), expected)
        assert torch.equal(bundle[name].unpacked()(x), expected)


@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
def test_modules_that_look_into_others_work() -> None:
    """B1: both modes agree for attention and an LSTM."""
    torch.manual_seed(0)
    one = made({"a": Attends().eval(), "b": Attends().eval()}, keep=())
    x = torch.randn(4, 7, 16, device="cuda")
    switch, layers = (Bundle(one.packed, one.modules, mode=mode) for mode in MODES)
    for name in ("a", "b", "a"):
        with torch.no_grad():
            expected = one.plain[name].cuda()(x)
        assert torch.equal(switch[name](x), layers[name](x))
        torch.testing.assert_close(switch[name](x), expected)


@pytest.mark.parametrize("mode", MODES)
def test_streams_do_not_see_each_others_weights(mode: str) -> None:
    """B2: six threads with a stream each; every answer is its own model's, also where the GPU is behind."""
    wide = {f"net{n}": torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(6))) for n in range(3)}  # fmt: skip
    one = made(wide, page_size=512, keep=())
    bundle = Bundle(one.packed, one.modules, mode=mode)
    x = torch.randn(64, 512, device="cuda")
    with torch.no_grad():
        expected = {name: model.cuda()(x) for name, model in one.plain.items()}
    torch.cuda.synchronize()
    answers: list[tuple[str, torch.Tensor]] = []
    start = threading.Barrier(6)

    def work(seed: int) -> None:
        names = sorted(expected)
        start.wait()
        with torch.cuda.stream(torch.cuda.Stream()):
            for turn in range(60):
                name = names[(seed + turn) % 3]
                answers.append((name, bundle[name](x)))
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 360
    assert [name for name, found in answers if not torch.equal(found, expected[name])] == []


@pytest.mark.parametrize("mode", MODES)
def test_graphs_replay_the_model_whoever_ran_meanwhile(mode: str) -> None:
    """B10: replayed after other models, and for other inputs."""
    one = made(nets(2))
    bundle = Bundle(one.packed, one.modules, mode=mode)
    x = torch.randn(5, 1, 8, 8, device="cuda")
    graphs = {name: bundle[name].graphed(x) for name in bundle}
    for turn in range(3):
        given = torch.randn(5, 1, 8, 8, device="cuda")
        for name in ("net0", "net1", "net1", "net0"):
            with torch.no_grad():
                expected = one.plain[name].cuda()(given)
            torch.testing.assert_close(graphs[name](given), expected)
            if turn == 1:
                assert torch.equal(bundle["net1"](given), graphs["net1"](given))
    with pytest.raises(BadDeclaration, match=r"made for inputs \(5, 1, 8, 8\) of torch.float32"):
        graphs["net0"](x[:2])


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_capture_by_hand_is_right_or_refused() -> None:
    """B10: a gather in a capture does not happen; layer by layer a replay would write what others take for theirs."""
    one = made(nets(2))
    bundle = Bundle(one.packed, one.modules)
    x = torch.randn(5, 1, 8, 8, device="cuda")
    for name in ("net1", "net0"):
        bundle[name](x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = bundle["net0"](x)
    bundle["net1"](x)
    bundle["net0"].load()
    graph.replay()
    with torch.no_grad():
        torch.testing.assert_close(found, one.plain["net0"].cuda()(x))
        torch.testing.assert_close(bundle["net1"](x), one.plain["net1"].cuda()(x))
    torch.cuda.synchronize()
    with pytest.raises(UserError, match=r"Call bundle\[name\].load\(\) first"), torch.cuda.graph(torch.cuda.CUDAGraph()):  # fmt: skip
        bundle["net0"](x)
    layers = Bundle(one.packed, one.modules, mode="layers")
    layers["net0"](x)
    torch.cuda.synchronize()
    with pytest.raises(UserError, match="writes the scratch unseen"), torch.cuda.graph(torch.cuda.CUDAGraph()):  # fmt: skip
        layers["net0"](x)


@pytest.mark.parametrize("mode", MODES)
def test_it_takes_what_it_says(mode: str) -> None:
    """B6: what torch gives out grows by what `sizes` tells, and comes back when the bundle goes."""
    layers = {f"m{n}": torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(8))) for n in range(4)}  # fmt: skip
    one = made(layers, page_size=1024, keep=(), spare=1.0)
    gc.collect()
    x = torch.randn(1, 1024, device="cuda")
    torch.nn.functional.linear(x, torch.ones(8, 1024, device="cuda"))  # cuBLAS takes its workspace
    before = torch.cuda.memory_allocated()
    bundle = Bundle(one.packed, one.modules, mode=mode)
    took, said = torch.cuda.memory_allocated() - before, bundle.sizes()
    parts = 4 * 8 * 2 + 40
    assert said.total <= took <= said.total + parts * 512
    for name in bundle:
        bundle[name](x)
    assert torch.cuda.memory_allocated() - before <= took + 2**20
    assert said.allocated == before + took
    assert "torch has given out" in repr(bundle)
    del bundle
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_pages_on_a_gpu_do_not_travel() -> None:
    """B8: another process would have to map them: it is said what to do instead."""
    one = made(nets(1))
    bundle = Bundle(one.packed, one.modules)
    with pytest.raises(pickle.PicklingError, match=r"Use bundle\['net0'\].unpacked\(\)"):
        pickle.dumps(bundle["net0"])
