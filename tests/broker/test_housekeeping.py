"""What is done by the clock: idle exit, foreign use, lines of waiters, accounts."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from gpushare_kernel.broker import housekeeping as housekeeping_module
from gpushare_kernel.broker.adoption import Foreign
from gpushare_kernel.broker.housekeeping import Housekeeping
from gpushare_kernel.broker.persons import Person
from gpushare_kernel.core.errors import DeviceError, NoBroker
from gpushare_kernel.core.values import GiB, JobId, MiB, Presence, ProcessKey, SessionId, Usage
from gpushare_kernel.devices.base import Stranger
from gpushare_kernel.transport.channel import connect
from gpushare_kernel.transport.locks import locked
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire import messages as msg
from tests.broker.house import House
from tests.broker.test_desk import session_of, submit
from tests.procs import Program


@pytest.fixture
def lock(house: House) -> Iterator[int]:
    """The house's broker.lock, held."""
    fd = os.open(house.path.parent / "broker.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield fd
    os.close(fd)


@pytest.fixture
def tidy(house: House, lock: int) -> Callable[[], None]:
    """One pass of the house's housekeeping, with an idle exit that is due at once."""
    places = Places(house.path.parent, system=False, named=True)
    keeper = Housekeeping(
        house.broker, house.listener, places, 1e-9, lock=lock, foreign=Foreign.ADOPT
    )
    return lambda: house.do(keeper._tidy)


def test_an_empty_broker_goes(house: House, tidy: Callable[[], None]) -> None:
    """Nobody is there: the socket is gone before the broker is."""
    tidy()
    house.saw(house.broker.stopping.is_set)
    assert house.broker.stop_reason == "nothing to do"
    assert not house.broker.stopped_for_good
    with pytest.raises(NoBroker):
        connect(house.path, 1)


def test_a_broker_with_anybody_stays(house: House, tidy: Callable[[], None]) -> None:
    """A session that is only opened, or somebody who looks on: both are reasons to be there."""
    opened = house.open()
    tidy()
    assert not house.broker.stopping.is_set()
    house.call(msg.Close(opened.session, opened.token))
    line = house.call(msg.Observe())
    house.saw(lambda: house.broker.observers)
    tidy()
    assert not house.broker.stopping.is_set()
    line.close()
    house.saw(lambda: not house.broker.observers)
    tidy()
    house.saw(house.broker.stopping.is_set)


def test_a_broker_that_is_just_being_looked_for_stays(
    house: House, tidy: Callable[[], None]
) -> None:
    """Somebody holds the start lock: they find this broker, not a race."""
    with locked(house.path.parent / "start.lock", 1.0):
        tidy()
    assert not house.broker.stopping.is_set()
    assert isinstance(house.call(msg.Observe()).body, msg.Ok)


def test_who_cannot_be_paused_reads_why(house: House, tidy: Callable[[], None]) -> None:
    """Once for as long as it lasts; what nobody can do anything about is not said."""
    caller = house.notebook()
    session = house.do(lambda: house.broker.scheduler.sessions[session_of(caller)])

    def told() -> list[str]:
        caller.ask(msg.GetSnapshot())
        return [one.text for one in caller.notices if isinstance(one, msg.Announce)]

    house.device.refuses = "too many processes"
    tidy()
    assert told() == []
    for times in (1, 2):
        house.do(lambda: setattr(session, "pausable", False))
        tidy()
        tidy()
        assert told() == ["too many processes"] * times
        house.do(lambda: setattr(session, "pausable", True))
        tidy()
    house.device.refuses = ""
    house.do(lambda: setattr(session, "pausable", False))
    tidy()
    assert len(told()) == 2


def test_no_idle_exit_where_none_is_wanted(house: House, lock: int) -> None:
    """0: a system broker stays."""
    places = Places(house.path.parent, system=False, named=True)
    house.do(Housekeeping(house.broker, house.listener, places, 0.0, lock=lock)._tidy)
    assert not house.broker.stopping.is_set()


@pytest.mark.parametrize("name", ["broker.lock", "broker.sock"])
@pytest.mark.parametrize("again", [False, True])
def test_a_broker_that_nobody_can_find_goes(
    house: House, tidy: Callable[[], None], name: str, *, again: bool
) -> None:
    """Its files are gone, or somebody else's: two brokers on one device must not be, notebooks or not."""
    house.open()
    tidy()
    assert not house.broker.stopping.is_set()
    path = house.path.parent / name
    path.unlink()
    if again:
        path.touch()
    tidy()
    assert house.broker.stopping.is_set()
    assert house.broker.stop_reason == "its folder was removed"
    assert not house.broker.stopped_for_good


def test_one_step_that_fails_stops_no_other(
    house: House, tidy: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of the pass is done, for every device, and a failure that goes on is logged once."""

    def fail(*_: object, **__: object) -> Usage:
        message = "the library is gone"
        raise RuntimeError(message)

    client = house.notebook()
    house.device.usage = fail  # type: ignore[method-assign]
    house.device.taken_by_others = 2 * GiB
    user = house.broker.scheduler.sessions[session_of(client)].user
    house.do(lambda: setattr(user, "device_time", 12.5))
    tidy()
    assert house.broker.scheduler.book.table.capacity == 6 * GiB
    house.ledger.flush()
    assert [row.device_time for _, row in house.ledger.load().users] == [12.5]
    tidy()
    failures = [one for one in caplog.records if one.getMessage() == "housekeeping failed"]
    assert [one.__dict__["step"] for one in failures] == ["_look_at_kernels"]


def test_a_broker_with_a_failing_device_still_goes_when_idle(
    house: House, tidy: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is there: it goes, whatever its device says."""
    monkeypatch.setattr(house.device, "strangers", None)
    tidy()
    house.saw(house.broker.stopping.is_set)


def test_what_a_former_process_held_is_not_held_by_its_session(
    house: House, tidy: Callable[[], None]
) -> None:
    """A restart: the dead process's bytes are nobody's, before the next one is measured."""
    client = house.notebook()
    house.device.used = Usage(1.0, 1.0, 3 * GiB)
    tidy()
    assert house.device.managed >= 3 * GiB
    opened = client.opened  # type: ignore[attr-defined]
    house.call(msg.Restart(opened.session, opened.token))
    tidy()
    assert house.device.managed == 0


def test_what_others_take_is_not_ours_to_give(house: House, tidy: Callable[[], None]) -> None:
    """Capacity falls by foreign use and rises again; small moves are not worth an event."""
    house.open()
    table = house.broker.scheduler.book.table
    house.device.taken_by_others = 2 * GiB
    tidy()
    assert table.capacity == 6 * GiB
    house.device.taken_by_others = 2 * GiB + 10 * MiB
    tidy()
    assert table.capacity == 6 * GiB
    house.device.taken_by_others = 100 * GiB
    tidy()
    assert table.capacity == 0
    house.device.taken_by_others = 0
    tidy()
    assert table.capacity == 8 * GiB


def test_contexts_are_charged_as_they_were_measured(house: House, tidy: Callable[[], None]) -> None:
    """The device found out what one takes: newcomers bring so much along, and sessions' own follow with their next sample."""
    client = house.notebook()
    session = house.broker.scheduler.sessions[session_of(client)]
    house.device.inventory = replace(house.device.inventory, reserve=600 * MiB)
    house.device.used = Usage(1.0, 1.0, GiB, contexts=2)
    client.ask(submit("j", persistent=GiB))
    tidy()
    assert house.broker.scheduler.book.reserve == 600 * MiB
    tidy()
    assert session.context == 1200 * MiB


def test_what_a_declared_cell_uses_is_not_taken_for_foreign_use(
    house: House, tidy: Callable[[], None]
) -> None:
    """Its memory is its lane's: counted once, not a second time as somebody else's."""
    client = house.notebook()
    client.ask(submit("j", ephemeral=4 * GiB))
    house.device.used = Usage(1.0, 1.0, 3 * GiB)
    tidy()
    assert house.device.managed == 3 * GiB
    client.ask(msg.End(JobId("j"), 1 * GiB, 3 * GiB, 0))
    house.device.used = Usage(1.0, 1.0, 1 * GiB)
    for _ in range(housekeeping_module.ROUNDS):
        tidy()
    assert house.device.managed == 1 * GiB


def test_a_device_that_cannot_measure_changes_nothing(
    house: House,
    tidy: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """NVML gone: the last capacity stands, and the log says why."""
    house.open()

    def broken(managed: int) -> int:
        problem = "NVML is gone"
        raise DeviceError(problem)

    monkeypatch.setattr(house.device, "foreign", broken)
    tidy()
    assert house.broker.scheduler.book.table.capacity == 8 * GiB
    assert "NVML is gone" in caplog.text


def test_a_background_thread_is_found_without_anybody_saying_so(
    house: House, tidy: Callable[[], None]
) -> None:
    """A session that works without a cell becomes a job."""
    client = house.notebook()
    session = house.broker.scheduler.sessions[session_of(client)]
    session.begun = True  # it has run a cell before
    house.device.busy = True
    for _ in range(2):
        for _ in range(housekeeping_module.ROUNDS):  # in one of them it is looked at closely
            tidy()
        threading.Event().wait(0.25)  # use is judged over 0.2 s at least
    for _ in range(housekeeping_module.ROUNDS):
        tidy()
    house.saw(lambda: session.plain_job is not None)


def test_waiters_hear_what_has_changed(house: House, tidy: Callable[[], None]) -> None:
    """A waiter's line follows the numbers; nothing new, nothing said."""
    first, second = house.notebook(), house.notebook()
    first.ask(submit("a", persistent=6 * GiB))
    number = second.send(submit("b", persistent=4 * GiB))
    house.saw(lambda: len(house.broker.scheduler.book.queue) == 1)
    tidy()
    house.device.taken_by_others = GiB
    tidy()
    tidy()
    second.ask(msg.Cancel(JobId("b")))
    second.reply(number)
    frees = [n.wait.free for n in second.notices if isinstance(n, msg.Waiting)]
    assert frees == [2 * GiB, 1 * GiB]


def test_accounts_reach_the_ledger(house: House, tidy: Callable[[], None]) -> None:
    """What each user has used survives the broker."""
    client = house.notebook()
    user = house.broker.scheduler.sessions[SessionId(session_of(client))].user
    house.do(lambda: setattr(user, "device_time", 12.5))
    tidy()
    house.ledger.flush()
    assert [(name, row.device_time) for name, row in house.ledger.load().users] == [(user.id, 12.5)]


def test_a_stranger_becomes_a_session_until_it_ends(house: House, tidy: Callable[[], None]) -> None:
    """A process that uses the device is adopted at the second pass: bare, its user's, and gone with its pidfd."""
    house.call(msg.Observe())
    house.open("hw.ipynb")  # this uid is known here
    with Program("say('up'); wait()") as script:
        script.said()
        screen = Stranger(ProcessKey(1, 1), 0, MiB, "Xorg", display=True)
        train = Stranger(script.key, os.getuid(), GiB, "python train.py")
        house.device.others = [screen, train]
        tidy()
        assert len(house.broker.registry) == 1
        (device,) = house.do(lambda: house.broker.snapshot(Person(os.getuid()))).devices
        assert (device.desktop, device.foreign) == (MiB, GiB)
        tidy()
        (kernel,) = [one for one in house.broker.registry if one.key == script.key]
        session = house.broker.scheduler.sessions[kernel.id]
        assert (kernel.name, kernel.uid) == ("python train.py (adopted)", os.getuid())
        assert session.presence is Presence.BARE
        tidy()
        assert len(house.broker.registry) == 2
    house.saw(lambda: len(house.broker.registry) == 1)


def test_a_stranger_that_is_not_what_it_was_is_no_session(
    house: House, tidy: Callable[[], None]
) -> None:
    """Its pid is another process's by now, or its owner another: nobody is taken for somebody else."""
    house.call(msg.Observe())
    house.open("hw.ipynb")
    with Program("say('up'); wait()") as script:
        script.said()
        former = ProcessKey(script.pid, script.key.start_time - 1)
        house.device.others = [
            Stranger(former, os.getuid(), GiB, "gone"),
            Stranger(script.key, 1000 + os.getuid(), GiB, "somebody else's"),
        ]
        tidy()
        tidy()
        assert len(house.broker.registry) == 1
