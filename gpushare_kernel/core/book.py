"""The memory side of one device: what sessions are charged, where their jobs' lanes are, who waits for room (I1, I2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gpushare_kernel.core.admission import AdmissionQueue
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.errors import InvariantBroken
from gpushare_kernel.core.lanes import Lane, LaneTable, Placement
from gpushare_kernel.core.policies import policy_named
from gpushare_kernel.core.records import Job, Session
from gpushare_kernel.core.resting import Resting
from gpushare_kernel.core.sizes import format_apart, format_most, format_size
from gpushare_kernel.core.values import Need, SessionId


class MemoryBook:
    """Capacity, lanes and queue. Grants never exceed capacity; measurements may, and then nothing is granted."""

    def __init__(self, config: Config) -> None:
        self.config = config
        #: What one context takes: an estimate until one is measured.
        self.reserve = config.reserve
        self.table = LaneTable(config.capacity)
        self.queue = AdmissionQueue(policy_named(config.policy), arrival=not config.by_policy)
        #: Who holds memory and has nothing to do.
        self.resting = Resting()
        #: Whether a measurement, a plain cell or foreign use (never a grant) has put the sum over capacity.
        self.deficit = False
        #: How often what sessions hold, or the device has, has changed: with lanes that is all that decides whether a job fits.
        self.changes = 0
        #: Jobs that did not fit, and when (changes, version of the lanes); with what queue nobody was let in then.
        self._unfit: set[Job] = set()
        self._unfit_at = (-1, -1)
        self._nobody_fits = (-1, False, self._unfit_at)

    # --- what sessions are charged ---------------------------------------------------------------------

    def charge(
        self, session: Session, *, declared: int | None = None, measured: int | None = None
    ) -> None:
        """Change what `session` declared or is seen to hold."""
        before = session.charged
        if declared is not None:
            session.declared = declared
        if measured is not None:
            session.measured = measured
        if session.charged != before:
            self.changes += 1
            self.table.persistent += session.charged - before
        self.resting.note(session)
        self._note_deficit()

    def context(self, session: Session, size: int) -> None:
        """`session`'s context takes `size` bytes (0: it has none)."""
        if size != session.context:
            self.changes += 1
            self.table.reserve += size - session.context
            session.context = size
        self.resting.note(session)
        self._note_deficit()

    def capacity(self, capacity: int, reserve: int | None = None) -> None:
        """The device has another size for us now, or one context does."""
        self.changes += 1
        self.table.capacity = capacity
        if reserve is not None:
            self.reserve = reserve
        self._note_deficit()

    @property
    def whole(self) -> int:
        """The most that the device had for us: what it has now, or when we started."""
        return max(self.config.capacity, self.table.capacity)

    def _note_deficit(self) -> None:
        self.deficit = self.table.free < 0

    # --- what a job needs --------------------------------------------------------------------------------

    def need(
        self, session: Session, *, size: int | None, persistent: int | None, ephemeral: int | None
    ) -> Need:
        """Return the need of a declaration: `size` is split by what the session holds; neither given means default needs."""
        declared = session.declared if session.parked is None else session.parked.declared
        held = max(declared, session.holds)
        if size is not None:
            return Need(held, max(0, size - held))
        if persistent is None and ephemeral is None:
            kept = self.config.plain_persistent if self.config.divisible else held
            return Need(kept, max(0, self.config.plain_ephemeral - _granted_unused(session)))
        return Need(held if persistent is None else persistent, ephemeral or 0)

    def added(self, session: Session, need: Need) -> int:
        """Bytes of P that `need` adds to what `session` is charged, its own context included."""
        kept, parked = need.persistent, session.parked
        if parked is not None and parked.persistent > kept:
            kept = parked.persistent
        beyond = kept - session.charged
        return (beyond if beyond > 0 else 0) + self._missing_context(session)

    def wanted(self, session: Session, need: Need) -> int:
        """Bytes that must be free beside a lane of its own for `need`: what it adds, and what a restore must find to spare.

        That lane is part of what is to spare: it is empty until what is parked is back.
        """
        spare = 0 if session.parked is None else self.config.restore_margin - need.ephemeral
        return self.added(session, need) + max(0, spare)

    def find(self, session: Session, need: Need, *, private: bool) -> Placement | None:
        """Return where Algorithm 1 puts `need` now (I1); None where it has to wait."""
        single = self.config.single_lane
        wanted = self.wanted(session, need)
        found = self.table.find(wanted, need.ephemeral, private=private, single=single)
        if found is None or found.lane is None or session.parked is None:
            return found
        # The E of a lane mate may be in that lane: nothing of it is to spare.
        wanted = self.added(session, need) + self.config.restore_margin
        return self.table.find(wanted, need.ephemeral, private=private, single=single)

    def could_return(self, session: Session) -> bool:
        """Whether an empty device has what a restore of `session` must find, were it parked now."""
        return session.charged + session.context + self.config.restore_margin <= self.whole

    def too_little_to_spare(self, session: Session) -> bool:
        """Whether others were promised what a restore of `session`, which was let in, must find beside what it puts back."""
        lanes = {job.lane for job in session.jobs.values() if job.lane is not None}
        own = [lane for name in lanes if len((lane := self.table.lanes[name]).members) == 1]
        return self.table.free + sum(lane.size for lane in own) < self.config.restore_margin

    def _missing_context(self, session: Session) -> int:
        if session.context:
            return 0
        return self.reserve if session.parked is None else session.parked.context

    def never_fits(self, session: Session, need: Need, size: int | None = None) -> str | None:
        """Return why `need` could not be met by an empty device, or None."""
        if size is not None and size < session.holds:
            keeps, given = format_apart(session.holds, size)
            return (
                f"this notebook already keeps {keeps}, more than the {given} it "
                f"is to hold in all. Declare more, or free some first (del, restart)."
            )
        context = session.context or self._missing_context(session)
        parked = 0 if session.parked is None else session.parked.persistent
        kept = max(need.persistent, session.holds, parked)
        whole = kept + need.ephemeral + context
        cap, group = session.user.cap_ever, session.user.group
        if cap is not None and cap < whole and cap < self.whole:
            needs, has = format_apart(whole, cap)
            return (
                f"this can never fit: it needs {needs}, and each of the group {group} may hold {has} "
                f"of this device in all. Ask for {format_most(max(0, cap - context))} or less, or have your administrator raise it."
            )
        if whole <= self.whole:
            return None
        parts = [
            f"{format_size(kept)} to keep",
            f"{format_size(need.ephemeral)} while it runs",
        ]
        if context:
            parts.append(f"{format_size(context)} for the kernel itself")
        needs, has = format_apart(whole, self.whole)
        return (
            f"this can never fit: it needs {needs} ({', '.join(parts)}), and the device has "
            f"{has} in all. Ask for {format_most(max(0, self.whole - context))} or less."
        )

    # --- placing and leaving -------------------------------------------------------------------------------

    def place(self, session: Session, job: Job, at: float) -> Lane | None:
        """Grant `job` its memory if Algorithm 1 finds a lane (I1); None where it has to wait."""
        # Who meets no boundary would keep lane mates waiting until its end: it has a lane of its own.
        private = not job.cooperative
        found = self.find(session, job.need, private=private)
        if found is None:
            return None
        lane = self._put(session, job, found, at, private=private)
        if self.table.free < 0:
            msg = f"granting {job.id} left {self.table.free} bytes"
            raise InvariantBroken(msg)
        return lane

    def force(self, session: Session, job: Job, at: float, *, beside: Lane | None = None) -> Lane:
        """Take what runs already (a plain cell, a job confirmed after a restart) as it is; it may make a deficit."""
        lane = self._put(
            session,
            job,
            Placement(beside.id if beside else None, job.need.ephemeral),
            at,
            private=job.plain,
        )
        self._note_deficit()
        return lane

    def _put(
        self, session: Session, job: Job, found: Placement, at: float, *, private: bool = False
    ) -> Lane:
        missing = self._missing_context(session)
        if missing:
            self.context(session, missing)
        job.resident_since = at
        if job.admitted is None:
            job.admitted = at
        if session.parked is not None:  # it is on its way back
            self.charge(session, declared=session.parked.declared, measured=session.parked.measured)
        # Where a driver says what is held, a plain job declares nothing: it keeps what it keeps.
        if job.size is None and (self.config.divisible or not job.plain):
            self.charge(session, declared=max(session.declared, job.need.persistent))
        return self.table.place(job, found, at, private=private)

    def leave(self, job: Job) -> Lane | None:
        """`job` is over or dropped: out of its lane or the queue. Return the lane while others are in it."""
        self.queue.remove(job)
        lane = self.table.leave(job)
        self._note_deficit()
        return lane

    def grow(self, lane: Lane, ephemeral: int) -> bool:
        """Make `lane` large enough for `ephemeral` bytes where there is room (I1); say whether it is."""
        if ephemeral - lane.size > max(0, self.table.free):
            return False
        self.table.refit(lane)
        return True

    def resplit(self, session: Session, job: Job) -> None:
        """A single SIZE covers P and E: what turned out to persist is no longer ephemeral."""
        if job.size is None or job.lane is None:
            return
        kept = max(session.declared, session.holds)
        job.need = Need(kept, max(0, job.size - kept))
        self.table.refit(self.table.lanes[job.lane])
        self._note_deficit()

    def part(self, session: Session, need: Need) -> float:
        """Return which part of the device `need` takes in all, contexts included."""
        context = session.context or self.reserve
        return (max(need.persistent, session.charged) + need.ephemeral + context) / max(
            1, self.whole
        )

    def admit(
        self,
        sessions: dict[SessionId, Session],
        at: float,
        may_enter: Callable[[Job], bool],
        turn: float,
        *,
        idle: bool = False,
    ) -> Iterator[Job]:
        """Yield the queued jobs that fit now and may enter, placed; `turn` and `idle` as in `AdmissionQueue.admit`."""
        now = self.queue.version, idle, self._looked()
        if self.table.free < 0 or not len(self.queue) or now == self._nobody_fits:
            return
        yield from self.queue.admit(
            lambda job: may_enter(job) and self._let_in(job, sessions[job.session], at),
            turn,
            idle=idle,
        )
        if now == (self.queue.version, idle, self._looked()):
            self._nobody_fits = now

    def _let_in(self, job: Job, session: Session, at: float) -> bool:
        """Place `job` if it fits. Where nothing has changed since it did not, that is not tried again."""
        if job in self._unfit:
            return False
        if self.place(session, job, at) is None:
            self._unfit.add(job)
            return False
        self._looked()
        return True

    def overlooked(self, sessions: dict[SessionId, Session]) -> Iterator[Job]:
        """Yield who is taken for not fitting and would fit: nobody, if all that decides that is counted."""
        if self._unfit_at != (self.changes, self.table.version):
            return
        for job in self._unfit:
            if job.id not in self.queue:
                continue
            if self.find(sessions[job.session], job.need, private=not job.cooperative):
                yield job

    def _looked(self) -> tuple[int, int]:
        """Return what decides who fits now; forget who did not fit before that has changed."""
        now = self.changes, self.table.version
        if now != self._unfit_at:
            self._unfit_at = now
            self._unfit.clear()
        return now


def _granted_unused(session: Session) -> int:
    """Return the bytes that a job of `session` keeps for whatever runs inside it, and that are not used yet."""
    holds = any(not job.plain and job.lane is not None for job in session.jobs.values())
    return max(0, session.declared - session.holds) if holds else 0
