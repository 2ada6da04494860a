"""Snapshots as a notebook shows them, where they are of a GPU host."""

from __future__ import annotations

from gpushare_magics import tables

from gpushare_kernel.client.shown import (
    DeviceView,
    LaneView,
    NeedView,
    QueueView,
    SessionView,
    Snapshot,
)
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


def test_long_names_break_no_row() -> None:
    """A name of 186 characters is cut wherever it stands, and what would break a line is no line."""
    whose = "".join(str(n % 10) for n in range(180)) + "\n.ipynb"
    view = SessionView("s", "ann", whose, 1, "busy", None, GiB, 1.0, "G", own=True, jobs=("j",))
    device = DeviceView("G", "host", "2 cores", GiB, 0, 0, (LaneView(1, GiB, "j", ("j",)),))
    seen = Snapshot(
        1, None, (device,), (view,), (QueueView("j", "s", "memory", 0, None, GiB, 1.0),)
    )
    cut = f"{whose[:39]}…"
    for table in (tables.status, tables.lanes):
        text = table(seen)
        assert text.count(cut) == 2
        assert whose[:40] not in text
        assert max(map(len, text.splitlines())) < 100


def test_what_a_gpu_cannot_do_is_said() -> None:
    """Why nobody is paused there; before that, why it does not answer."""
    assert "MPS runs here." in tables.status(
        Snapshot(1, None, (gpu("g", limits="MPS runs here."),))
    )
    lost = tables.status(Snapshot(1, None, (gpu("g", limits="MPS.", lost="restart the machine."),)))
    assert "It does not answer: restart the machine." in lost
    assert "MPS." not in lost


def need(code: str = "cell:1", **more: object) -> NeedView:
    learned = {"persistent": GiB, "ephemeral": 2200 * MiB, "time": 320.0}
    last = {"measured_persistent": GiB, "measured_ephemeral": 1900 * MiB, "measured_time": 300.0}
    return NeedView(code, "hw1.ipynb", 4, **{**learned, **last, **more})  # type: ignore[arg-type]


def test_what_was_learned_is_a_table_with_advice() -> None:
    """A cell that ran here is called by its first line; another, and what is no cell, by its hash."""
    known = (
        need(declared_size=8 * GiB, declared_time=60.0),
        need("lane:2"),
        need("run:3", declared_persistent=3 * GiB, time=None),
    )
    assert tables.needs(known, {"cell:1": "fit(model)"}) == (
        "Memory it keeps + memory it has beyond that while it runs; time for which it had the device, without what it stood still for others. Declared is what the last run declared, a percentage as what it was of the device.\n"
        "code        of         runs  declared        learned                   last run                  advice\n"
        "fit(model)  hw1.ipynb  4     8.0 GiB, 1 min  1.0 GiB + 2.1 GiB, 5 min  1.0 GiB + 1.9 GiB, 5 min  "
        "declare 3.5 GiB instead of 8.0: nobody waits for what you do not use; says 1 min and takes 5 min: "
        "%%gpulane 3.5GiB --time 6min\n"
        "lane:2      hw1.ipynb  4     -               1.0 GiB + 2.1 GiB, 5 min  1.0 GiB + 1.9 GiB, 5 min  "
        "nothing to declare: it takes what was learned\n"
        "run:3       hw1.ipynb  4     3.0 GiB         -                         5 min"
    )


def test_no_more_than_a_page_of_needs() -> None:
    """The latest used; how many more there are is said. With none, what to do."""
    assert tables.needs([need(f"cell:{n}") for n in range(30)], {}).endswith("\nand 10 more")
    assert tables.needs((), {}).startswith("Nothing is learned yet. Run a cell with %%gpulane")
