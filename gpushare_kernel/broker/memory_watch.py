"""What is said and done, once a second, about those who hold GPU memory that others wait for. `overdraft` decides."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gpushare_kernel.broker.controls import tell_holder
from gpushare_kernel.broker.overdraft import LONGEST_PAUSE, Over, Overdraft, Step
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.budget import granted, people_waiting
from gpushare_kernel.core.records import Session
from gpushare_kernel.core.values import SessionId
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire import texts

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker
    from gpushare_kernel.broker.engine import Engine
    from gpushare_kernel.broker.kernels import Kernel

SIGNAL_EXEMPT = 5.0
"""A session that we signal runs for this long at least (seconds): a paused process takes no signal in."""
_logger = logging.getLogger(__name__)


class MemoryWatch:
    """Looks at the sessions of one device after the other."""

    def __init__(self, broker: Broker, over: Over = Over.TELL) -> None:
        self._broker = broker
        self._overdraft = Overdraft(over)

    def look(self, engine: Engine, held: Mapping[SessionId, int]) -> None:
        """Look at the sessions of `engine`; `held` are the bytes they were seen to hold, contexts apart."""
        if engine.scheduler.config.divisible or engine.scheduler.lost:
            return
        for session in [*engine.scheduler.sessions.values()]:
            kernel = self._broker.registry.get(session.id)
            # What is parked is not given back for good: neither its zero nor what is on its way says anything.
            if kernel is not None and not engine.moves.away(kernel):
                self._over_grant(engine, kernel, session, held.get(session.id, 0))
                self._idle_holder(engine, kernel, session)

    def forget(self) -> None:
        """Forget sessions that are gone."""
        living = {kernel.id for kernel in self._broker.registry}
        self._overdraft.keep(living)
        self._broker.idle_holders.keep(living)

    def _over_grant(self, engine: Engine, kernel: Kernel, session: Session, held: int) -> None:
        limit = granted(session)
        people = people_waiting(engine.scheduler, but=session)
        step = self._overdraft.look(
            session.id, held=held, limit=limit, people=people, at=engine.now
        )
        if step is Step.LET_ON:
            engine.feed(ev.SuspensionEnded(at=engine.now, session=session.id))
        elif step is not None and limit is not None:
            _logger.info(
                "a session is over its grant: %s",
                step,
                extra={"session": session.id, "held": held, "limit": limit, "waiting": people},
            )
            self._carry_out(step, engine, kernel, session, (held, limit, people))

    def _carry_out(
        self,
        step: Step,
        engine: Engine,
        kernel: Kernel,
        session: Session,
        numbers: tuple[int, int, int],
    ) -> None:
        held, limit, people = numbers
        noun = texts.memory_noun(engine.device.inventory.kind)
        if step is Step.TELL:
            kernel.notify(msg.Announce(texts.over_told_text(held, limit, noun)))
        elif step is Step.ASK:
            kernel.notify(msg.Budget(limit))
            if people:
                kernel.notify(msg.Announce(texts.over_asked_text(held, limit, people, noun)))
        elif step is Step.PAUSE:
            until = engine.now + LONGEST_PAUSE
            engine.feed(ev.Suspended(at=engine.now, session=session.id, until=until))
            if session.suspended_until is None:
                self._overdraft.not_paused(session.id)
            else:
                text = texts.over_paused_text(held, limit, people, LONGEST_PAUSE, noun)
                kernel.notify(msg.Announce(text))
        else:
            self._end(step, engine, kernel)

    def _end(self, step: Step, engine: Engine, kernel: Kernel) -> None:
        """An administrator wants it ended: its own process, and nobody else's; paused it would not take the signal in."""
        number = signal.SIGINT if step is Step.INTERRUPT else signal.SIGTERM
        if kernel.pidfd < 0:
            return
        until = engine.now + SIGNAL_EXEMPT
        engine.feed(ev.Exempted(at=engine.now, session=kernel.id, until=until))
        _logger.warning(
            "a session over its grant gets %s, as --over end says",
            number.name,
            extra={"session": kernel.id, "pid": kernel.key.pid if kernel.key else None},
        )
        kernel.mark_ended(ended=True)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(kernel.pidfd, number)

    def _idle_holder(self, engine: Engine, kernel: Kernel, session: Session) -> None:
        if session.jobs or session.cell_open or not kernel.lines:
            return
        people = people_waiting(engine.scheduler, but=session, own=False)
        if self._broker.idle_holders.due(
            session.id,
            held=session.charged,
            idle_since=session.idle_since,
            people=people,
            at=engine.now,
        ):
            tell_holder(engine, kernel, session, people)
