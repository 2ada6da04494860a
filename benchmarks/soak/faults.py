"""The adversary: carries out the script's steps at real processes and a real folder."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.common import progress
from benchmarks.soak.judge import Tally
from benchmarks.soak.people import Person
from benchmarks.soak.script import Step
from benchmarks.soak.watch import below, broker_at, guardian_of, read
from gpushare_kernel import procfs
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.transport.frames import pack
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire.codec import encode
from gpushare_kernel.wire.messages import TO_BROKER_LIMIT, GetSnapshot, Kind, ToBroker

PATIENCE = 15.0
"""Seconds to wait for a broker before a fault that needs one; where none comes the fault is missed."""
ROOM = 24
"""MiB of the folder's own file system."""
LEFT = 48
"""Descriptors that a broker has left before everybody connects."""
_LOOP = 7
_LITTLE = 1 << 20


class NobodyThere(Exception):
    """There is nobody whom the fault could be done to."""


class Disk:
    """The file system of the broker's folder: a small one of its own where we may mount, else only limits are emulated."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o755)
        self.own = _mount("-t", "tmpfs", "-o", f"size={ROOM}m,mode=755", "soak", str(folder))

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Have no byte free in it."""
        if not self.own:
            raise NobodyThere
        ballast = self.folder / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        try:
            yield
        finally:
            ballast.unlink()

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Have whatever is opened there from now on read-only; who has it open already writes on."""
        place = str(self.folder)
        if not self.own or not _mount("--bind", place, place):
            raise NobodyThere
        try:
            if not _mount("-o", "remount,bind,ro", place):
                raise NobodyThere
            yield
        finally:
            subprocess.run(["umount", "-l", place], check=True)

    def close(self) -> None:
        """Give it up."""
        if self.own:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


class Adversary:
    """Does one step after the other."""

    def __init__(
        self, places: Places, gpu: Path, people: Sequence[Person], disk: Disk, tally: Tally
    ) -> None:
        self._places, self._gpu, self._people = places, gpu, people
        self._disk, self._tally = disk, tally
        self._pace = threading.Event()

    def run(self, script: Iterator[Step], until: float) -> None:
        """Do steps until that moment (monotonic)."""
        for step in script:
            if time.monotonic() + step.after > until:
                return
            self._pace.wait(step.after)
            progress(str(step))
            self._do(step)

    def _do(self, step: Step) -> None:
        lasting = getattr(self, f"_{step.fault.name.lower()}")
        try:
            if not step.seconds:
                lasting(step.who)
            else:
                with lasting(step.who):
                    self._pace.wait(step.seconds / 2)
                    if step.inside is not None:
                        self._do(Step(step.number, 0.0, step.inside, step.who))
                    self._pace.wait(step.seconds / 2)
        except (NobodyThere, ProcessLookupError, GpushareError, OSError) as why:
            progress(f"  missed: {type(why).__name__} {why}")
            self._tally.missed[step.fault] += 1
        else:
            self._tally.done[step.fault] += 1

    # --- Whom ---------------------------------------------------------------------------------------------

    def broker(self, patience: float = PATIENCE) -> ProcessKey:
        """Return the broker that lives, waiting for one that is being started."""
        deadline = time.monotonic() + patience
        while (found := broker_at(self._places)) is None or not procfs.alive(found):
            if time.monotonic() > deadline:
                raise NobodyThere
            self._pace.wait(0.02)
        return found

    def _guardian(self, broker: ProcessKey) -> ProcessKey:
        deadline = time.monotonic() + PATIENCE
        while (found := guardian_of(broker)) is None:
            if time.monotonic() > deadline or not procfs.alive(broker):
                raise NobodyThere
            self._pace.wait(0.02)
        return found

    def _someone(self, who: int) -> Person:
        """The `who`-th person, or the next whose kernel is up."""
        count = len(self._people)
        for one in (self._people[(who + n) % count] for n in range(count)):
            if one.key is not None and not one.killed and procfs.alive(one.key):
                return one
        raise NobodyThere

    # --- Ends ---------------------------------------------------------------------------------------------

    def _broker_killed(self, _: int) -> None:
        kill(self.broker())

    def _guardian_killed(self, _: int) -> None:
        kill(self._guardian(self.broker()))

    def _both_killed(self, _: int) -> None:
        broker = self.broker()
        guardian = self._guardian(broker)
        procfs.send(guardian, signal.SIGSTOP)
        self._until_stopped(guardian)
        kill(broker)
        kill(guardian)

    def _worker_killed(self, who: int) -> None:
        broker = self.broker()
        workers = below(broker, b"drains.py")
        with contextlib.suppress(NobodyThere):
            workers += below(self._guardian(broker), b"drains.py")
        if not workers:
            raise NobodyThere
        kill(workers[who % len(workers)])

    def _kernel_killed(self, who: int) -> None:
        if not self._someone(who).kill():
            raise NobodyThere

    def _crash_loop(self, _: int) -> None:
        for _each in range(_LOOP):
            kill(self.broker())

    # --- Stops ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _broker_stopped(self, _: int) -> Iterator[None]:
        with _stopped(self.broker()):
            yield

    @contextlib.contextmanager
    def _guardian_stopped(self, _: int) -> Iterator[None]:
        """Its broker dies meanwhile, and it wakes up late."""
        broker = self.broker()
        guardian = self._guardian(broker)
        with _stopped(guardian):
            self._until_stopped(guardian)
            kill(broker)
            yield

    @contextlib.contextmanager
    def _kernel_stopped(self, who: int) -> Iterator[None]:
        one = self._someone(who)
        key = one.key
        if key is None:
            raise NobodyThere
        one.stopped = True
        try:
            with _stopped(key):
                yield
        finally:
            one.stopped = False

    def _until_stopped(self, key: ProcessKey) -> None:
        while procfs.state(key.pid) not in {"T", "t"}:
            if not procfs.alive(key):
                raise NobodyThere
            self._pace.wait(0.002)

    # --- Notebooks -----------------------------------------------------------------------------------------

    def _interrupted(self, who: int) -> None:
        one = self._someone(who)
        with one.lock:
            one.manager.interrupt_kernel()

    def _forks(self, who: int) -> None:
        self._someone(who).orders.put("forks(20)")

    def _restarts(self, who: int) -> None:
        for n in range(max(2, len(self._people) // 5)):
            self._people[(who + n) % len(self._people)].orders.put("restart")

    # --- Peers ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _slow_reader(self, _: int) -> Iterator[None]:
        self.broker()
        with Line(self._places) as line:
            sock = line._sock  # what no client does
            sock.settimeout(0)
            with contextlib.suppress(OSError):  # it is full, or we were cut off
                for n in range(20_000):
                    sock.sendall(
                        pack(encode(ToBroker(Kind.REQUEST, n, GetSnapshot())), TO_BROKER_LIMIT)
                    )
            yield

    def _half_frames(self, who: int) -> None:
        self.broker()
        starts = (
            b"\x10",
            struct.pack("<I", 100),
            struct.pack("<I", 100) + b"\x83\xa1",
            struct.pack("<I", 1 << 31) + b"x",
            struct.pack("<I", 5) + b"\xc1\xff\x00ab",
        )
        with contextlib.ExitStack() as open_ends:
            for n in range(20):
                sock = open_ends.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(str(self._places.socket))
                sock.sendall(starts[(who + n) % len(starts)])

    # --- What there is too little of -----------------------------------------------------------------------

    @contextlib.contextmanager
    def _disk_full(self, _: int) -> Iterator[None]:
        with self._disk.full():
            yield

    @contextlib.contextmanager
    def _disk_read_only(self, _: int) -> Iterator[None]:
        with self._disk.read_only():
            yield

    def _ledger_corrupt(self, _: int) -> None:
        broker = self.broker()
        guardian = self._guardian(broker)
        with _stopped(guardian):
            self._until_stopped(guardian)
            kill(broker)
            with self._places.ledger.open("r+b") as file:
                file.write(b"nothing of a database " * 100)
            self._places.ledger.with_name(self._places.ledger.name + "-wal").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _clock_stepped(self, who: int) -> Iterator[None]:
        stepped = self._gpu / "clock"
        stepped.write_text(str((-1) ** who * 400 * 86400.0))
        try:
            yield
        finally:
            stepped.unlink()

    @contextlib.contextmanager
    def _descriptors(self, _: int) -> Iterator[None]:
        broker = self.broker()
        most = max(int(fd.name) for fd in Path(f"/proc/{broker.pid}/fd").iterdir()) + LEFT
        with _limited(broker, resource.RLIMIT_NOFILE, most), contextlib.ExitStack() as peers:
            for _each in range(2 * LEFT):
                sock = peers.enter_context(
                    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                )
                with contextlib.suppress(OSError):
                    sock.connect(str(self._places.socket))
            yield

    @contextlib.contextmanager
    def _memory(self, _: int) -> Iterator[None]:
        broker = self.broker()
        size = int(read(broker.pid, "statm").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        with _limited(broker, resource.RLIMIT_AS, size + _LITTLE):
            yield

    @contextlib.contextmanager
    def _workers_crash(self, _: int) -> Iterator[None]:
        crash = self._gpu / "crash"
        crash.write_text("at every lock")
        try:
            yield
        finally:
            crash.unlink()


def kill(key: ProcessKey) -> None:
    """Kill -9 this very process, and wait for its end."""
    pidfd = os.pidfd_open(key.pid)
    try:
        if not procfs.send(key, signal.SIGKILL):
            raise NobodyThere
        gone = select.poll()
        gone.register(pidfd, select.POLLIN)
        gone.poll(10_000)
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def _stopped(key: ProcessKey) -> Iterator[None]:
    if not procfs.send(key, signal.SIGSTOP):
        raise NobodyThere
    try:
        yield
    finally:
        procfs.send(key, signal.SIGCONT)


@contextlib.contextmanager
def _limited(key: ProcessKey, which: int, most: int) -> Iterator[None]:
    before = resource.prlimit(key.pid, which)
    resource.prlimit(key.pid, which, (most, before[1]))
    try:
        yield
    finally:
        if procfs.alive(key):
            resource.prlimit(key.pid, which, before)


def _mount(*words: str) -> bool:
    """Mount something; say whether that was allowed."""
    try:
        done = subprocess.run(["mount", *words], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0
