"""What turns, boundaries and parking cost, in seconds: each figure is one of benchmarks/results (docs/replay.md)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds, and bytes a second; any of them may be replaced. Medians, on an H200 with driver 580 unless it says otherwise."""

    #: From the boundary at which the word is found set to the grant in the other kernel (handover: boundary_to_grant, a host's).
    handover: float = 491e-6
    #: The driver's lock of a convolution training until it stands still, the longest there is, and its unlock
    #: (gpu_switching: conv_pause, conv_resume).
    pause: float = 6.14e-3
    resume: float = 0.863e-3
    #: Giving E back at a boundary. No row times it apart: with a lane that passes on once a second the total of two is
    #: 1.000 of one alone (gpu_lane_mates: total_of_alone).
    trim: float = 0.0
    #: The driver's checkpoint of a process with next to nothing on the device, and its restore
    #: (gpu_arena: checkpoint_0GiB_none, restore_0GiB_none).
    checkpoint: float = 0.491
    thaw: float = 0.264
    #: Bytes a second of moving a notebook of 4 GiB, all included (gpu_parked_cell: park_rate, restore_rate).
    park_rate: float = 2.14e9
    restore_rate: float = 3.85e9
    #: Bytes that a parked session keeps on the device.
    stays: int = 0

    def park(self, persistent: int) -> float:
        """Seconds until `persistent` bytes are in the host's memory."""
        return max(self.checkpoint, persistent / self.park_rate)

    def restore(self, persistent: int) -> float:
        """Seconds until they are back."""
        return max(self.thaw, persistent / self.restore_rate)


MEASURED = Costs()
FREE = Costs(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, inf, inf)
"""Nothing costs anything: for comparing with ideals."""
