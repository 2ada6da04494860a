"""Rows of a CSV file: each cell is checked, and an error names file, row, rule, value and what to do."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from gpushare_kernel.core.errors import BadSize, UserError
from gpushare_kernel.core.sizes import parse_size


class BadTrace(UserError):
    """A trace that cannot be replayed; the message has the row, the rule, the value seen and what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of one row, and where it is: its number as a spreadsheet shows it (the header is row 1)."""

    path: Path
    number: int
    cells: Mapping[str, str]

    @property
    def where(self) -> str:
        """The file and the row, for errors."""
        return f"{self.path}, row {self.number}"

    def cell(self, name: str) -> str:
        """Return what is in a column, without spaces around it; empty where the column is missing."""
        return (self.cells.get(name) or "").strip()

    def text(self, name: str, fix: str) -> str:
        """Return a cell that must not be empty."""
        return self.cell(name) or self.refuse(name, "", "must not be empty", fix)

    def number_of(
        self, name: str, rule: str, holds: Callable[[float], bool], default: float | None = None
    ) -> float:
        """Return a number that keeps `rule`; `default` where the cell is empty or missing (None: it must be there)."""
        text = self.cell(name)
        if not text:
            if default is None:
                self.refuse(name, "", "must not be empty", f"Write a number {rule}")
            return default
        value = _float(text)
        if value is None:
            self.refuse(name, text, "must be a number", f"Write a number {rule}")
        if not math.isfinite(value):
            self.refuse(name, text, f"must be finite, and {rule}", "Mend or remove the row")
        if not holds(value):
            self.refuse(name, text, f"must be {rule}", "Mend or remove the row")
        return value

    def size(self, name: str) -> int:
        """Return bytes, written as a number or as a size with its unit."""
        text = self.cell(name)
        value = _float(text or "0")
        if value is None:
            try:
                return parse_size(text)
            except BadSize as problem:
                msg = f"{self.where}: {name}: {problem}"
                raise BadTrace(msg) from None
        if not math.isfinite(value) or value < 0:
            self.refuse(
                name, text, "must be 0 or more bytes", "Write bytes, or a size such as 6GiB"
            )
        return round(value)

    def refuse(self, name: str, value: str, rule: str, fix: str) -> NoReturn:
        """Say which rule the cell `name` breaks."""
        msg = f"{self.where}: {name} {rule}, and it is {repr(value) if value else 'empty'}. {fix}."
        raise BadTrace(msg)


def read_rows(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """Read the rows of the CSV file at `path`, whose first one names the columns. Further columns are ignored.

    Raises
    ------
    BadTrace
        Where it cannot be read, lacks a required column, names one twice, or a row has more or fewer cells.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            _check_header(path, rows.fieldnames or (), required, optional)
            for cells in rows:
                if None in cells.values() or None in cells:
                    msg = f"{path}, row {rows.line_num}: every row has as many cells as the header, {len(rows.fieldnames or ())}. Mend or remove the row."
                    raise BadTrace(msg)
                yield Row(path, rows.line_num, cells)
    except FileNotFoundError:
        msg = f"{path}: there is no such file. Check the name."
        raise BadTrace(msg) from None
    except IsADirectoryError:
        msg = f"{path} is a folder. Name the trace in it: {path / 'TRACE.csv'}."
        raise BadTrace(msg) from None
    except (UnicodeDecodeError, csv.Error):
        msg = f"{path} is no text in UTF-8 with a row for each job. Export it as CSV (UTF-8)."
        raise BadTrace(msg) from None
    except OSError as problem:
        msg = f"{path} cannot be read: {problem.strerror}. Make it readable for you."
        raise BadTrace(msg) from None


def _check_header(
    path: Path, names: Sequence[str], required: Sequence[str], optional: Sequence[str]
) -> None:
    missing = [name for name in required if name not in names]
    if missing:
        msg = f"{path}, row 1: the header must name {', '.join(required)}, and {', '.join(missing)} is missing. Write the names in the first row."
        raise BadTrace(msg)
    twice = [name for name in (*required, *optional) if names.count(name) > 1]
    if twice:
        msg = f"{path}, row 1: each column is named once, and {', '.join(twice)} is there twice. Take one of them out."
        raise BadTrace(msg)


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
