"""The nodes that all pipelines of this kernel share; they end with it at the latest."""

from __future__ import annotations

import atexit
import threading

from gpushare_kernel.realtime.nodes import Nodes

_shared: list[Nodes] = []
_shared_lock = threading.Lock()


def shared() -> Nodes:
    """Return this kernel's nodes."""
    with _shared_lock:
        if not _shared:
            _shared.append(Nodes())
            atexit.register(_shared[0].shut)
        return _shared[0]
