"""A connection that comes back: when it looks, and when it asks for a broker to be started."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpushare_kernel.client import link
from gpushare_kernel.client.link import Link


class Missing:
    """Whoever has a link to a broker that is not there; notes at what time it is told to do something about it."""

    def __init__(self, clock: list[float], asked: int) -> None:
        self.clock, self.asked = clock, asked
        self.at: list[float] = []
        self.enough = threading.Event()

    def stays_away(self) -> None:
        self.at.append(self.clock[-1])
        if len(self.at) == self.asked:
            self.enough.set()

    def __getattr__(self, name: str) -> Any:
        msg = f"nobody is there, and the link said {name}"
        raise AssertionError(msg)


def test_who_misses_its_broker_asks_for_one_after_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I4: one second, and then every three: by then whoever starts it has the start lock."""
    ticks, clock = itertools.count(step=0.5), [0.0]

    def monotonic() -> float:
        clock.append(next(ticks))
        return clock[-1]

    monkeypatch.setattr(link, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(link, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(link, "LONG_PAUSE", 0.001)
    monkeypatch.setattr(link, "LONGEST_PAUSE", 0.001)
    missing = Missing(clock, 3)
    made = Link(tmp_path / "broker.sock", missing)
    made.start()
    assert missing.enough.wait(20)
    made.close()
    assert missing.at[:3] == [1.0, 4.0, 7.0]
