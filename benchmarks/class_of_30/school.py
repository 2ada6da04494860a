"""A class at one Jupyter server: its kernels are started by the server's REST API, and cells reach them as those of a browser do."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import websocket

from benchmarks.common import Stage
from benchmarks.hub.hub import end, free_ports, until
from gpushare_kernel.client.line import Line
from gpushare_kernel.provisioner import DEFAULT_PROVISIONER
from gpushare_kernel.wire.snapshot import SessionView, Snapshot

PATIENCE = 300.0
"""Seconds after which a cell or a kernel that should have come does not come any more."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of a cell: when it was sent and when it was over, by the monotonic clock; `error` is empty where it did what it should."""

    number: int
    sent: float
    ended: float
    said: str
    error: str

    @property
    def took(self) -> float:
        """Seconds from Run to its end."""
        return self.ended - self.sent


class School:
    """A server and its students.

    Parameters
    ----------
    stage
        Whose broker they share.
    students
        How many.
    variables
        What the server, and so its kernels, have in their environment beside ours.
    """

    def __init__(
        self, stage: Stage, students: int, variables: Mapping[str, str] | None = None
    ) -> None:
        self.stage = stage
        (self._port,) = free_ports(1)
        self._token = secrets.token_hex(16)
        self._variables = {DEFAULT_PROVISIONER: "gpushare", **(variables or {})}
        self.students = [Student(self, number) for number in range(1, students + 1)]

    def __enter__(self) -> Self:
        root = self.stage.folder / "notebooks"
        root.mkdir(exist_ok=True)
        self._log = self.stage.folder / "server.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"),
                    *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self._port}"),
                    *("--ServerApp.port_retries=0", f"--IdentityProvider.token={self._token}"),
                    f"--ServerApp.root_dir={root}",
                    # Ports that several kernels look for at the same time are sometimes taken.
                    "--KernelManager.transport=ipc",
                ],
                env={**os.environ, **self._variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._pool = ThreadPoolExecutor(len(self.students), "student")
        try:
            until(self._answers, "the server does not answer", self.log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.students:
            one.leaves()
        self._pool.shutdown()
        self._process.terminate()  # it ends its kernels
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        end(self._process)

    def log(self) -> str:
        """Return the end of what the server wrote."""
        return self._log.read_text(errors="replace")[-6000:]

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the server's answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self._token}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or b"null")

    def line(self, kernel: str) -> websocket.WebSocket:
        """Open what a notebook's page opens to its kernel."""
        return websocket.create_connection(
            f"ws://127.0.0.1:{self._port}/api/kernels/{kernel}/channels",
            header=[f"Authorization: token {self._token}"],
            timeout=PATIENCE,
        )

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            problem = f"the server has ended: {self.log()}"
            raise RuntimeError(problem)
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return "started" in self.ask("GET", "status")
        return False

    # --- what the class does ----------------------------------------------------------------------------------

    def opens(self) -> float:
        """All open their notebooks at the same moment; return the seconds until the last kernel answers."""
        began = time.monotonic()
        for done in [self._pool.submit(one.sits_down) for one in self.students]:
            done.result()
        took = time.monotonic() - began
        shared = [one for one in self.snapshot().sessions if one.state not in {"opened", "bare"}]
        if len(shared) != len(self.students):
            problem = f"{len(self.students)} kernels were started, and the broker knows {len(shared)} with their clients"
            raise RuntimeError(problem)
        return took

    def all_run(self, code: str, who: Sequence[Student] | None = None) -> list[Future[Cell]]:
        """Have all of them press Run at the same moment."""
        students = self.students if who is None else who
        gate = threading.Barrier(len(students))

        def press(student: Student) -> Cell:
            gate.wait(PATIENCE)
            return student.run(code)

        return [self._pool.submit(press, one) for one in students]

    def snapshot(self) -> Snapshot:
        """Return what goes on."""
        with Line(self.stage.places, PATIENCE) as line:
            return line.snapshot()

    def sessions(self) -> list[SessionView]:
        """Return everybody's session, in the students' order."""
        found = {one.name: one for one in self.snapshot().sessions}
        return [found[one.notebook] for one in self.students]

    def until(self, holds: Callable[[Snapshot], object], what: str) -> None:
        """Wait until the broker says so."""
        until(lambda: holds(self.snapshot()), what, self.log)


class Student:
    """Somebody with a notebook."""

    def __init__(self, school: School, number: int) -> None:
        self.number = number
        self.notebook = f"student-{number}.ipynb"
        self._school = school
        self._line: websocket.WebSocket | None = None
        self._kernel = ""

    def sits_down(self) -> None:
        """Open a notebook; return when its kernel answers."""
        wanted = {
            "path": self.notebook,
            "name": self.notebook,
            "type": "notebook",
            "kernel": {"name": "python3"},
        }
        self._kernel = self._school.ask("POST", "sessions", wanted)["kernel"]["id"]
        self._line = self._school.line(self._kernel)
        try:
            self._read(self._send("kernel_info_request", {}), "kernel_info_reply")
        except (OSError, websocket.WebSocketException) as problem:
            said = f"{self.notebook}: {problem}. {self._school.log()}"
            raise RuntimeError(said) from problem

    def run(self, code: str) -> Cell:
        """Run a cell to its end."""
        content = {
            "code": code,
            "silent": False,
            "store_history": False,
            "allow_stdin": False,
            "user_expressions": {},
            "stop_on_error": False,
        }
        sent = time.monotonic()
        said, error = self._read(self._send("execute_request", content), "execute_reply")
        return Cell(self.number, sent, time.monotonic(), said, error)

    def interrupt(self) -> None:
        """Press the button."""
        self._school.ask("POST", f"kernels/{self._kernel}/interrupt", {})

    def leaves(self) -> None:
        """Close the page."""
        if self._line is not None:
            self._line.close()

    def _send(self, kind: str, content: dict[str, Any]) -> str:
        assert self._line is not None
        number = secrets.token_hex(8)
        header = {
            "msg_id": number,
            "msg_type": kind,
            "username": "",
            "session": number,
            "version": "5.3",
            "date": "",
        }
        message = {
            "header": header,
            "parent_header": {},
            "metadata": {},
            "content": content,
            "channel": "shell",
            "buffers": [],
        }
        self._line.send(json.dumps(message))
        return number

    def _read(self, number: str, reply: str) -> tuple[str, str]:
        """Return what was said until the reply is here and the kernel is idle again, and what went wrong; they come over two channels, in any order."""
        assert self._line is not None
        said, error, left = "", "", {reply, "idle"}
        while left:
            message = json.loads(self._line.recv())
            if message["parent_header"].get("msg_id") != number:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == reply:
                left.discard(reply)
            elif kind == "status":
                left.discard(content["execution_state"])
            elif kind == "stream":
                said += content["text"]
            elif kind in {"display_data", "update_display_data"}:
                said += content["data"].get("text/plain", "")
            elif kind == "error":
                error = "\n".join([*content["traceback"], content["evalue"]]) or content["ename"]
        return said, error
