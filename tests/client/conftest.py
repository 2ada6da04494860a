"""Sessions and brokers that are closed after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpushare_kernel.client import api, display
from gpushare_kernel.client.session import Session
from tests.client.scripted_broker import ScriptedBroker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ScriptedBroker]:
    """A broker played by the test."""
    with ScriptedBroker(tmp_path) as played:
        yield played


@pytest.fixture
def new_session(broker: ScriptedBroker) -> Iterator[Callable[[], Session]]:
    """Make sessions that are closed after the test."""
    made: list[Session] = []

    def make(path: Path | None = None) -> Session:
        session = Session("the-token", path or broker.path)
        made.append(session)
        return session

    yield make
    while made:  # pytest keeps `make`, which would keep them: their pages are unmapped with them
        made.pop().close()


@pytest.fixture
def environment(
    broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ScriptedBroker]:
    """An environment as a kernel has it, and this process's own session closed afterwards."""
    monkeypatch.setenv("GPUSHARE_TOKEN", "the-token")
    monkeypatch.setenv("GPUSHARE_SESSION", "s1")
    monkeypatch.setenv("GPUSHARE_SOCKET", str(broker.path))
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/ann/hw1.ipynb")
    monkeypatch.delenv("GPUSHARE_ROOT", raising=False)
    monkeypatch.setattr(api, "_session", None)
    yield broker
    if api._session is not None:
        api._session.close()
    display.use(None)
