"""Salus' policies as its code has them, for the scheduler that we replay: no ageing, nothing reset, no bound on packing. And one of ours without a rule."""

from __future__ import annotations

from gpushare_kernel.core.policies import POLICIES, Pack, Policy, Srtf, Together, remaining
from gpushare_kernel.core.records import Job, Key, Session


class SalusSrtf(Srtf):
    """`preempt`: least total less used; nothing makes up for waiting."""

    name = "salus-srtf"
    together = Together.FITTING
    displaces = False

    def job_key(self, job: Job, session: Session, at: float) -> Key:
        """Least remaining first."""
        return (remaining(job, session, at), job.order)


class OpenSrtf(Srtf):
    """Ours, but whatever fits the memory is let in: nothing is kept for who comes next."""

    name = "open-srtf"
    together = Together.FITTING


class SalusFair(Policy):
    """`fair`: least lane time used so far, never reset: a newcomer has the lane until it has caught up with the oldest."""

    name = "salus-fair"
    preempts = True

    def job_key(self, job: Job, session: Session, at: float) -> Key:
        """Least served first."""
        return (job.served(session, at), job.order)


class SalusPack(Pack):
    """`pack`: whatever has a lane runs, in the order of arrival."""

    name = "salus-pack"

    def job_key(self, job: Job, session: Session, at: float) -> Key:  # noqa: ARG002
        """Oldest first."""
        return (0.0, job.order)


POLICIES.update({policy.name: policy for policy in (SalusSrtf, SalusFair, SalusPack, OpenSrtf)})
