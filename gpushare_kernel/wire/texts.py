"""What people read. Every sentence is here, and tested as a string.

The words are *memory, waiting, ahead of you, shared with n people*; lanes, occupants and boundaries
are for the documentation. The noun follows the device: on a host it is "memory", because nothing
pretends to be a GPU.
"""

from __future__ import annotations

from gpushare_kernel.core.sizes import format_apart, format_size, parse_size, pasteable_size
from gpushare_kernel.core.values import GiB, Holder, MiB, PauseReason, Wait, WaitReason
from gpushare_kernel.wire.messages import (
    AskedNow,
    DryRun,
    PausedNow,
    ReleasedNow,
    ResumedNow,
    Slowed,
)

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_NAMED_HOLDERS = 2
_HELPS = 4
"""An own idle notebook is one to release where it holds this part of what is missing."""
_FINE_FRACTION = 4
_OF_MEMORY = {WaitReason.MEMORY, WaitReason.OCCUPANCY, WaitReason.CAP}
_OOM_MARGIN = 15

NO_BROKER = "No gpushare broker is here: nothing is shared, and the code runs as it is."
NO_SESSION = (
    "This program has no session: nothing is shared, and the code runs as it is. "
    "Start it with: jupyter gpushare run -- python s.py"
)
BROKER_AWAY = (
    "The gpushare broker is away: this notebook runs on, and shares again when it is back."
)
BROKER_AWAY_ASIDE = (
    "The gpushare broker is away: this notebook's GPU memory is set aside, nothing is lost, and calls to the GPU wait until a broker "
    "is back. Where none comes by itself: jupyter gpushare start"
)
BROKER_STOPPED = "the gpushare broker was stopped. Start it again: jupyter gpushare start."
PLACE_LOST = "The gpushare broker restarted and your place in the queue is lost: waiting again."
RUNS_UNSHARED = "The code runs as it is, and nothing is shared."
LEFT_QUEUE = "Left the queue. The cell has not run."
LEFT_QUEUE_COMMAND = "Left the queue. The command has not run."
LIVE_STANDS_STILL = "That was a moment ago, and does not change: consoles show no live view. In a terminal: jupyter gpushare top"
SWITCHED_OFF = "gpushare is silent here, and this notebook no longer cooperates. The device stays shared. %gpushare on undoes it."
SWITCHED_ON = "gpushare speaks again, and this notebook cooperates."
BROKER_SILENT = "Waiting for the gpushare broker to come back. Interrupt gives up."
LEFT_FIRST_USE = "Left the queue. The cell ended at its first use of the GPU."
RESTART_DEFAULT = "From its next restart on this notebook starts like any other."
FRAMES_KEPT = "Errors keep their frames for %debug, and the memory that these hold. %gpushare debug off undoes it."
FRAMES_CLEARED = "The frames of a cell that runs out of GPU memory are cleared after it, so that its memory comes back."
OVERRAN = "Was not done when it was proven to be: until three in a row are in time again, nobody stands aside for this real-time job, but for a trial now and then."
_PAUSED_FOR: dict[str, str] = {
    "": "others had their turn",
    PauseReason.TURN_ENDED: "others had their turn",
    PauseReason.RESTOPPED: "somebody had continued it out of turn",
    PauseReason.OWNER: "by hand, with pause",
    PauseReason.REALTIME: "real-time work has the GPU",
    PauseReason.PARKED: "its memory was set aside",
    PauseReason.OVER_GRANT: "it held more than it may, and others waited for that",
}
BROKEN_SESSION = "This notebook's GPU session is broken (others are fine): restart the kernel."
_FOR_COMMAND = (
    ("this notebook", "this command"),
    ("This notebook", "This command"),
    ("Put this on the first line next time: %%gpulane ", "Next time: jupyter gpushare run "),
    (" Interrupt the cell, then: %gpushare release", ""),
    (": %gpushare release, or shut it down when you can.", ". End it when you can."),
    (": %gpushare release", ""),
    ("Restart the kernel.", "Start it again."),
    ("Restart its kernel once", "Start it again once"),
)


def no_answer_text(path: str) -> str:
    """Return the error where nobody answers at a broker's socket."""
    return f"no gpushare broker answers at {path}. jupyter gpushare doctor says more."


def memory_noun(kind: str) -> str:
    """Return what the memory of a device of this kind is called."""
    return "GPU memory" if kind == "cuda" else "memory"


def format_duration(seconds: float) -> str:
    """Return a time as people say it: `12 s`, `6 min`, `1 h 5 min`."""
    if seconds < _MINUTE:
        return f"{seconds:.1f} s" if 0 < seconds < 1 else f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < _DAY:
        minutes = round(seconds % _HOUR / _MINUTE)
        hours = int(seconds // _HOUR) + minutes // _MINUTE
        return f"{hours} h {minutes % _MINUTE} min" if minutes % _MINUTE else f"{hours} h"
    return f"{seconds / _DAY:.0f} d"


def wait_text(wait: Wait, noun: str = "GPU memory") -> str:
    """Return the line of a job that waits: why, who holds it, the place, how long, what one can do."""
    parts = [reason_text(wait, noun), *_holders(wait), *_place(wait)]
    return " ".join([*parts, "Interrupt gives up your place."])


def others_wait_text(wait: Wait, noun: str = "GPU memory") -> str:
    """Return why somebody else waits; without numbers where these are not for us to see."""
    if wait.needs or wait.reason not in _OF_MEMORY:
        return reason_text(wait, noun)
    using = " that another cell is using" if wait.reason is WaitReason.OCCUPANCY else ""
    return f"Waiting for {noun}{using}."


def waited_text(seconds: float, what: str = "GPU memory") -> str:
    """Return what replaces the waiting line once the job runs."""
    return f"Waited {format_duration(seconds)} for {what}."


def wait_ended_text(
    seconds: float, wait: Wait | None, noun: str = "GPU memory", what: str = "cell"
) -> str:
    """Return the error of a job whose `--wait` is over; `what` it is: a cell, a command."""
    memory = wait is None or (wait.reason in _OF_MEMORY and not wait.lost)
    why = "" if wait is None else f" {_numbers(wait) if memory else reason_text(wait, noun)}"
    late = f"{f'still no {noun}' if memory else 'not let in'} after {format_duration(seconds)}, as long as --wait says"
    if seconds <= 0:
        late = f"no {noun} for it now, and --wait 0 waits for none" if memory else "not let in now, and --wait 0 waits for nothing"  # fmt: skip
    return f"{late}; the {what} has not run.{why} Run it again later, or without --wait."


def for_command(text: str) -> str:
    """Return a notebook's sentence as a command in a terminal reads it: no cells, no magics."""
    for notebook, command in _FOR_COMMAND:
        text = text.replace(notebook, command)
    return text


def learned_text(size: int, runs: int, noun: str = "GPU memory", what: str = "code") -> str:
    """Return the line of a job that declared no size and was given what earlier runs took."""
    return f"Takes {format_size(size)} of {noun}, learned from {_runs(runs)} of this {what}."


def dry_run_text(answer: DryRun, noun: str = "GPU memory") -> str:
    """Return what a submit would do now."""
    needs = answer.persistent + answer.ephemeral
    split = (
        f"{format_size(answer.persistent)} to keep, {format_size(answer.ephemeral)} while it runs"
    )
    if answer.learned:
        split += f", learned from {_runs(answer.learned)}"
    whole, free = _pair(needs, answer.free)
    if answer.fits:
        return f"It would run at once: needs {whole} of {noun} ({split}), {free} free."
    if answer.wait is None:
        return f"It would wait: needs {whole} of {noun} ({split}), {free} free."
    parts = [reason_text(answer.wait, noun), *_holders(answer.wait), *_place(answer.wait)]
    return " ".join(["It would wait.", *parts])


def slowed_text(notice: Slowed) -> str:
    """Return the line of a cell that is slowed by others, or stood still for a while and runs again."""
    if notice.paused:
        return f"Was paused for {format_duration(notice.paused)}: {_pause_reason(notice.reason)}."
    whom = "your own other notebooks" if notice.people <= 0 else _people(notice.people)
    return f"Shared with {whom}: about {_fraction(notice.fraction)} speed"


_USED = "del what you do not need and release again, or restart the kernel."


def released_text(released: ReleasedNow, noun: str = "GPU memory") -> str:
    """Return what a release gave back."""
    if not released.names:
        return "No notebook of yours by that name. %gpushare status lists them."
    names, held = ", ".join(released.names), format_size(released.held)
    parts = []
    if released.freed:
        parts.append(f"Released {format_size(released.freed)} of {noun}: {names}.")
        if released.held:
            parts.append(f"{held} is still in use: {_USED}")
    elif released.held:
        parts.append(f"Nothing to release: {names} uses the {held} of {noun} it holds: {_USED}")
    if released.asked:
        parts.append(
            f"{', '.join(released.asked)} was asked to give back what it keeps unused: %gpushare status shows what is left."
        )
    if not parts:
        parts.append(
            f"Nothing to release: {names} uses all it holds. `del` what it no longer needs, or restart it."
        )
    return " ".join(parts)


def paused_text(paused: PausedNow, by: str = "%gpushare") -> str:
    """Return what was paused by its owner, for how long at most, and how it goes on sooner."""
    names = ", ".join(paused.names)
    return f"Paused {names} for {format_duration(paused.seconds)} at most; it keeps its memory. It goes on sooner: {by} resume {_stem(paused.names[0])}"


def resumed_text(resumed: ResumedNow) -> str:
    """Return what runs again."""
    if not resumed.names:
        return "Nothing to resume: you have not paused it."
    return f"{', '.join(resumed.names)} runs again, in its turn."


def asked_text(asked: AskedNow) -> str:
    """Return what came of asking an idle holder."""
    if asked.again > 0:
        return f"It was asked already; it can be asked again in {format_duration(asked.again)}."
    return "Asked: its user reads how many wait, and what it keeps unused goes back now."


def first_use_text(wait: Wait, noun: str = "GPU memory") -> str:
    """Return the line of a plain cell that is held at its first use of the device, until there is room."""
    if wait.reason is not WaitReason.MEMORY:
        return wait_text(wait, noun)
    first = f"Waiting for {noun}: this notebook's first use of it {_needs(wait)}."
    return " ".join([first, *_holders(wait), *_place(wait), "Interrupt ends the cell."])


def outgrown_text(took: int, had: int, wait: Wait, noun: str = "GPU memory") -> str:
    """Return the line of a job that waits at a boundary because it took more than it was granted; bytes above what it keeps."""
    takes, has = _pair(took, had)
    first = (
        f"This needs more {noun} than it was granted: {takes} while it runs, and it has {has}. "
        "It waits at this step until there is room, and goes on; nothing is lost."
    )
    return " ".join([first, *_holders(wait), *_place(wait)])


def oom_text(
    limit: int | None,
    needed: int,
    returned: int,
    line: str,
    noun: str = "GPU memory",
    *,
    others: int = 0,
) -> str:
    """Return the last line of a cell that ran out of memory.

    Parameters
    ----------
    limit
        Bytes this notebook may use; None where no cap of ours was in the way.
    needed
        Bytes it held and asked for when it failed.
    returned
        Bytes that came back since.
    line
        What to put on the first line (`%%gpulane 9GiB`, see `oom_size`); empty where no size would do.
    others
        Bytes that others hold; 0 where that is not known, or not why.
    """
    held = f" Others hold {format_size(others)}." if others > 0 else ""
    back = f" {format_size(returned)} came back." if returned > 0 else ""
    way_out = (
        f"Put this on the first line and run again: {line}"
        if line
        else "That is more than there is: run again with a smaller batch."
    )
    return f"{_over(limit, needed, noun)}{held}{back} {way_out}"


def oom_restart_text(
    limit: int | None, needed: int, line: str, framework: str = "JAX", noun: str = "GPU memory"
) -> str:
    """Return the same for a framework whose limit is fixed when the kernel starts; `line` is `%gpushare memory 20GiB`."""
    return (
        f"{_over(limit, needed, noun)} {framework} takes its limit when the kernel starts. "
        f"Run this, then restart the kernel: {line}"
    )


def oom_size(needed: int, room: int) -> str:
    """Return the size to declare after running out of memory: what was needed, and a little more, but no more than `room`."""
    size = pasteable_size(needed + needed * _OOM_MARGIN // 100)
    if parse_size(size) <= room:
        return size
    whole = room // GiB * GiB
    return pasteable_size(whole) if whole >= needed else f"{room // MiB}MiB"


def older_broker_text(version: int, needed: int, restart: str) -> str:
    """Return the error of a request that a broker from before this client does not know; `restart` are the commands for another."""
    return (
        f"the broker is older than this notebook's gpushare: it speaks protocol version {version}, and this is known "
        f"since {needed}. Have it restarted: {restart}."
    )


def restart_memory_text(size: int, noun: str = "GPU memory") -> str:
    """Return the answer to `%gpushare memory SIZE`."""
    return f"From its next restart on this notebook may use {format_size(size)} of {noun}. Restart the kernel."


def asked_to_release_text(people: int, held: int, since: str) -> str:
    """Return what an idle holder is asked, once; `since` is a time of day."""
    return f"{_waiters(people)}; you hold {format_size(held)} idle since {since}: %gpushare release"


def over_told_text(held: int, limit: int, noun: str = "GPU memory") -> str:
    """Return what a notebook over its grant is told first."""
    return f"{_holds(held, limit, noun)}. Put this on the first line next time: %%gpulane {pasteable_size(held)}"


def over_asked_text(held: int, limit: int, people: int, noun: str = "GPU memory") -> str:
    """Return what it is told when it is asked to give memory back."""
    return (
        f"{_holds(held, limit, noun)}, and {_waiters(people)}: it gives back what it does not use."
    )


def over_paused_text(
    held: int, limit: int, people: int, seconds: float, noun: str = "GPU memory"
) -> str:
    """Return what it is told when it is paused for that."""
    return (
        f"Paused for at most {_seconds(seconds)}: {_holds(held, limit, noun, start='this')}, and {_waiters(people)}. "
        "Interrupt the cell, then: %gpushare release"
    )


def desktop_text(size: int, noun: str = "GPU memory") -> str:
    """Return the line of the display and what draws on it."""
    return f"The desktop uses {format_size(size)} of {noun}; it is never paused."


def foreign_text(size: int, noun: str = "GPU memory") -> str:
    """Return the line of programs that take no part."""
    return f"Programs outside gpushare use {format_size(size)} of {noun}; they take no turns."


def barred_text(drain: float | None, absorbs: float) -> str:
    """Return what a notebook reads that stands still until the real-time jobs on its device have ended (I7)."""
    leaves = f"their deadlines leave {1000 * absorbs:.3g} ms"
    if drain is None:
        return f"Stands still until the real-time work on this GPU ends: nobody knows yet how long what this notebook submits takes to stop, and {leaves}."
    return f"Stands still until the real-time work on this GPU ends: what this notebook submits takes {1000 * drain:.3g} ms to stop, and {leaves}. Shorter kernels, or a sync more often, help."


def _over(limit: int | None, needed: int, noun: str) -> str:
    if limit is None:
        return f"{noun}: this notebook needed about {format_size(needed)}, and there is no room for that now."
    may, about = _pair(limit, needed)
    return f"{noun}: this notebook may use {may} and needed about {about}."


def _holds(held: int, limit: int, noun: str, start: str = "This") -> str:
    holds, may = _pair(held, limit)
    return f"{start} notebook holds {holds} of {noun} and may use {may}"


def _waiters(people: int) -> str:
    return f"{_people(people)} {'waits' if people == 1 else 'wait'}"


def _seconds(seconds: float) -> str:
    """Return a limit in seconds up to two minutes: `60 s` is plainer than `1 min` where one sits and waits."""
    return f"{seconds:.0f} s" if seconds <= 2 * _MINUTE else format_duration(seconds)


def reason_text(wait: Wait, noun: str = "GPU memory") -> str:
    """Return what is waited for, in a sentence."""
    if wait.lost:
        device = "the GPU" if noun.startswith("GPU") else "the device"
        return f"Waiting for {device} to answer again: {wait.lost} Nothing is let in until then, and nobody stands still."
    if wait.reason is WaitReason.MEMORY:
        return f"Waiting for {noun}: {_needs(wait)}."
    if wait.reason is WaitReason.OCCUPANCY:
        return (
            f"Waiting for {noun} that another cell is using: {_needs(wait)}. "
            "It is yours when that cell reaches its next step or ends."
        )
    if wait.reason is WaitReason.TURN:
        return "Waiting for a turn: others are running now."
    return _other_reason(wait, noun)


def _other_reason(wait: Wait, noun: str) -> str:
    if wait.reason is WaitReason.CAP:
        return (
            f"Waiting for {noun}: {_needs(wait)}. "
            f"Each of the group {wait.group} may hold {format_size(wait.cap)} of this device."
        )
    if wait.reason is WaitReason.MAINTENANCE:
        note = f" ({wait.note})" if wait.note else ""
        return f"Waiting for the end of a maintenance{note}: nothing new begins on this device until then, and nothing is lost."
    if wait.reason is WaitReason.RESTORE:
        return f"Putting {format_size(wait.needs)} of {noun} back, which was set aside."
    until = "" if wait.until is None else f" in {format_duration(wait.until)} at most"
    return f"Waiting for the gpushare broker: it restarted, and asks all notebooks what they hold. It goes on{until or ' soon'}."


def in_the_way(wait: Wait) -> list[str]:
    """Return what is missing, who holds it, and the place in the queue, a sentence each."""
    return [f"It {_needs(wait)}.", *_holders(wait), *_place(wait)]


def _needs(wait: Wait) -> str:
    needs, free = _pair(wait.needs, wait.free)
    return (
        f"needs {needs}, {free} {'left of your own' if wait.reason is WaitReason.CAP else 'free'}"
    )


def _numbers(wait: Wait) -> str:
    return f"It {_needs(wait)}."


def _pair(one: int, other: int) -> tuple[str, str]:
    """Return two sizes of which the second has no unit where the first has the same; they read apart where they are."""
    first, second = format_apart(one, max(other, 0))
    number, unit = second.split()
    return first, number if unit == first.split()[1] else second


def free_text(free: int, beside: int) -> str:
    """Return a size without its unit where it stands beside one of the same unit."""
    text, unit = format_size(max(free, 0)), format_size(beside).split()[1]
    number, own = text.split()
    return number if own == unit else text


def _holders(wait: Wait) -> list[str]:
    """Return own notebooks first: those one can do something about. During a grace, or without a device, nobody is in the way."""
    if wait.reason in {WaitReason.GRACE, WaitReason.MAINTENANCE} or wait.lost:
        return []
    own = sorted((h for h in wait.holders if h.own), key=lambda h: -h.size)
    others = sorted((h for h in wait.holders if not h.own), key=lambda h: -h.size)
    missing = wait.needs - wait.free
    said = [
        f"Your own {h.name} holds {format_size(h.size)}{_way_out(h, missing)}."
        for h in own[:_NAMED_HOLDERS]
    ]
    if others:
        named = [f"{h.name} ({format_size(h.size)})" for h in others[:_NAMED_HOLDERS]]
        more = len(others) - len(named)
        said.append(f"In use by {', '.join(named)}{f' and {more} more' if more else ''}.")
    return said


def _way_out(holder: Holder, missing: int) -> str:
    """Return what one can do about an own notebook: an idle one can be released, where that helps, a running one not."""
    if holder.idle is None:
        return " and is running"
    idle = f", idle {format_duration(holder.idle)}" if holder.idle >= 1 else ""
    if holder.size * _HELPS < missing:
        return idle or " and is idle"
    return f"{idle}: %gpushare release {_stem(holder.name)}"


def _stem(name: str) -> str:
    stem = name.removesuffix(".ipynb")
    return f"'{stem}'" if " " in stem else stem


def _place(wait: Wait) -> list[str]:
    to_go = wait.eta if wait.eta is not None and wait.eta >= 1 else None
    about = "" if wait.exact else "About "
    if wait.lost or wait.reason is WaitReason.MAINTENANCE:
        return []
    if wait.over_budget:  # who came later may come first: no place says how long it takes
        return [
            "Your budget of device time is used up: others come first. %gpushare status says what is left."
        ]
    said = [] if to_go is None else [f"{about}{format_duration(to_go)} to go."]
    if wait.reason in (WaitReason.TURN, WaitReason.GRACE, WaitReason.RESTORE):
        return said
    said.insert(0, f"{wait.ahead} ahead of you." if wait.ahead else "You are next.")
    if to_go is not None:
        return said
    if wait.longest_today is not None and wait.longest_today >= 1:
        said.append(f"Longest wait today {format_duration(wait.longest_today)}.")
    return said


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _pause_reason(reason: str) -> str:
    return _PAUSED_FOR.get(reason, reason.rstrip("."))


def _people(count: int) -> str:
    return "1 person" if count == 1 else f"{count} people"


def _fraction(fraction: float) -> str:
    """Return a speed as a fraction one can picture: 1/4, 2/3."""
    if fraction <= 0:
        return "no"
    if fraction < 1 / _FINE_FRACTION:
        return f"1/{round(1 / fraction)}"
    from fractions import Fraction  # noqa: PLC0415 - every kernel start imports this module

    near = Fraction(fraction).limit_denominator(_FINE_FRACTION)
    return "full" if near >= 1 else f"{near.numerator}/{near.denominator}"
