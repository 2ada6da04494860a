"""A notebook paused by hand: its real kernel stands still, keeps what it has, and goes on as asked."""

from __future__ import annotations

from gpushare_kernel.core.values import MiB
from tests.faults.host import Host, session_of, stopped
from tests.faults.notebook import Notebook
from tests.procs import eventually


def test_pause_and_resume_from_another_notebook(host: Host) -> None:
    """The magic's words, what the snapshot says, and that others have the device meanwhile."""
    host.start("--capacity", "1GiB", "--compute", "1", "--turn", "0.05")
    here, there = host.notebook("hw1.ipynb"), host.notebook("hw2.ipynb")
    burning = there.burn("%%gpulane -p 200MiB -e 10MiB\n")
    (said,) = here.run("%gpushare pause hw2")
    assert said == (
        "Paused hw2.ipynb for 10 min at most; it keeps its memory. It goes on sooner: %gpushare resume hw2"
    )
    host.until(lambda seen: session_of(seen, there).why_paused == "by-its-owner")
    eventually(lambda: stopped(there.pid))
    spins(here)  # the sample after this one has all that it used
    used = session_of(host.snapshot(), there).device_time
    spins(here)
    seen = session_of(host.snapshot(), there)
    assert (seen.state, seen.device_time) == ("paused", used)
    assert (seen.p or 0) >= 200 * MiB
    assert here.run("%gpushare resume hw2.ipynb") == ["hw2.ipynb runs again, in its turn."]
    host.until(lambda seen: session_of(seen, there).device_time > used)
    assert here.run("%gpushare resume hw2") == ["Nothing to resume: you have not paused it."]
    there.interrupt()
    list(burning)


def test_interrupt_ends_a_pause(host: Host) -> None:
    """Whoever presses the button is heard: the cell ends at once, and nothing stays paused."""
    host.start("--capacity", "1GiB", "--compute", "1")
    there = host.notebook("hw2.ipynb")
    burning = there.burn("%%gpulane -p 200MiB -e 10MiB\n")
    with host.line() as line:
        line.pause(there.session)
    eventually(lambda: stopped(there.pid))
    there.interrupt()
    assert "KeyboardInterrupt" in "".join(burning)
    host.until(lambda seen: session_of(seen, there).state == "idle")


def spins(notebook: Notebook) -> None:
    """Use the device for a moment."""
    notebook.run(
        "%%gpulane 10MiB\nimport time\nend = time.thread_time() + 0.3\nwhile time.thread_time() < end: pass"
    )
