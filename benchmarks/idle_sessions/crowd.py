"""Many idle processes that are attached as kernels are: a fork of this one for each line of stdin.

A line is one session's environment (JSON); the answer is the new process's pid, and, once its session has
been bound and its client is attached, `attached`. All end with this process's stdin.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from pathlib import Path

from gpushare_kernel.client.session import Session

THREADS = 10
"""An idle ipykernel has so many threads besides ours; the broker reads a file for each when it looks closely."""


def main() -> None:
    """Fork until stdin ends."""
    gc.freeze()
    ended, _ = pipe = os.pipe()
    for line in sys.stdin:
        variables = json.loads(line)
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(pipe[1])  # so that our end is the end of them all
            os.close(told)
            _idle(variables, tell, ended)
        os.close(tell)
        print(pid, flush=True)
        print("attached" if os.read(told, 1) else "failed", flush=True)
        os.close(told)


def _idle(variables: dict[str, str], tell: int, ended: int) -> None:
    """Be one idle kernel."""
    for _ in range(THREADS):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    session = Session(variables["GPUSHARE_TOKEN"], Path(variables["GPUSHARE_SOCKET"]))
    session.wait_attached(10)
    os.write(tell, b".")
    os.read(ended, 1)
    os._exit(0)


if __name__ == "__main__":
    main()
