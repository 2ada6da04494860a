"""The people of the soak: each has a notebook, runs cells, and looks whether what it had is still there."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, Self

from jupyter_client.manager import KernelManager

from benchmarks.kernels import CellFailed
from benchmarks.soak.gpu import COMMAND
from benchmarks.soak.judge import Tally
from gpushare_kernel import procfs
from gpushare_kernel.core.errors import UserError
from gpushare_kernel.core.values import ProcessKey

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1] / "tests"
PATH = (HERE.parents[1], TESTS / "faults" / "kernel_side", TESTS / "client" / "frameworks", HERE)
START = 60.0
STUCK = 90.0
"""Seconds with a broker after which a cell that should take a moment is stuck: longer than any wait for memory or turns."""
THINKS = (0.5, 4.0)
"""Seconds between two cells of a person."""
CYCLE = {True: 6.0, False: 3.0}
"""Seconds of device time in which everybody on the GPU, on the CPU, runs one cell: longer than they think, so they wait for turns."""
LONGEST = 2.0
ROUND = 0.005
SHARED = {"BrokerUnavailable", "NoBroker", "BadToken", "WaitEnded", "Refused"}
"""Errors that say what became of a cell's place, and that it has not run."""


class Died(Exception):
    """The kernel is gone."""


class Kernel(Protocol):
    """How a notebook's cells reach its kernel."""

    def run(self, code: str, value: str, late: Callable[[], bool]) -> Any:
        """Run a cell; `CellFailed`, `Died` or, once it is `late`, `TimeoutError` where it does not end well."""

    def close(self) -> None:
        """Hang up."""


class Light:
    """A line to a kernel of `kernel.py`."""

    def __init__(self, place: Path, alive: Callable[[], bool]) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        pace, deadline = threading.Event(), time.monotonic() + START
        while True:
            try:
                self._sock.connect(str(place))
                break
            except OSError:
                if not alive() or time.monotonic() > deadline:
                    self._sock.close()
                    raise Died from None
                pace.wait(0.02)  # it tells nobody when it listens
        self._lines = self._sock.makefile("rw", encoding="utf-8")

    def run(self, code: str, value: str, late: Callable[[], bool]) -> Any:
        """Run a cell."""
        try:
            self._lines.write(json.dumps([code, value]) + "\n")
            self._lines.flush()
            self._wait(late)
            line = self._lines.readline()
        except TimeoutError:
            raise
        except OSError:
            raise Died from None
        if not line:
            raise Died
        done, *answer = json.loads(line)
        if not done:
            raise CellFailed(": ".join(answer))
        return answer[0]

    def _wait(self, late: Callable[[], bool]) -> None:
        while not select.select([self._sock], [], [], 1.0)[0]:
            if late():
                raise TimeoutError

    def close(self) -> None:
        """Hang up."""
        for one in (self._lines, self._sock):
            with contextlib.suppress(OSError):
                one.close()


class Real:
    """The client of an ipykernel."""

    def __init__(self, manager: KernelManager) -> None:
        self._manager = manager
        self._client = manager.client()
        self._client.load_connection_file(manager.connection_file)
        self._client.start_channels()
        try:
            self._client.wait_for_ready(START)
        except RuntimeError:
            self.close()
            raise Died from None

    def run(self, code: str, value: str, late: Callable[[], bool]) -> Any:
        """Run a cell."""
        # In the cell, not in the expression: what an expression asks of a GPU that is set aside nobody brings back.
        cell = f"{code}\n_said = __import__('json').dumps({value})"
        asked = self._client.execute(cell, store_history=False, user_expressions={"v": "_said"})
        while True:
            with contextlib.suppress(Empty):
                reply = self._client.get_shell_msg(timeout=1)
                if reply["parent_header"].get("msg_id") == asked:
                    return _value(reply["content"])
            if not self._manager.is_alive():
                raise Died
            if late():
                raise TimeoutError

    def close(self) -> None:
        """Hang up."""
        self._client.stop_channels()


class Person:
    """One notebook and who works in it, on a thread of its own.

    What they do follows from seed and number. `orders` are what the adversary has them do next.
    """

    def __init__(
        self, number: int, of: int, seed: int, stage: Stage, tally: Tally, *, real: bool
    ) -> None:
        self.number, self.real = number, real
        self.on_gpu = number % 2 == 0
        self._length = min(LONGEST, CYCLE[self.on_gpu] / (of / 2))
        self.tally = tally
        self.orders: SimpleQueue[str] = SimpleQueue()
        self.lock = threading.RLock()
        self.key: ProcessKey | None = None
        #: Whether the adversary killed the kernel that there was; whether it has stopped it just now.
        self.killed = self.stopped = False
        #: Whether its first kernel is up.
        self.up = threading.Event()
        self.refused = ""
        self.before: dict[str, int] = {}
        self.now: dict[str, int] = {}
        self._chance = random.Random(f"{seed} {number}")
        self._stage = stage
        self._place = stage.folder / f"k{number}"
        self._kernel: Kernel | None = None
        self._secret, self._count = "", 0
        self._leaving = threading.Event()
        self._log = (stage.folder / "kernels.log").open("ab")
        self.manager = KernelManager(
            kernel_name="real" if real else "light",
            transport="ipc",
            ip=str(stage.folder / f"j{number}"),
        )
        self.thread = threading.Thread(target=self._live, name=f"person-{number}", daemon=True)

    # --- What they do -----------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._start(
                lambda: self.manager.start_kernel(env=self._environment(), stderr=self._log)
            )
            while not self._leaving.is_set():
                self.up.set()
                self._next()
                self._leaving.wait(self._chance.uniform(*THINKS))
            self._check(self._run("", "player.look()"))
            if self.refused:
                self._again()
        except Exception as problem:  # noqa: BLE001 - a person that is gone would be missed by nobody
            self.tally.stuck.append(f"{self}: {type(problem).__name__}: {problem}")
        finally:
            self.up.set()

    def _next(self) -> None:
        try:
            code = self._chosen()
            self.tally.cells += 1
            self._check(self._run("", code))
            self._read()
        except Died:
            self._again()
        except CellFailed as problem:
            self._failed(str(problem))
        except TimeoutError:
            self.tally.stuck.append(
                f"{self}: a cell has not ended within {STUCK:g} s of a broker{self._how()}"
            )
            self._again(patience=0)

    def _chosen(self) -> str:
        with contextlib.suppress(Empty):
            order = self.orders.get_nowait()
            if order == "restart":
                self._again()
            else:
                return f"player.{order}"
        rounds = int(self._chance.uniform(0.5, 1.5) * self._length / ROUND)
        kind = self._chance.random()
        if self.real and kind < 0.3:
            return f"player.plain({rounds})"
        return f"player.cell({rounds}, steps={kind < 0.5})"

    def _failed(self, text: str) -> None:
        kind = _kind_of(text)
        self.tally.failed[kind] += 1
        self._check(self._run("", "player.look()"))

    def _read(self) -> None:
        """Do what a notebook tells its user to: one that its broker forgot is shared again after a restart."""
        if self.refused:
            self.tally.failed["told to restart"] += 1
            self._again()

    def _check(self, found: dict[str, Any]) -> None:
        here = [found["secret"], found["count"]]
        if here[0] != self._secret or here[1] < self._count or found["there"] != here:
            self.tally.lost.append(f"{self}: had {self._secret, self._count}, has {found}")
        self._count = found["count"]
        if not self.before:
            self.before = {"fds": found["fds"], "threads": found["threads"]}
        self.refused = found["refused"]
        self.now = {"fds": found["fds"], "threads": found["threads"]}

    # --- Its kernel ------------------------------------------------------------------------------------

    def _run(self, code: str, value: str) -> Any:
        if self._kernel is None:
            raise Died
        began = time.monotonic()
        try:
            return self._kernel.run(code, value, self.tally.served.wait(STUCK))
        finally:
            self.tally.longest_cell = max(self.tally.longest_cell, time.monotonic() - began)

    def _again(self, patience: float = 2.0) -> None:
        """The kernel is dead, or is to be restarted."""
        with self.lock:
            if not self.killed and patience and self.key and not procfs.alive(self.key):
                self.tally.lost.append(f"{self}: its kernel died by itself")
        self._start(lambda: self.manager.restart_kernel(now=True))

    def _start(self, how: Callable[[], None]) -> None:
        until = time.monotonic() + STUCK
        while not self._starts(how, until):
            self._leaving.wait(1.0)

    def _starts(self, how: Callable[[], None], until: float) -> bool:
        """Start a kernel. False where the broker has too few descriptors for it now: its user is told, and tries again."""
        while True:
            with self._stage.starting:
                with self.lock:
                    if self._kernel is not None:
                        self._kernel.close()
                        self._kernel = None
                    self.key = None
                    try:
                        how()
                    except UserError:
                        if time.monotonic() > until:
                            raise
                        self.tally.failed["start refused"] += 1
                        return False
                    self.killed = False
                    self.before = {}
                    self.key = procfs.process_key(self.manager.provisioner.pid or 0)
                how = lambda: self.manager.restart_kernel(now=True)  # noqa: E731
                with contextlib.suppress(Died, CellFailed, TimeoutError):
                    self._kernel = (
                        Real(self.manager) if self.real else Light(self._place, self._alive)
                    )
                    self._secret, self._count = f"{self._chance.getrandbits(64):016x}", 0
                    self._check(self._run("import player", f"player.begin({self._secret!r})"))
                    return True

    def _how(self) -> str:
        """How a kernel stands that does not answer; where it is goes to its log."""
        if self.key is None:
            return ""
        procfs.send(self.key, signal.SIGUSR1)
        state = self._stage.gpu / f"state.{self.key.pid}"
        driver = state.read_text() if state.exists() else "running"
        return f" (pid {self.key.pid} {procfs.state_of(self.key)}, the driver says {driver}, refused: {self.refused!r})"

    def _alive(self) -> bool:
        return self.key is not None and procfs.alive(self.key)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "GPUSHARE_DEVICE": "GPU-scripted" if self.on_gpu else "host",
            "GPUSHARE_ADAPTERS": "cupy",
            "JPY_SESSION_NAME": f"/home/ann/soak-{self.number}.ipynb",
            "PYTHONPATH": ":".join(map(str, PATH)),
            "SCRIPTED_GPU": str(self._stage.gpu),
            "SCRIPTED_BROKER": " ".join(COMMAND),
            "SOAK_SOCKET": str(self._place),
        }

    # --- From outside ---------------------------------------------------------------------------------

    def poll(self) -> None:
        """Ask whether it lives, as a notebook server does every few seconds."""
        if self.lock.acquire(blocking=False):
            try:
                if self.key is not None:
                    self.manager.is_alive()
            finally:
                self.lock.release()

    def kill(self) -> bool:
        """Kill its kernel, if there is one that answers."""
        with self.lock:
            if self.key is None or self.killed or self._kernel is None:
                return False
            self.killed = True
            return procfs.send(self.key, signal.SIGKILL)

    def leave(self) -> None:
        """Have it run no further cell, and look at what it has a last time."""
        self._leaving.set()

    def close(self) -> None:
        """End its kernel."""
        with self.lock:
            if self._kernel is not None:
                self._kernel.close()
            if self.manager.has_kernel:
                self.manager.shutdown_kernel(now=True)
            self.manager.cleanup_resources()
        self._log.close()

    def __str__(self) -> str:
        session = getattr(getattr(self.manager.provisioner, "_session", None), "session", None)
        kind = "ipykernel" if self.real else "light kernel"
        return (
            f"soak-{self.number} ({kind} on {'the GPU' if self.on_gpu else 'the CPU'}, {session})"
        )


class Stage:
    """What all of them share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gpu = folder / "gpu"
        self.starting = threading.Semaphore(4)

    def __enter__(self) -> Self:
        for name, argv in {
            "real": ["-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "light": [str(HERE / "kernel.py")],
        }.items():
            spec = {
                "argv": [sys.executable, *argv],
                "display_name": name,
                "language": "python",
                "metadata": {"kernel_provisioner": {"provisioner_name": "gpushare"}},
            }
            place = Path(os.environ["JUPYTER_DATA_DIR"], "kernels", name)
            place.mkdir(parents=True, exist_ok=True)
            (place / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _kind_of(text: str) -> str:
    """The name of an error, as a light kernel gives it or as the last line of a traceback has it."""
    last = text.strip().rpartition("\n")[2]
    return last.partition(":")[0].strip().rpartition(".")[2] or "unknown"


def _value(content: dict[str, Any]) -> Any:
    import ast  # noqa: PLC0415

    shown = content.get("user_expressions", {}).get("v", content)
    if shown["status"] != "ok":
        raise CellFailed(
            "\n".join([*shown.get("traceback", []), f"{shown.get('ename')}: {shown.get('evalue')}"])
        )
    return json.loads(ast.literal_eval(shown["data"]["text/plain"]))
