"""A row's process: its limit, and what it leaves behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.gpu.children import run, users_of

PREFIX = "gpushare-row-"


def child(code: str, *, limit: float = 60.0):
    return run([sys.executable, "-c", code], limit=limit, cwd=Path("/"), variables={"WORD": "yes"})


def test_a_row_that_ends_gives_its_output():
    """Its result on stdout, its progress on stderr, its status, in the environment it was given."""
    ended = child(
        "import os, sys; print(os.environ['WORD']); print('far', file=sys.stderr); sys.exit(3)"
    )
    assert (ended.status, ended.output, ended.said) == (3, "yes\n", "far\n")
    assert not ended.late
    assert ended.swept == 0


def test_a_row_past_its_limit_is_told_to_end_and_may_tidy_up():
    """SIGTERM first: kernels and broker are ended by whoever started them."""
    ended = child(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('tidy', flush=True), sys.exit(7)))\n"
        "time.sleep(60)",
        limit=3.0,
    )
    assert ended.late
    assert (ended.status, ended.output) == (7, "tidy\n")


def test_a_row_that_does_not_listen_is_ended_all_the_same():
    """A hang costs one row."""
    ended = child(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)",
        limit=3.0,
    )
    assert ended.late
    assert ended.status == -9


def test_what_a_row_leaves_behind_is_ended(tmp_path):
    """A daemon of its own session, and one that stands still, are found by the row's folder in their environment."""
    ended = child(
        "import os, signal, subprocess, sys, tempfile\n"
        "one, two = (subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'],"
        " start_new_session=True, stdout=subprocess.DEVNULL) for _ in range(2))\n"
        "os.kill(two.pid, signal.SIGSTOP)\n"
        "print(one.pid, two.pid, tempfile.gettempdir())"
    )
    one, two, folder = ended.output.split()
    assert ended.swept == 2
    assert not users_of(Path(folder))
    assert PREFIX in folder
    assert not Path(folder).exists()
    for pid in (one, two):
        assert not Path("/proc", pid).exists() or _zombie(int(pid))


def test_who_is_not_of_the_row_is_left_alone():
    """Another folder's processes are nobody's here; this process least of all."""
    assert os.getpid() not in users_of(Path("/"))
    assert users_of(Path("/tmp/gpushare-row-of-nobody")) == []


def _zombie(pid: int) -> bool:
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()
