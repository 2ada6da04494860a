"""Numbers as people write them: sizes (`512MiB`, `2G`, `1.5 GB`, `25%`), times (`90s`, `1h30m`, `33ms`) and weights."""

from __future__ import annotations

import re

from gpushare_kernel.core.errors import BadDeclaration, BadSize, BadTime
from gpushare_kernel.core.values import LARGEST_SIZE, LONGEST_TIME

_UNITS: dict[str, int] = {
    "b": 1,
    **{
        u: 2 ** (10 * n)
        for n, us in enumerate(("k ki kib", "m mi mib", "g gi gib", "t ti tib"), 1)
        for u in us.split()
    },
    **{u: 10 ** (3 * n) for n, u in enumerate(("kb", "mb", "gb", "tb"), 1)},
}
_SECONDS: dict[str, float] = {
    u: seconds
    for seconds, us in (
        (0.001, "ms msec msecs millisecond milliseconds"),
        (1.0, "s sec secs second seconds"),
        (60.0, "m min mins minute minutes"),
        (3600.0, "h hour hours"),
        (86400.0, "d day days"),
    )
    for u in us.split()
}
_PART = re.compile(r"\s*(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[A-Za-z]+)")
_PLAIN_SECONDS = re.compile(r"\s*[0-9]+(?:\.[0-9]+)?\s*")
_SHAPE = re.compile(r"\s*(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[A-Za-z]+|%)?\s*")


def parse_size(text: str, *, whole: int | None = None) -> int:
    """Return the bytes that `text` names.

    `K M G T` and `KiB MiB GiB TiB` are powers of 1024, `KB MB GB TB` powers of 1000.
    `25%` is a share of `whole` (the device's capacity in bytes).

    Raises
    ------
    BadSize
        Where the text is no size, has no unit, is zero, or is absurdly large.
    """
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise BadSize(_not_a_size(text))
    number, unit = float(match["number"]), match["unit"]
    if unit is None and number:
        meant = f"{_plain(number)}GiB or {_plain(number)}MiB"
        if number >= _UNITS["mib"]:  # bytes, by the look of it
            meant = pasteable_size(min(int(number), LARGEST_SIZE))
        msg = f"size {text.strip()!r} has no unit. Write {meant}."
        raise BadSize(msg)
    size = _percent(text, number, whole) if unit == "%" else _absolute(text, number, unit or "b")
    if size <= 0:
        msg = f"size {text.strip()!r} is zero. Leave it out, or write one such as 512MiB."
        raise BadSize(msg)
    if size >= LARGEST_SIZE:
        msg = f"size {text.strip()!r} is over {LARGEST_SIZE // 2**40} TiB. Did you mean a smaller unit?"
        raise BadSize(msg)
    return size


def format_size(size: int) -> str:
    """Return `size` bytes as people read it: `6.0 GiB`, `512 MiB`, `0 B`."""
    sign, size = ("-", -size) if size < 0 else ("", size)
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30)):
        if size >= factor:
            return f"{sign}{size / factor:.1f} {unit}"
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{sign}{size / factor:.0f} {unit}"
    return f"{sign}{size} B"


def format_most(size: int) -> str:
    """Return `size` bytes rounded down, for who is told to ask for that much or less."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30)):
        if size >= factor:
            tenths = size * 10 // factor
            return f"{tenths // 10}.{tenths % 10} {unit}"
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size // factor} {unit}"
    return f"{size} B"


def format_apart(one: int, other: int) -> tuple[str, str]:
    """Return two sizes (bytes) that stand beside each other: where they would read alike and are not, in a smaller unit."""
    texts = format_size(one), format_size(other)
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10), ("B", 1)):
        if texts[0] != texts[1] or one == other:
            break
        texts = f"{one / factor:.0f} {unit}", f"{other / factor:.0f} {unit}"
    return texts


def pasteable_size(size: int) -> str:
    """Return a size of at least `size` bytes that can be pasted behind `%%gpulane`: `6GiB`, `640MiB`."""
    gib = 2**30
    if size > 4 * gib:
        return f"{-(-size // gib)}GiB"
    if size > gib:
        halves = -(-size * 2 // gib)
        return f"{halves // 2}GiB" if halves % 2 == 0 else f"{halves / 2:.1f}GiB"
    step = 64 * 2**20
    return f"{max(1, -(-size // step)) * 64}MiB"


def parse_time(given: float | str) -> float:
    """Return the seconds that `given` means: a number of seconds, or a text (`90s`, `5min`, `1h30m`, `2h`, `33ms`, `300`).

    Raises
    ------
    BadTime
        Where it is no time, is zero or negative, is not finite, or is absurdly long.
    """
    seen = given.strip() if isinstance(given, str) else f"{given:g}"
    seconds = _seconds(given) if isinstance(given, str) else float(given)
    if seconds != seconds or seconds in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN
        msg = f"time {seen} is no number of seconds. Leave it out where nobody knows it, or write 5min."
        raise BadTime(msg)
    if seconds <= 0:
        msg = f"time {seen!r} must be over 0 seconds. Leave it out, or write one such as 5min."
        raise BadTime(msg)
    if seconds > LONGEST_TIME:
        msg = f"time {seen!r} is over {LONGEST_TIME / 86400:.0f} days. Did you mean a smaller unit?"
        raise BadTime(msg)
    return seconds


def pasteable_time(seconds: float) -> str:
    """Return a time of at least `seconds` that can be pasted behind `--time`: `90s`, `12min`, `3h`."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds > 2 * length:
            return f"{-(-int(seconds) // length)}{unit}"
    return f"{max(1, -int(-seconds // 1))}s"


def check_weight(weight: float, among: str = "among your own work") -> float:
    """Return `weight`, or refuse one that would starve somebody or mean nothing; it counts `among` what.

    Raises
    ------
    BadDeclaration
        With the limits.
    """
    if not 0.01 <= weight <= 100:  # noqa: PLR2004
        msg = (
            f"a weight must be between 0.01 and 100, and {weight:g} is not. 1 is everybody's; "
            f"2 counts twice {among}."
        )
        raise BadDeclaration(msg)
    return weight


def _seconds(text: str) -> float:
    if _PLAIN_SECONDS.fullmatch(text):
        return float(text)
    total, at, largest = 0.0, 0, float("inf")
    while at < len(text.rstrip()):
        part = _PART.match(text, at)
        unit = None if part is None else _SECONDS.get(part["unit"].lower())
        if part is None or unit is None or unit >= largest:  # each unit once, the largest first
            raise BadTime(_not_a_time(text))
        total, at, largest = total + float(part["number"]) * unit, part.end(), unit
    if not at:
        raise BadTime(_not_a_time(text))
    return total


def _not_a_time(text: str) -> str:
    seen = text.strip()
    if seen.startswith("-"):
        return f"time {seen!r} is negative. Write one such as 5min."
    return (
        f"{seen!r} is not a time. Write seconds (300), or numbers with units: 90s, 5min, 1h30m, 2h."
    )


def _absolute(text: str, number: float, unit: str) -> int:
    factor = _UNITS.get(unit.lower())
    if factor is None:
        raise BadSize(_not_a_size(text))
    return round(min(number * factor, float(LARGEST_SIZE)))


def _percent(text: str, number: float, whole: int | None) -> int:
    if not 0 < number <= 100:  # noqa: PLR2004
        msg = f"size {text.strip()!r} must be over 0% and at most 100% of the device."
        raise BadSize(msg)
    if whole is None:
        msg = f"size {text.strip()!r} needs a device to be a share of, and none is known here. Write bytes: 2GiB."
        raise BadSize(msg)
    return int(whole * number / 100)


def _not_a_size(text: str) -> str:
    seen = text.strip()
    if "," in seen and _SHAPE.fullmatch(seen.replace(",", ".")):
        return f"size {seen!r} has a comma. Write {seen.replace(',', '.').replace(' ', '')}."
    if seen.startswith("-"):
        return f"size {seen!r} is negative. Write one such as 512MiB."
    return f"{seen!r} is not a size. Write a number with a unit: 512MiB, 2G, 1.5 GB or 25%."


def _plain(number: float) -> str:
    return f"{number:g}"
