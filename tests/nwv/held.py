"""What a broker of a test holds of bundles."""

from __future__ import annotations

from typing import Any

from tests.broker.house import House


def held(house: House) -> list[Any]:
    """What the broker holds."""
    return house.do(lambda: list(house.broker.bundles._held.values()))


def held_names(house: House) -> list[str]:
    """What it is called."""
    return [one.name for one in house.broker.bundles._held.values()]


def charged(house: House) -> int:
    """What is charged on the device."""
    return house.do(lambda: house.broker.scheduler.book.table.persistent)
