"""What gpushare asks of a framework. One module each, documented APIs first, and what is missing is said."""

from __future__ import annotations

from typing import Protocol


class Adapter(Protocol):
    """One framework of this process. Nothing here makes a context; all but `up` is called only where there is one.

    Attributes
    ----------
    name
        What people call it.
    meets
        Whether it meets boundaries by itself (a training loop needs no line of ours).
    fixed
        Whether its limit is read at the start of the kernel and cannot change.
    settles
        Whether `settle` waits for the device, and so raises what the device ran into.
    """

    name: str
    meets: bool
    fixed: bool
    settles: bool

    def up(self) -> bool:
        """Say whether the framework uses the device."""

    def held(self) -> int:
        """Return the bytes it took from the driver, its context apart."""

    def used(self) -> int:
        """Return the bytes of it that are in use now; what it holds where it cannot tell."""

    def start_peak(self) -> None:
        """Forget the peak so far."""

    def peak(self) -> int:
        """Return the most bytes held since `start_peak`."""

    def most_used(self) -> int:
        """Return the most bytes in use at once since this was asked before, or since `start_peak`; what it holds where it cannot tell.

        It may begin its peak anew.
        """

    def settle(self) -> None:
        """Wait for the work that was launched."""

    def capturing(self) -> bool:
        """Say whether this thread's work goes into a graph that is being captured: to wait, or to free, would spoil it."""

    def trim(self) -> None:
        """Give back what its pool keeps unused."""

    def cap(self, limit: int | None) -> None:
        """Let it hold `limit` bytes at most, or less where the user has limited it to less; None lifts ours, and leaves theirs."""

    def limit(self) -> int | None:
        """Return the limit it was started with, where that is fixed."""

    def remove(self) -> None:
        """Take everything back that was hooked."""
