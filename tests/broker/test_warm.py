"""The warm tier from the broker's side: its client moves its own memory, and the rest is parked where that is needed. The client is played."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from gpushare_kernel.broker import warm
from gpushare_kernel.core.values import GiB, MiB, MoveStatus, PauseStatus
from gpushare_kernel.devices.base import MoveOutcome, PauseOutcome, Target
from gpushare_kernel.transport.words import AWAY
from gpushare_kernel.wire import messages as msg
from tests.broker.house import Caller, House
from tests.broker.test_aside import away, idle, notebook, processes, seen, soon
from tests.broker.test_desk import submit
from tests.broker.test_engine import did

__all__ = ["processes"]
_Notice = TypeVar("_Notice")


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[House]:
    """A broker that asks clients first."""
    with House(tmp_path, capacity=8 * GiB, divisible=False, enforce=True, can_park=True, warm=True, plain_persistent=0, plain_ephemeral=256 * MiB) as there:  # fmt: skip
        yield there


def asked(client: Caller, kind: type[_Notice]) -> _Notice:
    """Wait until the client is asked."""

    def there() -> bool:
        client.ask(msg.GetSnapshot())
        return any(isinstance(one, kind) for one in client.notices)

    soon(there)
    notice = next(one for one in client.notices if isinstance(one, kind))
    client.notices.remove(notice)  # type: ignore[arg-type]
    return notice


def went(client: Caller, size: int, why: str = "") -> None:
    """Answer that `size` bytes are set aside."""
    client.tell(msg.WentAside(asked(client, msg.SetAside).ticket, size, why))


def came(client: Caller, why: str = "") -> None:
    """Answer that it is back."""
    client.tell(msg.CameBack(asked(client, msg.PutBack).ticket, why))


def waited_for(gpu: House, client: Caller, size: int) -> tuple[Caller, int]:
    """Somebody waits for `size` bytes, and `client` has been idle for a minute; return who waits, and the number of its request."""
    session = next(iter(gpu.broker.scheduler.sessions.values()))
    gpu.do(lambda: setattr(session, "idle_since", session.idle_since - 60.0))
    other = notebook(gpu, "other.ipynb")
    return other, other.send(submit("b", ephemeral=size))


def test_what_the_client_sets_aside_is_enough(gpu: House) -> None:
    """It is locked right after, and keeps its context; its next cell has it back without the driver's restore."""
    client = idle(gpu)
    other, number = waited_for(gpu, client, 7 * GiB)
    went(client, 5 * GiB)
    assert isinstance(other.reply(number), msg.Granted)
    soon(lambda: away(client))
    assert did(gpu) == ["pause", "look"]
    assert seen(client, "idle.ipynb").parked == 5 * GiB
    other.ask(msg.End("b", persistent=0, peak=0, boundaries=0))
    client.tell(msg.CellStarted(1))
    came(client)
    soon(lambda: seen(client, "idle.ipynb").parked is None)
    assert not away(client)
    assert "restore" not in did(gpu)
    assert seen(client, "idle.ipynb").p == 5 * GiB


def test_what_was_read_before_it_went_does_not_count(
    gpu: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVML is read now and then: what it said last would charge what has gone, and who waits would wait on."""
    client = idle(gpu)
    used, pause = gpu.device.used, gpu.device.pause

    async def paused(target: Target, *, limit: float) -> PauseOutcome:
        gpu.device.used = replace(used, memory=5 * GiB)  # the last reading, of before
        return await pause(target, limit=limit)

    async def look() -> None:
        gpu.device.used = used

    monkeypatch.setattr(gpu.device, "pause", paused)
    monkeypatch.setattr(gpu.device, "look", look)
    other, number = waited_for(gpu, client, 7 * GiB)
    went(client, 5 * GiB)
    assert isinstance(other.reply(number), msg.Granted)
    session = seen(client, "idle.ipynb")
    assert (session.p, session.parked) == (0, 5 * GiB)


def test_the_rest_goes_too_where_it_is_needed(gpu: House) -> None:
    """By hand, all of it: first what the client moves, then the driver's checkpoint; back in the other order."""
    client = idle(gpu)
    gpu.device.frees = GiB
    client.send(msg.ParkNotebook())
    went(client, 4 * GiB)
    soon(lambda: away(client))
    assert did(gpu) == ["park"]
    kernel = next(iter(gpu.broker.registry))
    gpu.device.away[kernel.key.pid] = GiB  # type: ignore[union-attr]
    client.tell(msg.CellStarted(1))
    came(client)
    soon(lambda: seen(client, "idle.ipynb").parked is None)
    assert did(gpu)[:3] == ["park", "restore", "resume"]


def test_who_cannot_is_parked_by_the_driver(gpu: House) -> None:
    """It is not quiet."""
    client = idle(gpu)
    gpu.device.frees = 5 * GiB
    client.send(msg.ParkNotebook())
    went(client, 0, "a thread of its own runs")
    soon(lambda: away(client))
    assert did(gpu) == ["park"]


def slow(gpu: House, monkeypatch: pytest.MonkeyPatch) -> Caller:
    """A notebook that has not answered in time."""
    monkeypatch.setattr(warm, "LEAST", 0.05)
    monkeypatch.setattr(warm, "SLOWEST", 1e15)
    client = idle(gpu)
    gpu.device.frees = 5 * GiB
    client.send(msg.ParkNotebook())
    asked(client, msg.SetAside)
    monkeypatch.setattr(warm, "LEAST", 20.0)
    return client


def test_who_is_too_slow_is_parked_once_it_has_undone_it(gpu: House, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Before that it may be in a call to the driver, which would wait for its memory with nobody to ask for it."""
    client = slow(gpu, monkeypatch)
    undo = asked(client, msg.PutBack)
    client.tell(msg.WentAside(1, 5 * GiB))  # late
    assert did(gpu) == []
    client.tell(msg.CameBack(undo.ticket))
    soon(lambda: away(client))
    assert did(gpu) == ["park"]
    kernel = next(iter(gpu.broker.registry))
    assert kernel.aside == 0


def test_who_does_not_answer_at_all_is_not_parked(gpu: House, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """It runs on; what it sets aside later after all is put back."""
    client = slow(gpu, monkeypatch)
    kernel = next(iter(gpu.broker.registry))
    gpu.do(
        lambda: [
            asks.set_result(None)
            for asks in gpu.broker.engine.moves.warm._asked.values()
            if not asks.done()
        ]
    )  # type: ignore[func-returns-value, arg-type]
    soon(lambda: not gpu.broker.engine.moves.under_way(kernel))
    assert not away(client)
    assert "park" not in did(gpu)
    client.notices.clear()
    client.tell(msg.WentAside(1, 5 * GiB))
    came(client)
    gpu.saw(lambda: kernel.aside == 0)


def test_a_second_park_forgets_nothing_of_the_first(gpu: House) -> None:
    """It says what is set aside, which is all of it already: it must come back, too."""
    opened = gpu.open("hw.ipynb")
    gpu.bind(opened)
    client = gpu.attach(opened, aside=5 * GiB)
    session = next(iter(gpu.broker.scheduler.sessions.values()))
    gpu.do(lambda: setattr(session, "parked", None))
    gpu.do(lambda: gpu.broker.scheduler.book.charge(session, declared=GiB))
    client.send(msg.ParkNotebook())
    went(client, 5 * GiB)
    soon(lambda: did(gpu) == ["park"])
    client.tell(msg.CellStarted(1))
    came(client)
    kernel = gpu.kernel(opened)
    gpu.saw(lambda: kernel.aside == 0)


@pytest.mark.parametrize("refusal", ["park", "pause"])
def test_what_was_set_aside_comes_back_where_the_rest_cannot_go(gpu: House, refusal: str) -> None:
    """It runs on with all of it."""
    client = idle(gpu)
    if refusal == "park":
        gpu.device.moves["park"] = [MoveOutcome(MoveStatus.UNABLE, why="it is profiled")]
        client.send(msg.ParkNotebook())
    else:
        gpu.device.answers["pause"] = [PauseOutcome(PauseStatus.UNSUPPORTED)]
        gpu.device.moves["park"] = [MoveOutcome(MoveStatus.NOT_NOW, why="it is profiled")]
        waited_for(gpu, client, 7 * GiB)
    went(client, 5 * GiB)
    came(client)
    soon(lambda: seen(client, "idle.ipynb").parked is None and not away(client))
    kernel = next(iter(gpu.broker.registry))
    gpu.saw(lambda: kernel.aside == 0)
    assert seen(client, "idle.ipynb").p == 5 * GiB


def test_what_cannot_come_back_yet_is_asked_for_again(gpu: House) -> None:
    """Nothing is lost by it."""
    client = idle(gpu)
    waited_for(gpu, client, 7 * GiB)
    went(client, 5 * GiB)
    soon(lambda: away(client))
    gpu.do(lambda: [desk.abandon() for desk in {*gpu.broker.jobs.values()}])
    client.tell(msg.CellStarted(1))
    came(client, "out of memory")
    soon(lambda: seen(client, "idle.ipynb").state == "restoring")
    came(client)
    soon(lambda: seen(client, "idle.ipynb").parked is None)


def test_a_kernel_that_starts_anew_has_nothing_set_aside(gpu: House) -> None:
    """Its next process is asked to put nothing back."""
    opened = gpu.open("hw.ipynb")
    gpu.bind(opened)
    gpu.attach(opened, aside=5 * GiB)
    kernel = gpu.kernel(opened)
    assert gpu.broker.engine.moves.away(kernel)
    gpu.do(lambda: gpu.broker.emptied(kernel))
    assert kernel.aside == 0


def test_for_a_broker_that_comes_back_it_is_parked(gpu: House) -> None:
    """It knows nothing of it but what the client says as it attaches. A cell asks for it and waits as any other."""
    opened = gpu.open("hw.ipynb")
    gpu.bind(opened)
    client = gpu.attach(opened, aside=5 * GiB)
    assert seen(client, "hw.ipynb").parked == 5 * GiB
    other = notebook(gpu, "other.ipynb")
    assert isinstance(other.ask(submit("b", ephemeral=7 * GiB)), msg.Granted)
    client.tell(msg.CellStarted(-1))
    soon(lambda: any(job.in_driver for job in gpu.broker.scheduler.jobs.values()))
    gpu.do(gpu.broker.engine.look_at_paused)
    assert did(gpu) == []
    other.ask(msg.End("b", persistent=0, peak=0, boundaries=0))
    came(client)
    kernel = gpu.kernel(opened)
    soon(lambda: seen(client, "hw.ipynb").parked is None)
    assert kernel.aside == 0
    assert seen(client, "hw.ipynb").p == 5 * GiB
    assert not kernel.page.get(0) & AWAY


def test_what_cannot_come_back_after_a_refusal_waits_for_room(gpu: House) -> None:
    """Others had its room by then: it is parked, and comes back as whoever is parked does."""
    client = idle(gpu)
    gpu.device.moves["park"] = [MoveOutcome(MoveStatus.UNABLE, why="it is profiled")]
    client.send(msg.ParkNotebook())
    went(client, 5 * GiB)
    came(client, "out of memory")
    soon(lambda: away(client))
    assert seen(client, "idle.ipynb").parked == 5 * GiB
    client.tell(msg.CellStarted(1))
    came(client)
    soon(lambda: seen(client, "idle.ipynb").parked is None)
