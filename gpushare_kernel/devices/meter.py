"""CPU seconds of a whole process tree, as a sum that never falls although processes end.

A process that ends takes its seconds along; its parent gets them back as *reaped* seconds once it has
waited. So a living process counts by what its own clock gained, and reaped seconds count as far as
they exceed what was already seen of processes that have vanished: children too short-lived for any
sample are charged, and nobody is charged twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from gpushare_kernel import procfs
from gpushare_kernel.core.values import ProcessKey


class _Seen(NamedTuple):
    cpu: float
    reaped: float
    delay: float


_NEVER = _Seen(0.0, 0.0, 0.0)


class TreeMeter:
    """Adds up one session's tree, sample by sample."""

    def __init__(self) -> None:
        self.device_time = 0.0
        """CPU seconds so far."""
        self.waited = 0.0
        """Seconds ready to run, but not running, so far."""
        self._seen: dict[ProcessKey, _Seen] = {}
        self._owed = 0.0  # of vanished processes, not come back as reaped seconds yet

    def sample(self, processes: Iterable[ProcessKey], without: Collection[int] = ()) -> None:
        """Add what `processes` gained since the last sample.

        The roots of sub-trees that are sessions of their own stand in `without`: they are charged
        elsewhere, but when they end their seconds come back to a parent of ours, who must not pay.
        """
        now: dict[ProcessKey, _Seen] = {}
        reaped = 0.0
        for key in processes:
            if (seen := _look(key)) is None:
                continue
            now[key] = seen
            last = self._seen.get(key, _NEVER)
            self.device_time += max(0.0, seen.cpu - last.cpu)
            self.waited += max(
                0.0, seen.delay - last.delay
            )  # a thread that ends takes its part along
            reaped += max(0.0, seen.reaped - last.reaped)
        for pid in without:
            key_now = procfs.process_key(pid)
            if key_now is not None and (seen := _look(key_now)) is not None:
                now[key_now] = seen
        self._charge(reaped, vanished=self._seen.keys() - now.keys())
        self._seen = now

    def _charge(self, reaped: float, vanished: Collection[ProcessKey]) -> None:
        lost = sum(self._seen[key].cpu + self._seen[key].reaped for key in vanished)
        known = min(reaped, self._owed + lost)
        self.device_time += reaped - known
        # Seconds of the vanished come back at this sample or the next one; what does not (an ignored
        # SIGCHLD, an orphan) is forgotten, or it would hide as many seconds of later children.
        self._owed = min(lost, self._owed + lost - known)


def _look(key: ProcessKey) -> _Seen | None:
    cpu = procfs.cpu_seconds(key.pid)
    if cpu is None:
        return None
    return _Seen(cpu, procfs.reaped_seconds(key.pid), procfs.run_delay(key.pid))
