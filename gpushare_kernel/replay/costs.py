"""What turns, boundaries and parking cost, in seconds: measured on an H200 with driver 580 (docs/replay.md)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds, bytes and bytes a second; any of them may be replaced."""

    #: Release at a boundary to grant in the other kernel.
    handover: float = 34e-6
    #: The driver's lock of a busy process until it stands still, and its unlock.
    pause: float = 1e-3
    resume: float = 0.34e-3
    #: Giving E back at a boundary (`empty_cache` of 8 GiB).
    trim: float = 4e-3
    #: Finding the tensors of a session (gc), once for each time it is parked.
    find: float = 80e-3
    #: Copying to and from the pinned arena, bytes a second each way.
    bandwidth: float = 55e9
    #: The driver's checkpoint of what is left after that (context, workspaces), and its restore.
    checkpoint: float = 0.7
    thaw: float = 0.75
    #: Bytes that a parked session keeps on the device.
    stays: int = 0

    def park(self, persistent: int) -> float:
        """Seconds until `persistent` bytes are in the host's memory."""
        return self.find + persistent / self.bandwidth + self.checkpoint

    def restore(self, persistent: int) -> float:
        """Seconds until they are back."""
        return self.thaw + persistent / self.bandwidth


MEASURED = Costs()
FREE = Costs(0.0, 0.0, 0.0, 0.0, 0.0, inf, 0.0, 0.0)
"""Nothing costs anything: for comparing with ideals."""
