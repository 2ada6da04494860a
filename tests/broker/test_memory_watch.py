"""Memory that others wait for: what its holders are told, who is paused for it, who is signalled."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpushare_kernel.broker import housekeeping, overdraft
from gpushare_kernel.broker.housekeeping import Housekeeping
from gpushare_kernel.broker.overdraft import Over
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.events import Sampled
from gpushare_kernel.core.values import GiB, JobId, PauseReason, Presence, SessionId, Usage
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire import messages as msg
from tests.broker import house as house_module
from tests.broker.house import Caller, House
from tests.broker.test_desk import end, session_of, submit
from tests.broker.test_engine import carry_out
from tests.procs import Program

Keeper = Callable[..., Callable[[], None]]


@pytest.fixture
def gpu_house(tmp_path: Path) -> Iterator[House]:
    """A broker of a played GPU of 8 GiB."""
    with House(tmp_path, divisible=False, plain_ephemeral=GiB // 4) as house:
        yield house


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes time takes none: each look is the next step."""
    for name in ("ASK_AFTER", "PAUSE_AFTER", "TERM_AFTER", "IDLE_AFTER"):
        monkeypatch.setattr(overdraft, name, 0.0)


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    """What makes one pass of a house's housekeeping."""
    (tmp_path / "broker.lock").touch()
    lock = os.open(tmp_path / "broker.lock", os.O_RDWR)

    def made(house: House, over: Over = Over.TELL) -> Callable[[], None]:
        places = Places(house.path.parent, system=False, named=True)
        tidying = Housekeeping(house.broker, house.listener, places, 0.0, lock=lock, over=over)
        return lambda: house.do(tidying._tidy)

    yield made
    os.close(lock)


def test_a_client_that_comes_leaves_a_measured_context(tmp_path: Path) -> None:
    """A GPU's context is what its driver said of the process, also before its client was there."""
    with House(tmp_path, divisible=False, plain_ephemeral=GiB // 4, reserve=GiB // 2) as house:
        opened = house.open()
        house.bind(opened)
        core, engine = house.broker.scheduler, house.broker.engine
        session = core.sessions[SessionId(opened.session)]
        used = {session.id: Usage(0.0, 0.0, GiB, 1)}
        house.do(lambda: engine.feed(Sampled(at=engine.now, used=used)))
        assert session.context == GiB // 2
        house.device.used = Usage(0.0, 0.0)  # nothing new is known of memory
        house.attach(opened)
        assert session.presence is Presence.ATTACHED
        assert (session.context, session.measured) == (GiB // 2, GiB)


def test_a_client_of_before_is_told_what_it_knows(
    gpu_house: House, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One descriptor beside its attach, and no budget; a client of today gets both."""
    got: dict[int, int] = {}
    shake = house_module.handshake

    def counting(sock: Any, hello: msg.Hello, fds: Any) -> Any:
        welcome, beside = shake(sock, hello, fds)
        if isinstance(hello.body, msg.Attach):
            got[welcome.version] = len(beside)
        return welcome, beside

    monkeypatch.setattr(house_module, "handshake", counting)
    for versions in ((1,), msg.SPOKEN):
        opened = gpu_house.open()
        gpu_house.bind(opened)
        client = gpu_house.call(msg.Attach(opened.token), versions=versions)
        keeper(gpu_house)()
        assert client.ask(msg.SetWeight(1.0)) == msg.Ok()
        told = [one for one in client.notices if isinstance(one, msg.Budget)]
        assert bool(told) is (versions == msg.SPOKEN)
        client.close()
        gpu_house.call(msg.Close(opened.session, opened.token))
    assert got == {1: 1, 2: 2}


def heard(client: Caller) -> list[str]:
    """The lines that `client` was told since it was last asked."""
    client.ask(msg.SetWeight(1.0))
    lines = [notice.text for notice in client.notices if isinstance(notice, msg.Announce)]
    client.notices.clear()
    return lines


def over_its_grant(house: House, client: Caller) -> Caller:
    """`client` holds 3 GiB and was granted 1; another waits for 7.5."""
    client.ask(submit("j", size=GiB))
    waiter = house.notebook("waits.ipynb")
    house.device.used = Usage(1.0, 1.0, 3 * GiB)
    waiter.send(submit("w", persistent=7 * GiB + GiB // 2))
    house.saw(lambda: len(house.broker.scheduler.book.queue) == 1)
    return waiter


def test_over_its_grant_it_is_told_then_asked_then_paused(gpu_house: House, keeper: Keeper) -> None:
    """Each with its sentence, once; a budget comes with the question, so that its client gives back what it can."""
    client = gpu_house.notebook()
    over_its_grant(gpu_house, client)
    tidy = keeper(gpu_house)
    tidy()
    assert heard(client) == [
        "This notebook holds 3.0 GiB of memory and may use 1.0. Put this on the first line next time: %%gpulane 3GiB"
    ]
    tidy()
    client.ask(msg.SetWeight(1.0))
    assert [n for n in client.notices if isinstance(n, msg.Budget)] == [msg.Budget(GiB)]
    assert heard(client) == [
        "This notebook holds 3.0 GiB of memory and may use 1.0, and 1 person waits: it gives back what it does not use."
    ]
    session = gpu_house.broker.scheduler.sessions[session_of(client)]
    assert session.stopped is None
    tidy()
    assert heard(client) == [
        "Paused for at most 60 s: this notebook holds 3.0 GiB of memory and may use 1.0, and 1 person waits. "
        "Interrupt the cell, then: %gpushare release"
    ]
    assert session.stopped is PauseReason.OVER_GRANT
    gpu_house.saw(lambda: ("pause", os.getpid()) in gpu_house.device.calls)
    tidy()
    assert heard(client) == []


def test_who_is_under_its_grant_again_runs_again(gpu_house: House, keeper: Keeper) -> None:
    """No later than at the next look."""
    client = gpu_house.notebook()
    over_its_grant(gpu_house, client)
    tidy = keeper(gpu_house)
    for _ in range(3):
        tidy()
    session = gpu_house.broker.scheduler.sessions[session_of(client)]
    assert session.stopped is PauseReason.OVER_GRANT
    gpu_house.device.used = Usage(1.0, 1.0, GiB)
    tidy()
    assert session.stopped is None
    gpu_house.saw(lambda: gpu_house.device.calls[-1] == ("resume", os.getpid()))


def test_the_zero_of_who_is_parked_is_no_release(gpu_house: House, keeper: Keeper) -> None:
    """K8: what it was told and asked stands; back on the device, it goes on from there."""
    client = gpu_house.notebook()
    over_its_grant(gpu_house, client)
    tidy = keeper(gpu_house)
    tidy()
    heard(client)
    sessions = gpu_house.broker.scheduler.sessions
    for size in (3 * GiB, 0):
        gpu_house.device.away = {os.getpid(): size} if size else {}
        gpu_house.device.used = Usage(1.0, 1.0, 3 * GiB - size)
        for session in sessions.values():  # parked with the scheduler's knowledge
            session.parked = (size, 0) if size else None
        tidy()
        lines = heard(client)
        assert lines == [] if size else ["gives back" in line for line in lines] == [True]


def test_what_is_on_its_way_back_is_nobody_else_s(gpu_house: House, keeper: Keeper) -> None:
    """K8: as the driver sees the memory come, it is not taken for use by others; nor is what is parked counted as in use."""
    client = gpu_house.notebook()
    tidy = keeper(gpu_house)
    gpu_house.device.away = {os.getpid(): 3 * GiB}
    session = gpu_house.broker.scheduler.sessions[session_of(client)]
    session.parked = (3 * GiB, 0)
    tidy()
    assert gpu_house.device.managed == 0
    gpu_house.do(gpu_house.device.move_gate.clear)
    carry_out(gpu_house, do.Restore(session.id, 1, 3 * GiB))
    gpu_house.saw(lambda: ("restore", os.getpid()) in gpu_house.device.calls)
    tidy()
    assert gpu_house.device.managed == 3 * GiB
    gpu_house.do(gpu_house.device.move_gate.set)
    session.parked = None


def test_nobody_is_told_that_it_is_paused_who_is_not(gpu_house: House, keeper: Keeper) -> None:
    """It runs for a signal on its way: the pause is tried again at the next look."""
    client = gpu_house.notebook()
    over_its_grant(gpu_house, client)
    tidy = keeper(gpu_house)
    for _ in range(2):
        tidy()
    heard(client)
    opened = client.opened  # type: ignore[attr-defined]
    gpu_house.call(msg.Exempt(opened.session, opened.token, 60.0)).close()
    tidy()
    assert heard(client) == []
    session = gpu_house.broker.scheduler.sessions[session_of(client)]
    gpu_house.do(lambda: setattr(session, "exempt_until", 0.0))
    tidy()
    assert heard(client)[0].startswith("Paused for at most 60 s: ")


def test_a_host_s_memory_pauses_nobody(tmp_path: Path, keeper: Keeper) -> None:
    """What a host's processes hold is measured and charged, as ever."""
    with House(tmp_path) as house:
        client = house.notebook()
        over_its_grant(house, client)
        tidy = keeper(house)
        for _ in range(4):
            tidy()
        assert heard(client) == []


@pytest.mark.parametrize("over", Over)
def test_only_an_administrator_s_wish_ends_anybody(
    gpu_house: House, keeper: Keeper, monkeypatch: pytest.MonkeyPatch, over: Over
) -> None:
    """I8: an interrupt first, to the offender alone; with `tell` nothing of the kind, ever."""
    monkeypatch.setattr(overdraft, "LONGEST_PAUSE", 0.0)
    noting = "import signal; signal.signal(signal.SIGINT, lambda *_: say('interrupted')); say('up'); wait()"
    with Program(noting) as offender:
        assert offender.said() == ["up"]
        opened = gpu_house.open("over.ipynb")
        gpu_house.bind(opened, offender.pid)
        client = gpu_house.attach(opened)
        over_its_grant(gpu_house, client)
        tidy = keeper(gpu_house, over)
        for _ in range(3):
            tidy()
        if over is Over.TELL:
            for _ in range(5):
                tidy()
            assert offender.key in [k.key for k in gpu_house.broker.registry]
            os.kill(offender.pid, signal.SIGINT)  # the first it hears of
            assert offender.said() == ["interrupted"]
            offender.tell()
            assert offender.process.stdout is not None
            assert offender.process.stdout.read() == "", "and the last"
            return
        assert offender.said() == ["interrupted"]
        tidy()
        gpu_house.saw(lambda: offender.key not in [k.key for k in gpu_house.broker.registry])
        assert offender.process.wait(20) == -signal.SIGTERM


def test_an_idle_holder_is_asked_while_others_wait(gpu_house: House, keeper: Keeper) -> None:
    """By its size and since when, once; not while its cell runs, nor by its own user's other notebooks."""
    client = gpu_house.notebook()
    client.ask(submit("j", persistent=2 * GiB))
    waiter = gpu_house.notebook("waits.ipynb")
    waiter.send(submit("w", persistent=7 * GiB))
    gpu_house.saw(lambda: len(gpu_house.broker.scheduler.book.queue) == 1)
    gpu_house.device.used = Usage(1.0, 1.0, 2 * GiB)
    tidy = keeper(gpu_house)
    tidy()
    client.ask(msg.End(JobId("j"), 2 * GiB, 2 * GiB, 0))
    tidy()
    assert heard(client) == [], "its own user waits: the waiter is told whose it is"
    other = gpu_house.do(lambda: gpu_house.broker.scheduler.users)
    stranger = type(next(iter(other.values())))("zoe")  # type: ignore[arg-type]
    session = gpu_house.broker.scheduler.sessions[session_of(waiter)]
    own = session.user
    gpu_house.do(lambda: setattr(session, "user", stranger))
    tidy()
    tidy()
    client.ask(msg.SetWeight(1.0))
    assert client.notices.count(msg.Trim()) == 1, "what it keeps unused goes back at once"
    (line,) = heard(client)
    assert line.startswith("1 person waits; you hold 2.0 GiB idle since ")
    assert line.endswith(": %gpushare release")
    gpu_house.do(lambda: setattr(session, "user", own))


def test_release_subtracts_what_its_own_notebook_gave_back(gpu_house: House, keeper: Keeper) -> None:  # fmt: skip
    """The driver's list still has it: what the client says is taken off. What nobody gave back is named as in use."""
    client = gpu_house.notebook("hw1.ipynb")
    gpu_house.device.used = Usage(1.0, 1.0, 3 * GiB)
    keeper(gpu_house)()
    session = gpu_house.broker.scheduler.sessions[session_of(client)]
    assert session.charged == 3 * GiB
    freed = client.ask(msg.Release(None, 2 * GiB))
    assert freed == msg.ReleasedNow(2 * GiB, ("hw1.ipynb",), held=GiB)
    assert session.charged == GiB
    freed = client.ask(msg.Release(None, 9 * GiB))
    assert freed == msg.ReleasedNow(GiB, ("hw1.ipynb",))
    assert msg.Trim() not in client.notices


def test_release_of_another_notebook_has_it_trim(gpu_house: House, keeper: Keeper) -> None:
    """Its client is asked and nothing is claimed; once the driver sees it gone it is gone. Nobody's word counts for another."""
    client, other = gpu_house.notebook("hw1.ipynb"), gpu_house.notebook("hw2.ipynb")
    gpu_house.device.used = Usage(1.0, 1.0, 3 * GiB)
    tidy = keeper(gpu_house)
    tidy()
    answer = client.ask(msg.Release("hw2", 3 * GiB))
    assert answer == msg.ReleasedNow(0, ("hw2.ipynb",), asked=("hw2.ipynb",))
    other.ask(msg.SetWeight(1.0))
    assert other.notices.count(msg.Trim()) == 1
    assert msg.Trim() not in client.notices
    gpu_house.device.used = Usage(1.0, 1.0, GiB)
    tidy()
    assert gpu_house.broker.scheduler.sessions[session_of(other)].charged == GiB


def test_what_sessions_hold_is_known_before_anybody_asks_for_some(
    gpu_house: House, tmp_path: Path
) -> None:
    """A broker that takes over sessions of one before it has their memory as room again at once, not a second later."""
    gpu_house.notebook()
    gpu_house.device.taken_by_others = -GiB
    places = Places(tmp_path, system=False, named=True)
    tidying = Housekeeping(gpu_house.broker, gpu_house.listener, places, 0.0, lock=-1)

    async def first_step() -> int:
        running = asyncio.create_task(tidying.run())
        await asyncio.sleep(0)
        running.cancel()
        return gpu_house.broker.scheduler.book.table.capacity

    assert gpu_house.wait(first_step()) == 9 * GiB


def test_a_job_is_told_what_it_may_hold_before_it_may_run(gpu_house: House) -> None:
    """I1: a cap that comes later is too late for a cell without boundaries; one that stays too low fails it."""
    client = gpu_house.notebook()
    gpu_house.notebook("other.ipynb").ask(submit("o", size=GiB))
    client.notices.clear()
    assert isinstance(client.ask(submit("j", size=4 * GiB)), msg.Granted)
    assert [n for n in client.notices if isinstance(n, msg.Budget)] == [msg.Budget(4 * GiB)]
    client.notices.clear()
    client.ask(msg.End(JobId("j"), 0, 0, 0))
    (told,) = [n for n in client.notices if isinstance(n, msg.Budget)]
    assert told.limit is not None
    assert told.limit != 4 * GiB, "what is free, divided by who works"


def test_memory_that_somebody_waits_for_is_looked_for_as_soon_as_it_may_be_free(
    gpu_house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the next pass: whoever waits for it would wait for that, too. Where nobody waits nobody looks."""
    monkeypatch.setattr(housekeeping, "PERIOD", 60.0)
    places = Places(tmp_path, system=False, named=True)
    tidying = Housekeeping(gpu_house.broker, gpu_house.listener, places, 0.0, lock=-1)
    running = gpu_house.do(lambda: asyncio.ensure_future(tidying.run()))
    holder, waiter = gpu_house.notebook("hw1.ipynb"), gpu_house.notebook("hw2.ipynb")
    session = gpu_house.broker.scheduler.sessions[session_of(holder)]
    holder.ask(submit("alone", size=2 * GiB))
    holder.ask(end("alone", GiB))
    assert ("look", 0) not in gpu_house.device.calls
    holder.ask(submit("j", size=4 * GiB))
    waiter.send(submit("w", size=7 * GiB))
    gpu_house.saw(lambda: len(gpu_house.broker.scheduler.book.queue))
    gpu_house.device.used = Usage(1.0, 1.0, GiB)
    holder.ask(end("j", 3 * GiB))
    gpu_house.saw(lambda: session.charged == GiB)
    assert ("look", 0) in gpu_house.device.calls
    gpu_house.do(running.cancel)
