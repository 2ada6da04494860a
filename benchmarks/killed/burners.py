"""Processes that are attached as kernels are and want the device for ever: a fork of this one for each line of stdin.

A line is one session's environment (JSON); the answer is the new process's pid, and, once its session has been bound, its
client is attached and its cell has begun, `at work`. All end with this process's stdin.
"""

from __future__ import annotations

import gc
import json
import os
import select
import sys
import time
from pathlib import Path

from gpushare_kernel.client.session import Session

BURN, REST = 0.01, 0.02
"""Seconds: each asks for a third of a core, so that several hosts of this benchmark fit a small machine."""


def main() -> None:
    """Fork until stdin ends."""
    gc.freeze()
    ended, end = os.pipe()
    for line in sys.stdin:
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(end)  # so that our end is the end of them all
            os.close(told)
            _work(json.loads(line), tell, ended)
        os.close(tell)
        print(pid, flush=True)
        print("at work" if os.read(told, 1) else "failed", flush=True)
        os.close(told)


def _work(variables: dict[str, str], tell: int, ended: int) -> None:
    """Be one kernel whose plain cell does not end."""
    os.environ.update(variables)
    session = Session(variables["GPUSHARE_TOKEN"], Path(variables["GPUSHARE_SOCKET"]))
    session.listen(lambda _: None)
    session.wait_attached(20)
    session.cell_started(1)
    os.write(tell, b".")
    while not select.select([ended], [], [], REST)[0]:
        until = time.thread_time() + BURN
        while time.thread_time() < until:
            pass
    os._exit(0)


if __name__ == "__main__":
    main()
