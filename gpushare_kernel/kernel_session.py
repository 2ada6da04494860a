"""What whoever starts a kernel says to the broker: open, restart, bind, exempt, close.

One connection per exchange, blocking, with a timeout: a provisioner's methods run in several event
loops and threads, so nothing of a connection may outlive a call. What is kept are plain values.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpushare_kernel import __version__, procfs
from gpushare_kernel.client.start import start_again
from gpushare_kernel.core.errors import BadFrame, BadToken, BrokerUnavailable, Busy, NoBroker
from gpushare_kernel.core.values import ProcessKey, SessionId
from gpushare_kernel.transport.channel import connect, handshake
from gpushare_kernel.transport.peers import check_broker, peer_of
from gpushare_kernel.transport.places import Places, how_to_start, may_start
from gpushare_kernel.transport.words import ENDED, PAUSED
from gpushare_kernel.wire.messages import (
    SPOKEN,
    Bind,
    Close,
    Exempt,
    Hello,
    OfStarter,
    Open,
    Opened,
    Restart,
    TakePage,
    Welcome,
)

EXCHANGE_TIMEOUT = 10.0
"""Seconds for an exchange a kernel's start waits for."""
SIGNAL_TIMEOUT = 0.5
"""Seconds for each half (connect, answer) of an exchange that goes before a signal: no interrupt is late because of us."""
_AGAIN = 0.1
"""Seconds until a busy broker is asked again."""
INTERRUPT_EXEMPTION, END_EXEMPTION = 3.0, 15.0
"""Seconds without a pause for a signal that is taken in at once, and for an end: longer than jupyter_client waits for one."""
LOOK_EVERY = 2.0
"""Seconds between two looks of a starter whether broker and guardian are there (I4: within 5)."""

TOKEN, SESSION, SOCKET = "GPUSHARE_TOKEN", "GPUSHARE_SESSION", "GPUSHARE_SOCKET"
STARTER = "GPUSHARE_STARTER"
"""The pid of the provisioner's process: our launcher below it leaves the session to it."""
BEFORE = "GPUSHARE_BEFORE"
"""Why the kernel before this one ended, where nobody had asked for that; shown with the first cell."""
GRANT = "GPUSHARE_GRANT"
"""The session of a command that holds memory for all that it starts: kernels below it are part of that session, and open none."""
KERNEL_VARIABLES = (TOKEN, SESSION, SOCKET, STARTER, BEFORE, GRANT)
DEVICE = "GPUSHARE_DEVICE"
HUB_TOKEN = "JUPYTERHUB_API_TOKEN"  # noqa: S105  a variable's name
"""Of the server that starts the kernel: its hub says whose it is. The kernel has it, too, and is not asked."""
_VISIBLE, _ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
_FRACTION, _OLD_FRACTION = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
_NVIDIA = Path("/dev/nvidiactl")
"""Where this is missing there is no driver, and no lock of one."""
_UNLOCKING = (sys.executable, "-P", "-m", "gpushare_kernel.devices.unlocking")
"""Run, not imported: a notebook server never loads CUDA."""
_AGENT = f"gpushare-kernel {__version__} (Python {sys.version_info.major}.{sys.version_info.minor})"


class Page:
    """The session's shared page, as a file descriptor that is closed once, at the latest with its owner."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._closing = weakref.finalize(self, os.close, fd)

    def says_paused(self) -> bool:
        """Say whether the broker paused the session, or was about to."""
        return self._says(PAUSED)

    def says_ended(self) -> bool:
        """Say whether the broker ended the session's process, as its administrator wanted."""
        return self._says(ENDED)

    def _says(self, bit: int) -> bool:
        if not self._closing.alive:
            return False
        word = os.pread(self._fd, 4, 0)
        return bool(int.from_bytes(word, sys.byteorder) & bit)

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        self._closing()


@dataclass(slots=True)
class KernelSession:
    """A session as its starter knows it: plain values. `broker` is the process that answered last, `page_of` the one whose page we have.

    `variables` are what its device wants in its environment; `needs` are the bytes that it was known to need when it
    started, for the case that a broker forgets.
    """

    places: Places
    session: SessionId
    token: str
    page: Page | None = None
    broker: ProcessKey | None = None
    page_of: ProcessKey | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    needs: int = 0
    #: What its user should know of it; empty: nothing.
    remark: str = ""
    undoing: subprocess.Popen[bytes] | None = field(default=None, repr=False, compare=False)

    def environment(self) -> dict[str, str]:
        """Return what the kernel's process needs to find its session, and its device."""
        return {**self.variables, **self.keys()}

    def keys(self) -> dict[str, str]:
        """Return what the kernel's process needs to find its session."""
        return {
            TOKEN: self.token,
            SESSION: self.session,
            SOCKET: str(self.places.socket),
            STARTER: str(os.getpid()),
        }

    def joined(self, env: Mapping[str, str], *, grants: bool = False) -> dict[str, str]:
        """Return `env` with the session and its device in it; what its user has set there stays.

        With `grants` kernels that are started in it are part of this session, and of what it holds.

        Only the choice of a GPU is the broker's, unless the user wants none (an empty CUDA_VISIBLE_DEVICES, or -1).
        """
        hidden = env.get(_VISIBLE, "all").strip() in {"", "-1"}
        chosen = () if hidden else (_VISIBLE, _ORDER)
        new = {
            name: value
            for name, value in self.variables.items()
            if name in chosen or name not in env
        }
        joined = {**without_session(env), **new, **self.keys()}
        if grants:
            joined[GRANT] = self.session
        if _FRACTION in new:
            joined.pop(_OLD_FRACTION, None)  # JAX refuses its GPU where both are set
        return joined

    def bind(self, pid: int) -> None:
        """Tell the broker which process is the kernel. Raises ProcessLookupError where it is gone already."""
        pidfd = os.pidfd_open(pid)
        try:
            _exchange(self.places, Bind(self.session, self.token), EXCHANGE_TIMEOUT, (pidfd,))
        finally:
            os.close(pidfd)

    def exempt(self, *, briefly: bool = False) -> None:
        """Have the session resumed, and not paused until what comes now has been taken in: an end, or (`briefly`) an interrupt."""
        seconds = INTERRUPT_EXEMPTION if briefly else END_EXEMPTION
        _exchange(self.places, Exempt(self.session, self.token, seconds), SIGNAL_TIMEOUT)

    def close(self) -> None:
        """End the session at the broker (best said early; the broker finds out by itself too) and its page here."""
        if self.page is not None:
            self.page.close()
        if self.undoing is not None:
            self.undoing.poll()  # reaped, where it has ended
        with contextlib.suppress(BadToken):  # closed before
            _exchange(self.places, Close(self.session, self.token), SIGNAL_TIMEOUT)

    def broker_is_gone(self) -> bool:
        """Say whether nobody listens any more. Never blocks; a living broker does not notice the question."""
        if self.broker is not None and procfs.alive(self.broker):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.connect(str(self.places.socket))
            except BlockingIOError:  # its backlog is full: it is there, and busy
                return False
            except OSError:
                return True
            self.broker = procfs.process_key(peer_of(sock).pid)
        return False

    @property
    def page_is_stale(self) -> bool:
        """Whether our page is not of the broker that answered last."""
        return self.page is None or self.page_of != self.broker

    def renew_page(self) -> None:
        """Get the page of the broker that answers now."""
        _, fds, broker = _exchange(self.places, TakePage(self.session, self.token), SIGNAL_TIMEOUT)
        pages = [Page(fd) for fd in fds]
        if len(pages) != 1:
            msg = f"TakePage must be answered by one descriptor, but was by {len(pages)}."
            raise BadFrame(msg)
        old, self.page = self.page, pages[0]
        self.page_of = self.broker = broker
        if old is not None:
            old.close()

    def resume(self, pid: int) -> bool:
        """Continue the kernel's tree where the broker had it paused; for when broker and guardian are gone.

        Kernels below it are left to their own starters: sessions of their own, and perhaps of another broker. Where we have
        no page of the last broker, whoever stands still is taken for paused.
        """
        page = None if self.page_is_stale else self.page
        if page is not None and not page.says_paused():
            return False
        nested = {key.pid for key in procfs.tree(pid)[1:] if self._is_another(key.pid)}
        mine = procfs.tree(pid, nested)
        stopped = any(procfs.state(key.pid) == "T" for key in mine)
        for key in mine:
            with contextlib.suppress(PermissionError):  # a child that runs as somebody else
                procfs.send(key, signal.SIGCONT)
        if _NVIDIA.exists():
            self._undo_locks(mine)
        return stopped or page is not None

    def _undo_locks(self, processes: Sequence[ProcessKey]) -> None:
        """Have a process of its own undo the driver's locks, which no signal does. Nobody waits for it."""
        if self.undoing is not None and self.undoing.poll() is None:
            return
        numbers = [str(number) for key in processes for number in (key.pid, key.start_time)]
        with contextlib.suppress(OSError):
            self.undoing = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*_UNLOCKING, *numbers],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )

    def _is_another(self, pid: int) -> bool:
        """Say whether a process was started as part of another session."""
        # None: it has none, is gone, or is somebody else's; then it is taken for ours.
        return procfs.environ(pid, SESSION) not in (None, self.session)


def open_session(
    places: Places,
    name: str,
    *,
    kernel_id: str,
    language: str,
    weight: float,
    env: Mapping[str, str] | None = None,
    device: str = "",
    needs: int = 0,
    background: bool = False,
) -> KernelSession:
    """Open a session for a kernel that is about to start.

    Parameters
    ----------
    places
        Where the broker lives.
    name, kernel_id, language
        What the session is called, and whose it is.
    weight
        How it counts among its user's own.
    env
        The environment it starts in; ours where None.
    device
        A device's id or number. Empty: what `env` has as GPUSHARE_DEVICE; empty there too lets the broker choose.
    needs
        Bytes it is known to need, 0 where nothing is known.
    background
        It yields to every session that is not in the background.
    """
    return _opened(
        places,
        Open(
            name=name,
            kernel_id=kernel_id,
            language=language,
            weight=weight,
            device=device or (os.environ if env is None else env).get(DEVICE, ""),
            needs=needs,
            background=background,
            hub_token=os.environ.get(HUB_TOKEN, ""),
        ),
    )


def restart_session(old: KernelSession) -> KernelSession:
    """Say that the kernel starts anew; the session's id, weight and charge stay, its token does not.

    Raises
    ------
    BadToken
        Where the broker does not know the session any more.
    """
    new = _opened(old.places, Restart(old.session, old.token, os.environ.get(HUB_TOKEN, "")))
    new.undoing = old.undoing
    if old.page is not None:
        old.page.close()
    return new


def find_broker(places: Places, *, start: bool = True) -> None:
    """Make sure a broker answers at `places`; start one where that is allowed and wanted.

    Raises
    ------
    NoBroker
        Where none runs and none may be started.
    """
    if start and may_start(places):
        start_again(places, timeout=EXCHANGE_TIMEOUT)
        return
    try:
        connect(places.socket, EXCHANGE_TIMEOUT).close()
    except BrokerUnavailable as problem:
        why = (
            "this host has a system installation"
            if not may_start(places)
            else "starting one is switched off"
        )
        msg = f"no broker answers at {places.socket}, and {why}. Ask whoever runs it, or start it: {how_to_start(places)}"
        raise NoBroker(msg) from problem


def notebook_name(env: Mapping[str, str]) -> str:
    """Return the notebook's file name as jupyter_server passes it, or "" where it has none.

    A server that was told no name passes a folder, with a slash at its end.
    """
    return env.get("JPY_SESSION_NAME", "").rpartition("/")[2]


def granted(env: Mapping[str, str]) -> dict[str, str]:
    """Return what makes a kernel part of the command that holds memory for it; empty where `env` is of no such command.

    A kernel with a session of its own, and whatever is below it, is in none.
    """
    if not env.get(GRANT) or env[GRANT] != env.get(SESSION):
        return {}
    return {name: env[name] for name in KERNEL_VARIABLES if name in env and name != BEFORE}


def without_session(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` without what names a session: a nested kernel must not pass for its parent."""
    return {name: value for name, value in env.items() if name not in KERNEL_VARIABLES}


def _opened(places: Places, body: Open | Restart) -> KernelSession:
    welcome, fds, broker = _exchange(places, body, EXCHANGE_TIMEOUT)
    pages = [Page(fd) for fd in fds]  # owned at once: whatever fails from here on, none stays open
    opened = welcome.body
    if not isinstance(opened, Opened) or len(pages) != 1:
        answer = f"{type(opened).__name__} and {len(pages)} descriptors"
        msg = f"{type(body).__name__} must be answered by Opened and one descriptor, but was by {answer}."
        raise BadFrame(msg)
    return KernelSession(
        places,
        opened.session,
        opened.token,
        pages[0],
        broker,
        broker,
        opened.environment,
        opened.needs,
        opened.remark,
    )


def _exchange(
    places: Places,
    body: OfStarter,
    timeout: float,
    fds: tuple[int, ...] = (),
) -> tuple[Welcome, list[int], ProcessKey | None]:
    """Ask once; again where many of the same user come in at once, as after a broker's restart, until `timeout` is over."""
    until = time.monotonic() + timeout
    while True:
        try:
            return _asked(places, body, timeout, fds)
        except Busy:
            if time.monotonic() + _AGAIN >= until:
                raise
            time.sleep(_AGAIN)


def _asked(
    places: Places, body: OfStarter, timeout: float, fds: tuple[int, ...]
) -> tuple[Welcome, list[int], ProcessKey | None]:
    with connect(places.socket, timeout) as sock:
        check_broker(sock, places)
        welcome, received = handshake(sock, Hello(versions=SPOKEN, agent=_AGENT, body=body), fds)
        return welcome, received, procfs.process_key(peer_of(sock).pid)
