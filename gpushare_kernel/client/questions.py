"""What a session asks its broker in passing: each question is one request and its answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar

from gpushare_kernel.client import fingerprint
from gpushare_kernel.client.calls import Call, Lost, expect
from gpushare_kernel.client.link import LinkDown
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.wire.messages import (
    Attached,
    DryRun,
    GetNeeds,
    GetSnapshot,
    NeedsReply,
    Ok,
    ParkedNow,
    ParkNotebook,
    PausedNow,
    PauseNotebook,
    Release,
    ReleasedNow,
    Reply,
    Request,
    ResumedNow,
    ResumeNotebook,
    SetNeeds,
    SnapshotReply,
    Submit,
    UnparkedNow,
    UnparkNotebook,
)

if TYPE_CHECKING:
    from gpushare_kernel.wire.snapshot import NeedView, Snapshot

_Reply = TypeVar("_Reply")

BLINK = 0.3
"""Seconds of absence nobody needs to read about."""
ANSWER = 5.0
"""Seconds a question may take. Waits in the queue have no limit, questions do."""

_UNANSWERED = "the gpushare broker did not answer. jupyter gpushare doctor says more."


class Questions(ABC):
    """The questions of a `Session`."""

    def dry_run(self, submit: Submit) -> DryRun:
        """Return what submitting this job would do now."""
        return self.request(submit, DryRun)

    def release(self, notebook: str | None = None) -> ReleasedNow:
        """Give back what a notebook of mine declared and does not use; None is this one, whose unused memory goes back first."""
        self.wait_attached()  # only then is it known whether there is a GPU
        given = self.give_back() if notebook is None else None
        return self.request(Release(notebook, given), ReleasedNow)

    def pause(self, notebook: str) -> PausedNow:
        """Pause what another notebook of mine runs on the device."""
        return self.request(PauseNotebook(notebook), PausedNow)

    def park(self, notebook: str | None = None) -> ParkedNow:
        """Set the device memory of a notebook of mine aside; None is this one, whose unused memory goes back first."""
        self.wait_attached()
        if notebook is None:
            self.give_back()
        return self.request(ParkNotebook(notebook), ParkedNow)

    def unpark(self, notebook: str | None = None) -> UnparkedNow:
        """Put back what is set aside of a notebook of mine, as soon as there is room."""
        return self.request(UnparkNotebook(notebook), UnparkedNow)

    def resume(self, notebook: str) -> ResumedNow:
        """Let it run again."""
        return self.request(ResumeNotebook(notebook), ResumedNow)

    def snapshot(self) -> Snapshot:
        """Return the broker's state as we may see it."""
        return self.request(GetSnapshot(), SnapshotReply).snapshot

    def needs(self) -> tuple[NeedView, ...]:
        """Return what is known of my code, the latest used first."""
        return self.request(GetNeeds(fingerprint.frameworks()), NeedsReply).needs

    def set_needs(self, size: int) -> None:
        """Say what this notebook is to get, in bytes, when its kernel starts next."""
        self.request(SetNeeds(size), Ok)

    def request(self, body: Request, expected: type[_Reply], timeout: float = ANSWER) -> _Reply:
        """Ask the broker and return its answer; its `Failure` is raised as the error it names."""
        self.wait_attached(timeout)
        try:
            reply = self.answer(self.call(body), timeout)
        except LinkDown as problem:
            raise BrokerUnavailable(_UNANSWERED) from problem
        if reply is None:
            raise BrokerUnavailable(_UNANSWERED)
        return expect(reply, expected)

    @abstractmethod
    def give_back(self) -> int | None:
        """Give back the device memory that is kept unused here; returns how many bytes, None where nothing of ours keeps any."""

    @abstractmethod
    def wait_attached(self, timeout: float = ANSWER) -> Attached:
        """Return what the broker said of this session and its device; BrokerUnavailable where nobody answers."""

    @abstractmethod
    def call(self, body: Request) -> Call:
        """Send a request and return the call to wait on. Raises LinkDown."""

    @abstractmethod
    def answer(self, call: Call, timeout: float) -> Reply | Lost | None:
        """Wait for a reply that is not about the queue; None where it takes too long."""
