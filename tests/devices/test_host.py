"""The CPU as a device, with real process trees."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import PauseStatus, ProcessKey
from gpushare_kernel.devices import host as host_module
from gpushare_kernel.devices.base import Device, PauseOutcome, Target
from gpushare_kernel.devices.host import HostDevice
from tests.devices.records import Record
from tests.procs import Program, eventually

SPIN = "say('up')\nwhile True: pass"
PARENT_OF_SPINNERS = """
kids = [subprocess.Popen([sys.executable, '-S', '-c', 'while True: pass']) for _ in range(2)]
say(*[k.pid for k in kids])
while True: pass
"""
NURSERY = """
say('up')
while True:
    pid = os.fork()
    if not pid: time.sleep(0.002); os._exit(0)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError: pass
"""
ORPHAN = """
inner = "import os, subprocess, sys; p = subprocess.Popen([sys.executable, '-S', '-c', 'while True: pass'], stdout=subprocess.DEVNULL); print(p.pid, flush=True); sys.stdin.read()"
middle = subprocess.Popen([sys.executable, '-S', '-c', inner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
say(middle.stdout.readline()); wait(); middle.stdin.close(); middle.wait(); say('orphaned')
while True: pass
"""


def pause(device: HostDevice, target: Target, limit: float = 20.0) -> PauseOutcome:
    return asyncio.run(device.pause(target, limit=limit))


def resume(device: HostDevice, target: Target) -> PauseOutcome:
    return asyncio.run(device.resume(target))


def elsewhere() -> None:
    """Let another process use 20 ms of CPU: time in which a running one would be seen to run."""
    with Program("spin(0.02); say('done')") as other:
        other.said()


def used(device: HostDevice, target: Target) -> float:
    usage = device.usage(target)
    assert usage is not None
    return usage.device_time


def test_it_is_a_device_and_says_that_it_is_no_gpu(host: HostDevice) -> None:
    """The CPU never pretends, and says why it cannot park."""
    device: Device = host
    assert device.inventory.kind == "host"
    assert device.inventory.name.endswith("(CPU, no GPU)")
    assert device.inventory.reserve == 0
    assert 0 < device.inventory.compute <= len(os.sched_getaffinity(0))
    assert device.inventory.capacity > 0
    assert device.capabilities.can_pause
    assert not device.capabilities.can_park
    assert "park" in device.capabilities.why


def test_a_device_without_memory_or_cores_is_refused(record: Record) -> None:
    """The message has the numbers and what to do."""
    with pytest.raises(DeviceError, match=r"not 0 bytes and 2 cores.*--capacity"):
        HostDevice(record, capacity=0, compute=2)


def test_pausing_stops_the_whole_tree_and_resuming_lets_it_run(
    host: HostDevice, record: Record
) -> None:
    """Parent and both children stand still, use nothing, and run on afterwards."""
    with Program(PARENT_OF_SPINNERS) as program:
        target = Target(program.key)
        pids = {program.pid, *program.said_pids()}
        outcome = pause(host, target)
        assert outcome.status is PauseStatus.PAUSED
        assert outcome.drain > 0
        assert {key.pid for key in host.paused(target)} == pids == {k.pid for k in record.keys}
        before = used(host, target)
        elsewhere()
        assert used(host, target) == before
        assert resume(host, target).status is PauseStatus.NOTHING
        assert not host.paused(target)
        assert record.keys == []
        eventually(lambda: used(host, target) > before + 0.02)


def test_intent_is_on_record_before_each_stop_and_until_after_each_continue(
    host: HostDevice, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I4: at the moment of each signal the process is on record."""
    send = procfs.send
    sent: list[int] = []

    def checked(key: ProcessKey, signum: int) -> bool:
        assert key in record.keys
        sent.append(signum)
        return send(key, signum)

    with Program(PARENT_OF_SPINNERS) as program:
        program.said_pids()
        with monkeypatch.context() as patch:
            patch.setattr(procfs, "send", checked)
            pause(host, Target(program.key))
            resume(host, Target(program.key))
        assert sent.count(signal.SIGSTOP) >= 3
        assert sent.count(signal.SIGCONT) == 3


def test_a_tree_that_forks_in_a_loop_is_stopped_for_good(host: HostDevice) -> None:
    """Children born during the walk are found; afterwards nobody is born and nobody runs."""
    with Program(NURSERY) as program:
        target = Target(program.key)
        program.said()
        for _ in range(20):
            assert pause(host, target).status is PauseStatus.PAUSED
            family = procfs.tree(program.pid)
            before = used(host, target)
            elsewhere()
            assert procfs.tree(program.pid) == family
            assert {procfs.state_of(key) for key in family} <= {"T", "Z", "D"}
            assert used(host, target) == before
            resume(host, target)


def test_a_grandchild_that_lost_its_parent_is_still_paused_charged_and_resumed(
    host: HostDevice,
) -> None:
    """Once seen, a member stays one, though it belongs to init now."""
    with Program(ORPHAN) as program:
        target = Target(program.key)
        (orphan,) = program.said_pids()
        host.usage(target)
        program.tell()
        program.said()
        assert not procfs.is_descendant(orphan, program.pid)
        assert pause(host, target).status is PauseStatus.PAUSED
        assert orphan in {key.pid for key in host.paused(target)}
        before = used(host, target)
        elsewhere()
        assert used(host, target) == before
        resume(host, target)
        assert procfs.state(orphan) != "T"
        cpu = procfs.cpu_seconds(orphan) or 0.0
        eventually(lambda: (procfs.cpu_seconds(orphan) or 0.0) > cpu + 0.01)


def test_a_parent_that_dies_while_paused_leaves_nobody_stopped(
    host: HostDevice, record: Record
) -> None:
    """The children of a killed kernel are resumed although it is gone."""
    with Program(PARENT_OF_SPINNERS) as program:
        target = Target(program.key)
        children = program.said_pids()
        pause(host, target)
        program.process.kill()
        program.process.wait()
        assert host.usage(target) is None
        assert {key.pid for key in host.paused(target)} == set(children)
        assert resume(host, target).status is PauseStatus.GONE
        assert all(procfs.state(pid) != "T" for pid in children)
        assert record.keys == []


def test_a_sub_tree_that_is_another_session_runs_on(host: HostDevice) -> None:
    """A kernel inside a kernel is paused and charged on its own account only."""
    with Program(PARENT_OF_SPINNERS) as program:
        other, ours = program.said_pids()
        target = Target(program.key, frozenset({other}))
        pause(host, target)
        assert {key.pid for key in host.paused(target)} == {program.pid, ours}
        assert procfs.state(other) != "T"
        before = used(host, target)
        elsewhere()
        assert used(host, target) == before


def test_members_below_another_session_are_no_orphans(host: HostDevice) -> None:
    """Seen before their parent became a session, they are let go with it."""
    code = """
inner = "import subprocess, sys; p = subprocess.Popen(['sleep', '1000'], stdout=subprocess.DEVNULL); print(p.pid, flush=True); sys.stdin.read()"
middle = subprocess.Popen([sys.executable, '-S', '-c', inner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
say(middle.pid, middle.stdout.readline()); wait()
"""
    with Program(code) as program:
        nested, helper = program.said_pids()
        host.usage(Target(program.key))
        target = Target(program.key, frozenset({nested}))
        pause(host, target)
        assert [key.pid for key in host.paused(target)] == [program.pid]
        assert procfs.state(helper) != "T"


def test_somebody_else_s_stop_is_kept(host: HostDevice) -> None:
    """A child that its user stopped is not ours to continue."""
    with Program(PARENT_OF_SPINNERS) as program:
        target = Target(program.key)
        theirs, ours = program.said_pids()
        os.kill(theirs, signal.SIGSTOP)
        eventually(lambda: procfs.state(theirs) == "T")
        assert pause(host, target).status is PauseStatus.PAUSED
        assert {key.pid for key in host.paused(target)} == {program.pid, ours}
        resume(host, target)
        assert procfs.state(theirs) == "T"
        assert procfs.state(ours) != "T"


# --- many processes -------------------------------------------------------------------------------------


def nest(children: int) -> str:
    """Code of a process with so many children that sleep."""
    return f"for _ in range({children}): subprocess.Popen(['sleep', '1000'])\nsay('up'); wait()"


def test_a_user_s_part_of_the_table_is_no_other_s(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has more processes than may stand still runs on, and reads why; nothing of it was stopped. Everybody else is paused."""
    host = HostDevice(record, most=5)
    with Program(nest(5)) as hog, Program(nest(2)) as more, Program(nest(3)) as other:
        users = {hog.pid: 1, more.pid: 1, other.pid: 2}
        monkeypatch.setattr(procfs, "owner", users.get)
        for one in (hog, more, other):
            one.said()
        targets = [Target(one.key) for one in (hog, more, other)]
        assert pause(host, targets[0]).status is PauseStatus.UNSUPPORTED
        assert record.keys == []
        assert "this notebook is 6 processes, and of one user's at most 5" in host.runs_on(targets[0])  # fmt: skip
        for target in targets[1:]:
            assert pause(host, target).status is PauseStatus.PAUSED
            assert host.runs_on(target) == ""
        monkeypatch.setattr(host, "_most", 8)
        assert pause(host, targets[0]).status is PauseStatus.UNSUPPORTED
        assert "6 processes, beside 3 of your other notebooks, and of one user's at most 8" in host.runs_on(targets[0])  # fmt: skip
        resume(host, targets[1])
        assert pause(host, targets[0]).status is PauseStatus.PAUSED
        assert host.runs_on(targets[0]) == ""
    host.close()


def test_a_full_table_leaves_nobody_half_stopped(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many users: who comes last runs on, all of it, and reads why."""
    host, free = HostDevice(record), record.add

    def add(key: ProcessKey) -> None:
        if len(record.keys) == 3:
            msg = "the table is full"
            raise DeviceError(msg)
        free(key)

    monkeypatch.setattr(record, "add", add)
    with Program(nest(4)) as program:
        program.said()
        target = Target(program.key)
        assert pause(host, target).status is PauseStatus.UNSUPPORTED
        assert host.runs_on(target) == "the table is full"
        assert procfs.state(program.pid) != "T"
        assert record.keys == []
    host.close()


def test_a_big_tree_is_sampled_beside_the_loop(
    host: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it: the question is answered by the look before. Its looks take a share of a core, whoever asks how often."""
    monkeypatch.setattr(host_module, "BIG", 4)
    walkers: list[bool] = []
    walk = HostDevice._walk

    def noting(self: HostDevice, *of: Any) -> list[ProcessKey]:
        walkers.append(threading.current_thread() is threading.main_thread())
        return walk(self, *of)

    monkeypatch.setattr(HostDevice, "_walk", noting)

    async def scene(program: Program) -> None:
        target = Target(program.key)
        first = host.usage(target)
        assert first is not None
        program.tell()
        program.said()
        assert host.usage(target) is None
        await looked(host, target)
        second = host.usage(target)
        assert second is not None
        assert second.device_time >= first.device_time + 0.04
        assert second.memory is None
        assert host.usage(target, memory=True) is None
        await looked(host, target)
        with_memory = host.usage(target, memory=True)
        assert with_memory is not None
        assert with_memory.memory
        monkeypatch.setattr(host_module, "SHARE", 1e-9)
        session = host._sessions[target.root]
        session.due.clear()
        for _ in range(50):
            host.usage(target)
            await looked(host, target)
        assert (await host.pause(target, limit=20.0)).status is PauseStatus.PAUSED
        assert walkers[:4] == [True, False, False, False]
        assert not any(walkers[4:])
        assert len(walkers) < 20

    code = "for _ in range(5): subprocess.Popen(['sleep', '1000'])\nsay('up'); wait(); spin(0.05); say('done'); wait()"
    with Program(code) as program:
        program.said()
        asyncio.run(scene(program))


async def looked(host: HostDevice, target: Target) -> None:
    """Wait for a look that is under way."""
    look = host._sessions[target.root].look
    assert look is not None
    await look


def test_below_a_root_stopped_by_its_user_nobody_runs_on(host: HostDevice, record: Record) -> None:
    """That would be a way out of turns. What we did not stop we do not continue."""
    with Program(PARENT_OF_SPINNERS) as program:
        children = program.said_pids()
        target = Target(program.key)
        os.kill(program.pid, signal.SIGSTOP)
        eventually(lambda: procfs.state(program.pid) == "T")
        assert pause(host, target).status is PauseStatus.PAUSED
        assert [procfs.state(pid) for pid in children] == ["T", "T"]
        assert [key.pid for key in record.keys] == children
        assert resume(host, target).status is PauseStatus.NOTHING
        assert "T" not in [procfs.state(pid) for pid in children]
        assert procfs.state(program.pid) == "T"


def test_a_root_stopped_by_its_user_is_left_alone(host: HostDevice, record: Record) -> None:
    """Ctrl-Z or a debugger: nothing is paused, nothing is continued."""
    with Program(SPIN) as program:
        target = Target(program.key)
        program.said()
        os.kill(program.pid, signal.SIGSTOP)
        eventually(lambda: procfs.state(program.pid) == "T")
        assert pause(host, target).status is PauseStatus.STOPPED
        assert resume(host, target).status is PauseStatus.NOTHING
        assert procfs.state(program.pid) == "T"
        assert record.keys == []


def test_one_continued_by_somebody_else_is_seen_and_stopped_again(host: HostDevice) -> None:
    """SIGCONT from the user's terminal ends a pause only until the next look."""
    with Program(SPIN) as program:
        target = Target(program.key)
        program.said()
        pause(host, target)
        os.kill(program.pid, signal.SIGCONT)
        eventually(lambda: not host.paused(target))
        assert pause(host, target).status is PauseStatus.PAUSED
        assert [key.pid for key in host.paused(target)] == [program.pid]
        resume(host, target)
        assert procfs.state(program.pid) != "T"


def test_a_look_stops_again_who_was_continued(host: HostDevice) -> None:
    """False once, and everybody stands still again; who is not paused is not looked at."""
    with Program(PARENT_OF_SPINNERS) as program:
        child, _ = program.said_pids()
        target = Target(program.key)

        def still() -> bool:
            return asyncio.run(host.still(target))

        assert still()
        pause(host, target)
        assert still()
        os.kill(child, signal.SIGCONT)
        eventually(lambda: procfs.state(child) == "R")
        assert not still()
        assert procfs.state(child) == "T"
        assert still()
        os.kill(child, signal.SIGKILL)
        eventually(lambda: procfs.state(child) in (None, "Z"))
        assert still()
        resume(host, target)
    assert host.lost is None


def test_killed_while_paused_is_gone(host: HostDevice) -> None:
    """SIGKILL reaches a stopped process; pause, resume and usage then say that it is gone."""
    with Program(SPIN) as program:
        target = Target(program.key)
        program.said()
        pause(host, target)
        program.process.kill()
        program.process.wait()
        assert resume(host, target).status is PauseStatus.GONE
        assert pause(host, target).status is PauseStatus.GONE
        assert host.usage(target) is None
        assert not host.paused(target)


def test_a_zombie_is_gone(host: HostDevice) -> None:
    """A kernel that ended but is not waited for yet is not paused."""
    with Program("") as program:
        eventually(lambda: procfs.state(program.pid) == "Z")
        assert pause(host, Target(program.key)).status is PauseStatus.GONE
        assert host.usage(Target(program.key)) is None


def test_resume_twice_and_without_pause_does_nothing(host: HostDevice, record: Record) -> None:
    """Resuming is idempotent."""
    with Program(SPIN) as program:
        target = Target(program.key)
        program.said()
        assert resume(host, target).status is PauseStatus.NOTHING
        pause(host, target)
        for _ in range(2):
            assert resume(host, target).status is PauseStatus.NOTHING
        assert procfs.state(program.pid) != "T"
        assert record.keys == []


def test_pausing_twice_stops_once(host: HostDevice, record: Record) -> None:
    """A second pause finds everybody still; one resume is enough."""
    with Program(PARENT_OF_SPINNERS) as program:
        target = Target(program.key)
        program.said_pids()
        pause(host, target)
        assert pause(host, target).status is PauseStatus.PAUSED
        assert len(record.keys) == 3
        resume(host, target)
        assert record.keys == []


def test_a_pause_that_cannot_end_in_time_is_undone(
    host: HostDevice, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BUSY: past the limit everybody runs on."""
    with Program(PARENT_OF_SPINNERS) as program:
        target = Target(program.key)
        children = program.said_pids()
        look = procfs.state_of
        stubborn = children[-1]
        monkeypatch.setattr(
            procfs, "state_of", lambda key: "R" if key.pid == stubborn else look(key)
        )
        assert pause(host, target, limit=0.05).status is PauseStatus.BUSY
        assert record.keys == []
        assert all(procfs.state(pid) != "T" for pid in (program.pid, *children))


def test_one_that_hangs_in_the_kernel_counts_as_still(
    host: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D for long (a dead file server, a parent inside vfork) does not keep the tree from being paused."""
    with Program(PARENT_OF_SPINNERS) as program:
        target = Target(program.key)
        hanging = program.said_pids()[-1]
        look = procfs.state_of
        monkeypatch.setattr(
            procfs, "state_of", lambda key: "D" if key.pid == hanging else look(key)
        )
        assert pause(host, target).status is PauseStatus.PAUSED
        assert len(host.paused(target)) == 3
        resume(host, target)


def test_a_cancelled_pause_leaves_nobody_stopped(
    host: HostDevice, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker shuts down in the middle of a pause."""

    async def cancel_in_the_middle(target: Target) -> None:
        task = asyncio.create_task(host.pause(target, limit=60))
        await asyncio.wait({task}, timeout=0.01)
        assert record.keys
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Program(SPIN) as program:
        program.said()
        monkeypatch.setattr(procfs, "state_of", lambda key: "R")
        asyncio.run(cancel_in_the_middle(Target(program.key)))
        assert record.keys == []
        assert procfs.state(program.pid) != "T"


def test_close_continues_everybody(record: Record) -> None:
    """No pause outlives its device."""
    device = HostDevice(record)
    with Program(PARENT_OF_SPINNERS) as one, Program(SPIN) as two:
        children = one.said_pids()
        two.said()
        pause(device, Target(one.key))
        pause(device, Target(two.key))
        device.close()
        assert all(procfs.state(pid) != "T" for pid in (one.pid, two.pid, *children))
        assert record.keys == []


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another uid")
def test_another_user_s_process_is_forbidden_and_left_running() -> None:
    """A user's broker may not stop another user's kernel: FORBIDDEN, no intent left behind."""
    with Program(SPIN) as program:
        program.said()
        code = f"""
import asyncio; sys.path[:0] = {[str(Path.cwd()), *sys.path]!r}
from gpushare_kernel import procfs
from gpushare_kernel.devices.base import Target
from gpushare_kernel.devices.host import HostDevice
class Intents(set): held = None
intents = Intents(); target = Target(procfs.process_key({program.pid})); device = HostDevice(intents)
os.setuid(4242)
say(asyncio.run(device.pause(target, limit=5)).status, len(intents), *device.paused(target))
"""
        with Program(code) as other:
            assert other.said() == ["forbidden", "0"]
        assert procfs.state(program.pid) != "T"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make a process of another uid")
def test_a_child_that_is_not_ours_to_stop_does_not_save_its_tree() -> None:
    """A `sudo` child runs on; the kernel that started it is paused all the same."""
    code = f"""
import asyncio; sys.path[:0] = {[str(Path.cwd()), *sys.path]!r}
from gpushare_kernel import procfs
from gpushare_kernel.devices.base import Target
from gpushare_kernel.devices.host import HostDevice
class Intents(set): held = None
kernel = subprocess.Popen([sys.executable, '-S', '-c',
    "import os, subprocess; p = subprocess.Popen(['sleep', '1000']); os.setuid(4242); print(p.pid, flush=True); os.wait()"],
    stdout=subprocess.PIPE, text=True)
child = int(kernel.stdout.readline())
os.setuid(4242)
intents = Intents(); target = Target(procfs.process_key(kernel.pid)); device = HostDevice(intents)
say(asyncio.run(device.pause(target, limit=5)).status, procfs.state(kernel.pid), procfs.state(child) == 'T', len(intents))
device.close(); say(len(intents), procfs.state(kernel.pid) == 'T', child); wait()
"""
    with Program(code) as program:
        assert program.said() == ["paused", "T", "False", "1"]
        words = program.said()
        os.kill(int(words.pop()), signal.SIGKILL)
        assert words == ["0", "False"]


def test_sessions_that_ended_are_forgotten(host: HostDevice) -> None:
    """A broker that runs for months keeps nothing of kernels long gone."""
    with Program(SPIN) as program:
        program.said()
        target = Target(program.key)
        pause(host, target)
        program.process.kill()
        program.process.wait()
        resume(host, target)
        host.usage(target)
        assert host._sessions == {}
