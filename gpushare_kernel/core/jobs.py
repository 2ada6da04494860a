"""The jobs of one device, from submission to end: queue, lane, turn. `Scheduler` is built on it."""

from __future__ import annotations

from itertools import count

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.book import MemoryBook
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.deadlines import Deadlines
from gpushare_kernel.core.frames import Frames
from gpushare_kernel.core.glance import Glance
from gpushare_kernel.core.lanes import Lane
from gpushare_kernel.core.policies import Together
from gpushare_kernel.core.probe import Probe, Seen, unannounced
from gpushare_kernel.core.records import Job, Key, Session, User
from gpushare_kernel.core.sizes import check_weight
from gpushare_kernel.core.slots import Slots
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.turns import SLACK, Turns
from gpushare_kernel.core.values import JobId, JobState, LaneId, Need, SessionId, Usage, UserId


class Jobs:
    """What one device's scheduler keeps, and what becomes of jobs."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.at = 0.0
        self.users: dict[UserId, User] = {}
        self.sessions: dict[SessionId, Session] = {}
        self.jobs: dict[JobId, Job] = {}
        self.book = MemoryBook(config)
        kind = Frames if config.divisible else Slots
        self.turns: Turns = kind(
            config, self._emit, self._leave_timer, self._grant_waiting, self._crowded_lane
        )
        self.turns.accounts.charged = self.book.queue.rerank
        self.turns.accounts.queued = self.book.queue.first
        self.turns.accounts.running = self.turns.using.values
        self.probe = Probe(config) if config.divisible else Glance(config)
        self.lost = False
        self.why_lost = ""
        #: Jobs that have come through the memory queue and are in a lane.
        self._let_in: set[JobId] = set()
        #: Confirmed jobs of one former lane meet again: former lane -> lane.
        self._groups: dict[int, LaneId] = {}
        self._order = count(1)
        self._out: list[do.Instruction] = []
        self._deadlines = Deadlines()

    # --- jobs -------------------------------------------------------------------------------------------

    def _job_submitted(self, event: ev.JobSubmitted) -> None:
        session = self.sessions[event.session]
        if event.usage is not None:
            self._take(session, event.usage, event.at)
        if event.held is not None and not self.config.divisible and session.parked is None:
            self._hear(session, event.held)
            self.book.charge(session, measured=max(session.measured, session.holds))
        need = self.book.need(
            session, size=event.size, persistent=event.persistent, ephemeral=event.ephemeral
        )
        job = Job(
            event.job,
            session.id,
            next(self._order),
            need,
            event.size,
            event.at,
            plain=event.plain,
            cooperative=event.cooperative,
            time=event.time,
            realtime=event.realtime,
            promise=event.promise,
            promoted=any(mate.lane is not None for mate in session.jobs.values()),
            part=self.book.part(session, need),
        )
        refusal = self.book.never_fits(session, need, event.size) or self._unproven(event)
        if refusal is not None:
            job.become(JobState.REFUSED)
            self._emit(do.Refuse(job.id, session.id, refusal))
            return
        weight = check_weight(event.weight)
        self._promised(event)
        former = session.plain_job
        self._enlist(session, job)
        if former is not None:
            # The cell declares its work after all (or says itself that it begins): it is not counted twice.
            self._over(session, former, JobState.DONE)
        session.weight = weight
        job.become(JobState.QUEUED)
        self._enqueue(job, session, event.at)
        self._admit(event.at)
        if job.state is JobState.QUEUED:
            self._be_patient(job, event.at)
            self._emit(do.Queue(job.id, session.id))

    def _enqueue(self, job: Job, session: Session, at: float) -> None:
        """`job` waits for memory from now on."""
        self.turns.accounts.competes(session)
        self.book.queue.push(job, session, at)

    def _be_patient(self, job: Job, at: float) -> None:
        """`job` waits for memory since `at`: note when nobody who came later may pass it any more."""
        patience = self.turns.accounts.policy.patience
        if patience is not None:
            job.queued_since = at
            name = job.id  # the job itself is over long before that, as a rule, and would be kept
            self._deadlines.add(at + patience, lambda now: self._promote(name, at, now))

    def _promote(self, name: JobId, since: float, at: float) -> None:
        job = self.jobs.get(name)
        # Another `since`: it had its memory meanwhile.
        if job is not None and job.queued_since == since and self.turns.accounts.policy.patience:
            self.book.queue.promote(job, at)

    def _job_confirmed(self, event: ev.JobConfirmed) -> None:
        session = self.sessions[event.session]
        need = Need(event.persistent, event.ephemeral)
        parked = session.parked is not None
        job = Job(
            event.job,
            session.id,
            next(self._order),
            need,
            None,
            event.at,
            plain=event.plain,
            cooperative=not event.plain,
        )
        self._enlist(session, job)
        if parked:  # it goes on when its memory is back
            job.granted = event.at if event.running else None
            job.become(JobState.QUEUED)
            self._enqueue(job, session, event.at)
            return
        lane = self.book.table.lanes.get(self._groups.get(event.group, LaneId(-1)))
        taken = lane is not None and lane.occupant is not None and event.running
        lane = self.book.force(session, job, event.at, beside=None if taken else lane)
        self._groups[event.group] = lane.id
        job.become(JobState.ADMITTED)
        if event.running:
            job.become(JobState.RUNNING)
            job.waits, job.trimmed, job.granted = False, False, event.at
        seen = session.jobs.get(unannounced(session.id))
        if seen is not None:
            # It was seen at work before its client came back and said what that is: it is not counted twice.
            self._over(session, seen, JobState.DONE)
        self._seek(lane, session, event.at)

    def _job_cancelled(self, event: ev.JobCancelled) -> None:
        job = self.jobs.get(event.job)
        if job is None or not job.waits or job.granted is not None:
            return
        session = self.sessions[job.session]
        self._emit(do.Drop(job.id, session.id))
        self._over(session, job, JobState.CANCELLED)
        self._admit(event.at)

    def _boundary_reached(self, event: ev.BoundaryReached) -> None:
        job = self.jobs.get(event.job)
        if job is None or job.state is not JobState.RUNNING:
            return
        session = self.sessions[job.session]
        job.become(JobState.ADMITTED)
        job.waits, job.trimmed, job.asked, job.interval = True, event.trimmed, False, event.interval
        if event.trimmed:
            self._hear(session, event.persistent)
            self.book.charge(session, measured=session.holds)
            self.book.resplit(session, job)
        lane = self._lane(job)
        occupies = event.trimmed and lane is not None and lane.occupant is job
        if occupies and lane is not None and lane.waiters and self._outranked(lane, event.at):
            if self.book.deficit:
                # What is still held leaves no room for a mate's E in fact: it goes on waiting, and the lane is asked for later.
                self._await_lane(lane, event.at + self.config.lane_turn)
            else:
                self._pass(lane, event.at)
        if event.trimmed:
            self._stands_empty(job, session, event)
        self.turns.at_boundary(session, event.at)
        if session.phase is Phase.ON:
            self._grant_waiting(session, event.at)
        self._admit(event.at)

    def _stands_empty(self, job: Job, session: Session, event: ev.BoundaryReached) -> None:
        """`job` waits at a boundary and has no E on the device: it can be moved."""

    def _job_ended(self, event: ev.JobEnded) -> None:
        job = self.jobs.get(event.job)
        if job is None:
            return
        if job.granted is None:
            self._job_cancelled(ev.JobCancelled(at=event.at, job=job.id))
            return
        session = self.sessions[job.session]
        if event.usage is not None:
            self._take(session, event.usage, event.at)
        if session.parked is None:
            self.book.charge(session, measured=self._held(session, event.persistent))
        self._over(session, job, JobState.DONE)
        if session.cell_open:
            self.probe.start(session, event.at)  # what follows in the cell is not declared
        self._admit(event.at)

    def _see(self, session: Session, memory: int, at: float) -> None:
        """The device's own word, of `at`, on what `session` holds; while a declared job runs its E is in it."""
        if not self.config.divisible:
            if at < session.reported_at:
                return  # its client knows better by now
            session.observed = memory
            if not session.jobs and not session.cell_open:
                session.unseen = max(0, memory - session.reported)
        if all(job.plain or job.lane is None for job in session.jobs.values()):
            session.word = None
            self.book.charge(session, measured=memory)

    def _hear(self, session: Session, reported: int) -> None:
        """Its client says what its frameworks hold now."""
        session.reported, session.reported_at = reported, self.at
        session.word = reported + session.unseen

    def _held(self, session: Session, reported: int) -> int:
        """What `session` is taken to hold when its work ends: what the driver saw last, where the client says less.

        A client knows its frameworks only. What it gave back in this moment is free once the driver says so.
        """
        if session.observed is None:
            session.reported, session.reported_at = reported, self.at
            return reported
        self._hear(session, reported)
        return max(reported, session.observed)

    def _enlist(self, session: Session, job: Job) -> None:
        self.probe.forget(session)
        session.begun = True
        session.realtime = session.realtime or job.promise is not None
        self.jobs[job.id] = session.jobs[job.id] = job
        self.book.resting.note(session)

    def _over(self, session: Session, job: Job, state: JobState) -> None:
        """`job` is out: its lane passes on, its session may have nothing left to do."""
        job.become(state)
        self._let_in.discard(job.id)
        del self.jobs[job.id], session.jobs[job.id]
        self._last_line(job, session)
        lane = self._lane(job)
        if lane is not None and lane.occupant is job:
            lane.give_up(session.user, self.at)
        lane = self.book.leave(job)
        if lane is not None and lane.occupant is None:
            self._pass(lane, self.at)
        elif lane is not None and lane.occupant is not None and lane.occupant.lent is not None:
            self.turns.rank_anew(self.sessions[lane.occupant.session])
        self._wants(session, self.at)
        if not session.jobs:
            session.idle_since = self.at
            self.book.resting.note(session)
            session.weight = session.usual_weight
            if len(self.book.queue) and session.declared > session.measured:
                # It was declared and never used, and somebody waits for it.
                self.book.charge(session, declared=0)
            if state is not JobState.LOST:  # its process is gone
                self._falls_idle(session, self.at)

    def _falls_idle(self, session: Session, at: float) -> None:
        """Nothing of `session` is left to do."""

    def _unproven(self, event: ev.JobSubmitted) -> str | None:  # noqa: ARG002
        """Why a deadline that was proven does not hold on this device now; None where it does, or none was asked for."""
        return None

    def _promised(self, event: ev.JobSubmitted | ev.Promised) -> None:
        """A job is taken in: what was promised to others may have changed by it."""

    def _first_line(self, job: Job) -> None:
        """`job` is granted for the first time."""

    def _last_line(self, job: Job, session: Session) -> None:
        """`job` is over."""

    # --- memory and lanes ---------------------------------------------------------------------------------

    def _admit(self, at: float) -> None:
        """Let in from the queue what fits now."""
        if self.lost or at < self.turns.free_until:
            return
        head = self.book.queue.head
        again = head is None or self.may_enter(head)
        while again:
            credit, idle = self.turns.accounts.credit, self._nobody_works()
            for job in self.book.admit(self.sessions, at, self.may_enter, credit, idle=idle):
                job.become(JobState.ADMITTED)
                self._let_in.add(job.id)
                job.promoted = False  # that was for its place here: it earns no turns
                session = self.sessions[job.session]
                self._entered(session, at)
                lane = self._lane(job)
                if lane is not None:
                    self._seek(lane, session, at)
                    if lane.occupant is not job:
                        self._emit(do.Queue(job.id, job.session))
            again = self._make_room(at)

    def _nobody_works(self) -> bool:
        """Whether the device idles and idle notebooks keep what is missing: jobs that have memory give theirs back as they get on."""
        head, table = self.book.queue.head, self.book.table
        if head is None or self.turns.load > SLACK:
            return False
        needs = self.book.wanted(self.sessions[head.session], head.need) + head.need.ephemeral
        names = {job.session for lane in table.lanes.values() for job in lane.members.values()}
        held = sum(self.sessions[name].charged + self.sessions[name].context for name in names)
        return needs > table.free + table.in_lanes + held

    def may_enter(self, job: Job) -> bool:
        """Whether the policy has one more in the device's memory; what ranks above all, or is inside another job, waits for no policy."""
        if job.realtime or job.promoted:
            return True
        if not self.config.by_policy and self.turns.together is not Together.ONE:
            return True
        return self._takes_more or (self.turns.together is Together.USEFUL and self._would_run(job))

    @property
    def _takes_more(self) -> bool:
        match self.turns.together:
            case Together.ONE:
                return not self._let_in and self.turns.load <= SLACK
            case Together.USEFUL:
                # Where memory can be taken back, more of them in it do no harm.
                return self.config.can_park or self.turns.wants_more()
        return True

    def _would_run(self, job: Job) -> bool:
        """Whether `job` ranks before all who have the device."""
        policy, at = self.turns.accounts.policy, self.at
        keys = (policy.session_key(s, at) for s in self.turns.using.values() if s.counted > 0)
        return job.rank < min(keys, default=job.rank)

    def _entered(self, session: Session, at: float) -> None:
        """A job of `session` has a lane."""

    def _make_room(self, at: float) -> bool:  # noqa: ARG002
        """Whoever waits first may have room if others move; say whether it has now."""
        return False

    def _lane(self, job: Job) -> Lane | None:
        return None if job.lane is None else self.book.table.lanes[job.lane]

    def _crowded_lane(self, job: Job) -> bool:
        lane = self._lane(job)
        return lane is not None and (
            len(lane.members) > 1 or lane.wanted or self._may_have_to_move()
        )

    def _may_have_to_move(self) -> bool:
        """Whether somebody waits for whose sake jobs may lose their memory for a while, which takes an empty E."""
        policy = self.turns.accounts.policy
        return self.config.can_park and policy.displaces and len(self.book.queue) > 0

    def _seek(self, lane: Lane, session: Session, at: float) -> None:
        """A job of `session` is new in `lane`: it wants a turn if it is the occupant, else the lane is asked for."""
        self._wants(session, at)
        self._await_lane(lane, at)

    def _await_lane(self, lane: Lane, at: float) -> None:
        if not lane.waiters:
            return
        if self.turns.accounts.policy.preempts and self._outranked(lane, at):
            self._ask_lane(lane, at)  # at once, whenever it would be looked at again
        elif lane.due is None:
            self._ask_later(lane, max(at, lane.since + self.config.lane_turn))

    def _ask_later(self, lane: Lane, due: float) -> None:
        lane.due = due
        self._deadlines.add(due, lambda now: self._ask_lane(lane, now, due))

    def _outranked(self, lane: Lane, at: float) -> bool:
        """Whether the occupant is to give `lane` up to one of those who wait for it, as the policy says."""
        policy, job = self.turns.accounts.policy, lane.occupant
        if not policy.preempts or job is None:
            return policy.rotates
        return self._job_key(self._best(lane, at), at) < self._job_key(job, at)

    def _job_key(self, job: Job, at: float) -> Key:
        return self.turns.accounts.policy.job_key(job, self.sessions[job.session], at)

    def _best(self, lane: Lane, at: float) -> Job:
        """Return who waits for `lane` and comes first."""
        return min(lane.waiters, key=lambda job: self._job_key(job, at))

    def _ask_lane(self, lane: Lane, at: float, due: float | None = None) -> None:
        """Lane mates have waited a lane's turn: ask the occupant to give it up, trimmed, at its next boundary."""
        if due not in {None, lane.due}:
            return  # it was asked meanwhile
        lane.due = None
        job, policy = lane.occupant, self.turns.accounts.policy
        if job is None or not lane.waiters or not policy.rotates:
            return
        if policy.preempts and not self._outranked(lane, at):
            self._ask_later(lane, at + self.config.lane_turn)  # it may rank worse by then
            return
        if not policy.preempts and at < lane.since + self.config.lane_turn:
            self._await_lane(lane, at)
            return
        if policy.preempts and job.waits and job.trimmed and not self.book.deficit:
            self._pass(lane, at)
            return
        if policy.preempts:
            first = self._best(lane, at)
            job.lent = first, self._job_key(first, at)
            self.turns.rank_anew(self.sessions[job.session])
        if job.waits:
            return  # its word is read when it runs: its next grant asks again
        job.asked = True
        leaving = self.sessions[job.session].phase is Phase.LEAVING
        self._emit(do.Ask(job.id, job.session, turn=leaving, lane=True))

    def _pass(self, lane: Lane, at: float) -> None:
        """`lane` is free: the waiting member to whom it is due gets it."""
        former = lane.occupant
        if former is not None:
            former.lent = None
            lane.give_up(self.sessions[former.session].user, at)
        policy = self.turns.accounts.policy
        if policy.rotates and not policy.preempts:
            heir = lane.heir(lambda job: self.sessions[job.session].user)
        else:
            heir = self._best(lane, at)
        self.book.table.occupy(lane, heir, at)
        if former is not None:
            self._wants(self.sessions[former.session], at)
        session = self.sessions[heir.session]
        self._seek(lane, session, at)
        if session.phase is Phase.ON:
            self._grant_waiting(session, at)

    # --- turns ----------------------------------------------------------------------------------------------

    def _wants(self, session: Session, at: float) -> None:
        """A session wants turns as long as one of its jobs occupies its lane, and it is not suspended."""
        if session.suspended_until is not None:
            if not session.jobs:
                session.suspended_until = None
                self.turns.free(session)
                self.turns.noted(session, at)
        elif (
            session.moving is None
            and session.parked is None
            and any(self._occupies(job) for job in session.jobs.values())
        ):
            self.turns.want(session, at)
            if session.phase is Phase.ON:
                self._grant_waiting(session, at)
        else:
            self.turns.unwant(session, at)

    def _occupies(self, job: Job) -> bool:
        lane = self._lane(job)
        return lane is not None and lane.occupant is job

    def _grant_waiting(self, session: Session, at: float) -> None:
        """`session` has the turn: let its jobs go on that wait for nothing else."""
        for job in session.jobs.values():
            if job.waits and job.state is JobState.ADMITTED and self._occupies(job):
                job.become(JobState.RUNNING)
                job.waits, job.trimmed, job.in_driver = False, False, False
                job.turns += 1
                if job.granted is None:
                    job.granted, job.device_time_before = at, session.device_time
                    job.served_before = session.served(at)
                    self._first_line(job)
                self._emit(do.Grant(job.id, session.id, job.lane or LaneId(0), job.need))
                lane = self._lane(job)
                if lane is not None:
                    self._await_lane(lane, at)

    # --- what samples say -------------------------------------------------------------------------------------

    def _take(self, session: Session, usage: Usage, at: float) -> Seen:
        """Put what a sample says on the accounts."""
        seen = self.probe.sample(session, usage, at)
        self.turns.watch.sampled(session)
        self.turns.account(session, usage, seen, at)
        if session.parked is not None or session.moving is not None:
            return seen  # what is on the device now is no measure of what it holds
        if usage.memory is not None:
            self._see(session, usage.memory, at if usage.memory_at is None else usage.memory_at)
        if usage.contexts or (usage.contexts == 0 and not session.jobs):
            self.book.context(session, usage.contexts * self.book.reserve)
        return seen

    # --- out -----------------------------------------------------------------------------------------------------

    def _emit(self, instruction: do.Instruction) -> None:
        self._out.append(instruction)

    def _leave_timer(self, at: float, session: Session) -> None:
        self._deadlines.add(at, lambda now: self.turns.late(session, now))
