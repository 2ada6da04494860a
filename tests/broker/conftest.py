"""A broker for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker.house import House


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A broker with a played device of one core and 8 GiB."""
    with House(tmp_path) as made:
        yield made
