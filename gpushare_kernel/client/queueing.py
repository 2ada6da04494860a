"""Waiting in the queue: until the job is granted, the time is over, or the user interrupts."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty
from typing import TYPE_CHECKING

from gpushare_kernel.client.calls import LOST, Call, Lost, Nudge, expect, interruptible
from gpushare_kernel.client.link import LinkDown
from gpushare_kernel.client.questions import BLINK
from gpushare_kernel.core.errors import BrokerUnavailable, WaitEnded
from gpushare_kernel.core.values import Wait
from gpushare_kernel.transport.places import was_stopped
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import CANCELLED, Cancel, Failure, Granted, Reply, Submit

if TYPE_CHECKING:
    from gpushare_kernel.client.session import Session

ABSENCE = 10.0
"""Seconds a new job waits for a broker that is away: its guardian restarts it within one."""
_ANSWER = 5.0

OnWait = Callable[[Wait | None], float | None]
"""Called on the waiting thread with why it waits (None: the broker is away). Returns after how many
seconds it wants to be called again with the same, or None."""


def queue(
    session: Session,
    submit: Submit,
    *,
    wait: float | None,
    on_wait: OnWait | None,
    say: Callable[[str], None] | None,
) -> Granted:
    """Submit a job and return its grant. See `Session.submit`."""
    deadline = None if wait is None else time.monotonic() + wait
    reasons = _Reasons(on_wait)
    lost = said = False
    with interruptible():
        while True:
            _until_up(session, deadline, wait, reasons)
            if lost and not said and say is not None:
                said = True
                say(texts.PLACE_LOST)
            reply = _ask(session, submit, deadline, reasons)
            if reply is None:
                raise _wait_ended(session, wait, reasons.latest)
            if reply is not LOST:
                return expect(reply, Granted)
            lost = True


class _Reasons:
    """Passes reasons on, again when the callback wants to be reminded."""

    def __init__(self, callback: OnWait | None) -> None:
        self._callback = callback
        self.latest: Wait | None = None
        self.due: float | None = None

    def tell(self, wait: Wait | None) -> None:
        self.latest = wait
        self.again()

    def again(self) -> None:
        pause = self._callback(self.latest) if self._callback is not None else None
        self.due = None if pause is None else time.monotonic() + pause


def _ask(
    session: Session, submit: Submit, deadline: float | None, reasons: _Reasons
) -> Reply | Lost | None:
    """Submit once. None where the time is over and the job is out of the queue."""
    call = session.new_call(submit.job)
    try:
        session.send(submit, call)
        reply = _next(call, deadline, reasons)
        if reply is None:
            reply = _cancelled(session, call, reasons)
    except LinkDown:
        session.leave(call)
        return LOST
    except BaseException:
        session.leave(call)
        raise
    return reply


def _next(call: Call, deadline: float | None, reasons: _Reasons) -> Reply | Lost | None:
    """Return the reply, or None once the deadline has passed."""
    while True:
        until = min((t for t in (deadline, reasons.due) if t is not None), default=None)
        try:
            item = call.inbox.get(
                timeout=None if until is None else max(0, until - time.monotonic())
            )
        except Empty:
            if deadline is not None and time.monotonic() >= deadline:
                return None
            reasons.again()
        else:
            if isinstance(item, Nudge):
                continue  # a grant is about to come
            if not isinstance(item, Wait):
                return item
            reasons.tell(item)


def _cancelled(session: Session, call: Call, reasons: _Reasons) -> Reply | Lost | None:
    """Leave the queue. What was faster stands: after a grant the job runs after all, a refusal says why no wait would help."""
    if call.job is not None:
        session.post(Cancel(call.job))
    late = _Reasons(None)
    reply = _next(call, time.monotonic() + _ANSWER, late)
    reasons.latest = late.latest or reasons.latest
    if isinstance(reply, Granted) or (isinstance(reply, Failure) and reply.code != CANCELLED):
        return reply
    if not isinstance(reply, Failure):
        session.leave(call)
    return None


def _until_up(
    session: Session, deadline: float | None, wait: float | None, reasons: _Reasons
) -> None:
    """Wait for a broker that is away, within limits."""
    if session.up:
        return
    limit = time.monotonic() + ABSENCE
    if deadline is not None:
        limit = min(limit, deadline)
    try:
        session.wait_attached(BLINK)  # so long also where nobody is to wait for memory
    except BrokerUnavailable as problem:
        if problem is session.refusal or was_stopped(session.path):
            raise
    else:
        return
    reasons.tell(None)
    try:
        session.wait_attached(max(0.0, limit - time.monotonic()))
    except BrokerUnavailable as problem:
        late = deadline is not None and time.monotonic() >= deadline
        if late and problem is not session.refusal:
            raise _wait_ended(session, wait, None) from None
        raise


def _wait_ended(session: Session, wait: float | None, why: Wait | None) -> WaitEnded:
    return WaitEnded(texts.wait_ended_text(wait or 0.0, why, session.noun, session.work))
