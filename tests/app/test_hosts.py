"""What `jupyter gpushare hosts` prints of hosts that cannot be used."""

from __future__ import annotations

from gpushare_kernel.app.hosts import problems
from gpushare_kernel.hub.placement import Order


def test_each_problem_is_printed_once_with_the_hosts_that_have_it() -> None:
    """Without the number of an error, which says nothing to anybody."""
    away = "[Errno 111] Connect call failed ('10.0.0.1', 22)"
    found = Order(("c",), (("a", away), ("b", away), ("d", "it has no driver.")))
    assert problems(found) == [
        "a, b: Connect call failed ('10.0.0.1', 22)",
        "d: it has no driver.",
    ]
