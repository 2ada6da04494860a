"""What a person does to a notebook from outside: pause it, let it run again, set its memory aside, ask whoever holds memory idle to release it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gpushare_kernel.broker.administration import called, meant, note_others
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.budget import people_waiting
from gpushare_kernel.core.errors import BadDeclaration, NotYours
from gpushare_kernel.core.records import Moving, Session
from gpushare_kernel.core.values import PauseReason, SessionId
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire import parking_texts, texts

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker
    from gpushare_kernel.broker.desk import Desk
    from gpushare_kernel.broker.engine import Engine
    from gpushare_kernel.broker.kernels import Kernel

LONGEST_PAUSE = 600.0
"""Seconds for which its owner pauses a session at most (I3); lane mates wait no longer for that."""


def own(broker: Broker, desk: Desk, notebook: str | None) -> list[Kernel]:
    """Return the caller's own notebooks of that name or id; an administrator may mean all of a user, or somebody else's.

    None is the caller itself.

    Raises
    ------
    NotYours
        Where there is none, with those there are.
    BadDeclaration
        Where an administrator names a user, and two are called so, or a notebook, and several people have one.
    """
    if notebook is None and desk.kernel is not None:
        return [desk.kernel]
    wanted, mine = notebook or "", broker.registry.of(desk.who)
    if broker.administers(desk.who):
        chosen = meant(broker, desk.who, wanted)
    else:
        chosen = called(mine, wanted) or called(mine, wanted.removeprefix(f"{desk.who.user}:"))
    if not chosen:
        yours = ", ".join(sorted(k.name for k in mine)) or "none"
        problem = f"you have no notebook {notebook!r} open. Yours: {yours}."
        raise NotYours(problem)
    return chosen


def pause(broker: Broker, desk: Desk, body: msg.PauseNotebook) -> msg.PausedNow:
    """Pause what the caller's notebooks run on the device; it keeps its place, its lane and its memory."""
    names, left = [], LONGEST_PAUSE
    for kernel in own(broker, desk, body.notebook):
        if desk in kernel.lines:
            problem = f"{kernel.name} is the notebook that asks for it, and would not answer any more. Interrupt its cell instead."
            raise BadDeclaration(problem)
        engine, session = _of(broker, kernel)
        limits = engine.device.capabilities
        if not limits.can_pause:
            problem = f"nobody can be paused on this device: {limits.why}."
            raise BadDeclaration(problem)
        if all(job.granted is None for job in session.jobs.values()):
            problem = f"{kernel.name} runs nothing that could be paused: no cell of it has the device now."
            raise BadDeclaration(problem)
        until = engine.now + LONGEST_PAUSE
        engine.feed(
            ev.Suspended(at=engine.now, session=session.id, until=until, reason=PauseReason.OWNER)
        )
        if session.suspended_until is not None and session.suspended_for is not PauseReason.OWNER:
            problem = f"{kernel.name} is paused already: it holds more than it may, and others wait for that. %gpushare release there helps."
            raise BadDeclaration(problem)
        if session.suspended_until is None:
            problem = f"{kernel.name} cannot be paused at the moment: a signal is on its way to it, or it is profiled. Try again in a few seconds."
            raise BadDeclaration(problem)
        names.append(kernel.name)
        left = min(left, session.suspended_until - engine.now)
        note_others(broker, desk, "pause", [kernel])
    return msg.PausedNow(tuple(names), left)


def resume(broker: Broker, desk: Desk, body: msg.ResumeNotebook) -> msg.ResumedNow:
    """Let the caller's notebooks run again that their owner had paused."""
    names = []
    for kernel in own(broker, desk, body.notebook):
        engine, session = _of(broker, kernel)
        if session.suspended_until is None or session.suspended_for is not PauseReason.OWNER:
            continue
        engine.feed(ev.SuspensionEnded(at=engine.now, session=session.id, reason=PauseReason.OWNER))
        names.append(kernel.name)
        note_others(broker, desk, "resume", [kernel])
    return msg.ResumedNow(tuple(names))


def park(broker: Broker, desk: Desk, body: msg.ParkNotebook) -> msg.ParkedNow:
    """Set the memory of the caller's notebooks aside: now where they are idle, else as soon as they are.

    Of several those whose memory can be set aside.
    """
    kernels, why = [], ""
    for kernel in own(broker, desk, body.notebook):
        engine, session = _of(broker, kernel)
        problem = engine.scheduler.why_not_parked(session)
        if problem:
            why = why or parking_texts.cannot_park_text(kernel.name, problem)
        else:
            kernels.append(kernel)
    if not kernels:
        raise BadDeclaration(why)
    note_others(broker, desk, "park", kernels)
    size, after_cell = 0, False
    for kernel in kernels:
        engine, session = _of(broker, kernel)
        size += session.charged + session.context
        after_cell = after_cell or bool(session.jobs) or session.cell_open
        engine.feed(ev.ParkWanted(at=engine.now, session=session.id))
    return msg.ParkedNow(tuple(kernel.name for kernel in kernels), size, after_cell)


def unpark(broker: Broker, desk: Desk, body: msg.UnparkNotebook) -> msg.UnparkedNow:
    """Have what is set aside of the caller's notebooks put back as soon as there is room."""
    names, waits = [], False
    for kernel in own(broker, desk, body.notebook):
        engine, session = _of(broker, kernel)
        engine.feed(ev.RestoreWanted(at=engine.now, session=session.id))
        note_others(broker, desk, "unpark", [kernel])
        if session.parked is None and session.moving is None:
            continue  # where its owner wanted it parked at the cell's end, that is off
        names.append(kernel.name)
        waits = waits or session.moving is not Moving.BACK
    return msg.UnparkedNow(tuple(names), waits)


def ask(broker: Broker, desk: Desk, body: msg.AskHolder) -> msg.AskedNow:
    """Ask an idle notebook of somebody else's to release what it holds, for the caller's own that wait there."""
    kernel = broker.registry.get(body.session)
    if kernel is None:
        problem = "this notebook is not there any more: what it held is free, or about to be."
        raise NotYours(problem)
    if kernel.person == desk.who:
        problem = f"{kernel.name} is your own: release it yourself."
        raise BadDeclaration(problem)
    engine, session = _of(broker, kernel)
    core = engine.scheduler
    waits = any(
        (waiter := broker.registry.get(job.session)) is not None and waiter.person == desk.who
        for job in core.book.queue
    )
    if not waits:
        problem = "none of your notebooks waits for memory there: nobody is asked for nothing."
        raise BadDeclaration(problem)
    if session.jobs or session.cell_open:
        problem = "this notebook is running a cell: what it holds is in use."
        raise BadDeclaration(problem)
    if not session.charged or not kernel.lines:
        problem = "this notebook holds nothing that it could release."
        raise BadDeclaration(problem)
    again = broker.idle_holders.ask(session.id, idle_since=session.idle_since, at=engine.now)
    if again <= 0:
        tell_holder(engine, kernel, session, people_waiting(core, but=session, own=False))
    return msg.AskedNow(max(0.0, again))


def tell_holder(engine: Engine, kernel: Kernel, session: Session, people: int) -> None:
    """Tell an idle notebook how many wait for what it holds, and have it give back what it keeps unused."""
    began = time.localtime(time.time() - (engine.now - session.idle_since))
    text = texts.asked_to_release_text(people, session.charged, time.strftime("%H:%M", began))
    # Its budget asks for nothing: what its frameworks keep unused is in what it is charged.
    kernel.notify(msg.Trim())
    kernel.notify(msg.Announce(text))


def _of(broker: Broker, kernel: Kernel) -> tuple[Engine, Session]:
    engine = broker.engine_of(SessionId(kernel.id))
    return engine, engine.scheduler.sessions[kernel.id]
