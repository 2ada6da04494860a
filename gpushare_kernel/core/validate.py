"""The rules that hold after every event (I1, I2, I3, I6), checked from scratch. Linear: for tests and debugging."""

from __future__ import annotations

from collections.abc import Iterator

from gpushare_kernel.core.errors import InvariantBroken
from gpushare_kernel.core.records import Moving
from gpushare_kernel.core.resting import belongs
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import JobState, SessionId
from gpushare_kernel.core.windows import Windows

_CLOSE = 1e-6


def validate(scheduler: Scheduler) -> None:
    """Check every rule.

    Raises
    ------
    InvariantBroken
        Naming each rule that does not hold, with the numbers.
    """
    broken = [
        *_memory(scheduler),
        *_lanes(scheduler),
        *_turns(scheduler),
        *_pauses(scheduler),
        *_work(scheduler),
        *_promises(scheduler),
    ]
    if broken:
        raise InvariantBroken("; ".join(broken))


def _memory(scheduler: Scheduler) -> Iterator[str]:
    """I1: the sums are what they say, and over capacity only by a known deficit."""
    table, sessions = scheduler.book.table, scheduler.sessions.values()
    persistent, reserve = sum(s.charged for s in sessions), sum(s.context for s in sessions)
    lanes = sum(lane.size for lane in table.lanes.values())
    if (persistent, reserve, lanes) != (table.persistent, table.reserve, table.in_lanes):
        yield f"I1: sums {(table.persistent, table.reserve, table.in_lanes)} are {(persistent, reserve, lanes)} in fact"
    if table.free < 0 and not scheduler.book.deficit:
        yield f"I1: {-table.free} bytes over capacity without a known cause"
    resting = [*scheduler.book.resting]
    idle = sorted((s for s in sessions if belongs(s)), key=lambda s: (s.idle_since, s.order))
    if resting != idle:
        yield f"parking: {[s.id for s in resting]} rest, in fact {[s.id for s in idle]}"
    out = {s.id for s in sessions if s.moving is Moving.OUT}
    if scheduler.going.keys() != out:
        yield f"parking: {sorted(scheduler.going)} are on their way out, in fact {sorted(out)}"


def _lanes(scheduler: Scheduler) -> Iterator[str]:
    """I2: one occupant, who is a member; no lane below its largest E; nobody in two lanes."""
    seen: set[str] = set()
    for lane in scheduler.book.table.lanes.values():
        if not lane.members:
            yield f"I2: lane {lane.id} is empty and lives"
            continue
        if lane.occupant is None or lane.occupant.id not in lane.members:
            yield f"I2: lane {lane.id} has members and no occupant among them"
        largest = max(job.need.ephemeral for job in lane.members.values())
        if lane.size < largest:
            yield f"I2: lane {lane.id} has {lane.size} bytes, a member needs {largest}"
        if lane.private and len(lane.members) > 1:
            yield f"I2: private lane {lane.id} has {len(lane.members)} members"
        for job in lane.members.values():
            if job.id in seen or job.lane != lane.id:
                yield f"I2: job {job.id} is not in one lane"
            seen.add(job.id)
            # Past its first line and away from a boundary its E may be on the device: then it must be the occupant.
            if lane.occupant is not job and not (job.waits and job.trimmed):
                yield f"I2: job {job.id} has E on the device and does not occupy lane {lane.id}"


def _turns(scheduler: Scheduler) -> Iterator[str]:
    """Turns: phases agree with their sets; a full device is not overbooked by choice."""
    turns = scheduler.turns
    waiting = {s.id for s in turns.accounts.sessions()}
    for session in scheduler.sessions.values():
        places = (
            (session.id in turns.using) + (session.id in turns.joining) + (session.id in waiting)
        )
        if places != (session.id in turns.wanting):
            yield f"turns: session {session.id} ({session.phase}) stands in {places} places"
        if (session.id in turns.using) != (session.phase in {Phase.ON, Phase.LEAVING}):
            yield f"turns: session {session.id} is {session.phase} and in the wrong set"
        runs = any(not job.waits for job in session.jobs.values())
        if session.phase is Phase.WAITING and runs and session.stopped is None:
            yield f"I2: session {session.id} runs without a turn"
    for name, value, fact in (
        ("load", turns.load, sum(s.counted for s in turns.wanting.values())),
        ("busy", turns.busy, sum(s.counted for s in turns.using.values())),
    ):
        if abs(value - fact) > _CLOSE * max(1.0, fact):
            yield f"turns: {name} is {value}, in fact {fact}"
    if turns.wanting and not turns.using and not scheduler.lost:
        yield "I6: somebody wants the device and nobody uses it"
    if not turns.crowded(scheduler.at) and waiting and turns.all_fit(scheduler.at):
        yield "I6: somebody waits while all fit"


def _pauses(scheduler: Scheduler) -> Iterator[str]:
    """I3: what is paused has a reason, and only sessions that wait for a turn are, or are suspended, for a time."""
    for session in scheduler.sessions.values():
        if session.suspended_until is not None:
            if session.stopped is not session.suspended_for or session.phase is not Phase.OFF:
                yield f"I3: session {session.id} is suspended, {session.phase} and stopped ({session.stopped})"
            if not session.jobs:
                yield f"I3: session {session.id} is suspended and has no jobs"
        elif session.stopped is not None and session.phase not in {Phase.WAITING, Phase.LEAVING}:
            yield f"I3: session {session.id} is {session.phase} and stopped ({session.stopped})"
        if session.stopped is not None and scheduler.at < session.exempt_until:
            yield f"I3: session {session.id} is exempt and stopped"
        away = session.moving is not None or session.parked is not None
        if away and session.phase is not Phase.OFF:
            yield f"I3: session {session.id} is {session.phase} while its memory is away or moves"
        if session.stopped is not None and scheduler.lost:
            yield f"I3: session {session.id} is stopped on a lost device"


def _work(scheduler: Scheduler) -> Iterator[str]:
    """Nobody waits for what is free."""
    for job in scheduler.book.overlooked(scheduler.sessions):
        yield f"queue: job {job.id} fits, and is taken for one that does not"
    for job in scheduler.jobs.values():
        waits = (job.id in scheduler.book.queue) + (job.id in scheduler.held_back)
        if waits != (job.state is JobState.QUEUED):
            yield f"queue: job {job.id} is {job.state} and in the wrong place"
        session = scheduler.sessions.get(job.session)
        if session is None or job.id not in session.jobs:
            yield f"jobs: {job.id} belongs to no session"
        elif (
            session.phase is Phase.ON
            and job.waits
            and job.state is JobState.ADMITTED
            and job.lane is not None
        ):
            lane = scheduler.book.table.lanes[job.lane]
            if lane.occupant is job:
                yield f"jobs: {job.id} waits although its session has the turn and it the lane"


def _promises(scheduler: Scheduler) -> Iterator[str]:
    """I7: a device belongs to its real-time jobs while a window is open, and only then; their bounds are within what they absorb."""
    gate = scheduler.turns.gate
    free = scheduler.lost or scheduler.at < scheduler.turns.free_until
    if gate.shut != (gate.windows.open and not free):
        yield f"I7: the device is {'shut' if gate.shut else 'open'} and a window is {gate.windows.open}"
    for session in scheduler.turns.using.values():
        stands = session.id in gate.held or session.stopped is not None
        guest = not session.realtime or _owes(gate.windows, session.id)
        if gate.shut and session.pausable and guest and not stands:
            yield f"I7: session {session.id} runs in a window"
    for name, session in gate.held.items():
        if name not in scheduler.sessions:
            yield f"I3: session {name} is held and gone"
        if session.realtime and _comes_first(gate.windows, name, scheduler.at):
            yield f"I7: session {name} is real-time, comes first and is held"
        if not gate.promises:
            yield f"I3: session {name} is held for nobody"
    for one in gate.windows.standing.values():
        if one.promise.bound > one.promise.deadline or one.promise.deadline > one.promise.period:
            yield f"I7: job {one.job} has a bound of {one.promise.bound}, a deadline of {one.promise.deadline} and a period of {one.promise.period}"
        if one.opened is not None and scheduler.at > one.until + scheduler.config.timer_slack:
            yield f"I3: the window of job {one.job} is open {scheduler.at - one.until} s too long"


def _comes_first(windows: Windows, session: SessionId, at: float) -> bool:
    """Whether a real-time session may not be held: no other has a window, or it has one and nobody else comes first; or it weighs more."""
    mine = [one for one in windows.standing.values() if one.session == session]
    others = [o for o in windows.standing.values() if o.session != session and o.opened is not None]
    if not others:
        return True
    if any(one.opened is not None for one in mine):
        owner = windows.owner(at)
        return owner is None or owner.session == session
    weights = [one.promise.weight for one in mine if not one.owes]
    return any(weight > max(one.promise.weight for one in others) for weight in weights)


def _owes(windows: Windows, session: SessionId) -> bool:
    """Whether all deadlines of a real-time session are lost for now, and it has no window."""
    mine = [one for one in windows.standing.values() if one.session == session]
    return all(one.owes and one.opened is None for one in mine)
