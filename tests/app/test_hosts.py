"""What `jupyter gpushare hosts` prints of hosts that cannot be used."""

from __future__ import annotations

import pytest

from gpushare_kernel.app.hosts import problems
from gpushare_kernel.hub.placement import Order
from tests.app.conftest import Gpushare


def test_each_problem_is_printed_once_with_the_hosts_that_have_it() -> None:
    """Without the number of an error, which says nothing to anybody."""
    away = "[Errno 111] Connect call failed ('10.0.0.1', 22)"
    found = Order(("c",), (("a", away), ("b", away), ("d", "it has no driver.")))
    assert problems(found) == [
        "a, b: Connect call failed ('10.0.0.1', 22)",
        "d: it has no driver.",
    ]


def test_what_it_prints_it_does_not_log_too(gpushare: Gpushare) -> None:
    """Once is enough."""
    done = gpushare("hosts", "no..host")
    assert done.returncode == 1
    assert done.stdout.startswith("no..host: no host of that name is known")
    assert done.stderr == ""


@pytest.mark.parametrize("port", ["0", "65536", "99999", "ssh"])
def test_a_port_that_is_none_is_refused(gpushare: Gpushare, port: str) -> None:
    """The system would take another one."""
    done = gpushare("hosts", "localhost", GP_SSH_PORT=port)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("gpushare: GP_SSH_PORT is the number of a port")
