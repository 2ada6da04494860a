"""The broker: kernels, one device's engine, the accounts on disk, and what people may see. One loop, no thread of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence

from gpushare_kernel import procfs
from gpushare_kernel.broker.desk import Desk
from gpushare_kernel.broker.engine import Engine
from gpushare_kernel.broker.kernels import Kernel, Registry, user_name
from gpushare_kernel.broker.ledger import Ledger, SessionRow
from gpushare_kernel.broker.views import named, snapshot
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.errors import BadToken, UserError
from gpushare_kernel.core.records import Job, User
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.values import JobId, LaneId, Presence, ProcessKey, UserId, Wait
from gpushare_kernel.devices.base import Device
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
_logger = logging.getLogger(__name__)


class Broker:
    """What all connections share."""

    def __init__(self, config: Config, device: Device, ledger: Ledger, *, system: bool) -> None:
        self.pid = os.getpid()
        self.system = system
        self.registry = Registry()
        self.scheduler = Scheduler(config)
        self.ledger = ledger
        self.engine = Engine(self.scheduler, device, self.registry, self)
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
        self.engine.sample()
        return snapshot(self, uid)

    def stop(self, reason: str, *, for_good: bool = True) -> None:
        """Go away on purpose; `for_good`, somebody wants it so, and open notebooks must not start another."""
        self.stop_reason, self.stopped_for_good = reason, for_good
        self.stopping.set()

    # --- kernels ---------------------------------------------------------------------------------------------

    def opened(self, kernel: Kernel) -> None:
        """A provisioner is about to start `kernel`."""
        self.engine.feed(
            ev.SessionOpened(
                at=self.engine.now, session=kernel.id, user=kernel.user, weight=kernel.weight
            )
        )
        self._await_process(kernel)

    def moved(self, kernel: Kernel, uid: int | None) -> None:
        """`kernel` was opened by root for a process of `uid`: that user owns it."""
        if uid in (None, kernel.uid) or kernel.key is not None:
            return
        self.engine.feed(ev.SessionClosed(at=self.engine.now, session=kernel.id))
        kernel.uid, kernel.user = uid, user_name(uid)
        self.opened(kernel)

    def bind(self, kernel: Kernel, pidfd: int, pid: int) -> None:
        """`kernel`'s process is known."""
        self.registry.bind(kernel, pidfd, pid)
        self._loop.add_reader(kernel.pidfd, self._process_gone, kernel, kernel.pidfd)
        self.save(kernel)
        key = kernel.key
        self._later(BARE_AFTER, lambda: self._still_bare(kernel) if kernel.key == key else None)

    def attached(self, kernel: Kernel) -> None:
        """The kernel's own client is there."""
        session = self.scheduler.sessions[kernel.id]
        if session.presence is Presence.ATTACHED:
            return
        self._measure_context(kernel)
        self._ready(kernel, bare=False)

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
            session = self.scheduler.sessions[kernel.id]
            _logger.info("a session is back", extra={"session": kernel.id, "p": session.charged})
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
        self.engine.feed(ev.SessionRestarted(at=self.engine.now, session=kernel.id))
        self.registry.unbind(kernel)
        kernel.baseline = 0
        for key in survivors:
            self._follow(kernel, key)
        self._await_process(kernel)

    def close(self, kernel: Kernel) -> None:
        """The session is over."""
        if self.registry.get(kernel.id) is not kernel:
            return
        survivors = self._survivors(kernel)
        self.engine.feed(ev.SessionClosed(at=self.engine.now, session=kernel.id))
        self.ledger.session_closed(kernel.id)
        self.registry.drop(kernel)
        for key in survivors:
            self._follow(kernel, key)
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
            orphaned=True,
        )
        kernel.opened_at, kernel.opener = row.opened_at, row.opener
        kernel.saved_time = row.device_time
        self.registry.add(kernel)
        self.engine.feed(
            ev.SessionOpened(
                at=self.engine.now,
                session=kernel.id,
                user=kernel.user,
                weight=kernel.weight,
                persistent=row.persistent,
                orphaned=True,
            )
        )
        self.scheduler.sessions[kernel.id].device_time = row.device_time
        try:
            self.registry.bind(kernel, pidfd, row.process.pid)
        except BadToken:  # it has ended in this moment
            self.close(kernel)
            return
        self._loop.add_reader(kernel.pidfd, self._process_gone, kernel, kernel.pidfd)
        self._later(self.scheduler.config.orphan_grace, lambda: self._still_bare(kernel))

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
        return () if kernel.target is None else self.engine.device.survivors(kernel.target)

    def _follow(self, kernel: Kernel, key: ProcessKey) -> None:
        """A child outlived its kernel: a session of its own from here on, without a client, of the same user."""
        try:
            pidfd = pidfds.open_pidfd(key.pid)
        except OSError:
            return
        name = f"{kernel.name} (left running)"
        try:
            child, _ = self.registry.open(kernel.uid, name, kernel.weight, None)
        except UserError as problem:
            os.close(pidfd)
            _logger.warning("a child outlived its kernel and is not followed: %s", problem)
            return
        self.opened(child)
        self.bind(child, pidfd, key.pid)
        self._still_bare(child)
        _logger.info("a child outlived its kernel", extra={"session": child.id, "of": kernel.id})

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
        session = self.scheduler.sessions.get(kernel.id)
        if session is None or kernel.key is None or kernel.lines:
            return
        if session.presence in {Presence.OPENED, Presence.ORPHANED}:
            kernel.orphaned = False
            self._measure_context(kernel)
            self._ready(kernel, bare=True)

    def _ready(self, kernel: Kernel, *, bare: bool) -> None:
        self.engine.feed(
            ev.SessionReady(
                at=self.engine.now, session=kernel.id, bare=bare, context=kernel.baseline
            )
        )
        self.engine.sample(kernel.id)

    def _measure_context(self, kernel: Kernel) -> None:
        if kernel.baseline == 0:
            usage = self.engine.usage(kernel, memory=True)
            kernel.baseline = usage.memory or 0 if usage is not None else 0

    def save(self, kernel: Kernel, *, urgent: bool = True) -> None:
        session = self.scheduler.sessions.get(kernel.id)
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
            ),
            urgent=urgent,
        )

    # --- jobs --------------------------------------------------------------------------------------------------

    def granted(self, grant: do.Grant) -> None:
        """The scheduler lets a job go on."""
        record = self.scheduler.jobs.get(grant.job)
        if record is not None:
            self.answer_granted(record)

    def answer_granted(self, job: Job) -> None:
        """Tell `job`'s client that it may go on."""
        desk = self.jobs.get(job.id)
        if desk is None:
            return
        waited = (job.granted or self.engine.now) - job.submitted
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
        job = self.scheduler.jobs.get(name)
        client = JobId(name.split("/", 1)[1])
        if job is None:
            return msg.Report(client, 0.0, 0.0, 0.0, 1.0, 0, persistent, 0, 0, boundaries, 0)
        session = self.scheduler.sessions[job.session]
        kernel = self.registry.get(job.session)
        usage = None if kernel is None else self.engine.usage(kernel)
        now = self.engine.now
        declared = job.need
        self.engine.feed(ev.JobEnded(at=now, job=name, persistent=persistent, usage=usage))
        ran = now - (job.granted or now)
        used = session.device_time - job.device_time_before if job.granted is not None else 0.0
        compute = self.scheduler.config.compute
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
        self.scheduler.users[user] = User(user, weight=weight, device_time=device_time)

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
        for user in self.scheduler.users.values():
            self.ledger.device_time(user.id, user.device_time)
        for kernel in self.registry:
            session = self.scheduler.sessions.get(kernel.id)
            if session is not None and session.device_time - kernel.saved_time > WORTH_SAVING:
                self.save(kernel, urgent=False)

    def _note_wait(self, waited: float) -> None:
        day = _today()
        if self._waits[0] != day:
            self._waits = (day, 0.0)
        self._waits = (day, max(self._waits[1], waited))

    def _later(self, seconds: float, then: Callable[[], object]) -> None:
        self._loop.call_later(seconds, then)


def _today() -> int:
    return int(time.time() // 86400)
