"""Snapshots as a notebook shows them, where they are of a GPU host."""

from __future__ import annotations

from gpushare_magics import tables

from gpushare_kernel.client.shown import DeviceView, SessionView, Snapshot
from gpushare_kernel.core.values import GiB, MiB


def gpu(name: str, **more: object) -> DeviceView:
    return DeviceView(name, "cuda", "H100", 78 * GiB, 0, 0, (), free=50 * GiB, **more)  # type: ignore[arg-type]


def test_each_gpu_has_its_notebooks() -> None:
    """Whoever takes no part is named below the device; notebooks stand with the GPU they are on."""
    first, second = gpu("GPU-1", desktop=410 * MiB, foreign=5 * GiB), gpu("GPU-2")
    mine = SessionView("s", "ann", "hw1.ipynb", 1, "idle", None, 5 * GiB, 12.0, "GPU-2", own=True)
    assert tables.status(Snapshot(1, None, (first, second), (mine,))) == (
        "H100 (GPU-1): 78.0 GiB of GPU memory, 50.0 GiB free\n"
        "The desktop uses 410 MiB of GPU memory; it is never paused.\n"
        "Programs outside gpushare use 5.0 GiB of GPU memory; they take no turns.\n"
        "\n"
        "No notebook is connected.\n"
        "\n"
        "H100 (GPU-2): 78.0 GiB of GPU memory, 50.0 GiB free\n"
        "\n"
        "notebook   state  keeps    device time\n"
        "hw1.ipynb  idle   5.0 GiB  12 s"
    )


def test_what_a_gpu_cannot_do_is_said() -> None:
    """Why nobody is paused there; before that, why it does not answer."""
    assert "MPS runs here." in tables.status(
        Snapshot(1, None, (gpu("g", limits="MPS runs here."),))
    )
    lost = tables.status(Snapshot(1, None, (gpu("g", limits="MPS.", lost="restart the machine."),)))
    assert "It does not answer: restart the machine." in lost
    assert "MPS." not in lost
