"""What each session did on one device in the last half minute: turns, drains, pauses, parks. For people to see; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

from gpushare_kernel.core.records import Session
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import SessionId
from gpushare_kernel.wire.snapshot import TurnView

KEPT = 30.0
"""Seconds that are told."""
MOST = 600
"""Spans of one device that are told; where there were more, short ones are merged with their neighbours."""
_SHORT = 0.005
"""What is merged first is this short (seconds)."""
_SOONEST = 0.0001
"""What has ended is told to have ended this long ago at least: 0 says that it goes on."""

_DIGITS = 4
"""Of a second, in what is told."""

TURN, DRAIN, PAUSE, PARK = "turn", "drain", "pause", "park"
_AT_WORK = {TURN, DRAIN}
_BY_PHASE = {Phase.ON: TURN, Phase.LEAVING: DRAIN}


@dataclass(slots=True)
class _Span:
    session: SessionId
    kind: str
    began: float
    ended: float


class History:
    """The spans of one device. Fed with every change (`note`); times are those of the core's events."""

    def __init__(self) -> None:
        self._open: dict[SessionId, _Span] = {}
        #: Those that are over, in the order of their ends.
        self._over: list[_Span] = []
        self._gap = _SHORT

    def note(self, session: Session, at: float) -> None:
        """Take in what `session` does from now on."""
        kind = _kind(session)
        span = self._open.get(session.id)
        if span is not None:
            if span.kind == kind:
                return
            del self._open[session.id]
            if at > span.began:
                span.ended = at
                self._over.append(span)
                if len(self._over) > MOST:
                    self._thin(at)
        if kind is not None:
            self._open[session.id] = _Span(session.id, kind, at, at)

    def turns(self, now: float) -> tuple[TurnView, ...]:
        """Return what is told at `now`: what began first comes first. Counted from the same digits moments stay where they are."""
        since = now - KEPT
        spans = [span for span in self._over if span.ended > since]
        spans = [*spans, *self._open.values()][-MOST:]
        spans.sort(key=lambda span: span.began)
        goes_on = self._open
        return tuple(
            TurnView(
                span.session,
                round(now - max(round(span.began, _DIGITS), since), _DIGITS),
                0.0
                if goes_on.get(span.session) is span
                else max(_SOONEST, round(now - round(span.ended, _DIGITS), _DIGITS)),
                span.kind,
            )
            for span in spans
        )

    def _thin(self, at: float) -> None:
        """Forget what is too old; where that is not enough, merge short spans, then longer ones."""
        self._over = [span for span in self._over if span.ended > at - KEPT]
        self._gap = max(_SHORT, self._gap / 4)
        while len(self._over) > MOST // 2 and self._gap < KEPT:
            self._over = _merged(self._over, self._gap)
            self._gap *= 2
        self._over = self._over[-(MOST // 2) :]


def _kind(session: Session) -> str | None:
    if session.parked is not None:
        return PARK
    if session.suspended_until is not None:
        return PAUSE
    return _BY_PHASE.get(session.phase)


def _merged(spans: list[_Span], gap: float) -> list[_Span]:
    """Merge neighbours of one session, no more than `gap` apart, of which one is no longer than that."""
    last: dict[SessionId, _Span] = {}
    out = []
    for span in spans:
        before = last.get(span.session)
        if before is not None and _may_merge(before, span, gap):
            if span.ended - span.began > before.ended - before.began:
                before.kind = span.kind
            before.ended = span.ended
        else:
            last[span.session] = span
            out.append(span)
    out.sort(key=lambda span: span.ended)
    return out


def _may_merge(before: _Span, span: _Span, gap: float) -> bool:
    alike = before.kind == span.kind or (before.kind in _AT_WORK and span.kind in _AT_WORK)
    shorter = min(before.ended - before.began, span.ended - span.began)
    return alike and shorter <= gap and span.began - before.ended <= gap
