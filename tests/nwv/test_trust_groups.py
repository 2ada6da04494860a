"""Pages that users of one trust group share: another user's process maps them, reads them and cannot change them (docs/admin/groups.md)."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpushare_kernel.broker.persons import Person, user_name
from gpushare_kernel.broker.settings import Group, Settings
from gpushare_kernel.nwv.bundle import Bundle
from gpushare_kernel.transport.frames import pack
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.codec import decode_welcome, encode
from tests.broker.house import House
from tests.nwv.bundles import Made, made, nets
from tests.nwv.held import held as all_held

NOBODY = 65534
STRANGER = """
import array, json, mmap, os, socket, sys
for line in sys.stdin:
    frame = bytes.fromhex(line)
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(frame)
    data, ancillary, _, _ = s.recvmsg(1 << 16, socket.CMSG_SPACE(16))
    while len(data) < 4 + int.from_bytes(data[:4], "little"): data += s.recv(1 << 16)
    said = {"welcome": data[4:].hex(), "inode": None}
    for _, _, raw in ancillary:
        (fd,) = array.array("i", raw)
        size = os.fstat(fd).st_size
        said["inode"] = os.fstat(fd).st_ino
        said["read"] = sum(mmap.mmap(fd, size, prot=mmap.PROT_READ)[:4096]) >= 0
        try:
            mmap.mmap(fd, size, prot=mmap.PROT_READ | mmap.PROT_WRITE); said["wrote"] = True
        except OSError:
            said["wrote"] = False
    print(json.dumps(said), flush=True)
    s.close()
"""
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/usr/bin/python3", os.X_OK), reason="becomes another user"
)


class Stranger:
    """A kernel of another user, which asks for the bundle `eyes`."""

    def __init__(self, house: House) -> None:
        self.process = subprocess.Popen(
            ["/usr/bin/python3", "-I", "-S", "-c", STRANGER, str(house.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            user=NOBODY, group=NOBODY, extra_groups=[], cwd="/",
        )  # fmt: skip
        opened = house.open("theirs.ipynb")
        house.bind(opened, self.process.pid)  # by root, for a process of theirs: it is theirs
        self._token = opened.token

    def maps(self) -> tuple[Any, dict[str, Any]]:
        """Return the broker's answer, and what was found of the pages."""
        return self.asks()()

    def asks(self) -> Callable[[], tuple[Any, dict[str, Any]]]:
        """Ask for it; return what waits for the answer."""
        hello = msg.Hello(msg.SPOKEN, "test", msg.MapBundle(self._token, "eyes"))
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(pack(encode(hello), msg.TO_BROKER_LIMIT).hex() + "\n")
        self.process.stdin.flush()
        answers = self.process.stdout

        def answer() -> tuple[Any, dict[str, Any]]:
            said = json.loads(answers.readline())
            return decode_welcome(bytes.fromhex(said["welcome"])).body, said

        return answer


@pytest.fixture
def stranger(house: House, tmp_path: Path) -> Iterator[Stranger]:
    """Somebody else, who reaches the socket."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    made_ = Stranger(house)
    yield made_
    made_.process.communicate(timeout=20)


def offered() -> tuple[Made, Bundle]:
    """Two packed nets, and the bundle `eyes` in which this user shares their pages."""
    one = made(nets(2), bits=8)
    bundle = Bundle(one.packed, one.modules, device="cpu")
    bundle.share("eyes")
    return one, bundle


def trust(house: House, *names: str) -> None:
    """Have users of these names trust each other."""
    group = Group("vision", frozenset(names), trust="eyes")
    house.do(lambda: house.broker.groups.follow(Settings(groups=(group,))))


def test_another_user_of_the_trust_group_maps_the_pages_and_cannot_change_them(
    house: House, stranger: Stranger
) -> None:
    """The same memory; nobody outside the group gets it, and views show it to its members."""
    me, them = user_name(os.geteuid()), user_name(NOBODY)
    trust(house, me, them)
    _one, bundle = offered()
    assert bundle.region is not None
    held, said = stranger.maps()
    assert isinstance(held, msg.BundleHeld)
    assert said["inode"] == os.fstat(bundle.region.fd).st_ino
    assert (said["read"], said["wrote"]) == (True, False)
    (view,) = house.do(lambda: house.broker.snapshot(Person(NOBODY))).bundles
    assert view.name == "eyes"


def test_whose_trust_ends_by_a_reload_is_mapped_by_nobody_new(
    house: House, stranger: Stranger
) -> None:
    """The owner is not in the group any more: others find nothing, the owner finds the own; back in it, others do, too."""
    me, them = user_name(os.geteuid()), user_name(NOBODY)
    trust(house, me, them)
    one, _bundle = offered()
    first, _ = stranger.maps()
    assert isinstance(first, msg.BundleHeld)
    trust(house, them)
    answer, said = stranger.maps()
    assert isinstance(answer, msg.Failure)
    assert "you have no bundle 'eyes'" in answer.message
    assert said["inode"] is None
    assert house.do(lambda: house.broker.snapshot(Person(NOBODY))).bundles == ()
    Bundle.shared("eyes", one.modules, device="cpu").unmap()
    trust(house, me, them)
    again, _ = stranger.maps()
    assert isinstance(again, msg.BundleHeld)


def test_trust_that_begins_by_a_reload_holds_for_what_was_shared_before(
    house: House, stranger: Stranger
) -> None:
    """Also where it begins while somebody waits for the pages."""
    _one, _bundle = offered()
    assert isinstance(stranger.maps()[0], msg.Failure)
    trust(house, user_name(os.geteuid()), user_name(NOBODY))
    assert isinstance(stranger.maps()[0], msg.BundleHeld)


def test_trust_that_ends_while_somebody_waits_for_the_pages_has_ended(
    house: House, stranger: Stranger
) -> None:
    """They are given out to whoever is trusted when they are filled, not to whoever was."""
    me, them = user_name(os.geteuid()), user_name(NOBODY)
    trust(house, me, them)
    _one, _bundle = offered()
    (held,) = all_held(house)
    house.do(held.filled.clear)
    waiting = stranger.asks()
    house.saw(lambda: held.filled._waiters)
    trust(house, them)
    house.do(held.filled.set)
    answer, said = waiting()
    assert isinstance(answer, msg.Failure)
    assert "you have no bundle 'eyes'" in answer.message
    assert said["inode"] is None


def test_two_of_one_name_that_come_into_one_group_are_told_apart(
    house: House, stranger: Stranger
) -> None:
    """One's own is meant; a third is told whose there are."""
    one, _bundle = offered()
    (held,) = all_held(house)
    theirs = dataclasses.replace(held, owner=Person(NOBODY + 1))
    key = theirs.owner, "played0", "eyes"
    house.do(lambda: house.broker.bundles._held.update({key: theirs}))
    others = user_name(os.geteuid()), user_name(NOBODY + 1)
    trust(house, user_name(NOBODY), *others)
    answer, _ = stranger.maps()
    assert isinstance(answer, msg.Failure)
    assert f"{' and '.join(sorted(others))} have a bundle 'eyes' each" in answer.message
    Bundle.shared("eyes", one.modules, device="cpu").unmap()
    house.do(lambda: house.broker.bundles._held.pop(key))


def test_whoever_is_not_in_it_is_told_that_there_is_none(house: House, stranger: Stranger) -> None:
    """Without a trust group each user's bundles are its own."""
    _one, _bundle = offered()
    answer, said = stranger.maps()
    assert isinstance(answer, msg.Failure)
    assert "you have no bundle 'eyes' on this device; there are: none" in answer.message
    assert said["inode"] is None
    assert house.do(lambda: house.broker.snapshot(Person(NOBODY))).bundles == ()
