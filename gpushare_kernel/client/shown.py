"""What a client shows of the broker's answers: the wire's types for those who import the client only, and what sessions are called."""

from gpushare_kernel.wire.messages import Announce, Report, Slowed
from gpushare_kernel.wire.snapshot import DeviceView, NeedView, SessionView, Snapshot, TurnView

__all__ = [
    "Announce",
    "DeviceView",
    "NeedView",
    "Report",
    "SessionView",
    "Slowed",
    "Snapshot",
    "TurnView",
    "label",
    "names_of_jobs",
]


def names_of_jobs(snapshot: Snapshot) -> dict[str, str]:
    """Return the session's name for each of its jobs."""
    return {job: label(session) for session in snapshot.sessions for job in session.jobs}


def label(session: SessionView) -> str:
    """Return what a session is called: others' notebooks have no names for us (I9)."""
    return session.name or f"(of {session.user})"
