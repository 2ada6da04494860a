"""Real kernels that want the same memory, the same lane or the same core."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from gpushare_kernel.core.values import MiB
from gpushare_kernel.kernel_session import KernelSession, open_session
from tests.faults.host import Host, session_of, stopped
from tests.faults.notebook import Notebook
from tests.procs import Program

STEPS = """
import gpushare_kernel as gpushare, time
count = 0
with gpushare.lane(ephemeral="600MiB", name="{name}") as lane:
    for _ in lane.steps(iter(int, 1)):
        if not count: print("stepping", flush=True)
        count += 1
        end = time.thread_time() + 0.002
        while time.thread_time() < end: pass
        if count >= {steps}: break
print("boundaries", lane.report.boundaries, "turns", lane.report.turns, flush=True)
"""

PLAIN_CELL = """
os.environ.update(eval(sys.stdin.readline()))
from gpushare_kernel.client.api import get_session
session = get_session()
session.wait_attached(60)
session.cell_started(1)
say("there")
while True: spin(1)
"""


def until_said(notebook: Notebook, code: str, text: str) -> Iterator[str]:
    """Start a cell; return its outputs once it has said `text`."""
    outputs = notebook.outputs(notebook.start(code))
    notebook.read_until(outputs, text)
    return outputs


def test_third_waits_then_runs(host: Host) -> None:
    """Of three declared cells two fit; the third says what it waits for and who holds it, and then runs."""
    host.start("--capacity", "1500MiB")
    one, two, three = (host.notebook(f"hw{n}.ipynb") for n in (1, 2, 3))
    first = one.burn("%%gpulane -p 500MiB -e 100MiB\n")
    two.burn("%%gpulane -p 400MiB -e 50MiB\n")
    outputs = three.outputs(three.start("%%gpulane -p 600MiB -e 10MiB\nprint('ran')"))
    line = three.read_until(outputs, "Waiting for memory: needs")
    assert "Your own hw1.ipynb holds 600 MiB and is running" in line
    assert "You are next." in line
    seen = host.snapshot()
    (waiting,) = seen.queue
    assert (waiting.session, waiting.reason) == (three.session, "memory")
    # Less what it keeps already: some pages, or what a plain cell is charged where its start was seen as work.
    kept = session_of(seen, three).p
    assert kept is not None
    assert kept < 4 * MiB or kept == 64 * MiB
    assert waiting.needs == 610 * MiB - kept
    said = re.search(r"needs (\d+) MiB", line)
    assert said
    assert abs(int(said[1]) * MiB - waiting.needs) < 4 * MiB
    one.interrupt()
    list(first)
    # hw1 used nothing of what it declared to keep: somebody waits, so that lapses with its cell.
    assert three.read_until(outputs, "Waited ").endswith("for memory.")
    three.read_until(outputs, "ran")
    assert not host.snapshot().queue
    list(outputs)
    # Nobody waits now: what hw3 declared it keeps until it is released, restarted or ended.
    assert (session_of(host.snapshot(), three).p or 0) >= 600 * MiB
    assert three.run("%gpushare release")[0].startswith("Released ")
    assert (session_of(host.snapshot(), three).p or 0) < 64 * MiB


def test_shared_lane_alternates(host: Host) -> None:
    """Two whose ephemeral memory fits only once take turns in one lane at their boundaries, and both end."""
    host.start("--compute", "2", "--capacity", "1GiB")
    one, two = host.notebook("one.ipynb"), host.notebook("two.ipynb")
    first = until_said(one, STEPS.format(name="one", steps=1200), "stepping")
    second = two.outputs(two.start(STEPS.format(name="two", steps=1200)))
    seen = host.until(lambda seen: seen if len(seen.devices[0].lanes[0].members) == 2 else None)
    (lane,) = seen.devices[0].lanes
    assert lane.size == 600 * MiB
    assert lane.occupant in lane.members
    other = next(member for member in lane.members if member != lane.occupant)
    host.until(lambda seen: seen.devices[0].lanes[0].occupant == other)
    host.until(lambda seen: seen.devices[0].lanes[0].occupant == lane.occupant)
    for notebook, outputs in ((one, first), (two, second)):
        words = notebook.read_until(outputs, "boundaries").split()
        assert int(words[1]) >= 1199
        assert int(words[3]) >= 2


def test_handed_over_without_a_stop(host: Host) -> None:
    """Two that meet boundaries often hand the core over there: neither is ever stopped from outside."""
    host.start("--compute", "1", "--capacity", "4GiB", "--turn", "0.2")
    one, two = host.notebook("one.ipynb"), host.notebook("two.ipynb")
    first = until_said(one, STEPS.format(name="one", steps=700), "stepping")
    second = two.outputs(two.start(STEPS.format(name="two", steps=700)))
    host.until(lambda seen: all(session_of(seen, n).mode == "exclusive" for n in (one, two)))
    turns = 0
    while not turns:
        assert not stopped(one.pid)
        assert not stopped(two.pid)
        seen = host.snapshot()
        turns = all(session_of(seen, n).turns >= 4 for n in (one, two))
    for notebook, outputs in ((one, first), (two, second)):
        words = notebook.read_until(outputs, "boundaries").split()
        assert int(words[3]) >= 3


def test_many_plain_kernels(host: Host) -> None:
    """Twenty notebooks without declarations are let in, though the memory would hold fewer; a declared one waits."""
    host.start("--capacity", "512MiB", "--compute", "2")
    notebooks = [host.notebook(f"hw{n}.ipynb") for n in range(4)]
    with contextlib.ExitStack() as crowd:
        crowd.callback(lambda: [n.close() for n in notebooks])
        sessions = [crowd.enter_context(fake_kernel(host)) for _ in range(16)]
        assert len(sessions) == 16
        seen = host.until(
            lambda seen: seen if sum(s.state == "busy" for s in seen.sessions) == 16 else None
        )
        assert all(s.jobs for s in seen.sessions if s.state == "busy")
        assert seen.devices[0].free == 0
        for notebook in notebooks:
            assert notebook.run("6 * 7") == ["42"]
        waiting = notebooks[0].run("%%gpulane 200MiB --wait 0.5\nprint('ran')")
        assert any("still no memory" in line for line in waiting)
        assert "ran" not in waiting
    host.until(lambda seen: not seen.sessions)


@contextlib.contextmanager
def fake_kernel(host: Host) -> Iterator[KernelSession]:
    """A process with our client in a cell that works: a kernel without what makes one slow to start."""
    session = open_session(host.places, "fake.ipynb", kernel_id="", language="python", weight=1.0)
    with Program(PLAIN_CELL, site=True) as program:
        session.bind(program.pid)
        environment = {**session.environment(), "GPUSHARE_RUNTIME_DIR": str(host.places.runtime)}
        program.tell(repr(environment))
        assert program.said() == ["there"]
        yield session
    session.close()
