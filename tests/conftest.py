"""What holds for every test: it leaves nothing behind (`leaks.py`), and how Hypothesis looks for examples: the same ones in every run, so that a change is judged and not luck.

With GPUSHARE_EXAMPLES it explores at random, that many for each state machine, and makes what fails as short as it can,
which takes minutes: `GPUSHARE_EXAMPLES=2000 pytest -o faulthandler_timeout=0 tests/core`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings
from jupyter_client.localinterfaces import public_ips
from jupyter_core.utils import run_sync

from tests.leaks import none_left

# Tests signal themselves with the signals blocked: a thread of a library that has them open would take them, and end us.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
settings.register_profile(
    "same", derandomize=True, print_blob=True, phases=(Phase.explicit, Phase.generate)
)
settings.register_profile("explore", derandomize=False, print_blob=True)
settings.load_profile("explore" if "GPUSHARE_EXAMPLES" in os.environ else "same")


_SHARED_HOSTS = {"faults", "hostile", "hub"}
"""Rooms where brokers, kernels and hubs are a module's, and what one test starts another ends."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who signals this process comes first, while no library has a thread in it that would take the signal and end us."""
    items.sort(key=lambda item: item.get_closest_marker("no_threads") is None)
    for item in items:
        if item.path.parent.name in _SHARED_HOSTS:
            item.add_marker(pytest.mark.leaves("to others of its room, whose hosts are shared"))
        elif item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.leaves("to this process: the driver keeps what it opened"))


@functools.cache
def _interfaces_known() -> None:
    """Have jupyter_client do what it does once per process: it asks `ip` for the host's addresses, and makes a loop, and one in a thread."""
    public_ips()
    run_sync(_nothing)()
    asyncio.run(_within_a_loop())


async def _nothing() -> None:
    return


async def _within_a_loop() -> None:
    run_sync(_nothing)()


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No descriptor, thread, child, mapping or folder of ours outlives a test; `leaves` says which one may, and why."""
    if request.node.get_closest_marker("no_threads") is None:
        _interfaces_known()
    with contextlib.nullcontext() if request.node.get_closest_marker("leaves") else none_left():
        yield
