"""Two things that happen in the same moment, in each order: held at a gate or done in one step of the loop, never by luck.

Others of these pairs: guardian against a worker in flight (`test_guardian.py`), idle exit against connect
(`test_housekeeping.py`, `tests/transport/test_server.py`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpushare_kernel.broker import broker as broker_module
from gpushare_kernel.client.session import Session
from gpushare_kernel.core.errors import BadToken
from gpushare_kernel.core.values import GiB, JobId, JobState, PauseStatus, SessionId
from gpushare_kernel.devices.base import PauseOutcome
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire import texts
from tests.broker.house import LIMIT, Caller, House
from tests.broker.test_desk import end, submit
from tests.procs import Program, eventually, key_of, zombie


@pytest.fixture
def victim(house: House) -> Iterator[tuple[Program, msg.Opened]]:
    """A process of its own that is a session, and wants the device beside this one."""
    with Program("say('up'); wait()") as program:
        program.said()
        opened = house.open("victim.ipynb")
        house.bind(opened, program.pid)
        yield program, opened


@pytest.mark.parametrize("status", [PauseStatus.PAUSED, PauseStatus.GONE, PauseStatus.BUSY])
def test_a_pause_in_flight_against_its_process_s_exit(
    house: House, victim: tuple[Program, msg.Opened], status: PauseStatus
) -> None:
    """Whatever the device says of it afterwards: nothing stays paused, and the other one has the device."""
    program, opened = victim
    other = house.notebook("other.ipynb")
    engine, session = house.broker.engine, SessionId(opened.session)
    house.device.answers["pause"] = [PauseOutcome(status) for _ in range(8)]
    house.device.gate.clear()
    house.device.busy = True
    other.tell(msg.CellStarted(1))
    house.attach(opened).tell(msg.CellStarted(2))  # as its starter may, from outside
    house.saw(lambda: ("pause", program.pid) in house.device.calls)
    program.process.kill()
    program.process.wait()
    kernel = house.broker.registry
    house.saw(lambda: (one := kernel.get(session)) is None or one.key is None)
    house.do(house.device.gate.set)
    house.saw(lambda: not any(one.pausing for one in engine.scheduler.sessions.values()))
    left = house.do(lambda: engine.scheduler.sessions.get(session))
    assert left is None or (left.stopped is None and not left.jobs)
    house.saw(lambda: all(one.stopped is None for one in engine.scheduler.sessions.values()))


@pytest.mark.parametrize("first", ["process", "opener"])
def test_an_opener_s_end_against_its_process_s(
    house: House, victim: tuple[Program, msg.Opened], first: str
) -> None:
    """Whichever is seen to end first, no session is left that nobody will start a process for."""
    program, opened = victim
    with Program("say('up'); wait()") as opener:
        opener.said()
        kernel = house.kernel(opened)
        kernel.opener = key_of(opener.pid)
        if first == "process":
            ended(program)
            house.saw(lambda: kernel.key is None)
            ended(opener)
        else:
            ended(opener)
            ended(program)
        house.saw(lambda: house.broker.registry.get(SessionId(opened.session)) is None)


def test_an_opener_s_end_after_a_bind_that_failed(house: House) -> None:
    """Its process had ended before it was bound; it is still waited for another one, for as long as somebody could start it."""
    with Program("say('up'); wait()") as opener:
        opener.said()
        opened = house.open("never.ipynb")
        kernel = house.kernel(opened)
        kernel.opener = key_of(opener.pid)
        house.do(lambda: house.broker.emptied(kernel))  # as a restart by it does
        with zombie() as dead:
            pidfd = os.pidfd_open(dead.pid)
        with pytest.raises(BadToken, match="has ended already"):
            house.do(lambda: house.broker.bind(kernel, pidfd, dead.pid))
        assert house.kernel(opened) is kernel
        ended(opener)
        house.saw(lambda: house.broker.registry.get(SessionId(opened.session)) is None)


def ended(program: Program) -> None:
    """Kill it, and see it gone."""
    program.process.kill()
    program.process.wait()


def hang_up_first(caller: Caller, give: Callable[[], None]) -> None:
    """The waiter's end is on its way when its memory comes free."""
    caller.sock.close()
    give()


def grant_first(caller: Caller, give: Callable[[], None]) -> None:
    """Its grant is on its way when it hangs up."""
    give()
    caller.sock.close()


@pytest.mark.parametrize("order", [hang_up_first, grant_first])
def test_a_grant_against_the_waiter_s_disconnect(
    house: House,
    monkeypatch: pytest.MonkeyPatch,
    order: Callable[[Caller, Callable[[], None]], None],
) -> None:
    """Granted to nobody, the memory goes to whoever is next: no lane stays with a line that is down."""
    monkeypatch.setattr(broker_module, "LEFT_AFTER", 0.0)
    holder, waiter, next_one = (house.notebook(f"{n}.ipynb") for n in range(3))
    holder.ask(submit("h", persistent=0, ephemeral=7 * GiB))
    for number, caller in ((1, waiter), (2, next_one)):
        caller.send(submit(f"w{number}", persistent=0, ephemeral=6 * GiB))
        caller.ask(msg.GetSnapshot())  # it has been queued by now
    core = house.broker.scheduler
    names = [job.id for job in core.jobs.values() if job.state is JobState.RUNNING]
    assert len(names) == 1
    desk = house.broker.jobs[names[0]]

    def both() -> None:
        order(waiter, lambda: desk._end(99, end("h")))

    house.do(both)
    reply = next_one.reply(1)
    assert isinstance(reply, msg.Granted)
    house.saw(lambda: len(core.jobs) == 1)
    assert core.book.table.used == 6 * GiB


def a_broker_that_dies(tmp_path: Path, opened: list[msg.Opened], leave: Callable[[House, Session], None]) -> Session:  # fmt: skip
    """Have one whose memory one notebook holds, and another one attached; return its side once the broker is gone."""
    with House(tmp_path) as house:
        holder = house.notebook("holder.ipynb")
        holder.ask(submit("h", persistent=0, ephemeral=7 * GiB))
        waiter = house.open("waiter.ipynb")
        house.bind(waiter)
        opened += [holder.opened, waiter]  # type: ignore[attr-defined]
        session = Session(waiter.token, house.path)
        session.wait_attached(LIMIT)
        leave(house, session)
        assert house.ledger.flush()
    return session


def is_queued(house: House) -> bool:
    """Whether anybody waits for memory."""
    return any(one.state is JobState.QUEUED for one in house.broker.scheduler.jobs.values())


class Waiter(threading.Thread):
    """A cell that wants memory: what it is told, and that it has it."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.said: list[str] = []
        self.away, self.granted = threading.Event(), threading.Event()
        self._session = session

    def run(self) -> None:
        """Wait for it."""
        self._session.submit(
            msg.Submit(JobId("w"), "cell", persistent=0, ephemeral=2 * GiB),
            on_wait=lambda why: self.away.set() if why is None else None,
            say=self.said.append,
        )
        self.granted.set()


@pytest.mark.parametrize("first", ["the queue", "the restart"])
def test_a_restart_against_the_queue(tmp_path: Path, first: str) -> None:
    """The broker dies while a cell waits, or a moment before it asks: it waits at the next one, and has its memory when there is room.

    Only who had a place has lost it, and says so.
    """
    waiters: list[Waiter] = []
    opened: list[msg.Opened] = []

    def asks(house: House, session: Session) -> None:
        waiters.append(Waiter(session))
        waiters[0].start()
        house.saw(lambda: is_queued(house))

    had_a_place = first == "the queue"
    session = a_broker_that_dies(tmp_path, opened, asks if had_a_place else lambda *_: None)
    if not had_a_place:
        eventually(lambda: not session.up)
        waiters.append(Waiter(session))
        waiters[0].start()
        assert waiters[0].away.wait(LIMIT), "it waits for a broker"
    (waiter,) = waiters
    held = msg.HeldJob(JobId("h"), "cell", 0, 7 * GiB, 1, 1, running=True)
    with House(tmp_path, orphan_grace=3600.0) as again:
        for row in again.ledger.load().sessions:
            again.do(lambda row=row: again.broker.adopt(row))
        again.saw(lambda: is_queued(again))
        assert not waiter.granted.is_set()
        back = again.attach(opened[0], held=(held,))
        back.ask(msg.GetSnapshot())
        assert not waiter.granted.is_set(), "who is back holds what it held"
        back.ask(end("h"))
        assert waiter.granted.wait(LIMIT)
        waiter.join(LIMIT)
        session.close()
    assert waiter.said == ([texts.PLACE_LOST] if had_a_place else [])
