"""What is looked at all the time: who stands paused while no broker lives; and at the end: what is left behind."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.soak.judge import Gone, PauseWatch, Served
from benchmarks.soak.people import Person
from gpushare_kernel import procfs
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.transport.peers import peer_of
from gpushare_kernel.transport.places import Places

LOOK = 0.01
TIDY = 0.5
_GUARDIAN = b"gpushare_kernel.broker.guardian"


def broker_at(places: Places) -> ProcessKey | None:
    """Return the broker that listens, whether it answers or not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(str(places.socket))
        except OSError:
            return None
        return procfs.process_key(peer_of(sock).pid)


def below(broker: ProcessKey, words: bytes) -> list[ProcessKey]:
    """Return the children of a broker that have these words in their command."""
    keys = [procfs.process_key(pid) for pid in procfs.children(broker.pid)]
    return [key for key in keys if key and words in read(key.pid, "cmdline")]


def guardian_of(broker: ProcessKey) -> ProcessKey | None:
    """Return its guardian, if there is one now."""
    found = below(broker, _GUARDIAN)
    return found[0] if found else None


class Watch:
    """Looks every 10 ms while a broker is gone, and waits for its end otherwise."""

    def __init__(
        self,
        places: Places,
        gpu: Path,
        people: Sequence[Person],
        seen: PauseWatch,
        served: Served,
    ) -> None:
        self._places, self._gpu, self._people = places, gpu, people
        self._seen, self._served = seen, served
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.brokers = 0
        self._tidied = 0.0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Look no longer."""
        self._ending.set()
        self._thread.join()
        self._seen.finish(time.monotonic())

    def _run(self) -> None:
        broker: ProcessKey | None = None
        guardian: ProcessKey | None = None
        while not self._ending.is_set():
            self._tidy()
            if broker is None or not procfs.alive(broker):
                fresh = broker_at(self._places)
                if fresh is not None and procfs.alive(fresh):
                    broker, guardian = fresh, None
                    self.brokers += 1
            here = broker is not None and procfs.alive(broker)
            self._served.look(time.monotonic(), here=here)
            if here and not self._seen.open:
                guardian = _guardian_now(broker, guardian)
                _wait_for(broker, 0.1)
                if procfs.alive(broker):
                    continue
                here = False
            gone = Gone.NOBODY if here else Gone.BROKER if _able(guardian) else Gone.BOTH
            self._seen.look(time.monotonic(), gone, self.paused())
            self._ending.wait(LOOK)

    def _tidy(self) -> None:
        """Take away what ended processes hold in the GPU in files: pids come again within the hour, and whoever has one then would hold it."""
        now = time.monotonic()
        if now < self._tidied + TIDY:
            return
        self._tidied = now
        for file in self._gpu.glob("held.*[0-9]"):
            if procfs.state(int(file.suffix[1:])) in {None, *procfs.ENDED}:
                for name in ("held", "state"):
                    file.with_name(f"{name}{file.suffix}").unlink(missing_ok=True)

    def paused(self) -> set[ProcessKey]:
        """Who stands still on our account now."""
        return {
            key
            for one in self._people
            if (key := one.key) is not None and not one.stopped and self._stands(key, one)
        }

    def _stands(self, key: ProcessKey, one: Person) -> bool:
        if one.on_gpu:
            with contextlib.suppress(OSError):
                locked = (self._gpu / f"state.{key.pid}").read_text() == "locked"
                return locked and procfs.alive(key)
            return False
        return procfs.state_of(key) in {"T", "t"}


def _guardian_now(broker: ProcessKey | None, known: ProcessKey | None) -> ProcessKey | None:
    if broker is None or (known is not None and procfs.alive(known)):
        return known
    return guardian_of(broker)


def _able(guardian: ProcessKey | None) -> bool:
    return (
        guardian is not None
        and procfs.alive(guardian)
        and procfs.state(guardian.pid) not in {"T", "t"}
    )


def _wait_for(key: ProcessKey | None, seconds: float) -> None:
    """Wait for a process's end, for a while."""
    if key is None:
        return
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(key.pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(seconds * 1000)
        finally:
            os.close(pidfd)


def processes(places: Places) -> list[int]:
    """Return every process that has this run's folder in its environment."""
    mark = f"GPUSHARE_RUNTIME_DIR={places.runtime}".encode()
    pids = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and mark in read(pid, "environ").split(b"\0")]


def described(pid: int) -> str:
    """Say what a process is."""
    words = read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")
    return f"{pid} ({procfs.state(pid)}) {words}"


def read(pid: int, name: str) -> bytes:
    """Return a file of a process, empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def descriptors(pid: int) -> list[str]:
    """Return what a process has open."""
    found = []
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(str(fd.readlink()))
    return found


def threads(pid: int) -> int:
    """Return how many threads a process has."""
    with contextlib.suppress(OSError):
        return len([*Path(f"/proc/{pid}/task").iterdir()])
    return 0


def ours(open_files: Collection[str]) -> list[str]:
    """Of descriptors, those that a provisioner may forget: pages of sessions and pidfds."""
    return [one for one in open_files if re.match(r"/memfd:|anon_inode:\[?pidfd|pidfd:", one)]
