"""Into an arena and back by two ways, and what an arena costs the driver's checkpoint. See README.md."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, NotMeasured, Options, progress
from benchmarks.gpu.row import house, row
from gpushare_kernel import procfs
from gpushare_kernel.broker.extents import Span
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.broker.memfile import MemFile
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import GiB, MiB, MoveStatus
from gpushare_kernel.devices.base import Target
from gpushare_kernel.devices.cuda import CudaDevice
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.devices.parkable import host_margin

QUESTION = "Into an arena and back: by a pinned ring or by registering it? And what does an arena cost the driver's checkpoint?"
RINGS = ((4, 8), (8, 8), (12, 8), (16, 4), (16, 8), (16, 16))
"""Threads, and MiB of a slot (two a thread)."""
MUST = 50.0
"""GB/s."""
PATIENCE = 180.0


class Child:
    """A process with memory on the GPU and an arena beside it."""

    def __init__(self, device: str, size: int, file: MemFile, arena: int) -> None:
        script = Path(__file__).with_name("copier.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), device, str(size), str(file.fd), str(arena)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[file.fd],
        )
        key = procfs.process_key(self._process.pid)
        assert key is not None
        self.target = Target(key)
        self._heard()

    def asked(self, *words: object) -> dict[str, Any]:
        """Ask it something; return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            msg = f"a process answers nothing for {PATIENCE:g} s: it is lost"
            raise AssertionError(msg)
        line = self._process.stdout.readline()
        if not line:
            msg = f"a process ended with {self._process.wait()}"
            raise AssertionError(msg)
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """End it, however it stands."""
        self._process.kill()
        self._process.wait()


def measure(options: Options) -> Sequence[Figure]:
    """Copy rates of both ways, then checkpoints; no broker."""
    if options.device == "host":
        return copies(options, 256 * MiB)
    sizes, arenas = ([4], [0, 8]) if options.quick else ([4, 12], [0, 8, 30])
    with house() as stage, _device(stage.folder) as (device, runner):
        figures = [figure for gib in sizes for figure in copies(options, gib * GiB)]
        for gib in arenas:
            figures += checkpoints(device, runner, gib)
    return figures


def copies(options: Options, size: int) -> Sequence[Figure]:
    """Copy so much out and back, by each way."""
    name, figures, changed = _gib(size), [], 0
    with _arena(size) as (file, seconds):
        figures.append(Figure(f"populate_{name}", "s", [seconds]))
        with _child(options.device, size, file, size) as child:
            rings = RINGS[:1] if options.quick or options.device == "host" else RINGS
            ways = [("ring", threads, slot) for threads, slot in rings]
            for way, threads, slot in [*ways, ("register", 0, 8)]:
                found = child.asked("copy", way, threads, slot)
                changed += found["changed"]
                what = f"{way}_{threads}x{slot}" if threads else way
                for side in ("out", "back"):
                    rates = [size / took / 1e9 for took in found[side]]
                    progress(f"{name} {what} {side}: {rates[0]:.1f}, then {rates[1]:.1f} GB/s")
                    figures.append(Figure(f"{what}_{name}_{side}_first", "GB/s", rates[:1]))
                    figures.append(Figure(f"{what}_{name}_{side}", "GB/s", rates[1:]))
    best = max(figure.median for figure in figures if figure.name.endswith("_out"))
    bound = None if options.device == "host" else MUST
    return [
        *figures,
        Figure(f"best_{name}_out", "GB/s", [best], at_least=bound),
        Figure(f"changed_{name}", "", [float(changed)], at_most=0.0),
    ]


def checkpoints(device: CudaDevice, runner: asyncio.Runner, gib: int) -> Sequence[Figure]:
    """Checkpoint and restore 0.25 GiB beside an arena that is mapped, and beside one that is registered."""
    figures = []
    with _arena(gib * GiB) as (file, _), _child("cuda", 256 * MiB, file, gib * GiB) as child:
        before = child.asked("hash")
        for how in ("mapped", "registered") if gib else ("none",):
            if how == "registered":
                took = child.asked("register")["seconds"]
                figures.append(Figure(f"register_{gib}GiB", "s", [took]))
            out, back = [], []
            for _ in range(3):
                out.append(_moved(runner.run(device.park(child.target, limit=5.0))))
                back.append(_moved(runner.run(device.restore(child.target, margin=256 * MiB))))
                runner.run(device.resume(child.target))
            progress(f"{gib} GiB {how}: out {out[-1]:.2f} s, back {back[-1]:.2f} s")
            figures.append(Figure(f"checkpoint_{gib}GiB_{how}", "s", out))
            figures.append(Figure(f"restore_{gib}GiB_{how}", "s", back))
            if how == "registered":
                took = child.asked("unregister")["seconds"]
                figures.append(Figure(f"unregister_{gib}GiB", "s", [took]))
        changed = float(child.asked("hash") != before)
    return [*figures, Figure(f"changed_beside_{gib}GiB", "", [changed], at_most=0.0)]


def _moved(outcome: Any) -> float:
    if outcome.status is MoveStatus.UNABLE:
        raise NotMeasured(outcome.why)
    if outcome.status is not MoveStatus.DONE:
        msg = f"it was not moved: {outcome.status}: {outcome.why}"
        raise AssertionError(msg)
    return float(outcome.took)


def _gib(size: int) -> str:
    return f"{size // GiB}GiB" if size >= GiB else f"{size // MiB}MiB"


@contextlib.contextmanager
def _arena(size: int) -> Iterator[tuple[MemFile, float]]:
    """A populated file, as the broker makes one, and the seconds that it took."""
    room = Machine().room()
    if size + host_margin(size) > room:
        reason = f"an arena of {_gib(size)} and a margin need more than the {_gib(room)} that this host has left"
        raise NotMeasured(reason)
    file = MemFile()
    try:
        began = time.perf_counter()
        file.reach(size)
        file.populate(Span(0, size))
        yield file, time.perf_counter() - began
    finally:
        file.close()


@contextlib.contextmanager
def _device(folder: Path) -> Iterator[tuple[CudaDevice, asyncio.Runner]]:
    try:
        device = CudaDevice(IntentTable(folder / "intents"))
    except DeviceError as problem:
        raise NotMeasured(str(problem)) from problem
    with asyncio.Runner() as runner, contextlib.closing(device):
        yield device, runner


@contextlib.contextmanager
def _child(device: str, size: int, file: MemFile, arena: int) -> Iterator[Child]:
    child = Child(device, size, file, arena)
    try:
        yield child
    finally:
        child.end()


if __name__ == "__main__":
    sys.exit(row("gpu_arena", QUESTION, measure))
