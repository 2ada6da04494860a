"""What must outlive a broker: its sessions of this boot, and what each user has used.

The loop only notes changes; a thread of the ledger's own writes them, the newest per row, in one
transaction. Sessions are written at once, device times at most once a second. A disk that is full or
read-only is logged once: the broker goes on, and what it noted is written when that works again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from gpushare_kernel import procfs
from gpushare_kernel.core.learned import Declared, Learned, Place, Run
from gpushare_kernel.core.values import ProcessKey, SessionId, UserId

SCHEMA = 1
NEEDS_VERSION = 1
"""What a row of learned needs means; rows of another version are passed over, and written anew when that code runs again."""
_LAZY_SECONDS = 1.0
_TABLES = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS meta (schema INTEGER NOT NULL);
INSERT INTO meta SELECT 1 WHERE NOT EXISTS (SELECT * FROM meta);
CREATE TABLE IF NOT EXISTS users (
    user TEXT PRIMARY KEY, device_time REAL NOT NULL DEFAULT 0, weight REAL NOT NULL DEFAULT 1
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT NOT NULL, boot TEXT NOT NULL, user TEXT NOT NULL, uid INTEGER NOT NULL, name TEXT NOT NULL,
    pid INTEGER, start INTEGER, token_hash TEXT NOT NULL, weight REAL NOT NULL, persistent INTEGER NOT NULL,
    opened_at REAL NOT NULL, device_time REAL NOT NULL, opener INTEGER, opener_start INTEGER,
    device TEXT NOT NULL, background INTEGER NOT NULL, needs INTEGER NOT NULL DEFAULT 0,
    baseline INTEGER NOT NULL DEFAULT 0, clock REAL NOT NULL DEFAULT 0, clock_at REAL NOT NULL DEFAULT 0,
    hub TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (boot, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS needs (
    user TEXT NOT NULL, code TEXT NOT NULL, kind TEXT NOT NULL, device TEXT NOT NULL, version INTEGER NOT NULL,
    name TEXT NOT NULL, count INTEGER NOT NULL, seen TEXT NOT NULL, used_at REAL NOT NULL,
    PRIMARY KEY (user, code, kind, device)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS policies (
    boot TEXT NOT NULL, device TEXT NOT NULL, policy TEXT NOT NULL, PRIMARY KEY (boot, device)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
    user TEXT NOT NULL, day INTEGER NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (user, day)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
COMMIT;
"""
_SESSION = (
    "INSERT OR REPLACE INTO sessions (id, boot, user, uid, name, pid, start, token_hash, weight, persistent,"
    " opened_at, device_time, opener, opener_start, device, background, needs, baseline, hub, clock, clock_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_CLOSED = "DELETE FROM sessions WHERE id = ? AND boot = ?"
_DEVICE_TIME = "INSERT INTO users (user, device_time) VALUES (?, ?) ON CONFLICT DO UPDATE SET device_time = excluded.device_time"
_WEIGHT = "INSERT INTO users (user, weight) VALUES (?, ?) ON CONFLICT DO UPDATE SET weight = excluded.weight"
_LOAD = (
    "SELECT id, user, uid, name, pid, start, token_hash, weight, persistent, opened_at, device_time,"
    " opener, opener_start, device, background, needs, baseline, hub, clock, clock_at FROM sessions WHERE boot = ? ORDER BY opened_at, id"
)
_USERS = "SELECT user, device_time, weight FROM users ORDER BY user"
_NEED = "INSERT OR REPLACE INTO needs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_NEED_DROPPED = "DELETE FROM needs WHERE user = ? AND code = ? AND kind = ? AND device = ?"
_NEEDS = "SELECT user, code, kind, device, name, count, seen, used_at FROM needs WHERE version = ? ORDER BY used_at"
_POLICY = "INSERT OR REPLACE INTO policies VALUES (?, ?, ?)"
_POLICIES = "SELECT device, policy FROM policies WHERE boot = ?"
_POLICIES_DROPPED = "DELETE FROM policies"
_SPENT = "INSERT OR REPLACE INTO spent VALUES (?, ?, ?)"
_SPENT_DROPPED = "DELETE FROM spent WHERE user = ? AND day = ?"
_ALL_SPENT = "SELECT user, day, seconds FROM spent"
_NOTE = "INSERT OR REPLACE INTO notes VALUES (?, ?)"
_NOTE_DROPPED = "DELETE FROM notes WHERE name = ?"
_NOTES = "SELECT name, value FROM notes"
_ADDED = {
    "needs": "INTEGER NOT NULL DEFAULT 0",
    "baseline": "INTEGER NOT NULL DEFAULT 0",
    "clock": "REAL NOT NULL DEFAULT 0",
    "clock_at": "REAL NOT NULL DEFAULT 0",
    "hub": "TEXT NOT NULL DEFAULT ''",
}
# SQLITE_ERROR (tables of another shape), SQLITE_CORRUPT, SQLITE_NOTADB. The rest is the disk's fault, and may pass.
_DAMAGED = (1, 11, 26)
_NO_ROOM, _NO_MEMORY = "Make room on that disk.", "This broker is out of memory."
_Change = tuple[str, tuple[object, ...]]
_logger = logging.getLogger(__name__)


class Account(NamedTuple):
    """What a session has used (device seconds), what its processes' clock showed then (0: there is none), and when (CLOCK_MONOTONIC).

    The clock goes on without a broker: whoever comes after us reads off it what was used since.
    """

    device_time: float = 0.0
    clock: float = 0.0
    clock_at: float = 0.0


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as it is kept. `opened_at` is wall clock seconds; `process` is None until it is bound.

    While its `opener` lives, the session may get another process: a restart of its kernel. `baseline` is what its
    process held when its client came (0: not measured): whatever it holds beyond that it keeps.
    """

    id: SessionId
    user: UserId
    uid: int
    name: str
    process: ProcessKey | None
    token_hash: str
    weight: float
    persistent: int
    opened_at: float
    account: Account
    opener: ProcessKey | None = None
    device: str = ""
    background: bool = False
    needs: int = 0
    baseline: int = 0
    hub: str = ""


@dataclass(frozen=True, slots=True)
class UserRow:
    """A user's account: device seconds in all, and the weight an administrator gave."""

    device_time: float
    weight: float


@dataclass(frozen=True, slots=True)
class NeedRow:
    """What was learned of one piece of a user's code on one device. `code` is a hash, `used_at` wall clock seconds."""

    user: UserId
    code: str
    name: str
    place: Place
    declared: Declared
    learned: Learned
    used_at: float

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells it from others."""
        return (self.user, self.code, self.place.kind, self.place.device)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a ledger holds: the sessions of this boot, every user, and what was learned of their code, the latest used last.

    `policies` are those that somebody chose live since the broker was started on purpose, by device. `spent` are device
    seconds by user and day (its proleptic ordinal), `notes` what administrators began and have not ended.
    """

    sessions: tuple[SessionRow, ...] = ()
    users: tuple[tuple[UserId, UserRow], ...] = ()
    needs: tuple[NeedRow, ...] = ()
    policies: tuple[tuple[str, str], ...] = ()
    spent: tuple[tuple[str, int, float], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()


def token_hash(token: str) -> str:
    """Return what is kept of a token: enough to know it again, not enough to use it."""
    return hashlib.sha256(token.encode()).hexdigest()


class Ledger:
    """The ledger at `path`. Methods return at once and never raise for what the disk does; `close` flushes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot = procfs.boot_id()
        self._changed = threading.Condition()
        #: The newest change per row that is not on disk yet, in the order they came.
        self._pending: dict[tuple[str, str], _Change] = {}
        self._urgent = False
        self._closing = False
        self._writing = False
        self._failing = False
        #: What people are to know of it; None while all is well.
        self.trouble: str | None = None
        self._thread = threading.Thread(target=self._work, name="gpushare-ledger", daemon=True)
        self._thread.start()

    def load(self) -> Loaded:
        """Return what is on disk; blocks. Rows of another boot do not count: their processes are gone."""
        sessions: list[SessionRow] = []
        users: list[tuple[UserId, UserRow]] = []
        learned: list[NeedRow] = []
        policies: list[tuple[str, str]] = []
        spent: list[tuple[str, int, float]] = []
        notes: list[tuple[str, str]] = []
        with self._reporting(), closing(_opened(self._path)) as database:
            for id_, user, uid, name, pid, start, *kept in database.execute(_LOAD, (self._boot,)):
                who = SessionId(id_), UserId(user), uid, name, _key(pid, start)
                (
                    token,
                    weight,
                    persistent,
                    opened,
                    used,
                    opener,
                    since,
                    device,
                    background,
                    needs,
                    baseline,
                    hub,
                    *clock,
                ) = kept
                account = Account(used, *clock)
                row = SessionRow(*who, token, weight, persistent, opened, account, _key(opener, since))  # fmt: skip
                row = replace(row, device=device, background=bool(background), needs=needs, baseline=baseline, hub=hub)  # fmt: skip
                sessions.append(row)
            for user, used, weight in database.execute(_USERS):
                users.append((UserId(user), UserRow(used, weight)))
            rows = (_need_row(*row) for row in database.execute(_NEEDS, (NEEDS_VERSION,)))
            learned += [row for row in rows if row is not None]
            policies += database.execute(_POLICIES, (self._boot,))
            spent += database.execute(_ALL_SPENT)
            notes += database.execute(_NOTES)
        found = (sessions, users, learned, policies, spent, notes)
        return Loaded(*map(tuple, found))  # type: ignore[arg-type]

    def session_saved(self, row: SessionRow, *, urgent: bool = True) -> None:
        """Keep a session as it is now; where only its device time is new, that is not urgent."""
        account = row.account
        kept = (row.token_hash, row.weight, row.persistent, row.opened_at, account.device_time)
        who = (row.id, self._boot, row.user, row.uid, row.name)
        self._note(
            ("session", row.id),
            (
                _SESSION,
                (
                    *(*who, *_pair(row.process), *kept, *_pair(row.opener)),
                    *(row.device, int(row.background), row.needs, row.baseline, row.hub),
                    *(account.clock, account.clock_at),
                ),
            ),
            urgent=urgent,
        )

    def session_closed(self, session: SessionId) -> None:
        """Forget a session."""
        self._note(("session", session), (_CLOSED, (session, self._boot)), urgent=True)

    def device_time(self, user: UserId, total: float) -> None:
        """Keep what a user has used in all, in device seconds."""
        self._note(("device_time", user), (_DEVICE_TIME, (user, total)))

    def user_weight(self, user: UserId, weight: float) -> None:
        """Keep a user's weight."""
        self._note(("weight", user), (_WEIGHT, (user, weight)), urgent=True)

    def policy_chosen(self, device: str, policy: str) -> None:
        """Keep which policy a device was switched to."""
        self._note(("policy", device), (_POLICY, (self._boot, device, policy)), urgent=True)

    def policies_dropped(self) -> None:
        """Forget them: a broker that is started on purpose follows what it is started with."""
        self._note(("policies", ""), (_POLICIES_DROPPED, ()), urgent=True)

    def spent(self, user: UserId, day: int, seconds: float) -> None:
        """Keep what a user has used on a day, in device seconds."""
        self._note(("spent", f"{user}/{day}"), (_SPENT, (user, day, seconds)))

    def spent_dropped(self, user: UserId, day: int) -> None:
        """Forget it."""
        self._note(("spent", f"{user}/{day}"), (_SPENT_DROPPED, (user, day)))

    def noted(self, name: str, value: str) -> None:
        """Keep what an administrator began; empty: it is over."""
        change = (_NOTE, (name, value)) if value else (_NOTE_DROPPED, (name,))
        self._note(("note", name), change, urgent=True)

    def need_saved(self, row: NeedRow) -> None:
        """Keep what is known of one piece of code."""
        seen = {
            "frameworks": row.place.frameworks,
            "declared": astuple(row.declared),
            "runs": [astuple(run) for run in row.learned.runs],
        }
        values = (
            *row.key,
            NEEDS_VERSION,
            row.name,
            row.learned.count,
            json.dumps(seen),
            row.used_at,
        )
        self._note(("need", "\0".join(row.key)), (_NEED, values))

    def need_dropped(self, row: NeedRow) -> None:
        """Forget it."""
        self._note(("need", "\0".join(row.key)), (_NEED_DROPPED, row.key))

    def flush(self, timeout: float = 10.0) -> bool:
        """Write what is noted now; return whether all of it is on disk. Blocks."""
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            tried = self._changed.wait_for(lambda: not (self._urgent or self._writing), timeout)
            return tried and not self._pending

    def close(self) -> None:
        """Write what is noted and end the thread. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _note(self, row: tuple[str, str], change: _Change, *, urgent: bool = False) -> None:
        with self._changed:
            self._pending.pop(row, None)  # the newest change of a row goes to the end
            self._pending[row] = change
            if urgent or len(self._pending) == 1:
                self._urgent |= urgent
                self._changed.notify_all()

    def _work(self) -> None:
        database: sqlite3.Connection | None = None
        last = False
        while not last:
            changes, last = self._take()
            done = not changes
            with self._reporting():
                if changes:
                    database = database or self._first_open()
                    _write(database, changes.values())
                    done = True
            if not done and database is not None:
                with suppress(sqlite3.Error):
                    database.close()
                database = None
            self._give_back({} if done else changes)
        if database is not None:
            database.close()

    def _take(self) -> tuple[dict[tuple[str, str], _Change], bool]:
        """Wait until there is something to write; return it, and whether it is the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._urgent or self._closing)
            if not self._urgent and not self._closing:
                self._changed.wait_for(lambda: self._urgent or self._closing, _LAZY_SECONDS)
            changes, self._pending = self._pending, {}
            self._urgent, self._writing = False, True
            return changes, self._closing

    def _give_back(self, changes: dict[tuple[str, str], _Change]) -> None:
        """Note again what could not be written, behind nothing newer; the next try is a second away."""
        with self._changed:
            self._pending = {**changes, **self._pending}
            self._writing = False
            self._changed.notify_all()

    def _first_open(self) -> sqlite3.Connection:
        database = _opened(self._path)
        database.execute("DELETE FROM sessions WHERE boot <> ?", (self._boot,))
        return database

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Log the first of a row of failures, and the end of the row; raise nothing (sqlite's own lack of memory is a MemoryError)."""
        try:
            yield
        except (sqlite3.Error, OSError, MemoryError) as problem:
            self._failed(problem)
        else:
            if self._failing:
                self._failing = False
                self.trouble = None
                _logger.warning("the ledger %s is written again", self._path)

    def _failed(self, problem: Exception) -> None:
        if not self._failing:
            self._failing = True
            what = str(problem) or type(problem).__name__
            happens = f"ledger {self._path} is not written, it is kept in memory: {what}"
            mend = _NO_MEMORY if isinstance(problem, MemoryError) else _NO_ROOM
            self.trouble = f"The {happens}. {mend}"
            _logger.error("the %s", happens)


def _opened(path: Path, *, fresh: bool = False) -> sqlite3.Connection:
    """Return the database, made where there is none; a damaged one is moved aside first."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(path, isolation_level=None)
    try:
        damage = _prepared(database)
    except sqlite3.Error as problem:
        database.close()
        if fresh or getattr(problem, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
            raise
        damage = str(problem)
    if not damage:
        return database
    database.close()
    _move_aside(path, damage)
    return _opened(path, fresh=True)


def _prepared(database: sqlite3.Connection) -> str:
    """Check the database and make its tables; return what is wrong with it, if anything."""
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        return str(verdict)
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    if tables and "meta" not in tables:
        return f"it is somebody else's, with {', '.join(sorted(tables))}"
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.executescript(_TABLES)
    (schema,) = database.execute("SELECT schema FROM meta").fetchone()
    if schema != SCHEMA:
        return f"it has schema {schema}, and this version knows {SCHEMA}"
    _add_columns(database)
    database.execute(_LOAD, ("",))
    database.execute(_NEEDS, (0,))
    return ""


def _add_columns(database: sqlite3.Connection) -> None:
    """Add the columns that ledgers of earlier versions lack; those versions read on as if they were not there."""
    if _columns(database) >= _ADDED.keys():
        return
    with database:
        database.execute("BEGIN IMMEDIATE")
        for column in sorted(_ADDED.keys() - _columns(database)):  # where nobody was faster
            database.execute(f"ALTER TABLE sessions ADD COLUMN {column} {_ADDED[column]}")


def _columns(database: sqlite3.Connection) -> set[str]:
    return {name for _, name, *_ in database.execute("PRAGMA table_info(sessions)")}


def _move_aside(path: Path, damage: str) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    for suffix in ("", "-wal", "-shm"):  # its log belongs to it: together they may still be read
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    _logger.error(
        "the ledger %s cannot be used (%s): it is now %s, and a new one is begun",
        path,
        damage,
        aside.name,
    )


def _write(database: sqlite3.Connection, changes: Iterable[_Change]) -> None:
    database.execute("BEGIN IMMEDIATE")
    for statement, values in changes:
        database.execute(statement, values)
    database.execute("COMMIT")


def _need_row(  # noqa: PLR0917 - a row of the table
    user: str, code: str, kind: str, device: str, name: str, count: int, seen: str, used_at: float
) -> NeedRow | None:
    """Return a row as it was kept; None where it makes no sense."""
    try:
        known = json.loads(seen)
        runs = tuple(Run(*run) for run in known["runs"])
        place = Place(kind, device, tuple(known["frameworks"]))
        declared = Declared(*known["declared"])
    except (ValueError, TypeError, KeyError):
        return None
    if not runs:
        return None
    return NeedRow(UserId(user), code, name, place, declared, Learned(count, runs), used_at)


def _pair(key: ProcessKey | None) -> tuple[int | None, int | None]:
    return (None, None) if key is None else (key.pid, key.start_time)


def _key(pid: int | None, start: int | None) -> ProcessKey | None:
    return None if pid is None or start is None else ProcessKey(pid, start)
