"""Time in which somebody else was on the core is not a layer's own."""

from __future__ import annotations

import os
import threading
import time

from gpushare_kernel.realtime.core_wait import CoreWait
from tests.procs import Program


def test_waiting_for_a_core_is_seen() -> None:
    """Two processes that compute on one core: of the time on the wall, what one did not run it waited."""
    core = min(os.sched_getaffinity(0))
    rival = f"os.sched_setaffinity(0, [{core}]); say('there')\nwhile True: pass"
    found: list[float] = []

    def compute() -> None:
        os.sched_setaffinity(0, [core])
        wait = CoreWait()
        began, waited, wall, mark = time.thread_time(), wait.seconds(), time.monotonic(), wait.mark()  # fmt: skip
        while time.thread_time() - began < 0.2:
            pass
        took = time.monotonic() - wall
        found.extend((took - (time.thread_time() - began), wait.seconds() - waited, wait.lost(mark)))  # fmt: skip

    with Program(rival) as other:
        assert other.said() == ["there"]
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()
    not_running, waited, lost = found
    assert waited > 0.05
    assert waited <= lost + 0.001
    assert abs(lost - not_running) < 0.05 * not_running


def test_asleep_is_not_waiting() -> None:
    """A layer that waits for something else has itself to blame."""
    wait = CoreWait()
    mark = wait.mark()
    threading.Event().wait(0.2)
    assert wait.lost(mark) < 0.1
