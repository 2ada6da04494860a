"""The client's side of a lease: mapped when it is used, gone when it is closed, its parent's after a fork (docs/arena.md)."""

from __future__ import annotations

import ctypes
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpushare_kernel.broker.budgets import Budgets
from gpushare_kernel.broker.persons import Person
from gpushare_kernel.client.arena import _checked, take
from gpushare_kernel.client.session import Session
from gpushare_kernel.core.errors import BadFrame, BrokerUnavailable, NoBroker, UserError
from gpushare_kernel.core.values import GiB, MiB
from gpushare_kernel.wire import messages as msg
from tests.broker.house import House

CHILD = """
import os, sys, types
from pathlib import Path
from gpushare_kernel.client.arena import take
token, path = sys.stdin.readline().split()
lease = take(types.SimpleNamespace(token=token, path=Path(path)), 2 * 2**20)
lease.buffer[:4] = b"mine"
here, there = os.pipe()
back, answer = os.pipe()
child = os.fork()
if not child:
    os.close(there)
    try:
        lease.buffer
        said = b"it is mapped"
    except Exception as problem:
        said = type(problem).__name__.encode()
    os.write(answer, said)
    os.read(here, 1)
    os._exit(0)
print(os.read(back, 100).decode(), lease.stands, bytes(lease.buffer[:4]).decode(), flush=True)
sys.stdin.readline()
lease.close()
print("closed", flush=True)
sys.stdin.readline()
os.write(there, b"x")
os.waitpid(child, 0)
"""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A broker whose host has room."""
    with House(tmp_path) as made:
        made.broker.arenas.budgets = Budgets(64 * MiB, 64 * MiB)
        made.broker.arenas.room = lambda: 64 * GiB
        yield made


@pytest.fixture
def session(house: House) -> Session:
    """This process's session there; it needs no connection of its own."""
    opened = house.open()
    house.bind(opened)
    return Session(opened.token, house.path)


def leased(house: House) -> int:
    """What the broker counts as leased."""
    return sum(one.extents.leased for one in house.broker.arenas._of.values())


def mapped() -> int:
    """How many pieces of arenas this process maps."""
    lines = Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
    return sum("gpushare-arena" in line for line in lines)


def open_files() -> int:
    """How many descriptors of arenas this process has, the broker's own included."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += "gpushare-arena" in str(entry.readlink())
        except FileNotFoundError:  # the one that lists them
            continue
    return found


def test_it_is_mapped_when_it_is_used_and_nothing_is_after_it(
    house: House, session: Session
) -> None:
    """A10: address and buffer are one memory; unmapped and mapped again it has the same bytes; closed it has none."""
    lease = take(session, 3 * MiB)
    assert not lease.mapped
    assert mapped() == 0
    lease.buffer[5:10] = b"bytes"
    assert mapped() == 1
    assert ctypes.string_at(lease.address + 5, 5) == b"bytes"
    ctypes.memmove(lease.address + lease.size - 3, b"end", 3)
    assert bytes(lease.buffer[-3:]) == b"end"
    lease.unmap()
    assert mapped() == 0
    assert bytes(lease.buffer[5:10]) == b"bytes"
    before = open_files()
    lease.close()
    assert mapped() == 0
    assert open_files() < before
    assert not lease.stands
    house.saw(lambda: leased(house) == 0)
    for use in (lambda: lease.buffer, lambda: lease.address):
        with pytest.raises(UserError, match="this lease is closed"):
            use()
    lease.close()


@pytest.mark.parametrize(
    "part",
    [lambda buffer: buffer[:4], (ctypes.c_char * 8).from_buffer],
    ids=["slice", "object"],
)
def test_a_part_that_somebody_keeps_keeps_all(house: House, session: Session, part: Any) -> None:
    """A10: it is neither unmapped under them nor given to somebody else."""
    lease = take(session, 2 * MiB)
    kept = part(lease.buffer)
    with pytest.raises(UserError, match="a part of a lease's buffer is in use"):
        lease.close()
    assert lease.stands
    assert mapped() == 1
    lease.buffer[:1] = b"x"
    del kept
    lease.close()
    assert mapped() == 0


def test_a_lease_that_nobody_keeps_ends(house: House, session: Session) -> None:
    """A4."""
    lease = take(session, 2 * MiB)
    assert lease.buffer
    assert leased(house) == 2 * MiB
    del lease
    house.saw(lambda: leased(house) == 0)
    assert mapped() == 0


def test_a_forked_child_does_not_hold_its_parents_lease(house: House) -> None:
    """A10: in the child it is closed, in the parent it works, and the broker sees its end while the child lives."""
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        opened = house.open("forks.ipynb")
        house.bind(opened, process.pid)
        process.stdin.write(f"{opened.token} {house.path}\n")
        process.stdin.flush()
        assert process.stdout.readline().split() == ["UserError", "True", "mine"]
        assert leased(house) == 2 * MiB
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "closed\n"
        house.saw(lambda: leased(house) == 0)
        assert process.poll() is None
    finally:
        process.communicate("\n", timeout=20)


def test_a_killed_kernel_leaves_its_memory_to_the_next(house: House, session: Session) -> None:
    """A4: no goodbye is needed."""
    script = "import os, sys, types\nfrom pathlib import Path\nfrom gpushare_kernel.client.arena import take\ntoken, path = sys.stdin.readline().split()\nlease = take(types.SimpleNamespace(token=token, path=Path(path)), 2**22)\nprint(lease.offset, flush=True)\nsys.stdin.readline()\n"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        opened = house.open("killed.ipynb")
        house.bind(opened, process.pid)
        process.stdin.write(f"{opened.token} {house.path}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "0\n"
        assert leased(house) == 4 * MiB
        process.kill()
        process.wait(20)
    house.saw(lambda: leased(house) == 0)
    assert (
        house.do(lambda: house.broker.snapshot(Person(os.geteuid()))).arenas[0].populated == 4 * MiB
    )


def test_nobody_there(tmp_path: Path, house: House, session: Session) -> None:
    """Errors of ours, within the limit."""
    with pytest.raises(NoBroker):
        take(SimpleNamespace(token="t", path=tmp_path / "nowhere.sock"), MiB)
    may = threading.Event()
    arenas = house.broker.arenas
    arenas._worker.submit(may.wait, 20)
    try:
        with pytest.raises(BrokerUnavailable, match="did not answer in time"):
            take(session, MiB, limit=0.1)
    finally:
        may.set()


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        (msg.Ok(), "answered with its arena, and Ok with 0"),
        (msg.ArenaLeased(2 * MiB, 4 * MiB, 8 * MiB), "lies inside its arena, and this is 4194304 from 2097152 in 4194304"),
        (msg.ArenaLeased(-2 * MiB, 2 * MiB, 4 * MiB), "lies inside its arena"),
        (msg.ArenaLeased(0, MiB // 2, 4 * MiB), "a lease of 1048576 bytes lies"),
    ],
)  # fmt: skip
def test_an_answer_that_would_be_a_sigbus_is_no_lease(answer: Any, rule: str) -> None:
    """A10: nothing behind the end of the file is ever mapped."""
    fd = os.memfd_create("there", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 4 * MiB)
        with pytest.raises(BadFrame, match=r"sealed against shrinking|answered with its arena"):
            _checked(answer, [fd] if isinstance(answer, msg.ArenaLeased) else [], MiB)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        with pytest.raises(BadFrame, match=rule):
            _checked(answer, [fd] if isinstance(answer, msg.ArenaLeased) else [], MiB)
    finally:
        os.close(fd)
