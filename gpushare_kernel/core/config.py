"""What one device's scheduler is told at its start. Times in seconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from gpushare_kernel.core.values import MiB


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one device's scheduler."""

    capacity: int
    #: How much can run at once: cores of a host, 1.0 for a GPU.
    compute: float
    #: Estimate of one context before it is measured.
    reserve: int = 0
    policy: str = "fair"
    #: Length of a turn while others wait.
    turn: float = 0.1
    #: How long a cooperative job may take to its boundary before it is paused from outside.
    boundary_grace: float = 0.025
    #: How long the occupant of a lane keeps it while lane mates wait.
    lane_turn: float = 1.0
    #: A pause is given up after this long; the device says what it allows.
    pause_limit: float = 0.5
    #: Device seconds after which a plain cell is a job.
    plain_grace: float = 0.05
    plain_persistent: int = 64 * MiB
    plain_ephemeral: int = 64 * MiB
    #: Users are told that they share after this long, or that they were paused for this long.
    tell_shared: float = 20.0
    tell_paused: float = 5.0
    #: After a broker's restart: no pauses, no admissions, until its sessions have confirmed what they hold.
    orphan_grace: float = 5.0
    #: Cores are divided among sessions; a GPU is not, it is given out in slots of time.
    divisible: bool = True
    #: Seconds over which such a device says how busy it was; 0 where it never does.
    window: float = 0.2
    #: Pause from outside also those who meet boundaries: the device does it faster and lets its queues drain.
    enforce: bool = False
    #: The memory queue is in the order of the policy; else of arrival, and whatever fits may pass (as Salus' code has it).
    by_policy: bool = True
    #: All lanes are one that spans the device (as Salus ran SRTF and FAIR).
    single_lane: bool = False
    #: The device memory of a session can be given back with its state kept.
    can_park: bool = False
    #: Clients are asked to move their own memory first, which is quicker; the rest is parked where it is needed too.
    warm: bool = False
    #: Why it cannot, for people.
    why_not_park: str = "this device cannot park memory"
    #: Seconds that a park or a restore takes at least, and bytes that each moves in one, until it is measured.
    park_cost: float = 0.2
    park_speed: float = 55e9
    restore_speed: float = 55e9
    #: Bytes that must be free in fact beside what is restored.
    restore_margin: int = 0
    #: How long a job keeps its memory at least before a better one may displace it.
    residency: float = 10.0
    #: Seconds that the work of a session is taken to stop in beside real-time jobs while no drain of it is on record
    #: (short work drains in 1.5 ms at most): its first pause says better.
    trial_drain: float = 0.003
    #: By how much (seconds) a timer may be late.
    timer_slack: float = 0.0002
    #: Nobody can be paused: who meets no boundary runs beside the others.
    can_pause: bool = True

    def for_gpu(self, margin: int) -> Self:
        """Return the settings of a GPU: who declares nothing may take `margin` bytes at once, and keeps what it has."""
        return replace(self, plain_persistent=0, plain_ephemeral=margin, plain_grace=0.1)
