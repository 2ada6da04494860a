"""What people read of a declared cell: while it waits and runs, and once it is over. The other sentences are in `texts`."""

from __future__ import annotations

from collections.abc import Sequence

from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.wire.messages import Report
from gpushare_kernel.wire.texts import format_duration

_MINUTE, _HOUR = 60, 3600
_GLANCE = 2.0
"""Seconds that a cell may run without a word about it."""
_STOOD = 0.1
"""The part of its time for which a job stood still that is worth a word."""
_READABLE = 10
"""Seconds between two changes of how long somebody waits, in the first minute."""
_MANY = 100

NOBODY_TO_NOTIFY = "a console or terminal shows no notifications. %gpushare notify works in JupyterLab and Notebook 7."
NOTIFY_OFF = "Nobody is told any more when a cell that waited starts or ends."

Rounds = tuple[int, int | None, float]
"""Of a loop: rounds done, rounds in all where that is known, seconds it runs."""


def format_span(seconds: float) -> str:
    """Return a time that is over, as exactly as one cares: `40 s`, `1 min 40 s`, `1 h 5 min`."""
    if seconds < 1:
        return format_duration(seconds)
    whole = int(seconds)
    if not _MINUTE <= whole < _HOUR:
        return format_duration(whole)
    minutes, rest = divmod(whole, _MINUTE)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def waited_so_far_text(text: str, seconds: float) -> str:
    """Return the line of a job that waits with how long it has waited, in steps that let one read it."""
    if seconds < _READABLE:
        return text
    steps = seconds if seconds >= _MINUTE else seconds // _READABLE * _READABLE
    return f"{text} Waited {format_duration(steps)} so far."


def gave_up_text(seconds: float) -> str:
    """Return what replaces the waiting line of a job that was not granted; why is said beside it."""
    return f"Waited {format_span(seconds)}."


def running_text(
    ran: float, loops: Sequence[Rounds] = (), memory: Sequence[tuple[str, int, int]] = ()
) -> str:
    """Return the line of a cell that runs.

    Parameters
    ----------
    ran
        Seconds since it began.
    loops
        Its loops over `lane.steps`, the outermost first.
    memory
        What it is (`kept`), bytes, and bytes declared.
    """
    parts = [f"Running {format_span(ran)}" if ran >= 1 else "Running"]
    if loops:
        parts.append(_progress(loops))
    parts += [f"{what} {_of(size, declared)}" for what, size, declared in memory]
    return " · ".join(parts)


def used_text(report: Report, line: str) -> str:
    """Return what stays of a cell; `line` is the magic to paste next time.

    How long it waited and ran is said where one could not see that at a glance.
    """
    parts = [f"used {format_size(report.persistent_measured + report.ephemeral_measured)}"]
    if report.waited >= 1:
        parts.append(f"waited {format_span(report.waited)}")
    if report.ran >= _GLANCE:
        parts.append(ran_text(report.ran, report.boundaries, report.served))
    return "; ".join([*parts, f"next time: {line}"])


def ran_text(seconds: float, steps: int, served: float | None = None) -> str:
    """Return how long something ran, for how much of it it was `served` where that is clearly less, and how many steps it did."""
    counted = f", {steps} step{'' if steps == 1 else 's'}" if steps else ""
    stood = 0.0 if served is None else seconds - served
    shared = f", {format_span(served or 0.0)} of it with the device" if stood >= max(1.0, _STOOD * seconds) else ""  # fmt: skip
    return f"ran {format_span(seconds)}{shared}{counted}"


def started_text(waited: float) -> str:
    """Return what somebody who looks elsewhere is told when a cell that waited starts."""
    return f"Started, waited {format_span(waited)}"


def ended_text(ran: float, *, failed: bool) -> str:
    """Return what they are told when it ends."""
    return f"{'Failed' if failed else 'Done'}, ran {format_span(ran)}"


def _progress(loops: Sequence[Rounds]) -> str:
    """Return how far loops inside each other are, how fast the innermost is, how long the outermost still takes."""
    steps = [str(done) if total is None else f"{done} of {total}" for done, total, _ in loops]
    told = [f"step {', inside '.join(steps)}"]
    done, _, took = loops[-1]
    if done and took >= 1:
        told.append(_rate(done / took))
    done, total, took = loops[0]
    left = 0.0 if total is None or not done else (total - done) * took / done
    if left >= 1 and took >= 1:
        told.append(f"about {format_duration(left)} to go")
    return ", ".join(told)


def _rate(a_second: float) -> str:
    if a_second < 1:
        return f"{1 / a_second:.2g} s each"
    return f"{a_second:.2g}/s" if a_second < _MANY else f"{a_second:.0f}/s"


def _of(size: int, whole: int) -> str:
    """Return a size of another, without its unit where both have the same."""
    (number, unit), of = format_size(size).split(), format_size(whole)
    return f"{number if of.endswith(f' {unit}') else f'{number} {unit}'} of {of}"


def did_not_run_text(waited: float) -> str:
    """Return the first line of a command whose wait is over: what a batch looks for in its log. `waited` in seconds."""
    return f"GPUSHARE: did not run, waited {format_duration(waited)}"
