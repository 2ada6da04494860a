"""A host of each test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import made_host
from tests.faults.host import Host


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host without a broker yet; at the end nothing of it is left."""
    with made_host(tmp_path, monkeypatch) as made:
        yield made
