"""Questions a client asks in passing: what would a submit do, give back what is not used."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gpushare_kernel.broker.administration import note_others
from gpushare_kernel.broker.controls import own
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import BadDeclaration, Refused
from gpushare_kernel.core.reasons import why
from gpushare_kernel.core.records import Job
from gpushare_kernel.core.values import JobId, JobState
from gpushare_kernel.wire import messages as msg

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker
    from gpushare_kernel.broker.desk import Desk
    from gpushare_kernel.broker.kernels import Kernel


def dry_run(broker: Broker, kernel: Kernel, body: msg.Submit) -> msg.DryRun:
    """Say what a submit would do now, without doing it."""
    core = broker.engine_of(kernel.id).scheduler
    session, book = core.sessions[kernel.id], core.book
    asked = broker.ask(kernel, body)
    body = asked.submit
    need = book.need(session, size=body.size, persistent=body.persistent, ephemeral=body.ephemeral)
    refusal = book.never_fits(session, need, body.size)
    if refusal is not None:
        raise Refused(refusal)
    job = Job(
        JobId("dry"),
        kernel.id,
        sys.maxsize,  # it came last
        need,
        body.size,
        broker.now,
        time=body.time,
        part=book.part(session, need),
        state=JobState.QUEUED,
    )
    room = not len(book.queue) and book.find(session, need, private=False)
    fits = bool(room) and core.why_held(job) is None
    wait = None if fits else broker.named(why(core, job), kernel.person)
    return msg.DryRun(
        fits, need.persistent, need.ephemeral, max(0, book.table.free), wait, asked.runs
    )


def release(broker: Broker, desk: Desk, body: msg.Release) -> msg.ReleasedNow:
    """Give back what the caller's sessions declared and do not use, and have them trim who have not yet."""
    chosen = _chosen(broker, desk, body.notebook)
    freed = left = 0
    asked = []
    for kernel in chosen:
        engine = broker.engine_of(kernel.id)
        session = engine.scheduler.sessions[kernel.id]
        before = session.charged
        usage = engine.usage(kernel, memory=True)
        held = usage.memory if usage else None
        # The driver's list is read from time to time: what the caller gave back just now is in it still.
        given = body.given if desk in kernel.lines else None
        if held is not None:
            held = max(0, held - (given or 0))
        engine.feed(ev.Released(at=engine.now, session=kernel.id, persistent=held))
        freed += max(0, before - session.charged)
        broker.save(kernel)
        if engine.scheduler.config.divisible:
            continue  # processes of a host keep no pools
        if kernel.lines and given is None:
            kernel.notify(msg.Trim())
            asked.append(kernel.name)
        else:
            left += session.charged
    note_others(broker, desk, "release", chosen)
    return msg.ReleasedNow(freed, tuple(kernel.name for kernel in chosen), left, tuple(asked))


def _chosen(broker: Broker, desk: Desk, notebook: str | None) -> list[Kernel]:
    """Return the notebooks that can release something now: those that run no cell."""
    chosen = own(broker, desk, notebook)
    # Who asks from inside its own plain cell knows what it is doing.
    own_cell = notebook is None
    busy = [
        kernel.name
        for kernel in chosen
        if (session := broker.session(kernel)) is not None
        and any(not (own_cell and job.plain) for job in session.jobs.values())
    ]
    if busy:
        problem = f"{busy[0]} is running a cell: its memory comes back when the cell ends, or interrupt it."
        raise BadDeclaration(problem)
    return chosen
