"""What the broker keeps of its devices and their jobs, and what jobs' clients are told."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from gpushare_kernel.broker.aliases import Aliases
from gpushare_kernel.broker.engine import Engine
from gpushare_kernel.broker.ids import client_id, job_of, session_of
from gpushare_kernel.broker.kernels import Kernel, Registry
from gpushare_kernel.broker.ledger import Account, Ledger, SessionRow
from gpushare_kernel.broker.needs import Asked, Needs
from gpushare_kernel.broker.overdraft import IdleHolders
from gpushare_kernel.broker.promises import Promises, Proven
from gpushare_kernel.broker.recorder import Recorder
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.budget import budget
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.learned import Learned, Place, Run
from gpushare_kernel.core.records import Job, Session
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.values import (
    JobId,
    LaneId,
    MiB,
    SessionId,
)
from gpushare_kernel.devices.base import Device
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.realtime import RealtimePlacement, RealtimeTask

if TYPE_CHECKING:
    from gpushare_kernel.broker.desk import Desk

BUDGET_STEP = 64 * MiB
"""Changes of a budget that are smaller (bytes) are not told while nothing begins or ends."""
_logger = logging.getLogger(__name__)


class JobAnswers:
    """Engines, and the jobs they decide on: answers go out through whoever asked."""

    def __init__(
        self, devices: Sequence[tuple[Config, Device]], ledger: Ledger, *, system: bool
    ) -> None:
        self.pid = os.getpid()
        self.system = system
        self.registry = Registry()
        self.ledger = ledger
        self.needs = Needs(ledger)
        self.idle_holders = IdleHolders()
        #: One scheduler state a device: nobody else gives that device out.
        self.engines = {
            device.inventory.id: Engine(Scheduler(config), device, self.registry, self)
            for config, device in devices
        }
        #: What real-time jobs were promised, device by device.
        self.promises = {
            name: Promises(0 if engine.scheduler.config.divisible else 1)
            for name, engine in self.engines.items()
        }
        self._placed: dict[SessionId, Engine] = {}
        self.jobs: dict[JobId, Desk] = {}
        self.job_names: dict[JobId, str] = {}
        #: As what they were submitted, and what those whose process has ended since had shown.
        self.asked: dict[JobId, Asked] = {}
        self._shown: dict[JobId, Run] = {}
        self.boundaries: dict[JobId, int] = {}
        self._peaks: dict[JobId, int] = {}
        self.observers: set[Desk] = set()
        self.aliases = Aliases()
        self.recorder: Recorder | None = None
        #: Requests that were answered with an error, by its name.
        self.refusals: Counter[str] = Counter()
        self.stopping = asyncio.Event()
        self.stop_reason = ""
        self.stopped_for_good = False
        self._loop = asyncio.get_running_loop()
        self._started = time.monotonic()
        self._touched = self._loop.time()
        self._waits: tuple[int, float] = (0, 0.0)
        self._sequence = 0

    # --- devices --------------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The first device's engine."""
        return next(iter(self.engines.values()))

    @property
    def scheduler(self) -> Scheduler:
        """The first device's scheduler."""
        return self.engine.scheduler

    @property
    def now(self) -> float:
        """The time that goes into events."""
        return self._loop.time()

    def engine_of(self, session: SessionId) -> Engine:
        """Return the engine of the device that `session` was placed on."""
        return self._placed.get(session) or self.engine

    def session(self, kernel: Kernel) -> Session | None:
        """Return what the scheduler keeps about `kernel`."""
        return self.engine_of(kernel.id).scheduler.sessions.get(kernel.id)

    def job(self, job: JobId) -> Job | None:
        """Return what the scheduler keeps about `job`."""
        return self.engine_of(session_of(job)).scheduler.jobs.get(job)

    def place(self, kernel: Kernel, frameworks: tuple[str, ...] = ()) -> Place:
        """Return where `kernel`'s jobs run, as what is learned of them depends on it."""
        inventory = self.engine_of(kernel.id).device.inventory
        return Place(inventory.kind, inventory.name, frameworks)

    def sessions(self) -> Iterator[Session]:
        """Every session, device by device."""
        for engine in self.engines.values():
            yield from engine.scheduler.sessions.values()

    def touch(self) -> None:
        """Somebody came in."""
        self._touched = self._loop.time()

    def save(self, kernel: Kernel, *, urgent: bool = True, account: bool = False) -> None:
        """Keep a session as it is now; its `account` where that is asked for, and where no clock tells later what is missing in it."""
        session = self.session(kernel)
        if kernel.key is None or session is None:
            return
        if account or not session.used:
            kernel.saved = Account(session.device_time, session.used or 0.0, session.sampled_at)
        self.ledger.session_saved(
            SessionRow(
                id=kernel.id,
                user=kernel.user,
                uid=kernel.uid,
                name=kernel.name,
                process=kernel.key,
                token_hash=kernel.token_hash,
                weight=kernel.weight,
                persistent=session.declared,
                opened_at=kernel.opened_at,
                account=kernel.saved,
                opener=kernel.opener,
                device=self.engine_of(kernel.id).device.inventory.id,
                background=kernel.background,
                needs=kernel.needs,
                baseline=kernel.baseline,
                hub=kernel.hub,
            ),
            urgent=urgent,
        )

    # --- jobs --------------------------------------------------------------------------------------------------

    def granted(self, grant: do.Grant) -> None:
        """The scheduler lets a job go on."""
        record = self.job(grant.job)
        if record is not None:
            self.answer_granted(record)

    def answer_granted(self, job: Job) -> None:
        """Tell `job`'s client that it may go on."""
        desk = self.jobs.get(job.id)
        if desk is None:
            return
        waited = (job.granted or self.now) - job.submitted
        kernel = self.registry.get(job.session)
        if job.turns == 1:
            self._note_wait(waited)
            if kernel is not None:
                self.save(kernel)
        if kernel is not None:
            self.tell_budget(kernel)  # first: the cap is there before the job's first line
        name = client_id(job.id)
        lane, need = job.lane or LaneId(0), job.need
        asked = self.asked.get(job.id)
        runs = 0 if asked is None else asked.runs
        placement = self.promises_of(job.id).placements.get(job.id)
        desk.granted(
            job.id,
            lambda slot: msg.Granted(
                name, lane, slot, waited, need.persistent, need.ephemeral, runs, placement
            ),
        )

    def queued(self, job: JobId) -> None:
        """The scheduler lets a job wait."""
        desk = self.jobs.get(job)
        if desk is not None:
            desk.tell_wait(job)

    def refused(self, job: JobId, message: str) -> None:
        """The scheduler will never let a job run."""
        desk = self.jobs.get(job)
        if desk is not None:
            desk.refused(job, msg.Failure("Refused", message))

    def dropped(self, job: JobId) -> None:
        """A job is over before it was granted."""
        desk = self.jobs.get(job)
        if desk is not None:
            desk.dropped(job)

    def returned(self, session: SessionId, lost: str) -> None:  # noqa: ARG002
        """What was set aside of a session is back, or lost: what it may hold now is told anew."""
        kernel = self.registry.get(session)
        if kernel is not None:
            self.tell_budget(kernel)

    def budget(self, kernel: Kernel) -> int | None:
        """Return what `kernel`'s session may hold of its device now."""
        session = self.session(kernel)
        return None if session is None else budget(self.engine_of(kernel.id).scheduler, session)

    def tell_budgets(self) -> None:
        """Tell every client what it may hold now, where that has changed by more than a little."""
        for kernel in self.registry:
            self.tell_budget(kernel, least=BUDGET_STEP)

    def tell_budget(self, kernel: Kernel, *, least: int = 0) -> None:
        """Tell `kernel`'s client what it may hold now, where that differs by more than `least` bytes from what it was told."""
        core, session = self.engine_of(kernel.id).scheduler, self.session(kernel)
        away = session is not None and (session.parked or session.moving) is not None
        if core.config.divisible or not kernel.lines or away:
            return
        limit = self.budget(kernel)
        if _differ(limit, kernel.told_budget, least):
            kernel.told_budget = limit
            kernel.notify(msg.Budget(limit))

    def promises_of(self, job: JobId) -> Promises:
        """Return what is promised on the device of `job`."""
        return self.promises[self.engine_of(session_of(job)).device.inventory.id]

    def prove(
        self,
        job: JobId,
        task: RealtimeTask,
        then: Callable[[Proven], None],
        keeps: RealtimePlacement | None = None,
    ) -> None:
        """Prove that a real-time job keeps its deadline, whatever runs beside it, and call `then` with what came of it."""
        core = self.engine_of(session_of(job)).scheduler
        self.promises_of(job).begin(job, task, core.longest_drain(), then, keeps)

    def proves(self, job: JobId) -> bool:
        """Tell whether the deadline of `job` is being proven."""
        return self.promises_of(job).proves(job)

    def forget(self, job: JobId) -> None:
        """Nobody waits for `job` any more."""
        self.promises_of(job).forget(job)
        self.jobs.pop(job, None)
        self.job_names.pop(job, None)
        self.boundaries.pop(job, None)
        self.asked.pop(job, None)
        self._shown.pop(job, None)
        self._peaks.pop(job, None)

    def note_peak(self, job: JobId, peak: int) -> None:
        """The client saw its session hold `peak` bytes."""
        self._peaks[job] = max(peak, self._peaks.get(job, 0))

    def ask(self, kernel: Kernel, body: msg.Submit) -> Asked:
        """Return `body` with what it does not declare filled in from earlier runs of its code."""
        core = self.engine_of(kernel.id).scheduler
        place = self.place(kernel, body.frameworks)
        return self.needs.ask(body, kernel.user, place, core.sessions[kernel.id], core.book)

    def ends(self, kernel: Kernel) -> None:
        """`kernel`'s process has: keep what its jobs had shown, for whoever says how it ended."""
        session = self.session(kernel)
        for name, job in {} if session is None else session.jobs.items():
            if session is not None and name in self.asked and job.granted is not None:
                self._shown[name] = Run(0, 0, job.served(session, self.now))

    def learn(self, name: JobId, end: msg.End) -> Learned | None:
        """`name` is about to be over: keep what it has shown, where that says something of its code's next run, and return what is known."""
        asked, job, kernel = (
            self.asked.get(name),
            self.job(name),
            self.registry.get(session_of(name)),
        )
        if asked is None or kernel is None or end.failed:
            return None
        run = self._shown.get(name) if job is None else self._run(job, end)
        if run is None:
            return None
        return self.needs.learn(
            asked.declared, kernel.user, self.place(kernel, end.frameworks), run
        )

    def most(self, kernel: Kernel) -> int:
        """Return the most bytes that a job of `kernel` can declare."""
        core = self.engine_of(kernel.id).scheduler
        session, book = core.sessions[kernel.id], core.book
        cap = session.user.cap_ever
        most = book.whole if cap is None else min(book.whole, cap)
        return max(0, most - (session.context or book.reserve))

    def _run(self, job: Job, end: msg.End) -> Run | None:
        """Return what `job` has shown; None where it never began, or others of its session ran beside it: nobody tells them apart."""
        session = self.engine_of(job.session).scheduler.sessions[job.session]
        if job.granted is None or len(session.jobs) > 1:
            return None
        boundaries = max(end.boundaries, self.boundaries.get(job.id, 0))
        served = job.served(session, self.now)
        return Run(
            end.persistent,
            max(0, max(end.peak, self._peaks.get(job.id, 0)) - end.persistent),
            served,
            served / boundaries if boundaries else 0.0,
        )

    def end(
        self, name: JobId, *, persistent: int, boundaries: int, known: Learned | None = None
    ) -> msg.Report:
        """`name` is over; say what became of it, and what its code's next run is taken to need by what is `known`."""
        job = self.job(name)
        client = client_id(name)
        if job is None:
            return msg.Report(client, 0.0, 0.0, 0.0, 1.0, 0, persistent, 0, 0, boundaries, 0)
        engine = self.engine_of(job.session)
        session = engine.scheduler.sessions[job.session]
        kernel = self.registry.get(job.session)
        usage = None if kernel is None else engine.usage(kernel)
        now = self.now
        declared = job.need
        served = (
            job.served(session, now) if known is None else known.last.time
        )  # as `needs` shows it
        engine.feed(ev.JobEnded(at=now, job=name, persistent=persistent, usage=usage))
        ran = now - (job.granted or now)
        used = session.device_time - job.device_time_before if job.granted is not None else 0.0
        compute = engine.scheduler.config.compute
        speed = min(session.demand or compute, compute) * ran
        if kernel is not None:
            self.save(kernel)
            self.tell_budget(kernel)
        ephemeral = max(0, self._peaks.get(name, persistent) - persistent)
        known = known or Learned(1, (Run(persistent, ephemeral, ran),))
        return msg.Report(
            job=client,
            waited=(job.granted or now) - job.submitted,
            ran=ran,
            device_time=used,
            share=min(1.0, used / speed) if speed > 0 else 1.0,
            persistent_declared=declared.persistent,
            persistent_measured=persistent,
            ephemeral_declared=declared.ephemeral,
            ephemeral_measured=ephemeral,
            boundaries=max(boundaries, self.boundaries.get(name, 0)),
            turns=job.turns,
            persistent_advised=known.persistent,
            ephemeral_advised=known.ephemeral,
            most=0 if kernel is None else self.most(kernel),
            served=served,
        )

    def _take_back(self, kernel: Kernel, held: tuple[msg.HeldJob, ...]) -> None:
        """Jobs of a broken line whose client is here again are this client's now; the old desk must not end them."""
        names = {job_of(kernel.id, one.job) for one in held}
        for name in names:
            former = self.jobs.get(name)
            if former is not None:
                former.jobs = {k: v for k, v in former.jobs.items() if v != name}

    @property
    def longest_wait(self) -> float | None:
        """The longest wait for memory or a lane that ended today, in seconds."""
        return self._waits[1] if self._waits[0] == _today() and self._waits[1] > 0 else None

    def _note_wait(self, waited: float) -> None:
        day = _today()
        if self._waits[0] != day:
            self._waits = (day, 0.0)
        self._waits = (day, max(self._waits[1], waited))

    def _later(self, seconds: float, then: Callable[[], object]) -> None:
        self._loop.call_later(seconds, then)


def _differ(limit: int | None, told: int | None, least: int) -> bool:
    """Whether a budget is worth a word; where little is none (`least`), caps that move by a twentieth are none either."""
    if limit is None or told is None or told < 0:
        return limit != told
    return abs(limit - told) > (max(least, told // 20) if least else 0)


def _today() -> int:
    return int(time.time() // 86400)
