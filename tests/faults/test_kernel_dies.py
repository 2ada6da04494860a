"""Kernels are killed, restarted, interrupted and shut down, whatever they are doing with the device."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager

from gpushare_kernel import procfs
from gpushare_kernel.core.values import MiB, ProcessKey
from gpushare_kernel.wire import texts
from tests.faults.conftest import Measured
from tests.faults.host import Host, ended, kill, session_of, stopped, took
from tests.faults.notebook import BURN, Notebook
from tests.procs import eventually, key_of

BIG = "%%gpulane -p 700MiB -e 10MiB\n"
"""Two of these do not fit the device of these tests."""

CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-E", "-c", "while True: pass"])
print("child", child.pid, flush=True)
"""


@pytest.fixture
def crowd(host: Host) -> Host:
    """A host of one core, with turns long enough to meet somebody who stands still."""
    host.start("--compute", "1", "--turn", "3", "--capacity", "1300MiB")
    return host


@pytest.fixture
def slow_turns(host: Host) -> Host:
    """A host whose turns are longer than anybody waits for an interrupt or a shutdown."""
    host.start("--compute", "1", "--turn", "10", "--capacity", "1300MiB")
    return host


def paused_of(*notebooks: Notebook) -> tuple[Notebook, Notebook]:
    """Wait until one of two has just been paused; return (paused, running)."""
    eventually(lambda: sum(stopped(n.pid) for n in notebooks) == 1, 60)
    one, two = notebooks
    return (one, two) if stopped(one.pid) else (two, one)


def contending(host: Host) -> tuple[Notebook, Notebook]:
    """Start two notebooks that want the same core."""
    one, two = host.notebook("one.ipynb"), host.notebook("two.ipynb")
    one.burn()
    two.burn()
    return one, two


def queued(host: Host, notebook: Notebook) -> Iterator[str]:
    """Run a cell that must wait for memory; return its outputs once it says so."""
    outputs = notebook.outputs(notebook.start(BIG + "print('ran')"))
    notebook.read_until(outputs, "Waiting for memory: needs")
    host.until(lambda seen: any(q.session == notebook.session for q in seen.queue))
    return outputs


def free_again(host: Host, notebook: Notebook) -> None:
    """Wait until nothing of `notebook` is charged, waiting or running, whether its session is there or not."""

    def gone() -> bool:
        seen = host.snapshot()
        device = seen.devices[0]
        left = [
            s
            for s in seen.sessions
            if s.id == notebook.session and (s.jobs or (s.p or 0) >= 50 * MiB)
        ]
        members = [job for lane in device.lanes for job in lane.members]
        return not left and not any(
            notebook.session in job for job in [*members, *(q.job for q in seen.queue)]
        )

    eventually(gone)


# --- killed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["running", "paused"])
def test_killed_in_turns(crowd: Host, which: str, measured: Measured) -> None:
    """Of two that take turns one is killed: the other runs, and memory and lane of the dead one are free."""
    one, two = contending(crowd)
    paused, running = paused_of(one, two)
    victim, other = (paused, running) if which == "paused" else (running, paused)
    kill(victim.key)
    measured("all run again", took(lambda: not stopped(other.pid), 5))
    free_again(crowd, victim)
    before = procfs.cpu_seconds(other.pid)
    assert before is not None
    eventually(lambda: (procfs.cpu_seconds(other.pid) or 0) > before + 0.5)
    alone = crowd.until(lambda seen: seen if session_of(seen, other).mode == "alone" else None)
    assert len(alone.devices[0].lanes) == 1


def test_killed_while_queued(crowd: Host) -> None:
    """A queued kernel that is killed leaves the queue, and whoever waits behind it moves up."""
    holder, queuer, third = (crowd.notebook(f"{n}.ipynb") for n in ("holder", "queuer", "third"))
    holder.burn(BIG)
    queued(crowd, queuer)
    behind = queued(crowd, third)
    assert crowd.until(lambda seen: [q for q in seen.queue if q.ahead == 1])
    kill(queuer.key)
    crowd.until(lambda seen: [q.session for q in seen.queue] == [third.session])
    free_again(crowd, queuer)
    kill(holder.key)
    third.read_until(behind, "ran")


def test_killed_with_children(crowd: Host) -> None:
    """Children that outlive their killed kernel while it stands still run again, and are shown."""
    one, two = crowd.notebook("one.ipynb"), crowd.notebook("two.ipynb")
    lines = {n: n.read_until(n.outputs(n.start(CHILD + BURN)), "child") for n in (one, two)}
    children = {n: key_of(int(line.split()[1])) for n, line in lines.items()}
    paused, running = paused_of(one, two)
    with ended(*children.values()):
        eventually(lambda: stopped(children[paused].pid))
        kill(paused.key)
        eventually(lambda: not stopped(children[paused].pid), 5)
        shown = crowd.until(
            lambda seen: [s for s in seen.sessions if s.pid == children[paused].pid]
        )
        assert shown[0].name == f"{'one' if paused is one else 'two'}.ipynb (left running)"
        used = crowd.snapshot().users[0].device_time
        assert procfs.alive(children[running])
        kill(running.key)
        crowd.until(lambda seen: [s for s in seen.sessions if s.pid == children[running].pid])
        crowd.until(lambda seen: seen.users[0].device_time > used + 0.5)
    crowd.until(lambda seen: all(s.pid is None for s in seen.sessions))


# --- restarted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize("doing", ["running", "paused", "queued"])
def test_restarted(crowd: Host, doing: str, now: bool) -> None:
    """A restart keeps session and user; its jobs end, its memory is free, its token is a new one."""
    one = crowd.notebook("one.ipynb")
    if doing == "queued":
        crowd.notebook("holder.ipynb").burn(BIG)
        queued(crowd, one)
    else:
        two = crowd.notebook("two.ipynb")
        one.burn("%%gpulane -p 100MiB -e 50MiB\n")
        two.burn()
        eventually(
            lambda: (
                stopped(one.pid) == (doing == "paused") and stopped(two.pid) == (doing == "running")
            )
        )
    session, token, user = one.session, one.token, session_of(crowd.snapshot(), one).user
    old = one.key
    one.restart(now=now)
    assert not procfs.alive(old)
    assert (one.session == session, one.token == token) == (True, False)
    seen = crowd.until(
        lambda seen: seen if session_of(seen, one).state not in {"opened", "bare"} else None
    )
    mine = session_of(seen, one)
    assert (mine.user, mine.pid, mine.name) == (user, one.pid, "one.ipynb")
    free_again(crowd, one)
    assert "again" in one.run("%%gpulane 10MiB\nprint('again')")


def test_restarted_by_jupyter(crowd: Host) -> None:
    """A kernel that dies is restarted by Jupyter's restarter, as the same session."""

    async def test() -> None:
        manager = AsyncIOLoopKernelManager(kernel_name="python3")
        await manager.start_kernel()
        restarted = asyncio.Event()
        manager.add_restart_callback(restarted.set)
        try:
            session, pid = manager.provisioner._session.session, manager.provisioner.pid
            crowd.until(lambda seen: [s for s in seen.sessions if s.state == "idle"])
            procfs.send(key_of(pid), signal.SIGKILL)
            await asyncio.wait_for(restarted.wait(), 30)
            async with asyncio.timeout(30):
                while manager.provisioner.pid == pid:  # noqa: ASYNC110 - the restarter tells no more
                    await asyncio.sleep(0.01)
            fresh = manager.provisioner.pid
            found = await asyncio.to_thread(
                crowd.until,
                lambda seen: [s for s in seen.sessions if s.pid == fresh and s.state == "idle"],
            )
            assert [s.id for s in found] == [session]
        finally:
            await manager.shutdown_kernel(now=True)
            await manager.cleanup_resources()

    asyncio.run(test())


def test_restarted_after_a_new_broker(crowd: Host) -> None:
    """A broker that was killed in between does not make a restarted kernel another session."""
    one = crowd.notebook("one.ipynb")
    session = one.session
    kill(crowd.broker)
    crowd.until(lambda seen: session_of(seen, one).state == "idle")
    one.restart(now=True)
    assert one.session == session
    crowd.until(lambda seen: session_of(seen, one).pid == one.pid)


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed (SIGKILL)"),
        ("os._exit(3)", "ended with exit status 3"),
    ],
)
def test_the_next_start_says_why_the_kernel_died(crowd: Host, end: str, how: str) -> None:
    """With its first cell, once, and that it was not us; of an end that was asked for nothing is said."""
    one = crowd.notebook("one.ipynb")
    one.restart(now=True)
    assert one.run("'quiet'") == ["'quiet'"]
    one.start(f"import os, signal\n{end}")
    eventually(lambda: not one.manager.is_alive())
    one.restart(now=True)
    first = one.run("'again'")
    assert how in first[0]
    assert "not ended by gpushare" in first[0]
    assert one.run("'quiet'") == ["'quiet'"]


# --- interrupted -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
def test_interrupted_while_queued(crowd: Host, body: str) -> None:
    """The interrupt leaves the queue with one line and no frames of ours; the cell has not run."""
    crowd.notebook("holder.ipynb").burn(BIG)
    one = crowd.notebook("one.ipynb")
    outputs = one.outputs(one.start(f"{BIG}{body}print('ran')"))
    one.read_until(outputs, "Waiting for memory")
    one.interrupt()
    lines = list(outputs)
    assert lines[-1] == f"gpushare: {texts.LEFT_QUEUE}"
    assert "ran" not in lines
    assert not [line for line in lines if "gpushare_" in line]
    crowd.until(lambda seen: not seen.queue)
    assert one.run("6 * 7") == ["42"]


def test_interrupted_while_paused(slow_turns: Host, measured: Measured) -> None:
    """A cell that stands still is interrupted within a second, and the other one runs on."""
    crowd = slow_turns
    one, two = crowd.notebook("one.ipynb"), crowd.notebook("two.ipynb")
    outputs = {one: one.burn(), two: two.burn()}
    paused, running = paused_of(one, two)
    seconds = took(lambda: _interrupted(paused, outputs[paused]), 30)
    measured("interrupted", seconds)
    assert seconds < 5
    crowd.until(lambda seen: session_of(seen, running).mode == "alone")
    assert not stopped(running.pid)
    assert paused.run("6 * 7") == ["42"]


def _interrupted(notebook: Notebook, outputs: Iterator[str]) -> bool:
    notebook.interrupt()
    return any("KeyboardInterrupt" in line for line in outputs)


# --- shut down -------------------------------------------------------------------------------------------


def test_shut_down_while_paused(slow_turns: Host, measured: Measured) -> None:
    """A paused kernel answers a shutdown by itself: what it does at its end is done."""
    crowd = slow_turns
    one, two = crowd.notebook("one.ipynb"), crowd.notebook("two.ipynb")
    for notebook in (one, two):
        notebook.run("import atexit, pathlib, threading, os")
        notebook.run(
            f"atexit.register(pathlib.Path('{crowd.places.runtime}', str(os.getpid())).touch)"
        )
        # Not the main thread: a shutdown waits for the cell, and this is about who stands still.
        notebook.run(
            "threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()"
        )
    paused, running = paused_of(one, two)
    pid, key = paused.pid, paused.key
    seconds = took(lambda: _shut_down(paused, key), 30)
    measured("gone, politely", seconds)
    assert (crowd.places.runtime / str(pid)).exists()
    crowd.until(lambda seen: [s.id for s in seen.sessions] == [running.session])


def _shut_down(notebook: Notebook, key: ProcessKey) -> bool:
    notebook.closed = True
    notebook.client.stop_channels()
    notebook.manager.shutdown_kernel(now=False)
    notebook.manager.cleanup_resources()
    return not procfs.alive(key)
