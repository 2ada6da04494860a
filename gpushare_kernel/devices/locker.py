"""The lock of one process: on record before it is asked for, held through a worker, undone by whoever can."""

from __future__ import annotations

from time import monotonic

from gpushare_kernel import procfs
from gpushare_kernel.core.values import PauseStatus, ProcessKey
from gpushare_kernel.devices import answers
from gpushare_kernel.devices.answers import ProcessState, Reply
from gpushare_kernel.devices.base import Hold, Intents, PauseOutcome
from gpushare_kernel.devices.crew import Crew
from gpushare_kernel.devices.lock_link import LockLink, WorkerLost

_GRACE = 0.25
"""Seconds beyond the limit in which the driver should have said so."""
_UNLOCK_LIMIT = 1.0
_STATE_LIMIT = 0.25
_ATTEMPTS = 2


class Locker:
    """Locks and unlocks one process; one call at a time."""

    def __init__(
        self,
        key: ProcessKey,
        intents: Intents,
        crew: Crew,
        *,
        recorded: bool = False,
        parked: int | None = None,
    ) -> None:
        self.key = key
        #: It was locked through us, and we have not unlocked it. It may have unlocked itself: `holds`.
        self.locked = False
        #: It stands on record: locked, or perhaps locked by a broker before us, or by a worker that hangs or was lost.
        self.recorded = recorded or parked is not None
        #: Bytes that a checkpoint took, or may have taken, from the device; None where it is not parked. No lock and no
        #: unlock is asked for then: only a restore changes it (`mover`).
        self.parked = parked
        #: Nobody has said so yet: a broker before us wrote it down, or a worker was lost, or left, in the move.
        self.unsure = parked is not None
        #: The driver has said that it answers this process no more.
        self.failed = False
        #: Why the last worker did not come up, in the driver's words.
        self.trouble: str | None = None
        self._intents = intents
        self._crew = crew
        self._link: LockLink | None = None
        #: To whom it was left: a worker that is to unlock it as the last thing it does.
        self._left: LockLink | None = None
        #: Until when a lock may come through that a worker had asked for before it was lost.
        self._late = 0.0

    async def lock(self, limit: float) -> PauseOutcome:
        """Let it drain and keep it out of the driver.

        Past `limit` it runs on (BUSY). Where the driver does not even say so the worker is left to itself: it
        undoes a lock that comes through late, and until it has ended the process stays on record. So does one that
        may be locked, by a worker that was lost or by somebody before us: only an unlock says that it runs.
        """
        if (standing := self.standing()) is not None:
            # Locked before it was stopped, it is when it is continued.
            held = self.locked and standing is PauseStatus.STOPPED
            return PauseOutcome(PauseStatus.PAUSED if held else standing)
        if self._crew.busy_with(self.key):
            return PauseOutcome(PauseStatus.BUSY)
        self.settle()
        if (parked := await self.find_parked()) is not None:
            return PauseOutcome(parked)
        before = self.recorded
        if not before:
            self._intents.add(self.key, Hold.LOCK)
            self.recorded = True
        asked = monotonic()
        try:
            reply, asked = await self._ask("lock", round(limit * 1000), limit=limit + _GRACE)
        except TimeoutError:
            return PauseOutcome(self.standing() or PauseStatus.BUSY, monotonic() - asked)
        except WorkerLost as lost:
            self.trouble = str(lost)
            if not (before or self._is_late):
                self._runs()  # nobody was asked
            return PauseOutcome(PauseStatus.UNSUPPORTED)
        status = answers.lock_status(reply.answer, reply.state)
        if not procfs.alive(self.key):
            status = PauseStatus.GONE
        elif reply.state is ProcessState.CHECKPOINTED and not before:
            status = PauseStatus.NOTHING  # somebody else moved it out: theirs to bring back
        if status is PauseStatus.PAUSED:
            self.locked = True
        elif not before or status in answers.UNHELD:
            self._runs_now(status)
        return PauseOutcome(status, monotonic() - asked)

    async def unlock(self) -> PauseOutcome:
        """Let it in again, whoever held its lock for us. NOTHING: it runs."""
        self.settle()
        standing = self.standing()
        if not self.recorded:
            gone = standing is PauseStatus.GONE
            return PauseOutcome(PauseStatus.GONE if gone else PauseStatus.NOTHING)
        if standing is None and self._crew.busy_with(self.key):
            standing = PauseStatus.BUSY
        if standing is not None:
            return PauseOutcome(standing)
        if (parked := await self.find_parked()) is not None:
            # Nothing that an unlock could undo.
            return PauseOutcome(PauseStatus.NOTHING if parked is PauseStatus.PAUSED else parked)
        return await self._unlock()

    async def _unlock(self) -> PauseOutcome:
        asked = monotonic()
        try:
            reply, asked = await self._ask("unlock", limit=_UNLOCK_LIMIT)
        except TimeoutError:
            return PauseOutcome(self.standing() or PauseStatus.BUSY, monotonic() - asked)
        except WorkerLost as lost:
            self.trouble = str(lost)
            return PauseOutcome(PauseStatus.UNSUPPORTED)
        if reply.state is ProcessState.CHECKPOINTED:  # by whomever: it is parked, and no error
            self._is_parked()
            return PauseOutcome(PauseStatus.NOTHING, monotonic() - asked)
        status = answers.unlock_status(reply.answer, reply.state)
        if status in answers.UNDONE and not self._runs_now(status):
            status = PauseStatus.BUSY
        return PauseOutcome(status, monotonic() - asked)

    @property
    def stands(self) -> bool:
        """Whether it stands still on our account, as far as we know."""
        return self.locked or (self.parked is not None and not self.unsure)

    async def holds(self) -> bool:
        """Tell whether what we locked is locked still: a process can unlock itself, from any of its threads.

        True where nobody can tell now: then it is stopped, or its lock is looked at the next time.
        """
        if self.standing() is not None or self._crew.busy_with(self.key):
            return True
        try:
            reply, _ = await self._ask("state", limit=_STATE_LIMIT)
        except (TimeoutError, WorkerLost):
            return True
        return reply.state is not ProcessState.RUNNING

    async def find_parked(self) -> PauseStatus | None:
        """Tell whether it is parked: PAUSED. None: it is not, or not any more. Any other status: nobody can say now."""
        if self.parked is not None and self.unsure:
            if self._crew.busy_with(self.key) or self._crew.moving_before_us():
                return PauseStatus.BUSY
            try:
                reply, _ = await self._ask("state", limit=_STATE_LIMIT)
            except TimeoutError:
                return self.standing() or PauseStatus.BUSY
            except WorkerLost as lost:
                self.trouble = str(lost)
                return PauseStatus.UNSUPPORTED
            self._stands(reply.state)
        return None if self.parked is None else PauseStatus.PAUSED

    def _stands(self, state: ProcessState) -> None:
        """The driver has said how somebody stands that may have been parked."""
        if state is ProcessState.CHECKPOINTED:
            self._is_parked()
        elif state is ProcessState.LOCKED:
            self.parked, self.unsure, self.locked = None, False, True
            self._intents.change(self.key, Hold.LOCK)
        else:
            self.failed = state is ProcessState.FAILED
            self.forget()

    def _is_parked(self) -> None:
        """It is CHECKPOINTED. Where we do not know by how much, its own memory holds what was taken: no more than that."""
        if self.parked is None:
            self.parked = procfs.private_memory(self.key.pid) or 0
            self._intents.change(self.key, Hold.PARK, self.parked)
        self.unsure = self.locked = False
        self._give_back()

    def standing(self) -> PauseStatus | None:
        """Return why the driver need not be asked: stopped by its user it would not answer."""
        state = procfs.state_of(self.key)
        if state is None or state in procfs.ENDED:
            self.forget()
            return PauseStatus.GONE
        return PauseStatus.STOPPED if state in procfs.STOPPED else None

    def settle(self) -> None:
        """Take it off the record where the worker that it was left to has unlocked it, and ended."""
        if self._left is None or not self._left.ended():
            return
        undone, self._left = self._left.undone, None
        if undone and not self.locked and not self._is_late:
            self._runs()

    def _runs_now(self, status: PauseStatus) -> bool:
        """Nothing holds it: forget it, unless a lock may come through yet."""
        if status is not PauseStatus.GONE and self._is_late:
            self.locked = False
            return False
        self.forget()
        return True

    def forget(self) -> None:
        """It is gone, or runs: nothing is to be undone."""
        self._give_back()
        self._runs()

    def _give_back(self) -> None:
        """The worker holds nothing for it any more."""
        if self._link is not None:
            self._crew.give_back(self._link)
            self._link = None

    def let_go(self) -> None:
        """Leave it to a worker, who unlocks it now or as soon as the driver answers, and ends. Who is parked stays so."""
        if self._link is not None:
            self._leave()
        elif self.parked is None and self.recorded and not self._crew.busy_with(self.key):
            self._left = self._crew.unlock_later(self.key)
        self.locked = False

    async def _ask(self, request: str, *words: int, limit: float) -> tuple[Reply, float]:
        """Ask a worker; return its reply and when it was asked. One that is lost is replaced once."""
        late = self._late
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if self._link is None:
                    self._link = self._crew.take(self.key)
                await self._link.ready()
                self._link.check()  # one that ended before it was asked leaves no lock that comes late
                asked = monotonic()
                if request == "lock":
                    late = max(self._late, asked + limit)
                reply = await self._link.ask(request, self.key, *words, limit=limit)
            except WorkerLost:
                self._late = late
                self._drop()
                if attempt == _ATTEMPTS:
                    raise
            except BaseException:  # no reply in time, or the caller was cancelled
                self._leave()
                raise
            else:
                return reply, asked
        raise AssertionError

    @property
    def _is_late(self) -> bool:
        """Whether a lock may come through that nobody waits for any more."""
        return monotonic() < self._late

    def _leave(self) -> None:
        """Hang up on a worker that may be at it; unlocking is the last thing it does."""
        if self._link is not None:
            self._link.say("unlock", self.key)
            self._left = self._link
            self._drop()

    def _drop(self) -> None:
        if self._link is not None:
            self._crew.dismiss(self.key, self._link)
            self._link = None

    def _runs(self) -> None:
        self.locked, self._left, self._late = False, None, 0.0
        self.parked, self.unsure = None, False
        if self.recorded:
            self.recorded = False
            self._intents.remove(self.key)
