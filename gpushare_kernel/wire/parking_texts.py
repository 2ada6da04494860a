"""What people read of memory that is set aside. The other sentences are in `texts`."""

from __future__ import annotations

from collections.abc import Sequence

from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.core.values import Wait, WaitReason
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import ParkedNow, UnparkedNow

MEMORY_BACK = "Your GPU memory is back."
UNPARKING = "It is put back now."


def parked_text(parked: ParkedNow) -> str:
    """Return what is set aside, and how it comes back."""
    names, size = ", ".join(parked.names), format_size(parked.size)
    if parked.after_cell:
        return f"{names}: {size} of GPU memory is set aside as soon as the cell has ended. The next cell has it back."
    return (
        f"{names}: {size} of GPU memory is set aside, nothing is lost. The next cell has it back."
    )


def unparked_text(unparked: UnparkedNow) -> str:
    """Return what is put back."""
    if not unparked.names:
        return "Nothing to put back: no GPU memory of it is set aside."
    names = ", ".join(unparked.names)
    if unparked.waits:
        return f"{names}: its GPU memory comes back as soon as there is room. %gpushare status says who holds it."
    return f"{names}: its GPU memory is put back now."


def cannot_park_text(name: str, why: str) -> str:
    """Return the error of a notebook whose memory cannot be set aside."""
    return f"the memory of {name} cannot be set aside: {why}."


def aside_text(size: int, wait: Wait) -> str:
    """Return the line of a plain cell whose notebook's memory is set aside: its calls to the GPU wait, its other lines run."""
    first = f"Your GPU memory is set aside ({format_size(size)}, nothing lost): calls to the GPU wait until it is back, all else runs."
    if wait.reason is WaitReason.MEMORY:
        return " ".join([first, *texts.in_the_way(wait)])
    if wait.reason in {WaitReason.GRACE, WaitReason.TURN, WaitReason.CAP, WaitReason.MAINTENANCE}:
        return f"{first} {texts.reason_text(wait)}"
    return f"{first} {UNPARKING}"


def held_text(size: int) -> str:
    """Return the line of whatever waits while a notebook's tensors are set aside."""
    return f"Your GPU memory is set aside ({format_size(size)}, nothing lost). Waiting until there is room. {_RESCUE}"


def left_aside_text(names: Sequence[str]) -> str:
    """Return whose memory stays set aside without a broker."""
    return f"GPU memory stays set aside, and calls to the GPU wait, until a broker runs again (jupyter gpushare start): {', '.join(names)}."


def lost_text(why: str) -> str:
    """Return the line of a notebook whose memory the driver did not bring back; `why` says what is left to do."""
    return f"The GPU memory of this notebook is lost, others are fine: {why}"


HELD = "Your GPU memory is set aside, nothing is lost. This waits until it is back."
_RESCUE = "%gpushare rescue saves your tensors to a file without the GPU."
HELD_INTERRUPTED = "interrupted: the cell has not run. Your GPU memory is still set aside, nothing is lost. %gpushare rescue saves your tensors to a file without the GPU."
BROKER_AWAY_HELD = (
    "The gpushare broker is away: this notebook's GPU memory is set aside, nothing is lost, and its cells wait until a broker "
    "is back. Where none comes by itself: jupyter gpushare start. %gpushare rescue saves your tensors to a file without the GPU."
)
NOTHING_ASIDE = "no GPU memory of this notebook is set aside: there is nothing to rescue. Save your tensors as usual, torch.save(model.state_dict(), 'model.pt')."


def rescued_text(count: int, size: int, file: str, left: int) -> str:
    """Return what was saved, and what was not."""
    line = f"{count} tensors ({format_size(size)}) are saved in {file}, without the GPU."
    return line if not left else f"{line} {left} were not set aside and are not in it: they are still on the GPU."  # fmt: skip
