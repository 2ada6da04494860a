"""The broker's side of metrics, when something goes wrong in it: a real process that is asked over HTTP."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.broker.exporter import Exporter, Offer
from tests.broker.house import House
from tests.metrics.scrape import until, value


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A broker that offers none yet."""
    with House(tmp_path) as made:
        yield made


@pytest.fixture
def exporter(house: House, tmp_path: Path) -> Iterator[Exporter]:
    """It has an address, and no process yet."""
    sock = socket.create_server(("127.0.0.1", 0))
    offer = Offer(sock, 20, names=False, again=False)
    made = house.do(lambda: Exporter(offer, house.broker, tmp_path / "log", lambda: 0))
    yield made
    house.wait(made.stop())


def test_a_reading_that_fails_is_said_and_the_next_is_given(
    house: House, exporter: Exporter, caplog: pytest.LogCaptureFixture
) -> None:
    """The process that waits for it has its line ended, and another comes: not 503 for ever."""
    usual, failed = exporter._readings.reading, []

    def reading() -> object:
        if not failed:
            failed.append(1)
            raise ValueError
        return usual()

    exporter._readings.reading = reading  # type: ignore[assignment,method-assign]
    house.do(exporter.start)
    seen = until(exporter.where, lambda _: True)
    assert value(seen, "gpushare_broker_started_again") == 0
    assert failed
    assert "metrics could not be gathered" in caplog.text


def test_a_start_that_fails_leaves_no_process(
    house: House, exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, and cannot be watched: it is ended, and tried again later."""

    def none(pid: int) -> int:
        raise OSError(24, f"no descriptor for {pid}")

    before = set(procfs.children(os.getpid()))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pidfd_open", none)
        house.do(exporter.start)
    assert set(procfs.children(os.getpid())) == before
