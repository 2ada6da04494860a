"""`jupyter gpushare replay`, as people call it."""

from __future__ import annotations

import json
import re
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpushare_kernel.core.policies import POLICIES
from gpushare_kernel.replay.hosts import PLACINGS, POOL
from gpushare_kernel.replay.outcome import JobRecord
from gpushare_kernel.replay.recording import check_recording
from gpushare_kernel.replay.report import waits_text
from gpushare_kernel.replay.sources import read_source
from tests.app.conftest import Gpushare
from tests.procs import eventually

KEYS = {"makespan_s", "avg_queue_s", "avg_jct_s", "p50_jct_s", "p95_jct_s", "max_wait_s"}
KNOWN = [name for name in ("fifo", "srtf", "pack", "fair") if name in POLICIES]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Four jobs of two users; two of them do not fit beside each other."""
    path = tmp_path / "trace.csv"
    path.write_text(
        "job_id,user,submit_time,duration,persistent,ephemeral,iteration_time,class,demand,note\n"
        "a,ann,0,60,1GiB,9GiB,0.1,BE,1,long\n"
        "b,bob,5,10,1073741824,2GiB,0.1,BE,0.4,\n"
        "c,ann,6,5,,6GiB,,,,\n"
        "d,cem,70,3,,,,,,\n"
    )
    return path


@pytest.mark.parametrize("policy", KNOWN)
def test_each_policy_answers_in_json(gpushare: Gpushare, trace: Path, policy: str) -> None:
    done = gpushare("replay", str(trace), "--policy", policy.upper(), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert set(found) >= KEYS
    assert found["policy"] == policy
    assert 78 <= found["makespan_s"] + 5 <= 90
    assert found["avg_jct_s"] >= (60 + 10 + 5 + 3) / 4


def test_the_first_value_is_the_default(gpushare: Gpushare, trace: Path) -> None:
    found = json.loads(gpushare("replay", str(trace), "--json").stdout)
    assert (found["policy"], found["admission"], found["parking"]) == ("fifo", "policy", "off")


def test_hash_seeds_change_nothing(gpushare: Gpushare, trace: Path) -> None:
    words = ("replay", str(trace), "--policy", "all", "--parking", "on", "--json")
    first, second = (gpushare(*words, PYTHONHASHSEED=seed).stdout for seed in ("1", "2"))
    assert first == second != ""


def test_several_policies_are_compared(gpushare: Gpushare, trace: Path) -> None:
    done = gpushare("replay", str(trace), "--policy", "fair,fifo")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("4 jobs, 16.0 GiB, admission policy, parking off, turns of 0.1 s")
    assert lines[1].split() == ["fair", "fifo"]
    assert lines[2].split()[0] == "makespan"


def test_where_they_are_too_many_each_has_a_row(gpushare: Gpushare, trace: Path) -> None:
    """A terminal has no room for a column of each policy and placing."""
    words = ("replay", str(trace), "--policy", "all", "--hosts", "2", "--placing", "all")
    lines = gpushare(*words, COLUMNS="80").stdout.splitlines()
    assert lines[1].split() == ["makespan", "wait", "average", "median", "95", "%", "stood", "parked", "turns", "parks"]  # fmt: skip
    for policy in KNOWN:
        for placing in (*PLACINGS, POOL):
            (row,) = (line for line in lines if line.startswith(f"{policy} {placing} "))
            assert "…" not in row


def test_nobody_stood_still() -> None:
    """Then no line says who did."""
    job = JobRecord("a", "ann", 0.0, 0.0, 0.0, 1.0, 0.0, 1, 1.0, (), ())
    outcome = SimpleNamespace(jobs=[job])
    assert waits_text({"fifo": outcome}) == ""


def test_a_mistyped_policy_names_the_nearest(gpushare: Gpushare, trace: Path) -> None:
    done = gpushare("replay", str(trace), "--policy", "fifp")
    assert done.returncode == 1
    assert (
        done.stderr
        == "gpushare: --policy 'fifp' is not known. Did you mean fifo? There are: all, fair, fifo, pack, srtf.\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "a replay needs one trace, and got none"),
        (("TRACE", "--turn", "0"), "--turn 0 is no length of a turn"),
        (("TRACE", "--parking", "maybe"), "--parking 'maybe' is not known. There are: off, on."),
        (("TRACE", "--capacity", "8 GX"), "--capacity: "),
        (("TRACE", "--capacity", "9" * 5000), "--capacity: size '9999"),
        (
            ("TRACE", "--capacity", str(2**50)),
            "--capacity: size '1125899906842624B' is over 1024 TiB",
        ),
        (("TRACE", "--jobs", "a.svg", "--plot", "a.svg"), "--jobs and --plot both write a.svg. "),
        (("TRACE", "--placing", "blnd"), "--placing 'blnd' is not known. Did you mean blind?"),
        (
            ("TRACE", "--hosts", "10001"),
            "--hosts 10001 is no number of hosts. Give from 1 to 10000.",
        ),
        (("TRACE", "--jobs", "TRACE"), "--jobs "),
        (("TRACE", "--capacity", "8GiB"), "TRACE, row 2: job a never fits: it needs 10.0 GiB"),
        (("TRACE", "--plot", "a.pdf"), "--plot a.pdf: a picture's name ends in .svg or .png."),
        (("nowhere.csv",), "nowhere.csv: there is no such file."),
        (
            ("nowhere.jsonl",),
            "nowhere.jsonl cannot be read: No such file or directory. Name a file that",
        ),
        (("TRACE", "--polcy", "fair"), "no option --polcy. Did you mean --policy?"),
        (
            ("TRACE", "--seed", "x"),
            "--seed takes a whole number, and 'x' is none. Write for example --seed=1.",
        ),
        (("TRACE", "--device", "7"), "--device 7 chooses one of a recording's (.jsonl), and "),
        (
            ("TRACE", "--jobs", "/nonexist/a.csv"),
            "--jobs /nonexist/a.csv cannot be written: there is no folder /nonexist. Name",
        ),
        (("TRACE", "--jobs", "/"), "--jobs / cannot be written: it is a folder. Name"),
        (
            ("TRACE", "--plot", "/nonexist/a.svg"),
            "--plot /nonexist/a.svg cannot be written: there is no folder",
        ),
    ],
)
def test_an_error_is_one_line(gpushare: Gpushare, trace: Path, words, said: str) -> None:
    done = gpushare("replay", *(str(trace) if word == "TRACE" else word for word in words))
    assert (done.returncode, done.stdout) == (1, "")
    said = said.replace("TRACE, row", f"{trace}, row")
    assert done.stderr.startswith(f"gpushare: {said}")
    assert done.stderr.count("\n") == 1


def test_one_job_is_one_job(gpushare: Gpushare, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("job_id,submit_time,duration\na,0,1\n")
    assert gpushare("replay", str(path)).stdout.startswith("1 job, 16.0 GiB,")


def test_what_became_of_each_job(gpushare: Gpushare, trace: Path, tmp_path: Path) -> None:
    records = tmp_path / "jobs.csv"
    assert gpushare("replay", str(trace), "--jobs", str(records)).returncode == 0
    rows = records.read_text().splitlines()
    assert rows[0] == "policy,job_id,user,notebook,submit_time,lane_at,first_run,end,parked,longest_wait,turns"  # fmt: skip
    assert [row.split(",")[1] for row in rows[1:]] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("name", ["picture.svg", "picture.png"])
def test_it_draws(gpushare: Gpushare, trace: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    done = gpushare("replay", str(trace), "--policy", "fair,fifo", "--plot", str(tmp_path / name))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / name).read_bytes().startswith((b"<?xml", b"\x89PNG"))


def test_without_matplotlib_it_says_what_to_install(
    gpushare: Gpushare, trace: Path, tmp_path: Path
) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    path = ":".join([str(tmp_path), *filter(None, sys.path)])
    done = gpushare("replay", str(trace), "--plot", "a.svg", PYTHONPATH=path)
    assert done.returncode == 1
    assert done.stderr == (
        "gpushare: --plot needs matplotlib, which is not installed here. "
        "In a clone of gpushare: pip install '.[replay]'\n"
    )


def test_a_live_broker_records_what_replays(gpushare: Gpushare, tmp_path: Path) -> None:
    """I10, with a broker, a job and a clock that are real."""
    day = tmp_path / "day.jsonl"
    assert (
        gpushare(
            "start",
            "--capacity",
            "1GiB",
            "--compute",
            "1",
            "--device",
            "host",
            "--record",
            str(day),
        ).returncode
        == 0
    )
    work = "import time\nend = time.process_time() + 2.2\nwhile time.process_time() < end: pass"
    assert gpushare("run", "64MiB", "--name", "train.py", "--", sys.executable, "-c", work).returncode == 0  # fmt: skip
    gpushare("stop")
    eventually(lambda: b'"end"' in day.read_bytes())
    assert stat.S_IMODE(day.stat().st_mode) == 0o600
    assert check_recording(day) > 4
    (job,) = read_source(day).jobs
    assert 2.0 < job.duration < 5.0
    assert job.demand == pytest.approx(1.0, abs=0.2)
    found = json.loads(gpushare("replay", str(day), "--json").stdout)
    assert found["jobs"] == 1
    assert found["capacity"] == 2**30
    was = found["as_it_was"]
    assert was["policy"] == "as it was"
    assert was["makespan_s"] >= job.duration - 0.01
    records = tmp_path / "jobs.csv"
    shown = gpushare("replay", str(day), "--policy", "fair", "--jobs", str(records)).stdout
    assert re.search(r"as it was +fair\n", shown)
    told = [row.split(",") for row in records.read_text().splitlines()]
    assert [(row[0], row[3]) for row in told[1:]] == [("as it was", "train.py"), ("fair", "train.py")]  # fmt: skip


def test_a_recording_that_cannot_be_written_says_that_alone(
    gpushare: Gpushare, tmp_path: Path
) -> None:
    """Not the end of a log that says it again, and grows with every try."""
    for _ in range(2):
        done = gpushare("start", "--record", str(tmp_path / "nowhere" / "day.jsonl"))
        assert done.returncode == 3
        assert done.stderr.endswith("day.jsonl cannot be written: No such file or directory. Name a file in a folder of yours.\n")  # fmt: skip
        assert done.stderr.count("\n") == 1


def test_a_recording_has_its_name(gpushare: Gpushare) -> None:
    done = gpushare("start", "--record", "day.txt")
    assert done.returncode == 1
    assert "day.txt is to end in .jsonl, by which replay knows a recording" in done.stderr


def test_what_is_replayed_is_not_written_over(gpushare: Gpushare, trace: Path) -> None:
    """Neither by its name nor by another one of it."""
    before, link = trace.read_bytes(), trace.with_name("link.csv")
    link.symlink_to(trace)
    done = gpushare("replay", str(trace), "--jobs", str(link))
    assert (done.returncode, trace.read_bytes()) == (1, before)
    assert "cannot be written: it is what is replayed" in done.stderr


def test_a_capacity_is_bytes_as_in_a_trace(gpushare: Gpushare, trace: Path) -> None:
    assert "16.0 GiB" in gpushare("replay", str(trace), "--capacity", str(16 * 2**30)).stdout


def test_on_several_hosts_ways_of_placing_are_compared(gpushare, trace):
    """A column for each; one alone is called by its policy; with several policies by both."""
    done = gpushare("replay", str(trace), "--hosts", "2", "--placing", "all", "--json")
    found = json.loads(done.stdout)
    assert list(found) == ["soonest", "blind", "fewest", "own", "turns", "random", "pool"]
    words = ("replay", str(trace), "--hosts=2", "--placing=soonest,pool", "--policy=fair,fifo")
    assert list(json.loads(gpushare(*words, "--json").stdout)) == [
        "fair soonest",
        "fair pool",
        "fifo soonest",
        "fifo pool",
    ]
    shown = gpushare("replay", str(trace), "--hosts", "2").stdout
    assert "2 hosts of 16.0 GiB" in shown
    one = json.loads(gpushare("replay", str(trace), "--hosts", "1", "--json").stdout)
    assert one == json.loads(gpushare("replay", str(trace), "--json").stdout)


def test_a_placing_that_is_not_known(gpushare, trace):
    """The nearest one is offered; no hosts are none."""
    done = gpushare("replay", str(trace), "--hosts", "2", "--placing", "soonst")
    assert done.returncode == 1
    assert "--placing 'soonst' is not known. Did you mean soonest?" in done.stderr
    assert "--hosts 0 is no number of hosts" in gpushare("replay", str(trace), "--hosts=0").stderr
