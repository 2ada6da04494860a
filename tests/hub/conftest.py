"""Real hubs: made once for all tests of a file, in an environment that their users can read."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.hub import environment
from benchmarks.hub.hub import REAL, SHARED, Hub

A_TEST = 120.0
"""Seconds, as in pyproject.toml."""
MISSING = environment.missing()
needs_hub = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")


@pytest.fixture(scope="session")
def hub_environment() -> Path:
    """The environment of hub, servers and kernels. Making it takes a minute or several, which no test is blamed for."""
    faulthandler.cancel_dump_traceback_later()
    made = environment.installed()
    faulthandler.dump_traceback_later(A_TEST, exit=True)
    return made


@pytest.fixture(scope="module")
def by_uid(hub_environment: Path) -> Iterator[Hub]:
    """Two users, each with an account of the machine."""
    with (
        environment.people("gpxann", "gpxbob"),
        Hub(hub_environment, ("gpxann", "gpxbob"), REAL) as hub,
    ):
        for name in hub.names:
            hub.start_server(name)
        yield hub


@pytest.fixture(scope="module")
def by_token(hub_environment: Path) -> Iterator[Hub]:
    """Two users under one account, which runs the hub, too."""
    with (
        environment.people("gpxhub"),
        Hub(hub_environment, ("ann", "bob", "eve"), SHARED, "gpxhub", by_hub=True) as hub,
    ):
        for name in ("ann", "bob"):
            hub.start_server(name)
        yield hub
