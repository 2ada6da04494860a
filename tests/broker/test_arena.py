"""Arenas: a real broker, real memory files, real users (docs/arena.md)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpushare_kernel.broker import arena as arenas_of
from gpushare_kernel.broker import daemon
from gpushare_kernel.broker.arena import Arenas
from gpushare_kernel.broker.budgets import Budgets
from gpushare_kernel.broker.extents import Span
from gpushare_kernel.broker.memfile import MemFile
from gpushare_kernel.broker.options import parser, size_of
from gpushare_kernel.broker.persons import Person, user_name
from gpushare_kernel.broker.settings import Caps, Group, Settings
from gpushare_kernel.client.arena import Lease, take
from gpushare_kernel.core.errors import (
    BadSize,
    BadToken,
    BrokerUnavailable,
    NotYours,
    Refused,
)
from gpushare_kernel.core.values import GiB, MiB, SessionId
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.transport.frames import pack
from gpushare_kernel.transport.peers import Peer
from gpushare_kernel.wire import messages as msg
from tests.broker.house import House
from tests.faults import wire

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
ANN, BOB = 65533, 65534
PLENTY = 64 * GiB


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A broker whose host has plenty of memory, and 16 MiB for a user's arena."""
    with House(tmp_path) as made:
        made.do(lambda: _rich(made))
        yield made


def _rich(house: House) -> None:
    house.broker.arenas.budgets = Budgets(24 * MiB, 16 * MiB)
    house.broker.arenas.room = lambda: PLENTY


@pytest.fixture
def mine(house: House) -> Any:
    """This process, as a kernel of the house."""
    opened = house.open("mine.ipynb")
    house.bind(opened)
    return SimpleNamespace(token=opened.token, path=house.path, session=opened.session)


def arenas(house: House) -> Arenas:
    return house.broker.arenas


def books(house: House, uid: int = os.geteuid()) -> tuple[int, int]:
    """What is leased to a user, and what rests."""
    found = arenas(house)._of.get(Person(uid))
    return (0, 0) if found is None else (found.extents.leased, found.extents.resting)


def seen(house: House, uid: int = os.geteuid()) -> list[tuple[int, int, int]]:
    """What a user sees of arenas."""
    views = house.do(lambda: house.broker.snapshot(Person(uid))).arenas
    return [(one.leased, one.populated, one.budget) for one in views]


def inode(lease: Lease) -> int:
    return os.fstat(lease._fd).st_ino


@contextlib.contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Span]]:
    """Write down what is populated."""
    spans: list[Span] = []
    populate = MemFile.populate

    def noted(self: MemFile, span: Span) -> None:
        spans.append(span)
        populate(self, span)

    with monkeypatch.context() as patch:
        patch.setattr(MemFile, "populate", noted)
        yield spans


def test_what_one_reads_of_the_limit_is_what_holds(house: House, mine: Any) -> None:
    """The group's cap, where that is less than what the broker gives a user; the refusal says the same."""
    lease = take(mine, 2 * MiB)
    assert [budget for _, _, budget in seen(house)] == [16 * MiB]
    group = Group("students", frozenset({user_name(os.geteuid())}), caps=Caps(parked=4 * MiB))
    house.do(lambda: house.broker.groups.follow(Settings(groups=(group,))))
    assert [budget for _, _, budget in seen(house)] == [4 * MiB]
    (account,) = house.do(lambda: house.broker.snapshot(Person(os.geteuid()))).users
    assert account.parked == 4 * MiB
    with pytest.raises(Refused, match=r"may set aside 4 MiB of the host's memory in all; 2 MiB"):
        take(mine, 4 * MiB)
    lease.close()


# --- leases -----------------------------------------------------------------------------------------------------


def test_a_lease_has_memory_behind_all_of_it_and_the_next_one_finds_it_there(
    house: House, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1, A2, A3: whole blocks, all zero at first; what a lease leaves is populated once and kept."""
    with watched(monkeypatch) as populated:
        lease = take(mine, 3 * MiB)
        assert (lease.offset, lease.size) == (0, 4 * MiB)
        assert populated == [Span(0, 4 * MiB)]
        assert seen(house) == [(4 * MiB, 4 * MiB, 16 * MiB)]
        assert bytes(lease.buffer) == bytes(4 * MiB)
        file = inode(lease)
        lease.close()
        house.saw(lambda: books(house) == (0, 4 * MiB))
        again = take(mine, 2 * MiB)
        assert (again.offset, inode(again)) == (0, file)
        assert populated == [Span(0, 4 * MiB)]
        assert books(house) == (2 * MiB, 2 * MiB)
        again.close()


def test_two_leases_of_a_user_lie_side_by_side_in_one_file(house: House, mine: Any) -> None:
    """A2: what is written into one is not seen in the other."""
    one, two = take(mine, 2 * MiB), take(mine, 2 * MiB)
    assert inode(one) == inode(two)
    one.buffer[:] = b"1" * one.size
    two.buffer[:] = b"2" * two.size
    assert bytes(one.buffer) == b"1" * one.size
    one.close()
    two.close()


def test_a_lease_ends_with_its_connection_only(house: House, mine: Any) -> None:
    """A4: no word ends it, nor does the end of its session at the broker: its bytes may be the only ones."""
    lease = take(mine, 2 * MiB)
    lease._sock.sendall(pack(b"rubbish", msg.TO_BROKER_LIMIT))
    kernel = house.broker.registry.get(SessionId(mine.session))
    assert kernel is not None
    house.do(lambda: house.broker.close(kernel))
    house.saw(lambda: house.broker.registry.get(SessionId(mine.session)) is None)
    assert lease.stands
    assert books(house) == (2 * MiB, 0)
    lease.close()
    house.saw(lambda: books(house) == (0, 2 * MiB))


def test_whoever_leaves_before_the_answer_has_no_lease(
    house: House, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A4: and if its connection comes up all the same, it is ended at once."""
    monkeypatch.setattr(arenas_of, "UNCLAIMED", 0.05)
    peer = Peer(os.getpid(), os.geteuid(), os.getegid())
    found = house.wait(arenas(house).lease(msg.LeaseArena(mine.token, MiB), peer))
    fd = found.fd
    house.saw(lambda: books(house) == (0, 2 * MiB))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    ended: list[str] = []
    late: Any = SimpleNamespace(close=lambda: ended.append("late"))
    house.do(lambda: arenas(house).claim(found, late))
    assert ended == ["late"]
    house.do(found.on_closed)
    assert books(house) == (0, 2 * MiB)


def test_who_may_lease(house: House, mine: Any) -> None:
    """A5, I9: from inside its own kernel only, as that kernel's user, and a size that is one."""
    for size in (0, -1, 2**62):
        with pytest.raises(BadSize, match="a lease has from 1"):
            take(mine, size, limit=5)
    with pytest.raises(BadToken):
        take(SimpleNamespace(token="none of ours", path=house.path), MiB)
    kernel = house.broker.registry.get(SessionId(mine.session))
    assert kernel is not None
    kernel.uid = ANN
    with pytest.raises(NotYours, match=f"this kernel is of uid {ANN}, and uid 0 asks") if os.geteuid() == 0 else pytest.raises(BadToken):  # fmt: skip
        take(mine, MiB)
    kernel.uid = os.geteuid()
    with subprocess.Popen(["/bin/sleep", "60"]) as sleeper:
        try:
            opened = house.open("other.ipynb")
            house.bind(opened, sleeper.pid)
            with pytest.raises(BadToken, match=f"process {os.getpid()} is not in it"):
                take(SimpleNamespace(token=opened.token, path=house.path), MiB)
        finally:
            sleeper.kill()
    assert arenas(house)._of == {}


# --- budgets ------------------------------------------------------------------------------------------------------


def test_budgets_are_kept_and_refusals_have_numbers(house: House, mine: Any) -> None:
    """A6: of one user, of all, and none at all."""
    lease = take(mine, 10 * MiB)
    with pytest.raises(Refused, match=r"may set aside 16 MiB .* 10 MiB of it are in use, and 8 MiB more do not fit.*--arena-user"):  # fmt: skip
        take(mine, 8 * MiB)
    arenas(house).budgets = Budgets(12 * MiB, 12 * MiB)
    other = house.do(lambda: arenas(house)._begin(Person(ANN)))
    house.do(lambda: other.extents.take(2 * MiB))
    with pytest.raises(Refused, match=r"all notebooks together may set aside 12 MiB .* 12 MiB of it"):  # fmt: skip
        take(mine, 2 * MiB)
    arenas(house).budgets = Budgets(0, 0)
    with pytest.raises(Refused, match="--arena 0"):
        take(mine, 2 * MiB)
    assert books(house) == (10 * MiB, 0)
    lease.close()


def test_what_rests_gives_way_to_budgets(house: House, mine: Any) -> None:
    """A3, A6: the longest unused goes first, and only as much as is over; of others only where all are over."""
    budgets = arenas(house).budgets
    assert budgets.user == 16 * MiB
    other = house.do(lambda: arenas(house)._begin(Person(ANN)))
    span = house.do(lambda: other.extents.take(8 * MiB)[0])
    house.do(lambda: other.extents.release(span, 0.0))
    first, second = take(mine, 6 * MiB), take(mine, 6 * MiB)
    first.close()
    house.saw(lambda: books(house) == (6 * MiB, 6 * MiB))
    third = take(mine, 8 * MiB)
    house.saw(lambda: not arenas(house)._going)
    assert books(house) == (14 * MiB, 2 * MiB)
    assert books(house, ANN) == (0, 8 * MiB)
    assert seen(house)[-1][1] == 16 * MiB
    arenas(house).budgets = Budgets(20 * MiB, 16 * MiB)
    house.do(lambda: arenas(house)._keep_budgets(arenas(house)._of[Person(os.geteuid())]))
    assert books(house, ANN) == (0, 4 * MiB)
    assert books(house) == (14 * MiB, 2 * MiB)
    second.close()
    third.close()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None), Budgets(64 * MiB, 32 * MiB)),
        ((100 * MiB, None), Budgets(100 * MiB, 50 * MiB)),
        ((100 * MiB, 200 * MiB), Budgets(100 * MiB, 100 * MiB)),
        ((None, 3 * MiB), Budgets(64 * MiB, 2 * MiB)),
        ((0, None), Budgets(0, 0)),
    ],
)
def test_budgets_by_default(given: tuple[int | None, int | None], expected: Budgets) -> None:
    """A6: a quarter of the memory that we may use, half of it for a user; whole blocks; nobody has more than all."""
    machine: Any = SimpleNamespace(total=lambda: 256 * MiB)
    assert Budgets.of(machine, *given) == expected


def test_budgets_are_options_of_a_broker(capsys: pytest.CaptureFixture[str]) -> None:
    """A6: sizes, or 0; a broker that is started again after a crash has them too."""
    given = parser().parse_args(["--arena", "3GiB", "--arena-user", "0"])
    machine: Any = SimpleNamespace(total=lambda: 256 * MiB)
    budgets = Budgets.of(machine, size_of(given.arena), size_of(given.arena_user))
    assert budgets == Budgets(3 * GiB, 0)
    assert daemon._command(given)[-4:] == ["--arena", "3GiB", "--arena-user", "0"]
    with pytest.raises(SystemExit):
        parser().parse_args(["--arena", "12"])
    assert "--arena: size '12' has no unit" in capsys.readouterr().err


def test_the_whole_is_bounded_by_control_groups(tmp_path: Path) -> None:
    """A6: MemTotal, or the least limit above us."""
    group = tmp_path / "sys/fs/cgroup/a"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8192 kB\nMemAvailable: 4096 kB\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    (tmp_path / "proc/self/cgroup").write_text("0::/a\n")
    assert Machine(tmp_path).total() == 8 * MiB
    (group / "memory.max").write_text("max\n")
    assert Machine(tmp_path).total() == 8 * MiB
    (group / "memory.max").write_text(f"{2 * MiB}\n")
    assert Machine(tmp_path).total() == 2 * MiB
    assert Machine(tmp_path).available() == 4 * MiB  # without a usage nobody knows how much is left


# --- the host's memory ----------------------------------------------------------------------------------------------


def test_a_host_that_is_short_of_memory_gives_no_lease(house: House, mine: Any) -> None:
    """A7: with what is needed, the margin and what is left; nothing stays."""
    arenas(house).room = lambda: 515 * MiB
    with pytest.raises(Refused, match=r"memory is short: 4 MiB and 512 MiB to spare are needed.*leave 515 MiB"):  # fmt: skip
        take(mine, 4 * MiB)
    house.saw(lambda: arenas(house)._of == {})
    arenas(house).room = lambda: 516 * MiB
    take(mine, 4 * MiB).close()


def test_a_host_that_runs_short_meanwhile_has_it_back(
    house: House, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A7: it is looked at before each step."""
    monkeypatch.setattr(arenas_of, "STEP", 2 * MiB)
    left = iter([PLENTY, PLENTY, PLENTY, 0])
    arenas(house).room = lambda: next(left, PLENTY)
    with watched(monkeypatch) as populated, pytest.raises(Refused, match="leave 0 B"):
        take(mine, 8 * MiB)
    assert populated
    assert len(populated) < 4
    house.saw(lambda: arenas(house)._of == {})


def test_memory_that_cannot_be_had_is_a_refusal(
    house: House, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A7: the kernel's own answer, in words."""

    def full(self: MemFile, span: Span) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MemFile, "populate", full)
        with pytest.raises(Refused, match=r"gave no memory for 2 MiB .No space left"):
            take(mine, MiB)
    house.saw(lambda: arenas(house)._of == {})


def test_what_rests_is_given_back_before_anybody_is_refused(house: House, mine: Any) -> None:
    """A7: and it is awaited."""
    old = take(mine, 8 * MiB)
    old.close()
    house.saw(lambda: books(house) == (0, 8 * MiB))
    file = arenas(house)._of[Person(os.geteuid())].file
    arenas(house).room = lambda: 520 * MiB - file.resident()
    new = take(mine, 8 * MiB)  # all of it is there already: nothing is needed
    assert books(house) == (8 * MiB, 0)
    new.close()
    house.saw(lambda: books(house) == (0, 8 * MiB))
    other = house.do(lambda: arenas(house)._begin(Person(ANN)))
    span = house.do(lambda: other.extents.take(8 * MiB)[0])
    house.do(lambda: other.extents.release(span, -1.0))
    house.do(lambda: other.file.populate(span))
    resident = lambda: file.resident() + other.file.resident()  # noqa: E731
    arenas(house).room = lambda: 530 * MiB - resident()
    larger = take(mine, 12 * MiB)
    assert books(house) == (12 * MiB, 0)
    assert books(house, ANN) == (0, 6 * MiB)  # 2 MiB were missing
    larger.close()


def test_the_loop_goes_on_while_memory_is_taken(
    house: House, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3: first touch is for another thread, and the lease is answered after it; a second lease counts what is owed to the first."""
    began, may = threading.Event(), threading.Event()
    populate = MemFile.populate

    def slow(self: MemFile, span: Span) -> None:
        began.set()
        assert may.wait(20)
        populate(self, span)

    monkeypatch.setattr(MemFile, "populate", slow)
    taken: list[Lease] = []
    thread = threading.Thread(target=lambda: taken.append(take(mine, 4 * MiB)))
    thread.start()
    try:
        assert began.wait(20)
        assert house.open("meanwhile.ipynb").session
        assert seen(house) == [(4 * MiB, 0, 16 * MiB)]
        arenas(house).room = lambda: 519 * MiB
        with pytest.raises(Refused, match="8 MiB and 512 MiB to spare"):
            take(mine, 4 * MiB)
        assert taken == []
    finally:
        may.set()
        thread.join(20)
    assert bytes(taken[0].buffer) == bytes(4 * MiB)
    taken[0].close()


def test_what_rests_for_long_goes_back(
    house: House, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3: and with the last of it the file."""
    monkeypatch.setattr(arenas_of, "LOOK", 0.02)
    monkeypatch.setattr(arenas_of, "LONG", 0.0)
    lease = take(mine, 2 * MiB)
    lease.close()
    house.saw(lambda: arenas(house)._of == {} and arenas(house)._timer is None)
    lease = take(mine, 2 * MiB)
    assert books(house) == (2 * MiB, 0)
    lease.close()


def test_what_rests_goes_back_when_the_host_needs_it(
    house: House, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A7: only what is missing, and no lease."""
    monkeypatch.setattr(arenas_of, "LOOK", 0.02)
    kept, old = take(mine, 4 * MiB), take(mine, 8 * MiB)
    old.close()
    house.saw(lambda: books(house) == (4 * MiB, 8 * MiB))
    left = iter([GiB - 2 * MiB])
    arenas(house).room = lambda: next(left, PLENTY)
    house.saw(lambda: books(house) == (4 * MiB, 6 * MiB))
    arenas(house).room = lambda: 0
    house.saw(lambda: books(house) == (4 * MiB, 0))
    assert kept.stands
    kept.close()


# --- what a user can do with the file -------------------------------------------------------------------------------


def test_a_user_can_neither_shrink_nor_seal_the_file_nor_change_how_we_write(house: House, mine: Any) -> None:  # fmt: skip
    """A8: a mapping never meets SIGBUS, and O_APPEND on the user's descriptor is not ours."""
    lease = take(mine, 2 * MiB)
    with pytest.raises(PermissionError):
        os.ftruncate(lease._fd, 0)
    with pytest.raises(PermissionError):
        fcntl.fcntl(lease._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    flags = fcntl.fcntl(lease._fd, fcntl.F_GETFL)
    fcntl.fcntl(lease._fd, fcntl.F_SETFL, flags | os.O_APPEND)
    size = os.fstat(lease._fd).st_size
    other = take(mine, 2 * MiB)
    assert os.fstat(lease._fd).st_size == size
    assert seen(house)[0][1] == 4 * MiB
    assert os.fstat(lease._fd).st_mode & 0o777 == 0o600
    lease.close()
    other.close()


def test_what_is_written_outside_leases_is_taken_away(
    house: House, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A8: in holes and behind the end; leases and what rests keep their bytes."""
    monkeypatch.setattr(arenas_of, "LOOK", 0.02)
    lease, other = take(mine, 2 * MiB), take(mine, 2 * MiB)
    lease.buffer[:] = b"x" * lease.size
    other.buffer[:] = b"y" * other.size
    other.close()
    house.saw(lambda: books(house) == (2 * MiB, 2 * MiB))
    for start in (100 * MiB, GiB):
        os.pwrite(lease._fd, b"stray" * MiB, start)
    file = arenas(house)._of[Person(os.geteuid())].file
    house.saw(lambda: file.resident() == 4 * MiB)
    assert bytes(lease.buffer) == b"x" * lease.size
    assert os.pread(lease._fd, 2 * MiB, 2 * MiB) == b"y" * 2 * MiB
    assert os.pread(lease._fd, 5, GiB) == bytes(5)
    lease.close()


def test_a_lease_outlives_its_broker(tmp_path: Path) -> None:
    """A9: the bytes stay with whoever has the descriptor; a new broker knows nothing of them."""
    with House(tmp_path) as house:
        house.do(lambda: _rich(house))
        opened = house.open()
        house.bind(opened)
        lease = take(SimpleNamespace(token=opened.token, path=house.path), 2 * MiB)
        lease.buffer[:] = b"z" * lease.size
        assert lease.stands
        with pytest.raises(BrokerUnavailable, match="going away"):
            house.wait(_closing(house, opened.token))
    lease.unmap()
    assert not lease.stands
    assert bytes(lease.buffer) == b"z" * lease.size
    (tmp_path / "next").mkdir()
    with House(tmp_path / "next") as house:
        assert seen(house) == []
    lease.close()


async def _closing(house: House, token: str) -> None:
    arenas = house.broker.arenas
    await arenas.close()
    await arenas.lease(msg.LeaseArena(token, MiB), Peer(os.getpid(), os.geteuid(), os.getegid()))


# --- users ----------------------------------------------------------------------------------------------------------


class User:
    """A kernel of another user."""

    def __init__(self, uid: int, path: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gpu", dir="/tmp"))
        self.folder.chmod(0o755)
        for script in (Path(wire.__file__), Path(__file__).with_name("arena_user.py")):
            Path(shutil.copy(script, self.folder)).chmod(0o644)
        system = "/usr/bin/python3"
        self.process = subprocess.Popen(
            [system if os.access(system, os.X_OK) else sys.executable, "-S", str(self.folder / "arena_user.py"), str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=uid, group=uid, extra_groups=[], cwd="/",
        )  # fmt: skip

    def says(self, *command: Any) -> Any:
        """Have it do something."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line
        return json.loads(line)

    def close(self) -> None:
        self.process.communicate(timeout=20)
        shutil.rmtree(self.folder)


@pytest.fixture
def user(house: House) -> Iterator[Callable[[int], User]]:
    """Kernels of other users."""
    made: list[User] = []

    def make(uid: int) -> User:
        made.append(User(uid, house.path))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.root
@as_root
def test_nothing_of_one_user_is_mapped_into_anothers_process(
    house: House, user: Callable[[int], User]
) -> None:
    """A5: each has a file of their own; a token, a path and a lease after the other's end lead nowhere near the other's bytes."""
    house.path.parent.chmod(0o755)
    for parent in house.path.parents[:3]:
        parent.chmod(0o755)
    ann, bob = user(ANN), user(BOB)
    token = ann.says("open")
    hers = ann.says("lease", token, 8 * MiB)
    assert ann.says("fill", 65) == 8 * MiB
    mine = bob.says("open")
    his = bob.says("lease", mine, 8 * MiB)
    assert his["inode"] != hers["inode"]
    assert his["values"] == [0]
    assert bob.says("lease", token, 2 * MiB) == {"refused": "BadToken", "fds": 0}
    file = arenas(house)._of[Person(ANN)].file
    for path in (
        f"/proc/{ann.process.pid}/fd/{hers['fd']}",
        f"/proc/{os.getpid()}/fd/{file.fd}",
    ):
        assert bob.says("tries", path) in {"EACCES", "EPERM"}, path
    assert seen(house, BOB) == [(8 * MiB, 8 * MiB, 16 * MiB)]
    assert len(seen(house, 0)) == 2
    assert seen(house, 12345) == []
    ann.process.kill()
    house.saw(lambda: books(house, ANN) == (0, 8 * MiB))  # her memory rests: for her
    again = bob.says("lease", mine, 8 * MiB)
    assert again["inode"] == his["inode"]
    assert again["values"] == [0]
    assert books(house, ANN) == (0, 8 * MiB)
