"""Time that passes without a broker deciding: a machine that slept, a process that was stopped."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpushare_kernel.broker.housekeeping import Housekeeping
from gpushare_kernel.core.values import GiB, JobState, SessionId, Usage
from gpushare_kernel.devices.base import Target
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire import messages as msg
from tests.broker.house import Caller, House
from tests.broker.test_desk import end, session_of, submit
from tests.procs import Program

HOURS = 8 * 3600.0


@pytest.fixture(params=["host", "gpu"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    """A broker whose device counts what each uses, or gives it out by the clock."""
    with House(tmp_path, divisible=request.param == "host") as made:
        yield made


@pytest.fixture
def tidy(home: House) -> Iterator[Callable[[], None]]:
    """One pass of its housekeeping."""
    fd = os.open(home.path.parent / "broker.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    places = Places(home.path.parent, system=False, named=True)
    keeper = Housekeeping(home.broker, home.listener, places, 60.0, lock=fd)
    yield lambda: home.do(keeper._tidy)
    os.close(fd)


def at_work(home: House) -> tuple[Caller, Caller, int]:
    """One notebook runs, another waits for memory: (both, and the number of the request that waits)."""
    home.device.used = Usage(1.0, 1.0)
    runs, waits = home.notebook("runs.ipynb"), home.notebook("waits.ipynb")
    assert isinstance(runs.ask(submit("j", persistent=0, ephemeral=6 * GiB)), msg.Granted)
    number = waits.send(submit("w", persistent=0, ephemeral=6 * GiB))
    home.saw(lambda: any(one.state is JobState.QUEUED for one in home.broker.scheduler.jobs.values()))  # fmt: skip
    return runs, waits, number


def used(home: House) -> list[float]:
    """What sessions and users have used."""
    core = home.broker.scheduler
    return [one.device_time for one in (*core.sessions.values(), *core.users.values())]


def nothing_was_lost(home: House, runs: Caller, waits: Caller, number: int) -> None:
    """Both notebooks are there, and who waited has its memory once there is room."""
    core = home.broker.scheduler
    assert {session_of(runs), session_of(waits)} == core.sessions.keys()
    assert home.broker.longest_wait is None
    runs.ask(end("j"))
    granted = waits.reply(number)
    assert isinstance(granted, msg.Granted)
    assert granted.waited < HOURS / 2


def test_a_laptop_that_slept(
    home: House, tidy: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLOCK_MONOTONIC stood still, wall clock and CLOCK_BOOTTIME did not: nobody pays for the night, nothing has timed out."""
    runs, waits, number = at_work(home)
    tidy()
    before, wall, clock = used(home), time.time, time.clock_gettime
    slept = {time.CLOCK_REALTIME, time.CLOCK_BOOTTIME}
    monkeypatch.setattr(time, "time", lambda: wall() + HOURS)
    monkeypatch.setattr(time, "clock_gettime", lambda which: clock(which) + HOURS * (which in slept))  # fmt: skip
    tidy()
    assert used(home) == pytest.approx(before, abs=60.0)
    nothing_was_lost(home, runs, waits, number)


def stop_for_hours(home: House) -> None:
    """The broker stands still that long, and CLOCK_MONOTONIC does not."""
    clock = home._loop.time
    home.do(lambda: setattr(home._loop, "time", lambda: clock() + HOURS))


def test_a_broker_that_was_stopped(home: House, tidy: Callable[[], None]) -> None:
    """CLOCK_MONOTONIC went on: who had the device is not charged for what nobody decided; who waits still does."""
    runs, waits, number = at_work(home)
    tidy()
    before = used(home)
    stop_for_hours(home)
    tidy()
    assert used(home) == pytest.approx(before, abs=60.0)
    assert {session_of(runs), session_of(waits)} == home.broker.scheduler.sessions.keys()
    runs.ask(end("j"))
    assert isinstance(waits.reply(number), msg.Granted)


class Works:
    """A notebook in a process of its own, which uses a core whenever it is not paused."""

    def __init__(self, home: House, program: Program) -> None:
        opened = home.open(f"{program.pid}.ipynb")
        home.bind(opened, program.pid)
        self.id, self.seconds = SessionId(opened.session), 0.0
        home.attach(opened).tell(msg.CellStarted(1))


@pytest.mark.parametrize("home", ["host"], indirect=True)
def test_a_turn_goes_on_where_a_stopped_broker_left_it(home: House, tidy: Callable[[], None]) -> None:  # fmt: skip
    """On a CPU, where what was used meanwhile is charged: nobody has lost the rest of its turn to the time without decisions."""
    core = home.broker.scheduler
    core.config = replace(core.config, turn=HOURS / 2)
    core.turns.config = core.config
    with Program("say('up'); wait()") as one, Program("say('up'); wait()") as two:
        by_pid: dict[int, Works] = {}

        def usage(target: Target, **_: bool) -> Usage:
            works = by_pid.get(target.root.pid)
            if works is None:
                return Usage(0.0, 0.0, 0)
            works.seconds += core.sessions[works.id].stopped is None
            return Usage(works.seconds, works.seconds, 0)

        home.do(lambda: setattr(home.device, "usage", usage))
        by_pid.update({program.pid: Works(home, program) for program in (one, two)})
        paused = lambda: [s for s, each in core.sessions.items() if each.stopped is not None]  # noqa: E731
        home.saw(lambda: len(paused()) == 1)
        tidy()
        (before,), asked = home.do(paused), len(home.device.calls)
        stop_for_hours(home)
        tidy()
        assert home.do(paused) == [before]
        assert len(home.device.calls) == asked
