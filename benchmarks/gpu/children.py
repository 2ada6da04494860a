"""A row's process: started in a folder of its own, ended at its limit, and everything that it started with it.

Brokers, guardians and kernels are sessions of their own and nobody's children, so a process group does not hold them.
All of them have the row's folder in their environment, and that is how they are found.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpushare_kernel import procfs

GRACE = 30.0
"""Seconds in which a row that is told to end may end its kernels and its broker."""
_SWEEP = 10.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a row's process ended. `late` where its limit ended it; `swept` are processes that it had left behind."""

    status: int
    output: str
    said: str
    seconds: float
    late: bool
    swept: int


def run(command: Sequence[str], *, limit: float, cwd: Path, variables: Mapping[str, str]) -> Ended:
    """Run a row for `limit` seconds at most, and leave nothing of it."""
    folder = Path(tempfile.mkdtemp(prefix="gpushare-row-", dir="/tmp"))  # short: sockets lie below
    folder.chmod(0o755)
    start = time.monotonic()
    try:
        with (folder / "stdout").open("w+b") as out, (folder / "stderr").open("w+b") as err:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env={**os.environ, **variables, "TMPDIR": str(folder)},
                start_new_session=True,
            )
            late = _wait(process, limit)
        swept = sweep(folder)
        output, said = (
            (folder / name).read_text(encoding="utf-8", errors="replace")
            for name in ("stdout", "stderr")
        )
        return Ended(
            process.returncode, output, said, time.monotonic() - start, late=late, swept=swept
        )
    finally:
        sweep(folder)
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> int:
    """End every process that has `folder` in its environment; return how many there were."""
    ended: set[int] = set()
    deadline = time.monotonic() + _SWEEP
    while (left := users_of(folder)) and time.monotonic() < deadline:
        for pid in left:
            ended.add(pid)
            key = procfs.process_key(pid)
            if key is not None:
                with contextlib.suppress(PermissionError):
                    procfs.send(key, signal.SIGKILL)
        time.sleep(
            0.05
        )  # a guardian may have started another broker: look again until nobody is left
    return len(ended)


def users_of(folder: Path) -> list[int]:
    """Return the pids of living processes with `folder` in their environment, this one excepted."""
    needle, found = os.fsencode(folder), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if needle in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def _wait(process: subprocess.Popen[bytes], limit: float) -> bool:
    """Wait for the end; say whether its limit had to end it."""
    try:
        process.wait(max(1.0, limit - min(GRACE, limit / 3)))
    except subprocess.TimeoutExpired:
        process.terminate()
    else:
        return False
    try:
        process.wait(min(GRACE, limit / 3))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return True
