"""Writes down what goes into the schedulers, so that a day can be replayed (I10). Only where somebody asked for it.

The file is readable by its owner only: it says who worked when. It is bounded; once full, recording stops and the broker
goes on. A broker that is started again goes on in the same file.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from gpushare_kernel import __version__
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.wire.recording import (
    End,
    Entry,
    Line,
    Named,
    Part,
    data_of,
    encode_line,
    mark_of,
)

MOST = 256 * 2**20
"""Bytes of a recording: about two million events."""
_BUFFER = 64 * 2**10
_logger = logging.getLogger(__name__)


class Recorder:
    """One file for all devices of a broker."""

    def __init__(self, path: Path, *, most: int = MOST) -> None:
        """Open `path` for appending.

        Raises
        ------
        BrokerUnavailable
            Where it cannot be written, or is not ours alone.
        """
        self._path, self._most = path, most
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as problem:
            msg = f"--record {path} cannot be written: {problem.strerror}. Name a file in a folder of yours."
            raise BrokerUnavailable(msg) from None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            os.close(fd)
            msg = f"--record {path} is there, and not a file that only you can read. Remove it, or name another."
            raise BrokerUnavailable(msg)
        self._file = os.fdopen(fd, "ab", buffering=_BUFFER)
        self._size, self._full = found.st_size, False

    def begin(self, device: str, scheduler: Scheduler) -> None:
        """What `scheduler`, that of `device`, is told from now on follows."""
        users = {str(user.id): user.weight for user in scheduler.users.values()}
        self._write(Part(device, data_of(scheduler.config), users, __version__))

    def named(self, session: str, name: str) -> None:
        """The notebook of `session` is called `name`."""
        if not self._full:
            self._write(Named(session, name))

    def note(self, device: str, event: ev.Event, out: list[do.Instruction] | None) -> None:
        """Write down `event` and what followed (None: it was refused)."""
        if not self._full:
            mark = None if out is None else mark_of(out)
            self._write(Entry(device, type(event).__name__, data_of(event), mark))

    def flush(self) -> None:
        """Have on disk what was written so far."""
        try:
            self._file.flush()
        except OSError as problem:
            self._stop(problem.strerror or "it cannot be written")

    def close(self) -> None:
        """Nothing more comes."""
        if not self._full:
            self._write(End("the broker went away"))
        self.flush()
        self._file.close()

    def _write(self, line: Line) -> None:
        text = encode_line(line)
        self._size += len(text)
        if self._size > self._most:
            self._stop(f"the recording is full ({self._most // 2**20} MiB)")
            return
        try:
            self._file.write(text)
        except OSError as problem:  # no room on the disk: the broker has other work
            self._stop(problem.strerror or "it cannot be written")

    def _stop(self, why: str) -> None:
        if not self._full:
            self._full = True
            _logger.warning("recording ends: %s", why, extra={"file": str(self._path)})
