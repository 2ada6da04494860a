"""What parking asks of NVML and of the host before it moves anything: may it be, how many bytes, is there room for them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from gpushare_kernel.core.values import GiB, MiB, MoveStatus, ProcessKey
from gpushare_kernel.devices.parkable import Refusal, may_park, no_host_room
from gpushare_kernel.devices.sampler import Sampler

PUT_BACK = 32 * MiB
"""What must be free beyond what one has just given back, before it is put back at once."""
_SILENT = "NVML does not say what is on the GPU now: nothing is moved without knowing. It is tried again when it is wanted again."


class Scale:
    """Answers by a reading that is newer than the question (K1)."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    async def barred(self, keys: Collection[ProcessKey]) -> Refusal | None:
        """Return why one of them must not be parked; None where nothing that can be seen speaks against it."""
        sample = self._sampler.sample
        for user in () if sample is None else sample.users:
            if user.display and user.key in keys:
                why = f"process {user.key.pid} ({user.name}) draws a screen: it is never touched."
                return Refusal(MoveStatus.UNABLE, why)
        # In a thread: the list of what a CUDA process maps is long.
        return await asyncio.to_thread(_first_barred, tuple(keys))

    async def weigh(self, keys: Collection[ProcessKey]) -> dict[ProcessKey, int] | Refusal:
        """Return how many bytes each has on the device, contexts included; or why they are not parked.

        They stand still: what is seen now stays so.
        """
        refusal = await self.barred(keys)
        if refusal is not None:
            return refusal
        sample = await self._sampler.fresh()
        if sample is None:
            return Refusal(MoveStatus.NOT_NOW, _SILENT)
        seen = {user.key: user.size for user in sample.users}
        sizes = {key: seen.get(key, 0) for key in keys}
        if not any(sizes.values()):
            why = "NVML shows no memory of it on this GPU: there is nothing to give back, or this broker does not see the host's processes (pid namespace)."
            return Refusal(MoveStatus.NOT_NOW, why)
        refusal = await asyncio.to_thread(no_host_room, sizes)
        return sizes if refusal is None else refusal

    async def room(self, size: int, margin: int = PUT_BACK) -> Refusal | None:
        """Return why `size` bytes do not fit on the device now, with `margin` to spare; None where they do."""
        sample = await self._sampler.fresh()
        if sample is None:
            return Refusal(MoveStatus.NOT_NOW, _SILENT)
        free = sample.memory.free
        if free >= size + margin:
            return None
        why = (
            f"{size / GiB:.1f} GiB and {margin / GiB:.1f} to spare must be free on the GPU before they are put back, and "
            f"{free / GiB:.1f} GiB are. Nothing is lost: it waits until others release some (%gpushare release)."
        )
        return Refusal(MoveStatus.NOT_NOW, why)


def _first_barred(keys: Collection[ProcessKey]) -> Refusal | None:
    return next((why for key in keys if (why := may_park(key)) is not None), None)
