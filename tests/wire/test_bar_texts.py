"""What a status bar says, word for word."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gpushare_kernel.core.values import GiB, Holder, MiB
from gpushare_kernel.wire.bar_texts import Bar, away, bar_of_device, bar_of_notebook
from gpushare_kernel.wire.snapshot import SCHEMA, DeviceView, QueueView, SessionView, Snapshot

GPU = DeviceView("GPU-1", "cuda", "NVIDIA H200", 80 * GiB, 0, 0, (), free=20 * GiB)
CPU = DeviceView("host", "host", "Some processor (CPU, no GPU)", GiB, 0, 0, (), free=300 * MiB)
MINE = SessionView("s1", "ann", "hw1.ipynb", 7, "idle", None, int(2.1 * GiB), 0.0, "GPU-1", own=True, holds=int(2.1 * GiB))  # fmt: skip


def said(device: DeviceView = GPU, queue: tuple[QueueView, ...] = (), **changes: Any) -> Bar:
    bar = bar_of_notebook(Snapshot(SCHEMA, None, (device,), (replace(MINE, device=device.id, **changes),), queue), "s1")  # fmt: skip
    assert bar is not None
    return bar


def waits(reason: str = "memory", **changes: Any) -> tuple[QueueView, ...]:
    one = QueueView("s1/j", "s1", reason, 2, None, needs=int(3.9 * GiB), free=GiB)
    return (replace(one, **changes),)


@pytest.mark.parametrize(
    ("bar", "text", "state"),
    [
        (said(queue=waits()), "GPU 2.1 of 6 GiB · waiting, 2 ahead", "waiting"),
        (said(queue=waits(ahead=0)), "GPU 2.1 of 6 GiB · waiting, next", "waiting"),
        (said(queue=waits(eta=180.0)), "GPU 2.1 of 6 GiB · waiting, 2 ahead, about 3 min to go", "waiting"),
        (said(queue=waits(eta=180.0, exact=True)), "GPU 2.1 of 6 GiB · waiting, 2 ahead, 3 min to go", "waiting"),
        (said(queue=waits("occupancy", ahead=0)), "GPU 2.1 of 6 GiB · waiting, next", "waiting"),
        (said(queue=waits("turn", needs=0), state="busy"), "GPU 2.1 GiB · waiting for a turn", "waiting"),
        (said(queue=waits("restore", needs=0)), "GPU 2.1 GiB · memory on its way back", "waiting"),
        (said(queue=waits("grace", needs=0)), "GPU 2.1 GiB · waiting for the broker", "waiting"),
        (said(), "GPU 2.1 GiB · idle", "idle"),
        (said(holds=0, p=0), "GPU 0 B · idle", "idle"),
        (said(holds=None), "GPU 2.1 GiB · idle", "idle"),
        (said(holds=None, p=None), "GPU · idle", "idle"),
        (said(state="busy", mode="alone", granted=6 * GiB), "GPU 2.1 of 6 GiB · running", "busy"),
        (said(state="busy", mode="exclusive", granted=6 * GiB), "GPU 2.1 of 6 GiB · running, shared with others", "busy"),
        (said(state="busy", mode="co-run", granted=2 * GiB), "GPU 2.1 GiB · running, shared with others", "busy"),
        (said(state="paused", mode="exclusive"), "GPU 2.1 GiB · paused", "paused"),
        (said(state="parked", holds=0, p=0, parked=5 * GiB), "GPU 5 GiB set aside", "parked"),
        (said(state="opened", holds=None, p=0), "GPU 0 B · starting", "idle"),
        (said(CPU, holds=300 * MiB, p=300 * MiB, queue=waits(needs=400 * MiB, free=300 * MiB)), "CPU, memory 300 of 700 MiB · waiting, 2 ahead", "waiting"),
        (said(replace(CPU, kind="model")), "Device, memory 2.1 GiB · idle", "idle"),
    ],
)  # fmt: skip
def test_the_line(bar: Bar, text: str, state: str) -> None:
    """What it holds of what it may, and what it does or waits for; nothing passes for a GPU that is none."""
    assert (bar.text, bar.state) == (text, state)


def test_the_whole_says_why_who_and_what_to_do() -> None:
    """As the cell itself says it, and how full the device is."""
    holder = Holder("hw2.ipynb", 5 * GiB, 2400.0, own=True)
    assert said(queue=waits(holders=(holder,))).title == (
        "hw1.ipynb holds 2.1 GiB of GPU memory.\n"
        "Waiting for GPU memory: needs 3.9 GiB, 1.0 free. Your own hw2.ipynb holds 5.0 GiB, idle 40 min: "
        "%gpushare release hw2. 2 ahead of you. Interrupt gives up your place.\n"
        "NVIDIA H200: 20.0 of 80.0 GiB of GPU memory free."
    )
    assert (
        said(spare=GiB).title.splitlines()[1] == "%gpushare release in it gives up to 1.0 GiB back."
    )
    assert said(state="busy", granted=6 * GiB).title.splitlines()[0] == (
        "hw1.ipynb holds 2.1 GiB of GPU memory, and may take 6.0 GiB in all now."
    )
    assert "its next cell has it back" in said(state="parked", parked=5 * GiB).title


def test_a_device_that_is_lost_says_so() -> None:
    """In the whole, in its own words."""
    lost = replace(GPU, lost="the GPU fell off the bus: restart the host")
    assert said(lost).title.endswith("the GPU fell off the bus: restart the host")


def test_where_no_notebook_that_shares_is_in_front() -> None:
    """How full each device is."""
    one = Snapshot(SCHEMA, None, (GPU,))
    assert bar_of_device(one).text == "GPU 60 of 80 GiB in use"
    two = Snapshot(SCHEMA, None, (GPU, replace(GPU, free=80 * GiB)))
    assert bar_of_device(two).text == "GPU 0: 60 of 80 GiB in use · GPU 1: 0 of 80 GiB in use"
    assert (
        bar_of_device(Snapshot(SCHEMA, None, (CPU,))).text == "CPU, memory 724 MiB of 1 GiB in use"
    )
    assert bar_of_notebook(one, "s9") is None


def test_without_a_broker() -> None:
    """The line is short; the whole has the broker's own words."""
    assert away("nobody answers at x") == Bar(
        "not shared: no broker", "nobody answers at x", "away"
    )
