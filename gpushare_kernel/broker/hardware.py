"""Which devices a broker gives out: the host's GPUs where there are any that it can share, else its CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from gpushare_kernel.broker.moves import MARGIN
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.errors import BadDeclaration, DeviceError
from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.core.values import MiB
from gpushare_kernel.devices.base import Device, Intents
from gpushare_kernel.devices.host import HostDevice
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.devices.unlocking import WORKER
from gpushare_kernel.transport.places import how_to_restart, places

if TYPE_CHECKING:
    from gpushare_kernel.devices.nvml import GpuInfo

AUTO, HOST, CUDA = "auto", "host", "cuda"
_CANNOT_PARK = "this device cannot park memory"
PLAIN_MARGIN = 256 * MiB
"""What a cell that declares nothing may take on a GPU at once: less than this is no use to any framework."""
PARK_COST, PARK_SPEED, RESTORE_SPEED = 0.5, 1.9e9, 4.4e9
"""Seconds that a park by the driver takes at least, and bytes it moves in one (measured: docs/parking.md); a restore is quicker."""
_logger = logging.getLogger(__name__)


def find_devices(
    wanted: str,
    intents: Intents,
    *,
    capacity: int | None = None,
    compute: float | None = None,
    held: int,
) -> list[Device]:
    """Return the devices to share.

    Parameters
    ----------
    wanted
        `auto`, `host`, `cuda` (all GPUs), or GPUs by number or UUID, with commas between them.
    intents
        Where a process is put on record before it is paused.
    capacity
        Bytes of each device to share; None is what is free.
    compute
        Cores to share; of a host only.
    held
        Bytes that sessions taken over from an earlier broker hold already; of a host only: a GPU's
        driver knows it.

    Raises
    ------
    DeviceError
        Where what is wanted is not there, or none of it can be shared.
    BadDeclaration
        Where a device has less than `capacity`.
    """
    if wanted == HOST:
        return [_host(intents, capacity, compute, held)]
    try:
        return [*_gpus(wanted, intents, capacity)]
    except DeviceError as problem:
        if wanted != AUTO:
            raise
        _logger.info("no GPU is shared: %s", problem)
        return [_host(intents, capacity, compute, held)]


class Parking(StrEnum):
    """Whether the memory of idle notebooks goes to who waits for it."""

    OFF = "off"
    COLD = "cold"  # by the driver's checkpoint, from outside
    WARM = (
        "warm"  # quiet notebooks move their own tensors first, which is quicker; the rest as above
    )


def config_of(
    device: Device,
    *,
    policy: str,
    turn: float,
    parking: Parking = Parking.OFF,
    options: Sequence[str] = (),
) -> Config:
    """Return how the core is to treat `device`; `options` are the broker's own, for who wants another."""
    inventory, divisible = device.inventory, device.inventory.divisible
    can_park = not divisible and device.capabilities.can_park
    off = f"parking is switched off here: {how_to_restart(places(), '--parking cold', options)}"
    config = Config(
        capacity=inventory.capacity,
        compute=inventory.compute,
        reserve=inventory.reserve,
        policy=policy,
        turn=turn,
        boundary_grace=turn / 4,
        divisible=divisible,
        window=device.window,
        enforce=not divisible and device.capabilities.can_pause,
        can_pause=device.capabilities.can_pause,
        can_park=can_park and parking is not Parking.OFF,
        warm=parking is Parking.WARM,
        why_not_park=off if can_park else _CANNOT_PARK,
        park_cost=PARK_COST,
        park_speed=PARK_SPEED,
        restore_speed=RESTORE_SPEED,
        restore_margin=MARGIN,
    )
    return config if divisible else config.for_gpu(PLAIN_MARGIN)


def lock_worker(devices: Sequence[Device]) -> Sequence[str]:
    """Return the command of the workers that the guardian needs to undo the driver's locks; empty where nobody locks."""
    locks = any(d.inventory.kind == CUDA and d.capabilities.can_pause for d in devices)
    return WORKER if locks else ()


def _host(intents: Intents, capacity: int | None, compute: float | None, held: int) -> Device:
    _check_capacity(capacity, Machine().with_swap(), "this host")
    return HostDevice(intents, capacity=capacity, compute=compute, held=held)


def _gpus(wanted: str, intents: Intents, capacity: int | None) -> Sequence[Device]:
    # A host without a GPU must not need what speaks to one.
    from gpushare_kernel.devices.cuda import CudaDevice  # noqa: PLC0415
    from gpushare_kernel.devices.nvml import find_gpus  # noqa: PLC0415

    gpus = [*find_gpus()]
    if not gpus:
        msg = "this host has no NVIDIA GPU, or no driver for it. nvidia-smi says more."
        raise DeviceError(msg)
    if wanted not in {AUTO, CUDA}:
        names = [name.strip() for name in wanted.split(",") if name.strip()]
        known = {str(gpu.index): gpu for gpu in gpus} | {gpu.uuid: gpu for gpu in gpus}
        missing = [name for name in names if name not in known]
        if missing or not names:
            there = ", ".join(f"{gpu.index} ({gpu.name}, {gpu.uuid})" for gpu in gpus) or "none"
            msg = f"no GPU is called {', '.join(missing) or wanted!r}. There is: {there}."
            raise DeviceError(msg)
        gpus = [known[name] for name in dict.fromkeys(names)]
    for gpu in gpus:
        _check_capacity(capacity, gpu.total, f"GPU {gpu.index} ({gpu.name})")
    return _shareable(gpus, lambda gpu: CudaDevice(intents, gpu=gpu.uuid, capacity=capacity))


def _check_capacity(capacity: int | None, total: int, what: str) -> None:
    """Refuse to give out more than there is."""
    if capacity is not None and capacity > total:
        seen, has = format_size(capacity), format_size(total)
        msg = f"--capacity: it is {seen}, and {what} has {has}. Write less, or leave it out."
        raise BadDeclaration(msg)


def _shareable(gpus: Sequence[GpuInfo], share: Callable[[GpuInfo], Device]) -> Sequence[Device]:
    """Return those of `gpus` that can be shared: one that cannot takes no other along."""
    made: list[Device] = []
    problems: list[DeviceError] = []
    try:
        for gpu in gpus:
            try:
                made.append(share(gpu))
            except DeviceError as problem:
                _logger.warning("GPU %d (%s) is not shared: %s", gpu.index, gpu.name, problem)
                problems.append(problem)
    except BaseException:
        for device in made:
            device.close()
        raise
    if not made:
        raise DeviceError(" ".join(str(problem) for problem in problems))
    return made
