"""What a session on a GPU holds: what its frameworks say they took from the driver.

Their contexts are not in it (the broker counts those), and neither is what nobody of ours sees (numba,
TensorFlow, a child process): the broker takes that from the driver's own list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from gpushare_kernel.client.adapters.base import Adapter

_Answer = TypeVar("_Answer")


class DeviceMemory:
    """The twin of `HostMemory` for a GPU session: the sum over the frameworks in use."""

    def __init__(self, adapters: Callable[[], Sequence[Adapter]]) -> None:
        self._adapters = adapters
        self.last = 0
        self.highest = 0

    def now(self) -> int:
        """Return the bytes held now."""
        self.held()
        return self.last

    def held(self) -> dict[Adapter, int]:
        """Return the bytes each framework in use holds now."""
        held = {adapter: _ask(adapter.held, 0) for adapter in self.in_use()}
        self.last = sum(held.values())
        self.highest = max(self.highest, self.last)
        return held

    def used(self) -> dict[Adapter, int]:
        """Return the bytes that are in use of what each framework holds."""
        return {adapter: _ask(adapter.used, 0) for adapter in self.in_use()}

    def in_use(self) -> list[Adapter]:
        """Return the frameworks that have a context. Asking makes none."""
        return [adapter for adapter in self._adapters() if _ask(adapter.up, False)]  # noqa: FBT003

    def recent(self) -> int:
        """Return the bytes held now: frameworks know it by heart."""
        return self.now()

    def known(self) -> int:
        """Return the latest measurement."""
        return self.last

    def start_peak(self) -> None:
        """Forget the peak so far."""
        for adapter in self.in_use():
            _ask(adapter.start_peak, None)
        self.highest = 0
        self.now()

    def peak(self) -> int:
        """Return the most bytes held since `start_peak`; with several frameworks, the sum of their peaks."""
        self.now()
        peaks = sum(_ask(adapter.peak, 0) for adapter in self.in_use())
        self.highest = max(self.highest, peaks)
        return self.highest

    def ephemeral(self) -> int:
        """Return the most that was in use above the last measurement since this was asked before."""
        return max(0, sum(_ask(adapter.most_used, 0) for adapter in self.in_use()) - self.last)

    def job_over(self) -> None:
        """Give back what the job's pools kept: it was its ephemeral memory, and its peak is known by now."""
        self.trim()
        self.now()

    def settle(self) -> None:
        """Wait for the work that was launched. An error of the device is left to the user's own next call."""
        for adapter in self.in_use():
            _ask(adapter.settle, None)

    def capturing(self) -> bool:
        """Say whether a framework captures a graph in this thread."""
        return any(_ask(adapter.capturing, False) for adapter in self.in_use())  # noqa: FBT003

    def trim(self) -> None:
        """Give back what the frameworks' pools keep unused, once the work that was launched is done."""
        for adapter in self.in_use():
            _ask(adapter.settle, None)
            _ask(adapter.trim, None)


def _ask(question: Callable[[], _Answer], otherwise: _Answer) -> _Answer:
    """Ask a framework; one that cannot say (an allocator of the user's own) counts as `otherwise`."""
    try:
        return question()
    except Exception:  # noqa: BLE001 - frameworks raise what they like, and a cell must not end for a number
        return otherwise
