"""The broker's log: one JSON object a line, rotated, in a named place."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

FILES = 5
FILE_SIZE = 2 * 2**20
MOST_A_MINUTE = 600
"""Lines from one place in the code. More tell nothing new, and whoever causes them would push everything else out of the files."""
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message, whatever came as `extra`, the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=repr)


class Sparse(logging.Filter):
    """Lets so many lines a minute through from each place in the code; the next one after that says how many it dropped (`dropped`)."""

    def __init__(self, most: int = MOST_A_MINUTE) -> None:
        super().__init__()
        self._most = most
        self._minute = 0
        self._seen: Counter[tuple[str, int]] = Counter()
        self._dropped: Counter[tuple[str, int]] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether this one is written."""
        minute, place = int(record.created // 60), (record.pathname, record.lineno)
        if minute != self._minute:
            self._minute = minute
            self._seen.clear()
        self._seen[place] += 1
        if self._seen[place] > self._most:
            self._dropped[place] += 1
            return False
        if place in self._dropped:
            record.dropped = self._dropped.pop(place)
        return True


class _PrivateFile(RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        fd = os.open(
            self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        return os.fdopen(fd, self.mode, encoding="utf-8")  # type: ignore[return-value]


def set_up(path: Path, *, level: int = logging.INFO, stderr: bool = False) -> None:
    """Send this process's log to `path`, at most 5 files of 2 MiB, replacing what was set up before.

    Parameters
    ----------
    path
        The newest file; older ones get `.1` to `.4`.
    level
        What is worth a line.
    stderr
        Also write plain lines there (a broker in the foreground).

    Where the file cannot be written the log goes to stderr instead: a broker does not fail for its log.
    """
    logging.raiseExceptions = False  # a full disk must not fill stderr with tracebacks
    handlers: list[logging.Handler] = []
    trouble = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(
            _PrivateFile(path, maxBytes=FILE_SIZE, backupCount=FILES - 1, encoding="utf-8")
        )
        handlers[0].setFormatter(JsonFormatter())
        handlers[0].addFilter(Sparse())
    except OSError as problem:
        trouble = f"cannot write the log {path}: {problem.strerror}. It goes to stderr."
    if stderr or not handlers:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[-1].setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=handlers, force=True)
    logging.captureWarnings(capture=True)
    if trouble:
        logging.getLogger(__name__).error(trouble)
