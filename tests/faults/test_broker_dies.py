"""Broker, guardian or both are killed with kernels paused (I4)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.core.values import MiB
from tests.faults.host import Host, kill, session_of, stopped, took
from tests.faults.notebook import Notebook
from tests.procs import eventually

TURNS = ("--compute", "1", "--turn", "2", "--capacity", "1GiB")
"""One core and long turns: of two that burn, one runs and one stands still."""
Record = Callable[[str, object], None]


def one_paused(*notebooks: Notebook) -> tuple[Notebook, Notebook]:
    """Wait until exactly one of two stands still; return (paused, running)."""
    eventually(lambda: sum(stopped(n.pid) for n in notebooks) == 1, 60)
    first, second = notebooks
    return (first, second) if stopped(first.pid) else (second, first)


def test_broker_killed(host: Host, record_property: Record) -> None:
    """All run within a second, a new broker comes, sessions and jobs are confirmed, accounts are kept."""
    broker = host.start(*TURNS)
    guardian = host.guardian_of(broker)
    one, two = host.notebook("one.ipynb"), host.notebook("two.ipynb")
    first = one.burn("%%gpulane -p 100MiB -e 50MiB\n")
    second = two.burn("%%gpulane -p 200MiB -e 60MiB\n")
    paused, _ = one_paused(one, two)
    used = {n.session: session_of(host.snapshot(), n).device_time for n in (one, two)}
    before = host.snapshot().users[0].device_time
    kill(broker)
    seconds = took(lambda: not stopped(paused.pid), 5)
    record_property("resumed_after", seconds)
    assert host.broker != broker
    eventually(lambda: not procfs.alive(guardian))
    assert procfs.alive(host.guardian_of(host.broker))
    back = host.until(
        lambda seen: seen if all(session_of(seen, n).state == "busy" for n in (one, two)) else None
    )
    assert (session_of(back, one).p, session_of(back, two).p) == (100 * MiB, 200 * MiB)
    assert sum(lane.size for lane in back.devices[0].lanes) == 110 * MiB
    assert all(session_of(back, n).jobs for n in (one, two))
    assert back.users[0].device_time >= before - 1.5
    for session in back.sessions:
        assert session.device_time >= used[session.id] - 1.5
    one_paused(one, two)  # and turns go on
    for notebook, outputs in ((one, first), (two, second)):
        notebook.interrupt()
        lines = list(outputs)
        assert any("KeyboardInterrupt" in line for line in lines)
        assert any(line.startswith("used ") for line in lines)
