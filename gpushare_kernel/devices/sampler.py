"""What NVML says of one GPU, read off the loop by a thread and kept for whoever asks.

A thread of its own for each GPU: NVML may hang where a GPU is lost, and that holds up neither the loop nor
the other GPUs. It reads memory and processes every second, every five while nothing changes; how busy the GPU
is, and who was seen at work, only as long as somebody asks. Where NVML fails the readers get None, one line
is logged, and it is tried again, rarer and rarer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from time import monotonic, time

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices.base import NVML_WINDOW, Busy
from gpushare_kernel.devices.nvml import DeviceMemory, GpuLost, GpuReader, Running

LATENCY = 0.08
"""Seconds after its end in which a window's value is published: 50 ms was seen."""
_OFTEN = 0.03  # a fraction of a window, 0.04 ms each
_LIST_EVERY, _LIST_RARELY = 1.0, 5.0
_ACTIVITY_EVERY = 0.4
_TAIL, _MOVES_KEPT = 0.5, 60.0
"""Seconds after a move for which a window may still hold some of it; for which one is remembered (a driver's word comes late)."""
_WANTED_FOR = 3.0
"""Whoever has not asked for so many seconds does not need it any more."""
_AGAIN_FIRST, _AGAIN_AT_MOST = 1.0, 30.0
_FRESH = 2.0
"""Seconds for which somebody waits who needs to know it now."""
_FAILURES = 3
"""So many failures in a row are no hiccup: nobody can say any more what this GPU does."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GpuUser:
    """A process with a context; `line` is its own pid and those above it, as far as they live."""

    key: ProcessKey
    uid: int
    size: int
    name: str
    display: bool
    line: frozenset[int]

    def below(self, root: int, without: Collection[int]) -> bool:
        """Tell whether it is `root` or below it, and not in a sub-tree that is a session of its own."""
        return root in self.line and self.line.isdisjoint(without)


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory and processes, read together."""

    at: float
    memory: DeviceMemory
    users: tuple[GpuUser, ...]


@dataclass(frozen=True, slots=True)
class Activity:
    """When each process was last seen at work (NVML's us), as of the reading numbered `reading`.

    `blurred`: somebody seemed to be at work while memory was moved, so this reading says of nobody whether they were.
    """

    reading: int
    stamps: Mapping[int, int]
    blurred: bool = False


class Sampler:
    """Reads one GPU; `start` begins, `close` ends.

    Parameters
    ----------
    nvml
        The GPU; closed with the sampler.

    Raises
    ------
    DeviceError
        Where the first reading fails already.
    """

    def __init__(self, nvml: GpuReader) -> None:
        self._nvml = nvml
        self.failure: str | None = None
        """Why nothing is known now."""
        self.lost: str | None = None
        """Why nothing will be known soon, and what to do; None while all is well."""
        self.context: int | None = None
        """Bytes of the smallest context seen, of those that are plausible."""
        self.sample: Sample | None = None
        self.activity: Activity | None = None
        #: When memory was moved (NVML's us, from and to), and up to when NVML has told who was at work.
        self._moves: list[list[float]] = []
        self._told = 0
        self._busy: Busy | None = None
        self._busy_wanted = self._activity_wanted = -_WANTED_FOR
        self._next_list = self._next_busy = self._next_activity = 0.0
        self._every = _LIST_EVERY
        self._failures = 0
        self._reading = threading.Lock()
        self._wake = threading.Event()
        self._ending = False
        self._waiters: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name="gpushare-nvml", daemon=True)
        self._list(monotonic())

    def start(self) -> None:
        """Read from now on."""
        self._thread.start()

    def close(self) -> None:
        """End, and give NVML back; a thread that hangs in it is left behind."""
        self._ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(2.0)
        if not self._thread.is_alive():
            self._nvml.close()

    def utilization(self) -> Busy | None:
        """Return how busy the GPU was, as last read; None where no fresh value is known (yet)."""
        now = monotonic()
        asleep = now - self._busy_wanted >= _WANTED_FOR
        self._busy_wanted = now
        if asleep:
            self._wake.set()
        busy = self._busy
        return None if busy is None or now - busy.at > 2 * NVML_WINDOW else busy

    def want_activity(self) -> Activity | None:
        """Return who was seen at work, and keep looking for a while."""
        now = monotonic()
        asleep = now - self._activity_wanted >= _WANTED_FOR
        self._activity_wanted = now
        if asleep:
            self._wake.set()
        return self.activity

    @property
    def now(self) -> Sample:
        """The last sample.

        Raises
        ------
        DeviceError
            Where there is none now.
        """
        if self.sample is None:
            raise DeviceError(self.failure)
        return self.sample

    def hurry(self, *, older_than: float) -> None:
        """Have the processes read soon where the last reading is older than so many seconds."""
        sample = self.sample
        if sample is not None and monotonic() - sample.at > older_than:
            self._next_list = 0.0
            self._wake.set()

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Memory is moved while the block runs: what NVML says of who is at work meanwhile is left out."""
        move = [time() * 1e6, math.inf]
        self._moves.append(move)
        try:
            yield
        finally:
            move[1] = (time() + _TAIL) * 1e6

    async def fresh(self) -> Sample | None:
        """Return memory and processes as read after this was called; None where NVML does not say in time."""
        loop, asked = asyncio.get_running_loop(), monotonic()
        try:
            async with asyncio.timeout(_FRESH):
                while (sample := self.sample) is None or sample.at < asked:
                    read = asyncio.Event()

                    def tell(read: asyncio.Event = read) -> None:
                        loop.call_soon_threadsafe(read.set)

                    self._waiters.append(tell)
                    self._next_list = 0.0
                    self._wake.set()
                    await read.wait()
                    if self.failure is not None:
                        return None
        except TimeoutError:
            return None
        return sample

    def look(self) -> None:
        """Read the processes here and now."""
        self._attempt(self._list, monotonic())

    def step(self, now: float) -> float:
        """Read what is due at `now`; return for how many seconds nothing is."""
        if now >= self._next_list:
            self._attempt(self._list if self.failure is None else self._reopen, now)
        wanted = [
            (self._utilization, self._busy_wanted, self._next_busy),
            (self._active, self._activity_wanted, self._next_activity),
        ]
        for read, asked, due in wanted:
            if now - asked < _WANTED_FOR and now >= due and self.failure is None:
                self._attempt(read, now)
        return max(0.0, self._next(now) - now)

    def _next(self, now: float) -> float:
        due = [self._next_list]
        if self.failure is None:
            if now - self._busy_wanted < _WANTED_FOR:
                due.append(self._next_busy)
            if now - self._activity_wanted < _WANTED_FOR:
                due.append(self._next_activity)
        return min(due)

    def _run(self) -> None:
        while not self._ending:
            self._wake.clear()
            pause = self.step(monotonic())
            waiters, self._waiters = self._waiters, []
            for tell in waiters:
                with contextlib.suppress(RuntimeError):  # its loop has ended
                    tell()
            self._wake.wait(pause)

    def _attempt(self, read: Callable[[float], None], now: float) -> None:
        with self._reading:
            try:
                read(now)
            except (DeviceError, OSError, MemoryError) as problem:
                self._failed(problem, now)

    def _list(self, now: float) -> None:
        before = self.sample
        memory, running = self._nvml.memory(), self._nvml.processes()
        users = tuple(user for each in running if (user := _user(each)) is not None)
        self._measure_context(before, users)
        self.sample = Sample(now, memory, users)
        changed = before is None or (before.memory, before.users) != (memory, users)
        self._every = _LIST_EVERY if changed else min(_LIST_RARELY, 1.5 * self._every)
        self._next_list = now + self._every

    def _measure_context(self, before: Sample | None, users: Collection[GpuUser]) -> None:
        """A context is still growing when it is first seen, and holds data soon after: the least seen counts."""
        known = set() if before is None else {user.key for user in before.users}
        sizes = [
            user.size
            for user in users
            if user.key in known and not user.display and _LEAST <= user.size <= _MOST
        ]
        if sizes:
            self.context = min([*sizes, *([] if self.context is None else [self.context])])

    def _utilization(self, now: float) -> None:
        part, before = self._nvml.utilization(), self._busy
        if before is not None and part != before.part and now - before.at < NVML_WINDOW:
            # Its window was closed between the two readings.
            since = before.at - LATENCY - NVML_WINDOW
        elif before is not None and part == before.part and now - before.at < NVML_WINDOW:
            since = max(before.since, now - LATENCY - 2 * NVML_WINDOW)
        else:
            since = now - LATENCY - 2 * NVML_WINDOW
        self._busy = Busy(since, now, part)
        self._next_busy = now + _OFTEN

    def _active(self, now: float) -> None:
        before = self.activity
        stamps = {} if before is None else dict(before.stamps)
        blurred = False
        if self._told > (time() + 1) * 1e6:
            self._told = 0  # the clock was set back, and NVML's stamps with it
        self._moves = [move for move in self._moves if move[1] > (time() - _MOVES_KEPT) * 1e6]
        for pid, at, part in self._nvml.process_utilization(self._told):
            self._told = max(self._told, at)
            if part <= 0:
                continue  # where nobody works, whoever worked last is named on and on
            if any(begin <= at <= end for begin, end in self._moves):
                blurred = True
            else:
                stamps[pid] = max(at, stamps.get(pid, 0))
        living = {user.key.pid for user in self.sample.users} if self.sample else set()
        kept = {pid: at for pid, at in stamps.items() if pid in living}
        self.activity = Activity(0 if before is None else before.reading + 1, kept, blurred)
        self._next_activity = now + _ACTIVITY_EVERY

    def _reopen(self, now: float) -> None:
        self._nvml.reopen()
        self._list(now)
        _logger.info("NVML answers again")
        self._failures, self.failure, self.lost = 0, None, None

    def _failed(self, problem: Exception, now: float) -> None:
        said = str(problem) or type(problem).__name__
        if self.failure is None:
            _logger.warning("nobody can say what the GPU does: %s", said)
        self.failure = said
        self._failures += 1
        if isinstance(problem, GpuLost) or self._failures >= _FAILURES:
            self.lost = self.failure
        self.sample = self.activity = self._busy = None
        again = min(_AGAIN_AT_MOST, _AGAIN_FIRST * 2 ** min(self._failures - 1, 5))
        self._next_list = now + again


_LEAST, _MOST = 200 * 2**20, 900 * 2**20
"""What a context may be: less is none of a framework's, more holds data."""


def _user(running: Running) -> GpuUser | None:
    """Look a process up; None where it has ended, or is of a pid namespace that we do not see."""
    key = procfs.process_key(running.pid)
    if key is None:
        return None
    uid = procfs.owner(running.pid)
    return GpuUser(
        key,
        -1 if uid is None else uid,
        running.size,
        procfs.name(running.pid),
        running.display,
        procfs.line(running.pid),
    )
