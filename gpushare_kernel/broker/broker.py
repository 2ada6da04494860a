"""The broker: kernels, an engine for each device, the accounts on disk, and what people may see. One loop, no thread of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence

from gpushare_kernel import procfs
from gpushare_kernel.broker.adoption import adopted_name
from gpushare_kernel.broker.desk import Desk
from gpushare_kernel.broker.engine import Engine
from gpushare_kernel.broker.kernels import Kernel, Registry, clean_name, user_name
from gpushare_kernel.broker.ledger import Ledger, SessionRow
from gpushare_kernel.broker.placement import choose
from gpushare_kernel.broker.views import named, snapshot
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.budget import budget
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.errors import BadToken, UserError
from gpushare_kernel.core.records import Job, Session, User
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.values import (
    DeviceId,
    JobId,
    LaneId,
    MiB,
    Presence,
    ProcessKey,
    SessionId,
    UserId,
    Wait,
)
from gpushare_kernel.devices.base import Device, Stranger
from gpushare_kernel.transport import pidfds
from gpushare_kernel.transport.server import Connection
from gpushare_kernel.transport.words import WordPage
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.snapshot import Snapshot

BARE_AFTER = 10.0
"""A kernel whose client has not come by then (seconds after its bind) has none."""
GONE_AFTER = 60.0
"""A session without a process is closed after this long, or as soon as its opener is gone."""
LEFT_AFTER = 5.0
"""A client whose line broke may come back within this time; then its jobs are over."""
WORTH_SAVING = 0.1
"""Device seconds of one session that a broker's sudden end may lose, beside those of the last second."""
BUDGET_STEP = 64 * MiB
"""Changes of a budget that are smaller (bytes) are not told."""
_logger = logging.getLogger(__name__)


class Broker:
    """What all connections share."""

    def __init__(
        self, devices: Sequence[tuple[Config, Device]], ledger: Ledger, *, system: bool
    ) -> None:
        self.pid = os.getpid()
        self.system = system
        self.registry = Registry()
        self.ledger = ledger
        #: One scheduler state a device: nobody else gives that device out.
        self.engines = {
            device.inventory.id: Engine(Scheduler(config), device, self.registry, self)
            for config, device in devices
        }
        self._placed: dict[SessionId, Engine] = {}
        self.jobs: dict[JobId, Desk] = {}
        self.job_names: dict[JobId, str] = {}
        self.boundaries: dict[JobId, int] = {}
        self._peaks: dict[JobId, int] = {}
        self.observers: set[Desk] = set()
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

    def sessions(self) -> Iterator[Session]:
        """Every session, device by device."""
        for engine in self.engines.values():
            yield from engine.scheduler.sessions.values()

    # --- what others ask ------------------------------------------------------------------------------------

    @property
    def uptime(self) -> float:
        """Seconds since the broker started."""
        return time.monotonic() - self._started

    @property
    def longest_wait(self) -> float | None:
        """The longest wait for memory or a lane that ended today, in seconds."""
        return self._waits[1] if self._waits[0] == _today() and self._waits[1] > 0 else None

    @property
    def idle_for(self) -> float:
        """Seconds since there was anything to be here for."""
        if len(self.registry) or self.observers:
            return 0.0
        return self._loop.time() - self._touched

    def touch(self) -> None:
        """Somebody came in."""
        self._touched = self._loop.time()

    def administers(self, uid: int) -> bool:
        """Whether `uid` may act for everybody."""
        return uid in (0, os.geteuid())

    def may_see(self, uid: int, kernel: Kernel) -> bool:
        """Whether `uid` may see names, pids and sizes of `kernel` (I9)."""
        return uid == kernel.uid or self.administers(uid)

    def may_know(self, uid: int, user: UserId) -> bool:
        """Whether `uid` may see who `user` is."""
        return self.administers(uid) or user == user_name(uid)

    def named(self, wait: Wait, uid: int) -> Wait:
        """Return `wait` in the names that `uid` may know."""
        return named(self, wait, uid)

    def snapshot(self, uid: int) -> Snapshot:
        """Return the state as `uid` may see it, sampled now."""
        for engine in self.engines.values():
            engine.sample()
        return snapshot(self, uid)

    def stop(self, reason: str, *, for_good: bool = True) -> None:
        """Go away on purpose; `for_good`, somebody wants it so, and open notebooks must not start another."""
        self.stop_reason, self.stopped_for_good = reason, for_good
        self.stopping.set()

    # --- kernels ---------------------------------------------------------------------------------------------

    def opened(self, kernel: Kernel, *, device: str = "", needs: int = 0) -> None:
        """A provisioner is about to start `kernel`: choose its device.

        Raises
        ------
        UserError
            Where there is no such device.
        """
        self._place(kernel, choose([*self.engines.values()], device, needs))
        self._await_process(kernel)

    def _place(self, kernel: Kernel, engine: Engine, *, orphan: SessionRow | None = None) -> None:
        self._placed[kernel.id] = engine
        engine.feed(
            ev.SessionOpened(
                at=self.now,
                session=kernel.id,
                user=kernel.user,
                weight=kernel.weight,
                background=kernel.background,
                persistent=0 if orphan is None else orphan.persistent,
                orphaned=orphan is not None,
            )
        )

    def moved(self, kernel: Kernel, uid: int | None) -> None:
        """`kernel` was opened by root for a process of `uid`: that user owns it."""
        if uid in (None, kernel.uid) or kernel.key is not None:
            return
        engine = self.engine_of(kernel.id)
        engine.feed(ev.SessionClosed(at=self.now, session=kernel.id))
        kernel.uid, kernel.user = uid, user_name(uid)
        self._place(kernel, engine)

    def bind(self, kernel: Kernel, pidfd: int, pid: int) -> None:
        """`kernel`'s process is known."""
        self.registry.bind(kernel, pidfd, pid)
        self._loop.add_reader(kernel.pidfd, self._process_gone, kernel, kernel.pidfd)
        self.save(kernel)
        key = kernel.key
        self._later(BARE_AFTER, lambda: self._still_bare(kernel) if kernel.key == key else None)

    def attached(self, kernel: Kernel) -> None:
        """The kernel's own client is there."""
        session = self.session(kernel)
        if session is None or session.presence is Presence.ATTACHED:
            return
        self._measure_context(kernel)
        self._ready(kernel, bare=False)

    def take_in(self, one: Stranger, engine: Engine) -> bool:
        """A process that uses a device and is in no session becomes one of its user; say whether it could."""
        try:
            pidfd = pidfds.open_pidfd(one.key.pid)
        except OSError:
            return False
        if not procfs.alive(one.key) or procfs.owner(one.key.pid) != one.uid:
            os.close(pidfd)
            return False
        return self._take_in(one.uid, adopted_name(one), 1.0, engine, pidfd, one.key) is not None

    def accompanied(self, kernel: Kernel) -> None:
        """Its starter attaches for it: it is a session without a client until one of its own comes."""
        self._still_bare(kernel)

    def take_over(
        self, kernel: Kernel, connection: Connection, body: msg.Attach, *, first: bool
    ) -> Desk:
        """Serve an attached client."""
        desk = Desk(self, connection, kernel)
        if first:
            kernel.lines.insert(0, desk)
        else:
            kernel.lines.append(desk)
        if kernel.orphaned and first:
            kernel.orphaned = False
            session = self.session(kernel)
            held = 0 if session is None else session.charged
            _logger.info("a session is back", extra={"session": kernel.id, "p": held})
        self._take_back(kernel, body.held)
        desk.adopt(body.held)
        return desk

    def observe(self, connection: Connection) -> Desk:
        """Serve a command line or a view."""
        desk = Desk(self, connection, None)
        self.observers.add(desk)
        return desk

    def left(self, desk: Desk) -> None:
        """A client's line is down. Its process may live on and come back; its jobs wait for that a little."""
        self.touch()
        self.observers.discard(desk)
        kernel = desk.kernel
        if kernel is None:
            return
        if desk in kernel.lines:
            kernel.lines.remove(desk)
        if self.registry.get(kernel.id) is not kernel or not desk.jobs:
            return
        client = procfs.process_key(desk.peer.pid)
        if desk.peer.pid and (client is None or not procfs.alive(client)):
            desk.abandon()
        else:
            self._later(LEFT_AFTER, desk.abandon)

    def emptied(self, kernel: Kernel) -> None:
        """`kernel`'s process is gone or about to be replaced: jobs end, memory is free, the session stays."""
        survivors = self._survivors(kernel)
        self.engine_of(kernel.id).feed(ev.SessionRestarted(at=self.now, session=kernel.id))
        self.registry.unbind(kernel)
        kernel.baseline, kernel.told_budget = 0, -1
        for key in survivors:
            self._follow(kernel, key)
        self._await_process(kernel)

    def close(self, kernel: Kernel) -> None:
        """The session is over."""
        if self.registry.get(kernel.id) is not kernel:
            return
        survivors = self._survivors(kernel)
        engine = self.engine_of(kernel.id)
        engine.feed(ev.SessionClosed(at=self.now, session=kernel.id))
        self.ledger.session_closed(kernel.id)
        self.registry.drop(kernel)
        for key in survivors:
            self._follow(kernel, key)
        self._placed.pop(kernel.id, None)
        self.touch()
        _logger.info("a session is closed", extra={"session": kernel.id})

    def adopt(self, row: SessionRow) -> None:
        """A session of the broker before this one, from the ledger: its process lives."""
        if row.process is None:
            return
        try:
            pidfd = pidfds.open_pidfd(row.process.pid)
        except OSError:
            return
        if not procfs.alive(row.process):
            os.close(pidfd)
            return
        kernel = Kernel(
            row.id,
            row.uid,
            row.user,
            row.name,
            row.token_hash,
            WordPage.create(),
            row.weight,
            row.background,
            orphaned=True,
        )
        kernel.opened_at, kernel.opener = row.opened_at, row.opener
        kernel.saved_time = row.device_time
        self.registry.add(kernel)
        engine = self.engines.get(DeviceId(row.device), self.engine)
        self._place(kernel, engine, orphan=row)
        engine.scheduler.sessions[kernel.id].device_time = row.device_time
        try:
            self.registry.bind(kernel, pidfd, row.process.pid)
        except BadToken:  # it has ended in this moment
            self.close(kernel)
            return
        self._loop.add_reader(kernel.pidfd, self._process_gone, kernel, kernel.pidfd)
        self._later(engine.scheduler.config.orphan_grace, lambda: self._still_bare(kernel))

    def _process_gone(self, kernel: Kernel, pidfd: int) -> None:
        """The pidfd says that the process has ended. A restart keeps the session; else it is closed."""
        self._loop.remove_reader(pidfd)
        if kernel.pidfd != pidfd:
            return
        self.emptied(kernel)
        if kernel.opener is None or not procfs.alive(kernel.opener):
            self.close(kernel)

    def _survivors(self, kernel: Kernel) -> Sequence[ProcessKey]:
        """Stop watching `kernel`'s process; return who outlived it."""
        if kernel.pidfd >= 0:
            self._loop.remove_reader(kernel.pidfd)
        if kernel.target is None:
            return ()
        return self.engine_of(kernel.id).device.survivors(kernel.target)

    def _follow(self, kernel: Kernel, key: ProcessKey) -> None:
        """A child outlived its kernel: a session of its own from here on, without a client, of the same user."""
        try:
            pidfd = pidfds.open_pidfd(key.pid)
        except OSError:
            return
        name, engine = f"{kernel.name} (left running)", self.engine_of(kernel.id)
        child = self._take_in(kernel.uid, name, kernel.weight, engine, pidfd, key)
        if child is not None:
            extra = {"session": child.id, "of": kernel.id}
            _logger.info("a child outlived its kernel", extra=extra)

    def _take_in(  # noqa: PLR0917  two callers beside it
        self, uid: int, name: str, weight: float, engine: Engine, pidfd: int, key: ProcessKey
    ) -> Kernel | None:
        """Follow a running process as a session without a client; takes over its pidfd."""
        try:
            kernel, _ = self.registry.open(uid, clean_name(name), weight, None)
        except UserError as problem:
            os.close(pidfd)
            _logger.warning("a process is not followed: %s", problem, extra={"pid": key.pid})
            return None
        self._place(kernel, engine)
        try:
            self.bind(kernel, pidfd, key.pid)
        except BadToken:  # it has ended in this moment
            self.close(kernel)
            return None
        self._still_bare(kernel)
        return kernel

    def _await_process(self, kernel: Kernel) -> None:
        """A session without a process gets one within a while, counted from now, or is closed."""
        kernel.awaited += 1
        this = kernel.awaited
        self._later(GONE_AFTER, lambda: self._still_opened(kernel, this))

    def _still_opened(self, kernel: Kernel, awaited: int) -> None:
        known = self.registry.get(kernel.id) is kernel
        if known and kernel.key is None and kernel.awaited == awaited:
            self.close(kernel)

    def _still_bare(self, kernel: Kernel) -> None:
        session = self.session(kernel)
        if session is None or kernel.key is None or kernel.lines:
            return
        if session.presence in {Presence.OPENED, Presence.ORPHANED}:
            kernel.orphaned = False
            self._measure_context(kernel)
            self._ready(kernel, bare=True)

    def _ready(self, kernel: Kernel, *, bare: bool) -> None:
        engine = self.engine_of(kernel.id)
        engine.feed(
            ev.SessionReady(at=self.now, session=kernel.id, bare=bare, context=kernel.baseline)
        )
        engine.sample(kernel.id)

    def _measure_context(self, kernel: Kernel) -> None:
        engine = self.engine_of(kernel.id)
        if kernel.baseline == 0 and engine.scheduler.config.divisible:
            usage = engine.usage(kernel, memory=True)
            kernel.baseline = usage.memory or 0 if usage is not None else 0

    def save(self, kernel: Kernel, *, urgent: bool = True) -> None:
        session = self.session(kernel)
        if kernel.key is None or session is None:
            return
        kernel.saved_time = session.device_time
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
                device_time=session.device_time,
                opener=kernel.opener,
                device=self.engine_of(kernel.id).device.inventory.id,
                background=kernel.background,
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
        if job.turns == 1:
            self._note_wait(waited)
            kernel = self.registry.get(job.session)
            if kernel is not None:
                self.save(kernel)
        name = job.id.split("/", 1)[1]
        lane, need = job.lane or LaneId(0), job.need
        desk.granted(
            job.id,
            lambda slot: msg.Granted(
                JobId(name), lane, slot, waited, need.persistent, need.ephemeral
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

    def forget(self, job: JobId) -> None:
        """Nobody waits for `job` any more."""
        self.jobs.pop(job, None)
        self.job_names.pop(job, None)
        self.boundaries.pop(job, None)
        self._peaks.pop(job, None)

    def note_peak(self, job: JobId, peak: int) -> None:
        """The client saw its session hold `peak` bytes."""
        self._peaks[job] = max(peak, self._peaks.get(job, 0))

    def end(self, name: JobId, *, persistent: int, boundaries: int) -> msg.Report:
        """`name` is over; say what became of it."""
        job = self.job(name)
        client = JobId(name.split("/", 1)[1])
        if job is None:
            return msg.Report(client, 0.0, 0.0, 0.0, 1.0, 0, persistent, 0, 0, boundaries, 0)
        engine = self.engine_of(job.session)
        session = engine.scheduler.sessions[job.session]
        kernel = self.registry.get(job.session)
        usage = None if kernel is None else engine.usage(kernel)
        now = self.now
        declared = job.need
        engine.feed(ev.JobEnded(at=now, job=name, persistent=persistent, usage=usage))
        ran = now - (job.granted or now)
        used = session.device_time - job.device_time_before if job.granted is not None else 0.0
        compute = engine.scheduler.config.compute
        speed = min(session.demand or compute, compute) * ran
        if kernel is not None:
            self.save(kernel)
        return msg.Report(
            job=client,
            waited=(job.granted or now) - job.submitted,
            ran=ran,
            device_time=used,
            share=min(1.0, used / speed) if speed > 0 else 1.0,
            persistent_declared=declared.persistent,
            persistent_measured=persistent,
            ephemeral_declared=declared.ephemeral,
            ephemeral_measured=max(0, self._peaks.get(name, persistent) - persistent),
            boundaries=max(boundaries, self.boundaries.get(name, 0)),
            turns=job.turns,
        )

    def _take_back(self, kernel: Kernel, held: tuple[msg.HeldJob, ...]) -> None:
        """Jobs of a broken line whose client is here again are this client's now; the old desk must not end them."""
        names = {JobId(f"{kernel.id}/{one.job}") for one in held}
        for name in names:
            former = self.jobs.get(name)
            if former is not None:
                former.jobs = {k: v for k, v in former.jobs.items() if v != name}

    # --- housekeeping ---------------------------------------------------------------------------------------------

    def tell_waits(self) -> None:
        """Bring every waiter's line up to date."""
        for desk in {*self.jobs.values()}:
            desk.tell_waits()

    def know_user(self, user: UserId, device_time: float, weight: float) -> None:
        """A user of whom the ledger tells."""
        for engine in self.engines.values():
            engine.scheduler.users[user] = User(user, weight=weight)
        self.scheduler.users[user].device_time = device_time  # of all devices together

    def say(self, notice: msg.BrokerNotice) -> None:
        """Send a notice to everybody."""
        for desk in [*self.observers, *(line for kernel in self.registry for line in kernel.lines)]:
            desk.notify(notice)

    def hang_up(self) -> None:
        """End every line; what was said still goes out."""
        for desk in [*self.observers, *(line for kernel in self.registry for line in kernel.lines)]:
            desk.hang_up()
        for kernel in self.registry:
            if kernel.pidfd >= 0:
                self._loop.remove_reader(kernel.pidfd)
            kernel.close()

    def save_accounts(self) -> None:
        """Write device time to the ledger."""
        for user, _, seconds in self.accounts():
            self.ledger.device_time(user, seconds)
        for kernel in self.registry:
            session = self.session(kernel)
            if session is not None and session.device_time - kernel.saved_time > WORTH_SAVING:
                self.save(kernel, urgent=False)

    def accounts(self) -> list[tuple[UserId, float, float]]:
        """Return every user's weight, and device seconds on all devices."""
        found: dict[UserId, tuple[float, float]] = {}
        for engine in self.engines.values():
            for user in engine.scheduler.users.values():
                _, seconds = found.get(user.id, (0.0, 0.0))
                found[user.id] = (user.weight, seconds + user.device_time)
        return [(user, *account) for user, account in found.items()]

    def budget(self, kernel: Kernel) -> int | None:
        """Return what `kernel`'s session may hold of its device now."""
        session = self.session(kernel)
        return None if session is None else budget(self.engine_of(kernel.id).scheduler, session)

    def tell_budgets(self) -> None:
        """Tell every client what it may hold now, where that has changed."""
        for kernel in self.registry:
            core = self.engine_of(kernel.id).scheduler
            if core.config.divisible or not kernel.lines:
                continue
            limit = self.budget(kernel)
            if _differ(limit, kernel.told_budget):
                kernel.told_budget = limit
                kernel.notify(msg.Budget(limit, len(core.book.queue)))

    def _note_wait(self, waited: float) -> None:
        day = _today()
        if self._waits[0] != day:
            self._waits = (day, 0.0)
        self._waits = (day, max(self._waits[1], waited))

    def _later(self, seconds: float, then: Callable[[], object]) -> None:
        self._loop.call_later(seconds, then)


def _differ(limit: int | None, told: int | None) -> bool:
    """Whether a budget is worth a word: caps that grow or shrink a little are not."""
    if limit is None or told is None or told < 0:
        return limit != told
    return abs(limit - told) > max(BUDGET_STEP, told // 20)


def session_of(job: JobId) -> SessionId:
    """Return the session of a job by its name: `<session>/<the client's id>`."""
    return SessionId(job.split("/", 1)[0])


def _today() -> int:
    return int(time.time() // 86400)
