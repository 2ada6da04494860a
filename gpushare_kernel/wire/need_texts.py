"""What people read of what their code needs: what it took, and what to declare instead. The other sentences are in `texts`."""

from __future__ import annotations

from gpushare_kernel.core.sizes import format_size, parse_size, pasteable_size, pasteable_time
from gpushare_kernel.core.values import MiB
from gpushare_kernel.wire.messages import Report
from gpushare_kernel.wire.snapshot import NeedView
from gpushare_kernel.wire.texts import format_duration, free_text

_WORTH_SAYING = 1.25
_OFF = 2.0
"""A size this many times too large, or a time this many times off, is worth a word."""

NO_NEEDS = (
    "Nothing is learned yet. Run a cell with %%gpulane above it: the next time it needs no numbers."
)
NEEDS_LEGEND = (
    "Memory it keeps + memory it has beyond that while it runs; time for which it had the device, without what it stood still for others. "
    "Declared is what the last run declared, a percentage as what it was of the device."
)


def need_advice(need: NeedView) -> str:
    """Return what to declare for a piece of code the next time, and why; with the line to paste where there is something to change."""
    wrong = [one for one in (_wrong_size(need), _wrong_time(need)) if one]
    told = []
    if need.elsewhere:
        told.append(f"learned elsewhere ({need.elsewhere}), so its time does not count here")
    if not wrong and not need.code.startswith("run:"):
        nothing = _declared(need) is None
        told.append("nothing to declare: it takes what was learned" if nothing else "fits")
    return "; ".join([*told, *wrong]) + (f": {_need_line(need)}" if wrong else "")


def _wrong_size(need: NeedView) -> str:
    """Return what is wrong with the sizes that it declares, if anything. Those of a command are not measured."""
    declared = _declared(need)
    if declared is None or need.code.startswith("run:"):
        return ""
    size = sum(parse_size(part) for part in need_sizes(need))
    took = need.measured_persistent + need.measured_ephemeral
    beside = need.measured_ephemeral if need.declared_size is not None else need.declared_ephemeral
    if declared < took:
        return f"declares {format_size(declared)} and took {free_text(took, declared)}"
    if (beside or 0) < need.measured_ephemeral:
        took = need.measured_ephemeral
        return f"declares {format_size(beside or 0)} while it runs and took {free_text(took, beside or 0)}"
    if declared > _WORTH_SAYING * size:
        return f"declare {format_size(size)} instead of {free_text(declared, size)}: nobody waits for what you do not use"
    return ""


def _wrong_time(need: NeedView) -> str:
    """Return what is wrong with the time that it declares, if anything."""
    said, known = need.declared_time, need.time
    if said is None or not known or 1 / _OFF <= known / said <= _OFF:
        return ""
    return f"says {format_duration(said)} and takes {format_duration(known)}"


def _declared(need: NeedView) -> int | None:
    """Return the bytes that the last run declared in all; None where it declared nothing."""
    if need.declared_size is not None:
        return need.declared_size
    if need.declared_persistent is None and need.declared_ephemeral is None:
        return None
    return (need.declared_persistent or 0) + (need.declared_ephemeral or 0)


def _need_line(need: NeedView) -> str:
    """Return what to paste, in the form it was declared in."""
    sizes = need_sizes(need)
    time = "" if need.declared_time is None or not need.time else pasteable_time(need.time)
    if need.code.startswith("run:"):
        return f"jupyter gpushare run {format_size(_declared(need) or 0).replace(' ', '')} --time {time} -- ..."
    if need.code.startswith("lane:"):
        given = f'size="{sizes[0]}"' if len(sizes) == 1 else f'"{sizes[0]}", "{sizes[1]}"'
        return f"gpushare.lane({given}" + (f', time="{time}")' if time else ")")
    return f"%%gpulane {_options(sizes)}" + (f" --time {time}" if time else "")


def need_sizes(need: NeedView) -> tuple[str, ...]:
    """Return the sizes to declare for this code: one, or two where it was declared as what it keeps and what comes on top."""
    return advised_sizes(
        need.persistent, need.ephemeral, need.most, parts=need.declared_size is None
    )


def next_sizes(report: Report, *, parts: bool) -> str:
    """Return what to put behind `%%gpulane` next time: one size, or `parts`. What a broker of before does not advise is what was used."""
    persistent = report.persistent_advised or report.persistent_measured
    ephemeral = report.ephemeral_advised or report.ephemeral_measured
    return _options(advised_sizes(persistent, ephemeral, report.most, parts=parts))


def advised_sizes(persistent: int, ephemeral: int, most: int, *, parts: bool) -> tuple[str, ...]:
    """Return the sizes to declare for what is taken to be needed: rounded up to what one can read, but not above `most` (0: not known)."""
    if not parts:
        return (_up_to(persistent + ephemeral, most),)
    kept = _up_to(persistent, most)
    return kept, _up_to(ephemeral, max(MiB, most - parse_size(kept)) if most else 0)


def _up_to(needed: int, room: int) -> str:
    size = pasteable_size(needed)
    return size if not room or parse_size(size) <= room else f"{max(1, room // MiB)}MiB"


def _options(sizes: tuple[str, ...]) -> str:
    return sizes[0] if len(sizes) == 1 else f"-p {sizes[0]} -e {sizes[1]}"
