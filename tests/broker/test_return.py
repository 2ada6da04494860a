"""A broker that comes back knows of each notebook what is its context and what it keeps, as the one before did."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpushare_kernel.broker.persons import Person
from gpushare_kernel.core.values import GiB, JobId, JobState, MiB, Presence, Usage
from gpushare_kernel.devices.base import Target
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.snapshot import Snapshot
from tests.broker.house import House
from tests.broker.test_desk import submit

CONTEXT = 64 * MiB


def seen(house: House) -> Snapshot:
    """Return what its owner sees."""
    return house.do(lambda: house.broker.snapshot(Person(os.getuid())))


def before(folder: Path) -> msg.Opened:
    """Return a notebook of a broker that is gone; its process is this one."""
    with House(folder) as house:
        house.device.used = Usage(0.0, 0.0, CONTEXT)
        client = house.notebook()
        opened: msg.Opened = client.opened  # type: ignore[attr-defined]
        assert seen(house).devices[0].reserve == CONTEXT
        assert house.ledger.flush()
    return opened


def back(house: House, held: int) -> None:
    """A broker comes back while its notebook holds so much in all."""

    def usage(target: Target, *, memory: bool = False, active: bool = False) -> Usage:
        """As a host does, tell memory where it is asked for."""
        return Usage(0.0, 0.0, held if memory else None)

    house.device.usage = usage  # type: ignore[method-assign]
    (row,) = house.ledger.load().sessions
    house.do(lambda: house.broker.adopt(row))


@pytest.mark.parametrize("client", [True, False])
def test_what_a_notebook_keeps_is_not_taken_for_its_context(tmp_path: Path, client: bool) -> None:
    """Whether its client comes back or not; and a release gives back what is not used, not what is."""
    opened = before(tmp_path)
    with House(tmp_path, orphan_grace=0.05) as house:
        back(house, CONTEXT + 300 * MiB)
        if client:
            house.attach(opened)
        house.saw(lambda: all(s.presence in {Presence.ATTACHED, Presence.BARE} for s in house.broker.sessions()))  # fmt: skip
        (session,), (device,) = seen(house).sessions, seen(house).devices
        assert (session.p, device.persistent, device.reserve) == (300 * MiB, 300 * MiB, CONTEXT)
        released = house.call(msg.Observe()).ask(msg.Release(opened.session))
        assert released == msg.ReleasedNow(0, ("hw.ipynb",))
        assert seen(house).sessions[0].p == 300 * MiB


def test_the_grace_ends_with_the_last_who_is_missing(tmp_path: Path) -> None:
    """Whoever comes back last, or is gone: who waits for memory has it then, not five seconds later."""
    with House(tmp_path) as house:
        first, second, third = (house.notebook() for _ in range(3))
        opened = [caller.opened for caller in (first, second, third)]  # type: ignore[attr-defined]
        assert house.ledger.flush()
    with House(tmp_path, orphan_grace=3600.0) as house:
        for row in house.ledger.load().sessions:
            house.do(lambda row=row: house.broker.adopt(row))
        held = msg.HeldJob(JobId("j"), "cell", 0, 6 * GiB, 1, 1, running=True)
        newcomer = house.notebook("new.ipynb")
        number = newcomer.send(submit("n", persistent=0, ephemeral=GiB))
        house.attach(opened[0], held=(held,))
        house.call(msg.Close(opened[1].session, opened[1].token))
        house.saw(lambda: any(job.state is JobState.QUEUED for job in house.broker.scheduler.jobs.values()))  # fmt: skip
        house.attach(opened[2])
        assert isinstance(newcomer.reply(number), msg.Granted)
        (device,) = seen(house).devices
        assert sum(lane.size for lane in device.lanes) == 7 * GiB


def test_what_a_confirmed_lane_holds_is_not_kept(tmp_path: Path) -> None:
    """A cell that ran on without a broker is charged its lane, once."""
    opened = before(tmp_path)
    with House(tmp_path) as house:
        back(house, CONTEXT + 3 * GiB)
        held = msg.HeldJob(JobId("j"), "cell", 0, 4 * GiB, 1, 1, running=True)
        house.attach(opened, held=(held,))
        house.saw(lambda: house.broker.scheduler.jobs)
        (device,) = seen(house).devices
        assert (device.persistent, device.reserve) == (0, CONTEXT)
        assert [lane.size for lane in device.lanes] == [4 * GiB]


def test_a_new_process_has_a_context_of_its_own(tmp_path: Path) -> None:
    """What the one before held at its start says nothing of it."""
    opened = before(tmp_path)
    with House(tmp_path) as house:
        back(house, CONTEXT)
        house.attach(opened)
        again = house.call(msg.Restart(opened.session, opened.token)).body
        house.device.usage = lambda *_, **__: Usage(0.0, 0.0, 2 * CONTEXT)  # type: ignore[method-assign]
        house.bind(again)
        house.attach(again).ask(submit("j", persistent=0, ephemeral=GiB))
        assert seen(house).devices[0].reserve == 2 * CONTEXT
        assert house.ledger.flush()
        assert [row.baseline for row in house.ledger.load().sessions] == [2 * CONTEXT]
