"""The administrator's file (TOML): who may act for everybody, and groups with what each of their members may have.

What is wrong is said with the file, the line where it can be found, the rule, the value and the next step. Nothing of a
file that is wrong is taken.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from gpushare_kernel.broker.people import People
from gpushare_kernel.broker.persons import HUB
from gpushare_kernel.core.errors import BadSettings, UserError
from gpushare_kernel.core.sizes import check_weight, format_size, parse_size, parse_time
from gpushare_kernel.core.timetable import Period

NAME = "gpushare.toml"
EVERYBODY = "everybody"
"""The group of all who are in no other; it lists nobody."""
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")
_Path = tuple[str | int, ...]
"""A key, from the outermost table on; a number is an entry of a list of tables."""
_CALLED = (
    ("`int | null`", "a whole number"),
    ("`float | null`", "a number"),
    ("`str | null`", "a text in quotes"),
    ("`array | null`", "a list"),
    ("`int`", "a whole number"),
    ("`float`", "a number"),
    ("`str`", "a text in quotes"),
    ("`array`", "a list"),
    ("`object`", "a table"),
    ("`bool`", "true or false"),
)
_SIZES = ("memory", "parked_memory")
_TIMES = ("budget_per_day", "budget_per_week")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_LARGEST = 2**20
"""Bytes of such a file at most."""


class _Gives(msgspec.Struct):
    weight: float | None = None
    memory: str | None = None
    parked_memory: str | None = None
    kernels: int | None = None
    realtime: float | None = None


class _Entry(_Gives):
    days: list[str] | None = None
    hours: str | None = None


class _Group(_Gives):
    users: list[str] = []
    unix_groups: list[str] = []
    budget_per_day: str | None = None
    budget_per_week: str | None = None
    trust: str = ""
    timetable: list[_Entry] = []


class _File(msgspec.Struct):
    admins: list[str] = []
    admin_groups: list[str] = []
    names: str = "unix"
    groups: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Caps:
    """What each member may have (None: no cap): bytes of a device, and of the host's memory set aside, kernels, and the part of a device (or cores) that deadlines may take."""

    weight: float = 1.0
    memory: int | None = None
    parked: int | None = None
    kernels: int | None = None
    realtime: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Who is in it, and what that gives. Budgets in device seconds; `trust` names those who may map each other's bundles."""

    name: str
    users: frozenset[str] = frozenset()
    unix_groups: frozenset[str] = frozenset()
    caps: Caps = Caps()
    day: float | None = None
    week: float | None = None
    trust: str = ""
    periods: tuple[Period, ...] = ()
    timetable: tuple[Caps, ...] = ()

    @property
    def most_memory(self) -> int | None:
        """The most bytes of a device that any hour allows; None: some hour has no cap."""
        every = [one.memory for one in (self.caps, *self.timetable)]
        return None if None in every else max(one for one in every if one is not None)


@dataclass(frozen=True, slots=True)
class Settings:
    """A file as it was read. Of several groups that a user is in, the first counts."""

    path: Path | None = None
    text: str = ""
    admins: frozenset[str] = frozenset()
    admin_groups: frozenset[str] = frozenset()
    names: str = "unix"
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """What a file is held against: who there is, the largest device and the host's memory (bytes), the most kernels of a user, cores or devices."""

    people: People
    capacity: int
    kernels: int
    compute: float
    memory: int


def read(path: Path, host: Host) -> Settings:
    """Return what `path` says.

    Raises
    ------
    BadSettings
        Where it cannot be read, may be written by others, or makes no sense.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            data = file.read(_LARGEST + 1)
    except OSError as problem:
        said = f"{path} cannot be read: {problem.strerror}. Name another file, or none."
        raise BadSettings(said) from None
    if found.st_uid not in {0, os.geteuid()} or stat.S_IMODE(found.st_mode) & 0o022:
        said = f"{path} decides who may do what, so only root, or whoever runs the broker, may write to it; it belongs to uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}. Put that right: chmod go-w {path}"
        raise BadSettings(said)
    if len(data) > _LARGEST:
        said = f"{path} has more than {format_size(_LARGEST)}. That is no such file."
        raise BadSettings(said)
    return parsed(data.decode("utf-8-sig", errors="replace"), path, host)


def parsed(text: str, path: Path, host: Host) -> Settings:
    """Return what `text` says, as if it had been read from `path`; errors as `read` has them."""
    return _Reader(text, path, host).settings()


class _Reader:
    """One file, with its text at hand for the lines of what is wrong."""

    def __init__(self, text: str, path: Path, host: Host) -> None:
        self._text, self._path, self._host = text, path, host
        self._any_name = False

    def settings(self) -> Settings:
        """Read all of it."""
        try:
            raw = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as problem:
            msg = f"{self._path}: this is no TOML: {problem}."
            raise BadSettings(msg) from None
        groups = raw.get("groups")
        for name, one in groups.items() if isinstance(groups, Mapping) else ():
            if not isinstance(one, Mapping):
                self._wrong(("groups",), name, f"expected a table, got {one!r}. Write [groups.{name}], and its keys below that")  # fmt: skip
        file: _File = self._typed(raw, _File, ())
        if file.names not in {"unix", "any"}:
            self._wrong((), "names", f"{file.names!r} is neither. Write \"unix\" where they are accounts of this host, \"any\" where not")  # fmt: skip
        self._any_name = file.names == "any"
        self._known(file.admins, (), "admins")
        self._known(file.admin_groups, (), "admin_groups")
        found = tuple(self._group(name, one) for name, one in file.groups.items())
        return Settings(
            self._path,
            self._text,
            frozenset(file.admins),
            frozenset(file.admin_groups),
            file.names,
            found,
        )

    def _group(self, name: str, raw: Mapping[str, Any]) -> Group:
        table = ("groups", name)
        given: _Group = self._typed(raw, _Group, table)
        self._known(given.users, table, "users")
        self._known(given.unix_groups, table, "unix_groups")
        if (name == EVERYBODY) == bool(given.users or given.unix_groups):
            rule = "it is the group of all who are in no other, and lists nobody" if name == EVERYBODY else f"a group lists users or unix_groups; only {EVERYBODY!r} is for all others"  # fmt: skip
            near = name != EVERYBODY and get_close_matches(name, [EVERYBODY])
            meant = f" Did you mean [groups.{EVERYBODY}]?" if near else ""
            self._fail(table, "", f"{_name(table)}: {rule}.{meant}")
        caps = self._caps(given, Caps(), table)
        return Group(
            name,
            frozenset(given.users),
            frozenset(given.unix_groups),
            caps,
            self._time(given.budget_per_day, table, "budget_per_day", 86400.0),
            self._time(given.budget_per_week, table, "budget_per_week", 7 * 86400.0),
            given.trust,
            tuple(self._period(entry, (*table, "timetable", n)) for n, entry in enumerate(given.timetable)),
            tuple(self._caps(entry, caps, (*table, "timetable", n)) for n, entry in enumerate(given.timetable)),
        )  # fmt: skip

    def _caps(self, given: _Gives, usual: Caps, table: _Path) -> Caps:
        """Return what `given` says, and what is `usual` where it says nothing."""
        host, found = self._host, usual
        if given.weight is not None:
            try:
                found = replace(found, weight=check_weight(given.weight, "against other people"))
            except UserError as problem:
                self._wrong(table, "weight", str(problem).rstrip("."))
        memory = self._size(given.memory, table, "memory")
        if memory is not None:
            if memory > host.capacity:
                self._wrong(table, "memory", f"it is {format_size(memory)}, and the largest device here has {format_size(host.capacity)} to share. Write that much or less, or leave it out")  # fmt: skip
            found = replace(found, memory=memory)
        parked = self._size(given.parked_memory, table, "parked_memory")
        if parked is not None:
            if parked > host.memory:
                self._wrong(table, "parked_memory", f"it is {format_size(parked)}, and this host has {format_size(host.memory)} of memory. Write less, or leave it out")  # fmt: skip
            found = replace(found, parked=parked)
        if given.kernels is not None:
            if not 1 <= given.kernels <= host.kernels:
                self._wrong(table, "kernels", f"it must be from 1 to {host.kernels}, as many as the broker can serve of a user, and {given.kernels} is not")  # fmt: skip
            found = replace(found, kernels=given.kernels)
        if given.realtime is not None:
            if not 0 <= given.realtime <= host.compute:
                self._wrong(table, "realtime", f"it must be from 0 (none) to {host.compute:g}, all there is here, and {given.realtime:g} is not")  # fmt: skip
            found = replace(found, realtime=given.realtime)
        return found

    def _period(self, entry: _Entry, table: _Path) -> Period:
        days = entry.days if entry.days is not None else list(_DAYS)
        for day in days:
            if day.lower() not in _DAYS:
                self._wrong(table, "days", f"{day!r} is no day. Write {', '.join(_DAYS)}")
        hours = _HOURS.fullmatch(entry.hours or "00:00-24:00")
        if hours is None or not days:
            rule = f"{entry.hours!r} are no hours. Write for example 08:00-18:00, or 22:00-06:00 for a night"  # fmt: skip
            self._wrong(table, "hours" if days else "days", rule if days else "it names no day")
        begins, ends = (int(hours[n]) * 60 + int(hours[n + 1]) for n in (1, 3))
        if ends > 24 * 60:
            self._wrong(table, "hours", f"{entry.hours!r} ends after 24:00")
        return Period(frozenset(_DAYS.index(day.lower()) for day in days), begins, ends)

    def _size(self, given: str | None, table: _Path, key: str) -> int | None:
        if given is None:
            return None
        try:
            return parse_size(given)
        except UserError as problem:
            self._wrong(table, key, str(problem).rstrip("."))

    def _time(self, given: str | None, table: _Path, key: str, most: float) -> float | None:
        if given is None:
            return None
        try:
            seconds = parse_time(given)
        except UserError as problem:
            self._wrong(table, key, str(problem).rstrip("."))
        if seconds > most * self._host.compute:
            self._wrong(table, key, f"{given!r} is more than all devices here have in that time. Write less, or leave it out")  # fmt: skip
        return seconds

    def _typed(self, raw: Mapping[str, Any], kind: Any, table: _Path) -> Any:
        """Return `raw` as `kind`; a key that is none is said with the one that was meant."""
        known = [field.name for field in msgspec.structs.fields(kind)]
        for key in raw:
            if key not in known:
                near = get_close_matches(key, known, 1)
                meant = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known)}."
                where = f"[{_name(table)}]" if table else "the file"
                self._fail(table, key, f"{where} has no key {key!r}. {meant}")
        entries = raw.get("timetable")
        if kind is _Group and isinstance(entries, list):
            for n, entry in enumerate(entries):
                if isinstance(entry, Mapping):
                    self._typed(entry, _Entry, (*table, "timetable", n))
        try:
            return msgspec.convert(raw, kind)
        except msgspec.ValidationError as problem:
            said, _, at = str(problem).partition(" - at `$")
            key = at.strip("`.").partition(".")[0].partition("[")[0]
            for name, called in _CALLED:
                said = said.replace(name, called)
            self._wrong(
                table,
                key,
                said[0].lower() + said[1:].replace(" | null", "") + _meant(raw.get(key), key, said),
            )

    def _known(self, names: Sequence[str], table: _Path, key: str) -> None:
        """Refuse a name that nobody here has; with names = "any" only unix groups are held against the host."""
        people, group = self._host.people, key.endswith("groups")
        for name in names:
            there = people.has_group(name) if group else self._any_name or people.has_user(name)
            if there:
                continue
            near = "" if name.endswith(HUB) else people.nearest(name, group=group)
            meant = f" Did you mean {near!r}?" if near else ' Where users are those of a JupyterHub and no accounts of this host: names = "any".' * (not group)  # fmt: skip
            what = "unix group" if group else "user"
            self._fail(table, key, f"{_name((*table, key))}: there is no {what} {name!r} on this host.{meant}")  # fmt: skip

    def _wrong(self, table: _Path, key: str, rule: str) -> NoReturn:
        self._fail(table, key, f"{_name((*table, key) if key else table)}: {rule}.")

    def _fail(self, table: _Path, key: str, said: str) -> NoReturn:
        line = line_of(self._text, table, key)
        msg = f"{self._path}{f', line {line}' if line else ''}: {said}"
        raise BadSettings(msg)


def _meant(value: object, key: str, said: str) -> str:
    """Return how to write a value that is nearly right; empty where nobody knows."""
    if key in _SIZES and isinstance(value, int) and not isinstance(value, bool):
        return f'. Write "{value}GiB"'
    if key in _TIMES and isinstance(value, int | float) and not isinstance(value, bool):
        return f'. Write "{value}h"'
    if isinstance(value, str) and "number" in said and _NUMBER.fullmatch(value):
        return f". Write {value}"
    if isinstance(value, str) and "a list" in said:
        return f'. Write ["{value}"]'
    return ""


def _name(path: _Path) -> str:
    """Return a key as one reads it: `groups.students.timetable (entry 2).hours`."""
    text = ""
    for part in path:
        text += f" (entry {part + 1})" if isinstance(part, int) else f".{part}" if text else part
    return text


def line_of(text: str, table: _Path, key: str) -> int | None:
    """Return in which line `key` of a table stands, or where the table begins; None where it is written in another way."""
    wanted = [str(part) for part in table if not isinstance(part, int)]
    nth = next((part for part in table if isinstance(part, int)), 0)
    inside, begins = not table, None
    seen = -1
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]", line)
        if header is not None:
            parts = [part.strip(" \"'") for part in header[1].split(".")]
            seen += parts == wanted
            inside = parts == wanted and seen == nth
            begins = number if inside and begins is None else begins
            if key and parts[: len(wanted) + 1] == [*wanted, key]:
                return number
        elif inside and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*(=|\.)", line):
            return number
    return begins
