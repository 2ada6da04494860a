"""One host of a test's own: a real broker in a folder of its own, real kernels, and nothing left at the end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gpushare_kernel import procfs
from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.client.line import Line
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire.messages import Reply, Request
from gpushare_kernel.wire.snapshot import SessionView, Snapshot
from tests.faults.notebook import Notebook
from tests.procs import eventually

LIMIT = 60.0
_T = TypeVar("_T")
_GUARDIAN = b"gpushare_kernel.broker.guardian"


class Host:
    """Where a test's broker and kernels live."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.notebooks: list[Notebook] = []
        #: What the broker's log may say at level error; anything else there fails the test.
        self.forgiven: list[str] = []

    # --- broker and guardian ------------------------------------------------------------------------------

    def start(self, *arguments: str) -> ProcessKey:
        """Start a broker (or find it) and return its process."""
        ensure_broker(self.places, LIMIT, arguments)
        return self.broker

    @property
    def broker(self) -> ProcessKey:
        """The broker that answers now; waits for one that is being started."""
        with self.line() as line:
            key = procfs.process_key(line.pid)
        assert key is not None
        return key

    def line(self) -> Line:
        """Return a connection that observes; waits for a broker that is being started."""
        made: list[Line] = []

        def there() -> bool:
            with contextlib.suppress(BrokerUnavailable):
                made.append(Line(self.places))
            return bool(made)

        eventually(there, LIMIT)
        return made[0]

    def ask(self, request: Request) -> Reply:
        """Ask as a command line of this user does."""
        with self.line() as line:
            return line.ask(request)

    def snapshot(self) -> Snapshot:
        """Return what goes on."""
        with self.line() as line:
            return line.snapshot()

    def guardian_of(self, broker: ProcessKey) -> ProcessKey:
        """Return the guardian of `broker`, once there is one that watches."""
        found: list[ProcessKey] = []

        def there() -> bool:
            for pid in procfs.children(broker.pid):
                key = procfs.process_key(pid)
                if key and _GUARDIAN in _proc(pid, "cmdline") and _ignores(pid, signal.SIGTERM):
                    found.append(key)
            return bool(found)

        eventually(there, LIMIT)
        return found[0]

    # --- kernels --------------------------------------------------------------------------------------------

    def notebook(self, name: str = "hw1.ipynb", **options: Any) -> Notebook:
        """Start a kernel through our provisioner and wait until the broker knows its client."""
        notebook = self.started(name, **options)
        notebook.ready()
        self.until(lambda seen: session_of(seen, notebook).state not in {"opened", "bare"})
        return notebook

    def started(self, name: str, **options: Any) -> Notebook:
        """Start a kernel; wait for nothing."""
        self.notebooks.append(Notebook(name, **options))
        return self.notebooks[-1]

    def until(self, holds: Callable[[Snapshot], _T], seconds: float = 20) -> _T:
        """Return what `holds` says of the first snapshot of which it says anything."""
        found: list[_T] = []

        def look() -> bool:
            with contextlib.suppress(LookupError):
                found.append(holds(self.snapshot()))
            return bool(found and found[-1])

        eventually(look, seconds)
        return found[-1]

    # --- the end ----------------------------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """Return every process of this host: all have its folder in their environment."""
        mark = f"GPUSHARE_RUNTIME_DIR={self.places.runtime}".encode()
        pids = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
        return [pid for pid in pids if mark in _proc(pid, "environ").split(b"\0")]

    def close(self) -> None:
        """End everything; complain of what is left and of what the broker's log says went wrong."""
        for notebook in self.notebooks:
            notebook.close()
        left: list[str] = []
        try:
            eventually(self._stopped, 20)
        except AssertionError:
            left = [_described(pid) for pid in self.processes()]
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        print(*self.log(), sep="\n")  # pytest shows it where the test failed
        assert not left, left
        assert not self.places.socket.exists()
        wrong = [line for line in self.log("error") if not self._forgiven(line)]
        assert not wrong, wrong

    def log(self, *levels: str) -> list[dict[str, Any]]:
        """Return the lines of the broker's log, of some levels."""
        if not self.places.log.exists():
            return []
        whole = self.places.log.read_text().splitlines(keepends=True)
        # The last may be half written.
        lines = [json.loads(line) for line in whole if line.endswith("\n")]
        return [line for line in lines if line["level"] in levels or not levels]

    def _forgiven(self, line: dict[str, Any]) -> bool:
        return any(re.search(pattern, line["message"]) for pattern in self.forgiven)

    def _stopped(self) -> bool:
        with contextlib.suppress(BrokerUnavailable):
            stop_broker(self.places, LIMIT)
        return not self.processes()


def session_of(snapshot: Snapshot, notebook: Notebook) -> SessionView:
    """Return the session of `notebook`; LookupError where there is none."""
    for session in snapshot.sessions:
        if session.id == notebook.session:
            return session
    raise LookupError(notebook.session)


def took(condition: Callable[[], object], limit: float) -> float:
    """Wait for a condition; return the seconds it took."""
    began = time.monotonic()
    eventually(condition, limit)
    return time.monotonic() - began


def kill(key: ProcessKey) -> None:
    """Kill -9 this very process, and wait for the end of all its threads: until then its sockets are open."""
    pidfd = os.pidfd_open(key.pid)
    try:
        assert procfs.send(key, signal.SIGKILL)
        gone = select.poll()
        gone.register(pidfd, select.POLLIN)
        assert gone.poll(LIMIT * 1000)
    finally:
        os.close(pidfd)


def stopped(pid: int) -> bool:
    """Say whether a process stands still."""
    return procfs.state(pid) in ("T", "t")


@contextlib.contextmanager
def ended(*keys: ProcessKey) -> Iterator[None]:
    """Kill what is still there of `keys` when the block is over."""
    try:
        yield
    finally:
        for key in keys:
            procfs.send(key, signal.SIGKILL)


def _proc(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _ignores(pid: int, signum: int) -> bool:
    line = next((li for li in _proc(pid, "status").splitlines() if li.startswith(b"SigIgn:")), b"")
    return bool(line and int(line.split()[1], 16) & 1 << (signum - 1))


def _described(pid: int) -> str:
    words = _proc(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")
    return f"{pid} ({procfs.state(pid)}) {words}"
