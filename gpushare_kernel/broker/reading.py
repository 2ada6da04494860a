"""What a scrape is answered with: the broker's counts and states as numbers, gathered on its loop at most once a second."""

from __future__ import annotations

import os
import resource
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from gpushare_kernel import __version__
from gpushare_kernel.broker.counts import CLASSES, Counts, class_of
from gpushare_kernel.broker.families import LAGS, Reading, Sample, Spread
from gpushare_kernel.broker.series import OTHER, Series
from gpushare_kernel.broker.views import session_state
from gpushare_kernel.core.values import Activity, JobState, Presence, UserId

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker
    from gpushare_kernel.broker.engine import Engine

FRESH = 1.0
"""Seconds for which a reading is good: whoever asks more often is given the same again."""
STATES = (
    Presence.OPENED,
    Presence.ORPHANED,
    Presence.BARE,
    Activity.IDLE,
    Activity.BUSY,
    "paused",
    Activity.PARKED,
    Activity.RESTORING,
)
"""What `session_state` says of a session that is there."""
_WAITING = frozenset({JobState.QUEUED, JobState.ADMITTED})


class Readings:
    """Gathers them. `names`: people by their account's name, else as everybody sees them."""

    def __init__(self, broker: Broker, *, people: int, names: bool, again: bool) -> None:
        self._broker, self._names, self._again = broker, names, again
        self._began = time.time() - broker.uptime
        self._people = Series(people, {user: seconds for user, _, seconds in broker.accounts()})
        self.lag = Spread.over(LAGS)
        self.turned_away = 0
        self._last: Reading | None = None
        self._at = 0.0
        for engine in broker.engines.values():
            engine.counts = Counts(engine.scheduler)

    def reading(self) -> Reading:
        """Return what there is to say now."""
        now = self._broker.now
        if self._last is None or now - self._at >= FRESH:
            self._last, self._at = self.gathered(now), now
        return self._last

    def gathered(self, now: float) -> Reading:
        """Return it, whether it was gathered a moment ago or not."""
        found: defaultdict[str, list[Sample]] = defaultdict(list)
        for engine in self._broker.engines.values():
            self._device(found, engine, now)
            self._jobs(found, engine, now)
            if engine.counts is not None:
                _counted(found, engine, engine.counts, now)
        self._of_people(found)
        self._of_the_broker(found)
        return Reading(dict(found))

    def _device(self, found: dict[str, list[Sample]], engine: Engine, now: float) -> None:
        core, inventory = engine.scheduler, engine.device.inventory
        name, table = inventory.id, core.book.table
        policy = core.turns.accounts.policy.name
        states: Counter[str] = Counter(dict.fromkeys(STATES, 0))
        parked = 0
        for session in core.sessions.values():
            barred = core.turns.gate.bars(session)
            states[session_state(session, now, barred=barred)] += 1
            parked += 0 if session.parked is None else session.parked.size
        add = _Adder(found, name)
        found["gpushare_device_info"].append(((name, inventory.kind, inventory.name, policy), 1))
        add("gpushare_device_lost", float(engine.device.lost is not None))
        add("gpushare_memory_capacity_bytes", table.capacity)
        uses = {"kept": table.persistent, "lanes": table.in_lanes, "contexts": table.reserve, "free": max(0, table.free)}  # fmt: skip
        for use, size in uses.items():
            add("gpushare_memory_bytes", size, use)
        add("gpushare_memory_parked_bytes", parked)
        add("gpushare_memory_others_bytes", engine.desktop, "desktop")
        add("gpushare_memory_others_bytes", engine.foreign, "foreign")
        for state, number in states.items():
            add("gpushare_sessions", number, state)

    @staticmethod
    def _jobs(found: dict[str, list[Sample]], engine: Engine, now: float) -> None:
        core, add = engine.scheduler, _Adder(found, engine.device.inventory.id)
        waiting: Counter[str] = Counter(dict.fromkeys(CLASSES, 0))
        longest = 0.0
        for job in core.jobs.values():
            if job.state in _WAITING and job.granted is None:
                waiting[class_of(job, core.sessions[job.session])] += 1
                longest = max(longest, now - job.submitted)
        for which, number in waiting.items():
            add("gpushare_waiting_jobs", number, which)
        add("gpushare_oldest_wait_seconds", longest)

    def _of_people(self, found: dict[str, list[Sample]]) -> None:
        people, broker = self._people, self._broker
        people.look({user: seconds for user, _, seconds in broker.accounts()})
        memory: Counter[str] = Counter()
        here: set[UserId] = set()
        for session in broker.sessions():
            memory[people.label(session.user.id)] += session.charged
            here.add(session.user.id)
        found["gpushare_users"].append(((), len(here)))
        for user in [*sorted(people.named), OTHER]:
            label = (self._called(user),)
            found["gpushare_user_device_seconds"].append((label, people.used[user]))
            found["gpushare_user_memory_bytes"].append((label, memory[user]))

    def _called(self, label: str) -> str:
        if label == OTHER or self._names:
            return label
        return self._broker.aliases.of(UserId(label))

    def _of_the_broker(self, found: dict[str, list[Sample]]) -> None:
        broker = self._broker
        found["gpushare_broker_info"].append(((__version__,), 1))
        values: dict[str, float | Spread] = {
            "gpushare_broker_start_time_seconds": self._began,
            "gpushare_broker_started_again": float(self._again),
            "gpushare_broker_ledger_trouble": float(broker.ledger.trouble is not None),
            "gpushare_connections_turned_away": float(self.turned_away),
            "gpushare_broker_loop_lag_seconds": self.lag,
            "gpushare_broker_descriptors": _lowest_free(),
            "gpushare_broker_descriptors_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        }
        for name, value in values.items():
            found[name].append(((), value))
        for reason, number in broker.refusals.items():
            found["gpushare_refusals"].append(((reason,), number))


def _lowest_free() -> int:
    """Return the descriptor that would be given out next; the limit where there is none."""
    try:
        fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.close(fd)
    return fd


class _Adder:
    """Adds samples of one device."""

    def __init__(self, found: dict[str, list[Sample]], device: str) -> None:
        self._found, self._device = found, device

    def __call__(self, name: str, value: float | Spread, *labels: str) -> None:
        self._found[name].append(((self._device, *labels), value))


def _counted(found: dict[str, list[Sample]], engine: Engine, counts: Counts, now: float) -> None:
    counts.look_at_deadlines(now)
    add = _Adder(found, engine.device.inventory.id)
    standing = engine.scheduler.turns.gate.windows.standing.values()
    values: dict[str, float | Spread] = {
        "gpushare_broker_events": counts.events,
        "gpushare_broker_event_failures": counts.failures,
        "gpushare_session_restarts": counts.restarts,
        "gpushare_realtime_jobs": len(standing),
        "gpushare_realtime_releases": counts.releases,
        "gpushare_realtime_misses": counts.misses,
        "gpushare_realtime_overruns": counts.overruns,
        "gpushare_drain_seconds": counts.drains,
    }
    for name, value in values.items():
        add(name, value)
    if standing:
        add("gpushare_realtime_least_margin_seconds", min(one.promise.deadline - (one.promise.bound if one.longest is None else one.longest) for one in standing))  # fmt: skip
    for which in CLASSES:
        add("gpushare_wait_seconds", counts.waits[which], which)
    for reason, number in counts.pauses.items():
        add("gpushare_pauses", number, reason)
    for status, number in counts.results.items():
        add("gpushare_pause_results", number, status)
    for (way, status), number in counts.moves.items():
        add("gpushare_moves", number, way, status)
    for way, times in counts.move_times.items():
        add("gpushare_move_seconds", times, way)
        add("gpushare_moved_bytes", counts.moved[way], way)
