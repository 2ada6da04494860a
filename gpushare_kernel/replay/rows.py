"""Rows of a CSV file: each cell is checked, and an error names file, row, rule, value and what to do."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from unicodedata import category

from gpushare_kernel.core.errors import BadSize, UserError
from gpushare_kernel.core.sizes import parse_size
from gpushare_kernel.core.values import LARGEST_SIZE

LONGEST = 1e9
"""Seconds of a job, and until it is submitted, at most: 30 years, beyond which times lose their fractions."""
SHOWN = 60
"""Characters of a cell that an error shows, at most."""


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
        return self.word(name) or self.refuse(name, "", "must not be empty", fix)

    def word(self, name: str) -> str:
        """Return a cell that people read: control characters would change what a terminal shows."""
        text = self.cell(name)
        if any(category(character) == "Cc" for character in text):
            self.refuse(name, text, "must have no control characters", "Take them out")
        return text

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

    def seconds(self, name: str, rule: str, holds: Callable[[float], bool]) -> float:
        """Return a time that keeps `rule`."""
        value = self.number_of(name, rule, holds)
        if value > LONGEST:
            rule = f"must be at most {LONGEST:.0e} seconds (30 years)"
            self.refuse(name, self.cell(name), rule, "Mend or remove the row")
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
        fix = "Write bytes, or a size such as 6GiB"
        if not value >= 0:
            self.refuse(name, text, "must be 0 or more bytes", fix)
        if value >= LARGEST_SIZE:
            self.refuse(name, text, f"must be under {LARGEST_SIZE // 2**40} TiB", fix)
        return round(value)

    def refuse(self, name: str, value: str, rule: str, fix: str) -> NoReturn:
        """Say which rule the cell `name` breaks."""
        seen = repr(value) if len(value) <= SHOWN else f"{value[:SHOWN]!r}..."
        msg = f"{self.where}: {name} {rule}, and it is {seen if value else 'empty'}. {fix}."
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
            rows = _split(path, file)
            number, header = next(rows, (1, []))
            names = [name.strip() for name in header]
            _check_header(f"{path}, row {number}", names, required, optional)
            for number, cells in rows:
                if len(cells) != len(names):
                    msg = f"{path}, row {number}: every row has as many cells as the header, {len(names)}. Mend or remove the row."
                    raise BadTrace(msg)
                yield Row(path, number, dict(zip(names, cells, strict=True)))
    except FileNotFoundError:
        msg = f"{path}: there is no such file. Check the name."
        raise BadTrace(msg) from None
    except IsADirectoryError:
        msg = f"{path} is a folder. Name the trace in it: {path / 'TRACE.csv'}."
        raise BadTrace(msg) from None
    except UnicodeDecodeError:
        msg = f"{path} is no text in UTF-8 with a row for each job. Export it as CSV (UTF-8)."
        raise BadTrace(msg) from None
    except OSError as problem:
        msg = f"{path} cannot be read: {problem.strerror}. Make it readable for you."
        raise BadTrace(msg) from None


def _split(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each row that is not empty. A row is a line: a quotation mark that opens a cell and does not close it would swallow rows else."""
    for number, line in enumerate(lines, 1):
        where = f"{path}, row {number}"
        if "\0" in line:
            msg = f"{where}: a row is text, and this one has a NUL character. Export it as CSV (UTF-8)."
            raise BadTrace(msg)
        try:
            cells = next(csv.reader([line], skipinitialspace=True, strict=True), [])
        except csv.Error as problem:
            if len(line) > csv.field_size_limit() and "limit" in str(problem):
                msg = f"{where}: a cell has at most {csv.field_size_limit()} characters, and one has more. Shorten it, or take its column out."
            else:
                msg = f'{where}: a cell that begins with a quotation mark (") ends with one, in the same row, and one does not. Take the mark out.'
            raise BadTrace(msg) from None
        if cells:
            yield number, cells


def _check_header(
    where: str, names: Sequence[str], required: Sequence[str], optional: Sequence[str]
) -> None:
    missing = [name for name in required if name not in names]
    other = next((mark for mark in (";", "\t") if len(names) == 1 and mark in names[0]), "")
    if missing and other:
        msg = f"{where}: columns are separated by commas, and here by {'semicolons' if other == ';' else 'tabs'}. Export it with commas, and decimal points."
        raise BadTrace(msg)
    if missing:
        msg = f"{where}: the header must name {', '.join(required)}, and {', '.join(missing)} is missing. Write the names in the first row."
        raise BadTrace(msg)
    twice = [name for name in (*required, *optional) if names.count(name) > 1]
    if twice:
        msg = f"{where}: each column is named once, and {', '.join(twice)} is there twice. Take one of them out."
        raise BadTrace(msg)


def _float(text: str) -> float | None:
    """Return a number as programs write it, None for anything else: Python takes `1_0` and other scripts' digits for one, too."""
    if "_" in text or not text.isascii():
        return None
    try:
        return float(text)
    except ValueError:
        return None
