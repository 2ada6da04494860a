"""What metrics cost the broker: microseconds an event to count, milliseconds of its loop a reading. See README.md."""

from __future__ import annotations

import asyncio
import gc
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import thread_time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec

from benchmarks.common import Figure, Options, main, progress
from benchmarks.core_events.world import World
from gpushare_kernel.broker.broker import Broker
from gpushare_kernel.broker.counts import Counts
from gpushare_kernel.broker.hardware import config_of
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.broker.ledger import Ledger
from gpushare_kernel.broker.reading import Readings
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.values import GiB, SessionId, UserId
from gpushare_kernel.devices.host import HostDevice

QUESTION = "What do metrics take of the broker, for an event and for a scrape?"
SIZES = (100, 1000)


class Kept:
    """A scheduler that keeps what it was told and what it answered."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self.kept: list[tuple[ev.Event, Sequence[do.Instruction]]] = []

    def handle(self, event: ev.Event) -> Any:
        """Handle it, and keep both."""
        out = self._core.handle(event)
        self.kept.append((event, out))
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


def measure(options: Options) -> Sequence[Figure]:
    """Events of `core_events` and what followed are kept, then counted; then a broker with as many sessions is read."""
    rounds, events = (3, 2_000) if options.quick else (7, 10_000)
    found = []
    for number in SIZES:
        world = World(number)
        counts, keeping = Counts(world.core), Kept(world.core)
        world.core = keeping  # type: ignore[assignment]  # it passes for one
        gc.freeze()
        world.run(2_000)
        noted, parts = [], []
        for _ in range(rounds):
            keeping.kept.clear()
            each = world.run(events)
            began = thread_time()
            for event, out in keeping.kept:
                counts.note(event, out)
            noted.append((thread_time() - began) / len(keeping.kept) * 1e6)
            parts.append(noted[-1] / each * 100)
        progress(f"{number} sessions: {noted[-1]:.2f} us an event")
        found += [
            Figure(f"count_at_{number}", "us", noted, at_most=1.0),
            Figure(f"count_of_event_at_{number}", "%", parts),
        ]
    for number in SIZES:
        times, sizes = asyncio.run(readings(number, rounds * 5))
        found += [
            Figure(f"reading_at_{number}", "ms", times, at_most=10.0),
            Figure(f"bytes_of_reading_at_{number}", "bytes", sizes),
        ]
    return found


async def readings(number: int, times: int) -> tuple[list[float], list[float]]:
    """Return milliseconds of CPU for each of some readings of a broker with so many sessions, of a tenth as many users."""
    with tempfile.TemporaryDirectory() as folder:
        table = IntentTable(Path(folder) / "intents")
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        device = HostDevice(table, capacity=64 * GiB)
        broker = Broker([(config_of(device, policy="fair", turn=0.1), device)], ledger, system=True)
        gathering = Readings(broker, people=20, names=True, again=False)
        for n in range(number):
            user = UserId(f"user{n % max(1, number // 10)}")
            broker.engine.feed(
                ev.SessionOpened(at=broker.now, session=SessionId(f"s{n}"), user=user)
            )
        spent, sizes = [], []
        for _ in range(times):
            began = thread_time()
            payload = msgspec.msgpack.encode(gathering.gathered(broker.now))
            spent.append((thread_time() - began) * 1000)
            sizes.append(float(len(payload)))
        await broker.finish()
        ledger.close()
        table.close()
    return spent, sizes


if __name__ == "__main__":
    sys.exit(main("metrics", QUESTION, measure))
