"""Instructions are carried out in order per session, and nothing a device does stalls the rest."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from gpushare_kernel.broker import daemon
from gpushare_kernel.broker.counts import Counts
from gpushare_kernel.broker.engine import Engine
from gpushare_kernel.broker.ledger import Account, SessionRow
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.values import GiB, JobId, PauseReason, PauseStatus, SessionId, UserId
from gpushare_kernel.devices.base import PauseOutcome
from gpushare_kernel.transport.words import LANE, PAUSED, TURN
from gpushare_kernel.wire import messages as msg
from tests.broker.house import Caller, House, PlayedDevice
from tests.broker.test_desk import job_of, session_of, submit
from tests.procs import key_of


def carry_out(house: House, *instructions: do.Instruction) -> None:
    """Have the engine do this."""
    engine = house.broker.engine
    house.do(lambda: [engine._does[type(i)](i) for i in instructions])


def settled(house: House, client: Caller) -> None:
    kernel = house.kernel(client.opened)  # type: ignore[attr-defined]
    house.wait(house.broker.engine.settled(kernel))


def pause(client: Caller, ticket: int = 1) -> do.Pause:
    return do.Pause(session_of(client), PauseReason.TURN_ENDED, 0.5, ticket)


def did(house: House) -> list[str]:
    return [what for what, _ in house.device.calls]


def test_pauses_and_resumes_of_a_session_come_one_after_the_other(house: House) -> None:
    """The second is asked of the device when the first is done, whatever takes long; the session's word says it before."""
    client = house.notebook()
    house.do(house.device.gate.clear)
    carry_out(house, pause(client), do.Resume(session_of(client)), pause(client, 2))
    house.saw(lambda: did(house) == ["pause"])
    assert client.view is not None
    assert client.view.read(0) == PAUSED
    house.do(house.device.gate.set)
    settled(house, client)
    assert did(house) == ["pause", "resume", "pause"]
    assert client.view.read(0) == PAUSED
    carry_out(house, do.Resume(session_of(client)))
    settled(house, client)
    assert client.view.read(0) == 0


def test_one_sessions_long_drain_does_not_hold_up_another(house: House) -> None:
    """Each has its own order."""
    first, second = house.notebook(), house.notebook()
    house.do(house.device.gate.clear)
    carry_out(house, pause(first), pause(second))
    house.saw(lambda: did(house) == ["pause", "pause"])


@pytest.mark.parametrize(
    "problem", [DeviceError("the driver is gone"), OSError("no"), RuntimeError("a bug")]
)
def test_a_failing_pause_is_an_answer_too(
    house: House, problem: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a device raises, the scheduler hears that this session cannot be paused, and turns go on."""
    clients = [house.notebook(), house.notebook()]
    house.device.busy = True
    house.device.answers["pause"] = [problem]
    for n, client in enumerate(clients):
        client.send(submit(f"j{n}", ephemeral=0))
    house.saw(lambda: any(not s.pausable for s in house.broker.scheduler.sessions.values()))
    house.saw(lambda: all(job.granted for job in house.broker.scheduler.jobs.values()))
    assert len(house.broker.scheduler.jobs) == 2
    assert "a pause failed" in caplog.text


@pytest.mark.parametrize(
    "problem", [MemoryError(), DeviceError("nothing is known"), RuntimeError("a bug")]
)
def test_a_pause_whose_last_sample_fails_is_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, problem: Exception
) -> None:
    """On a GPU what a session has counted is read once it stands still. Where that cannot be read, turns go on all the same."""
    with House(tmp_path, divisible=False) as house:
        client = house.notebook()
        house.device.busy = True
        usage, failed = house.device.usage, []

        def fails(*given: Any, **named: Any) -> Any:
            if "pause" in did(house) and not failed:
                failed.append(True)
                raise problem
            return usage(*given, **named)

        house.device.usage = fails
        client.send(submit("a", ephemeral=0))
        house.saw(lambda: all(job.granted for job in house.broker.scheduler.jobs.values()))
        session = house.do(lambda: house.broker.scheduler.sessions[session_of(client)])
        other = house.notebook()
        other.send(submit("b", ephemeral=0))
        house.saw(lambda: bool(failed) and not session.pausing)
    assert "a session's use cannot be read" in caplog.text


def test_a_resume_is_tried_until_it_is_done(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Stopped by its own user, failing, and at last done: only then does the word say that it runs."""
    client = house.notebook()
    carry_out(house, pause(client))
    settled(house, client)
    house.device.answers["resume"] = [
        PauseOutcome(PauseStatus.STOPPED),
        OSError("once"),
        PauseOutcome(PauseStatus.FORBIDDEN),
    ]
    carry_out(house, do.Resume(session_of(client)))
    settled(house, client)
    assert did(house) == ["pause", "resume", "resume", "resume", "resume"]
    assert client.view is not None
    assert client.view.read(0) == 0
    assert "a resume failed" in caplog.text


def test_a_resume_that_cannot_be_done_gives_way_to_the_next_pause(house: House) -> None:
    """What its user has stopped is resumed again and again, but nobody else's turn waits for that."""
    client = house.notebook()
    house.device.answers["resume"] = [PauseOutcome(PauseStatus.STOPPED)] * 1000
    carry_out(house, do.Resume(session_of(client)))
    house.saw(lambda: "resume" in did(house))
    carry_out(house, pause(client))
    house.saw(lambda: "pause" in did(house))


@pytest.mark.parametrize(
    "answer",
    [
        PauseOutcome(PauseStatus.UNSUPPORTED),
        PauseOutcome(PauseStatus.BUSY),
        DeviceError("the record is full"),
    ],
)
def test_who_could_not_be_paused_is_resumed_until_it_runs(
    house: House, answer: PauseOutcome | Exception
) -> None:
    """L1, L3: a part of it may be locked all the same; as long as it may be, its word tells its starter so."""
    client = house.notebook()
    house.device.answers["pause"] = [answer]
    house.device.answers["resume"] = [PauseOutcome(PauseStatus.UNSUPPORTED)] * 1000
    carry_out(house, pause(client))
    house.saw(lambda: did(house).count("resume") > 1)
    assert client.view is not None
    assert client.view.read(0) == PAUSED
    house.do(house.device.answers["resume"].clear)
    settled(house, client)
    house.saw(lambda: client.view is not None and client.view.read(0) == 0)
    assert did(house).count("pause") == 1


def test_who_is_gone_is_not_resumed_by_its_pause(house: House) -> None:
    """A device forgets who is gone and resumed: whom it left behind would be nobody's before its end is seen."""
    client = house.notebook()
    house.device.answers["pause"] = [PauseOutcome(PauseStatus.GONE)]
    carry_out(house, pause(client))
    settled(house, client)
    assert did(house) == ["pause"]
    assert client.view is not None
    assert client.view.read(0) == 0


def test_a_pause_that_failed_gives_way_to_the_next(house: House) -> None:
    """Its resume is over before: nobody undoes what the next one did."""
    client = house.notebook()
    house.device.answers["pause"] = [PauseOutcome(PauseStatus.UNSUPPORTED)]
    house.device.answers["resume"] = [PauseOutcome(PauseStatus.UNSUPPORTED)] * 1000
    house.do(house.device.gate.clear)
    carry_out(house, pause(client), pause(client, 2))
    house.do(house.device.gate.set)
    settled(house, client)
    assert did(house) == ["pause", "resume", "pause"]
    assert client.view is not None
    assert client.view.read(0) == PAUSED


def test_who_was_left_paused_by_a_broker_before_is_resumed_until_it_runs(house: House) -> None:
    """L3: its guardian could not, nor could we when we started; nobody has to want a turn for it."""
    house.device.answers["resume"] = [PauseOutcome(PauseStatus.UNSUPPORTED)] * 2
    row = SessionRow(
        SessionId("s1"), UserId("ann"), os.getuid(), "hw.ipynb", key_of(os.getpid()), "", 1.0, 0, 0.0, Account(),
    )  # fmt: skip
    house.do(lambda: house.broker.adopt(row))
    house.saw(lambda: did(house) == ["resume"] * 3)


def test_a_session_that_is_gone_is_still_resumed(house: House) -> None:
    """Its children may stand still: the target is the one of the time of the order."""
    client = house.notebook()
    opened: msg.Opened = client.opened  # type: ignore[attr-defined]
    house.do(house.device.gate.clear)
    carry_out(house, pause(client), do.Resume(session_of(client)))
    house.call(msg.Close(opened.session, opened.token))
    house.do(house.device.gate.set)
    house.saw(lambda: did(house) == ["pause", "resume"])


def test_words_are_set_as_asked_and_cleared_by_the_grant(house: House) -> None:
    """Two bits: the turn, the lane."""
    client = house.notebook()
    granted = client.ask(submit("j", ephemeral=1, cooperative=True))
    assert isinstance(granted, msg.Granted)
    job, view = job_of(client, "j"), client.view
    assert view is not None
    for turn, lane, word in (
        (True, False, TURN),
        (False, True, LANE),
        (True, True, TURN | LANE),
        (False, False, 0),
    ):
        carry_out(house, do.Ask(job, session_of(client), turn=turn, lane=lane))
        assert view.read(granted.slot) == word
    carry_out(house, do.Ask(job, session_of(client), turn=True, lane=True))
    client.ask(msg.Yield(JobId("j"), True, 0, 0, 1, 0.01))
    assert view.read(granted.slot) == 0


def test_instructions_about_who_is_gone_are_nothing(house: House) -> None:
    """Between an event and its instruction a session may end."""
    gone = SessionId("gone")
    carry_out(
        house,
        do.Pause(gone, PauseReason.TURN_ENDED, 0.5, 1),
        do.Resume(gone),
        do.Ask(JobId("gone/1"), gone, turn=True, lane=True),
        do.Slow(gone, 1, 0.5),
        do.Queue(JobId("gone/1"), gone),
        do.Drop(JobId("gone/1"), gone),
        do.Refuse(JobId("gone/1"), gone, "never"),
    )
    assert house.device.calls == []


def test_an_event_that_fails_does_not_stop_the_next(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with what it was."""
    engine = house.broker.engine
    house.do(
        lambda: engine.feed(ev.SessionReady(at=engine.now, session=SessionId("none"), bare=True))
    )
    assert "SessionReady" in str(caplog.records[-1].__dict__["event"])
    assert caplog.records[-1].levelno == logging.ERROR
    assert isinstance(house.notebook().ask(submit("j", size=1)), msg.Granted)


def test_an_instruction_that_fails_does_not_stop_those_behind_it(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client's trouble is not the next one's."""
    client, other, third = house.notebook(), house.notebook(), house.notebook()
    engine = house.broker.engine
    client.ask(submit("a", persistent=5 * GiB))
    third.ask(submit("x", persistent=2 * GiB))
    third.ask(msg.End(JobId("x"), 2 * GiB, 0, 0))
    number = other.send(submit("b", persistent=6 * GiB))
    client.send(submit("c", persistent=5 * GiB, ephemeral=2 * GiB))
    house.saw(lambda: len(house.broker.scheduler.book.queue) == 2)

    def broken(_: do.Drop) -> None:
        message = "this line is cursed"
        raise RuntimeError(message)

    monkeypatch.setitem(engine._does, do.Drop, broken)
    opened: msg.Opened = client.opened  # type: ignore[attr-defined]
    house.call(msg.Close(opened.session, opened.token))
    assert isinstance(other.reply(number), msg.Granted)
    assert "an instruction failed" in caplog.text


def test_the_end_of_the_engine_lets_everybody_run(house: House) -> None:
    """Pauses under way are given up, the device resumes all, the words say so, and nothing is decided any more."""
    client = house.notebook()
    house.do(house.device.gate.clear)
    carry_out(house, pause(client))
    house.saw(lambda: did(house) == ["pause"])
    house.wait(house.broker.engine.close())
    assert did(house)[-1] == "close"
    assert client.view is not None
    assert client.view.read(0) == 0
    before = len(house.device.calls)
    engine = house.broker.engine
    house.do(lambda: engine.feed(ev.PolicyChanged(at=engine.now, policy="fifo")))
    assert house.broker.scheduler.turns.accounts.policy.name == "fair"
    assert len(house.device.calls) == before


def test_without_a_guardian_nobody_stays_stopped(house: House) -> None:
    """Until there is a new one all run; the turns go on after that."""
    house.device.busy = True
    clients = [house.notebook(), house.notebook()]
    for n, client in enumerate(clients):
        client.send(submit(f"j{n}", ephemeral=0))
    scheduler = house.broker.scheduler
    house.saw(lambda: any(s.stopped and not s.pausing for s in scheduler.sessions.values()))
    house.do(lambda: daemon._let_run(house.broker, 0.2))
    assert not any(
        s.stopped and s.exempt_until > house.broker.engine.now for s in scheduler.sessions.values()
    )
    house.saw(lambda: any(s.stopped for s in scheduler.sessions.values()))


def test_a_device_that_closes_says_nothing_of_sessions_on_another(house: House) -> None:
    """They stand still until their own device has closed, and their words say so."""
    client = house.notebook()
    carry_out(house, pause(client))
    settled(house, client)
    assert client.view is not None
    broker = house.broker

    async def close_another() -> None:
        other = PlayedDevice(8 * GiB, 1.0)
        await Engine(Scheduler(Config(8 * GiB, 1.0)), other, broker.registry, broker).close()

    house.wait(close_another())
    assert client.view.read(0) == PAUSED
    house.wait(broker.engine.close())
    assert client.view.read(0) == 0


def test_what_is_not_counted_is_done_all_the_same(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics are no reason to leave a job without its grant."""

    def fails(*_: object) -> None:
        raise ValueError

    counts = house.do(lambda: Counts(house.broker.scheduler))
    monkeypatch.setattr(counts, "note", fails)
    house.broker.engine.counts = counts
    assert isinstance(house.notebook().ask(submit("a", persistent=GiB)), msg.Granted)
    assert "an event was not noted" in caplog.text
