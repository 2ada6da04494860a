"""Who uses the device without a session: adopted where a person's, counted where not, never touched where a display."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpushare_kernel.broker.adoption import Adoption, Foreign, adopted_name, first_uid
from gpushare_kernel.core.values import GiB, ProcessKey
from gpushare_kernel.devices.base import Stranger
from tests.procs import Program

ANN, BOB, ROOT, DAEMON, NOBODY = 1000, 1001, 0, 998, 65534


class World:
    """A broker as adoption sees it: processes with parents, sessions by uid."""

    def __init__(self, foreign: Foreign = Foreign.ADOPT) -> None:
        self.parents: dict[int, int] = {}
        self.taken: list[int] = []
        self.users: set[int] = set()
        self.full = False
        self.adoption = Adoption(
            foreign,
            take=self.take,
            has_sessions=self.users.__contains__,
            below=self.below,
            first_person=1000,
        )

    def take(self, one: Stranger) -> bool:
        if not self.full:
            self.taken.append(one.key.pid)
        return not self.full

    def below(self, pid: int, ancestor: int) -> bool:
        return pid == ancestor or (pid in self.parents and self.below(self.parents[pid], ancestor))

    def look(self, *strangers: Stranger, times: int = 1) -> list[int]:
        """Look so often, and return who was adopted since."""
        self.taken.clear()
        for _ in range(times):
            self.adoption.look(strangers)
        return list(self.taken)


def process(pid: int, uid: int = ANN, *, size: int = GiB, display: bool = False) -> Stranger:
    return Stranger(ProcessKey(pid, 7), uid, size, "python train.py", display)


@pytest.fixture
def world() -> World:
    return World()


def test_the_second_look_adopts(world):
    """A short command and a kernel that is just being bound are gone, or known, by then."""
    assert world.look(process(1)) == []
    assert world.look(process(1)) == [1]


def test_looks_count_in_a_row(world):
    """Whoever was away in between begins anew, and so does another process with its pid."""
    world.look(process(1))
    world.look()
    assert world.look(process(1)) == []
    reused = Stranger(ProcessKey(1, 8), ANN, GiB, "other")
    assert world.look(reused) == []
    assert world.look(reused) == [1]


@pytest.mark.parametrize(
    ("uid", "adopted"),
    [
        *[(uid, True) for uid in (ANN, 60000, 65533, 200001, 1678400500, 2**31)],
        *[(uid, False) for uid in (ROOT, DAEMON, 61184, 65519, NOBODY, 65535, 2**32 - 1)],
    ],
)
def test_people_are_adopted_and_daemons_are_not(world, uid, adopted):
    """A known user is an account of a person, of this host or of a directory; services of systemd have none."""
    assert world.look(process(1, uid), times=3) == [1] * adopted * 2  # it stays a stranger here


@pytest.mark.parametrize("uid", [ROOT, DAEMON])
def test_whoever_has_sessions_here_is_known(world, uid):
    """Where root (or a service) has notebooks, its scripts take part as well."""
    world.users.add(uid)
    assert world.look(process(1, uid), times=2) == [1]


def test_displays_are_never_touched(world):
    """They read as desktop, whoever owns them."""
    world.users.add(ROOT)
    shown = [process(1, ANN, display=True), process(2, ROOT, size=3 * GiB, display=True)]
    assert world.look(*shown, times=5) == []
    assert (world.adoption.desktop, world.adoption.foreign_memory) == (4 * GiB, 0)


def test_of_a_tree_the_topmost_becomes_the_session(world):
    """Its workers are part of it; another user's process below it is that user's."""
    world.parents = {2: 1, 3: 2, 4: 1}
    tree = [process(3), process(2), process(1), process(4, BOB)]
    assert world.look(*tree, times=2) == [1, 4]


def test_a_parent_that_comes_later_does_not_hold_up_its_child(world):
    """The child is a session already; the device names only the parent then."""
    world.parents = {2: 1}
    assert world.look(process(2), times=2) == [2]
    assert world.look(process(1), times=2) == [1]


def test_what_cannot_be_adopted_is_not_tried_each_second(world):
    """It stays foreign memory; a new process of the same user is tried again."""
    world.full = True
    world.look(process(1), times=3)
    world.full = False
    assert world.look(process(1), times=3) == []
    assert world.adoption.foreign_memory == GiB
    assert world.look(process(1), process(2), times=2) == [2]
    assert world.adoption.foreign_memory == GiB


def test_foreign_memory_is_that_of_strangers_who_are_no_sessions(world):
    """Whoever is adopted in this look is not counted any more, nor are those below it."""
    world.parents = {2: 1}
    seen = [process(1), process(2), process(3, ROOT, size=2 * GiB)]
    world.look(*seen)
    assert world.adoption.foreign_memory == 4 * GiB
    world.look(*seen)
    assert world.adoption.foreign_memory == 2 * GiB


def test_a_broker_that_ignores_strangers_counts_them():
    """A user's broker adopts nobody, and says what they hold."""
    world = World(Foreign.IGNORE)
    assert world.look(process(1), process(2, display=True), times=3) == []
    assert (world.adoption.foreign_memory, world.adoption.desktop) == (GiB, GiB)
    assert world.adoption.adoptable([process(1)]) == []


def test_ancestry_is_that_of_real_processes():
    """Without a played world, the kernel's word counts who is below whom."""
    taken: list[int] = []
    adoption = Adoption(
        Foreign.ADOPT,
        take=lambda one: bool(taken.append(one.key.pid)) or True,
        has_sessions=lambda uid: uid == os.getuid(),
    )
    child = "import sys; sys.stdin.read()"
    code = f"p = subprocess.Popen([sys.executable, '-S', '-c', {child!r}], stdin=subprocess.PIPE); say(p.pid); wait()"
    with Program(code) as parent, Program("say('up'); wait()") as other:
        (pid,) = parent.said_pids()
        other.said()
        uid = os.getuid()
        seen = [Stranger(ProcessKey(p, 1), uid, GiB, "x") for p in (pid, parent.pid, other.pid)]
        for _ in range(2):
            adoption.look(seen)
        assert taken == [parent.pid, other.pid]


def test_an_adopted_process_is_called_what_it_is():
    """The list tells it from a notebook."""
    assert adopted_name(process(1)) == "python train.py (adopted)"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("# UID_MIN 7\nUID_MIN\t\t  500 # people\nUID_MAX 60000\n", 500),
        ("UID_MIN x\n", 1000),
        ("", 1000),
    ],
)
def test_where_people_begin_is_what_the_host_says(tmp_path: Path, text: str, first: int) -> None:
    """UID_MIN of login.defs; 1000 where it says nothing, or is not there."""
    path = tmp_path / "login.defs"
    assert first_uid(path) == 1000
    path.write_text(text)
    assert first_uid(path) == first


def test_whose_name_is_not_known_yet_is_taken_in_once_it_is() -> None:
    """A directory of users that is slow is not waited for."""
    taken: list[int] = []
    known: set[int] = set()
    adoption = Adoption(
        Foreign.ADOPT,
        take=lambda one: bool(taken.append(one.key.pid)) or True,
        has_sessions=lambda _: False,
        has_name=known.__contains__,
        first_person=1000,
    )
    seen = [Stranger(ProcessKey(7, 1), ANN, GiB, "x")]
    for _ in range(3):
        adoption.look(seen)
    assert not taken
    known.add(ANN)
    adoption.look(seen)
    assert taken == [7]
