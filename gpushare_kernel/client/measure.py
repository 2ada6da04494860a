"""What a session needs of whatever measures its memory: `HostMemory` on a host, `DeviceMemory` on a GPU."""

from __future__ import annotations

from typing import Protocol


class Memory(Protocol):
    """Measures one session's memory, from inside it. Sizes in bytes.

    Attributes
    ----------
    last, highest
        The latest measurement, and the highest since `start_peak`. Reading them costs nothing.
    """

    last: int
    highest: int

    def now(self) -> int:
        """Measure what is held. Called on the user's thread."""

    def recent(self) -> int:
        """Return what is held now, or was a moment ago. Called on the user's thread."""

    def known(self) -> int:
        """Return what is held as far as any thread may ask: the reader thread calls no framework."""

    def start_peak(self) -> None:
        """Forget the peak so far."""

    def peak(self) -> int:
        """Return the most that was held since `start_peak`."""

    def ephemeral(self) -> int:
        """Return the most that was in use above what is held now since this was asked before, or since `start_peak`.

        Asked where everything unused is given back; 0 where nothing of ours can tell.
        """

    def job_over(self) -> None:
        """A declared job is over: what it held beyond what the notebook keeps goes back."""

    def settle(self) -> None:
        """Wait until what was handed to the device is done: the turn is not over before that."""

    def capturing(self) -> bool:
        """Say whether this thread's work is being recorded for later: nothing may be waited for, or given back, meanwhile."""

    def trim(self) -> None:
        """Give back what is held and not used, once what was handed to the device is done."""
