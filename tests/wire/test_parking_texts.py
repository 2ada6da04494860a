"""What people read of memory that is set aside, as strings."""

from __future__ import annotations

import pytest

from gpushare_kernel.core.values import GiB, Holder, Wait, WaitReason
from gpushare_kernel.wire import parking_texts as texts
from gpushare_kernel.wire.messages import ParkedNow, UnparkedNow


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (texts.parked_text(ParkedNow(("hw.ipynb",), 4 * GiB)), "hw.ipynb: 4.0 GiB of GPU memory is set aside, nothing is lost. The next cell has it back."),
        (texts.parked_text(ParkedNow(("a", "b"), 4 * GiB, after_cell=True)), "a, b: 4.0 GiB of GPU memory is set aside as soon as the cell has ended. The next cell has it back."),
        (texts.unparked_text(UnparkedNow(())), "Nothing to put back: no GPU memory of it is set aside."),
        (texts.unparked_text(UnparkedNow(("hw.ipynb",))), "hw.ipynb: its GPU memory is put back now."),
        (texts.unparked_text(UnparkedNow(("hw.ipynb",), waits=True)), "hw.ipynb: its GPU memory comes back as soon as there is room. %gpushare status says who holds it."),
        (texts.cannot_park_text("hw.ipynb", "it has a deadline to keep"), "the memory of hw.ipynb cannot be set aside: it has a deadline to keep."),
        (texts.left_aside_text(["a.ipynb", "b.ipynb"]), "GPU memory stays set aside, and calls to the GPU wait, until a broker runs again (jupyter gpushare start): a.ipynb, b.ipynb."),
        (texts.lost_text("the driver gave up. Restart the kernel."), "The GPU memory of this notebook is lost, others are fine: the driver gave up. Restart the kernel."),
        (
            texts.aside_text(5 * GiB, Wait(WaitReason.MEMORY, 5 * GiB, GiB, 2, (Holder("t.ipynb", 3 * GiB, None, own=False),))),
            "Your GPU memory is set aside (5.0 GiB, nothing lost): calls to the GPU wait until it is back, all else runs. It needs 5.0 GiB, 1.0 free. In use by t.ipynb (3.0 GiB). 2 ahead of you.",
        ),
        (
            texts.aside_text(5 * GiB, Wait(WaitReason.RESTORE, 5 * GiB, 0, 0)),
            "Your GPU memory is set aside (5.0 GiB, nothing lost): calls to the GPU wait until it is back, all else runs. It is put back now.",
        ),
    ],
)  # fmt: skip
def test_what_people_read(said: str, text: str) -> None:
    """Word by word: what is asked for, who has it, what one can do."""
    assert said == text
