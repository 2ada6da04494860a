"""A JAX of a few lines: backends that are made at the first use, and devices with the real one's numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from jax._src import xla_bridge

__version__ = "0.11.2"
config = SimpleNamespace(jax_platforms=None)
stats = {"bytes_in_use": 5, "pool_bytes": 8, "peak_bytes_in_use": 6, "peak_pool_bytes": 9, "bytes_limit": 100}  # fmt: skip


def local_devices() -> list[Any]:
    """As in the real one: asking makes the backends."""
    xla_bridge.backends()
    return [SimpleNamespace(memory_stats=lambda: dict(stats))]
