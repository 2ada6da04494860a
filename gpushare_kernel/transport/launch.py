"""Start a broker as a daemon and wait until it is ready; both clients and the guardian do.

The new broker has a pipe as `--ready-fd` and as its stderr. It writes one NUL byte when it listens;
whatever else comes (a traceback, a refusal) before the pipe's end is why it did not start. `WHY` ends what is
meant for people: there is no more to be told.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from gpushare_kernel.core.errors import BrokerUnavailable

READY = b"\0"
WHY = "\1"
_PYTHON_KEPT = frozenset(("CONDA_PREFIX", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"))
_KEPT = _PYTHON_KEPT | {
    "GPUSHARE_RUNTIME_DIR",
    "HOME",
    "LANG",
    "LANGUAGE",
    "LOGNAME",
    "PATH",
    "TMPDIR",
    "TZ",
    "USER",
}
_KEPT_PREFIXES = ("LC_", "XDG_", "LD_LIBRARY_", "CUDA_", "NVIDIA_")

# The daemon must be nobody's child: a notebook server's tree is paused and ended as one. Forking in the caller,
# which may have threads, is not safe, so a fresh interpreter forks and is gone.
_DETACH = "import os, sys\nif os.fork() == 0: os.execv(sys.argv[1], sys.argv[1:])"


class SaysWhy(BrokerUnavailable):
    """The broker said itself, in words for people, why it does not start."""


def launch(command: Sequence[str], timeout: float) -> None:
    """Start `command --ready-fd N` as a daemon and wait until it is ready.

    Parameters
    ----------
    command
        The program (an absolute path) and its arguments.
    timeout
        Seconds to wait for it. One that is late is not ended: it may still come up.

    Raises
    ------
    BrokerUnavailable
        Where it ends before it is ready, with what it wrote (`SaysWhy` where that is all there is to say); or does not get
        ready in time.
    """
    read, write = os.pipe()
    try:
        try:
            starter = subprocess.run(  # noqa: S603  the command is ours
                [sys.executable, "-I", "-S", "-c", _DETACH, *command, "--ready-fd", str(write)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=write,
                pass_fds=[write],
                cwd="/",
                env=environment(os.environ),
                start_new_session=True,
                check=False,
            )
        finally:
            os.close(write)
        said, ready = _listen(read, time.monotonic() + timeout)
    except OSError as problem:
        msg = f"the gpushare broker cannot be started ({command[0]}): {problem.strerror}."
        raise BrokerUnavailable(msg) from problem
    finally:
        os.close(read)
    if ready:
        return
    if ready is None:
        msg = f"the gpushare broker was started, but was not ready within {timeout:g} s."
        raise BrokerUnavailable(msg)
    words = said.replace(WHY, "").strip() or f"it ended without a word ({starter.returncode})"
    msg = f"the gpushare broker did not start: {words}"
    raise (SaysWhy if WHY in said else BrokerUnavailable)(msg)


def report_ready(ready_fd: int) -> None:
    """Tell who started us that we listen, and let go of the pipe."""
    with contextlib.suppress(BrokenPipeError):
        os.write(ready_fd, READY)
    _let_go(ready_fd)


def report_failure(ready_fd: int, text: str) -> None:
    """Tell who started us, in words for people, why we do not, and let go of the pipe."""
    with contextlib.suppress(BrokenPipeError):
        os.write(ready_fd, f"{text}{WHY}".encode())
    _let_go(ready_fd)


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Return what of our environment a broker gets: no Jupyter or hub token, no session, nobody's secrets."""
    return {
        name: value
        for name, value in ours.items()
        if name in _KEPT or name.startswith(_KEPT_PREFIXES)
    }


def _listen(read: int, deadline: float) -> tuple[str, bool | None]:
    """Return what was said, and whether it is ready: True, False (it ended), None (time is over)."""
    said = b""
    poll = select.poll()
    poll.register(read, select.POLLIN)
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        data = os.read(read, 4096)
        said += data
        if READY in said:
            return said.replace(READY, b"").decode(errors="replace"), True
        if not data:
            return said.decode(errors="replace"), False
    return said.decode(errors="replace"), None


def _let_go(ready_fd: int) -> None:
    """Close the pipe, also where it is our stderr: later output must not meet a pipe nobody reads."""
    pipe = os.fstat(ready_fd)
    errors = os.fstat(2)
    if (pipe.st_dev, pipe.st_ino) == (errors.st_dev, errors.st_ino):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
    os.close(ready_fd)
