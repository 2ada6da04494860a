"""The broker: kernels, an engine for each device, the accounts on disk, and what people may see. One loop; one thread, for arenas."""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict, deque
from collections.abc import Sequence

from gpushare_kernel import procfs
from gpushare_kernel.broker.arena import Arenas
from gpushare_kernel.broker.aside import Aside
from gpushare_kernel.broker.audit import Audit
from gpushare_kernel.broker.budgets import Budgets
from gpushare_kernel.broker.bundles import Bundles
from gpushare_kernel.broker.desk import Desk
from gpushare_kernel.broker.engine import Engine
from gpushare_kernel.broker.groups import Groups
from gpushare_kernel.broker.kernels import Kernel
from gpushare_kernel.broker.ledger import Ledger
from gpushare_kernel.broker.persons import Person, Persons
from gpushare_kernel.broker.processes import Processes
from gpushare_kernel.broker.recorder import Recorder
from gpushare_kernel.broker.settings import Settings
from gpushare_kernel.broker.upkeep import Upkeep
from gpushare_kernel.broker.views import brief_snapshot, named, snapshot
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.core.records import User
from gpushare_kernel.core.values import JobId, ProcessKey, SessionId, UserId, Wait
from gpushare_kernel.devices.base import Device
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.transport.server import Connection
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.snapshot import Snapshot

LEFT_AFTER = 5.0
"""A client whose line broke may come back within this time; then its jobs are over."""
WORTH_SAVING = 0.1
"""Device seconds of one session that are no reason to write. On a GPU, which has no clock of them, a broker's sudden end loses them with those of the last second."""
SAMPLED_AGAIN = 0.1
"""Seconds between two samples that somebody's look at the broker causes."""
TELLING, TELLING_A_TURN = 0.02, 0.001
"""Seconds for waiters' lines: with each call (once a second), and in one turn of the loop."""
_logger = logging.getLogger(__name__)


class Broker(Processes):
    """What all connections share."""

    def __init__(
        self,
        devices: Sequence[tuple[Config, Device]],
        ledger: Ledger,
        *,
        system: bool,
        budgets: Budgets | None = None,
        persons: Persons | None = None,
        settings: Settings | None = None,
        audit: Audit | None = None,
    ) -> None:
        super().__init__(devices, ledger, system=system)
        self.persons = persons or Persons()
        machine = Machine()
        self._sampled = -SAMPLED_AGAIN
        #: Whose lines are to be brought up to date, and how long (seconds) that may take yet.
        self._to_tell: deque[JobId] = deque()
        self._telling = 0.0
        self.bundles = Bundles(self)
        self.arenas = Arenas(self, budgets or Budgets.of(machine), machine.room)
        self.aside = Aside(self)
        self.groups = Groups(self, settings or Settings())
        self.upkeep = Upkeep(self)
        self.audit = audit or Audit(None)
        #: Why metrics are not offered that are to be; empty where they are.
        self.no_metrics = ""

    # --- what others ask ------------------------------------------------------------------------------------

    @property
    def uptime(self) -> float:
        """Seconds since the broker started."""
        return time.monotonic() - self._started

    @property
    def idle_for(self) -> float:
        """Seconds since there was anything to be here for."""
        if len(self.registry) or self.observers:
            return 0.0
        return self._loop.time() - self._touched

    def administers(self, who: Person) -> bool:
        """Whether `who` may act for everybody. Whom a hub names is one of many with that uid, unless the administrator's file names them."""
        owns = who.uid == 0 or (who.uid == os.geteuid() and not self.persons.share(who.uid))
        owner = owns and not who.hub
        # Its account is that of whoever shows no token: a file that names it would name all of them.
        nobody = not who.hub and self.persons.many(who.uid)
        return owner or (not nobody and self.groups.administers(who.user))

    def may_see(self, who: Person, kernel: Kernel) -> bool:
        """Whether `who` may see names, pids and sizes of `kernel` (I9)."""
        return who == kernel.person or self.administers(who)

    def may_know(self, who: Person, user: UserId) -> bool:
        """Whether `who` may see who `user` is."""
        return self.administers(who) or user == who.user

    def named(self, wait: Wait, who: Person) -> Wait:
        """Return `wait` in the names that `who` may know."""
        return named(self, wait, who)

    def snapshot(self, who: Person, *, brief: bool = False) -> Snapshot:
        """Return the state as `who` may see it, sampled a moment ago at most: looking must not drive the scheduler. `brief`: of its own, as it is known."""
        if brief:
            return brief_snapshot(self, who)
        if self.now - self._sampled >= SAMPLED_AGAIN:
            self._sampled = self.now
            for engine in self.engines.values():
                engine.sample()
        return snapshot(self, who)

    def stop(self, reason: str, *, for_good: bool = True) -> None:
        """Go away on purpose; `for_good`, somebody wants it so, and open notebooks must not start another."""
        self.stop_reason, self.stopped_for_good = reason, for_good
        self.stopping.set()

    def queued(self, job: JobId) -> None:
        """A job waits; where that is inside the driver, its client does not know, and its cell is told."""
        record = self.job(job)
        if record is not None and record.in_driver:
            self.aside.asked(record.session)
        super().queued(job)

    def returned(self, session: SessionId, lost: str) -> None:
        """What was set aside of a session is back, or lost."""
        super().returned(session, lost)
        self.aside.returned(session, lost)

    # --- lines -----------------------------------------------------------------------------------------------

    def take_over(
        self,
        kernel: Kernel,
        connection: Connection,
        body: msg.Attach,
        *,
        first: bool,
        inside: bool = True,
        version: int = msg.VERSION,
    ) -> Desk:
        """Serve an attached client, in the version it speaks; `first` is the kernel's own, one that is not `inside` a command's starter."""
        desk = Desk(self, connection, kernel.person, kernel, version)
        if first:
            kernel.aside = body.aside
            kernel.lines.insert(0, desk)
            self.upkeep.greet(kernel)
        else:
            kernel.lines.append(desk)
        back = kernel.orphaned and first
        if back:
            kernel.orphaned = False
            session = self.session(kernel)
            held = 0 if session is None else session.charged
            _logger.info("a session is back", extra={"session": kernel.id, "p": held})
        if kernel.remark and (first or not inside):
            desk.notify(msg.Announce(kernel.remark))
            kernel.remark = ""
        self._take_back(kernel, body.held)
        try:
            desk.adopt(body.held, back=back)
        except GpushareError:
            self.left(desk)  # the connection ends here, and nobody will say so
            raise
        if back:
            self.look(kernel)  # with its jobs confirmed: what their lanes hold is not what it keeps
            self._nobody_missing(self.engine_of(kernel.id))
        if first and body.aside:
            engine = self.engine_of(kernel.id)
            engine.feed(ev.FoundAside(at=engine.now, session=kernel.id, size=body.aside))
        return desk

    def observe(self, connection: Connection, who: Person) -> Desk:
        """Serve a command line or a view."""
        desk = Desk(self, connection, who)
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
        if desk.peer.pid and _has_ended(desk.peer.pid):
            desk.abandon()
        else:
            self._later(LEFT_AFTER, desk.abandon)

    # --- housekeeping ---------------------------------------------------------------------------------------------

    def tell_waits(self) -> None:
        """Bring waiters' lines up to date, some in each turn of the loop; of a queue that is long, the rest with the next call.

        Why a job waits takes as long to find out as the queue is long, and turns go on meanwhile.
        """
        going_on, self._telling = self._telling > 0.0, TELLING
        if not self._to_tell:
            self._to_tell.extend(self.jobs)
        if not going_on:
            self._tell_some()

    def _tell_some(self) -> None:
        began = time.thread_time()
        spent = 0.0
        try:
            while self._to_tell and spent < TELLING_A_TURN:
                job = self._to_tell.popleft()
                desk = self.jobs.get(job)
                if desk is not None:
                    desk.tell_wait(job)
                spent = time.thread_time() - began
        finally:
            self._telling = max(0.0, self._telling - spent) if self._to_tell else 0.0
            if self._telling:
                self._loop.call_soon(self._tell_some)

    def know_user(self, user: UserId, device_time: float, weight: float) -> None:
        """A user of whom the ledger tells."""
        for engine in self.engines.values():
            engine.scheduler.users[user] = User(user, weight=weight)
        self.scheduler.users[user].device_time = device_time  # of all devices together

    def record(self, recorder: Recorder) -> None:
        """Have every event from now on written down."""
        self.recorder = recorder
        for device, engine in self.engines.items():
            recorder.begin(device, engine.scheduler)
            engine.recorder = recorder

    def say(self, notice: msg.BrokerNotice) -> None:
        """Send a notice to everybody."""
        for desk in [*self.observers, *(line for kernel in self.registry for line in kernel.lines)]:
            desk.notify(notice)

    def take_in_holder(
        self, owner: Person, name: str, engine: Engine, pidfd: int, key: ProcessKey
    ) -> Kernel | None:
        """A holder of pages becomes a session of its user, without a client; takes over its pidfd."""
        kernel = self._take_in(owner, name, 1.0, engine, pidfd, key)
        if kernel is not None:
            kernel.keeps_pages = True
        return kernel

    async def finish(self) -> None:
        """Let bundles and arenas go, give up what is being proven, and let everybody run again."""
        self.bundles.close()
        await self.arenas.close()
        self.aside.close()
        for promises in self.promises.values():
            await promises.close()
        for engine in self.engines.values():
            await engine.close()

    def hang_up(self) -> None:
        """End every line; what was said still goes out."""
        for desk in [*self.observers, *(line for kernel in self.registry for line in kernel.lines)]:
            desk.hang_up()
        for kernel in self.registry:
            self.unwatch(kernel)
            kernel.close()

    def save_accounts(self) -> None:
        """Write device time to the ledger: of a user, what is in the rows of its sessions; the rest is charged to both at once, by the clock."""
        rest: dict[UserId, float] = defaultdict(float)
        for kernel in self.registry:
            session = self.session(kernel)
            if session is None or kernel.key is None:
                continue
            behind = session.device_time - kernel.saved.device_time
            if behind > WORTH_SAVING or (session.used and not kernel.saved.clock):
                self.save(kernel, urgent=False, account=True)
            elif kernel.saved.clock:
                rest[kernel.user] += behind
        for user, _, seconds in self.accounts():
            self.ledger.device_time(user, seconds - rest[user])

    def accounts(self) -> list[tuple[UserId, float, float]]:
        """Return every user's weight, and device seconds on all devices."""
        found: dict[UserId, tuple[float, float]] = {}
        for engine in self.engines.values():
            for user in engine.scheduler.users.values():
                _, seconds = found.get(user.id, (0.0, 0.0))
                found[user.id] = (user.weight, seconds + user.device_time)
        return [(user, *account) for user, account in found.items()]


def _has_ended(pid: int) -> bool:
    """Whether a process is known to be gone; where that cannot be read (no descriptor is left), it may come back."""
    try:
        key = procfs.process_key(pid)
        return key is None or not procfs.alive(key)
    except OSError:
        return False
