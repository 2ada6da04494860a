"""start, stop, status, broker, doctor."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys

import pytest

from gpushare_kernel import __version__, procfs
from gpushare_kernel.client.line import Line
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.errors import BadToken, GpushareError
from gpushare_kernel.kernel_session import open_session
from gpushare_kernel.transport.locks import free
from gpushare_kernel.wire.messages import SetPolicy
from tests.app.conftest import PATIENCE

DOCUMENTED = {
    "broker": {"pid", "version", "uptime"},
    "devices": {"id", "kind", "name", "capacity", "reserve", "persistent", "lanes"},
    "sessions": {"id", "user", "name", "pid", "state", "mode", "p", "device_time"},
    "users": {"name", "weight", "device_time"},
}


@pytest.fixture
def kernel(broker):
    """A process that is a session's kernel, as far as the broker knows."""
    process = subprocess.Popen(["sleep", "600"])
    session = open_session(broker, "hw2.ipynb", kernel_id="k", language="python", weight=1.0)
    session.bind(process.pid)
    yield process
    process.kill()
    process.wait()
    with contextlib.suppress(BadToken):
        session.close()


def only_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


def test_version(gpushare):
    """--version is the package's."""
    assert gpushare("--version").stdout.strip() == __version__


@pytest.mark.parametrize("words", [("--help",), ("status",), ("--version",)])
def test_output_that_nobody_reads(broker, words):
    """As in `jupyter gpushare --help | head`: it ends without a word."""
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [sys.executable, "-m", "gpushare_kernel.app.main", *words],
        stdout=writes,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (1, b"")


def test_no_command_lists_them(gpushare):
    """Without a command one reads which there are."""
    done = gpushare()
    assert done.returncode == 1
    for command in (
        "start",
        "stop",
        "status",
        "top",
        "run",
        "demo",
        "broker",
        "doctor",
        "install",
        "uninstall",
    ):
        assert re.search(rf"^{command}$", done.stdout, re.MULTILINE), command


def test_status_without_a_broker_starts_none(gpushare, where):
    """Exit status 3; programs read `{"broker": null}`, people one line with the next step."""
    done = gpushare("status", "--json")
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (3, {"broker": None}, "")
    done = gpushare("status")
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(
        r"gpushare: no gpushare broker .* jupyter gpushare start\.", only_line(done.stderr)
    )
    assert not where.runtime.exists()


def test_status_json_is_the_documented_snapshot(gpushare, broker, kernel):
    """Every documented key is there, at its place, beside a real session."""
    done = gpushare("status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    snapshot = json.loads(done.stdout)
    assert snapshot["schema"] == 1
    assert DOCUMENTED["broker"] <= snapshot["broker"].keys()
    for part in ("devices", "sessions", "users"):
        (entry,) = snapshot[part]
        assert DOCUMENTED[part] <= entry.keys(), part
    assert snapshot["queue"] == []
    (session,) = snapshot["sessions"]
    assert (session["name"], session["pid"]) == ("hw2.ipynb", kernel.pid)
    assert snapshot["devices"][0]["capacity"] == 2**30


def test_status_shows_people_their_notebooks(gpushare, broker, kernel):
    """Names, the device and its memory, without a word of JSON."""
    done = gpushare("status", COLUMNS="120")
    assert done.returncode == 0
    assert "1.0 GiB" in done.stdout
    assert re.search(rf"^hw2\.ipynb .* {kernel.pid}$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("--BrokerCommand.polcy=srtf", "no option --BrokerCommand.polcy. Did you mean --BrokerCommand.policy?"),
        ("--StartApp.xyzzy=1", "no option --StartApp.xyzzy. StartApp has "),
    ],
)  # fmt: skip
def test_an_option_of_a_class_that_has_none_is_refused(gpushare, where, word, says):
    """Nothing is started without it."""
    done = gpushare("start", word)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"gpushare: {says}")
    assert done.stderr.count("\n") == 1
    assert not where.socket.exists()


def test_start_once_stop_once(gpushare, where):
    """A second start changes nothing and says so, with status 1 where it was to change something; stop leaves no process and a free lock; a second stop finds nobody."""
    done = gpushare("start", "--capacity", "2GiB")
    assert (done.returncode, done.stderr) == (0, "")
    pid = int(re.search(r"pid (\d+)", done.stdout)[1])
    family = [procfs.process_key(one) for one in (pid, *procfs.children(pid))]
    assert len(family) == 2
    assert str(where.log) in done.stdout

    again = gpushare("start", "--capacity", "3GiB")
    assert again.returncode == 1
    assert f"pid {pid}" in again.stdout
    assert f"{where.log}. It ran already: --capacity 3GiB changes nothing." in again.stdout
    assert (
        "To have it so: jupyter gpushare stop; jupyter gpushare start --capacity 3GiB. A policy"
        in again.stdout
    )
    assert gpushare("start").returncode == 0
    with Line(where) as line:
        assert line.snapshot().devices[0].capacity == 2 * 2**30

    done = gpushare("stop")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"pid {pid}" in done.stdout
    assert not any(procfs.alive(key) for key in family)
    assert free(where.broker_lock)
    done = gpushare("stop")
    assert (done.returncode, done.stdout) == (3, "")
    only_line(done.stderr)


def test_a_start_that_fails_says_why_in_one_line(gpushare, where):
    """The broker's own words, not a traceback."""
    done = gpushare("start", "--capacity", "2 pounds")
    assert done.returncode != 0
    assert "2 pounds" in only_line(done.stderr)
    assert "Traceback" not in done.stderr


BAD = [
    (("--capacity", "foo"), "'foo' is not a size"),
    (("--capacity", "-5GiB"), "size '-5GiB' is negative"),
    (("--capacity", "0"), "size '0' is zero"),
    (("--compute", "0"), "--compute: 0.0 is too little"),
    (("--policy", "nice"), "--policy: policy 'nice' is not known. There are: fair"),
    (("--turn", "-1"), "--turn: -1.0 is too little"),
    (("--foreign", "bla"), "--foreign: invalid choice: 'bla' (choose from 'adopt', 'ignore')"),
    (
        ("--over", "bla"),
        "--over: invalid choice: 'bla' (choose from 'tell', 'end'). The broker was",
    ),
    (("--over", "kill"), "Did you mean end? The broker was not started."),
    (("--parking", "colt"), "Did you mean cold? The broker was not started."),
    (("--config", "a.toml", "--config", "b.toml"), "--config is given twice."),
    (("--device", "host", "--parking", "cold"), "--parking: the CPU has nothing to park."),
]


@pytest.mark.parametrize("runs", [False, True])
def test_bad_options_are_refused_before_anything_is_started(gpushare, where, runs):
    """One line and exit status 1, without a broker and beside one."""
    if runs:
        ensure_broker(where, PATIENCE, ["--capacity", "1GiB"])
    for options, says in BAD:
        done = gpushare("start", *options)
        assert (done.returncode, done.stdout) == (1, ""), options
        assert says in only_line(done.stderr)
    assert where.socket.exists() == runs


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["frobnicate"], "no command 'frobnicate'. There are start, stop,"),
        (["stauts"], "no command 'stauts'. Did you mean status?"),
        (["--frob"], "no option --frob."),
        (["status", "extra"], "'extra' means nothing here."),
        (["status", "--jsn"], "no option --jsn. Did you mean --json?"),
        (["status", "-x"], "no option -x."),
        (["status", "--json=3"], "--json takes no value"),
        (["start", "--capacityy=1GiB"], "no option --capacityy. Did you mean --capacity?"),
        (["start", "--capacity"], "--capacity needs a value."),
        (
            ["start", "--turn", "abc"],
            "--turn takes a number, and 'abc' is none. Write for example --turn=1.",
        ),
        (["policy", "fair", "--devcie", "1"], "no option --devcie. Did you mean --device?"),
        (["pause", "hw2", "--confg", "x"], "no option --confg. Did you mean --config?"),
        (["resume", "hw2", "--confg", "x"], "no option --confg. Did you mean --config?"),
        (["run", "6GiB", "--wiat", "5", "--", "true"], "no option --wiat. Did you mean --wait?"),
        (
            ["policy", "fair", "extra"],
            "policy takes one name, and 'fair extra' are 2 words. Write: jupyter gpushare policy fair [--device N].",
        ),
    ],
)
def test_words_that_mean_nothing_are_refused(gpushare, where, words, says):
    """One line with what was meant; nothing is done."""
    done = gpushare(*words)
    assert (done.returncode, done.stdout) == (125 if words[0] == "run" else 1, "")
    assert says in only_line(done.stderr)
    assert not where.socket.exists()


def test_broker_runs_in_the_foreground(where):
    """It is the command's own process, logs to the terminal, and ends well at SIGTERM."""
    command = [sys.executable, "-m", "gpushare_kernel.app.main", "broker", "--capacity", "1GiB"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert any("listening" in line for line in process.stderr)
            with Line(where) as line:
                assert line.pid == process.pid
        finally:
            process.terminate()
            process.stderr.read()
        assert process.wait() == 0


def test_doctor_gives_its_verdict_first(gpushare, where):
    """Where nothing makes kernels share, the first line says so and what to do; exit status 1."""
    done = gpushare("doctor")
    assert done.returncode == 1
    first = done.stdout.splitlines()[0]
    assert first.startswith("CPU ONLY, but not all is well: Nothing makes kernels share here.")
    assert "jupyter gpushare install" in first
    assert str(where.socket) in done.stdout
    assert not where.runtime.exists()


def test_doctor_is_content_where_kernels_share(gpushare, broker):
    """With a broker and the variable all is well, the device is named, and what it cannot do."""
    done = gpushare("doctor", JUPYTER_DEFAULT_PROVISIONER_NAME="gpushare")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[0].startswith("CPU ONLY: This machine has no NVIDIA GPU:")
    assert "no GPU" in done.stdout
    assert str(broker.log) in done.stdout
    assert "FAIL" not in done.stdout


def test_pause_and_resume_say_what_is_amiss(gpushare, broker, kernel):
    """One notebook at a time, one of one's own, and one that runs something; exit status 1 and one line."""
    for words, text in (
        (("pause",), "say which notebook, and 0 were named: jupyter gpushare pause hw2."),
        (("resume", "a", "b"), "say which notebook, and 2 were named"),
        (("pause", "hw3"), "you have no notebook 'hw3' open. Yours: hw2.ipynb."),
        (("pause", "hw2"), "hw2.ipynb runs nothing that could be paused"),
    ):
        done = gpushare(*words)
        assert done.returncode == 1, done.stdout
        assert text in only_line(done.stderr)
    done = gpushare("resume", "hw2.ipynb")
    assert (done.returncode, done.stderr) == (0, "")
    assert only_line(done.stdout) == "Nothing to resume: you have not paused it."


def test_the_policy_is_shown_and_switched(gpushare, broker):
    """Live; a mistyped one is refused before anything is asked."""
    with Line(broker) as line:
        name = line.snapshot().devices[0].name
    assert gpushare("policy").stdout.strip() == f"{name}: fair"
    assert gpushare("policy", "pack", "--device", "host").stdout.strip() == f"{name}: pack"
    assert gpushare("policy", "SRTF", "--device", "0").stdout.strip() == f"{name}: srtf"
    for words, told in (
        (("sretf",), "policy 'sretf' is not known. Did you mean 'srtf'?"),
        (("fifo", "pack"), "policy takes one name, and 'fifo pack' are 2 words."),
        (("fifo", "--device", "7"), "no device is called '7'"),
    ):
        done = gpushare("policy", *words)
        assert done.returncode == 1
        assert told in only_line(done.stderr)
    assert gpushare("policy").stdout.strip() == f"{name}: srtf"


def test_a_failure_on_the_line_is_raised_as_what_it_is(broker):
    """The broker's refusal comes back as an error of our tree, and the line still works."""
    with Line(broker) as line:
        with pytest.raises(GpushareError, match="nonsense"):
            line.ask(SetPolicy("nonsense"))
        assert line.snapshot().broker.pid == line.pid != os.getpid()
