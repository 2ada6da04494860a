"""Which processes are sessions: opened, bound, taken in, outlived, closed. Theirs is the life; what they run is `jobs`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial

from gpushare_kernel import procfs
from gpushare_kernel.broker.adoption import adopted_name
from gpushare_kernel.broker.engine import Engine
from gpushare_kernel.broker.groups import Groups
from gpushare_kernel.broker.jobs import JobAnswers
from gpushare_kernel.broker.kernels import Kernel, clean_name
from gpushare_kernel.broker.ledger import Account, SessionRow
from gpushare_kernel.broker.persons import Person
from gpushare_kernel.broker.placement import choose
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import BadToken, UserError
from gpushare_kernel.core.values import (
    DeviceId,
    Presence,
    ProcessKey,
    SessionId,
)
from gpushare_kernel.devices.base import Stranger, Target
from gpushare_kernel.transport import pidfds
from gpushare_kernel.transport.words import WordPage
from gpushare_kernel.wire.messages import Again

BARE_AFTER = 10.0
"""A kernel whose client has not come by then (seconds after its bind) has none."""
GONE_AFTER = 60.0
"""A session without a process is closed after this long, or as soon as its opener is gone."""
_logger = logging.getLogger(__name__)


class Processes(JobAnswers):
    """The processes behind sessions."""

    #: What an administrator allows; made with the broker.
    groups: Groups
    #: Whether a command of the broker before is among them.
    _commands_here = False

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

    def _place(
        self,
        kernel: Kernel,
        engine: Engine,
        *,
        orphan: SessionRow | None = None,
        process: ProcessKey | None = None,
    ) -> None:
        """Open its session on a device; a `process` that it has already may be parked there."""
        self._placed[kernel.id] = engine
        self.groups.tell(kernel.user)
        process = process if orphan is None else orphan.process
        parked = 0 if process is None else engine.device.parked(Target(process))
        account = Account() if orphan is None else orphan.account
        kernel.mark_away(away=parked > 0)
        if engine.recorder is not None:
            engine.recorder.named(kernel.id, kernel.name)
        engine.feed(
            ev.SessionOpened(
                at=self.now,
                session=kernel.id,
                user=kernel.user,
                weight=kernel.weight,
                background=kernel.background,
                persistent=0 if orphan is None else orphan.persistent,
                orphaned=orphan is not None,
                parked=parked,
                device_time=account.device_time,
                used=self._clock(account, engine, process),
                used_at=account.clock_at,
            )
        )

    def _clock(self, account: Account, engine: Engine, process: ProcessKey | None) -> float | None:
        """Return what a session's clock showed when its account was written; None where it has none.

        More than the machine has cores nobody used since: what its clock shows beyond that is of sessions below it
        that have ended, which the broker before knew and we do not.
        """
        usage = engine.device.usage(Target(process)) if process and account.clock else None
        if usage is None:
            return None
        most = (self.now - account.clock_at) * (os.cpu_count() or 1)
        return max(account.clock, usage.device_time - most)

    def moved(self, kernel: Kernel, owner: Person) -> None:
        """`kernel` has no process yet, and turns out to be `owner`'s: it was opened for another user, or before the hub answered."""
        if owner == kernel.person or kernel.key is not None:
            return
        engine = self.engine_of(kernel.id)
        engine.feed(ev.SessionClosed(at=self.now, session=kernel.id))
        kernel.uid, kernel.hub, kernel.user = owner.uid, owner.hub, owner.user
        self._place(kernel, engine)

    def bind(self, kernel: Kernel, pidfd: int, pid: int) -> None:
        """`kernel`'s process is known."""
        self.unwatch(kernel)
        try:
            self.registry.bind(kernel, pidfd, pid)
        except BadToken:
            self._watch_opener(kernel)  # it may start another one
            raise
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
        pidfd = pidfds.open_key(one.key)
        if pidfd is None:
            return False
        if procfs.owner(one.key.pid) != one.uid:
            os.close(pidfd)
            return False
        return (
            self._take_in(Person(one.uid), adopted_name(one), 1.0, engine, pidfd, one.key)
            is not None
        )

    def known_again(self, uid: int, token: str, again: Again, pid: int) -> Kernel | None:
        """A kernel's own process asks for a session that a lost ledger was to tell of (I9: as the socket says who it is).

        What its user declared for it, its weight and its account are lost. None where that cannot be.
        """
        try:
            pidfd = pidfds.open_pidfd(pid)
        except OSError:
            return None
        kernel, key = None, procfs.process_key(pid)
        taken = any(one.key == key and one.lines for one in self.registry)
        try:
            if key is not None and procfs.owner(pid) == uid and not taken:
                self.groups.check_kernels(Person(uid).user)
                kernel = self.registry.open_again(Person(uid), token, again.session, again.name)
        finally:
            if kernel is None:
                os.close(pidfd)
        if kernel is None:
            return None
        for other in self.registry:  # meanwhile it was taken for a stranger
            stranger = other.uid == uid and other.opener is None and not other.lines
            if stranger and other.key is not None and other.key.pid == pid:
                self.close(other)
        away = [e for e in self.engines.values() if key and e.device.parked(Target(key))]
        engine = away[0] if away else self.engines.get(DeviceId(again.device), self.engine)
        self._place(kernel, engine, process=key)
        try:
            self.bind(kernel, pidfd, pid)
        except BadToken:  # it has ended in this moment
            self.close(kernel)
            return None
        usage = engine.usage(kernel, memory=True) if engine.scheduler.config.divisible else None
        if usage is not None:
            kernel.baseline = min(max(0, again.baseline), usage.memory or 0)
        _logger.warning("a session that the ledger did not know is back", extra={"session": kernel.id})  # fmt: skip
        return kernel

    def accompanied(self, kernel: Kernel) -> None:
        """Its starter attaches for it: it is a session without a client until one of its own comes."""
        self._commands_here |= kernel.orphaned
        self._still_bare(kernel)

    def emptied(self, kernel: Kernel) -> None:
        """`kernel`'s process is gone or about to be replaced: jobs end, memory is free, the session stays."""
        survivors = self._survivors(kernel)
        self.ends(kernel)
        self.engine_of(kernel.id).feed(ev.SessionRestarted(at=self.now, session=kernel.id))
        self.registry.unbind(kernel)
        kernel.baseline, kernel.held, kernel.told_budget = 0, None, -1
        kernel.mark_away(away=False)  # the word is the next process's, too
        kernel.aside = 0
        for key in survivors:
            self._follow(kernel, key)
        self._await_process(kernel)
        if kernel.orphaned:
            kernel.orphaned = False
            self._nobody_missing(self.engine_of(kernel.id))

    def close(self, kernel: Kernel) -> None:
        """The session is over."""
        if self.registry.get(kernel.id) is not kernel:
            return
        used = kernel.key is not None or kernel.awaited > 1
        survivors = self._survivors(kernel)
        engine = self.engine_of(kernel.id)
        engine.feed(ev.SessionClosed(at=self.now, session=kernel.id))
        self.ledger.session_closed(kernel.id)
        self.registry.drop(kernel)
        for key in survivors:
            self._follow(kernel, key)
        self._placed.pop(kernel.id, None)
        self.touch()
        if used:  # who opens sessions by the thousand and never starts anything fills no log
            _logger.info("a session is closed", extra={"session": kernel.id})
        if kernel.orphaned:
            self._nobody_missing(engine)

    def _nobody_missing(self, engine: Engine) -> None:
        """End the grace after a restart, where all that the ledger told of have said what they hold, or are gone.

        A command is known before its starter has said what it holds: where there is one, the grace lasts as long as it may.
        """
        if self._commands_here or any(
            one.orphaned and self.engine_of(one.id) is engine for one in self.registry
        ):
            return
        if engine.now < engine.scheduler.turns.free_until:
            engine.feed(ev.AllBack(at=engine.now))

    def adopt(self, row: SessionRow) -> None:
        """A session of the broker before this one, from the ledger: its process lives."""
        pidfd = None if row.process is None else pidfds.open_key(row.process)
        if row.process is None or pidfd is None:
            return
        # A hub's name may be an account's, too, since a broker before us wrote it down.
        user = Person(row.uid, row.hub).user if row.hub else row.user
        kernel = Kernel(
            row.id,
            row.uid,
            user,
            row.name,
            row.token_hash,
            WordPage.create(),
            row.weight,
            row.background,
            row.hub,
            orphaned=True,
        )
        kernel.opened_at, kernel.opener = row.opened_at, row.opener
        kernel.saved, kernel.needs, kernel.baseline = row.account, row.needs, row.baseline
        self.registry.add(kernel)
        engine = self.engines.get(DeviceId(row.device), self.engine)
        self._place(kernel, engine, orphan=row)
        try:
            self.registry.bind(kernel, pidfd, row.process.pid)
        except BadToken:  # it has ended in this moment
            self.close(kernel)
            return
        self._loop.add_reader(kernel.pidfd, self._process_gone, kernel, kernel.pidfd)
        engine.undo(kernel)
        self._later(engine.scheduler.config.orphan_grace, lambda: self._still_bare(kernel))

    def _process_gone(self, kernel: Kernel, pidfd: int) -> None:
        """The pidfd says that the process has ended. A restart keeps the session; else it is closed."""
        self._loop.remove_reader(pidfd)
        if kernel.pidfd != pidfd:
            return
        self.emptied(kernel)
        if kernel.opener is None or not procfs.alive(kernel.opener):
            self.close(kernel)

    def unwatch(self, kernel: Kernel) -> None:
        """What ends from here on, nobody hears of."""
        for pidfd in kernel.watched:
            self._loop.remove_reader(pidfd)

    def _survivors(self, kernel: Kernel) -> Sequence[ProcessKey]:
        """Stop watching `kernel`'s process; return who outlived it."""
        self.unwatch(kernel)
        if kernel.target is None:
            return ()
        return self.engine_of(kernel.id).device.survivors(kernel.target)

    def _follow(self, kernel: Kernel, key: ProcessKey) -> None:
        """A child outlived its kernel: a session of its own from here on, without a client, of the same user."""
        pidfd = pidfds.open_key(key)
        if pidfd is None:
            return
        name, engine = f"{kernel.name} (left running)", self.engine_of(kernel.id)
        child = self._take_in(kernel.person, name, kernel.weight, engine, pidfd, key)
        if child is not None:
            extra = {"session": child.id, "of": kernel.id}
            _logger.info("a child outlived its kernel", extra=extra)

    def _take_in(  # noqa: PLR0917  two callers beside it
        self, owner: Person, name: str, weight: float, engine: Engine, pidfd: int, key: ProcessKey
    ) -> Kernel | None:
        """Follow a running process as a session without a client; takes over its pidfd."""
        try:
            kernel, _ = self.registry.open(owner, clean_name(name), weight, None)
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
        """A session without a process gets one within a while, counted from now, or is closed: at once where its opener ends.

        An opener that is killed lets go of what its process hangs on before it has ended itself: the process may go first.
        """
        kernel.awaited += 1
        this = kernel.awaited
        self._later(GONE_AFTER, partial(self._still_opened, kernel.id, this))
        pidfd = None if kernel.opener is None else pidfds.open_key(kernel.opener)
        if pidfd is not None:
            kernel.opener_pidfd = pidfd
            self._watch_opener(kernel)

    def _watch_opener(self, kernel: Kernel) -> None:
        if kernel.opener_pidfd >= 0:
            self._loop.add_reader(kernel.opener_pidfd, self.close, kernel)

    def _still_opened(self, session: SessionId, awaited: int) -> None:
        kernel = self.registry.get(session)  # by name: a timer keeps no session that is closed
        if kernel is not None and kernel.key is None and kernel.awaited == awaited:
            self.close(kernel)

    def _still_bare(self, kernel: Kernel) -> None:
        session = self.session(kernel)
        if session is None or kernel.key is None or kernel.lines:
            return
        if session.presence in {Presence.OPENED, Presence.ORPHANED}:
            kernel.orphaned = False
            self._measure_context(kernel)
            self._ready(kernel, bare=True)
            self.look(kernel)

    def _ready(self, kernel: Kernel, *, bare: bool) -> None:
        engine = self.engine_of(kernel.id)
        # A GPU's contexts are what its driver says, in samples: we have measured none.
        context = kernel.baseline if engine.scheduler.config.divisible else None
        engine.feed(ev.SessionReady(at=self.now, session=kernel.id, bare=bare, context=context))
        engine.sample(kernel.id)

    def _measure_context(self, kernel: Kernel) -> None:
        engine = self.engine_of(kernel.id)
        if kernel.baseline == 0 and engine.scheduler.config.divisible:
            usage = engine.usage(kernel, memory=True)
            kernel.baseline = usage.memory or 0 if usage is not None else 0
            kernel.held = None  # what was just seen is its context
            self.save(kernel)

    def look(self, kernel: Kernel) -> None:
        """See what a host's session of a broker before us keeps beyond its context."""
        engine = self.engine_of(kernel.id)
        usage = engine.usage(kernel, memory=True) if kernel.baseline else None
        if usage is not None:
            engine.feed(ev.Sampled(at=self.now, used={kernel.id: usage}))
