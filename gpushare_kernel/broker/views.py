"""The snapshot, as one caller may see it (I9): to others a person is initials, without names, pids and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from gpushare_kernel import __version__
from gpushare_kernel.broker.ids import session_of
from gpushare_kernel.broker.persons import Person
from gpushare_kernel.core.lanes import Lane
from gpushare_kernel.core.reasons import why
from gpushare_kernel.core.records import Session
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import (
    Holder,
    JobId,
    JobState,
    PauseReason,
    Presence,
    SessionId,
    UserId,
    Wait,
)
from gpushare_kernel.core.windows import Standing
from gpushare_kernel.wire import snapshot as view

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker
    from gpushare_kernel.broker.engine import Engine
    from gpushare_kernel.broker.kernels import Kernel


LASTING_PAUSE = 1.0


def named(broker: Broker, wait: Wait, who: Person) -> Wait:
    """Return `wait` with holders called as `who` may know them."""
    holders = tuple(_holder(broker, holder, who) for holder in wait.holders)
    return replace(
        wait,
        holders=holders,
        longest_today=broker.longest_wait,
        until=None if wait.until is None else max(0.0, wait.until - broker.now),
    )


def snapshot(broker: Broker, who: Person) -> view.Snapshot:
    """Return the state of the broker as `who` may see it."""
    now = round(broker.now, 4)
    return view.Snapshot(
        schema=view.SCHEMA,
        broker=view.BrokerView(
            broker.pid,
            __version__,
            broker.uptime,
            broker.system,
            broker.longest_wait or None,
            _trouble(broker) if broker.administers(who) else None,
            None if broker.persons.hub is None else broker.persons.hub.trouble,
        ),
        devices=tuple(_device(broker, engine, who, now) for engine in broker.engines.values()),
        sessions=tuple(_session(broker, s, who) for s in broker.sessions()),
        queue=tuple(_queue(broker, who)),
        users=tuple(_account(broker, *account, who) for account in broker.accounts()),
        at=now,
        rt=tuple(
            _realtime(one, engine.now)
            for engine in broker.engines.values()
            for one in engine.scheduler.turns.gate.windows.standing.values()
        ),
        bundles=tuple(broker.bundles.views(who)),
        arenas=tuple(broker.arenas.views(who)),
        you=who.user,
        maintenance=broker.upkeep.view(who),
        announcement=broker.upkeep.word,
    )


def _account(
    broker: Broker, user: UserId, weight: float, seconds: float, who: Person
) -> view.UserView:
    """What a user has used; what its group allows it, to itself and to administrators."""
    called, group = _user(broker, user, who), broker.groups.of(user)
    own = user == who.user
    if group is None or not broker.may_know(who, user):
        return view.UserView(called, weight, seconds, own=own)
    caps, budgets = broker.groups.caps(user), broker.groups.budgets(user)
    return view.UserView(
        called, weight, seconds, group.name, caps.memory, caps.kernels, budgets, own, caps.parked
    )


def _trouble(broker: Broker) -> str | None:
    troubles = (
        broker.ledger.trouble,
        broker.groups.trouble,
        broker.groups.silence,
        broker.no_metrics,
    )
    return " ".join(filter(None, troubles)) or None


def brief_snapshot(broker: Broker, who: Person) -> view.Snapshot:
    """Return what a status bar shows: devices, and what is `who`'s own, and what an administrator says. It is asked for every second or two, by everybody's pages."""
    return view.Snapshot(
        schema=view.SCHEMA,
        broker=None,
        devices=tuple(_brief_device(engine) for engine in broker.engines.values()),
        sessions=tuple(_session(broker, s, who) for s in broker.sessions() if _own(broker, s, who)),
        queue=tuple(_queue(broker, who, own=True)),
        at=round(broker.now, 4),
        maintenance=broker.upkeep.view(who),
        announcement=broker.upkeep.word,
    )


def _brief_device(engine: Engine) -> view.DeviceView:
    inventory, table = engine.device.inventory, engine.scheduler.book.table
    return view.DeviceView(
        inventory.id,
        inventory.kind,
        inventory.name,
        table.capacity,
        table.reserve,
        table.persistent,
        (),
        engine.scheduler.turns.accounts.policy.name,
        engine.scheduler.config.compute,
        max(0, table.free),
        inventory.total,
        lost=engine.device.lost,
    )


def _own(broker: Broker, session: Session, who: Person) -> bool:
    kernel = broker.registry.get(session.id)
    return kernel is not None and kernel.person == who


def _realtime(one: Standing, now: float) -> view.RealtimeView:
    promise = one.promise
    longest = promise.bound if one.longest is None else one.longest
    return view.RealtimeView(
        session=one.session,
        period=promise.period,
        deadline=promise.deadline,
        bound=promise.bound,
        margin=promise.deadline - longest,
        releases=one.releases,
        misses=one.misses(now),
        job=one.job,
    )


def _device(broker: Broker, engine: Engine, who: Person, now: float) -> view.DeviceView:
    core, device = engine.scheduler, engine.device
    inventory = device.inventory
    table = core.book.table
    lanes = tuple(_lane(broker, lane, core.sessions, who) for lane in table.lanes.values())
    return view.DeviceView(
        inventory.id,
        inventory.kind,
        inventory.name,
        table.capacity,
        table.reserve,
        table.persistent,
        lanes,
        core.turns.accounts.policy.name,
        core.config.compute,
        max(0, table.free),
        inventory.total,
        engine.desktop,
        engine.foreign,
        None if device.capabilities.can_pause else device.capabilities.why,
        device.lost,
        engine.history.turns(now),
        _can(engine),
        core.book.reserve,
    )


def _can(engine: Engine) -> tuple[str, ...]:
    """Return what can be done to whoever uses the device."""
    there = {"pause": engine.device.capabilities.can_pause, "park": engine.scheduler.config.can_park}  # fmt: skip
    return tuple(what for what, can in there.items() if can)


def _lane(
    broker: Broker, lane: Lane, sessions: Mapping[SessionId, Session], who: Person
) -> view.LaneView:
    open_ = all(_open(broker, job, who) for job in lane.members)
    occupant, used = lane.occupant, None
    if open_ and occupant is not None:
        session, kernel = sessions[occupant.session], broker.registry.get(occupant.session)
        # Of several jobs of one session nobody tells apart who uses what.
        alone = sum(job.lane is not None for job in session.jobs.values()) == 1
        if alone and kernel is not None and kernel.held is not None:
            used = min(max(0, kernel.held - session.charged), lane.size)
    return view.LaneView(
        lane.id,
        lane.size if open_ else 0,
        None if occupant is None else occupant.id,
        tuple(lane.members),
        used,
    )


def _session(broker: Broker, session: Session, who: Person) -> view.SessionView:
    kernel = broker.registry.get(session.id)
    open_ = kernel is not None and broker.may_see(who, kernel)
    mode = core_mode(broker, session)
    barred = broker.engine_of(session.id).scheduler.turns.gate.bars(session)
    return view.SessionView(
        id=session.id,
        user=_user(broker, session.user.id, who),
        name=kernel.name if kernel is not None and open_ else None,
        pid=kernel.key.pid if kernel is not None and open_ and kernel.key else None,
        state=session_state(session, broker.now, barred=barred),
        mode=mode,
        p=session.charged if open_ else None,
        device_time=session.device_time,
        device=broker.engine_of(session.id).device.inventory.id,
        own=kernel is not None and kernel.person == who,
        jobs=tuple(session.jobs),
        demand=session.demand,
        turns=session.turns,
        doing=tuple(filter(None, map(broker.job_names.get, session.jobs))) if open_ else (),
        why_paused=session.suspended_for
        if session.suspended_until is not None
        else PauseReason.REALTIME
        if barred
        else None,
        spare=_spare(broker, kernel, session) if kernel is not None and open_ else None,
        parked=session.parked.size if session.parked is not None and open_ else None,
        why_not_parked=_why_not_parked(broker, session) if open_ else None,
        holds=kernel.held if kernel is not None and open_ else None,
        granted=_granted(session) if open_ else None,
    )


def _granted(session: Session) -> int | None:
    """Return what its jobs that were let in may take it to: all it keeps, and what each needs beside that."""
    jobs = [job for job in session.jobs.values() if job.lane is not None]
    if not jobs:
        return None
    keeps = max(session.charged, *(job.need.persistent for job in jobs))
    whole = keeps + sum(job.need.ephemeral for job in jobs)
    # One size that was declared is for both together.
    return whole if len(jobs) > 1 else min(whole, max(jobs[0].size or whole, session.charged))


def _why_not_parked(broker: Broker, session: Session) -> str | None:
    core = broker.engine_of(session.id).scheduler
    return (core.why_not_parked(session) or None) if core.config.can_park else None


def _spare(broker: Broker, kernel: Kernel, session: Session) -> int:
    """Return what a release would give back at most: what is not used, and what a GPU's client may have in its pools."""
    pools = not broker.engine_of(session.id).scheduler.config.divisible and bool(kernel.lines)
    return session.charged if pools else session.charged - session.measured


def session_state(session: Session, now: float, *, barred: bool = False) -> str:
    """Return the one word people read: presence where it is not settled, else activity; `bare` while idle.

    `paused` only where it lasts: within turns a session stands still ten times a second, suspended it does for long; so
    does who is `barred` by real-time jobs.
    """
    if session.presence in {Presence.OPENED, Presence.ORPHANED}:
        return session.presence
    if session.presence is Presence.BARE and not session.jobs:
        return session.presence
    lasts = session.suspended_until is not None or now - session.stopped_at > LASTING_PAUSE
    if session.stopped is not None and lasts:
        return "paused"
    return "paused" if barred else session.activity


def core_mode(broker: Broker, session: Session) -> str | None:
    """Return how `session` shares its device now, None where it wants nothing."""
    return broker.engine_of(session.id).scheduler.turns.mode(session, broker.now)


def _queue(broker: Broker, who: Person, *, own: bool = False) -> list[view.QueueView]:
    out = []
    for core, job in (
        (engine.scheduler, job)
        for engine in broker.engines.values()
        for job in engine.scheduler.jobs.values()
    ):
        session = core.sessions[job.session]
        if own and not _own(broker, session, who):
            continue
        waits_for_turn = session.phase is Phase.WAITING and job.granted is not None
        if job.state not in {JobState.QUEUED, JobState.ADMITTED} or waits_for_turn:
            continue
        wait = named(broker, why(core, job), who)
        kernel = broker.registry.get(job.session)
        open_ = kernel is not None and broker.may_see(who, kernel)
        out.append(
            view.QueueView(
                job.id,
                job.session,
                wait.reason,
                wait.ahead,
                wait.eta,
                wait.needs if open_ else 0,
                broker.now - job.submitted,
                broker.job_names.get(job.id) if open_ else None,
                wait.free if open_ else None,
                wait.holders if open_ else (),
                wait.until if open_ else None,
                wait.exact,
                wait.cap if open_ else 0,
                wait.group if open_ else "",
                wait.note,
                wait.over_budget and open_,
            )
        )
    return out


def _open(broker: Broker, job: JobId, who: Person) -> bool:
    """Whether `who` may know what `job` declared."""
    kernel = broker.registry.get(session_of(job))
    return kernel is not None and broker.may_see(who, kernel)


def _user(broker: Broker, user: UserId, who: Person) -> str:
    return user if broker.may_know(who, user) else broker.aliases.of(user)


def _holder(broker: Broker, holder: Holder, who: Person) -> Holder:
    kernel = broker.registry.get(SessionId(holder.name))
    if kernel is None:
        return holder
    if broker.may_see(who, kernel):
        name = kernel.name if kernel.person == who else f"{kernel.user}: {kernel.name}"
        return Holder(name, holder.size, holder.idle, kernel.person == who)
    return Holder(broker.aliases.of(kernel.user), holder.size, holder.idle, own=False)
