"""The timer by which windows open: at its time, never before, and only as it was set last."""

from __future__ import annotations

import asyncio

import pytest

from gpushare_kernel.broker.alarm import Alarm


async def _rung(*dues: float | None) -> tuple[float, list[tuple[float, float]]]:
    """Set an alarm to each of `dues` (seconds from now) in turn; return when, and what rang until a second after."""
    loop = asyncio.get_running_loop()
    began, rang, over = loop.time(), [], asyncio.Event()

    def ring(due: float) -> None:
        rang.append((due, loop.time()))
        over.set()

    alarm = Alarm(loop, ring)
    for due in dues:
        alarm.set(None if due is None else began + due)
    if dues[-1] is not None:
        await asyncio.wait_for(over.wait(), 20)
    for _ in range(3):
        await asyncio.sleep(0)  # what is ready now has its turn
    alarm.close()
    alarm.close()
    alarm.set(began)
    return began, rang


def test_it_rings_once_when_it_is_due() -> None:
    """Never before: what is decided then counts on it."""
    began, rang = asyncio.run(_rung(0.05))
    assert [due - began for due, _ in rang] == pytest.approx([0.05])
    assert rang[0][1] >= rang[0][0] - 1e-6


def test_what_has_passed_rings_at_once() -> None:
    """As a timer of the loop does."""
    _, rang = asyncio.run(_rung(-5.0))
    assert len(rang) == 1


def test_only_the_last_time_counts() -> None:
    """Later, earlier, or not at all."""
    began, rang = asyncio.run(_rung(100.0, 0.0, 0.02))
    assert [due - began for due, _ in rang] == pytest.approx([0.02])
    assert asyncio.run(_rung(0.0, None))[1] == []
