"""A broker that comes back knows of each notebook what is its context and what it keeps, as the one before did."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from gpushare_kernel.broker.daemon import _remember
from gpushare_kernel.broker.persons import Person
from gpushare_kernel.core.errors import BadToken, UserError
from gpushare_kernel.core.values import GiB, JobId, JobState, MiB, Presence, Usage
from gpushare_kernel.devices.base import Stranger, Target
from gpushare_kernel.transport.words import AWAY
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.snapshot import Snapshot
from tests.broker.house import House
from tests.broker.test_desk import NOBODY, submit
from tests.broker.test_groups import follow
from tests.procs import key_of

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


def used(house: House, seconds: float) -> None:
    """Its processes' clock shows so much; whoever looks sees it."""
    house.device.used = Usage(seconds, seconds)
    house.do(lambda: house.broker.engine.sample(*house.broker.scheduler.sessions))


def accounts(house: House) -> tuple[list[float], list[float]]:
    """Return what sessions, and what users have used."""
    core = house.broker.scheduler
    return (
        [round(one.device_time, 6) for one in core.sessions.values()],
        [round(one.device_time, 6) for one in core.users.values()],
    )


def counted(folder: Path, *, written: float, unwritten: float) -> msg.Opened:
    """Return a notebook of a broker that was killed: its clock showed 10 s at first, then so much more."""
    with House(folder) as house:
        house.device.used = Usage(10.0, 10.0)
        opened: msg.Opened = house.notebook().opened  # type: ignore[attr-defined]
        used(house, 10.0 + written)
        house.do(house.broker.save_accounts)
        used(house, 10.0 + written + unwritten)
        house.do(house.broker.save_accounts)
        assert house.ledger.flush()
    return opened


def back_with(house: House, opened: msg.Opened, *, clock: float, away: float) -> None:
    """A broker comes back, so long after the last account was written; its notebook's clock shows this."""
    house.device.used = Usage(clock, clock)
    known = house.ledger.load()
    rows = [
        replace(
            row, account=row.account._replace(clock_at=house.do(lambda: house.broker.now) - away)
        )
        for row in known.sessions
    ]
    house.do(lambda: _remember(house.broker, replace(known, sessions=tuple(rows)), None))
    house.attach(opened)


@pytest.mark.parametrize("unwritten", [0.0, 0.05, 3.0])
def test_what_was_used_without_a_broker_is_on_its_accounts(
    tmp_path: Path, unwritten: float
) -> None:
    """Its own and its user's, once: also what was too little to be written, and what was used since the last writing."""
    opened = counted(tmp_path, written=2.0, unwritten=unwritten)
    with House(tmp_path) as house:
        back_with(house, opened, clock=16.0, away=60.0)
        assert accounts(house) == ([6.0], [6.0])
        used(house, 17.0)
        assert accounts(house) == ([7.0], [7.0])


def test_nobody_used_more_than_the_machine_has(tmp_path: Path) -> None:
    """Seconds of a session below that has ended come back to the one above, and are not its own."""
    opened = counted(tmp_path, written=2.0, unwritten=0.0)
    with House(tmp_path) as house:
        back_with(house, opened, clock=1e6, away=1.0)
        ((session,), (user,)) = accounts(house)
        assert 2.0 < session == user < 2.0 + 20.0 * (os.cpu_count() or 1)


def test_another_process_has_another_clock(tmp_path: Path) -> None:
    """A kernel that was restarted: what its former process's clock showed is not compared with its own."""
    with House(tmp_path) as house:
        house.device.used = Usage(10.0, 10.0)
        opened: msg.Opened = house.notebook().opened  # type: ignore[attr-defined]
        used(house, 12.0)
        house.do(house.broker.save_accounts)
        again = house.call(msg.Restart(opened.session, opened.token)).body
        assert isinstance(again, msg.Opened)
        house.bind(again)
        assert house.ledger.flush()
        (row,) = house.ledger.load().sessions
        assert (row.account.device_time, row.account.clock) == (2.0, 0.0)
    with House(tmp_path) as house:
        back_with(house, again, clock=50.0, away=60.0)
        assert accounts(house)[0] == [2.0]


def lost(folder: Path) -> msg.Opened:
    """Return a notebook of a broker that is gone together with its ledger; its process is this one."""
    opened = before(folder)
    for path in folder.glob("ledger.sqlite*"):
        path.unlink()
    return opened


def again(opened: msg.Opened, **changes: object) -> msg.Again:
    """What its own process says of it."""
    known = msg.Again(opened.session, "hw.ipynb", CONTEXT)
    return msgspec.structs.replace(known, **changes)


def test_a_lost_ledger_costs_no_restart(tmp_path: Path) -> None:
    """Its own process says which session it is: same id, same token, what it held at its start is its context. Then all is as before."""
    opened = lost(tmp_path)
    with House(tmp_path) as house:
        house.device.used = Usage(0.0, 0.0, CONTEXT + 300 * MiB)
        held = msg.HeldJob(JobId("j"), "cell", 0, GiB, 1, 1, running=True)
        caller = house.attach(opened, held=(held,), again=again(opened))
        assert isinstance(caller.body, msg.Attached)
        (session,), (device,) = seen(house).sessions, seen(house).devices
        assert (session.id, session.name, device.reserve) == (opened.session, "hw.ipynb", CONTEXT)
        assert [lane.size for lane in device.lanes] == [GiB]
        assert isinstance(caller.ask(msg.End(JobId("j"), 0, 0, 0)), msg.Report)
        assert house.ledger.flush()
        assert [row.id for row in house.ledger.load().sessions] == [opened.session]


def test_nobody_says_that_it_held_more_than_it_does(tmp_path: Path) -> None:
    """A context of a terabyte would be kept free for each notebook to come."""
    opened = lost(tmp_path)
    with House(tmp_path) as house:
        house.device.used = Usage(0.0, 0.0, CONTEXT)
        house.attach(opened, again=again(opened, baseline=2**40))
        assert seen(house).devices[0].reserve == CONTEXT


@pytest.mark.parametrize(
    "changes", [{"session": "s1"}, {"session": "s0123456789ab/x"}, {"session": "sABCDEFABCDEF"}]
)
def test_an_id_that_we_did_not_make_is_none(tmp_path: Path, changes: dict[str, object]) -> None:
    """It would stand in lists, in the ledger and in the names of jobs."""
    opened = lost(tmp_path)
    with House(tmp_path) as house:
        with pytest.raises(BadToken, match="Restart the kernel"):
            house.attach(opened, again=again(opened, **changes))
        with pytest.raises(BadToken, match="Restart the kernel"):
            house.call(msg.Attach("short", again=again(opened)))
        assert seen(house).sessions == ()


def test_whose_memory_is_away_is_parked_again(tmp_path: Path) -> None:
    """What is parked of its process is in the broker's table, which is another file; its next cell asks for it."""
    opened = lost(tmp_path)
    with House(tmp_path, can_park=True, divisible=False) as house:
        house.device.away[os.getpid()] = GiB
        assert isinstance(house.attach(opened, again=again(opened)).body, msg.Attached)
        (session,) = seen(house).sessions
        assert (session.id, session.state, session.parked) == (opened.session, "parked", GiB)
        kernel = next(iter(house.broker.registry))
        assert kernel.page.get(0) & AWAY


def test_who_is_just_brought_back_is_a_session_after_that(tmp_path: Path) -> None:
    """As somebody whom nobody knows; only then is it known whether anything of it is away."""
    opened = lost(tmp_path)
    with House(tmp_path, can_park=True, divisible=False) as house:
        house.device.away[os.getpid()] = GiB
        restores = house.broker.engine.moves._restores
        house.wait(restores.acquire())
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(house.attach, opened, again=again(opened))
            house.saw(lambda: restores._waiters)
            house.device.away.clear()
            house.do(restores.release)
            assert isinstance(reply.result().body, msg.Attached)
        (session,) = seen(house).sessions
        assert session.parked is None


def test_who_was_taken_for_a_stranger_meanwhile_is_one_session(tmp_path: Path) -> None:
    """A system broker adopts on a GPU whom it does not know; one that somebody opened for this process stays."""
    opened = lost(tmp_path)
    with House(tmp_path) as house:
        others = house.open("mine.ipynb")
        house.bind(others)
        stranger = Stranger(key_of(os.getpid()), os.getuid(), GiB, "python", display=False)
        assert house.do(lambda: house.broker.take_in(stranger, house.broker.engine))
        assert len(seen(house).sessions) == 2
        house.attach(opened, again=again(opened))
        assert {one.id for one in seen(house).sessions} == {others.session, opened.session}


def pidfds() -> int:
    """How many this process has open, the broker's in it too."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder itself
            links.append(str(link.readlink()))
    return sum("pidfd" in link for link in links)


def test_who_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its name is no name, or its group has as many kernels as it may: a descriptor each time would be the broker's end."""
    opened = lost(tmp_path)
    with House(tmp_path) as house:
        before = pidfds()
        with pytest.raises(UserError):
            house.attach(opened, again=again(opened, name="x" * 801))
        assert pidfds() == before
        house.open("other.ipynb")
        before = pidfds()  # its opener's is one
        follow(house, kernels=1)
        with pytest.raises(UserError, match=r"may have 1 kernel open, and yours is other\.ipynb"):
            house.attach(opened, again=again(opened))
        assert pidfds() == before
        assert len(seen(house).sessions) == 1


def test_one_process_is_one_session(tmp_path: Path) -> None:
    """Whatever ids and tokens it says: its line is there, or the one before is closed."""
    opened = lost(tmp_path)
    with House(tmp_path) as house:
        first = house.attach(opened, again=again(opened))
        more = again(opened, session="s0123456789ab")
        with pytest.raises(BadToken):
            house.call(msg.Attach("x" * 32, again=more))
        assert [one.id for one in seen(house).sessions] == [opened.session]
        kernel = house.kernel(opened)
        first.close()
        house.saw(lambda: not kernel.lines)
        house.call(msg.Attach("x" * 32, again=more))
        assert [one.id for one in seen(house).sessions] == [more.session]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to act as another user")
def test_a_session_that_is_somebodys_is_not_taken(house: House, tmp_path: Path) -> None:
    """I9: neither by its id nor by its token; and what another user opens again is that user's."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    opened = house.notebook().opened  # type: ignore[attr-defined]
    with pytest.raises(BadToken):
        house.call(msg.Attach("x" * 32, again=again(opened)))
    (stolen,) = house.as_user(NOBODY, msg.Attach(opened.token, again=again(opened, session="s0123456789ab")))  # fmt: skip
    (taken,) = house.as_user(NOBODY, msg.Attach("x" * 32, again=again(opened)))
    assert {type(answer) for answer in (stolen, taken)} == {msg.Failure}
    (own,) = house.as_user(NOBODY, msg.Attach("x" * 32, again=again(opened, session="s0123456789ab")))  # fmt: skip
    assert isinstance(own, msg.Attached)
    assert house.kernel(opened).uid == 0
