"""A session whose device is a GPU: its frameworks, its budget, and the boundaries of whatever runs.

Everything that calls a framework runs on a thread of the user's: at a boundary, at the start or end of
a cell, or, while the kernel is idle, where the front end says (`Session.when_idle`). A program has no
front end: what a kernel does when it is idle, it does at its next boundary. Only what was
imported before the broker answered is hooked on the reader thread, which touches its Python alone.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gpushare_kernel.client.adapters import Adapters
from gpushare_kernel.client.adapters.base import Adapter
from gpushare_kernel.client.device_memory import DeviceMemory
from gpushare_kernel.client.lanes import current_lane
from gpushare_kernel.client.moving import Moving
from gpushare_kernel.client.plain import PlainUse
from gpushare_kernel.client.ptracer import let_workers_in
from gpushare_kernel.transport.words import AWAY
from gpushare_kernel.wire import framework_texts, parking_texts, texts
from gpushare_kernel.wire.aside import PutBack, SetAside
from gpushare_kernel.wire.messages import Budget, Trim

if TYPE_CHECKING:
    from gpushare_kernel.client.session import Session
    from gpushare_kernel.wire.messages import Attached, Submit


class Gpu:
    """The GPU side of a session.

    Attributes
    ----------
    limit
        Bytes this notebook may hold, its contexts apart; None where no cap of ours exists.
    broken
        Whether its context is lost: no framework is asked for anything any more.
    kept
        Bytes that were in use when a boundary was last looked at; None where none was since `watch`.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._applying = threading.Lock()
        self._capped = False
        self._due = self._trim_due = self._look_due = False
        self._told: set[str] = set()
        self.limit: int | None = None
        self.reserve = 0
        self.capacity = 0
        self.warm = False
        self.broken = False
        self.kept: int | None = None
        self.plain = PlainUse(session)
        self.adapters = Adapters(self)
        self.memory = DeviceMemory(self._asked)
        self.moving = Moving(session)

    @property
    def away(self) -> bool:
        """Whether the session's device memory is set aside: a call to the driver would wait for it."""
        return bool(self._session.word() & AWAY)

    def _asked(self) -> tuple[Adapter, ...]:
        """Who may be asked now: an answer of the driver would wait for memory that is set aside."""
        return () if self.broken or self.away else tuple(self.adapters.active)

    # --- What the broker says (reader thread) ----------------------------------------------------------

    def attached(self, body: Attached) -> None:
        """Take over the device's numbers; the first time, look out for frameworks."""
        self.capacity, self.reserve, self.warm = body.capacity, body.reserve, body.warm
        self._set_limit(body.limit)
        let_workers_in()
        try:
            self.adapters.install()
        except ImportError as problem:  # half an installation must not end the session
            self.say_once(framework_texts.unadapted_text(str(problem)))

    def hears(self, notice: object) -> None:
        """Take in what a GPU's broker says: budgets, and what is to go back or to be set aside; done on the user's thread."""
        if isinstance(notice, Budget):
            self._set_limit(notice.limit)
        elif isinstance(notice, Trim):
            self.trim()
        elif isinstance(notice, SetAside | PutBack):
            self.moving.hears(notice)

    def _set_limit(self, limit: int | None) -> None:
        self.limit = limit
        self._due = True
        later = self._session.when_idle
        if later is not None:
            later(self.apply_due)

    def trim(self) -> None:
        """Give back what is unused, on the user's thread, once no cell is in the way: somebody wants it."""
        self._trim_due = True
        later = self._session.when_idle
        if later is not None:
            later(self.trim_due)

    # --- What whoever looks on asks (any thread) -------------------------------------------------------

    def watch(self) -> None:
        """Forget what was seen at boundaries before."""
        self.kept = None

    def look_soon(self) -> None:
        """Have memory measured at the next boundary: frameworks are asked on the user's thread."""
        self._look_due = True

    # --- On the user's thread ---------------------------------------------------------------------------

    def boundary(self) -> None:
        """Count a boundary, and apply a budget that came meanwhile; a program also gives back what somebody wants."""
        self._session.count()
        if self._due:
            self.apply()
        if self._trim_due and self._session.is_program and not self.memory.capturing():
            self.give_back()
        if self._look_due:
            self._look_due = False
            self.kept = sum(self.memory.used().values())
            self.memory.peak()

    def met(self) -> None:
        """A framework has met a boundary: of the lane that is open here, or of whatever runs."""
        lane = current_lane()
        if lane is None:
            self.boundary()
        else:
            lane.step_unasked()

    def first_use(self) -> None:
        """A framework is about to use the device for the first time: a plain cell waits here until there is room."""
        self.plain.hold()

    def first_used(self) -> None:
        """It has a context now, and can be capped."""
        self.apply()

    def cell_event(self) -> None:
        """A cell begins or ends: cap what grew, and meet frameworks that were too early for us."""
        self.adapters.meet_late()
        self.trim_due()
        if self._due or self.limit is not None:
            self.apply()

    def cell_ended(self, cell: int) -> None:
        """A plain cell is over, and its job with it; what it left is measured."""
        self.plain.cell_ended(cell)
        self.cell_event()
        self.memory.now()

    def trim_due(self) -> None:
        """Give back what is unused, where somebody asked for it and it has not been done yet."""
        if self._trim_due and not self.away:
            self.give_back()

    def give_back(self) -> int:
        """Give back what the frameworks keep unused; returns how many bytes."""
        before = self.memory.now()
        due, self._trim_due = self._trim_due, False
        try:
            gc.collect()  # models live in circles
            self.memory.trim()
        except BaseException:  # interrupted: somebody wants it still
            self._trim_due = self._trim_due or due
            raise
        return max(0, before - self.memory.now())

    def fit(self, submit: Submit) -> Submit:
        """Return `submit` with what is held. What is kept unused goes back first, where else the notebook would hold more already than the job may."""
        if submit.plain:
            return submit
        held = self.memory.now()
        if submit.size is not None and held > submit.size:
            self.give_back()
            held = self.memory.now()
        return replace(submit, held=held)

    @contextmanager
    def uncapped(self) -> Iterator[None]:
        """No cap of ours while what was set aside comes back: the broker has made room for it, and says only then what may be held."""
        for adapter in self.memory.in_use() if self._capped else ():
            adapter.cap(None)
        self._capped = False
        try:
            yield
        finally:
            self.apply()

    def apply_due(self) -> None:
        """Apply a budget that nobody has applied yet."""
        if self._due:
            self.apply()

    def apply(self) -> None:
        """Give back what is unused above the limit, then cap the frameworks there. Never raises but for an interrupt."""
        if self.away or self.memory.capturing() or not self._applying.acquire(blocking=False):
            return  # while it is set aside, or a graph is captured, that stays due
        try:
            self._due = False
            self._apply(self.limit)
        except Exception as problem:  # noqa: BLE001 - a cap that cannot be set must not end a cell
            self.say_once(framework_texts.uncapped_text(f"{type(problem).__name__}: {problem}"))
        except BaseException:  # interrupted: it is due still
            self._due = True
            raise
        finally:
            self._applying.release()

    def _apply(self, limit: int | None) -> None:
        if limit is None:
            if self._capped:
                for adapter in self.memory.in_use():
                    adapter.cap(None)
                self._capped = False
            return
        held = self.memory.held()
        if self.memory.last > limit:
            self.memory.trim()
            held = self.memory.held()
        whole = sum(held.values())
        for adapter, own in held.items():
            # One framework's room is what the others leave of the limit. What it holds it keeps.
            adapter.cap(max(own, limit - (whole - own)))
            self._capped = True

    # --- Words -------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Show a line to the user."""
        self._session.say(text)

    def without_broker(self) -> str:
        """Return what a broker's absence means here."""
        if self.moving.aside:
            return parking_texts.BROKER_AWAY_HELD
        return texts.BROKER_AWAY_ASIDE if self.away else texts.BROKER_AWAY

    def say_once(self, text: str) -> None:
        """Show a line, once in this process."""
        if text not in self._told:
            self._told.add(text)
            self.say(text)

    def fixed(self, name: str) -> Adapter | None:
        """Return the framework of this name where its limit was fixed at the kernel's start."""
        return next((a for a in self.memory.in_use() if a.fixed and a.name == name), None)

    # --- Ends --------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """In a forked child: nothing of the parent's job or budget is ours."""
        self._applying = threading.Lock()
        self._due = self._trim_due = self._look_due = False
        self.adapters.forget()
        self.plain.forget()
        let_workers_in()

    def close(self) -> None:
        """Take all hooks back."""
        self.adapters.remove()
