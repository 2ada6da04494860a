"""What administrators did, to whom and when: JSON lines in a file of bounded size beside the log. Readable by the broker's owner only."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import msgspec

from gpushare_kernel.wire.admin import AuditEntry

MOST = 2**20
"""Bytes of a file; there are two, the older one is dropped: about ten thousand acts."""
_logger = logging.getLogger(__name__)


class Audit:
    """One file, and the one before it. A disk that is full is logged, and nobody is kept from acting."""

    def __init__(self, path: Path | None, *, most: int = MOST) -> None:
        self._path, self._most = path, most

    def note(self, who: str, uid: int, what: str, whom: str = "", detail: str = "") -> None:
        """Write down what `who` did."""
        entry = AuditEntry(round(time.time(), 3), who, uid, what, whom, detail)
        _logger.info("an administrator acts", extra={"who": who, "what": what, "whom": whom})
        if self._path is None:
            return
        line = msgspec.json.encode(entry) + b"\n"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self._path, flags, 0o600)
            try:
                if os.fstat(fd).st_size + len(line) > self._most:
                    self._path.replace(_before(self._path))
                    fresh = os.open(self._path, flags, 0o600)
                    os.close(fd)
                    fd = fresh
                os.write(fd, line)
            finally:
                os.close(fd)
        except OSError as problem:
            _logger.error("the audit log %s is not written: %s", self._path, problem)  # noqa: TRY400  the reason says all

    def read(self, most: int) -> tuple[AuditEntry, ...]:
        """Return the latest acts, the oldest of them first."""
        return () if self._path is None else entries(self._path, most)


def entries(path: Path, most: int) -> tuple[AuditEntry, ...]:
    """Return the latest entries of the log at `path`; a line that is none is passed over."""
    found = []
    for file in (_before(path), path):
        if not file.exists():
            continue
        for line in file.read_bytes().splitlines():
            try:
                found.append(msgspec.json.decode(line, type=AuditEntry))
            except msgspec.MsgspecError:
                continue
    return tuple(found[-most:])


def _before(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")
