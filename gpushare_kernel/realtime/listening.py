"""What nodes say, read by a thread of the kernel: it never waits for them, so they never wait for it."""

from __future__ import annotations

import selectors
from collections.abc import Callable

from gpushare_kernel.realtime import orders
from gpushare_kernel.realtime.node import Node, NodeDied


def listen(
    row: list[Node],
    wake: int,
    hear: Callable[[Node, orders.FromNode], None],
    broken: Callable[[Exception], None],
) -> None:
    """Read until told to stop (`wake`), or until a node is dead: then all of them are ended, and whoever waits hears of it."""
    with selectors.DefaultSelector() as selector:
        for one in row:
            selector.register(one.control, selectors.EVENT_READ, one)
            selector.register(one.pidfd, selectors.EVENT_READ, one)
        selector.register(wake, selectors.EVENT_READ, None)
        while True:
            for key, _ in selector.select():
                if key.data is None:
                    return
                ended = key.fd == key.data.pidfd
                said = None if ended else orders.from_node(key.data.control)
                if said is None:
                    broken(NodeDied(key.data.obituary()))
                    return
                hear(key.data, said)
