"""Parks and restores are carried out in each session's order, the others stand still for a restore, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel.broker import moves
from gpushare_kernel.broker.ledger import Account, SessionRow
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.records import Stowed
from gpushare_kernel.core.values import (
    GiB,
    MoveStatus,
    PauseReason,
    PauseStatus,
    ProcessKey,
    SessionId,
    Usage,
    UserId,
)
from gpushare_kernel.devices.base import MoveOutcome, PauseOutcome, Stranger, Target
from gpushare_kernel.transport.words import AWAY, PAUSED
from gpushare_kernel.wire import messages as msg
from tests.broker.house import Caller, House
from tests.broker.test_desk import session_of
from tests.broker.test_engine import carry_out, did, pause, settled
from tests.procs import Program, key_of


@pytest.fixture
def processes() -> Iterator[list[Program]]:
    """Three processes for notebooks of their own."""
    made = [Program("wait()") for _ in range(3)]
    yield made
    for program in made:
        program.__exit__()


@pytest.fixture
def told(house: House, monkeypatch: pytest.MonkeyPatch) -> list[ev.Event]:
    """What the scheduler is told."""
    seen: list[ev.Event] = []
    handle = house.broker.scheduler.handle

    def noted(event: ev.Event) -> list[do.Instruction]:
        seen.append(event)
        return handle(event)

    monkeypatch.setattr(house.broker.scheduler, "handle", noted)
    return seen


def notebook(house: House, program: Program) -> Caller:
    """Open a session on a process of its own; its client is ours."""
    opened = house.open(f"{program.pid}.ipynb")
    house.bind(opened, program.pid)
    caller = house.attach(opened)
    caller.opened = opened  # type: ignore[attr-defined]
    return caller


def parked(house: House, program: Program, size: int = GiB) -> None:
    """Have the device keep it parked, and the scheduler know."""
    house.device.away[program.pid] = size
    for session in house.broker.scheduler.sessions.values():
        kernel = house.broker.registry.get(session.id)
        assert kernel is not None
        if kernel.key == program.key:
            session.parked = Stowed(size, 0, 0)


def calls_of(house: House, program: Program) -> list[str]:
    return [what for what, pid in house.device.calls if pid == program.pid]


def park(client: Caller, ticket: int = 7) -> do.Park:
    return do.Park(session_of(client), ticket)


def restore(client: Caller, ticket: int = 8) -> do.Restore:
    return do.Restore(session_of(client), ticket, GiB)


def answers(told: list[ev.Event]) -> list[ev.Parked | ev.Restored]:
    return [event for event in told if isinstance(event, ev.Parked | ev.Restored)]


# ---------------------------------------------------------------- one session


def test_a_park_has_its_place_between_pause_and_resume(house: House, told: list[ev.Event]) -> None:
    """Asked of the device when the pause before it is done; the scheduler is told its ticket and the numbers."""
    client = house.notebook()
    house.device.frees = 3 * GiB
    house.do(house.device.gate.clear)
    carry_out(house, pause(client), park(client), do.Resume(session_of(client)))
    house.saw(lambda: did(house) == ["pause"])
    house.do(house.device.gate.set)
    settled(house, client)
    assert did(house) == ["pause", "park", "resume"]
    (answer,) = answers(told)
    assert isinstance(answer, ev.Parked)
    assert (answer.ticket, answer.status, answer.freed, answer.persistent) == (7, MoveStatus.DONE, 3 * GiB, 0)  # fmt: skip
    # While it is carried out the device knows that what seems to be work is a move.
    assert (house.device.told, house.device.under_way) == ([1], 0)


def test_while_it_is_parked_nobody_else_is_to_undo_anything(house: House) -> None:
    """K6: its word, which its starter reads when all brokers are dead, does not ask for an unlock; before and after it does."""
    client = house.notebook()
    house.device.frees = GiB
    house.do(house.device.move_gate.clear)
    carry_out(house, park(client))
    house.saw(lambda: did(house) == ["park"])
    assert client.view is not None
    assert client.view.read(0) == PAUSED | AWAY
    house.do(house.device.move_gate.set)
    settled(house, client)
    assert client.view.read(0) == AWAY
    carry_out(house, restore(client))
    settled(house, client)
    assert client.view.read(0) == PAUSED
    carry_out(house, do.Resume(session_of(client)))
    settled(house, client)
    assert client.view.read(0) == 0


@pytest.mark.parametrize("what", ["park", "restore"])
@pytest.mark.parametrize("problem", [OSError("no"), RuntimeError("a bug")])
def test_a_move_that_fails_is_an_answer_too(
    house: House, told: list[ev.Event], what: str, problem: Exception
) -> None:
    """Whatever a device raises: not now, and the scheduler waits no longer."""
    client = house.notebook()
    house.device.moves[what] = [problem]
    carry_out(house, park(client) if what == "park" else restore(client))
    settled(house, client)
    (answer,) = answers(told)
    assert answer.status is MoveStatus.NOT_NOW
    assert "log" in answer.why
    assert client.view is not None
    assert client.view.read(0) == (AWAY if what == "restore" else 0)


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("status", [MoveStatus.NOT_NOW, MoveStatus.UNABLE])
def test_who_could_not_be_parked_runs_on_unless_it_was_stopped_before(
    house: House, status: MoveStatus, *, stopped: bool
) -> None:
    """K3: nothing has changed for it."""
    client = house.notebook()
    session = house.broker.scheduler.sessions[session_of(client)]
    if stopped:
        session.stopped = PauseReason.TURN_ENDED
    house.device.moves["park"] = [MoveOutcome(status, why="no")]
    carry_out(house, park(client))
    settled(house, client)
    assert did(house) == (["park"] if stopped else ["park", "resume"])
    assert client.view is not None
    assert client.view.read(0) == (PAUSED if stopped else 0)
    session.stopped = None


def test_who_is_marked_is_not_even_asked_about(house: House, told: list[ev.Event]) -> None:
    """K9: it maps pages of a bundle, say: the driver would park it, and could not bring it back."""
    client = house.notebook()
    house.kernel(client.opened).barred = "it maps a bundle"  # type: ignore[attr-defined]
    carry_out(house, park(client))
    settled(house, client)
    assert did(house) == ["resume"]
    (answer,) = answers(told)
    assert (answer.status, answer.why) == (MoveStatus.UNABLE, "it maps a bundle")


def test_a_loss_is_told_to_its_user_and_the_log(
    house: House, told: list[ev.Event], caplog: pytest.LogCaptureFixture
) -> None:
    """And whatever of it still stands is let run."""
    client = house.notebook()
    house.device.moves["restore"] = [MoveOutcome(MoveStatus.LOST, why="the driver failed")]
    carry_out(house, restore(client))
    settled(house, client)
    assert answers(told)[0].status is MoveStatus.LOST
    assert did(house) == ["restore", "resume"]
    assert "is lost" in caplog.text


def test_a_memory_on_its_way_is_not_measured(house: House) -> None:
    """K8: half of it would be taken for all."""
    client = house.notebook()
    kernel = house.kernel(client.opened)  # type: ignore[attr-defined]
    asked: list[bool] = []
    usage_of = house.device.usage

    def usage(target: Target, *, memory: bool = False, active: bool = False) -> Usage | None:
        asked.append(memory)
        return usage_of(target, memory=memory, active=active)

    house.device.usage = usage  # type: ignore[method-assign]
    house.do(house.device.move_gate.clear)
    carry_out(house, park(client))
    house.saw(lambda: did(house) == ["park"])
    house.do(lambda: house.broker.engine.usage(kernel, memory=True))
    assert asked == [False]
    house.do(house.device.move_gate.set)
    settled(house, client)
    house.do(lambda: house.broker.engine.usage(kernel, memory=True))
    assert asked[-1]


def test_moves_of_who_is_gone_are_nothing(house: House) -> None:
    """Between an event and its instruction a session may end."""
    gone = SessionId("gone")
    carry_out(house, do.Park(gone, 1), do.Restore(gone, 2, GiB))
    assert house.device.calls == []


# ---------------------------------------------------------------- the others


def test_the_others_stand_still_for_a_restore(house: House, processes: list[Program]) -> None:
    """K2: before it begins, until it is over; then they run again. Only so much room as it needs is asked for."""
    one, other, third = (notebook(house, program) for program in processes)
    parked(house, processes[0])
    house.do(house.device.move_gate.clear)
    carry_out(house, restore(one))
    house.saw(lambda: "restore" in did(house))
    assert sorted(did(house)) == ["pause", "pause", "restore"]
    assert did(house)[-1] == "restore"
    assert other.view is not None
    assert other.view.read(0) == PAUSED
    house.do(house.device.move_gate.set)
    for client in (one, other, third):
        settled(house, client)
    assert calls_of(house, processes[1]) == calls_of(house, processes[2]) == ["pause", "resume"]
    assert calls_of(house, processes[0]) == ["restore"]
    assert house.device.margins == [moves.MARGIN]
    assert other.view.read(0) == 0


def test_no_restore_begins_before_the_others_stand(house: House, processes: list[Program]) -> None:
    """K2: one drains still."""
    one, _ = (notebook(house, program) for program in processes[:2])
    parked(house, processes[0])
    house.do(house.device.gate.clear)
    carry_out(house, restore(one))
    house.saw(lambda: did(house) == ["pause"])
    house.do(house.device.gate.set)
    settled(house, one)
    assert did(house)[:2] == ["pause", "restore"]


@pytest.mark.parametrize("status", [PauseStatus.UNSUPPORTED, PauseStatus.BUSY, PauseStatus.STOPPED])
def test_where_one_cannot_be_held_there_must_be_twice_the_room(
    house: House, processes: list[Program], told: list[ev.Event], status: PauseStatus
) -> None:
    """K2: or it is not begun, and it is said why. Who cannot be held runs on."""
    one, other = (notebook(house, program) for program in processes[:2])
    parked(house, processes[0], 3 * GiB)
    house.device.answers["pause"] = [PauseOutcome(status)]
    house.device.moves["restore"] = [MoveOutcome(MoveStatus.NOT_NOW, why="too little.")]
    carry_out(house, restore(one))
    for client in (one, other):
        settled(house, client)
    assert house.device.margins == [3 * GiB + 2 * moves.MARGIN]
    assert calls_of(house, processes[1]) == ["pause", "resume"]
    (answer,) = answers(told)
    assert "1 other(s) on the device cannot be held still" in answer.why


def test_one_that_takes_too_long_to_stand_counts_as_one_that_cannot(
    house: House, processes: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """K2: nobody waits for it without end; when it has drained it is let run."""
    monkeypatch.setattr(moves, "STANDING", 0.01)
    one, other = (notebook(house, program) for program in processes[:2])
    parked(house, processes[0])
    gate = house.device.gate
    house.do(gate.clear)
    carry_out(house, restore(one))
    house.saw(lambda: "restore" in did(house))
    house.do(gate.set)
    for client in (one, other):
        settled(house, client)
    assert house.device.margins == [GiB + 2 * moves.MARGIN]
    assert calls_of(house, processes[1]) == ["pause", "resume"]


def test_strangers_are_never_held_and_count(house: House, processes: list[Program]) -> None:
    """K2: nobody pauses them; what draws a screen takes little and does not count."""
    one = notebook(house, processes[0])
    parked(house, processes[0])
    screen = Stranger(ProcessKey(1, 1), 0, GiB, "Xorg", display=True)
    house.device.others = [screen]
    carry_out(house, restore(one))
    settled(house, one)
    parked(house, processes[0])
    house.device.others = [screen, Stranger(ProcessKey(2, 1), 0, GiB, "hog")]
    carry_out(house, restore(one))
    settled(house, one)
    assert house.device.margins == [moves.MARGIN, GiB + 2 * moves.MARGIN]


def test_children_that_a_parked_one_has_started_since_count(
    house: House, processes: list[Program]
) -> None:
    """K2: it is parked, and its user runs another program on the device meanwhile; it can wait for its own restore, so nobody waits for it."""
    one, other = (notebook(house, program) for program in processes[:2])
    for program in processes[:2]:
        parked(house, program)
    house.device.later[processes[1].pid] = 1
    carry_out(house, restore(one))
    for client in (one, other):
        settled(house, client)
    assert calls_of(house, processes[1]) == []
    assert house.device.margins == [GiB + 2 * moves.MARGIN]


def test_real_time_is_not_held(house: House, processes: list[Program]) -> None:
    """I7: its bound holds; and its memory is what it declared."""
    one, other = (notebook(house, program) for program in processes[:2])
    parked(house, processes[0])
    session = house.broker.scheduler.sessions[session_of(other)]
    session.realtime = True
    carry_out(house, restore(one))
    settled(house, one)
    session.realtime = False
    assert calls_of(house, processes[1]) == []
    assert house.device.margins == [moves.MARGIN]


def test_who_is_stopped_meanwhile_stays_so(house: House, processes: list[Program]) -> None:
    """The scheduler has it paused by the end of the restore: the hold's end is no resume."""
    one, other = (notebook(house, program) for program in processes[:2])
    parked(house, processes[0])
    house.do(house.device.move_gate.clear)
    carry_out(house, restore(one))
    house.saw(lambda: "restore" in did(house))
    session = house.broker.scheduler.sessions[session_of(other)]
    session.stopped = PauseReason.TURN_ENDED
    house.do(house.device.move_gate.set)
    settled(house, other)
    session.stopped = None
    assert calls_of(house, processes[1]) == ["pause"]


def test_who_is_stopped_already_is_not_paused_again(house: House, processes: list[Program]) -> None:
    """It stands still as it is, and stays so: a pause that failed now would undo the one that holds."""
    one, other = (notebook(house, program) for program in processes[:2])
    parked(house, processes[0])
    session = house.broker.scheduler.sessions[session_of(other)]
    session.stopped = PauseReason.TURN_ENDED
    carry_out(house, restore(one))
    for client in (one, other):
        settled(house, client)
    session.stopped = None
    assert calls_of(house, processes[1]) == []
    assert house.device.margins == [moves.MARGIN]


@pytest.mark.parametrize("problem", [RuntimeError("a bug"), MoveOutcome(MoveStatus.NOT_NOW)])
def test_the_hold_ends_with_the_restore_however_it_ends(
    house: House, processes: list[Program], problem: MoveOutcome | Exception
) -> None:
    """K2: nobody stands still for a restore that is none."""
    one, other = (notebook(house, program) for program in processes[:2])
    parked(house, processes[0])
    house.device.moves["restore"] = [problem]
    carry_out(house, restore(one))
    for client in (one, other):
        settled(house, client)
    assert calls_of(house, processes[1]) == ["pause", "resume"]


def test_two_restores_at_once_come_one_after_the_other(
    house: House, processes: list[Program], told: list[ev.Event]
) -> None:
    """K2: neither holds the other, which is parked, so neither waits for it without end; the first has run again before it is held."""
    one, two, third = (notebook(house, program) for program in processes)
    for program in processes[:2]:
        parked(house, program)
    house.do(house.device.move_gate.clear)
    carry_out(house, restore(one), restore(two, 9))
    house.saw(lambda: did(house).count("restore") == 1)
    house.do(house.device.move_gate.set)
    for client in (one, two, third):
        settled(house, client)
    assert [(each.ticket, each.status) for each in answers(told)] == [
        (8, MoveStatus.DONE),
        (9, MoveStatus.DONE),
    ]
    assert calls_of(house, processes[0]) == ["restore", "pause", "resume"]
    assert calls_of(house, processes[1]) == ["restore"]
    assert calls_of(house, processes[2]) == ["pause", "resume", "pause", "resume"]
    assert house.device.margins == [moves.MARGIN] * 2


# ---------------------------------------------------------------- whom the scheduler does not know


def test_who_is_brought_back_unasked_is_not_restored_beside_others(
    house: House, processes: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """K1: both would see the same room."""
    client = notebook(house, processes[0])
    parked(house, processes[0])
    house.do(house.device.move_gate.clear)
    asked: list[int] = []

    async def bring_back(_targets: object, *, margin: int) -> list[ProcessKey]:
        asked.append(margin)
        return []

    monkeypatch.setattr(house.device, "bring_back", bring_back)
    carry_out(house, restore(client))
    house.saw(lambda: calls_of(house, processes[0])[-1:] == ["restore"])
    bringing = house.do(lambda: asyncio.ensure_future(house.broker.engine.moves.bring_back()))
    client.ask(msg.GetSnapshot())
    assert asked == []
    house.do(house.device.move_gate.set)
    house.saw(bringing.done)
    assert asked == [moves.MARGIN]


def test_whom_a_broker_before_us_parked_is_known_and_comes_back(tmp_path: Path) -> None:
    """K7: it is not unlocked, and not charged; without a client nobody asks for it, so it comes back as soon as there is room."""
    with House(tmp_path, divisible=False, can_park=True, orphan_grace=0.05) as house:
        house.device.away[os.getpid()] = GiB
        row = SessionRow(
            SessionId("s1"), UserId("ann"), os.getuid(), "hw.ipynb", key_of(os.getpid()), "", 1.0, 0, 0.0, Account(),
        )  # fmt: skip
        house.device.moves["restore"] = [MoveOutcome(MoveStatus.NOT_NOW, why="no room")]
        house.do(lambda: house.broker.adopt(row))
        session = house.broker.scheduler.sessions[row.id]
        kernel = house.broker.registry.get(row.id)
        assert kernel is not None
        assert (session.parked, session.charged) == (Stowed(0, GiB, 0), 0)
        assert kernel.page.get(0) & AWAY
        house.saw(lambda: did(house)[-3:] == ["restore", "restore", "resume"])
        house.saw(lambda: session.parked is None and kernel.page.get(0) == 0)
        assert session.charged == GiB


def test_who_is_parked_and_nobody_knows_is_brought_back(house: House) -> None:
    """K7: by half, say. It is not unlocked; as soon as there is room it is restored, and runs."""
    row = SessionRow(
        SessionId("s1"), UserId("ann"), os.getuid(), "hw.ipynb", key_of(os.getpid()), "", 1.0, 0, 0.0, Account(),
    )  # fmt: skip
    house.do(lambda: house.broker.adopt(row))
    house.device.away[os.getpid()] = GiB
    house.device.moves["restore"] = [MoveOutcome(MoveStatus.NOT_NOW, why="no room")]
    house.saw(lambda: "resume" in did(house))
    look_again(house)
    look_again(house)  # it is not tried again at once
    assert did(house) == ["resume", "restore"]
    assert house.broker.engine.moves._again[SessionId("s1")][1] == 2 * moves.AGAIN
    house.do(house.broker.engine.moves._again.clear)
    look_again(house)
    assert did(house) == ["resume", "restore", "restore", "resume"]
    look_again(house)
    assert did(house)[-1] == "resume"


def look_again(house: House) -> None:
    """Have the engine look, and wait for what comes of it."""
    house.do(house.broker.engine.look_at_paused)
    kernel = house.broker.registry.get(SessionId("s1"))
    assert kernel is not None
    house.wait(house.broker.engine.settled(kernel))


def test_a_look_at_those_paused_leaves_the_parked_alone(house: House) -> None:
    """K7: the scheduler parked it: nobody restores it, locks it again, or says that it runs."""
    client = house.notebook()
    session = house.broker.scheduler.sessions[session_of(client)]
    session.parked, session.stopped = Stowed(GiB, 0, 0), PauseReason.TURN_ENDED
    house.device.away[os.getpid()] = GiB

    async def still(_: object) -> bool:
        house.device.calls.append(("still", 0))
        return False

    house.device.still = still  # type: ignore[method-assign]
    house.do(house.broker.engine.look_at_paused)
    settled(house, client)
    session.parked = session.stopped = None
    assert did(house) == []


def test_who_is_back_without_the_schedulers_knowledge_is_found(house: House, told: list[ev.Event]) -> None:  # fmt: skip
    """K7: a worker of a broker before us ended the restore that it was at: it is charged, and its frameworks are asked again."""
    client = house.notebook()
    session = house.broker.scheduler.sessions[session_of(client)]
    kernel = house.kernel(client.opened)  # type: ignore[attr-defined]
    session.parked = Stowed(GiB, 0, 0)
    house.do(lambda: kernel.mark_away(away=True))
    house.device.away[os.getpid()] = GiB
    house.do(house.broker.engine.moves.look)
    assert answers(told) == []
    house.device.away.clear()
    house.do(house.broker.engine.moves.look)
    (answer,) = answers(told)
    assert answer.status is MoveStatus.DONE
    assert session.parked is None
    assert session.charged == GiB
    assert client.view is not None
    assert client.view.read(0) == 0


def test_a_restart_while_parked_leaves_nothing_in_its_word(house: House) -> None:
    """The next process of the session has the same word: its frameworks are to be asked. A move that ends late says nothing of it."""
    client = house.notebook()
    kernel = house.kernel(client.opened)  # type: ignore[attr-defined]
    house.device.frees = GiB
    carry_out(house, park(client))
    settled(house, client)
    assert kernel.page.get(0) == AWAY
    house.do(house.device.move_gate.clear)
    house.device.moves["restore"] = [MoveOutcome(MoveStatus.GONE)]
    carry_out(house, restore(client))
    house.saw(lambda: "restore" in did(house))
    house.do(lambda: house.broker.emptied(kernel))
    house.do(house.device.move_gate.set)
    house.saw(lambda: kernel.tail is not None and kernel.tail.done())
    assert not kernel.page.get(0) & AWAY
