"""The log: JSON lines with everything that was said, private, rotated, never the broker's end."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel.broker import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Give the root logger back as it was."""
    root, raising = logging.getLogger(), logging.raiseExceptions
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    logging.raiseExceptions = raising


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_everything(tmp_path: Path) -> None:
    """Message, level, logger, extra fields of any kind and the traceback are in one JSON object."""
    path = tmp_path / "deep/broker.log"
    logs.set_up(path)
    log = logging.getLogger("gpushare_kernel.test")
    log.debug("not worth a line")
    log.info("session %s of %d", "s1", 7, extra={"session": "s1", "path": tmp_path})
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        log.exception("a\nbug")
    first, second = lines(path)
    assert (first["level"], first["logger"]) == ("info", "gpushare_kernel.test")
    assert (first["message"], first["session"], first["path"]) == (
        "session s1 of 7",
        "s1",
        repr(tmp_path),
    )
    assert str(first["time"]).endswith("+00:00")
    assert second["message"] == "a\nbug"
    assert "ZeroDivisionError" in str(second["traceback"])
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most five files, each of its size, and the newest line is in the first."""
    monkeypatch.setattr(logs, "FILE_SIZE", 1000)
    path = tmp_path / "broker.log"
    logs.set_up(path)
    for number in range(100):
        logging.getLogger("test").info("line %d %s", number, "x" * 100)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [
        "broker.log",
        *(f"broker.log.{n}" for n in range(1, 5)),
    ]
    assert all(file.stat().st_size <= 1000 for file in files)
    assert str(lines(path)[-1]["message"]).startswith("line 99 ")


def test_a_log_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    """It goes to stderr instead, and says where it could not go."""
    logs.set_up(Path("/proc/self/broker.log"))
    logging.getLogger("test").warning("still heard")
    said = capsys.readouterr().err
    assert "cannot write the log /proc/self/broker.log" in said
    assert "still heard" in said


def test_foreground_and_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the foreground plain lines are also on stderr; Python's warnings are log lines; set up twice, each comes once."""
    path = tmp_path / "broker.log"
    logs.set_up(path)
    logs.set_up(path, stderr=True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old ways", stacklevel=1)
    assert capsys.readouterr().err.count("UserWarning: old ways") == 1
    (line,) = lines(path)
    assert "old ways" in str(line["message"])


def test_a_place_that_floods_leaves_room_for_the_others() -> None:
    """So many lines a minute from one place; the first of the next minute says how many were dropped; others are not touched."""
    sparse = logs.Sparse(most=3)

    def said(at: float, line: int = 1) -> logging.LogRecord | None:
        record = logging.LogRecord("n", logging.INFO, "f.py", line, "x", None, None)
        record.created = at
        return record if sparse.filter(record) else None

    assert [said(60.0) is not None for _ in range(5)] == [True, True, True, False, False]
    assert said(61.0, line=2) is not None
    again = said(120.0)
    assert again is not None
    assert again.__dict__["dropped"] == 2
    last = said(121.0)
    assert last is not None
    assert "dropped" not in last.__dict__
