"""Packed models: memory, switches and calls, beside copies, disk and pinned memory. See README.md."""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.common import Figure, Options, main, progress
from benchmarks.nwv_runtime.models import net, packed
from gpushare_kernel.nwv.bundle import Bundle

QUESTION = "Models that share pages: memory beside copies, a switch beside disk and pinned memory, a call beside one of weights of its own?"
NETS = 5
SWITCHES = 30
WIDTH = 1000
"""Of all layers: a million weights each."""
_QUEUED = 1_000_000
"""Cycles of a GPU (half a millisecond) in which a switch is launched."""


def measure(options: Options) -> Sequence[Figure]:
    """Measure all of it on one device."""
    torch.manual_seed(0)
    device = torch.device(GIVEN.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    rounds = 1 if options.quick else 5
    figures = [*resident(device), *switching(device, rounds), *calls(device, rounds)]
    if device.type == "cuda":
        return figures
    return [Figure(one.name, one.unit, one.values) for one in figures]  # no targets


# --- memory ---------------------------------------------------------------------------------------------------


def resident(device: torch.device) -> Sequence[Figure]:
    """Five nets of 12 layers of a million weights: five modules, and one bundle layer by layer."""
    names = [f"net{n}" for n in range(NETS)]
    x = torch.randn(1, WIDTH, device=device)
    patterns = {name: net(12, WIDTH, bias=True) for name in names}
    pages = packed(patterns, spare=1.0)
    net(1, WIDTH, bias=True).to(device)(x)  # libraries take their workspaces
    found = {}
    for mode in ("layers", "switch"):
        copies, took = _grown(device, lambda: _copies(patterns, device, x)), 0
        took = _grown(device, lambda mode=mode: _bundle(pages, patterns, device, mode, x))
        if device.type == "cpu":
            said = Bundle(pages, patterns, device=device, mode=mode).sizes()
            copies, took = said.copies, said.total
        found[mode] = (copies, took)
        progress(f"{mode}: {copies / 1e6:.1f} MB in copies, {took / 1e6:.1f} MB in a bundle")
    return [
        Figure("resident_copies_over_bundle", "x", [found["layers"][0] / found["layers"][1]], at_least=4.0),
        Figure("resident_copies_over_bundle_switch", "x", [found["switch"][0] / found["switch"][1]]),
        Figure("resident_bundle", "MB", [found["layers"][1] / 1e6]),
        Figure("resident_copies", "MB", [found["layers"][0] / 1e6]),
    ]  # fmt: skip


def _copies(patterns: dict[str, torch.nn.Module], device: torch.device, x: torch.Tensor) -> object:
    made = [net(12, WIDTH, bias=True).to(device) for _ in patterns]
    for one in made:
        one(x)
    return made


def _bundle(pages: object, patterns: dict[str, torch.nn.Module], device: torch.device, mode: str, x: torch.Tensor) -> object:  # fmt: skip
    bundle = Bundle(pages, patterns, device=device, mode=mode)  # type: ignore[arg-type]
    for name in bundle:
        bundle[name](x)
    return bundle


def _grown(device: torch.device, make: Callable[[], object]) -> int:
    """Return by how much torch's memory on the GPU grew by what `make` returns."""
    if device.type != "cuda":
        make()
        return 0
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    kept = make()
    torch.cuda.synchronize(device)
    grown = torch.cuda.memory_allocated(device) - before
    del kept
    return int(grown)


# --- switches -------------------------------------------------------------------------------------------------


def switching(device: torch.device, rounds: int) -> Sequence[Figure]:
    """Five models of 100 MB: a switch by pages, by the disk and by pinned memory, in turn."""
    patterns = {f"net{n}": net(25, WIDTH, bias=False) for n in range(NETS)}
    size = 25 * WIDTH * WIDTH * 4
    figures = []
    bundle = Bundle(packed(patterns, spare=1.2), patterns, device=device)
    with tempfile.TemporaryDirectory(dir=GIVEN.folder) as folder:
        others = Others(Path(folder), size, device, patterns["net0"])
        figures += _against(bundle, others, size, rounds)
        figures += _end_to_end(bundle, others, device)
    del bundle, others
    for bits in (16, 8, 4):
        bundle = Bundle(packed(patterns, spare=1.2, bits=bits), patterns, device=device)
        walls = [statistics.median(_switches(bundle, 1)[0]) for _ in range(rounds)]
        figures.append(Figure(f"switch_{bits}_bits", "ms", [1e3 * one for one in walls]))
        del bundle
    return figures


def _against(bundle: Bundle, others: Others, size: int, rounds: int) -> Sequence[Figure]:
    walls, devices, copies = [], [], []
    beside: dict[str, list[float]] = {"disk_warm": [], "disk_cold": [], "pinned": []}
    _switches(bundle, 1)
    for _ in range(rounds):
        wall, device = _switches(bundle, 1)
        walls.append(statistics.median(wall))
        devices.append(statistics.median(device))
        copies.append(statistics.median(others.copies()))
        for way, took in beside.items():
            took.append(statistics.median(others.timed(way) for _ in range(SWITCHES)))
    read = size * bundle.pages.pages.itemsize // 4 + sum(t.nbytes for t in bundle.tables.values()) // NETS  # fmt: skip
    rates = [(read + size) / one / 1e12 for one in devices]
    copied = [2 * size / one / 1e12 for one in copies]
    most = GIVEN.bandwidth
    progress(f"switch {1e3 * statistics.median(walls):.3f} ms, {statistics.median(rates):.2f} TB/s")
    return [
        Figure("switch", "ms", [1e3 * one for one in walls], at_most=0.2),
        Figure("switch_device", "ms", [1e3 * one for one in devices]),
        Figure("bandwidth", "TB/s", rates),
        *([Figure("bandwidth_of_the_device", "%", [100 * one / most for one in rates], at_least=60)] if others.on_gpu else []),
        Figure("copy_bandwidth", "TB/s", copied),
        Figure("bandwidth_over_copy", "x", [a / b for a, b in zip(rates, copied, strict=True)]),
        *(Figure(way, "ms", [1e3 * one for one in took]) for way, took in beside.items()),
        *(
            Figure(f"{way}_over_switch", "x", [a / b for a, b in zip(took, walls, strict=True)], at_least=10 if way == "pinned" else 36.9)
            for way, took in beside.items()
        ),
    ]  # fmt: skip


def _switches(bundle: Bundle, rounds: int) -> tuple[list[float], list[float]]:
    """Return what switches took, in seconds: by the clock, and on the device (the work of a switch that waits there already)."""
    walls = []
    for name in _order(bundle, SWITCHES * rounds):
        model = bundle[name]
        _wait(bundle.device)
        began = time.perf_counter()
        model.load()
        _wait(bundle.device)
        walls.append(time.perf_counter() - began)
    if bundle.device.type == "cpu":
        return walls, walls
    return walls, [_on_device(bundle[name].load) for name in _order(bundle, SWITCHES * rounds)]


def _on_device(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes a GPU: it is kept busy until all of it is queued, so that no launch is in it."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(_QUEUED)
    first.record()
    work()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


def _order(bundle: Bundle, count: int) -> list[str]:
    """Return models at random, each another one than that before it."""
    chance, names = random.Random(7), list(bundle)
    found = [names[0]]
    while len(found) <= count:
        found.append(chance.choice([name for name in names if name != found[-1]]))
    bundle[found[0]].load()
    return found[1:]


class Others:
    """One module whose weights come from elsewhere at each switch."""

    def __init__(
        self, folder: Path, size: int, device: torch.device, pattern: torch.nn.Module
    ) -> None:
        self._size, self._device = size, device
        pinned = device.type == "cuda"
        self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._memory = [torch.randn(size // 4).view(torch.uint8) for _ in range(NETS)]
        if pinned:
            self._memory = [one.pin_memory() for one in self._memory]
        self._weights = torch.empty(size, dtype=torch.uint8, device=device)
        self._other = torch.empty_like(self._weights)
        self.module = net(25, WIDTH, bias=False).to(device)
        at = 0
        for one in self.module.parameters():
            one.data = self._weights[at : at + one.nbytes].view(torch.float32).view(one.shape)
            at += one.nbytes
        del pattern
        self._files = [os.open(folder / f"net{n}", os.O_RDWR | os.O_CREAT) for n in range(NETS)]
        for fd, one in zip(self._files, self._memory, strict=True):
            os.write(fd, memoryview(one.numpy()))
            os.fsync(fd)
        self._turn = 0

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU's memory is measured."""
        return self._device.type == "cuda"

    def timed(self, way: str) -> float:
        """Return the seconds of one switch."""
        self._turn = (self._turn + 1) % NETS
        fd = self._files[self._turn]
        if way == "disk_cold":
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        _wait(self._device)
        began = time.perf_counter()
        if way == "pinned":
            self._weights.copy_(self._memory[self._turn], non_blocking=True)
        else:
            view, done = memoryview(self._buffer.numpy()), 0
            while done < self._size:
                done += os.preadv(fd, [view[done:]], done)
            self._weights.copy_(self._buffer, non_blocking=True)
        _wait(self._device)
        return time.perf_counter() - began

    def copies(self) -> list[float]:
        """Return the seconds of copies on the device."""
        if self.on_gpu:
            return [_on_device(self._copy) for _ in range(SWITCHES)]
        return [_took(self._device, self._copy) for _ in range(SWITCHES)]

    def _copy(self) -> None:
        self._other.copy_(self._weights)


def _end_to_end(bundle: Bundle, others: Others, device: torch.device) -> Sequence[Figure]:
    x = torch.randn(8, WIDTH, device=device)
    bundle["net0"](x)
    others.module(x)
    _wait(device)
    began = time.perf_counter()
    for name in _order(bundle, SWITCHES):
        bundle[name](x)
        _wait(device)
    found = {"pages": time.perf_counter() - began}
    for way in ("pinned", "disk_warm", "disk_cold"):
        began = time.perf_counter()
        for _ in range(SWITCHES):
            others.timed(way)
            others.module(x)
            _wait(device)
        found[way] = time.perf_counter() - began
    return [Figure(f"end_to_end_{way}", "ms", [1e3 * took]) for way, took in found.items()]


# --- calls ----------------------------------------------------------------------------------------------------


def calls(device: torch.device, rounds: int) -> Sequence[Figure]:
    """A call of a packed model and of the same with weights of its own, in turn."""
    patterns = {"net0": net(12, WIDTH, bias=True), "net1": net(12, WIDTH, bias=True)}
    pages = packed(patterns, spare=1.2)
    figures = []
    for mode in ("switch", "layers"):
        model = Bundle(pages, patterns, device=device, mode=mode)["net0"]
        plain = model.unpacked().requires_grad_(requires_grad=False)
        for batch in (1, 64):
            x = torch.randn(batch, WIDTH, device=device)
            ratios = []
            with torch.no_grad():
                for _ in range(max(2, rounds)):
                    mine, theirs = [], []
                    for _ in range(30):
                        mine.append(_took(device, lambda x=x, model=model: model(x)))
                        theirs.append(_took(device, lambda x=x, plain=plain: plain(x)))
                    ratios.append(statistics.median(mine) / statistics.median(theirs))
            name = "call_packed_over_plain" + ("" if mode == "switch" else "_layers") + f"_{batch}"
            target = 1.1 if mode == "switch" else None
            figures.append(Figure(name, "x", ratios[1:], at_most=target))
    return figures


def _took(device: torch.device, call: Callable[[], object]) -> float:
    _wait(device)
    began = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _arguments() -> argparse.Namespace:
    """Take our own options out of the line; `common.main` reads the rest."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bandwidth", type=float, default=4.8)
    parser.add_argument("--folder")
    given, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    return given


GIVEN = argparse.Namespace(device="cpu", bandwidth=4.8, folder=None)

if __name__ == "__main__":
    GIVEN = _arguments()
    sys.exit(main("nwv_runtime", QUESTION, measure))
