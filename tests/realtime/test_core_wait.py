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
        mark = wait.mark()
        while time.thread_time() - mark.ran < 0.2:
            pass
        so_far, now = wait.so_far(mark), wait.mark()
        found.extend((now.wall - mark.wall - (now.ran - mark.ran), so_far, wait.lost(mark, now)))

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
    assert wait.lost(mark, wait.mark()) < 0.1


def helped() -> tuple[float, float]:
    """Return what is lost while a thread waits for another, bound to a core where somebody else is; and the first one's part."""
    core = min(os.sched_getaffinity(0))
    wait, began, go = CoreWait(cores=2), threading.Event(), threading.Event()

    def help_it() -> None:
        os.sched_setaffinity(0, [core])
        began.set()
        go.wait()
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass
        done.set()
        over.wait()

    done, over = threading.Event(), threading.Event()
    helper = threading.Thread(target=help_it)
    helper.start()
    began.wait()
    rival = f"os.sched_setaffinity(0, [{core}]); say('there')\nwhile True: pass"
    with Program(rival) as other:
        assert other.said() == ["there"]
        mark = wait.mark()
        go.set()
        done.wait()
        now = wait.mark()
    over.set()
    helper.join()
    return wait.lost(mark, now), wait.lost(mark, now, alone=True)


def test_a_helper_that_waits_for_a_core_is_seen() -> None:
    """A library's other threads wait too, and the first one sleeps for them: that is not the layer's either."""
    lost, first = helped()
    assert first < 0.05
    assert lost > 0.05


def test_threads_in_each_others_way_are_no_excuse() -> None:
    """Two threads of one process on its one core: it had the core all the time."""
    wait = CoreWait(cores=1)
    core, mark = min(os.sched_getaffinity(0)), wait.mark()

    def compute() -> None:
        os.sched_setaffinity(0, [core])
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass

    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait.mark()
    for thread in threads:
        thread.join()
    now = wait.mark()
    taken = (now.wall - mark.wall) - (
        now.used - mark.used
    )  # below 0: others of the process ran beside
    assert wait.lost(mark, now) <= max(0.0, taken) + 0.001


def test_a_thread_that_is_left_out_is_nobodys_excuse() -> None:
    """The watchdog does none of a layer's work; a thread that has ended is no error."""
    wait = CoreWait(cores=2)
    there, end = threading.Event(), threading.Event()

    def rest() -> None:
        wait.leave_out(threading.get_native_id())
        there.set()
        end.wait()

    thread = threading.Thread(target=rest)
    thread.start()
    there.wait()
    mark = wait.mark()
    assert thread.native_id not in mark.others
    end.set()
    thread.join()
    assert wait.so_far(mark) >= 0
    assert wait.lost(mark, wait.mark()) >= 0
