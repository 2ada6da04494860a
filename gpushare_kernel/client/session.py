"""This process's presence at the broker: one connection, its jobs, its cells.

A kernel has one `Session`; a child process (fork, spawn, a script it starts) has one of its own that
attaches to the same session by the inherited token, when it first asks for something.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from gpushare_kernel.client import roots
from gpushare_kernel.client.calls import Call, Calls, Lost, interruptible
from gpushare_kernel.client.job import Job
from gpushare_kernel.client.link import Link, LinkDown
from gpushare_kernel.client.questions import ANSWER, BLINK, Questions
from gpushare_kernel.core.errors import BadFrame, BrokerUnavailable, GpushareError, UserError
from gpushare_kernel.core.values import JobId
from gpushare_kernel.transport.places import how_to_restart, places, was_stopped
from gpushare_kernel.transport.tally import Tally
from gpushare_kernel.transport.words import WordView
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import (
    VERSION,
    Announce,
    Attach,
    Attached,
    Cancel,
    CellEnded,
    CellStarted,
    ClientNotice,
    End,
    FromBroker,
    Granted,
    Kind,
    Reply,
    Request,
    Slowed,
    Soon,
    Submit,
    ToBroker,
    Waiting,
    Welcome,
    since,
)

if TYPE_CHECKING:
    from gpushare_kernel.client.copying import Copier
    from gpushare_kernel.client.gpu import Gpu
    from gpushare_kernel.client.measure import Memory
    from gpushare_kernel.client.queueing import OnWait
    from gpushare_kernel.client.warm.warm import Warm


REVIVE_AFTER = 1.0
"""Seconds of absence after which we start a broker: its guardian would have by now."""
Listener = Callable[[Slowed | Announce], None]
"""Called on the reader thread with what the broker says unasked."""


class Session(Questions):
    """One process's connection to its session.

    Parameters
    ----------
    token
        What proves that this process belongs to the session.
    path
        The broker's socket.
    """

    inside = True
    """Whether this process is one of the session's, whose frameworks are to be looked after."""
    work = "cell"
    """What waits in the queue, in the words of whoever reads that it has not run."""

    def __init__(self, token: str, path: Path) -> None:
        self.token = token
        self.path = path
        self._listeners: list[Listener] = []
        self._memory: Memory | None = None
        self.gpu: Gpu | None = None
        self.when_idle: Callable[[Callable[[], None]], bool] | None = None
        self.mover: Callable[[], tuple[Warm, Copier] | None] | None = None
        self._quiet, self.cooperates = False, True
        self._reset()
        _sessions.add(self)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._calls = Calls()
        self._jobs: dict[JobId, Job] = {}
        self._confirming: tuple[JobId, ...] = ()
        self._cells: dict[int, int] = {}
        self._view: WordView | None = None
        self._tally: Tally | None = None
        self._version = VERSION
        self._link: Link | None = None
        self.up = False
        self.attached: Attached | None = None
        self.refusal: GpushareError | None = None

    # --- Being there ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to attach, in the background. Nothing waits for it here."""
        with self._changed:
            if self._link is None:
                self._link = Link(self.path, self)
                atexit.register(self.close)
                self._link.start()

    def close(self) -> None:
        """Leave. The broker learns of the process's end by itself; this only ends our own thread."""
        atexit.unregister(self.close)
        with self._changed:
            link, self._link = self._link, None
        if link is not None:
            link.close()
        self._set_up(up=False)
        self._calls.lose_all()
        for job in list(self._jobs.values()):
            job.detach()
        self._view = self._tally = None  # not unmapped by hand: another thread may be reading
        if self.gpu is not None:
            self.gpu.close()

    def wait_attached(self, timeout: float = ANSWER) -> Attached:
        """Return what the broker said of this session and its device.

        Raises
        ------
        BrokerUnavailable
            Where it does not answer within `timeout`; at once where it was stopped on purpose.
        GpushareError
            Where it will not have us.
        """
        self.start()
        if not self._answers(min(timeout, BLINK)) and was_stopped(self.path):
            raise BrokerUnavailable(texts.BROKER_STOPPED)
        if not self._answers(min(timeout, REVIVE_AFTER) - BLINK) and timeout > REVIVE_AFTER:
            from gpushare_kernel.client.revive import revive  # noqa: PLC0415 - hardly ever

            revive(self.path)
        self._answers(timeout - REVIVE_AFTER)
        with self._changed:
            if self.refusal is not None:
                raise self.refusal
            if not self.up or self.attached is None:
                raise BrokerUnavailable(texts.no_answer_text(str(self.path)))
            return self.attached

    def _answers(self, timeout: float) -> bool:
        with interruptible(), self._changed:
            return self._changed.wait_for(lambda: bool(self.up or self.refusal), max(0.0, timeout))

    @property
    def noun(self) -> str:
        """What the memory of this session's device is called."""
        return texts.memory_noun(self.attached.kind if self.attached else "")

    @property
    def memory(self) -> Memory:
        """What measures this session's memory."""
        if self._memory is None:
            self._memory = roots.session_memory()
        return self._memory

    def say(self, text: str) -> None:
        """Show a line to the user, as if the broker had said it."""
        self._tell(Announce(text))

    def listen(self, listener: Listener) -> None:
        """Have `listener` called with what the broker says unasked."""
        self._listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        """Undo `listen`."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    # --- Jobs ------------------------------------------------------------------------------------------

    def submit(
        self,
        submit: Submit,
        *,
        wait: float | None = None,
        on_wait: OnWait | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Job:
        """Queue a job and return it once it may run.

        Parameters
        ----------
        submit
            The job.
        wait
            Seconds after which to give up; None waits for ever.
        on_wait
            Called with why it waits.
        say
            Called with a line for the user (the place in the queue was lost).

        Raises
        ------
        WaitEnded
            Where `wait` is over. The job has not run.
        UserError
            Where the broker refuses the job, with the numbers.
        BrokerUnavailable
            Where no broker came back in time.
        KeyboardInterrupt
            At once; the place in the queue is given up.
        """
        from gpushare_kernel.client.queueing import queue  # noqa: PLC0415 - not at kernel start

        began = time.monotonic()
        if self.gpu is not None:
            submit = self.gpu.fit(submit)
        granted = queue(self, submit, wait=wait, on_wait=on_wait, say=say)
        job = Job(self, submit.name, granted, time.monotonic() - began, plain=submit.plain)
        try:
            with self._changed:
                self._jobs[job.id] = job
                self._watch()
                alone = len(self._jobs) == 1
            self.apply_budget()
            if alone:  # the peak is the process's: with two jobs at once it cannot be told apart
                self.memory.start_peak()
        except BaseException:  # interrupted: nobody else would ever end it
            job.leave(failed=True)
            raise
        return job

    def cooperate(self, *, on: bool) -> None:
        """Meet boundaries, or run past them: a job that does is paused from outside instead."""
        with self._changed:
            self.cooperates = on
            self._watch()

    def count(self) -> None:
        """Count one boundary where the broker reads it."""
        tally = self._tally
        if tally is not None:
            tally.add()

    def boundary(self) -> None:
        """Count a boundary of whatever runs, and apply what came for it."""
        if self.gpu is not None:
            self.gpu.boundary()
        else:
            self.count()

    def apply_budget(self) -> None:
        """Cap the frameworks where the broker said so just now: before a job's first line, and after its last."""
        if self.gpu is not None:
            self.gpu.apply_due()

    def ended(self, job: Job) -> None:
        """Forget a job: it holds nothing any more."""
        with self._changed:
            self._jobs.pop(job.id, None)

    def leave(self, call: Call) -> None:
        """Stop waiting for a reply: give up the place, or what was granted in the same moment. Waits for nothing."""
        reply = self._calls.abandon(call)
        if isinstance(reply, Granted) and call.job is not None:
            self._give_back(reply)
        elif reply is None and call.job is not None:
            self.post(Cancel(call.job))

    # --- Cells -----------------------------------------------------------------------------------------

    def cell_started(self, cell: int) -> None:
        """Say that a plain cell begins. Never waits, never fails."""
        self._cells[cell] = threading.get_ident()
        self.note(CellStarted(cell))

    @property
    def is_program(self) -> bool:
        """Whether no front end says when this process is idle, and no cell runs: a script, a child process."""
        return self.when_idle is None and not self._cells

    def cell_here(self) -> int | None:
        """Return the plain cell that runs in this thread."""
        return next((cell for cell, at in self._cells.items() if at == threading.get_ident()), None)

    def cell_ended(self, cell: int) -> None:
        """Say that it is over."""
        self._cells.pop(cell, None)
        try:
            if self.gpu is not None:
                self.gpu.cell_ended(cell)
        finally:  # interrupted: nobody else would ever say so
            if self.up:
                self.note(CellEnded(cell, self.memory.known()))

    def give_back(self) -> int | None:
        """Give back what the frameworks of a GPU keep unused, on the caller's thread; returns how many bytes."""
        return None if self.gpu is None else self.gpu.give_back()

    # --- Requests ---------------------------------------------------------------------------------------

    def new_call(self, job: JobId | None = None) -> Call:
        """Return a call for a request about to be sent."""
        return self._calls.new(job)

    def send(self, body: Request, call: Call) -> None:
        """Send a request whose reply comes to `call`. Raises LinkDown; UserError where the broker is too old for it."""
        if since(body) > self._version:
            mend = how_to_restart(places())
            raise UserError(texts.older_broker_text(self._version, since(body), mend))
        link = self._link
        if link is None:
            msg = "the session is closed"
            raise LinkDown(msg)
        link.send(ToBroker(Kind.REQUEST, call.id, body), call.sent)

    def call(self, body: Request) -> Call:
        """Send a request and return the call to wait on. Raises LinkDown."""
        call = self._calls.new()
        try:
            self.send(body, call)
        except BaseException:
            self._calls.abandon(call)
            raise
        return call

    def answer(self, call: Call, timeout: float) -> Reply | Lost | None:
        """Wait for a reply that is not about the queue; None where it takes too long."""
        with interruptible():
            return call.wait_reply(timeout)

    def post(self, body: Request) -> None:
        """Send a request whose reply nobody reads; what cannot be sent is dropped."""
        self._send_quietly(Kind.REQUEST, self._calls.number(), body)

    # --- What the link tells us (reader thread) --------------------------------------------------------

    def attach(self) -> Attach:
        """Return the first message of a new connection, with what ran on meanwhile."""
        with self._changed:
            held = tuple(job.held() for job in self._jobs.values())
            self._confirming = tuple(self._jobs)
        aside = 0 if self.gpu is None else self.gpu.moving.attaching()
        again = roots.again(self.attached.device) if self.inside and self.attached else None
        return Attach(self.token, held, self.memory.known() if held else 0, aside, again)

    def came_up(self, welcome: Welcome, fds: list[int]) -> None:
        """Take over the session's page and its tally (a broker of before has none)."""
        body = welcome.body
        try:
            if len(fds) not in (1, 2) or not isinstance(body, Attached):
                msg = f"an attach is answered with a page and a tally, but {type(body).__name__} and {len(fds)} descriptors came."
                raise BadFrame(msg)
            view = WordView(fds.pop(0))
            tally = Tally(fds.pop()) if fds else None
        finally:
            for fd in fds:
                os.close(fd)
        if tally is not None:
            tally.let_go()
        if body.kind == "cuda" and self.gpu is None and self.inside:
            from gpushare_kernel.client.gpu import Gpu  # noqa: PLC0415 - not in a kernel without one

            self.gpu = Gpu(self)
            self._memory = self.gpu.memory
        with self._changed:
            self.attached = body
            self._view, self._tally = view, tally
            self._version = welcome.version
            self._watch()
        if self.gpu is not None:
            self.gpu.attached(body)

    def went_up(self) -> None:
        """Let everybody go on, and say what changed during the handshake."""
        self._set_up(up=True)
        for job in self._confirming:
            here = self._jobs.get(job)
            if here is None:
                self.post(End(job, self.memory.known(), 0, 0))
            else:
                here.returned()
        for cell in list(self._cells):
            self.note(CellStarted(cell))
        if self.gpu is not None:
            self.gpu.moving.went_up()

    def went_down(self) -> None:
        """Wake everybody who waits for an answer; jobs run on."""
        self._set_up(up=False)
        queued = self._calls.lose_all()
        if self._jobs or not queued:
            self._tell(Announce(self.gpu.without_broker() if self.gpu else texts.BROKER_AWAY))

    def word(self) -> int:
        """Return the session's own word (`transport.words`)."""
        return 0 if self._view is None else self._view.read(0)

    def stays_away(self) -> None:
        """Broker and guardian are gone: neighbours may stand still until somebody starts another (I4)."""
        from gpushare_kernel.client.revive import revive  # noqa: PLC0415 - hardly ever

        revive(self.path)

    def refused(self, error: GpushareError) -> None:
        """The broker will not have us: those who wait get its error."""
        with self._changed:
            self.refusal = error
            self._changed.notify_all()

    def frame(self, frame: FromBroker) -> None:
        """Deliver one message."""
        body = frame.body
        if frame.kind is Kind.REPLY:
            left = self._calls.resolve(frame.id, cast("Reply", body))  # the codec checked the kind
            if left is not None and left.job is not None and isinstance(body, Granted):
                self._give_back(body)
        elif isinstance(body, Waiting):
            self._calls.waiting(body.job, body.wait)
            job = self._jobs.get(body.job)
            text = None if job is None else job.hears(body.wait)
            if text is not None:
                self.say(text)
        elif isinstance(body, Soon):
            self._calls.nudge()
        elif isinstance(body, Slowed | Announce):
            self._tell(body)
        elif self.gpu is not None:
            self.gpu.hears(body)

    # --- Inside ----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        count = None if self._tally is None else self._tally.add
        if self.gpu is not None:
            count = self.gpu.boundary
        for job in self._jobs.values():
            job.watch(self._view if self.cooperates else None, count)

    def note(self, body: ClientNotice) -> None:
        """Tell the broker something. Never waits, never fails; a broker that is too old for it is not told."""
        if since(body) <= self._version:
            self._send_quietly(Kind.NOTICE, 0, body)

    def _send_quietly(self, kind: Kind, number: int, body: Request | ClientNotice) -> None:
        link = self._link
        if link is not None and self.up:
            try:
                link.send(ToBroker(kind, number, body))
            except LinkDown:
                return

    def _give_back(self, granted: Granted) -> None:
        self.post(End(granted.job, self.memory.known(), 0, 0))

    def _set_up(self, *, up: bool) -> None:
        with self._changed:
            self.up = up
            self._changed.notify_all()

    def _tell(self, notice: Slowed | Announce) -> None:
        if isinstance(notice, Announce) and not self._listeners and not self._quiet:
            sys.stderr.write(f"gpushare: {notice.text}\n")
        for listener in list(self._listeners):
            listener(notice)

    def forget(self) -> None:
        """In a forked child: drop what is the parent's; attach anew when something is asked for."""
        if self._link is not None:
            atexit.unregister(self.close)
            self._link.abandon()
        for job in self._jobs.values():
            job.detach()
        self._listeners.clear()
        self._quiet = True  # the parent says it
        if self.gpu is not None:
            self.gpu.forget()
        self.when_idle = None
        self._reset()


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_sessions):
        session.forget()


os.register_at_fork(after_in_child=_after_fork)
