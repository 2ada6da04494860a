"""Parking from end to end: a real broker, guardian and kernels, on a GPU whose driver and NVML lie in files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.parking_house import House, made_house


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One broker for all of them."""
    with made_house(tmp_path_factory.mktemp("house")) as made:
        yield made


def test_an_idle_notebook_makes_room_and_has_its_memory_back(house: House) -> None:
    """Its CPU side runs meanwhile, its GPU call waits and says so, and its value is what it was."""
    one, two = house.notebook("one.ipynb"), house.notebook("two.ipynb")
    one.run("scripted.put('x', 3072, 42)")
    working = two.outputs(two.start("%%gpulane 6GiB\nscripted.put('y', 5120, 7)\nprint('in', flush=True)\nwhile not (scripted.PLACE / 'go').exists(): scripted.call(); time.sleep(0.01)"))
    import time; time.sleep(4); print(house.host.snapshot()); print(house.gpu.place, list(house.gpu.place.iterdir())); print(two.read_until(working, 'in'))
    assert 0
