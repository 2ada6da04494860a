"""Two cells without end that exclude each other: memory is taken from who runs, in the middle of its work, and both go on."""

from __future__ import annotations

import json
from pathlib import Path

from tests.faults.notebook import Notebook
from tests.faults.parking_house import House, made_house
from tests.procs import eventually

ENDLESS = """%%gpulane 6GiB
scripted.put('x', 5120, 0)
n = 0
while not (scripted.PLACE / 'enough').exists():
    n += 1
    scripted.add('x', 1)
    time.sleep(0.002)
print('same', n == scripted.get('x'))"""
"""It meets no boundary: it counts on the device, and beside it."""


def count(house: House, notebook: Notebook) -> int:
    """Return how far it has come, wherever its memory is."""
    for name in ("data", "stowed"):
        file = house.gpu.place / f"{name}.{notebook.pid}"
        try:
            return int(json.loads(file.read_text())["x"])
        except (OSError, ValueError, KeyError):
            continue
    return -1


def goes_on(house: House, notebook: Notebook) -> None:
    """Wait until it has come a good deal further."""
    before = count(house, notebook)
    eventually(lambda: count(house, notebook) > before + 20)


def test_two_endless_cells_have_the_memory_in_turn(tmp_path: Path) -> None:
    """Each is parked in the middle of its work again and again; an interrupt of who waits ends it; both counts are right."""
    with made_house(tmp_path, residency=0.3) as house:
        one, two = house.notebook("one.ipynb"), house.notebook("two.ipynb")
        outputs = [each.outputs(each.start(ENDLESS)) for each in (one, two)]
        for _ in range(2):
            goes_on(house, one)
            goes_on(house, two)
        eventually(lambda: all(house.gpu.log("checkpoint", each.pid) >= 2 for each in (one, two)))
        eventually(lambda: house.gpu.state(one.pid) == "checkpointed")
        one.interrupt()
        lines = list(outputs[0])
        assert any("KeyboardInterrupt" in line for line in lines), lines
        house.gpu.set("enough", "")
        assert "same True" in list(outputs[1])
        assert house.run(one, "n - scripted.get('x') in (0, 1)")[-1] == "True"
        seen = house.host.snapshot().devices[0]
        assert seen.free >= 0
        assert not seen.lanes
