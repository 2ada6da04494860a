"""Sizes as people write them, and what they are told where nobody can know what they meant."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gpushare_kernel.core.errors import BadSize, BadTime
from gpushare_kernel.core.sizes import (
    format_apart,
    format_most,
    format_size,
    parse_size,
    parse_time,
    pasteable_size,
    pasteable_time,
)
from gpushare_kernel.core.values import LARGEST_SIZE, GiB, KiB, MiB, TiB


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * MiB),
        ("512 MiB", 512 * MiB),
        ("  2G ", 2 * GiB),
        ("2g", 2 * GiB),
        ("2gib", 2 * GiB),
        ("1.5 GB", 1_500_000_000),
        ("1.5GiB", 3 * GiB // 2),
        ("64K", 64 * KiB),
        ("1T", TiB),
        ("3tb", 3 * 10**12),
        ("100b", 100),
        ("0.5k", 512),
        ("25%", 250),
        ("100 %", 1000),
        ("0.1%", 1),
    ],
)
def test_what_can_be_read(text: str, size: int) -> None:
    """K M G T and KiB MiB GiB TiB are powers of 1024, KB MB GB TB of 1000, % a share of the device."""
    assert parse_size(text, whole=1000) == size


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2", "has no unit. Write 2GiB or 2MiB."),
        ("8589934592", "has no unit. Write 8GiB."),
        ("1.5", "has no unit. Write 1.5GiB"),
        ("1,5GB", "has a comma. Write 1.5GB."),
        ("1,5 GB", "has a comma. Write 1.5GB."),
        ("-2GiB", "is negative"),
        ("0", "is zero. Leave it out"),
        ("0.0", "is zero. Leave it out"),
        ("0MiB", "is zero"),
        ("0.0 G", "is zero"),
        ("0.1b", "is zero"),
        ("2000000T", "is over 1024 TiB"),
        ("1024TiB", "is over 1024 TiB"),
        ("9" * 400 + "G", "is over 1024 TiB"),
        ("0%", "must be over 0% and at most 100%"),
        ("101%", "must be over 0% and at most 100%"),
        ("", "'' is not a size. Write a number with a unit"),
        ("GiB", "is not a size"),
        ("2GiBs", "is not a size"),
        ("2 parsecs", "is not a size"),
        ("nan", "is not a size"),
        ("nanGiB", "is not a size"),
        ("infGiB", "is not a size"),
        ("1e9B", "is not a size"),
        ("0x10M", "is not a size"),
        ("1_000M", "is not a size"),
        ("2GiB 3GiB", "is not a size"),
        ("٢GiB", "is not a size"),
        (".5G", "is not a size"),
        ("5.G", "is not a size"),
        ("+5G", "is not a size"),
    ],
)
def test_what_cannot(text: str, says: str) -> None:
    """Every refusal names what was seen and what to write."""
    with pytest.raises(BadSize) as refused:
        parse_size(text, whole=1000)
    assert says in str(refused.value)
    assert text.strip()[:20] in str(refused.value)


def test_a_share_needs_a_device() -> None:
    """25% of nothing is no size."""
    with pytest.raises(BadSize, match="needs a device to be a share of"):
        parse_size("25%")


@given(st.text(max_size=30))
def test_nothing_but_a_size_or_a_refusal_comes_of_any_text(text: str) -> None:
    """No input raises anything but BadSize, and none makes a size that is no size."""
    try:
        size = parse_size(text, whole=8 * GiB)
    except BadSize:
        return
    assert isinstance(size, int)
    assert 0 < size < LARGEST_SIZE


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KiB, "1 KiB"),
        (512 * MiB, "512 MiB"),
        (GiB - 1, "1024 MiB"),
        (6 * GiB, "6.0 GiB"),
        (3 * TiB // 2, "1.5 TiB"),
        (-2 * GiB, "-2.0 GiB"),
    ],
)
def test_how_people_read_them(size: int, text: str) -> None:
    """One decimal from a GiB on, none below."""
    assert format_size(size) == text


@given(st.integers(0, 2**44))
def test_what_can_be_pasted_is_enough_and_not_much_more(size: int) -> None:
    """A size to paste covers what was used, by at most a step."""
    pasted = parse_size(pasteable_size(size))
    assert size <= pasted <= max(size * 1.5 + 64 * MiB, 64 * MiB)
    assert " " not in pasteable_size(size)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (300, 300.0),
        (0.5, 0.5),
        ("301", 301.0),
        ("90s", 90.0),
        ("5min", 300.0),
        (" 5 minutes ", 300.0),
        ("2h", 7200.0),
        ("1h30m", 5400.0),
        ("1h 30min 5s", 5405.0),
        ("1.5H", 5400.0),
        ("1d", 86400.0),
        ("33ms", 0.033),
        ("1s 500 ms", 1.5),
    ],
)
def test_times_that_can_be_read(given: float | str, seconds: float) -> None:
    """Seconds, or numbers with units, the largest first."""
    assert parse_time(given) == seconds


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (0, "must be over 0 seconds. Leave it out"),
        ("0s", "must be over 0 seconds"),
        (-5, "must be over 0 seconds"),
        ("-5min", "time '-5min' is negative. Write one such as 5min."),
        (float("nan"), "time nan is no number of seconds"),
        (float("inf"), "time inf is no number of seconds"),
        ("nan", "'nan' is not a time. Write seconds (300), or numbers with units: 90s"),
        ("inf", "'inf' is not a time"),
        ("", "'' is not a time"),
        ("  ", "'' is not a time"),
        ("5 parsecs", "'5 parsecs' is not a time"),
        ("30m1h", "'30m1h' is not a time"),
        ("1h1h", "'1h1h' is not a time"),
        ("5GiB", "'5GiB' is not a time"),
        ("1h30", "'1h30' is not a time"),
        ("9999h", "is over 366 days. Did you mean a smaller unit?"),
        ("9" * 400, "is no number of seconds"),
    ],
)
def test_times_that_make_no_sense_are_refused_with_the_way_out(
    given: float | str, says: str
) -> None:
    """The rule, the value, what to write."""
    with pytest.raises(BadTime) as problem:
        parse_time(given)
    assert says in str(problem.value)


@given(st.floats(0.01, 3e6))
def test_a_time_to_paste_covers_what_was_seen(seconds: float) -> None:
    """It reads back, is no shorter, and at most a minute or an hour longer."""
    read = parse_time(pasteable_time(seconds))
    assert seconds <= read <= max(1.5 * seconds + 1, 1)


@given(st.integers(1, LARGEST_SIZE - 1))
def test_advice_is_rounded_down(size: int) -> None:
    """Whoever asks for as much as it says has asked for no more than there is."""
    assert parse_size(format_most(size)) <= size


@given(st.integers(0, 2**45), st.integers(-(2**31), 2**31))
def test_two_sizes_that_differ_never_read_alike(size: int, more: int) -> None:
    other = max(0, size + more)
    one, another = format_apart(size, other)
    assert (one == another) is (size == other)


def test_two_sizes_in_the_units_that_tell_them_apart() -> None:
    assert format_apart(6 * GiB, 2 * GiB) == ("6.0 GiB", "2.0 GiB")
    assert format_apart(6 * GiB, 6 * GiB) == ("6.0 GiB", "6.0 GiB")
    assert format_apart(6 * GiB + 2 * MiB, 6 * GiB) == ("6146 MiB", "6144 MiB")
