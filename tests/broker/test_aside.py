"""Memory that is set aside, as its user sees it: by hand, at the next cell, and in the snapshot. The device is played, the sockets are real."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpushare_kernel.broker import aside
from gpushare_kernel.core.values import GiB, MiB, MoveStatus, PauseReason
from gpushare_kernel.devices.base import MoveOutcome
from gpushare_kernel.transport.words import AWAY, PAUSED
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.snapshot import SessionView
from tests.broker.house import Caller, House
from tests.broker.test_desk import refused, submit
from tests.procs import Program


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A broker whose device can park; a cell is told at once what it waits for."""
    monkeypatch.setattr(aside, "QUIET", 0.01)
    with House(tmp_path, capacity=8 * GiB, divisible=False, enforce=True, can_park=True, plain_persistent=0, plain_ephemeral=256 * MiB) as there:  # fmt: skip
        there.device.frees = 5 * GiB
        yield there


_programs: list[Program] = []


@pytest.fixture(autouse=True)
def processes() -> Iterator[None]:
    """End the processes of this test's notebooks."""
    yield
    while _programs:
        _programs.pop().__exit__()


def notebook(gpu: House, name: str) -> Caller:
    """A notebook on a process of its own; its client is ours."""
    _programs.append(Program("wait()"))
    opened = gpu.open(name)
    gpu.bind(opened, _programs[-1].pid)
    return gpu.attach(opened)


def soon(condition: Callable[[], object]) -> None:
    """Wait until something holds as the client sees it."""
    pace = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pace.wait(0.005)
    pytest.fail("it did not come to it")


def idle(gpu: House, name: str = "idle.ipynb", size: int = 5 * GiB) -> Caller:
    """A notebook that keeps `size` bytes, and runs nothing."""
    client = gpu.notebook(name)
    client.ask(submit("a", persistent=size))
    client.ask(msg.End("a", persistent=size, peak=size, boundaries=0))
    return client


def seen(client: Caller, name: str) -> SessionView:
    """Return a session as its owner sees it."""
    reply = client.ask(msg.GetSnapshot())
    assert isinstance(reply, msg.SnapshotReply)
    return next(one for one in reply.snapshot.sessions if one.name == name)


def said(client: Caller) -> list[str]:
    """Return what the notebook's user was told."""
    client.ask(msg.GetSnapshot())
    return [one.text for one in client.notices if isinstance(one, msg.Announce)]


def away(client: Caller) -> bool:
    assert client.view is not None
    return bool(client.view.read(0) & AWAY)


def test_it_is_set_aside_and_the_next_cell_has_it_back(gpu: House) -> None:
    """Its word says so in between: its client asks no framework for anything then."""
    client = idle(gpu)
    assert client.ask(msg.ParkNotebook("idle")) == msg.ParkedNow(("idle.ipynb",), 5 * GiB)
    soon(lambda: away(client))
    soon(lambda: seen(client, "idle.ipynb").state == "parked")
    shown = seen(client, "idle.ipynb")
    assert (shown.p, shown.parked) == (0, 5 * GiB)
    client.tell(msg.CellStarted(1))
    soon(lambda: seen(client, "idle.ipynb").parked is None)
    soon(lambda: not away(client))
    assert seen(client, "idle.ipynb").p == 5 * GiB
    soon(lambda: client.view is not None and not client.view.read(0) & PAUSED)
    assert said(client) == [], "it was back before anybody could ask"


def test_a_notebook_parks_itself_when_its_cell_is_over(gpu: House) -> None:
    client = idle(gpu)
    client.tell(msg.CellStarted(1))
    assert client.ask(msg.ParkNotebook()) == msg.ParkedNow(("idle.ipynb",), 5 * GiB, after_cell=True)  # fmt: skip
    assert not away(client)
    client.tell(msg.CellEnded(1, 5 * GiB))
    soon(lambda: away(client))


def test_a_cell_is_told_once_what_it_waits_for_and_when_it_is_over(gpu: House) -> None:
    """It says how much, who holds it, and the place; calls to the GPU wait, all else runs."""
    client = idle(gpu)
    client.ask(msg.ParkNotebook())
    soon(lambda: away(client))
    other = notebook(gpu, "other.ipynb")
    other.ask(submit("b", ephemeral=7 * GiB))
    client.tell(msg.CellStarted(1))
    soon(lambda: len(said(client)) == 1)
    assert said(client) == [
        "Your GPU memory is set aside (5.0 GiB, nothing lost): calls to the GPU wait until it is back, all else runs. "
        "It needs 5.2 GiB, 1.0 free. Your own other.ipynb holds 7.0 GiB and is running. You are next."
    ]
    other.ask(msg.End("b", persistent=0, peak=0, boundaries=0))
    soon(lambda: said(client)[1:] == ["Your GPU memory is back."])


def test_a_cell_that_is_over_by_then_is_told_nothing(gpu: House, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(aside, "QUIET", 0.2)
    client = idle(gpu)
    client.ask(msg.ParkNotebook())
    soon(lambda: away(client))
    other = notebook(gpu, "other.ipynb")
    other.ask(submit("b", ephemeral=7 * GiB))
    client.tell(msg.CellStarted(1))
    client.tell(msg.CellEnded(1, 0))
    gpu.saw(lambda: not gpu.broker.aside._timers)
    assert said(client) == []


def test_a_cell_whose_memory_was_taken_in_the_middle_is_told(gpu: House) -> None:
    """It meets no boundary, and somebody waits who had less: it stands still inside the driver, and reads why."""
    client = gpu.notebook("endless.ipynb")
    assert isinstance(client.ask(submit("a", ephemeral=7 * GiB)), msg.Granted)
    other = notebook(gpu, "other.ipynb")

    def had_its_time() -> None:
        session = next(iter(gpu.broker.scheduler.sessions.values()))
        session.vtime += 1000.0
        for job in session.jobs.values():
            job.resident_since -= 1000.0

    gpu.do(had_its_time)
    assert isinstance(other.ask(submit("b", ephemeral=6 * GiB)), msg.Granted)
    soon(lambda: len(said(client)) == 1)
    assert said(client)[0].startswith("Your GPU memory is set aside (5.0 GiB, nothing lost): calls to the GPU wait")  # fmt: skip
    other.ask(msg.End("b", persistent=0, peak=0, boundaries=0))
    soon(lambda: said(client)[1:] == ["Your GPU memory is back."])


def test_what_is_lost_is_said(gpu: House) -> None:
    client = idle(gpu)
    client.ask(msg.ParkNotebook())
    soon(lambda: away(client))
    gpu.device.moves["restore"] = [MoveOutcome(MoveStatus.LOST, why="the driver gave up. Restart the kernel.")]  # fmt: skip
    client.tell(msg.CellStarted(1))
    lost = "The GPU memory of this notebook is lost, others are fine: the driver gave up. Restart the kernel."  # fmt: skip
    soon(lambda: said(client) == [lost])
    assert not away(client)


def test_it_is_put_back_by_hand(gpu: House) -> None:
    client = idle(gpu)
    assert client.ask(msg.UnparkNotebook()) == msg.UnparkedNow(())
    client.ask(msg.ParkNotebook())
    soon(lambda: away(client))
    assert client.ask(msg.UnparkNotebook("idle")) == msg.UnparkedNow(("idle.ipynb",))
    soon(lambda: seen(client, "idle.ipynb").state == "idle")
    client.ask(msg.ParkNotebook())
    soon(lambda: away(client))
    notebook(gpu, "other.ipynb").ask(submit("b", ephemeral=7 * GiB))
    assert client.ask(msg.UnparkNotebook("idle")) == msg.UnparkedNow(("idle.ipynb",), waits=True)


def test_what_cannot_be_set_aside_says_why(gpu: House) -> None:
    client = gpu.notebook("empty.ipynb")
    text = refused(client.ask(msg.ParkNotebook()), "BadDeclaration")
    assert (
        text == "the memory of empty.ipynb cannot be set aside: it holds no memory of this device."
    )
    other = idle(gpu)
    gpu.device.moves["park"] = [MoveOutcome(MoveStatus.UNABLE, why="it is profiled.")]
    other.ask(msg.ParkNotebook())
    soon(lambda: seen(other, "idle.ipynb").why_not_parked == "it is profiled.")
    assert "it is profiled" in refused(other.ask(msg.ParkNotebook()), "BadDeclaration")
    soon(lambda: not away(other))


def test_who_is_set_aside_for_somebody_who_waits(gpu: House) -> None:
    """Nobody asks for it: the idle one's memory goes to the cell that waits, which says what it waited for."""
    client = idle(gpu)
    session = next(iter(gpu.broker.scheduler.sessions.values()))
    gpu.do(lambda: setattr(session, "idle_since", session.idle_since - 60.0))
    other = notebook(gpu, "other.ipynb")
    assert isinstance(other.ask(submit("b", ephemeral=7 * GiB)), msg.Granted)
    assert away(client)
    assert seen(client, "idle.ipynb").why_paused != PauseReason.PARKED
