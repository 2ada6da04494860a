"""What the lanes did: a sample of the broker's snapshot, four times a second."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from gpushare_kernel.client.shown import names_of_jobs
from gpushare_kernel.wire.snapshot import Snapshot

IDLE = "."
_COLUMNS = 60


@dataclass(slots=True)
class LaneHistory:
    """One lane: its largest size, and who used it at each sample (None: nobody)."""

    size: int = 0
    users: list[str | None] = field(default_factory=list)


class History:
    """The lanes of the demo's device, from its first sample on."""

    def __init__(self) -> None:
        self.lanes: dict[int, LaneHistory] = {}
        self.samples = 0
        self.latest: Snapshot | None = None

    def add(self, snapshot: Snapshot) -> None:
        """Keep a sample."""
        self.latest = snapshot
        names = names_of_jobs(snapshot)
        here = {lane.id: lane for device in snapshot.devices for lane in device.lanes}
        for number in here:
            self.lanes.setdefault(number, LaneHistory(users=[None] * self.samples))
        for number, kept in self.lanes.items():
            lane = here.get(number)
            job = lane.occupant if lane else None
            kept.users.append(names.get(job) if job else None)
            kept.size = max(kept.size, lane.size if lane else 0)
        self.samples += 1

    def strip(self, number: int, letters: dict[str, str]) -> str:
        """Return a lane's history as a line of letters; a column is who used it longest in that time."""
        users = self.lanes[number].users
        columns = min(_COLUMNS, len(users))
        bounds = [len(users) * column // columns for column in range(columns + 1)]
        return "".join(_most(users[start:end], letters) for start, end in pairwise(bounds))


def _most(users: list[str | None], letters: dict[str, str]) -> str:
    there = [user for user in users if user is not None]
    if not there:
        return IDLE
    return letters.get(max(there, key=there.count), "?")
