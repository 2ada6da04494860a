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
from gpushare_kernel.core.errors import BrokerUnavailable


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


def test_while_somebody_starts_one_nobody_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds that load what it takes to start a broker would slow down the one who does; when that one gives up, they look a second later."""
    ticks, clock = itertools.count(step=0.5), [0.0]
    looks: list[float] = []

    def monotonic() -> float:
        clock.append(next(ticks))
        return clock[-1]

    def nobody_starts(_: Path) -> bool:
        looks.append(clock[-1])
        if len(looks) == 3:
            msg = "the lock file cannot be opened"
            raise BrokerUnavailable(msg)
        return len(looks) > 3

    monkeypatch.setattr(link, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(link, "free", nobody_starts)
    for pause in ("FIRST_PAUSE", "LONG_PAUSE", "LONGEST_PAUSE"):
        monkeypatch.setattr(link, pause, 0.001)
    missing = Missing(clock, 1)
    made = Link(tmp_path / "broker.sock", missing)
    made.start()
    assert missing.enough.wait(20)
    made.close()
    assert looks[:4] == [1.0, 2.0, 3.0, 4.0]
    assert missing.at[0] == 4.0
