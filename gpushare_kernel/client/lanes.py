"""`with gpushare.lane(...)`: a declared piece of work, its boundaries, and what became of it."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from gpushare_kernel.client import display
from gpushare_kernel.client.job import INNER, OUTER, Job, Loop, Unshared
from gpushare_kernel.core.errors import BadDeclaration, BrokerUnavailable, GpushareError
from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.core.values import JobId
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import Report, Submit

if TYPE_CHECKING:
    from gpushare_kernel.client.session import Session

_Item = TypeVar("_Item")


class Reports(list[Report]):
    """What became of several jobs; a notebook shows them as a table."""


ended: deque[Report] = deque(maxlen=1000)
"""What became of this process's jobs, the newest last."""
_innermost: ContextVar[Lane | None] = ContextVar("gpushare_lane", default=None)


class Lane:
    """A declared piece of work. Made by `gpushare.lane` and by `%%gpulane`; entered once.

    Attributes
    ----------
    name
        What the job is called in status lists.
    waited
        Seconds it waited to begin.
    report
        What became of it, after its end; None where no broker said so.
    """

    def __init__(
        self,
        session: Session | None,
        submit: Submit,
        *,
        wait: float | None = None,
        show: display.Factory | None = None,
    ) -> None:
        self.name = submit.name
        self.waited = 0.0
        self.report: Report | None = None
        self._session = session
        self._submit = submit
        self._wait = wait
        self._show = show
        self._outer: Lane | None = None
        self._job: Job | Unshared = Unshared()
        self._mask = OUTER
        self._before = 0
        self._pid = 0

    @property
    def shared(self) -> bool:
        """Say whether a broker takes part; without one the work runs as it is."""
        return isinstance(self._job, Job)

    @property
    def boundaries(self) -> int:
        """How many boundaries it met, those of lanes inside it included."""
        return self._job.boundaries - self._before

    @property
    def loops(self) -> tuple[Loop, ...]:
        """The loops over `steps` that run now, the outermost first. Any thread may ask."""
        return tuple(self._job.loops)

    @property
    def open(self) -> bool:
        """Say whether the lane is entered and not left, in this process."""
        return self._pid == os.getpid()

    @property
    def persistent(self) -> int | None:
        """Bytes the notebook may keep, as admitted."""
        return self._job.persistent if isinstance(self._job, Job) else self._submit.persistent

    @property
    def ephemeral(self) -> int | None:
        """Bytes the work may hold beyond that while it runs, as admitted."""
        return self._job.ephemeral if isinstance(self._job, Job) else self._submit.ephemeral

    @property
    def in_parts(self) -> bool:
        """Say whether it was declared as what is kept and what is held beyond that, not as one size."""
        return self._submit.persistent is not None or self._submit.ephemeral is not None

    def __enter__(self) -> Self:
        if self._pid:
            msg = "a lane is entered once. Make another one: gpushare.lane(...)."
            raise BadDeclaration(msg)
        outer = current_lane()
        if outer is not None and isinstance(outer._job, Job):
            _check_fits(self._submit, outer._job)
            self._outer, self._job, self._mask = outer, outer._job, INNER
            self._before = self._job.boundaries
        else:
            try:
                self._begin()
            except BaseException as error:
                self._give_up()
                if isinstance(error, KeyboardInterrupt):
                    error.args = (texts.LEFT_QUEUE,)
                elif not isinstance(error, GpushareError):
                    raise
                raise display.without_our_frames(error) from None
        self._pid = os.getpid()
        _innermost.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(failed=error is not None)

    def close(self, *, failed: bool = False) -> None:
        """Leave the lane; a second time it does nothing, and neither does it in a forked child.

        What a run took that `failed` says nothing of the next: nothing is learned of it.
        """
        if not self.open:
            return
        self._pid = -1
        if _innermost.get() is self:
            _innermost.set(self._outer)
        if self._outer is None:
            self.report = self._job.end(failed=failed)
            if self.report is not None:
                ended.append(self.report)

    def step(self) -> None:
        """Meet a boundary: say that the ephemeral memory is empty, or may be emptied.

        Call it between iterations. It costs a read of one word; only where somebody waits does it
        give back unused memory, pass the turn on, and return when it is this job's turn again.
        """
        job = self._job
        job.stepped = True
        self._meet(job)

    def step_unasked(self) -> None:
        """Meet a boundary that a framework saw. A lane that is stepped by hand knows its boundaries better."""
        job = self._job
        if not job.stepped:
            self._meet(job)

    def _meet(self, job: Job | Unshared) -> None:
        job.boundaries += 1
        job.count()
        if job.read(job.slot):
            self._answer(job)

    def _round_over(self, before: int) -> None:
        """Meet the boundary of a loop's round. Where it had steps inside (since `before`) it is no further one."""
        job = self._job
        if job.boundaries == before:
            self.step()
        elif job.read(job.slot):
            self._answer(job)

    def _answer(self, job: Job | Unshared) -> None:
        try:
            job.meet(self._mask)
        except (KeyboardInterrupt, GpushareError) as error:
            raise display.without_our_frames(error) from None

    def steps(self, iterable: Iterable[_Item]) -> Steps[_Item]:
        """Iterate, with a boundary after each round: `for batch in lane.steps(loader)`.

        The length, where `iterable` knows it, is kept for progress bars, and shown in the cell's own line.
        """
        return _SizedSteps(self, iterable) if isinstance(iterable, Sized) else Steps(self, iterable)

    def _begin(self) -> None:
        session = self._session
        if session is None:
            return
        shown = (self._show or display.default)(session, texts.wait_text)
        began: float | None = None
        try:
            self._job = session.submit(
                self._submit, wait=self._wait, on_wait=shown.wait, say=shown.say
            )
            began = self.waited = self._job.waited
            if self._job.learned:
                size = self._job.persistent + self._job.ephemeral
                shown.say(texts.learned_text(size, self._job.learned, session.noun))
        except GpushareError as problem:
            if not (isinstance(problem, BrokerUnavailable) or problem is session.refusal):
                raise
            shown.say(f"{problem} {texts.RUNS_UNSHARED}")
        finally:
            shown.done(began)

    def _give_up(self) -> None:
        """End what was granted just as the entering failed: nobody else would."""
        job, self._job = self._job, Unshared()
        if isinstance(job, Job):
            job.leave(failed=True)

    @property
    def state(self) -> str:
        """How far it is (`not entered`, `open` or `left`)."""
        return "open" if self.open else "left" if self._pid else "not entered"

    def __repr__(self) -> str:
        return f"<gpushare lane {self.name!r}, {self.state}, {self.boundaries} boundaries>"


class Steps(Generic[_Item]):
    """The rounds of a loop, a boundary after each."""

    def __init__(self, lane: Lane, iterable: Iterable[_Item]) -> None:
        self._lane = lane
        self._iterable = iterable

    def __iter__(self) -> Iterator[_Item]:
        round_over, job = self._lane._round_over, self._lane._job
        loops = job.loops
        loop = Loop(self._total())
        loops.append(loop)
        try:
            for item in self._iterable:
                before = job.boundaries
                yield item
                round_over(before)
                loop.done += 1
        finally:
            loops.remove(loop)

    def _total(self) -> int | None:
        return None


class _SizedSteps(Steps[_Item]):
    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # only made of sized ones

    def _total(self) -> int | None:
        with contextlib.suppress(Exception):  # a loader of torch may have a length and not know it
            return len(self)
        return None


def current_lane() -> Lane | None:
    """Return the innermost lane that is open in this thread and context, or None.

    A context may outlive the lanes entered in it (an event loop's tasks): those are passed over.
    """
    lane = _innermost.get()
    while lane is not None and not lane.open:
        lane = lane._outer
    return lane


def new_job_id() -> JobId:
    """Return an id no other job has."""
    return JobId(os.urandom(8).hex())


def _check_fits(inner: Submit, job: Job) -> None:
    whole = job.persistent + job.ephemeral
    for what, asked, has in (
        ("in all", inner.size, whole),
        ("to keep (persistent)", inner.persistent, job.persistent),
        ("while it runs (ephemeral)", inner.ephemeral, job.ephemeral),
    ):
        if asked is not None and asked > has:
            msg = (
                f"a lane inside a lane must fit into it, but asks for {format_size(asked)} {what}, where "
                f"{job.name!r} around it has {format_size(has)}. Declare more outside, or less inside."
            )
            raise BadDeclaration(msg)
