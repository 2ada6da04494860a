"""What a client shows of the broker's answers: the wire's types and words for those who import the client only, and what sessions are called."""

import time

from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.core.values import Holder, PauseReason, Wait, WaitReason
from gpushare_kernel.wire import parking_texts, texts
from gpushare_kernel.wire.admin_texts import account_text, announced_text, maintenance_text
from gpushare_kernel.wire.messages import Announce, CellEnded, CellStarted, Report, Slowed, Submit
from gpushare_kernel.wire.snapshot import (
    DeviceView,
    LaneView,
    NeedView,
    QueueView,
    SessionView,
    Snapshot,
    TurnView,
    UserView,
)

__all__ = [
    "Announce",
    "CellEnded",
    "CellStarted",
    "DeviceView",
    "Holder",
    "LaneView",
    "NeedView",
    "PauseReason",
    "QueueView",
    "Report",
    "SessionView",
    "Slowed",
    "Snapshot",
    "Submit",
    "TurnView",
    "UserView",
    "Wait",
    "WaitReason",
    "account_text",
    "format_size",
    "label",
    "names_of_jobs",
    "parking_texts",
    "texts",
    "words_of",
]


def words_of(snapshot: Snapshot) -> list[str]:
    """Return what everybody is to read first: a word of an administrator, a maintenance."""
    said = [] if snapshot.announcement is None else [announced_text(snapshot.announcement.text)]
    maintenance = snapshot.maintenance
    if maintenance is not None:
        since = time.strftime("%H:%M", time.localtime(maintenance.since))
        said.append(maintenance_text(maintenance, since))
    return said


def names_of_jobs(snapshot: Snapshot) -> dict[str, str]:
    """Return the session's name for each of its jobs."""
    return {job: label(session) for session in snapshot.sessions for job in session.jobs}


def label(session: SessionView) -> str:
    """Return what a session is called: others' notebooks have no names for us (I9)."""
    return session.name or f"(of {session.user})"
