"""Runs on a host, at the other end of a gateway's ssh connection: says how the host is, starts kernels, signals them.

    python -P -m gpushare_kernel.hub.agent

It asks this host's broker as the user who logged in, keeps nothing, and ends with its input, or when nobody has asked for
a minute. Kernels are in sessions of their own and outlive it. Each becomes our launcher first, which opens a session of
this host's broker for its own process and then becomes the kernel.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from gpushare_kernel import __version__, procfs
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.errors import GpushareError, NoBroker
from gpushare_kernel.core.values import ProcessKey, SessionId
from gpushare_kernel.hub.report import (
    FORMAT,
    LONGEST_LINE,
    Answer,
    BadLine,
    Done,
    Failed,
    Greeting,
    Launch,
    Launched,
    Look,
    Question,
    Seen,
    Signal,
    encode,
    key_of,
    pid_of,
    read_question,
    states,
)
from gpushare_kernel.kernel_session import (
    SESSION,
    SOCKET,
    TOKEN,
    KernelSession,
    without_session,
)
from gpushare_kernel.transport.places import Places, how_to_start, may_start, places

UNASKED = 60.0
"""Seconds without a question after which the gateway is taken for gone: a connection that was cut says nothing."""
ANSWER = 2.0
"""Seconds for the broker's answer."""
DRIVER = Path("/sys/module/nvidia/version")
_TAIL = 4096
_LAUNCHER = (sys.executable, "-P", "-m", "gpushare_kernel.app.launcher", "--")


class Agent:
    """Answers. Kernels that it started are its children, so it reaps them."""

    def __init__(self) -> None:
        self._children: dict[ProcessKey, subprocess.Popen[bytes]] = {}
        self._logs: dict[ProcessKey, Path] = {}

    def answer(self, question: Question) -> Answer:
        """Return the answer to one question; what goes wrong is one, too."""
        try:
            if isinstance(question, Look):
                return self._look(question)
            if isinstance(question, Launch):
                return self._launch(question)
            return self._signal(question)
        except (GpushareError, OSError) as problem:
            return Failed(" ".join(str(problem).split()))

    def _look(self, look: Look) -> Seen:
        gone = tuple(pid for pid in look.alive if not self._alive(key_of(pid)))
        where = places()
        try:
            with Line(where, ANSWER, agent="gpushare gateway") as line:
                return Seen(states(line.snapshot()), gone)
        except NoBroker:
            if may_start(where):
                return Seen((), gone)
            trouble = f"no broker answers at {where.socket}, and only root may start one there: sudo {how_to_start(where)}"
        except (GpushareError, OSError) as problem:
            trouble = " ".join(str(problem).split())
        return Seen((), gone, trouble)

    def _alive(self, key: ProcessKey) -> bool:
        child = self._children.get(key)
        if child is not None and child.poll() is not None:
            del self._children[key]
            return False
        return procfs.alive(key)

    def _launch(self, launch: Launch) -> Launched:
        # Nobody's link is followed: the folder of logs is open to all.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        log = os.open(launch.log, flags, 0o600)
        try:
            child = subprocess.Popen(  # noqa: S603  what the gateway's kernelspec says
                [*_LAUNCHER, *launch.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=launch.cwd if launch.cwd and Path(launch.cwd).is_dir() else Path.home(),
                env={**without_session(os.environ), **launch.env},
                start_new_session=True,
            )
        finally:
            os.close(log)
        key = procfs.process_key(child.pid)
        if key is None:  # it cannot be reaped by anybody else
            msg = "the kernel's process cannot be seen in /proc"
            raise GpushareError(msg)
        self._children[key], self._logs[key] = child, Path(launch.log)
        return Launched(pid_of(key))

    def _signal(self, request: Signal) -> Done:
        key = key_of(request.process)
        if not self._alive(key):
            return Done(there=False, said=_last_line(self._logs.get(key)))
        _exempt(key, briefly=request.number == signal.SIGINT)
        if request.number == 0:
            return Done(there=True)
        try:
            if request.number == signal.SIGINT:
                _interrupt(key.pid)
            else:
                os.killpg(os.getpgid(key.pid), request.number)
        except ProcessLookupError:
            return Done(there=False)
        return Done(there=True)


def _interrupt(pid: int) -> None:
    """Interrupt the kernel itself, as the engine does: a child of it is the engine's listener, which an interrupt would end."""
    nobody = 0
    if not procfs.interrupt(pid, nobody):
        os.kill(pid, signal.SIGINT)


def _exempt(key: ProcessKey, *, briefly: bool) -> None:
    """Have a paused kernel run on, or it would not notice. Whatever is wrong with the broker, the signal goes out."""
    found = [procfs.environ(key.pid, name) for name in (SOCKET, SESSION, TOKEN)]
    socket, session, token = found
    if not (socket and session and token):
        return
    here = Places(Path(socket).parent, system=False, named=True)
    with contextlib.suppress(GpushareError, OSError):
        KernelSession(here, SessionId(session), token).exempt(briefly=briefly)


def _last_line(log: Path | None) -> str:
    if log is None:
        return ""
    with log.open("rb") as text:
        text.seek(max(0, log.stat().st_size - _TAIL))
        return text.read().decode(errors="replace").strip().rpartition("\n")[2]


def driver(path: Path = DRIVER) -> str:
    """Return the version of this host's NVIDIA driver; empty where there is none."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def serve(source: int, sink: int, unasked: float = UNASKED) -> None:
    """Greet, then answer line by line, until the input ends or nobody has asked for `unasked` seconds."""
    agent, held = Agent(), b""
    _write(sink, encode(Greeting(FORMAT, __version__, driver())))
    while select.select([source], [], [], unasked)[0]:
        data = os.read(source, 1 << 16)
        if not data:
            return
        *lines, held = (held + data).split(b"\n")
        if len(held) > LONGEST_LINE:
            return
        for line in lines:
            try:
                answer = agent.answer(read_question(line))
            except BadLine as problem:
                answer = Failed(f"the question cannot be read: {problem}")
            _write(sink, encode(answer))


def _write(sink: int, line: bytes) -> None:
    rest = line + b"\n"
    while rest:
        rest = rest[os.write(sink, rest) :]


def main() -> None:
    """Serve on the standard streams."""
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve(sys.stdin.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    main()
