"""Reading and signalling real processes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.core.values import ProcessKey
from tests.procs import Program, eventually, zombie

FAMILY = """
child = subprocess.Popen([sys.executable, "-S", "-E", "-c",
    "import subprocess, sys; p = subprocess.Popen(['sleep', '1000']); print(p.pid, flush=True); sys.stdin.read()"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
say(child.pid, child.stdout.readline())
wait()
"""


def test_key_of_a_living_process_is_stable_and_alive() -> None:
    """The same process has the same key each time, and it is alive."""
    key = procfs.process_key(os.getpid())
    assert key is not None
    assert key == procfs.process_key(os.getpid())
    assert procfs.alive(key)


def test_a_reaped_process_has_no_key_and_nothing_to_read() -> None:
    """Whatever is asked of a process that is gone, the answer is empty and no exception."""
    with Program("") as program:
        program.process.wait()
        pid = program.pid
        assert procfs.process_key(pid) is None
        assert not procfs.alive(program.key)
        assert procfs.state(pid) is None
        assert procfs.state_of(program.key) is None
        assert procfs.owner(pid) is None
        assert procfs.parent(pid) is None
        assert procfs.children(pid) == []
        assert procfs.tree(pid) == []
        assert procfs.cpu_seconds(pid) is None
        assert procfs.reaped_seconds(pid) == 0
        assert procfs.run_delay(pid) == 0
        assert procfs.private_memory(pid) is None
        assert not procfs.is_descendant(pid, os.getpid())
        assert procfs.line(pid) == frozenset()


def test_a_reused_pid_is_another_process() -> None:
    """With another start time, a living pid is neither alive, nor has a state, nor can be signalled."""
    with Program("say('up'); wait(); say('unharmed')") as program:
        program.said()
        earlier = ProcessKey(program.pid, program.key.start_time - 1)
        assert not procfs.alive(earlier)
        assert procfs.state_of(earlier) is None
        assert procfs.send(earlier, signal.SIGKILL) is False
        program.tell()
        assert program.said() == ["unharmed"]


def test_a_zombie_has_a_key_but_is_not_alive() -> None:
    """A zombie is still somebody (its time is not its parent's yet), but it does not live."""
    with zombie() as key:
        assert procfs.process_key(key.pid) == key
        assert procfs.state(key.pid) == "Z"
        assert not procfs.alive(key)
        assert key in procfs.tree(os.getpid())


def test_state_follows_stop_and_continue() -> None:
    """T after SIGSTOP, not T after SIGCONT."""
    with Program("say('up'); wait()") as program:
        program.said()
        assert procfs.send(program.key, signal.SIGSTOP)
        eventually(lambda: procfs.state_of(program.key) == "T")
        assert procfs.send(program.key, signal.SIGCONT)
        eventually(lambda: procfs.state(program.pid) == "S")


def test_a_command_name_with_parentheses_and_spaces_is_read_right() -> None:
    """The kernel does not quote the command's name in /proc/pid/stat."""
    code = "open('/proc/self/comm', 'w').write('a) Z 1 (b c'); say('up'); wait()"
    with Program(code) as program:
        program.said()
        assert procfs.process_key(program.pid) == program.key
        assert procfs.parent(program.pid) == os.getpid()
        assert procfs.alive(program.key)


def test_a_process_is_found_by_its_name() -> None:
    """By how it begins; one that ended has none."""
    with Program("open('/proc/self/comm', 'w').write('gps-named'); say('up'); wait()") as program:
        program.said()
        assert procfs.name(program.pid) == "gps-named"
        assert program.pid in procfs.named("gps-")
        assert program.pid not in procfs.named("named")
    assert procfs.name(program.pid) == ""


def test_owner_is_the_real_uid() -> None:
    """Our own processes are ours."""
    with Program("wait()") as program:
        assert procfs.owner(program.pid) == os.getuid()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to start a process of another uid")
def test_another_user_s_process_may_not_be_signalled() -> None:
    """Sending says PermissionError, so that the caller can tell it from a process that is gone."""
    with Program("say('up'); wait()") as program:
        program.said()
        code = f"""
import sys; sys.path.insert(0, {str(Path.cwd())!r})
from gpushare_kernel import procfs
key = procfs.process_key({program.pid})
os.setuid(4242)
try: procfs.send(key, signal.SIGSTOP)
except PermissionError: say('refused')
"""
        with Program(code) as other:
            assert other.said() == ["refused"]
        assert procfs.state(program.pid) != "T"


def test_children_are_found_whichever_thread_forked_them() -> None:
    """The kernel lists children per thread; we ask all of them."""
    code = """
kids = []
def fork(): kids.append(subprocess.Popen(['sleep', '1000'])); stay.wait()
stay = threading.Event()
threads = [threading.Thread(target=fork, daemon=True) for _ in range(3)]
for t in threads: t.start()
while len(kids) < 3: time.sleep(0.001)
say(*[k.pid for k in kids]); wait()
"""
    with Program(code) as program:
        pids = program.said_pids()
        assert sorted(procfs.children(program.pid)) == sorted(pids)


def test_children_are_found_where_the_kernel_keeps_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CONFIG_PROC_CHILDREN the whole of /proc is searched, with the same answer."""
    with Program(FAMILY) as program:
        child, grandchild = program.said_pids()
        monkeypatch.setattr(procfs, "_HAS_CHILDREN", False)
        assert procfs.children(program.pid) == [child]
        assert [key.pid for key in procfs.tree(program.pid)] == [program.pid, child, grandchild]


def test_a_long_list_of_children_is_read_to_its_end() -> None:
    """More than one buffer of pids."""
    code = """
pids = []
for _ in range(700):
    pid = os.fork()
    if not pid: signal.pause()
    pids.append(pid)
say(*pids); wait()
"""
    with Program(code) as program:
        pids = program.said_pids()
        assert sorted(procfs.children(program.pid)) == sorted(pids)


def test_tree_starts_with_its_root_and_holds_grandchildren() -> None:
    """Breadth first: a parent stands before its children."""
    with Program(FAMILY) as program:
        child, grandchild = program.said_pids()
        assert [key.pid for key in procfs.tree(program.pid)] == [program.pid, child, grandchild]


def test_tree_leaves_out_the_sub_trees_it_is_told_to() -> None:
    """A session inside a session (papermill in a notebook) is walked on its own account."""
    with Program(FAMILY) as program:
        child, grandchild = program.said_pids()
        assert [key.pid for key in procfs.tree(program.pid, {child})] == [program.pid]
        assert [key.pid for key in procfs.tree(program.pid, {grandchild})] == [program.pid, child]
        assert [key.pid for key in procfs.tree(child, {child})] == [child, grandchild]


def test_tree_is_walked_again_until_nobody_new_appears(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child forked right after its parent was read is found by the next pass."""
    with Program("wait(); p = subprocess.Popen(['sleep', '1000']); say(p.pid); wait()") as program:
        read = procfs.children
        born: list[int] = []

        def forks_behind_our_back(pid: int) -> list[int]:
            listed = read(pid)
            if not born:
                program.tell()
                born.extend(program.said_pids())
            return listed

        monkeypatch.setattr(procfs, "children", forks_behind_our_back)
        assert [key.pid for key in procfs.tree(program.pid)] == [program.pid, *born]


def test_tree_keeps_whom_the_kernel_s_list_missed_in_the_last_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The list of children may skip living ones while their siblings end: once seen, one stays."""
    with Program(FAMILY) as program:
        child, grandchild = program.said_pids()
        read = procfs.children
        calls: list[int] = []

        def forgetful(pid: int) -> list[int]:
            calls.append(pid)
            return [] if calls.count(program.pid) > 1 else read(pid)

        monkeypatch.setattr(procfs, "children", forgetful)
        assert {key.pid for key in procfs.tree(program.pid)} == {program.pid, child, grandchild}


def test_tree_ends_while_processes_come_and_go() -> None:
    """A program that forks without pause can be walked; its steady parts are always found."""
    code = """
p = subprocess.Popen(['sleep', '1000']); say(p.pid)
while True: os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)
"""
    with Program(code) as program:
        (steady,) = program.said_pids()
        for _ in range(50):
            assert {program.pid, steady} <= {key.pid for key in procfs.tree(program.pid)}


def test_descendants_by_parents() -> None:
    """A process descends from itself, its parent and grandparent, not from its child."""
    with Program(FAMILY) as program:
        child, grandchild = program.said_pids()
        assert procfs.is_descendant(program.pid, program.pid)
        assert procfs.is_descendant(grandchild, program.pid)
        assert procfs.is_descendant(grandchild, os.getpid())
        assert not procfs.is_descendant(program.pid, child)
        assert not procfs.is_descendant(os.getpid(), program.pid)


def test_an_orphan_descends_from_its_old_grandparent_no_more() -> None:
    """Re-parented to init (or a sub-reaper): the kernel keeps no trace of where it came from."""
    code = """
inner = "import subprocess; print(subprocess.Popen(['sleep', '1000'], stdout=subprocess.DEVNULL).pid)"
say(subprocess.run([sys.executable, '-S', '-c', inner], stdout=subprocess.PIPE, text=True).stdout)
wait()
"""
    with Program(code) as program:
        (orphan,) = program.said_pids()
        assert procfs.process_key(orphan) is not None
        assert not procfs.is_descendant(orphan, program.pid)


def test_cpu_seconds_count_all_threads_also_ended_ones() -> None:
    """Two threads of 50 ms are at least 100 ms, and stay so when the threads are gone."""
    code = """
threads = [threading.Thread(target=spin, args=(0.05,)) for _ in range(2)]
for t in threads: t.start()
for t in threads: t.join()
say(time.process_time()); wait()
"""
    with Program(code) as program:
        (own,) = map(float, program.said())
        seen = procfs.cpu_seconds(program.pid)
        assert seen is not None
        assert own >= 0.1
        assert seen >= own


def test_a_stopped_process_uses_no_time() -> None:
    """What cpu_seconds says stands still from the moment the process is stopped."""
    with Program("say('up')\nwhile True: pass") as program:
        program.said()
        procfs.send(program.key, signal.SIGSTOP)
        eventually(lambda: procfs.state(program.pid) == "T")
        before = procfs.cpu_seconds(program.pid)
        with Program("spin(0.02); say('done')") as other:
            other.said()
        assert procfs.cpu_seconds(program.pid) == before


def test_reaped_seconds_are_those_of_children_waited_for() -> None:
    """A child's time is its parent's once the parent has waited, not before."""
    code = """
child = subprocess.Popen([sys.executable, '-S', '-c', 'import time\\nwhile time.process_time() < 0.1: pass'])
os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT); say('ended'); wait(); child.wait(); say('waited'); wait()
"""
    with Program(code) as program:
        program.said()
        assert procfs.reaped_seconds(program.pid) == 0
        program.tell()
        program.said()
        assert procfs.reaped_seconds(program.pid) >= 0.08


def test_run_delay_grows_only_while_somebody_else_runs() -> None:
    """Two spinners on one CPU wait for each other; a sleeper waits for nobody."""
    cpu = min(os.sched_getaffinity(0))
    code = f"os.sched_setaffinity(0, {{{cpu}}}); say('up'); spin(0.15); say('spun'); wait()"
    with Program(code) as one, Program(code) as two:
        for program in (one, two, one, two):
            program.said()
        delay = procfs.run_delay(one.pid) + procfs.run_delay(two.pid)
        assert delay > 0.05
    with Program("say('up'); wait()") as sleeper:
        sleeper.said()
        eventually(lambda: procfs.state(sleeper.pid) == "S")
        before = procfs.run_delay(sleeper.pid)
        with Program("spin(0.02); say('done')") as other:
            other.said()
        assert procfs.run_delay(sleeper.pid) == before


def test_private_memory_sees_what_is_touched() -> None:
    """64 MiB written to are 64 MiB more; given back, they are gone."""
    code = "say('up'); wait(); b = bytearray(b'x' * 2**26); say('taken'); wait(); del b; say('freed'); wait()"
    with Program(code) as program:
        program.said()
        base = procfs.private_memory(program.pid)
        program.tell()
        program.said()
        full = procfs.private_memory(program.pid)
        program.tell()
        program.said()
        after = procfs.private_memory(program.pid)
        assert base is not None
        assert full is not None
        assert after is not None
        assert 2**26 <= full - base < 2**27
        assert after - base < 2**24


def test_send_tells_whether_it_reached_the_process() -> None:
    """True for a living one, False once it is reaped."""
    with Program("say('up'); wait()") as program:
        program.said()
        assert procfs.send(program.key, signal.SIGTERM) is True
        assert program.process.wait() == -signal.SIGTERM
        assert procfs.send(program.key, signal.SIGTERM) is False


def test_send_leaves_no_descriptor_open() -> None:
    """Each path out of `send` closes its pidfd."""
    with Program("say('up'); wait()") as program:
        program.said()
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(10):
            procfs.send(program.key, signal.SIGCONT)
            procfs.send(ProcessKey(program.pid, 0), signal.SIGCONT)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_boot_id_names_this_boot() -> None:
    """It is the kernel's own, and the same for every process."""
    said = subprocess.run(
        ["cat", "/proc/sys/kernel/random/boot_id"], capture_output=True, check=True
    )
    assert procfs.boot_id() == said.stdout.decode().strip()


def test_environ_is_what_a_process_was_started_with() -> None:
    """A variable by its whole name; None where there is none, or no process."""
    started = subprocess.Popen(["sleep", "60"], env={"ONE": "1=2", "ONETWO": "x"})
    try:
        eventually(
            lambda: procfs.environ(started.pid, "ONE") == "1=2"
        )  # not at once after the exec
        assert procfs.environ(started.pid, "TWO") is None
    finally:
        started.kill()
        started.wait()
    assert procfs.environ(started.pid, "ONE") is None


SLEEPER = """
for _ in range(4): threading.Thread(target=spin, args=(20,), daemon=True).start()
while True:
    wait()
    try:
        say("sleeps")
        time.sleep(1000)
    except KeyboardInterrupt:
        say("interrupted")
"""


def test_an_interrupt_reaches_the_main_thread_of_who_was_just_continued() -> None:
    """Other threads are there to take it, and busy; the main one sleeps on where they do."""
    with Program(SLEEPER) as program:
        for _ in range(6):
            program.tell()
            assert program.said() == ["sleeps"]
            # In its call, not on the way there: CPython loses what comes in between, whoever sends it.
            eventually(lambda: "nanosleep" in Path(f"/proc/{program.pid}/wchan").read_text())
            os.kill(program.pid, signal.SIGSTOP)
            eventually(lambda: procfs.state(program.pid) == "T")
            os.kill(program.pid, signal.SIGCONT)
            assert procfs.interrupt(program.pid, os.getpgid(program.pid))
            assert program.said() == ["interrupted"]


def test_an_interrupt_goes_to_the_group_and_no_further() -> None:
    """A child of the same process group hears it, one that has left the group does not; who is gone is said."""
    code = """
own = subprocess.Popen(["sleep", "1000"])
left = subprocess.Popen(["sleep", "1000"], start_new_session=True)
try:
    say(own.pid, left.pid)
    time.sleep(1000)
except KeyboardInterrupt:
    say(own.wait(), left.poll())
wait()
"""
    with Program(code) as program:
        program.said_pids()
        assert procfs.interrupt(program.pid, os.getpgid(program.pid))
        assert program.said() == [str(-signal.SIGINT), "None"]
    with pytest.raises(ProcessLookupError):
        procfs.interrupt(program.pid, 1)
