"""The hosts that kernels may go to, each asked by a thread of its own: a start never waits for one that is gone.

A host that does not answer in time is away, is passed over, and is tried again. While no kernel was started for some
minutes and none of ours runs there, a host is not asked, and nothing of ours is connected to it.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from gpushare_kernel import __version__
from gpushare_kernel.core.errors import HostAway
from gpushare_kernel.hub.placement import DeviceState, HostState, Order, Wish, order
from gpushare_kernel.hub.report import (
    Answer,
    BadLine,
    Done,
    Failed,
    Launch,
    Launched,
    Look,
    Pid,
    Question,
    Seen,
    Signal,
    encode,
    read_answer,
)
from gpushare_kernel.hub.ssh import Asked, Login

_AGENT = ("-P", "-m", "gpushare_kernel.hub.agent")
_NOT_YET = "it has not answered yet"


@dataclass(frozen=True, slots=True)
class Pace:
    """How hosts are asked, in seconds: how often, how long for an answer (and for a connection), how long for a login (a busy host
    starts a Python slowly); how soon again where there was none, and where that needs somebody's hand first; how long a host
    is passed over in which a kernel did not start; how long hosts are asked after the last start.
    """

    every: float = 2.0
    limit: float = 3.0
    login: float = 10.0
    again: float = 2.0
    lasting: float = 60.0
    suspect: float = 30.0
    linger: float = 300.0


class Host:
    """One of them. What it says of itself may be read at any time; `away` says why it is of no use now."""

    def __init__(
        self,
        name: str,
        login: Login,
        python: str,
        *,
        pace: Pace,
        log: logging.Logger,
        changed: threading.Condition,
    ) -> None:
        self.name = name
        #: Notified when something new is known of it, or of another one of the pool.
        self.changed = changed
        self.address = ""
        self._login, self._command, self._pace, self._log = login, (python, *_AGENT), pace, log
        self._line = threading.Lock()  # one question at a time
        self._asked: Asked | None = None
        self._devices: tuple[DeviceState, ...] = ()
        self._driver = ""
        self._away = _NOT_YET
        self._told = ""
        self._seen = -pace.linger
        self._suspect: tuple[float, str] = (0.0, "")
        self._coming: dict[str, tuple[int, bool]] = {}
        self._kernels: dict[str, Pid] = {}
        self._gone: set[Pid] = set()
        self._ending: set[Pid] = set()
        self._wanted = time.monotonic()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name=f"gpushare-{name}", daemon=True)
        self._thread.start()

    # --- what is known -------------------------------------------------------------------------------

    def state(self) -> HostState:
        """Return what a placement needs to know."""
        with self.changed:
            until, why = self._suspect
            suspect = why if time.monotonic() < until else ""
            return HostState(
                self.name,
                self._devices,
                tuple(needs for needs, _ in self._coming.values()),
                self._driver,
                self._away or suspect,
            )

    def settled(self) -> bool:
        """Say whether what is known of it is fresh, or that it is away: nothing to wait for."""
        fresh = time.monotonic() - self._seen < 2 * self._pace.every + self._pace.limit
        return fresh if not self._away else self._away != _NOT_YET

    def is_away(self) -> bool:
        """Say whether it does not answer now."""
        return bool(self._away)

    def is_gone(self, process: Pid) -> bool:
        """Say whether the host said that a kernel's process has ended. One on a host that is away has not, as far as is known."""
        return process in self._gone

    def want(self) -> None:
        """A kernel is to be started: have it asked, if it was left alone."""
        self._wanted = time.monotonic()
        if self._away == _NOT_YET or not self.settled():
            self.ask_now()

    def ask_now(self) -> None:
        """Have it asked at once, and not when it is time."""
        self._wake.set()

    # --- kernels ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def coming(self, kernel: str, needs: int) -> Iterator[None]:
        """Count a kernel that is started in the block as there, until the host's broker counts it."""
        with self.changed:
            self._coming[kernel] = (needs, False)
        try:
            yield
        except BaseException:
            with self.changed:
                self._coming.pop(kernel, None)
            raise
        with self.changed:
            if kernel in self._coming:
                self._coming[kernel] = (needs, True)
        self.ask_now()

    def launch(self, kernel: str, launch: Launch) -> Pid:
        """Start a kernel there; returns its process. `HostAway` where that fails."""
        answer = self._exchange(launch)
        if not isinstance(answer, Launched):
            raise HostAway(_why(answer))
        self.keep(kernel, answer.process)
        return answer.process

    def keep(self, kernel: str, process: Pid) -> None:
        """Look after a kernel that runs there."""
        with self.changed:
            self._kernels[kernel] = process

    def forget(self, kernel: str) -> None:
        """Look after it no more."""
        with self.changed:
            process = self._kernels.pop(kernel, None)
            if process is not None:
                self._gone.discard(process)

    def signal(self, process: Pid, number: int) -> Done:
        """Have a kernel run on, and signal it (0: not). `HostAway` where the host cannot be told."""
        answer = self._exchange(Signal(process, number))
        if not isinstance(answer, Done):
            raise HostAway(_why(answer))
        if not answer.there:
            with self.changed:
                self._gone.add(process)
        return answer

    def end(self, process: Pid) -> None:
        """End a kernel that nobody wants any more, now, or once the host answers again."""
        with self.changed:
            self._ending.add(process)
        self.ask_now()

    def suspect(self, why: str) -> None:
        """Pass it over for a while: a kernel did not start there."""
        with self.changed:
            self._suspect = (time.monotonic() + self._pace.suspect, why)

    # --- asking ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ask no more, and hang up."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _exchange(self, question: Question) -> Answer:
        """Ask, over the connection there is. It is closed where that fails: an answer that comes late is nobody's."""
        if not self._line.acquire(timeout=self._pace.limit):
            msg = f"it has not answered for {self._pace.limit:g} s"
            raise HostAway(msg)
        try:
            return self._answer(question)
        except Exception as problem:
            away = _away_by(problem)
            self._hang_up()
            self._lose(away)
            if away is problem:
                raise
            raise away from problem
        finally:
            self._line.release()

    def _answer(self, question: Question) -> Answer:
        if self._asked is None:
            raise HostAway(self._away or _NOT_YET)
        try:
            return read_answer(self._asked.ask(encode(question), self._pace.limit))
        except BadLine as problem:
            msg = f"its answer cannot be read ({problem}). Install the same gpushare on both"
            raise HostAway(msg, lasting=True) from problem

    def _watch(self) -> None:
        while not self._closed:
            try:
                self._look()
                pause = self._pace.every
            except Exception as problem:  # noqa: BLE001 - whatever it is, this host is asked again, and says why it is of no use
                away = _away_by(problem)
                self._lose(away)
                pause = self._pace.lasting if away.lasting else self._pace.again
            if not self._needed():
                self._sleep()
            self._wake.wait(pause)
            self._wake.clear()
        with self._line:
            self._hang_up()

    def _look(self) -> None:
        if self._asked is None:
            self._dial()
        with self.changed:
            counted = [kernel for kernel, (_, started) in self._coming.items() if started]
            alive = (*self._kernels.values(), *self._ending)
        answer = self._exchange(Look(alive))
        if not isinstance(answer, Seen):
            raise HostAway(_why(answer))
        with self.changed:
            for kernel in counted:
                self._coming.pop(kernel, None)
            self._devices, self._seen = answer.devices, time.monotonic()
            self._gone.update(set(answer.gone) & set(self._kernels.values()))
            self._ending -= set(answer.gone)
            if not answer.trouble:
                self._away = ""
                self._tell("")
            self.changed.notify_all()
        if answer.trouble:
            self._lose(HostAway(answer.trouble))
        for process in tuple(self._ending):
            self.signal(process, signal.SIGKILL)

    def _dial(self) -> None:
        pace = self._pace
        asked = Asked(self.name, self._login, self._command, pace.limit, pace.login)
        with self._line:
            self._asked, self.address = asked, asked.address
        with self.changed:
            self._driver = asked.greeting.driver
        if asked.greeting.version != __version__:
            self._log.info(
                "gpushare: %s runs gpushare %s, this server %s",
                self.name,
                asked.greeting.version,
                __version__,
            )

    def _lose(self, problem: HostAway) -> None:
        with self.changed:
            self._away = str(problem)
            self._tell(self._away)
            self.changed.notify_all()

    def _tell(self, away: str) -> None:
        """Log a change, once."""
        if away and not self._told:
            self._log.warning("gpushare: no kernels go to %s: %s", self.name, away)
        elif self._told and not away:
            self._log.warning("gpushare: %s is back", self.name)
        self._told = away

    def _needed(self) -> bool:
        waited = time.monotonic() - self._wanted
        return waited < self._pace.linger or bool(self._kernels or self._ending)

    def _sleep(self) -> None:
        with self._line:
            self._hang_up()
        with self.changed:
            self._away = _NOT_YET
        while not self._closed and not self._needed():
            self._wake.wait()
            self._wake.clear()
        self._wake.set()

    def _hang_up(self) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.close()


class Hosts:
    """All of them."""

    def __init__(
        self,
        names: Sequence[str],
        login: Login,
        python: str,
        *,
        pace: Pace | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        self._pace, told = pace or Pace(), log or logging.getLogger(__name__)
        self._changed = threading.Condition()
        self._hosts = {
            name: Host(name, login, python, pace=self._pace, log=told, changed=self._changed)
            for name in dict.fromkeys(names)
        }

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __contains__(self, name: str) -> bool:
        return name in self._hosts

    def look(self) -> None:
        """Return once each host has said how it is, or is known to be away: at once as a rule, after one limit at the latest.

        Where no host is of use by then, the first one that is logged into is waited for.
        """
        for host in self._hosts.values():
            host.want()
        with self._changed:
            if not self._changed.wait_for(self._settled, self._pace.limit):
                self._changed.wait_for(self._usable, self._pace.login)

    def _settled(self) -> bool:
        return all(host.settled() for host in self._hosts.values())

    def _usable(self) -> bool:
        return self._settled() or not all(host.is_away() for host in self._hosts.values())

    def order(self, wish: Wish, tried: Collection[str] = ()) -> Order:
        """Return where a kernel may go, best first."""
        return order([host.state() for host in self._hosts.values()], wish, tried)

    def states(self) -> list[HostState]:
        """Return what is known of each."""
        return [host.state() for host in self._hosts.values()]

    def close(self) -> None:
        """Ask them no more."""
        for host in self._hosts.values():
            host.close()


_pools: dict[tuple[tuple[str, ...], Login, str], Hosts] = {}
_making = threading.Lock()


def hosts(names: Sequence[str], login: Login, python: str, log: logging.Logger) -> Hosts:
    """Return this process's view of these hosts, which all its kernels share."""
    with _making:
        key = (tuple(names), login, python)
        if key not in _pools:
            _pools[key] = Hosts(names, login, python, log=log)
        return _pools[key]


def _away_by(problem: Exception) -> HostAway:
    """Return why a host is away. What nobody thought of lasts."""
    if isinstance(problem, HostAway):
        return problem
    return HostAway(f"it cannot be asked: {type(problem).__name__}: {problem}", lasting=True)


def _why(answer: Answer) -> str:
    return answer.why if isinstance(answer, Failed) else f"it answered with {type(answer).__name__}"
