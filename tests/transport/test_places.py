"""Places: who finds which broker where, and no planted folder is ever used."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.transport import places as module
from gpushare_kernel.transport.places import (
    Places,
    check_socket_path,
    may_start,
    places,
    prepare,
    rehearse,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives folders to other uids")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start from an environment and a machine on which nothing is installed."""
    for name in ("GPUSHARE_RUNTIME_DIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "SYSTEM_RUNTIME", tmp_path / "run")
    monkeypatch.setattr(module, "SYSTEM_MARK", tmp_path / "etc")
    monkeypatch.setattr(module, "SYSTEM_STATE", tmp_path / "lib")
    monkeypatch.setattr(module, "SYSTEM_LOGS", tmp_path / "log")


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be somebody who is not root."""
    monkeypatch.setattr(os, "geteuid", lambda: 4242)


def test_the_named_folder_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """GPUSHARE_RUNTIME_DIR holds everything, log and ledger included."""
    monkeypatch.setenv("GPUSHARE_RUNTIME_DIR", str(tmp_path / "mine"))
    found = places()
    paths = (
        found.socket,
        found.broker_lock,
        found.start_lock,
        found.intents,
        found.ledger,
        found.log,
    )
    assert {path.parent for path in paths} == {tmp_path / "mine"}
    assert len(set(paths)) == len(paths)
    assert may_start(found)


@pytest.mark.usefixtures("user")
def test_a_users_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user's broker lives in the runtime folder, or in /tmp under the uid; its log in the state folder."""
    assert places() == Places(Path("/tmp/gpushare-4242"), system=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative/is/ignored")
    assert places().runtime == Path("/tmp/gpushare-4242")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = places()
    assert (found.runtime, found.ledger.parent) == (tmp_path / "gpushare", tmp_path / "gpushare")
    assert found.log == tmp_path / "state/gpushare/broker.log"
    assert may_start(found)


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize("sign", ["run/broker.sock", "etc"])
def test_a_system_installation_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sign: str
) -> None:
    """Beside a system broker, or where one is installed but not running, no user broker may be started."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / sign).parent.mkdir(exist_ok=True)
    (tmp_path / sign).touch()
    found = places()
    assert found == Places(tmp_path / "run", system=True)
    assert not may_start(found)


@as_root
def test_roots_places(tmp_path: Path) -> None:
    """Root's broker is the system's: its folders are made, open for all to find, writable for none."""
    found = places()
    assert (found.runtime, found.ledger.parent, found.log.parent) == (
        tmp_path / "run",
        tmp_path / "lib",
        tmp_path / "log",
    )
    assert may_start(found)
    prepare(found)
    assert stat.S_IMODE(found.runtime.stat().st_mode) == 0o755
    assert found.ledger.parent.is_dir()
    assert found.log.parent.is_dir()


def test_prepare_makes_a_private_folder(tmp_path: Path) -> None:
    """The folder is 0700 whatever the umask, its parents are made, and a second time changes nothing."""
    mine = Places(tmp_path / "deep/down/gpushare", system=False, named=True)
    before = os.umask(0o777)
    try:
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep").chmod(0o755)
        (tmp_path / "deep/down").mkdir()
        (tmp_path / "deep/down").chmod(0o755)
        prepare(mine)
    finally:
        os.umask(before)
    assert stat.S_IMODE(mine.runtime.stat().st_mode) == 0o700
    prepare(mine)
    assert stat.S_IMODE(mine.runtime.stat().st_mode) == 0o700


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o711])
def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path, mode: int, *, system: bool) -> None:
    """Somebody named it (their home, perhaps): it is neither opened to others nor closed to them."""
    named = Places(tmp_path / "gpushare", system=system, named=True)
    named.runtime.mkdir()
    named.runtime.chmod(mode)
    prepare(named)
    assert stat.S_IMODE(named.runtime.stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o700, 0o750])
def test_a_system_folder_that_keeps_the_users_out_is_refused(tmp_path: Path, mode: int) -> None:
    """A broker for everybody in a folder that not everybody can enter: the mode is named, and what to do."""
    system = Places(tmp_path / "gpushare", system=True)
    system.runtime.mkdir()
    system.runtime.chmod(mode)
    with pytest.raises(
        BrokerUnavailable, match=rf"its mode is {mode:04o}\..* chmod 755 .*gpushare"
    ):
        prepare(system)
    assert stat.S_IMODE(system.runtime.stat().st_mode) == mode


def _link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent / "elsewhere")


def _mode(mode: int) -> Callable[[Path], None]:
    def plant(path: Path) -> None:
        path.mkdir()
        path.chmod(mode)

    return plant


def _foreign(path: Path) -> None:
    path.mkdir(mode=0o700)
    os.chown(path, 4242, 4242)


PLANTED = [
    pytest.param(_link, "it is a link", id="link"),
    pytest.param(
        lambda path: path.symlink_to(path.parent / "nowhere"), "it is a link", id="dangling link"
    ),
    pytest.param(Path.touch, "it is not a folder", id="file"),
    pytest.param(_mode(0o770), r"others may write to it \(mode 0770\)", id="group"),
    pytest.param(_mode(0o1777), r"others may write to it \(mode 1777\)", id="world"),
    pytest.param(
        _foreign, "it belongs to uid 4242, and you are uid 0", id="foreign", marks=as_root
    ),
]


@pytest.mark.parametrize(("plant", "why"), PLANTED)
def test_planted_folders_are_refused(
    tmp_path: Path, plant: Callable[[Path], None], why: str
) -> None:
    """What another user could have made or can write to is refused, with the reason and a way out."""
    found = Places(tmp_path / "gpushare", system=False, named=True)
    plant(found.runtime)
    for look in (rehearse, prepare):
        with pytest.raises(BrokerUnavailable, match=why + ".*set GPUSHARE_RUNTIME_DIR"):
            look(found)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """The system's own reason is part of the text."""
    (tmp_path / "file").touch()
    found = Places(tmp_path / "file/gpushare", system=False, named=True)
    with pytest.raises(BrokerUnavailable, match="cannot be made: File exists"):
        prepare(found)
    with pytest.raises(BrokerUnavailable, match="cannot be made: Not a directory"):
        rehearse(found)


@pytest.mark.parametrize("look", [rehearse, prepare])
def test_a_folder_that_is_not_there_and_cannot_be(look: Callable[[Places], None]) -> None:
    """Nothing is there to be removed: where it cannot be is said, and what to do."""
    found = Places(Path("/proc/nowhere/deep"), system=False, named=True)
    with pytest.raises(
        BrokerUnavailable, match=r"no folder can be made in /proc\. Set GPUSHARE_RUNTIME_DIR"
    ):
        look(found)


def test_a_rehearsal_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither the folder nor those above it, nor what it was tried with."""
    rehearse(Places(tmp_path / "deep/down/gpushare", system=False, named=True))
    assert list(tmp_path.iterdir()) == []


def test_an_over_long_path_is_refused_with_the_numbers(tmp_path: Path) -> None:
    """107 bytes fit a socket address, 108 do not; nothing is made."""
    room = 107 - len(str(tmp_path)) - len("/broker.sock") - 1
    prepare(Places(tmp_path / ("x" * room), system=False, named=True))
    too_long = Places(tmp_path / ("y" * (room + 1)), system=False, named=True)
    with pytest.raises(BrokerUnavailable, match="may have 107 bytes, this one has 108"):
        prepare(too_long)
    assert not too_long.runtime.exists()
    with pytest.raises(BrokerUnavailable, match="has 122"):
        check_socket_path(Path("/" + "é" * 60 + "x"))
