"""`jupyter gpushare run`: a command as it would be without us, except that it takes part."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.app.run import called
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.core.values import SessionId
from gpushare_kernel.kernel_session import TOKEN, KernelSession
from gpushare_kernel.wire.messages import GetNeeds
from tests.app.conftest import PATIENCE
from tests.procs import eventually

RUN = [sys.executable, "-m", "gpushare_kernel.app.main", "run"]
READY = "import signal, sys, time\nprint('ready', flush=True)\n"


@contextlib.contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """`jupyter gpushare run`, and nobody left at the end."""
    with subprocess.Popen(
        [*RUN, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            for key in procfs.tree(process.pid):
                procfs.send(key, signal.SIGKILL)


def sessions(where):
    with Line(where) as line:
        return line.snapshot().sessions


def jobs(where):
    """The jobs of all lanes; nobody answers where no broker runs yet."""
    try:
        with Line(where) as line:
            (device,) = line.snapshot().devices
    except BrokerUnavailable:
        return []
    return [job for lane in device.lanes for job in lane.members]


def queue(where):
    with Line(where) as line:
        return line.snapshot().queue


# --- as without us -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_the_exit_status_is_the_commands(gpushare, broker, script, status):
    """128 + n where a signal ended it; we add no word, and no session is left."""
    done = gpushare("run", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    assert sessions(broker) == ()


def test_streams_are_the_commands(broker):
    """What is typed goes to it, what it says comes from it, byte by byte."""
    with running("--", "sh", "-c", "cat; echo oops >&2") as process:
        assert process.communicate("a line\n", PATIENCE) == ("a line\n", "oops\n")
        assert process.returncode == 0


def test_signal_dispositions_are_the_commands(broker):
    """Blocked, ignored and default signals are those of our own start: Python's and ours do not leak into it."""
    show = "grep -E '^Sig(Blk|Ign)' /proc/self/status"
    alone = subprocess.run(["sh", "-c", show], capture_output=True, text=True, check=True)
    with running("--", "sh", "-c", show) as process:
        assert process.communicate(timeout=PATIENCE)[0] == alone.stdout


def test_words_behind_the_dashes_are_the_commands(gpushare, broker):
    """Also those that look like ours, or another pair of dashes."""
    done = gpushare("run", "--name=n", "--", "echo", "--wait", "--help", "--", "-x")
    assert done.stdout == "--wait --help -- -x\n"


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ([], 125, "run needs a command behind two dashes."),
        (["python", "x.py"], 125, "'python x.py', which may be the command: put -- before it."),
        (["6GiB", "7GiB", "--", "true"], 125, "'6GiB 7GiB' are 2 words"),
        (["6", "--", "true"], 125, "size '6' has no unit"),
        (["--wait=3", "--", "true"], 125, "--wait=3 is for a SIZE"),
        (["--time=5min", "--", "true"], 125, "--time=5min is for a SIZE"),
        (["1MiB", "--time=soon", "--", "true"], 125, "'soon' is not a time"),
        (["1MiB", "--wait=-3", "--", "true"], 125, "--wait must be 0 seconds or more"),
        (["--weight=0", "--", "true"], 125, "weight"),
        (["--bakground", "--", "true"], 125, "Did you mean --background?"),
        (
            ["1MiB", "--wait=soon", "--", "true"],
            125,
            "--wait takes a number, and 'soon' is none. Write for example --wait=1.",
        ),
        (
            ["--weight", "x", "--", "true"],
            125,
            "--weight takes a number, and 'x' is none. Write for example --weight=1.",
        ),
        (["--", "no-such-program"], 127, "no-such-program: there is no such program here"),
        (["--", "/etc/passwd"], 127, "/etc/passwd: there is no such program here"),
        (
            ["2", "GiB", "--", "true"],
            125,
            "run takes one size, and '2 GiB' are 2 words. Write 2GiB. ",
        ),
        (["2GiB", "--", "true"], 125, "this can never fit: it needs 2.0 GiB"),
    ],
)
def test_what_cannot_be_is_one_line(gpushare, broker, words, status, says):
    """With the next step; the command has not run, and no session is left."""
    done = gpushare("run", *words)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert says in line
    assert sessions(broker) == ()


def test_help_needs_no_command(gpushare, where):
    """It says how it is called, and its exit statuses."""
    done = gpushare("run", "--help")
    assert done.returncode == 0
    assert "run [SIZE] [options] -- COMMAND" in done.stdout
    assert "125" in done.stdout


def test_without_a_broker_and_leave_to_start_one_nothing_runs(gpushare, where, tmp_path):
    """A folder that others may write to is no place for one: one line, status 125."""
    where.runtime.mkdir(mode=0o777)
    where.runtime.chmod(0o777)
    done = gpushare("run", "--", "touch", str(tmp_path / "ran"))
    assert done.returncode == 125
    assert done.stderr.rstrip().endswith("The command has not run.")
    assert not (tmp_path / "ran").exists()


# --- a session -------------------------------------------------------------------------------------------


def test_a_command_is_a_session_with_turns(broker):
    """It is there under its name from its first line on, as the process that it is, without waiting for a client."""
    with running("--name", "training", "--", sys.executable, "-c", READY + "input()") as process:
        assert process.stdout.readline() == "ready\n"
        (session,) = sessions(broker)
        assert (session.name, session.state) == ("training", "bare")
        assert session.pid in procfs.children(process.pid)
        process.communicate("\n", PATIENCE)
    assert sessions(broker) == ()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["python", "-u", "a.py"], "python"),
        (["/usr/bin/python3", "src/train.py", "x"], "python3 train.py"),
        (["./" + "long" * 20], ("long" * 20)[:40]),
    ],
)
def test_what_a_command_is_called(command, name):
    """Program and script, without their folders."""
    assert called(command) == name


def test_size_is_held_from_before_the_first_line_to_the_end(broker):
    """A second command waits for it, says so on stderr, and runs when the first has ended."""
    with running("700MiB", "--", sys.executable, "-c", READY + "input()") as first:
        assert first.stdout.readline() == "ready\n"
        (session,) = sessions(broker)
        assert session.p >= 700 * 2**20
        with running("600MiB", "--", "echo", "mine") as second:
            # Less some pages that it has by now.
            assert re.search(
                r"Waiting for memory: needs (600|59[6-9]) MiB", second.stderr.readline()
            )
            (waiter,) = queue(broker)
            assert 596 * 2**20 < waiter.needs <= 600 * 2**20
            first.communicate("\n", PATIENCE)
            out, said = second.communicate(timeout=PATIENCE)
            assert (second.returncode, out) == (0, "mine\n")
            assert said.startswith("gpushare: Waited ")


def test_how_long_a_command_takes_is_learned(gpushare, broker):
    """Of the same words in the same folder; one that fails says nothing of the next."""
    for _ in range(2):
        assert gpushare("run", "1MiB", "--time", "5min", "--", "sleep", "0.2").returncode == 0
    assert gpushare("run", "1MiB", "--", "sh", "-c", "exit 3").returncode == 3
    with Line(broker) as line:
        (need,) = line.ask(GetNeeds()).needs
    assert (need.code[:4], need.name, need.runs) == ("run:", "sleep 0.2", 2)
    assert (need.declared_persistent, need.declared_time) == (2**20, 300.0)
    assert 0.15 < need.time < 30


def test_a_share_of_the_device_is_a_size(broker):
    """`50%` is of the device that the broker chose."""
    with running("50%", "--", sys.executable, "-c", READY + "input()") as process:
        assert process.stdout.readline() == "ready\n"
        (session,) = sessions(broker)
        assert 512 * 2**20 <= session.p < 600 * 2**20
        process.communicate("\n", PATIENCE)


def test_a_lane_inside_counts_against_the_size(gpushare, broker):
    """It does not wait behind the memory that is held for it."""
    code = "import gpushare_kernel as g\nwith g.lane('600MiB') as lane: print(lane.shared, lane.waited < 50)"
    done = gpushare("run", "700MiB", "--", sys.executable, "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\n", "")


@pytest.fixture
def full(broker):
    """A device of which little is free, until the block ends."""
    with running("900MiB", "--", sys.executable, "-c", READY + "input()") as process:
        assert process.stdout.readline() == "ready\n"
        yield broker


def test_waiting_ends_where_wait_says(gpushare, full, tmp_path):
    """Status 75, the numbers, and the command has not run."""
    done = gpushare("run", "500MiB", "--wait", "0.1", "--", "touch", str(tmp_path / "ran"))
    assert done.returncode == 75
    assert "still no memory after 0.1 s, as long as --wait says; the command has not run. It needs" in done.stderr  # fmt: skip
    assert not (tmp_path / "ran").exists()
    assert len(sessions(full)) == 1


def test_ctrl_c_gives_up_the_place(full, tmp_path):
    """Status 130, one line; queue and sessions are as before."""
    with running("500MiB", "--", "touch", str(tmp_path / "ran")) as process:
        assert "Waiting for memory" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 130
        assert said == "gpushare: Left the queue. The command has not run.\n"
    assert queue(full) == ()
    assert len(sessions(full)) == 1
    assert not (tmp_path / "ran").exists()


def test_a_command_that_is_killed_while_it_waits_has_its_status(full):
    """Whoever ended it wanted that: its status is as a shell has it, and no word of a queue."""
    with running("500MiB", "--", "true") as process:
        assert "Waiting for memory" in process.stderr.readline()
        (gate,) = map(procfs.process_key, procfs.children(process.pid))
        procfs.send(gate, signal.SIGKILL)
        assert process.communicate(timeout=PATIENCE)[1] == ""
        assert process.returncode == 137
    eventually(lambda: len(sessions(full)) == 1 and not queue(full))


def test_killed_while_it_waits_it_leaves_nobody(full):
    """Its gate ends with it, and the broker forgets both."""
    with running("500MiB", "--", "true") as process:
        assert "Waiting for memory" in process.stderr.readline()
        (gate,) = map(procfs.process_key, procfs.children(process.pid))
        process.kill()
        process.wait(PATIENCE)
        eventually(lambda: not procfs.alive(gate))
        eventually(
            lambda: len(sessions(full)) == 1 and not queue(full),
            seen=lambda: (sessions(full), queue(full)),
        )


def test_killed_after_its_gate_it_leaves_nobody(full):
    """A process that is killed closes its pipes before it has ended: its gate may be seen to go first."""
    with running("500MiB", "--", "true") as process:
        assert "Waiting for memory" in process.stderr.readline()
        (gate,) = map(procfs.process_key, procfs.children(process.pid))
        process.send_signal(signal.SIGSTOP)
        procfs.send(gate, signal.SIGKILL)
        eventually(lambda: not queue(full))
        assert len(sessions(full)) == 2  # it may start another one
        process.kill()
        process.wait(PATIENCE)
        eventually(lambda: len(sessions(full)) == 1)


def test_killed_while_the_command_runs_the_command_goes_on(broker):
    """It stays a session, and what was held for it goes back to the others."""
    with running("700MiB", "--", sys.executable, "-c", READY + "input()") as process:
        process.stdout.readline()
        (key,) = map(procfs.process_key, procfs.children(process.pid))
        try:
            process.kill()
            process.wait(PATIENCE)
            eventually(lambda: sessions(broker)[0].jobs == ())
            (session,) = sessions(broker)
            assert procfs.alive(key)
            assert session.pid == key.pid
        finally:
            procfs.send(key, signal.SIGKILL)
        eventually(lambda: sessions(broker) == ())


# --- signals -------------------------------------------------------------------------------------------------

COUNT = """
import signal, sys
got = []
for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(one, lambda number, _: (got.append(number), print(number, flush=True)))
print('ready', flush=True)
while len(got) < 3: signal.pause()
"""


def test_signals_sent_to_us_reach_the_command_once(broker):
    """Each is passed on; the command decides, and its status is ours."""
    with running("--", sys.executable, "-c", COUNT + "sys.exit(9)") as process:
        process.stdout.readline()
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            process.send_signal(one)
            assert process.stdout.readline().split() == [str(int(one))]
        process.wait(PATIENCE)
        assert process.stdout.read() == ""
        assert process.returncode == 9


def test_the_environment_names_the_device_where_no_option_does(gpushare, broker):
    """GPUSHARE_DEVICE is for commands as it is for kernels; what is said on the line goes before it."""
    done = gpushare("run", "--", "true", GPUSHARE_DEVICE="GPU-nowhere")
    assert (done.returncode, "GPU-nowhere" in done.stderr) == (125, True), done.stderr
    done = gpushare("run", "--device=0", "--", "true", GPUSHARE_DEVICE="GPU-nowhere")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_device_wants_is_in_the_environment(where):
    """Variables of the device go to the kernel beside those that name its session, which they cannot replace."""
    session = KernelSession(
        where, SessionId("s1"), "token", variables={"CUDA_VISIBLE_DEVICES": "GPU-1", TOKEN: "x"}
    )
    env = session.environment()
    assert (env["CUDA_VISIBLE_DEVICES"], env[TOKEN]) == ("GPU-1", "token")


@pytest.mark.parametrize("visible", ["", "-1", " "])
def test_whoever_wants_no_gpu_gets_none(where, visible):
    """An empty CUDA_VISIBLE_DEVICES, or -1, is a choice."""
    device = {"CUDA_VISIBLE_DEVICES": "GPU-1"}
    session = KernelSession(where, SessionId("s"), "token", variables=device)
    env = session.joined({"CUDA_VISIBLE_DEVICES": visible})
    assert env["CUDA_VISIBLE_DEVICES"] == visible
    assert env[TOKEN] == "token"


def test_what_the_user_has_set_stays_but_the_choice_of_a_gpu(where):
    """Settings of frameworks are the user's; which GPU it is has been decided with the broker."""
    device = {
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    session = KernelSession(where, SessionId("s"), "token", variables=device)
    given = {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "CUDA_DEVICE_ORDER": "FASTEST_FIRST",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
        TOKEN: "another",
    }
    env = session.joined(given)
    assert env["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert env["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert env[TOKEN] == "token"


def test_jax_is_not_told_its_fraction_under_two_names(where):
    """It refuses its GPU then. Where we set none, the user's own stays under whatever name."""
    new, old = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
    session = KernelSession(where, SessionId("s"), "token", variables={new: "0.2500"})
    env = session.joined({old: "0.9"})
    assert (env.get(new), env.get(old)) == ("0.2500", None)
    env = session.joined({new: "0.5"})
    assert (env.get(new), env.get(old)) == ("0.5", None)
    env = KernelSession(where, SessionId("s"), "token").joined({old: "0.9"})
    assert (env.get(new), env.get(old)) == (None, "0.9")
