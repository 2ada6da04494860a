"""What the view says of one who waits is what its cell says, at a real broker."""

from __future__ import annotations

import os
from pathlib import Path

from gpushare_widgets.scene import Scene, scene

from gpushare_kernel.broker.persons import Person
from gpushare_kernel.core.reasons import why
from gpushare_kernel.core.values import GiB
from gpushare_kernel.wire import texts
from tests.broker.house import House
from tests.broker.test_desk import end, submit
from tests.widgets.snapshots import NOW


def said(house: House) -> tuple[list[str], list[Scene]]:
    """Return what the cells that wait say, and the view's queue, at one moment."""
    uid, broker = os.getuid(), house.broker
    core = broker.scheduler
    noun = texts.memory_noun(house.device.inventory.kind)
    waits, snapshot = house.do(
        lambda: (
            [broker.named(why(core, core.jobs[row.job]), Person(uid)) for row in broker.snapshot(Person(uid)).queue],
            broker.snapshot(Person(uid)),
        )
    )  # fmt: skip
    return [texts.wait_text(wait, noun) for wait in waits], scene(snapshot, now=NOW)["queue"]


def test_who_waits_for_memory_and_who_waits_for_a_lane_read_the_same(tmp_path: Path) -> None:
    """Lanes count as held, idle times and times to go are told, and nobody in between writes sentences of its own."""
    with House(tmp_path) as house:
        first, idle, lane, wide = (
            house.notebook(f"{name}.ipynb") for name in ("first", "idle", "lane", "wide")
        )
        idle.ask(submit("a", persistent=GiB, ephemeral=0))
        idle.ask(end("a", held=GiB, peak=GiB))
        first.ask(submit("b", persistent=0, ephemeral=5 * GiB, cooperative=True, time=90.0))  # fmt: skip
        lane.send(submit("c", persistent=0, ephemeral=5 * GiB, cooperative=True))
        wide.send(submit("d", persistent=4 * GiB, ephemeral=GiB))
        house.saw(lambda: len(house.broker.snapshot(Person(os.getuid())).queue) == 2)
        cells, rows = said(house)
    assert sorted(row["text"] for row in rows) == sorted(cells)
    by_name = {row["label"].split(".")[0]: row["text"] for row in rows}
    assert "Your own first.ipynb holds 5.0 GiB and is running." in by_name["lane"]
    assert "Your own first.ipynb holds 5.0 GiB and is running." in by_name["wide"]
    assert "Your own idle.ipynb holds 1.0 GiB" in by_name["wide"]
    assert "%gpushare release idle" in by_name["wide"]
