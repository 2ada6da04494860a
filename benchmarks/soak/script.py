"""What the adversary does, from a seed alone: which fault, at whom, in which order. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """One kind of fault, in the words of the report."""

    BROKER_KILLED = "broker-killed"
    GUARDIAN_KILLED = "guardian-killed"
    BOTH_KILLED = "both-killed"
    WORKER_KILLED = "worker-killed"
    KERNEL_KILLED = "kernel-killed"
    BROKER_STOPPED = "broker-stopped"
    GUARDIAN_STOPPED = "guardian-stopped"
    KERNEL_STOPPED = "kernel-stopped"
    INTERRUPTED = "interrupted"
    SLOW_READER = "slow-reader"
    HALF_FRAMES = "half-frames"
    DISK_FULL = "disk-full"
    DISK_READ_ONLY = "disk-read-only"
    LEDGER_CORRUPT = "ledger-corrupt"
    CLOCK_STEPPED = "clock-stepped"
    DESCRIPTORS = "descriptors"
    MEMORY = "memory"
    FORKS = "forks"
    RESTARTS = "restarts"
    CRASH_LOOP = "crash-loop"
    WORKERS_CRASH = "workers-crash"


LASTING = {
    Fault.BROKER_STOPPED: (0.3, 2.0),
    Fault.GUARDIAN_STOPPED: (0.3, 1.5),
    Fault.KERNEL_STOPPED: (0.3, 3.0),
    Fault.SLOW_READER: (0.5, 2.0),
    Fault.DISK_FULL: (1.0, 4.0),
    Fault.DISK_READ_ONLY: (1.0, 4.0),
    Fault.CLOCK_STEPPED: (0.5, 2.0),
    Fault.DESCRIPTORS: (0.5, 2.0),
    Fault.MEMORY: (0.5, 2.0),
    Fault.WORKERS_CRASH: (0.5, 2.0),
}
"""Those that go on for a while, and for how many seconds (least, most)."""
INSIDE = (Fault.BROKER_KILLED, Fault.GUARDIAN_KILLED, Fault.KERNEL_KILLED, Fault.WORKER_KILLED)
"""What may happen in the middle of one that lasts."""
_GAP = (0.3, 2.5)


@dataclass(frozen=True, slots=True)
class Step:
    """`after` seconds from the end of the step before, `fault` at the `who`-th of those it can be done to.

    One that lasts goes on for `seconds`; in its middle `inside` happens, if anything.
    """

    number: int
    after: float
    fault: Fault
    who: int
    seconds: float = 0.0
    inside: Fault | None = None

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.2f} s" if self.seconds else ""
        inside = f" with {self.inside} inside" if self.inside else ""
        return f"{self.number}: +{self.after:.2f} s {self.fault} (at {self.who}){lasting}{inside}"


def steps(seed: int, kinds: Sequence[Fault] = tuple(Fault)) -> Iterator[Step]:
    """Yield steps without end: all kinds in a shuffled order, then all again in another one."""
    chance = random.Random(seed)
    number = 0
    while True:
        deck = list(kinds)
        chance.shuffle(deck)
        for fault in deck:
            number += 1
            gap, who = chance.uniform(*_GAP), chance.randrange(1 << 16)
            seconds = chance.uniform(*LASTING[fault]) if fault in LASTING else 0.0
            inside = chance.choice(INSIDE) if seconds and chance.random() < 0.5 else None
            yield Step(number, round(gap, 2), fault, who, round(seconds, 2), inside)
