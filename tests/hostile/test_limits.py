"""What one user may have and cost: each limit, its message, and that a place is given again."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import socket
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel.broker import broker, desk, kernels
from gpushare_kernel.broker.kernels import EXEMPT_AT_ONCE, EXEMPT_SHARE, Kernel
from gpushare_kernel.core.errors import NotYours, UserError
from gpushare_kernel.core.values import GiB, JobId, ProcessKey
from gpushare_kernel.transport import allowance as limits
from gpushare_kernel.transport import fds as descriptors
from gpushare_kernel.transport.allowance import Allowance
from gpushare_kernel.wire import limit_texts as texts
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.realtime import RealtimeLayer, RealtimeTask
from tests.broker.house import House
from tests.faults.wire import Peer
from tests.procs import Program, eventually, key_of


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A broker with a played device of one core and 8 GiB."""
    with House(tmp_path) as made:
        yield made


def test_the_texts() -> None:
    """Each says the rule, the value and the next step."""
    assert [
        texts.connections_text(2, 3),
        texts.handshakes_text(64, 65),
        texts.requests_text(0.05),
        texts.sessions_text(5),
        texts.jobs_text(6),
        texts.proofs_text(7),
        texts.job_id_text(64, 65),
    ] == [
        "a user may have 2 connections to the broker, and yours are 3. Close some of them.",
        "the broker answers 64 new connections of a user at once, and yours are 65. Try again in a moment.",
        "one user's requests get at most 5% of the broker's time, and yours take more: they are answered late. "
        "Ask less often, and look for a loop that asks without end.",
        "a user may have 5 notebooks open, and you have so many. Shut some down first.",
        "the jobs of all your notebooks may be 6 at once, and so many run or wait. Let one end first.",
        "7 deadlines of a user are proven at once, and so many of yours are. "
        "Begin this job when one of them has its answer.",
        "a job's id has 1 to 64 printable ASCII characters, and one with 65 characters came.",
    ]


# --- time ----------------------------------------------------------------------------------------------------


def test_who_has_used_its_time_waits_in_line() -> None:
    """One after the other, in the order in which they came, and not before there is time again."""

    async def test() -> list[int]:
        mine, order, all_there = Allowance(limited=True), [], asyncio.Event()
        assert not mine.exhausted
        mine.spend(limits.BURST + 0.001)
        assert mine.exhausted
        for n in range(3):
            mine.wait(lambda n=n: order.append(n) or (n == 2 and all_there.set()))
        began = asyncio.get_running_loop().time()
        await asyncio.wait_for(all_there.wait(), 20)
        assert asyncio.get_running_loop().time() - began >= 0.5 * 0.001 / limits.SHARE
        return order

    assert asyncio.run(test()) == [0, 1, 2]


def test_a_debt_ends() -> None:
    """However much was taken: nobody waits longer than the burst takes to come back, and a quiet user has no more than that."""

    async def test() -> None:
        mine = Allowance(limited=True)
        mine.spend(1e6)
        assert mine._left == -limits.BURST
        mine._at -= 10 * limits.BURST / limits.SHARE
        assert not mine.exhausted
        assert mine._left == limits.BURST

    asyncio.run(test())


def test_administrators_are_not_held_to_it() -> None:
    """They may stop the broker anyway."""
    everybody = limits.Allowances()
    assert [everybody.of(uid)._limited for uid in (0, os.geteuid(), 61001)] == [False, False, True]
    assert everybody.of(61001) is everybody.of(61001), "who comes back finds its debt"


# --- connections and bytes --------------------------------------------------------------------------------------


def test_slow_readers_are_counted_together(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many connections that each leave a little unread are one user's: one of them is cut off, and the broker goes on."""
    monkeypatch.setattr(limits, "UNREAD", 4 * 2**20)
    lines = [house.call(msg.Observe()) for _ in range(6)]
    connections = [one._connection for one in house.do(lambda: sorted(house.broker.observers, key=id))]  # fmt: skip
    for connection in connections:
        house.do(lambda c=connection: [c.send(bytes(2**20)) for _ in range(2)])
    assert sum(one.buffered for one in connections) <= limits.UNREAD
    house.saw(lambda: len(house.broker.observers) < len(lines))
    assert house.do(lambda: len(house.broker.observers)) >= 2
    assert isinstance(house.call(msg.Observe()).ask(msg.GetNeeds()), msg.NeedsReply)


def test_a_hello_of_single_bytes_holds_no_descriptors(house: House) -> None:
    """Each byte may come with descriptors: all but one are closed before the next is read."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock, Path(os.devnull).open() as null:
        sock.connect(str(house.path))
        house.saw(lambda: house.listener.handshakes == 1)
        before = len(list(Path("/proc/self/fd").iterdir()))
        data = struct.pack("<I", 1000) + bytes(100)
        for byte in data:
            descriptors.send(sock, bytes([byte]), [null.fileno()] * 4)
        eventually(lambda: not _unread_by_the_broker(sock), 20)
        house.do(lambda: None)
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def _unread_by_the_broker(sock: socket.socket) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])


# --- sessions and jobs ----------------------------------------------------------------------------------------------


def test_sessions_are_counted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """At so many the next is refused with the number; one that ends makes room."""
    monkeypatch.setattr(kernels, "MOST_SESSIONS_PER_USER", 2)
    first, _second = house.open(), house.open()
    with pytest.raises(UserError, match="a user may have 2 notebooks open"):
        house.open()
    house.call(msg.Close(first.session, first.token))
    house.open()


def test_sessions_leave_descriptors_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the broker has few, a user's sessions get a quarter of them, three each."""
    monkeypatch.setattr(kernels.resource, "getrlimit", lambda _: (1200, 1200))
    assert kernels.most_sessions() == 100
    monkeypatch.setattr(kernels.resource, "getrlimit", lambda _: (10**6, 10**6))
    assert kernels.most_sessions() == kernels.MOST_SESSIONS_PER_USER


def test_jobs_are_counted_over_all_notebooks(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait as well as those that run."""
    monkeypatch.setattr(desk, "MOST_JOBS_PER_USER", 2)
    monkeypatch.setattr(house.broker, "administers", lambda who: False)
    one, two = house.notebook("a"), house.notebook("b")
    assert isinstance(one.ask(_submit("j1")), msg.Granted)
    assert isinstance(two.ask(_submit("j2")), msg.Granted)
    refused = two.ask(_submit("j3"))
    assert isinstance(refused, msg.Failure)
    assert "may be 2 at once" in refused.message
    one.ask(msg.End(JobId("j1"), 0, 0, 0))
    assert isinstance(two.ask(_submit("j3")), msg.Granted)


def test_a_long_queue_is_told_in_pieces(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """One waiter a turn of the loop, one a call where there is no time for more: the next call goes on where this one stopped."""
    client = house.notebook()
    assert isinstance(client.ask(_submit("first", 8 * GiB)), msg.Granted)
    for n in range(4):
        client.send(_submit(f"j{n}", GiB))
    house.saw(lambda: len(house.broker.jobs) == 5)
    told: list[str] = []
    (line,) = set(house.broker.jobs.values())
    monkeypatch.setattr(line, "tell_wait", lambda job: told.append(job.split("/")[1]))
    for each in ("TELLING", "TELLING_A_TURN"):
        monkeypatch.setattr(broker, each, 1e-9)
    for n in range(1, 7):
        house.do(house.broker.tell_waits)
        assert len(told) == n
    assert told[:5] == ["first", "j0", "j1", "j2", "j3"]
    assert told[5] == "first"
    monkeypatch.setattr(broker, "TELLING", 1.0)
    told.clear()
    house.do(house.broker.tell_waits)
    house.saw(lambda: len(told) == 4)


def test_proofs_are_counted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made one after the other: nobody queues an hour of them before everybody else."""
    monkeypatch.setattr(desk, "MOST_PROOFS_PER_USER", 1)
    monkeypatch.setattr(house.broker, "proves", lambda job: True)
    client = house.notebook()
    assert isinstance(client.ask(_submit("j1")), msg.Granted)
    task = RealtimeTask("rt", 0.1, 0.1, (RealtimeLayer({"c1": 0.001}),))
    refused = client.ask(msg.Submit(JobId("j2"), "n", persistent=1, ephemeral=1, realtime=task))
    assert isinstance(refused, msg.Failure)
    assert "1 deadlines of a user are proven at once" in refused.message


@pytest.mark.parametrize("name", ["", "x" * 65, "\x1b[2J", "\u202ej", "\u6f22"])
def test_a_jobs_id_is_short_and_plain(house: House, name: str) -> None:
    """Everybody's status shows it: what is none ends the connection, at a submit and at a coming back."""
    client = house.notebook()
    client.send(_submit(name))
    said = client.reply(0)
    assert isinstance(said, msg.Failure)
    assert (said.code, said.message) == ("BadFrame", texts.job_id_text(64, len(name)))
    held = msg.HeldJob(JobId(name), "n", 0, 0, 1, 1, running=True)
    again = house.attach(client.opened, held=(held,))  # type: ignore[attr-defined]
    assert again.reply(0) == said


# --- what is claimed ----------------------------------------------------------------------------------------------------


def test_a_claim_is_no_way_past_the_queue(house: House) -> None:
    """Who says it holds memory that was never granted gets what is free, and not what others wait for or have."""
    other, client = house.notebook("other"), house.notebook("mine")
    assert isinstance(other.ask(_submit("j", 6 * GiB)), msg.Granted)
    held = msg.HeldJob(JobId("x"), "n", 7 * GiB, 7 * GiB, 9, 1, running=True)
    house.attach(client.opened, held=(held,))  # type: ignore[attr-defined]
    house.saw(lambda: len(house.broker.scheduler.jobs) == 2)
    table = house.broker.scheduler.book.table
    assert house.do(lambda: (table.used <= table.capacity, table.free >= 0)) == (True, True)


def test_a_claim_that_is_refused_leaves_nothing(house: House) -> None:
    """More jobs than there are words: the reason is read, and no line and no connection of it is left."""
    client = house.notebook()
    kernel = house.kernel(client.opened)  # type: ignore[attr-defined]
    client.close()
    house.saw(lambda: not kernel.lines)
    held = tuple(msg.HeldJob(JobId(f"h{n}"), "n", 0, 0, 1, 0, running=False) for n in range(70))
    again = house.attach(client.opened, held=held)  # type: ignore[attr-defined]
    said = again.reply(0)
    assert isinstance(said, msg.Failure)
    assert "may run 63 jobs at once" in said.message
    house.saw(lambda: not kernel.lines)


# --- turns ------------------------------------------------------------------------------------------------------------------


def test_nobody_is_exempt_for_good(house: House) -> None:
    """Asked again and again for an hour: exempt for two minutes at once, and then for a tenth of the time."""
    kernel = house.kernel(house.open())
    assert kernel.exempted(60.0, 1000.0, 0.0) == 60.0
    assert kernel.exempted(60.0, 1000.0, 1060.0) == 60.0, "it is exempt anyway: nothing is charged"
    assert kernel.exempt_left == EXEMPT_AT_ONCE - 60.0
    until, total = 1060.0, 60.0
    for now in range(1001, 4600):
        got = kernel.exempted(60.0, float(now), until)
        total += max(0.0, now + got - max(until, now))
        until = max(until, now + got)
    assert total <= EXEMPT_AT_ONCE + EXEMPT_SHARE * 3600 + 1
    assert kernel.exempted(60.0, 4600.0, 0.0) < 1.0


def test_an_openers_number_is_not_enough(house: House) -> None:
    """The process that opened a session has ended, and one inside the kernel has its pid by now: it is not the opener."""
    client = house.notebook()
    opened: msg.Opened = client.opened  # type: ignore[attr-defined]
    own = key_of(os.getpid())
    house.kernel(opened).opener = ProcessKey(own.pid, own.start_time - 1)
    for body in (
        msg.Exempt(opened.session, opened.token, 5.0),
        msg.Close(opened.session, opened.token),
        msg.Restart(opened.session, opened.token),
    ):
        with pytest.raises(NotYours, match="whoever started this kernel"):
            house.call(body)


def test_a_second_session_does_not_take_the_first_ones_process(house: House) -> None:
    """Bound twice, a process is paused for either session: it does not get out of the first one's turns."""
    with Program("say('up'); wait()") as program:
        program.said()
        first, second = house.open("a"), house.open("b")
        for opened in (first, second):
            house.bind(opened, program.pid)
        for opened in (first, second):
            target = house.kernel(opened).target
            assert target is not None
            assert (target.root.pid, program.pid in target.without) == (program.pid, False)


def test_a_forged_pid_is_not_read(house: House) -> None:
    """Whatever a message says of pid and uid: the pidfd says which process it is, the kernel who sent it."""
    opened = house.open()
    pidfd = os.pidfd_open(os.getpid())
    forged = {"pid": 1, "uid": 61001, "key": {"pid": 1, "start_time": 0}}
    with contextlib.closing(Peer(str(house.path))) as peer:
        keys = {"session": opened.session, "token": opened.token}
        assert peer.hello("Bind", [pidfd], **keys, **forged)["type"] == "Ok"
    os.close(pidfd)
    kernel = house.kernel(opened)
    assert (kernel.key, kernel.uid) == (key_of(os.getpid()), os.geteuid())


def test_a_timer_keeps_no_closed_session(house: House) -> None:
    """Opened and closed by the thousand, sessions are not kept for the minute in which they might have got a process."""

    def there() -> int:
        gc.collect()
        return sum(type(each) is Kernel for each in gc.get_objects())

    before = there()  # of other tests
    for _ in range(50):
        opened = house.open()
        house.call(msg.Close(opened.session, opened.token)).close()
    house.do(lambda: None)
    assert there() - before < 5


def _submit(job: str, size: int = 1) -> msg.Submit:
    return msg.Submit(JobId(job), "n", persistent=size, ephemeral=0)
