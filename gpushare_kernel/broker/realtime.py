"""What a notebook with deadlines says beside its jobs: its grid, its best effort, and what a broker before us had promised it."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import TYPE_CHECKING

from gpushare_kernel.broker.ids import client_id, session_of
from gpushare_kernel.broker.kernels import Kernel, clean_name
from gpushare_kernel.broker.promises import Proven, check_chains, check_task
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import BadFrame
from gpushare_kernel.core.values import JobId
from gpushare_kernel.wire import limit_texts
from gpushare_kernel.wire import messages as msg

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker
    from gpushare_kernel.broker.desk import Desk
    from gpushare_kernel.broker.engine import Engine


def grid(engine: Engine, job: JobId, first: float | None) -> None:
    """Take in when a job is released."""
    if first is not None and not isfinite(first):
        problem = f"a grid must begin at a time in seconds, and {first} is none."
        raise BadFrame(problem)
    engine.feed(ev.RealtimeGrid(at=engine.now, job=job, first=first))


def beside(
    broker: Broker, kernel: Kernel, body: msg.RealtimeBeside, reply: Callable[[msg.Reply], None]
) -> None:
    """Prove the deadlines of a notebook with one more best-effort pipeline beside them, and tell it."""
    check_chains(*(chain.layers for chain in body.chains))
    engine = broker.engine_of(kernel.id)
    promises = broker.promises[engine.device.inventory.id]

    def then(proven: Proven) -> None:
        if proven.refused:
            reply(msg.Failure("Refused", proven.refused))
            return
        engine.feed(ev.Promised(at=engine.now, promises=proven.promises))
        mine = {
            client_id(job): placement
            for job, placement in promises.placements.items()
            if session_of(job) == kernel.id
        }
        reply(msg.RealtimePlaced(mine))

    promises.begin_beside(kernel.id, body.chains, engine.scheduler.longest_drain(), then)


def kept(broker: Broker, desk: Desk, job: JobId, body: msg.RealtimeKept) -> None:
    """A broker before us promised it: prove it again, where it runs. Until then it takes turns like everybody else."""
    check_task(body.task)
    engine = broker.engine_of(session_of(job))

    def then(proven: Proven) -> None:
        if job not in engine.scheduler.jobs:
            broker.promises_of(job).forget(job)
        elif proven.refused:
            name = clean_name(body.task.name)
            desk.notify(msg.Announce(limit_texts.not_promised_again_text(name, proven.refused)))
        else:
            engine.feed(ev.Promised(at=engine.now, promises=proven.promises))
            grid(engine, job, body.first)

    record = engine.scheduler.jobs.get(job)
    if record is not None and record.promise is None and not broker.promises_of(job).proves(job):
        broker.prove(job, body.task, then, body.placement)
