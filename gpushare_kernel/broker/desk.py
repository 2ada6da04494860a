"""One attached client (or observer) of the broker: its requests become events, its answers go out when they are due."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

from msgspec.structs import replace

from gpushare_kernel.broker import administration, controls, realtime
from gpushare_kernel.broker.answers import dry_run, release
from gpushare_kernel.broker.checks import check_held, check_id, check_sizes, check_words
from gpushare_kernel.broker.ids import client_id, job_of
from gpushare_kernel.broker.kernels import Kernel, clean_name
from gpushare_kernel.broker.persons import Person
from gpushare_kernel.broker.placement import named
from gpushare_kernel.broker.promises import Proven, check_task
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import BadDeclaration, BadFrame, GpushareError, NotYours, UserError
from gpushare_kernel.core.policies import policy_named
from gpushare_kernel.core.reasons import why
from gpushare_kernel.core.sizes import check_weight
from gpushare_kernel.core.values import LARGEST_SIZE, JobId, Wait, WaitReason
from gpushare_kernel.transport.server import Connection
from gpushare_kernel.wire import limit_texts
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.codec import decode_to_broker, encode, failure_from

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker
    from gpushare_kernel.broker.engine import Engine

_BROKEN = msg.Failure(
    "InternalError", "the broker failed on this job; its log has the traceback. Please report it."
)
_MOST_CELLS = 1000
MOST_JOBS_PER_USER = 128
"""That run or wait, in all notebooks of a user who does not administer: what is told of a queue takes the square of its length."""
MOST_PROOFS_PER_USER = 8
"""Deadlines are proven one after the other, and one proof may take a minute."""
_DROPPED = msg.Failure(msg.CANCELLED, "this job left the queue before it was its turn.")


class Desk:
    """What one connection may ask for. `kernel` is None for observers (command lines, views)."""

    def __init__(
        self,
        broker: Broker,
        connection: Connection,
        who: Person,
        kernel: Kernel | None = None,
        version: int = msg.VERSION,
    ) -> None:
        self._version = version
        self._broker = broker
        self._connection = connection
        self.kernel = kernel
        self.peer, self.who = connection.peer, who
        #: Its jobs by the id the client chose, and the requests that wait for a grant.
        self.jobs: dict[str, JobId] = {}
        self._waiting: dict[JobId, int] = {}
        self._told: dict[JobId, Wait] = {}
        #: Plain cells that run: with subshells several do.
        self._cells: set[int] = set()
        self._does: dict[type[Any], Callable[[int, Any], None]] = {
            msg.Submit: self._submit,
            msg.Cancel: self._cancel,
            msg.Yield: self._yield,
            msg.End: self._end,
            msg.Release: self._release,
            msg.PauseNotebook: self._pause,
            msg.ResumeNotebook: self._resume,
            msg.ParkNotebook: self._park,
            msg.UnparkNotebook: self._unpark,
            msg.AskHolder: self._ask,
            msg.GetSnapshot: self._snapshot,
            msg.GetNeeds: self._needs,
            msg.SetWeight: self._set_weight,
            msg.SetNeeds: self._set_needs,
            msg.SetPolicy: self._set_policy,
            msg.Stop: self._stop,
            msg.CellStarted: self._cell_started,
            msg.CellEnded: self._cell_ended,
            msg.RealtimeBeside: self._realtime_beside,
            msg.RealtimeGrid: self._realtime_grid,
            msg.RealtimeKept: self._realtime_kept,
            msg.RealtimeReleased: self._realtime_released,
            msg.RealtimeDone: self._realtime_done,
            msg.BundleFilled: self._bundle_filled,
            msg.WentAside: self._moved,
            msg.CameBack: self._moved,
            msg.ReloadSettings: self._reload,
            **dict.fromkeys(get_args(administration.Asked), self._administer),
        }

    # --- the connection's side ---------------------------------------------------------------------------

    def on_frame(self, payload: bytes) -> None:
        """Carry out one request; what cannot be done is answered with why."""
        frame = decode_to_broker(payload)
        try:
            self._does[type(frame.body)](frame.id, frame.body)
        except GpushareError as error:
            self._broker.refusals[type(error).__name__] += 1
            if isinstance(error, BadFrame) or frame.id == 0:
                raise
            self._reply(frame.id, failure_from(error))

    def on_closed(self) -> None:
        """The client is gone, or about to come back."""
        self._broker.left(self)

    def notify(self, notice: msg.BrokerNotice) -> None:
        """Send a notice, where the client's version has it."""
        if not self.hears(notice):
            return
        if self._version == 1 and isinstance(notice, msg.Waiting):
            notice = _for_version_1(notice)
        self._connection.send(encode(msg.FromBroker(msg.Kind.NOTICE, 0, notice)))

    def hears(self, notice: msg.BrokerNotice) -> bool:
        """Whether the client's version has this notice."""
        return msg.since(notice) <= self._version

    def hang_up(self) -> None:
        """End the connection; what was sent still goes out."""
        self._connection.close()

    def _reply(self, number: int, body: msg.Reply) -> None:
        self._connection.send(encode(msg.FromBroker(msg.Kind.REPLY, number, body)))

    # --- answers to what waited ------------------------------------------------------------------------------

    def granted(self, job: JobId, body: Callable[[int], msg.Granted]) -> None:
        """`job` may go on."""
        number = self._waiting.pop(job, None)
        self._told.pop(job, None)
        if number is not None and self.kernel is not None:
            self._reply(number, body(self.kernel.take_slot(job)))

    def refused(self, job: JobId, failure: msg.Failure) -> None:
        """`job` will not run."""
        number = self._waiting.pop(job, None)
        self._forget(job)
        if number is not None:
            if failure is not _DROPPED:
                self._broker.refusals[failure.code] += 1
            self._reply(number, failure)

    def dropped(self, job: JobId) -> None:
        """`job` left before it was granted."""
        self.refused(job, _DROPPED)

    def tell_wait(self, job: JobId) -> None:
        """Tell the client why `job` waits, where that has changed."""
        record = self._broker.job(job)
        if record is None or job not in self._waiting:
            return
        core = self._broker.engine_of(record.session).scheduler
        wait = self._broker.named(why(core, record), self.who)
        if wait != self._told.get(job):
            self._told[job] = wait
            self.notify(msg.Waiting(client_id(job), wait))

    # --- jobs ----------------------------------------------------------------------------------------------------

    def _submit(self, number: int, body: msg.Submit) -> None:
        kernel = self._own()
        check_sizes(body)
        check_words(body.code, *body.frameworks)
        if body.dry_run:
            answer = dry_run(self._broker, kernel, body)
            if self._version == 1 and answer.wait is not None:
                answer = replace(answer, wait=_wait_for_version_1(answer.wait))
            self._reply(number, answer)
            return
        if body.job in self.jobs:
            problem = f"job id {body.job!r} is taken by a job of this notebook that still runs."
            raise BadDeclaration(problem)
        check_id(body.job)
        check_weight(body.weight)
        if body.realtime is not None:
            check_task(body.realtime)
            self._broker.groups.check_realtime(kernel, body.realtime)
        self._check_numbers(kernel, realtime=body.realtime is not None)
        job = job_of(kernel.id, body.job)
        former = self._broker.jobs.get(job)
        if former is not None and former not in kernel.lines:
            former.give_up(job)  # its line broke while it waited, and its client asks again
        engine = self._broker.engine_of(kernel.id)
        if job in engine.scheduler.jobs or job in self._broker.jobs:
            problem = f"job id {body.job!r} is taken by a job of this session."
            raise BadDeclaration(problem)
        kernel.take_slot(job)
        self.jobs[body.job] = job
        self._waiting[job] = number
        self._broker.jobs[job] = self
        self._broker.job_names[job] = clean_name(body.name)
        asked = self._broker.asked[job] = self._broker.ask(kernel, body)
        if body.realtime is None:
            self._queue(job, kernel, asked.submit, None)
        else:
            self._broker.prove(job, body.realtime, lambda proven: self._proven(job, kernel, proven))

    def _check_numbers(self, kernel: Kernel, *, realtime: bool) -> None:
        """Refuse what would make one user's jobs too many for everybody else."""
        jobs = [job for one in self._broker.registry.of(kernel.person) for job in one.slot_of]
        if len(jobs) >= MOST_JOBS_PER_USER and not self._broker.administers(kernel.person):
            raise UserError(limit_texts.jobs_text(MOST_JOBS_PER_USER))
        if realtime and sum(map(self._broker.proves, jobs)) >= MOST_PROOFS_PER_USER:
            raise UserError(limit_texts.proofs_text(MOST_PROOFS_PER_USER))

    def _proven(self, job: JobId, kernel: Kernel, proven: Proven) -> None:
        """What came of the proof of a real-time job that nobody has given up meanwhile."""
        asked = self._broker.asked.get(job)
        if asked is None or self._broker.jobs.get(job) is not self:
            self._broker.promises_of(job).forget(job)
        elif proven.refused:
            self.refused(job, msg.Failure("Refused", proven.refused))
        else:
            self._queue(job, kernel, asked.submit, proven)

    def _queue(self, job: JobId, kernel: Kernel, body: msg.Submit, proven: Proven | None) -> None:
        engine = self._broker.engine_of(kernel.id)
        promises = {} if proven is None else proven.promises
        taken = engine.feed(
            ev.JobSubmitted(
                at=engine.now,
                job=job,
                session=kernel.id,
                size=body.size,
                persistent=body.persistent,
                ephemeral=body.ephemeral,
                weight=body.weight,
                cooperative=body.cooperative,
                plain=body.plain,
                usage=None if engine.scheduler.config.divisible else engine.usage(kernel),
                time=body.time,
                held=body.held,
                realtime=proven is not None,
                promise=promises.get(job),
                promises={one: promise for one, promise in promises.items() if one != job},
            )
        )
        if not taken:
            self.refused(job, _BROKEN)

    def _cancel(self, number: int, body: msg.Cancel) -> None:
        job = self.jobs.get(body.job)
        if job is not None:
            engine = self._engine()
            if job in self._waiting and job not in engine.scheduler.jobs:
                self.dropped(job)  # its deadline is being proven
            engine.feed(ev.JobCancelled(at=engine.now, job=job))
        self._reply(number, msg.Ok())

    def _yield(self, number: int, body: msg.Yield) -> None:
        job = self._mine(body.job)
        check_held(body.persistent, body.peak, body.ephemeral)
        self._waiting[job] = number
        self._broker.boundaries[job] = body.boundaries
        self._broker.note_peak(job, body.peak)
        engine = self._engine()
        taken = engine.feed(
            ev.BoundaryReached(
                at=engine.now,
                job=job,
                trimmed=body.trimmed,
                persistent=body.persistent,
                interval=body.interval,
                ephemeral=body.ephemeral,
            )
        )
        if not taken and job in self._waiting:
            self._reply(self._waiting.pop(job), _BROKEN)
        record = self._broker.job(job)
        if record is not None and not record.waits and job in self._waiting:
            # It runs in the scheduler's eyes (it yielded unasked): let it go on.
            self._broker.answer_granted(record)

    def _end(self, number: int, body: msg.End) -> None:
        job = self._mine(body.job)
        check_held(body.persistent, body.peak)
        pending = self._waiting.pop(job, None)
        if pending is not None:
            self._reply(pending, _DROPPED)
        check_words(*body.frameworks)
        self._broker.note_peak(job, body.peak)
        known = self._broker.learn(job, body)
        report = self._broker.end(
            job, persistent=body.persistent, boundaries=body.boundaries, known=known
        )
        self._forget(job)
        self._reply(number, report)

    def abandon(self) -> None:
        """Its client will not come back: its jobs are over."""
        for job in list(self.jobs.values()):
            self.give_up(job)

    def give_up(self, job: JobId) -> None:
        """Nobody waits for `job` on this line any more: it is over."""
        record = self._broker.job(job)
        if record is not None:
            engine = self._broker.engine_of(record.session)
            session = engine.scheduler.sessions[record.session]
            self._broker.end(job, persistent=session.measured, boundaries=0)
        self._forget(job)

    def adopt(self, held: tuple[msg.HeldJob, ...], *, back: bool = False) -> None:
        """The client comes back after a broker's restart (`back`) or a broken line: take its jobs as they are."""
        kernel = self._own()
        engine = self._engine()
        core = engine.scheduler
        for one in held:
            check_id(one.job)
            check_held(one.persistent, one.ephemeral)
            job = job_of(kernel.id, one.job)
            # What a device cannot hold nobody holds: a wrong number must not hold up everybody else. And who was here
            # all the time is believed no more than is free: a claim is no way past the queue.
            room = core.sessions[kernel.id].charged + max(0, core.book.table.free)
            most = core.book.whole if back else min(core.book.whole, room)
            persistent = min(one.persistent, most)
            self.jobs[one.job] = job
            self._broker.jobs[job] = self
            kernel.take_slot(job, one.slot)
            if job not in engine.scheduler.jobs:
                engine.feed(
                    ev.JobConfirmed(
                        at=engine.now,
                        job=job,
                        session=kernel.id,
                        persistent=persistent,
                        ephemeral=min(one.ephemeral, most - persistent),
                        group=one.lane,
                        running=one.running,
                        plain=one.plain,
                    )
                )

    def _forget(self, job: JobId) -> None:
        self.jobs.pop(client_id(job), None)
        self._told.pop(job, None)
        self._broker.forget(job)
        if self.kernel is not None:
            self.kernel.free_slot(job)

    def _mine(self, name: str) -> JobId:
        job = self.jobs.get(name)
        if job is None:
            problem = f"there is no job {name!r} of this client; it has {len(self.jobs)}."
            raise NotYours(problem)
        return job

    def _own(self) -> Kernel:
        if self.kernel is None:
            problem = "only a notebook's kernel can do this, and this connection is a command line."
            raise NotYours(problem)
        if self._broker.registry.get(self.kernel.id) is not self.kernel:
            problem = "this notebook's session has ended: its kernel is gone. Restart the kernel."
            raise NotYours(problem)
        return self.kernel

    def _engine(self) -> Engine:
        return self._broker.engine_of(self._own().id)

    # --- cells -----------------------------------------------------------------------------------------------------

    def _cell_started(self, _number: int, body: msg.CellStarted) -> None:
        kernel = self._own()
        if len(self._cells) >= _MOST_CELLS:
            problem = f"a notebook runs {_MOST_CELLS} cells at once at most, and another has begun."
            raise BadFrame(problem)
        self._cells.add(body.cell)
        engine = self._engine()
        engine.feed(ev.CellStarted(at=engine.now, session=kernel.id, usage=engine.usage(kernel)))

    def _cell_ended(self, _number: int, body: msg.CellEnded) -> None:
        kernel = self._own()
        check_held(body.persistent, 0)
        self._cells.discard(body.cell)
        if self._cells:
            return  # the session is not idle
        engine = self._engine()
        engine.feed(ev.CellEnded(at=engine.now, session=kernel.id, persistent=body.persistent))

    def _moved(self, _number: int, body: msg.WentAside | msg.CameBack) -> None:
        self._engine().moves.warm.heard(self._own(), body)

    # --- real-time jobs ------------------------------------------------------------------------------------------------

    def _realtime_beside(self, number: int, body: msg.RealtimeBeside) -> None:
        realtime.beside(self._broker, self._own(), body, lambda reply: self._reply(number, reply))

    def _realtime_grid(self, _number: int, body: msg.RealtimeGrid) -> None:
        realtime.grid(self._engine(), self._mine(body.job), body.first)

    def _realtime_kept(self, _number: int, body: msg.RealtimeKept) -> None:
        realtime.kept(self._broker, self, self._mine(body.job), body)

    def _realtime_released(self, _number: int, body: msg.RealtimeReleased) -> None:
        engine = self._engine()
        engine.feed(ev.RealtimeReleased(at=engine.now, job=self._mine(body.job)))

    def _realtime_done(self, _number: int, body: msg.RealtimeDone) -> None:
        engine = self._engine()
        engine.feed(ev.RealtimeDone(at=engine.now, job=self._mine(body.job), left=body.left))

    def _bundle_filled(self, _number: int, _body: msg.BundleFilled) -> None:
        problem = "a bundle is said to be filled on the connection that offered it, and this is another one."
        raise NotYours(problem)

    # --- everything else ---------------------------------------------------------------------------------------------

    def _release(self, number: int, body: msg.Release) -> None:
        check_held(body.given or 0)
        self._reply(number, release(self._broker, self, body))

    def _pause(self, number: int, body: msg.PauseNotebook) -> None:
        self._reply(number, controls.pause(self._broker, self, body))

    def _resume(self, number: int, body: msg.ResumeNotebook) -> None:
        self._reply(number, controls.resume(self._broker, self, body))

    def _park(self, number: int, body: msg.ParkNotebook) -> None:
        self._reply(number, controls.park(self._broker, self, body))

    def _unpark(self, number: int, body: msg.UnparkNotebook) -> None:
        self._reply(number, controls.unpark(self._broker, self, body))

    def _ask(self, number: int, body: msg.AskHolder) -> None:
        self._reply(number, controls.ask(self._broker, self, body))

    def _snapshot(self, number: int, body: msg.GetSnapshot) -> None:
        self._reply(number, msg.SnapshotReply(self._broker.snapshot(self.who, brief=body.brief)))

    def _needs(self, number: int, body: msg.GetNeeds) -> None:
        check_words(*body.frameworks)
        kernel, broker = self.kernel, self._broker
        user = self.who.user if kernel is None else kernel.user
        place = None if kernel is None else broker.place(kernel, body.frameworks)
        most = 0 if kernel is None else broker.most(kernel)
        self._reply(number, msg.NeedsReply(broker.needs.views(user, place, most)))

    def _set_weight(self, number: int, body: msg.SetWeight) -> None:
        kernel = self._own()
        weight = kernel.weight = check_weight(body.weight)
        engine = self._engine()
        engine.feed(ev.WeightChanged(at=engine.now, session=kernel.id, weight=weight))
        self._broker.save(kernel)
        self._reply(number, msg.Ok())

    def _set_needs(self, number: int, body: msg.SetNeeds) -> None:
        kernel = self._own()
        if not 0 <= body.needs < LARGEST_SIZE:
            problem = f"what a notebook needs must be from 0 to under {LARGEST_SIZE} bytes, and {body.needs} is not."
            raise UserError(problem)
        kernel.needs = body.needs
        self._broker.save(kernel)
        self._reply(number, msg.Ok())

    def _set_policy(self, number: int, body: msg.SetPolicy) -> None:
        administration.check(self._broker, self, "switch the policy")
        policy = policy_named(body.policy).name
        engines = [*self._broker.engines.values()]
        for engine in [named(engines, body.device)] if body.device else engines:
            engine.feed(ev.PolicyChanged(at=engine.now, policy=policy))
            self._broker.ledger.policy_chosen(engine.device.inventory.id, policy)
        administration.note(self._broker, self, "policy", body.device, policy)
        self._reply(number, msg.Ok())

    def _stop(self, number: int, _body: msg.Stop) -> None:
        administration.check(self._broker, self, "stop the broker")
        administration.note(self._broker, self, "stop")
        self._reply(number, msg.Ok())
        self._broker.stop("stopped by its administrator")

    def _reload(self, number: int, _body: msg.ReloadSettings) -> None:
        administration.reload(self._broker, self, lambda reply: self._reply(number, reply))

    def _administer(self, number: int, body: administration.Asked) -> None:
        self._reply(number, administration.answer(self._broker, self, body))


def _for_version_1(notice: msg.Waiting) -> msg.Waiting:
    return replace(notice, wait=_wait_for_version_1(notice.wait))


def _wait_for_version_1(wait: Wait) -> Wait:
    """A reason that version 1 has no word for would be a broken frame to it: it waits for its turn on the device."""
    if wait.reason not in {WaitReason.RESTORE, WaitReason.CAP, WaitReason.MAINTENANCE}:
        return wait
    return dataclasses.replace(wait, reason=WaitReason.TURN)
