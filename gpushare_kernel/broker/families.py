"""The metrics a broker has: their names, kinds, labels and what they say. No more than these, each with few series (docs/admin/metrics.md)."""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from msgspec import Struct

GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"

SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0)
"""Of waits and moves."""
DRAINS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
LAGS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)


class Spread(Struct):
    """A histogram: how many came to each of `bounds` at most (not added up), beyond the last, and the sum of all."""

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0

    @classmethod
    def over(cls, bounds: tuple[float, ...]) -> Spread:
        """Return one in which nothing is counted yet."""
        return cls(bounds, [0] * (len(bounds) + 1))

    def add(self, value: float) -> None:
        """Count `value`."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


Sample = tuple[tuple[str, ...], float | Spread]
"""The labels' values, in the family's order, and the value."""


class Reading(Struct):
    """What there is to say at one time: samples by family."""

    samples: dict[str, list[Sample]]


class Family(NamedTuple):
    """One metric. A counter's name has no `_total`; the exporter adds it, as Prometheus wants it."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()


_D = ("device",)

FAMILIES: dict[str, Family] = {
    # --- the device ---
    "gpushare_device_info": Family(
        GAUGE, "1; kind (host: the CPU), name and policy of a device.", ("device", "kind", "name", "policy")
    ),
    "gpushare_device_lost": Family(GAUGE, "1 while a device does not answer.", _D),
    "gpushare_memory_capacity_bytes": Family(
        GAUGE, "Memory of a device that is shared: what was free at the start, less what others took since.", _D
    ),
    "gpushare_memory_bytes": Family(
        GAUGE,
        "Where it is: kept (by sessions), lanes (of running jobs), contexts, free. Their sum is the capacity; more in a deficit.",
        ("device", "use"),
    ),
    "gpushare_memory_parked_bytes": Family(
        GAUGE, "Memory of parked sessions that is in the host's memory instead.", _D
    ),
    "gpushare_memory_others_bytes": Family(
        GAUGE, "Memory of a device that is in no session: displays (desktop), programs (foreign).", ("device", "who")
    ),
    # --- sessions and jobs ---
    "gpushare_sessions": Family(GAUGE, "Sessions by state, as status names them.", ("device", "state")),
    "gpushare_session_restarts": Family(COUNTER, "Kernels of sessions that ended or were restarted.", _D),
    "gpushare_waiting_jobs": Family(GAUGE, "Jobs that wait for memory or for their first turn.", ("device", "class")),
    "gpushare_oldest_wait_seconds": Family(GAUGE, "For how long the first of them has waited; 0 where none does.", _D),
    "gpushare_wait_seconds": Family(
        HISTOGRAM, "How long jobs waited before their first line, once they began.", ("device", "class")
    ),
    "gpushare_refusals": Family(
        COUNTER, "Requests that were answered with an error, by its name (core/errors.py).", ("reason",)
    ),
    "gpushare_connections_turned_away": Family(
        COUNTER, "Connections over a user's limit, or the host's."
    ),
    # --- turns ---
    "gpushare_pauses": Family(COUNTER, "Pauses asked for, by why.", ("device", "reason")),
    "gpushare_pause_results": Family(COUNTER, "What came of them.", ("device", "status")),
    "gpushare_drain_seconds": Family(HISTOGRAM, "How long submitted work took to end at a pause.", _D),
    # --- parking ---
    "gpushare_moves": Family(COUNTER, "Parks and restores, by what came of them.", ("device", "way", "status")),
    "gpushare_move_seconds": Family(HISTOGRAM, "How long those took that were done.", ("device", "way")),
    "gpushare_moved_bytes": Family(COUNTER, "Bytes that they moved.", ("device", "way")),
    # --- real time ---
    "gpushare_realtime_jobs": Family(GAUGE, "Jobs with a proven deadline that run.", _D),
    "gpushare_realtime_releases": Family(COUNTER, "Releases of such jobs.", _D),
    "gpushare_realtime_misses": Family(COUNTER, "Those that were not done by their deadline.", _D),
    "gpushare_realtime_overruns": Family(COUNTER, "Those that were not done by their proven bound.", _D),
    "gpushare_realtime_least_margin_seconds": Family(
        GAUGE,
        "What the longest response (the bound, before the first) left of the deadline, of the job with the least of that.",
        _D,
    ),
    # --- people ---
    "gpushare_users": Family(GAUGE, "People with a session now."),
    "gpushare_user_device_seconds": Family(
        COUNTER, "Device time since the broker's start; whoever is not among the first counts as other.", ("user",)
    ),
    "gpushare_user_memory_bytes": Family(GAUGE, "What their sessions keep of devices now.", ("user",)),
    # --- the broker ---
    "gpushare_broker_info": Family(GAUGE, "1; the broker's version.", ("version",)),
    "gpushare_broker_start_time_seconds": Family(GAUGE, "When it started (Unix time): a change is a restart."),
    "gpushare_broker_started_again": Family(
        GAUGE, "1 where it was started in place of one that had died, 0 where by somebody."
    ),
    "gpushare_broker_ledger_trouble": Family(GAUGE, "1 while it cannot remember (status says why)."),
    "gpushare_broker_descriptors": Family(
        GAUGE, "The lowest descriptor that is free; a session takes three. Near the limit connections are turned away."
    ),
    "gpushare_broker_descriptors_limit": Family(GAUGE, "How many it may have; the last 64 are no connection's."),
    "gpushare_broker_events": Family(COUNTER, "Events taken in.", _D),
    "gpushare_broker_event_failures": Family(COUNTER, "Those that failed: bugs, in its log.", _D),
    "gpushare_broker_loop_lag_seconds": Family(
        HISTOGRAM, "How late its loop was, looked at twice a second."
    ),
}  # fmt: skip
