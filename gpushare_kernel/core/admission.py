"""The memory queue: who waits for room, in the order of the policy, and how far others may pass.

Strict order leaves memory idle behind a big job; free overtaking starves it (Salus' code does). Here any of the
first `WINDOW` jobs may take what fits, but a job that was overtaken as often as the policy lets it be is not passed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from gpushare_kernel.core.policies import Policy
from gpushare_kernel.core.ranking import Ranking
from gpushare_kernel.core.records import Job, Session, User
from gpushare_kernel.core.values import JobId

WINDOW = 32


class AdmissionQueue:
    """Jobs that wait for memory. With `arrival` in that order, and whatever fits may pass, as Salus' code has it."""

    def __init__(self, policy: Policy, *, arrival: bool = False) -> None:
        self._policy = policy
        self._arrival = arrival
        self._jobs: dict[JobId, tuple[Job, Session]] = {}
        self._ranking: Ranking[Job] = Ranking(self._user_key)
        #: How often anybody has come or gone.
        self.version = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        """Everybody, in the order of the policy."""
        return self._ranking.ranked(_nothing, scan=None, deep=None)

    def __contains__(self, job: JobId) -> bool:
        return job in self._jobs

    @property
    def head(self) -> Job | None:
        """Who is next."""
        best = self._ranking.best()
        return None if best is None else best[2]

    def first(self) -> Session | None:
        """Return whose job is next."""
        head = self.head
        return None if head is None else self._jobs[head.id][1]

    def push(self, job: Job, session: Session, at: float) -> None:
        """`job` of `session` waits from now on."""
        self.version += 1
        self._jobs[job.id] = (job, session)
        job.rank = self._key(job, session, at)
        self._ranking.add(session.user, job)

    def remove(self, job: Job) -> None:
        """Take `job` out, wherever it stands."""
        known = self._jobs.pop(job.id, None)
        if known is not None:
            self.version += 1
            self._ranking.remove(known[1].user, job)

    def promote(self, job: Job, at: float) -> None:
        """`job` has waited long: from now on it comes before all who were submitted later."""
        known = self._jobs.get(job.id)
        if known is not None and known[0] is job and not job.promoted:
            self.version += 1
            job.promoted = True
            self._ranking.move(known[1].user, job, self._key(job, known[1], at))

    def rerank(self, user: User) -> None:
        """What `user` is ranked by has changed."""
        self._ranking.rerank(user)

    def follow(self, policy: Policy, at: float) -> None:
        """Rank everybody by another policy."""
        self._policy = policy
        waiting = [*self._jobs.values()]
        self._jobs.clear()
        self._ranking = Ranking(self._user_key)
        for job, session in waiting:
            self.push(job, session, at)

    def ahead(self, job: JobId) -> int:
        """Return how many stand before `job`. Linear: for reading, not for deciding."""
        return next((n for n, other in enumerate(self) if other.id == job), len(self._jobs))

    def admit(
        self, fits: Callable[[Job], bool], turn: float = 0.0, *, idle: bool = False
    ) -> Iterator[Job]:
        """Yield (and take out) each job that `fits` lets in, until nobody else may pass. `fits` places it.

        A user of whom a job was let in has had `turn` device seconds more, for the choice of the next. Where the device is
        `idle` some may pass under any policy: whoever is first waits for memory that nobody at work will give back.
        """
        passed: list[Job] = []
        passes = max(self._policy.passes, Policy.passes) if idle else self._policy.passes
        window = None if self._arrival else WINDOW
        every = self._ranking.ranked(lambda _: turn, scan=window, deep=window)
        most = -1  # how often any of those passed so far was overtaken
        for job in islice(every, window):
            if fits(job):
                self.remove(job)
                for other in passed:
                    other.overtaken += 1
                most += 1 if passed else 0
                yield job
            else:
                passed.append(job)
                most = max(most, job.overtaken)
            if not self._arrival and most >= passes:
                return

    def _key(self, job: Job, session: Session, at: float) -> tuple[float, int]:
        if self._arrival:
            return (0.0, job.order)
        return self._policy.job_key(job, session, at)

    def _user_key(self, user: User, best: tuple[float, int], ahead: float) -> tuple[float, int]:
        return best if self._arrival else self._policy.rank(user, best, ahead)


def _nothing(_: Job) -> float:
    return 0.0
