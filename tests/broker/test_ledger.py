"""The ledger: what was noted is there after any death, and no disk can bring the broker down."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.broker import ledger as module
from gpushare_kernel.broker.ledger import (
    Account,
    Ledger,
    Loaded,
    NeedRow,
    SessionRow,
    UserRow,
    token_hash,
)
from gpushare_kernel.core.learned import Declared, Learned, Place, Run
from gpushare_kernel.core.values import ProcessKey, SessionId, UserId
from tests.procs import eventually

ROW = SessionRow(
    id=SessionId("s1"),
    user=UserId("1000"),
    uid=1000,
    name="hw2.ipynb",
    process=ProcessKey(123, 2**40),
    token_hash=token_hash("secret"),
    weight=2.0,
    persistent=2**34,
    opened_at=1.75e9,
    account=Account(12.5, 20.25, 1000.5),
    needs=2**33,
    baseline=2**26,
)
ANN, BOB = UserId("ann"), UserId("bob")

NEED = NeedRow(
    ANN,
    "cell:1",
    "hw2.ipynb",
    Place("cuda", "H100", ("torch 2.9.0",)),
    Declared(persistent=2**30, time=60.0),
    Learned(12, (Run(2**34, 2**33, 1.5, 0.1), Run(2**34, 2**32, 2.5))),
    1.75e9,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the ledger is."""
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    """Make a ledger, and close it."""
    ledger = Ledger(path)
    yield ledger
    ledger.close()


def reloaded(path: Path) -> Loaded:
    again = Ledger(path)
    try:
        return again.load()
    finally:
        again.close()


def test_what_was_noted_is_loaded(path: Path, ledger: Ledger) -> None:
    """Sessions come back field by field, the newest state of each; closed ones do not; users keep both their numbers."""
    unbound = replace(ROW, id=SessionId("s2"), process=None, opened_at=ROW.opened_at + 1)
    ledger.session_saved(replace(ROW, persistent=0))
    ledger.session_saved(unbound)
    ledger.session_saved(ROW)
    ledger.session_saved(replace(ROW, id=SessionId("s3")))
    ledger.session_closed(SessionId("s3"))
    ledger.session_closed(SessionId("never seen"))
    for total in (1.0, 2.0, 3.5):
        ledger.device_time(ANN, total)
    ledger.user_weight(ANN, 3.0)
    ledger.user_weight(BOB, 0.5)
    ledger.close()
    ledger.close()
    assert reloaded(path) == Loaded(
        (ROW, unbound), ((ANN, UserRow(3.5, 3.0)), (BOB, UserRow(0.0, 0.5)))
    )


def test_an_empty_ledger(path: Path) -> None:
    """A new one has nothing, and is private."""
    assert reloaded(path) == Loaded()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_token_is_not_kept(path: Path, ledger: Ledger) -> None:
    """Only its hash is on disk."""
    ledger.session_saved(ROW)
    assert ledger.flush()
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert token_hash("secret").encode() in content
    assert b"secret" not in content


def test_kill_9_loses_no_session(path: Path) -> None:
    """A session that was written is there after its broker was killed."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom gpushare_kernel.broker.ledger import *\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "for n in range(100): ledger.session_saved(SessionRow(str(n), 'u', 1, 'n', None, '', 1.0, 0, float(n), Account()))\n"
        "assert ledger.flush()\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert [row.id for row in reloaded(path).sessions] == [str(n) for n in range(100)]


def test_sessions_are_written_without_being_asked(path: Path, ledger: Ledger) -> None:
    """No flush and no close is needed; device times follow within their second."""
    ledger.session_saved(ROW)
    eventually(lambda: ledger.load().sessions == (ROW,))
    ledger.device_time(ANN, 7.0)
    eventually(lambda: ledger.load().users == ((ANN, UserRow(7.0, 1.0)),))


def test_another_boots_rows_are_ignored_and_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot no process of a session can be there; what users have used still counts."""
    with monkeypatch.context() as before:
        before.setattr(procfs, "boot_id", lambda: "another boot")
        old = Ledger(path)
        old.session_saved(ROW)
        old.device_time(ANN, 9.0)
        old.close()
        assert reloaded(path).sessions == (ROW,)
    assert reloaded(path) == Loaded((), ((ANN, UserRow(9.0, 1.0)),))
    new = Ledger(path)
    new.session_saved(replace(ROW, weight=5.0))
    new.close()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT weight, boot FROM sessions").fetchall() == [
            (5.0, procfs.boot_id())
        ]


def test_a_ledger_of_before_gets_its_new_columns(path: Path) -> None:
    """Its sessions are kept: what a notebook needs, held at its start, and used since its account was written is not known of them."""
    with closing(Ledger(path)) as ledger:
        ledger.session_saved(ROW)
        assert ledger.flush()
    with closing(sqlite3.connect(path)) as database:
        for column in ("needs", "baseline", "clock", "clock_at"):
            database.execute(f"ALTER TABLE sessions DROP COLUMN {column}")
        database.commit()
    assert reloaded(path).sessions == (replace(ROW, needs=0, baseline=0, account=Account(12.5)),)
    assert [one.name for one in path.parent.glob("*corrupt*")] == []


def _garbage(path: Path) -> None:
    path.write_bytes(b"this is no database, " * 1000)


def _torn(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))


def _other_tables(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE sessions (something INTEGER)")
        database.commit()


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE meta SET schema = 99")
        database.commit()


@pytest.mark.parametrize("damage", [_garbage, _torn, _other_tables, _newer])
def test_a_damaged_ledger_is_moved_aside(
    path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    """It is kept under another name, that is logged, and the broker goes on with a new one."""
    first = Ledger(path)
    first.session_saved(ROW)
    first.close()
    for number in (1, 2):
        damage(path)  # type: ignore[operator]
        damaged = path.read_bytes()
        ledger = Ledger(path)
        assert ledger.load() == Loaded()
        ledger.session_saved(ROW)
        ledger.close()
        aside = path.with_name(f"ledger.sqlite.corrupt-{number}")
        assert (
            aside.read_bytes()[:4096][100:] == damaged[:4096][100:]
        )  # the header may have been touched
        assert aside.name in caplog.text
        assert reloaded(path).sessions == (ROW,)


def test_a_place_that_cannot_be_written(caplog: pytest.LogCaptureFixture) -> None:
    """Logged once, however much is noted; nothing is raised, and the broker ends as usual."""
    ledger = Ledger(Path("/proc/self/ledger.sqlite"))
    assert ledger.load() == Loaded()
    for total in range(50):
        ledger.session_saved(ROW)
        ledger.device_time(ANN, total)
        assert not ledger.flush()
    ledger.close()
    assert caplog.text.count("kept in memory") == 1


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (
            sqlite3.OperationalError("database or disk is full"),
            "database or disk is full. Make room on that disk.",
        ),
        (MemoryError(), "MemoryError. This broker is out of memory."),  # sqlite's own: SQLITE_NOMEM
    ],
)
def test_what_could_not_be_written_is_written_later(
    path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    problem: Exception,
    says: str,
) -> None:
    """A full disk, or no memory, costs nothing once there is room again, and the newest values win."""
    caplog.set_level(logging.WARNING)
    real, full = module._write, True

    def write(database: sqlite3.Connection, changes: object) -> None:
        database.execute("BEGIN IMMEDIATE")
        if full:
            raise problem
        database.execute("ROLLBACK")
        real(database, changes)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_write", write)
    ledger = Ledger(path)
    ledger.session_saved(ROW)
    ledger.device_time(ANN, 1.0)
    assert not ledger.flush()
    ledger.device_time(ANN, 2.0)
    assert not ledger.flush()
    assert ledger.trouble is not None
    assert ledger.trouble.endswith(says)
    full = False
    assert ledger.flush()
    assert ledger.trouble is None
    ledger.close()
    assert reloaded(path) == Loaded((ROW,), ((ANN, UserRow(2.0, 1.0)),))
    first, second = (record.getMessage() for record in caplog.records)
    assert first.endswith(f"kept in memory: {says.split('.', maxsplit=1)[0]}")
    assert second.endswith("written again")


def test_a_really_full_disk(tmp_path: Path) -> None:
    """SQLite's own limit stands in for the disk: what does not fit stays in memory, what was written stays whole."""
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.session_saved(ROW)
    assert ledger.flush()
    soft = 4096 * 64
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom dataclasses import replace\n"
        "from gpushare_kernel.broker.ledger import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({soft}, {soft}))\n"
        "ledger = Ledger(Path(sys.argv[1]))\n(row,) = ledger.load().sessions\n"
        "for n in range(2000): ledger.session_saved(replace(row, id=f'n{n}', name='x' * 500))\n"
        "assert not ledger.flush()\nkept = ledger.load().sessions\n"
        "assert row in kept and len(kept) < 2001\nledger.close()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    ledger.close()
    assert ROW in reloaded(path).sessions


def test_noting_does_not_wait_for_the_disk(path: Path, ledger: Ledger) -> None:
    """While somebody holds the database, changes are noted at once, and are written when it is free."""
    ledger.session_saved(ROW)
    assert ledger.flush()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for n in range(1000):
            ledger.session_saved(replace(ROW, weight=float(n)))
        assert not ledger.flush(0.05)
        other.execute("ROLLBACK")
    assert ledger.flush()
    assert [row.weight for row in ledger.load().sessions] == [999.0]


def test_what_was_learned_is_loaded(path: Path, ledger: Ledger) -> None:
    """Field by field, the newest of each row, the latest used last; what was dropped is gone."""
    later = replace(NEED, code="cell:2", used_at=NEED.used_at + 1)
    ledger.need_saved(later)
    ledger.need_saved(replace(NEED, name="old"))
    ledger.need_saved(NEED)
    ledger.need_saved(replace(NEED, code="cell:3"))
    ledger.need_dropped(replace(NEED, code="cell:3"))
    ledger.close()
    assert reloaded(path).needs == (NEED, later)


@pytest.mark.parametrize(
    "change",
    [
        "version = 99",
        "seen = 'x'",
        "seen = '{}'",
        """seen = '{"runs": [], "declared": [], "frameworks": []}'""",
        """seen = '{"runs": [[1]], "declared": [], "frameworks": []}'""",
    ],
)
def test_learned_rows_of_other_versions_and_broken_ones_are_passed_over(
    path: Path, ledger: Ledger, change: str
) -> None:
    """The rest of the ledger counts all the same, and the row is written anew."""
    ledger.need_saved(NEED)
    ledger.device_time(ANN, 1.0)
    assert ledger.flush()
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"UPDATE needs SET {change}")
        database.commit()
    loaded = ledger.load()
    assert (loaded.needs, [user for user, _ in loaded.users]) == ((), [ANN])
    ledger.need_saved(NEED)
    assert ledger.flush()
    assert ledger.load().needs == (NEED,)
