"""Which processes stand still on our account, on record *before* each pause (I4).

A file mapped into memory: it outlives every kill -9, costs two stores an entry, and the guardian reads it
when its broker is gone. A broker makes a new file each time, so that the guardian of the one before,
which holds the old one, never sees (and never resumes) what the new broker pauses.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import time
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import BrokerUnavailable, DeviceError
from gpushare_kernel.core.values import MiB, ProcessKey
from gpushare_kernel.devices.base import Hold
from gpushare_kernel.devices.move_limits import back_limit
from gpushare_kernel.devices.unlocking import WITHIN, Unlockers

ROWS = 32768
"""Half a MiB: eight times what a device lets one user have (`devices.host.MOST`)."""
RESTARTS = 5
"""How many starts of a broker by its guardian are remembered (CLOCK_MONOTONIC seconds)."""

# Everything is a u64: magic, boot id (2), flags, restarts (5), beats, then rows of pid (32 bits; above them how it is paused,
# 8 bits, and the MiB that a park took, 24 bits) and start time.
_MAGIC = int.from_bytes(b"gpuint02", "little")
_HOW, _SIZE_AT = 32, 40
_MOST_MIB = (1 << 24) - 1
_HOWS = {int(how): how for how in Hold}
_BOOT, _FLAGS, _RESTART, _BEATS, _FIRST_ROW = 1, 3, 4, 9, 16
_CLEAN_EXIT = 1

_UNDOING, _KILLING, _SETTLING = 0.25, 0.1, 0.05
"""Seconds: for workers to undo what they hold, for killed ones to be gone, for a lock under way to come through."""
_FROM_COLD = 5.0
"""Seconds for workers that have to be started first; a broker that starts waits so long at most."""
_SIZE = 8 * (_FIRST_ROW + 2 * ROWS)


class IntentTable:
    """The table of one broker. Make one only while holding broker.lock: it replaces the file at `path`.

    Restarts are carried over, and so is whatever is still on record: `resume_all` the old one first.
    """

    def __init__(self, path: Path) -> None:
        before = self.open_existing(path)
        fresh = path.with_name(f"{path.name}.new")
        fresh.unlink(missing_ok=True)
        try:
            self._map(_room_for(fresh))
        except BaseException:
            if before is not None:
                before.close()
            raise
        self._words[_BOOT], self._words[_BOOT + 1] = _boot()
        self.refresh()
        if before is not None:
            self._words[_RESTART:_BEATS] = before._words[_RESTART:_BEATS]
            for how in Hold:
                for key in before.held(how):
                    self.add(key, how)
                    self.change(key, how, before.size(key))
            before.close()
        self._words[0] = _MAGIC
        fresh.rename(path)

    @classmethod
    def open_existing(cls, path: Path) -> Self | None:
        """Return the table that a broker left at `path`; None where there is none of this boot."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        return cls.from_fd(fd)

    @classmethod
    def from_fd(cls, fd: int) -> Self | None:
        """Take over an open table file; None (and it is closed) where it is no table of this boot."""
        size = os.fstat(fd).st_size  # a broker of another version may have had more rows, or fewer
        if size <= 8 * _FIRST_ROW or size % 16:
            os.close(fd)
            return None
        table = cls.__new__(cls)
        table._map(fd)
        if table._words[0] != _MAGIC or tuple(table._words[_BOOT : _BOOT + 2]) != _boot():
            table.close()
            return None
        table.refresh()
        return table

    def _map(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, 0)
        self._words = memoryview(self._memory).cast("Q")

    def refresh(self) -> None:
        """Read the rows: whoever shares the table with its broker sees only then what was written since."""
        self._rows: dict[ProcessKey, tuple[int, Hold]] = {}
        self._free: list[int] = []
        words = self._words.tolist()
        for row in range(len(words) - 2, _FIRST_ROW - 2, -2):
            word = words[row]
            how = _HOWS.get(word >> _HOW & 0xFF) if word else None
            if how is not None:
                self._rows[ProcessKey(word & (1 << _HOW) - 1, words[row + 1])] = row, how
            else:
                self._free.append(row)

    def add(self, key: ProcessKey, how: Hold = Hold.SIGNAL) -> None:
        """Record that `key` is about to be paused. Refuses where the table is full: then nothing may be paused."""
        if key in self._rows:
            return
        if not self._free:
            msg = f"at most {ROWS} processes may stand still at once, and so many do: this one runs on."
            raise DeviceError(msg)
        row = self._free.pop()
        self._rows[key] = row, how
        # The pid makes the row count, so it comes last: a kill in between leaves a free row.
        self._words[row + 1] = key.start_time
        self._words[row] = key.pid | how << _HOW

    def change(self, key: ProcessKey, how: Hold, size: int = 0) -> None:
        """`key` stands still in another way from now on: one store, so a kill leaves the one or the other."""
        row, _ = self._rows[key]
        self._rows[key] = row, how
        mib = min(-(-size // MiB), _MOST_MIB)
        self._words[row] = key.pid | how << _HOW | mib << _SIZE_AT

    def size(self, key: ProcessKey) -> int:
        """Return the bytes that were recorded with `key`, in whole MiB; 0 where there are none."""
        found = self._rows.get(key)
        return 0 if found is None else (self._words[found[0]] >> _SIZE_AT) * MiB

    def remove(self, key: ProcessKey) -> None:
        """`key` runs again, or is gone."""
        found = self._rows.pop(key, None)
        if found is not None:
            self._words[found[0]] = 0
            self._free.append(found[0])

    def held(self, *hows: Hold) -> Sequence[ProcessKey]:
        """Every process on record that is paused in one of these ways; by signal or lock where none is given."""
        wanted = hows or (Hold.SIGNAL, Hold.LOCK)
        return tuple(key for key, (_, how) in self._rows.items() if how in wanted)

    @property
    def clean_exit(self) -> bool:
        """Whether the broker went away on purpose."""
        return bool(self._words[_FLAGS] & _CLEAN_EXIT)

    def mark_clean_exit(self) -> None:
        """Tell the guardian that the broker goes away on purpose: it starts no other."""
        self._words[_FLAGS] |= _CLEAN_EXIT

    @property
    def restarts(self) -> Sequence[float]:
        """When guardians last started a broker, newest first (CLOCK_MONOTONIC seconds)."""
        return [stamp / 1000 for stamp in self._words[_RESTART : _RESTART + RESTARTS] if stamp]

    def note_restart(self, now: float) -> None:
        """Remember that a broker is being started at `now`."""
        newest = [int(now * 1000), *self._words[_RESTART : _RESTART + RESTARTS - 1]]
        for offset, stamp in enumerate(newest):
            self._words[_RESTART + offset] = stamp

    @property
    def beats(self) -> int:
        """How often its broker has said that it goes on; 0 before it does for the first time."""
        return int(self._words[_BEATS])

    def beat(self) -> None:
        """Say that this broker's loop goes on."""
        self._words[_BEATS] += 1

    def close(self) -> None:
        """Give up the mapping and the descriptor; the file stays."""
        if self.fd >= 0:
            self._words.release()
            self._memory.close()
            os.close(self.fd)
            self.fd = -1


def resume_all(table: IntentTable, unlockers: Unlockers | None = None) -> list[ProcessKey]:
    """Let every process on record run again; return those that were. The broker that paused them must be gone.

    Each row is freed as soon as its process runs, so that a second attempt finds what this one left.
    A process that only reuses a pid is not touched. What we may not signal, or the driver does not unlock,
    stays on record; and so does who is parked (K6): only a broker can tell whether there is room for it. A worker that
    is moving somebody is left to finish: it unlocks that one itself.

    Parameters
    ----------
    table
        The table of that broker.
    unlockers
        Who undoes the driver's locks; default is workers started now.
    """
    table.refresh()
    resumed = []
    for key in table.held(Hold.SIGNAL):
        with contextlib.suppress(PermissionError):
            if procfs.send(key, signal.SIGCONT):
                resumed.append(key)
            table.remove(key)
    workers, locked = table.held(Hold.WORKER), table.held(Hold.LOCK)
    killed = _see_gone(workers)
    for key in (*workers, *(key for key in table.held(Hold.MOVER) if not procfs.alive(key))):
        table.remove(key)
    if locked:
        resumed += _unlock(table, locked, unlockers, again=killed)
    return resumed


def let_run(
    table: IntentTable,
    unlockers: Unlockers | None,
    freed: Collection[ProcessKey] = (),
    *,
    stood: float = 0.0,
) -> list[ProcessKey]:
    """Let every process on record run while their broker stands still itself, for `stood` seconds now; return those that stood still.

    Who is locked stays so while somebody is put back (K2: nobody may take its room), at most as long as that may take:
    only the broker could say that it is over. Nothing is taken off the record: that broker does so once it goes on. It sees then that they run, and pauses again
    whom it is to. Whom we have `freed` already and who is stopped again was stopped by somebody else.
    """
    table.refresh()
    ran = []
    for key in table.held(Hold.SIGNAL):
        with contextlib.suppress(PermissionError):
            stands = key not in freed and procfs.state_of(key) in procfs.STOPPED
            if stands and procfs.send(key, signal.SIGCONT):
                ran.append(key)
    longest = back_limit(max(map(table.size, table.held(Hold.PARK)), default=0))
    moves = stood < longest and any(map(procfs.alive, table.held(Hold.MOVER)))
    # Again each time: a lock that was under way comes through later.
    if unlockers is not None and not moves:
        locked = [key for key in table.held(Hold.LOCK) if procfs.state_of(key) not in procfs.STOPPED]  # fmt: skip
        ran += unlockers.unlock(locked) if locked else ()
    return ran


def _see_gone(workers: Sequence[ProcessKey]) -> bool:
    """Wait until the lock workers of a broker that is gone have ended; tell whether one had to be killed.

    They see its end and unlock what they hold. One that a target keeps waiting is killed: it might lock that
    target after we have unlocked it.
    """
    waiting: dict[int, ProcessKey] = {}
    poll = select.poll()
    try:
        for key in workers:
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(key.pid)
                waiting[pidfd] = key
                if procfs.process_key(key.pid) == key:
                    poll.register(pidfd, select.POLLIN)
                else:
                    os.close(pidfd)
                    del waiting[pidfd]
        left = _wait_for(poll, waiting, _UNDOING)
        for pidfd in left:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        _wait_for(poll, {pidfd: waiting[pidfd] for pidfd in left}, _KILLING)
    finally:
        for pidfd in waiting:
            os.close(pidfd)
    return bool(left)


def _wait_for(poll: select.poll, waiting: dict[int, ProcessKey], seconds: float) -> set[int]:
    """Wait until all have ended; return the pidfds of those that have not."""
    left, deadline = set(waiting), time.monotonic() + seconds
    while left and (pause := deadline - time.monotonic()) > 0:
        for pidfd, _ in poll.poll(pause * 1000):
            poll.unregister(pidfd)
            left.discard(pidfd)
    return left


def _unlock(
    table: IntentTable, locked: Sequence[ProcessKey], given: Unlockers | None, *, again: bool
) -> list[ProcessKey]:
    unlockers = given or Unlockers(spare=min(len(locked), 4))
    try:
        done = unlockers.unlock(locked, within=WITHIN if given else _FROM_COLD)
        if (
            again
        ):  # a lock that was under way when its worker was killed may have come through since
            time.sleep(_SETTLING)
            done = unlockers.unlock(done)
    finally:
        if given is None:
            unlockers.close()
    for key in done:
        table.remove(key)
    return [key for key in done if procfs.alive(key)]


def _room_for(path: Path) -> int:
    """Return a new file with all of its blocks: a store into a mapping that finds none on a full disk is a SIGBUS.

    Raises
    ------
    BrokerUnavailable
        Where the disk has no room for it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, _SIZE)
    except OSError as problem:
        os.close(fd)
        path.unlink()
        msg = (
            f"a broker needs {_SIZE // 1024} KiB at {path} to note whom it pauses, but there is no room: {problem.strerror}. "
            "Free some, then start it: jupyter gpushare start."
        )
        raise BrokerUnavailable(msg) from problem
    return fd


def _boot() -> tuple[int, int]:
    both = uuid.UUID(procfs.boot_id()).int
    return both >> 64, both & (2**64 - 1)
