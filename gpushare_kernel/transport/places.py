"""Where a broker lives: its folder, its socket, its locks, its ledger, its logs, its administrator's file."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.transport.options import merged, noted, told

SYSTEM_RUNTIME = Path("/run/gpushare")
SYSTEM_MARK = Path("/etc/gpushare")
SYSTEM_STATE = Path("/var/lib/gpushare")
SERVICE = "service"
"""A file of this name in SYSTEM_MARK names the service that starts the system broker: then nobody else does."""
SYSTEM_LOGS = Path("/var/log/gpushare")
LONGEST_SOCKET_PATH = 107
"""`sun_path` has 108 bytes, the last one is NUL."""
_MAY_ENTER = stat.S_IXGRP | stat.S_IXOTH


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of one broker. `named` is set where GPUSHARE_RUNTIME_DIR gave the folder: then all is in it."""

    runtime: Path
    system: bool
    named: bool = False

    @property
    def socket(self) -> Path:
        """Where clients connect."""
        return self.runtime / "broker.sock"

    @property
    def broker_lock(self) -> Path:
        """Held (flock) by the living broker."""
        return self.runtime / "broker.lock"

    @property
    def start_lock(self) -> Path:
        """Held (flock) by whoever starts a broker, and by one that exits for idleness."""
        return self.runtime / "start.lock"

    @property
    def stopped(self) -> Path:
        """Is there while nobody but a new notebook, or a person, may start a broker: the last one was stopped on purpose."""
        return self.runtime / "stopped"

    @property
    def again(self) -> Path:
        """The arguments of the broker that lives here, or was killed here: JSON, for whoever starts it again."""
        return self.runtime / "again"

    @property
    def intents(self) -> Path:
        """The table of processes that are paused, or about to be."""
        return self.runtime / "intents"

    @property
    def ledger(self) -> Path:
        """The database of sessions and accounts."""
        folder = SYSTEM_STATE if self.system and not self.named else self.runtime
        return folder / "ledger.sqlite"

    @property
    def settings(self) -> Path | None:
        """The administrator's file, where this broker has a place for one."""
        return SYSTEM_MARK / "gpushare.toml" if self.system and not self.named else None

    @property
    def settings_kept(self) -> Path:
        """What was last read of it, for a broker that is started again after a crash."""
        return self.runtime / "settings.kept"

    @property
    def audit(self) -> Path:
        """What administrators did, JSON lines."""
        return self.log.with_name("audit.jsonl")

    @property
    def log(self) -> Path:
        """The broker's log, JSON lines."""
        if self.named:
            return self.runtime / "broker.log"
        return (SYSTEM_LOGS if self.system else _user_state()) / "broker.log"


def places() -> Places:
    """Return where this process finds its broker. Creates nothing.

    `GPUSHARE_RUNTIME_DIR` names the folder; else a system broker (or a system installation) wins;
    else it is the user's own runtime folder.
    """
    is_root = os.geteuid() == 0
    named = os.environ.get("GPUSHARE_RUNTIME_DIR")
    if named:
        return Places(Path(named).absolute(), system=is_root, named=True)
    if is_root or (SYSTEM_RUNTIME / "broker.sock").exists() or SYSTEM_MARK.exists():
        return Places(SYSTEM_RUNTIME, system=True)
    own = os.environ.get("XDG_RUNTIME_DIR")
    if own and Path(own).is_absolute():
        return Places(Path(own) / "gpushare", system=False)
    return Places(Path(f"/tmp/gpushare-{os.geteuid()}"), system=False)  # noqa: S108  prepare() refuses planted folders


def may_start(places: Places) -> bool:
    """Say whether this user may start a broker there: never a user broker beside a system installation, nor beside its service."""
    if service_of(places):
        return False
    if os.geteuid() == 0:
        return True
    return places.named or not places.system


def service_of(places: Places) -> str:
    """Return the name of the service that starts the broker there; empty where none does."""
    if places.named or not places.system:
        return ""
    try:
        return (SYSTEM_MARK / SERVICE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def how_to_start(places: Places) -> str:
    """Return the command by which an administrator starts the broker there."""
    service = service_of(places)
    return f"systemctl start {service}" if service else "jupyter gpushare start"


def how_to_restart(places: Places, options: str = "", running: Sequence[str] | None = None) -> str:
    """Return the commands by which an administrator has another broker there, with `options` beside those that it has.

    A service has them in its unit, where installing anew leaves them. Otherwise they are `running`; None: what the broker that
    lives there has noted.
    """
    service = service_of(places)
    again = f"systemctl restart {service}"
    if service:
        written = f"jupyter gpushare install --hub {options}; systemctl daemon-reload; "
        return f"{written}{again}" if options else again
    before = noted(places.again) if running is None else running
    words = shlex.join(merged(told(before), shlex.split(options)))
    return f"jupyter gpushare stop; jupyter gpushare start {words}".rstrip()


def may_revive(places: Places) -> bool:
    """Say whether this user may start a broker there unasked, because the last one is gone."""
    return may_start(places) and not places.stopped.exists()


def was_stopped(socket: Path) -> bool:
    """Say whether somebody ended the broker of `socket` for good: then nobody restarts it, and waiting is in vain."""
    return Places(socket.parent, system=False, named=True).stopped.exists()


def prepare(places: Places) -> None:
    """Create the broker's folders, safely: what somebody else may have planted is refused.

    What is there already keeps its mode: it may be anybody's home.

    Raises
    ------
    BrokerUnavailable
        Where the folder is a link, another user's, writable for others, cannot be made,
        makes the socket's path longer than the kernel takes, or keeps the users of a system broker out.
    """
    check_socket_path(places.socket)
    _own_folder(places.runtime, 0o755 if places.system else 0o700)
    if places.system and not places.named:
        # Who named a folder chose, with its mode, who comes in.
        _check_open(places.runtime)
    for folder in _beside(places):
        # An administrator may have made these with a group of their own, so only making them is ours.
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as problem:
            raise _not_made(folder, problem) from problem


def rehearse(places: Places) -> None:
    """Find out whether `prepare` would do, and leave nothing behind.

    Raises
    ------
    BrokerUnavailable
        As `prepare` does.
    """
    check_socket_path(places.socket)
    if os.path.lexists(places.runtime):
        check_folder(places.runtime)
        if places.system and not places.named:
            _check_open(places.runtime)
    for folder in [places.runtime, *_beside(places)]:
        if folder.is_dir():
            continue
        try:
            # Only making one tells: what may be made in /proc, say, no mode shows.
            Path(tempfile.mkdtemp(prefix=".gpushare-", dir=_nearest(folder))).rmdir()
        except OSError as problem:
            raise _not_made(folder, problem) from problem


def _beside(places: Places) -> set[Path]:
    """Return the broker's other folders."""
    return {places.ledger.parent, places.log.parent} - {places.runtime}


def _nearest(folder: Path) -> Path:
    """Return `folder`, or the nearest above it that is there."""
    return next(one for one in (folder, *folder.parents) if os.path.lexists(one))


def check_socket_path(path: Path) -> None:
    """Refuse a path that does not fit a socket address, with the numbers."""
    length = len(os.fsencode(path))
    if length > LONGEST_SOCKET_PATH:
        msg = (
            f"a socket path may have {LONGEST_SOCKET_PATH} bytes, this one has {length}: {path}. "
            "Set GPUSHARE_RUNTIME_DIR (or XDG_RUNTIME_DIR) to a shorter folder."
        )
        raise BrokerUnavailable(msg)


def check_folder(folder: Path) -> None:
    """Refuse a folder that somebody other than us or root could have made or can write to."""
    found, own = folder.lstat(), os.geteuid()
    if stat.S_ISLNK(found.st_mode):
        raise _unusable(folder, f"it is a link (to {folder.readlink()})")
    if not stat.S_ISDIR(found.st_mode):
        raise _unusable(folder, "it is not a folder")
    if found.st_uid != own:
        raise _unusable(folder, f"it belongs to uid {found.st_uid}, and you are uid {own}")
    if found.st_mode & 0o022:
        raise _unusable(folder, f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o})")


def _own_folder(folder: Path, mode: int) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=mode)  # with its mode at once: others may look at it just now
            folder.chmod(mode)  # whatever the umask
        check_folder(folder)
    except OSError as problem:
        raise _not_made(folder, problem) from problem


def _check_open(folder: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & _MAY_ENTER != _MAY_ENTER:
        msg = (
            f"every user of this machine must be able to enter the system broker's folder {folder}, "
            f"but its mode is {mode:04o}. Allow it: chmod 755 {folder}."
        )
        raise BrokerUnavailable(msg)


def _unusable(folder: Path, why: str) -> BrokerUnavailable:
    return BrokerUnavailable(
        f"the broker's folder {folder} must be a folder that only you can write to, but {why}. "
        "Remove it, or set GPUSHARE_RUNTIME_DIR to a folder of yours."
    )


def _not_made(folder: Path, problem: OSError) -> BrokerUnavailable:
    why = problem.strerror or str(problem)
    if isinstance(problem, FileNotFoundError):
        why = f"no folder can be made in {_nearest(folder)}"
    return BrokerUnavailable(
        f"the broker's folder {folder} cannot be made: {why}. Set GPUSHARE_RUNTIME_DIR to a folder of yours."
    )


def _user_state() -> Path:
    base = os.environ.get("XDG_STATE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "gpushare"
    return Path.home() / ".local/state/gpushare"
