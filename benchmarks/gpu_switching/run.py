"""What a turn change is made of: pause, drain, resume, hand-over, at the device itself. See README.md."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, NotMeasured, Options, percentile, progress
from benchmarks.gpu.notebooks import FREE, Notebook, notebooks, several
from benchmarks.gpu.row import house, row
from gpushare_kernel import procfs
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import PauseStatus, ProcessKey
from gpushare_kernel.devices.base import Device, Target

QUESTION = "What does a turn change take: pause, drain, resume, hand-over from one to the other?"
KINDS = ("idle", "matmul", "lstm", "conv")
TURN = 0.02
LIMIT = 2.0
_Times = dict[str, list[float]]


def measure(options: Options) -> Sequence[Figure]:
    """Alternate two free kernels by the device's own pause and resume, for each kind of work."""
    number = 20 if options.quick else 150
    work = [kind for kind in KINDS if kind != "idle"]
    with house() as stage, notebooks(several(FREE, 2), options.device, work) as pair:
        # One loop for all of it: a device may keep to the loop it was first used in.
        found = asyncio.run(_each_kind(options.device, pair, number, stage.folder))
    return [
        figure
        for kind, times in found.items()
        for name, values in times.items()
        for figure in (
            Figure(f"{kind}_{name}", "ms", [percentile(values, 50)]),
            Figure(f"{kind}_{name}_p99", "ms", [percentile(values, 99)]),
        )
    ]


async def _each_kind(
    place: str, pair: Sequence[Notebook], number: int, folder: Path
) -> dict[str, _Times]:
    device, found = _device(place, folder), {}
    try:
        for kind in KINDS:
            found[kind] = await _alternate(device, pair, kind, number, folder)
            progress(f"{kind}: {len(found[kind]['hand_over'])} changes")
    finally:
        device.close()
    return found


async def _alternate(
    device: Device, pair: Sequence[Notebook], kind: str, number: int, folder: Path
) -> _Times:
    """Let two work in turns; return the milliseconds of each part of a change."""
    stop, counters = folder / f"stop-{kind}", folder / f"counters-{kind}"
    counters.write_bytes(bytes(8 * len(pair)))
    if kind != "idle":
        until = time.monotonic() + 300
        for slot, one in enumerate(pair):
            one.begin(f"work({kind!r}, {str(counters)!r}, {slot}, {until}, {str(stop)!r})")
    times: _Times = {"pause": [], "drain": [], "resume": [], "hand_over": []}
    try:
        await _changes(device, [Target(_key(one.pid)) for one in pair], number, times)
    finally:
        stop.touch()  # both run again: nothing waits for one that stands still
        if kind != "idle":
            for one in pair:
                one.finish(timeout=60)
    return times


async def _changes(device: Device, targets: Sequence[Target], number: int, times: _Times) -> None:
    runs, stands = targets
    try:
        await _paused(device, stands)
        for _ in range(number):
            await asyncio.sleep(TURN)
            start = time.monotonic()
            drain = await _paused(device, runs)
            stood = time.monotonic()
            await device.resume(stands)
            end = time.monotonic()
            for name, seconds in [
                ("pause", stood - start),
                ("drain", drain),
                ("resume", end - stood),
                ("hand_over", end - start),
            ]:
                times[name].append(1000 * seconds)
            runs, stands = stands, runs
    finally:
        for target in targets:
            await device.resume(target)


async def _paused(device: Device, target: Target) -> float:
    outcome = await device.pause(target, limit=LIMIT)
    if outcome.status is not PauseStatus.PAUSED:
        reason = f"this device does not pause here: {outcome.status} ({device.capabilities.why})"
        raise NotMeasured(reason)
    return outcome.drain


def _device(kind: str, folder: Path) -> Device:
    """Return the device itself, without a broker."""
    intents = IntentTable(folder / "intents")
    try:
        if kind == "host":
            from gpushare_kernel.devices.host import HostDevice  # noqa: PLC0415

            return HostDevice(intents)
        from gpushare_kernel.devices.cuda import CudaDevice  # noqa: PLC0415

        return CudaDevice(intents)
    except DeviceError as problem:
        raise NotMeasured(str(problem)) from problem


def _key(pid: int) -> ProcessKey:
    key = procfs.process_key(pid)
    if key is None:
        msg = f"the kernel {pid} is gone"
        raise AssertionError(msg)
    return key


if __name__ == "__main__":
    sys.exit(row("gpu_switching", QUESTION, measure))
