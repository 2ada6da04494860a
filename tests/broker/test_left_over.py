"""Whom a broker that is gone left paused runs again before the next one has loaded itself, and only where there is none (I4)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.broker.left_over import lock, resume_at_once
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.transport.places import Places, places, prepare
from tests.broker.test_intents import stopped
from tests.procs import eventually

__all__ = ["stopped"]


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A runtime folder of the test's own."""
    monkeypatch.setenv("GPUSHARE_RUNTIME_DIR", str(tmp_path / "run"))
    found = places()
    prepare(found)
    return found


def left(where: Places, key: ProcessKey) -> None:
    """A broker is gone, and this one stands still on its account."""
    table = IntentTable(where.intents)
    table.add(key)
    table.close()


def test_whoever_was_left_runs_again(where: Places, stopped: ProcessKey) -> None:
    """It is off the record then, and the next broker gets its lock."""
    left(where, stopped)
    assert resume_at_once() == [stopped]
    eventually(lambda: procfs.state(stopped.pid) == "S")
    assert resume_at_once() == []
    os.close(lock(where))


def test_who_is_paused_by_a_broker_that_lives_stays_so(where: Places, stopped: ProcessKey) -> None:
    """A second one that is started beside it touches nobody."""
    held = lock(where)
    left(where, stopped)
    assert resume_at_once() == []
    assert procfs.state(stopped.pid) == "T"
    os.close(held)


def test_a_lock_that_cannot_be_opened_is_said(where: Places) -> None:
    """On a read-only disk, say."""
    where.broker_lock.mkdir()
    with pytest.raises(
        BrokerUnavailable, match=r"broker\.lock cannot be opened: Is a directory\. Make it writable"
    ):
        lock(where)
    assert resume_at_once() == []


def test_a_folder_that_is_not_trusted_is_not_read(where: Places, stopped: ProcessKey) -> None:
    """Whoever may write to it could have us signal whom they like; the daemon says why it does not start."""
    left(where, stopped)
    where.runtime.chmod(0o777)
    assert resume_at_once() == []
    assert procfs.state(stopped.pid) == "T"


def test_little_is_loaded_before() -> None:
    """What it takes is loaded in a fifth of the time that a broker takes: neither a loop, nor a codec, nor the core."""
    code = (
        "import sys; from gpushare_kernel.broker import left_over\n"
        "print([m for m in ('asyncio', 'msgspec', 'sqlite3', 'logging', 'gpushare_kernel.core.scheduler') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=True)
    assert ran.stdout == b"[]\n"
