"""Recordings: the same events give the same instructions (I10), and a recorded day becomes a trace."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from gpushare_kernel.broker.recorder import Recorder
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.core.values import GiB, SessionId, UserId
from gpushare_kernel.replay import lived
from gpushare_kernel.replay.engine import Settings, replay
from gpushare_kernel.replay.recording import Differs, check_recording, read_recording
from gpushare_kernel.replay.rows import BadTrace
from gpushare_kernel.replay.sources import read_source
from tests.core.tests_core_world import Kernel, World


class RecordedWorld(World):
    """A virtual host whose events are written down as the broker does."""

    def __init__(self, path: Path, **settings: object) -> None:
        super().__init__(**settings)
        self.recorder = Recorder(path)
        self.recorder.begin("host", self.core)

    def send(self, event: ev.Event):
        out = super().send(event)
        self.recorder.note("host", event, out)
        return out


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Ten seconds of two users on one core: a declared job beside one that comes and goes, a plain cell, a closed kernel."""
    path = tmp_path / "day.jsonl"
    world = RecordedWorld(path, compute=1.0)
    world.open("a", "ann", interval=0.01)
    world.open("b", "bob", interval=0.01)
    world.open("c", "cem", demand=0.5)
    world.submit("a1", "a", 1 * GiB, 2 * GiB)
    world.run(2.0)
    world.submit("b1", "b", 1 * GiB, 3 * GiB)
    world.run(4.0)
    world.end("b1")
    world.cell("c")
    world.run(2.0)
    world.cell_ends("c")
    world.run(1.0)
    world.end("a1")
    world.close("b")
    world.recorder.close()
    return path


def test_a_recorded_run_replays(recording: Path) -> None:
    """I10."""
    assert check_recording(recording) > 100


def test_a_changed_event_shows(recording: Path) -> None:
    lines = recording.read_bytes().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if b'"JobEnded"' in line)
    del lines[at]
    recording.write_bytes(b"".join(lines))
    with pytest.raises(Differs, match=r"line \d+: \w+ gives other instructions than it gave live"):
        check_recording(recording)


def test_a_recording_is_a_trace(recording: Path) -> None:
    jobs, capacity, differs, _ = read_recording(recording)
    assert differs == 0
    assert capacity == 10 * GiB
    found = {job.name: job for job in jobs}
    assert set(found) == {"a1", "b1", "c/plain"}
    assert found["a1"].submitted == 0.0
    assert found["b1"].submitted == pytest.approx(2.0)
    assert (found["b1"].user, found["b1"].persistent) == ("bob", 1 * GiB)
    assert found["b1"].duration == pytest.approx(2.0, abs=0.3)
    assert found["c/plain"].demand == pytest.approx(0.5, abs=0.1)


def test_how_it_was_stands_beside_what_would_have_been(recording: Path) -> None:
    """Waits, turns and ends are those of the day, counted from its first submission."""
    was = read_recording(recording).was
    found = {job.name: job for job in was.jobs}
    a, b, c = found["a1"], found["b1"], found["c/plain"]
    assert (a.submitted, a.lane_at, a.first_run) == (0.0, 0.0, 0.0)
    assert (a.ended, b.ended, c.ended) == (pytest.approx(9.0), pytest.approx(6.0), pytest.approx(8.0))  # fmt: skip
    assert b.submitted == pytest.approx(2.0)
    assert b.first_run == pytest.approx(2.1, abs=0.2)
    assert b.longest_wait == pytest.approx(0.15, abs=0.15)
    assert b.turns >= 5
    together = sum(end - begin for one in (a, b) for begin, end in one.stretches if begin >= 2.0 and end <= 6.0)  # fmt: skip
    assert together == pytest.approx(4.0, abs=0.4)
    summary = was.summary()
    assert summary["policy"] == "as it was"
    assert summary["makespan_s"] == pytest.approx(9.0)
    assert summary["busy_s"] == pytest.approx(9.0, abs=0.3)


def test_jobs_have_the_names_of_their_notebooks(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    world = RecordedWorld(path, compute=1.0)
    world.recorder.named("a", "hw2.ipynb")
    world.open("a", "ann")
    world.open("b", "bob")
    world.submit("a1", "a", 1 * GiB)
    world.submit("b1", "b", 1 * GiB)
    world.run(1.0)
    world.recorder.close()
    found = read_recording(path)
    assert {job.name: job.notebook for job in found.jobs} == {"a1": "hw2.ipynb", "b1": ""}
    assert {job.name: job.notebook for job in found.was.jobs} == {"a1": "hw2.ipynb", "b1": ""}
    done = replay(found.jobs, Settings(policy="fair", capacity=found.capacity))
    assert {job.name: job.notebook for job in done.jobs} == {"a1": "hw2.ipynb", "b1": ""}


def test_what_was_parked_was_not_there(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    world = RecordedWorld(path, compute=1.0, capacity=4 * GiB, can_park=True, residency=0.5, park_cost=0.001)  # fmt: skip
    world.move_takes = 0.1
    world.open("a", "ann", interval=0.01)
    world.open("b", "bob", interval=0.01)
    world.submit("a1", "a", 3 * GiB, 0)
    world.run(2.0)
    world.submit("b1", "b", 3 * GiB, 0)
    world.run(3.0)
    world.recorder.close()
    found = {job.name: job for job in read_recording(path).was.jobs}
    assert found["a1"].parks
    begin, end = found["a1"].parks[0]
    assert 2.0 <= begin < end
    assert not any(begin < at < end for stretch in found["a1"].stretches for at in stretch)


def test_those_who_wait_are_not_looked_at_for_every_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day with a long queue is read in time that goes with its events, not with events times queue."""
    path, waiting = tmp_path / "day.jsonl", 60
    world = RecordedWorld(path, compute=1.0)
    for n in range(waiting):
        world.open(f"s{n}", f"u{n}", interval=0.01)
        world.submit(f"j{n}", f"s{n}", 6 * GiB, GiB)
    world.run(1.0)
    for n in range(waiting):
        world.end(f"j{n}")
        world.run(0.05)
    world.recorder.close()
    looks = 0
    look = lived.Lived.look

    def counted(one: lived.Lived, at: float) -> None:
        nonlocal looks
        looks += 1
        look(one, at)

    monkeypatch.setattr(lived.Lived, "look", counted)
    assert len(read_recording(path).jobs) == waiting
    assert looks < 4 * check_recording(path)


def test_weights_and_class_are_carried_over(tmp_path: Path) -> None:
    """What a job was on that day, it is in the replay: shares as then, RT above all."""
    path = tmp_path / "day.jsonl"
    world = RecordedWorld(path, compute=1.0)
    ann, a = UserId("ann"), SessionId("a")
    world.send(ev.SessionOpened(at=0.0, session=a, user=ann, user_weight=3.0))
    world.send(ev.SessionReady(at=0.0, session=a, bare=False, context=0))
    world.kernels["a"] = Kernel()
    world.open("b", "bob")
    world.submit("a1", "a", 1 * GiB, weight=2.0, realtime=True)
    world.submit("b1", "b", 1 * GiB)
    world.run(4.0)
    world.end("a1")
    world.run(0.5)  # only now it has its turn
    world.end("b1")
    world.recorder.close()
    found = {job.name: job for job in read_source(path).jobs}
    assert (found["a1"].weight, found["a1"].user_weight, found["a1"].realtime) == (2.0, 3.0, True)
    assert (found["b1"].weight, found["b1"].user_weight, found["b1"].realtime) == (1.0, 1.0, False)


def test_a_device_is_chosen_by_number_or_id(tmp_path: Path) -> None:
    """As everywhere else; which ones there are is said where none was meant."""
    path = tmp_path / "day.jsonl"
    world = RecordedWorld(path, compute=1.0)
    world.recorder.begin("GPU-beef01", World().core)
    world.open("a")
    world.submit("a1", "a", 1 * GiB)
    world.run(1.0)
    world.end("a1")
    world.recorder.close()
    for word in ("", "0", "host", "HOST"):
        assert [job.name for job in read_recording(path, word)[0]] == ["a1"]
    for word in ("1", "GPU-beef", "7"):
        with pytest.raises(BadTrace, match=rf"has jobs of the devices 0 \(host\), and '{word}' is none of them\. .* --device 0\."):  # fmt: skip
            read_recording(path, word)


def test_what_if_fifo_yesterday(recording: Path) -> None:
    source = read_source(recording)
    fair, fifo = (
        {job.name: job for job in replay(source.jobs, Settings(policy=policy)).jobs}
        for policy in ("fair", "fifo")
    )
    assert fifo["b1"].first_run == pytest.approx(fifo["a1"].ended, abs=0.1)
    assert fair["b1"].first_run < 2.5


def test_only_its_owner_reads_it(recording: Path) -> None:
    assert stat.S_IMODE(recording.stat().st_mode) == 0o600


def test_a_file_of_others_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    path.write_text("x")
    path.chmod(0o644)
    with pytest.raises(BrokerUnavailable, match="not a file that only you can read"):
        Recorder(path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match=r"cannot be written: No such file or directory"):
        Recorder(tmp_path / "nowhere" / "day.jsonl")


def test_a_recording_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    world = World(compute=1.0)
    recorder = Recorder(path, most=5_000)
    recorder.begin("host", world.core)
    for n in range(1000):
        recorder.note("host", ev.Sampled(at=float(n)), [])
    recorder.close()
    assert path.stat().st_size <= 5_000
    assert check_recording(path) > 20


def test_the_last_word_may_be_cut_short(recording: Path) -> None:
    whole = check_recording(recording)
    lines = recording.read_bytes().splitlines(keepends=True)[:-1]
    recording.write_bytes(b"".join(lines)[:-20])
    assert check_recording(recording) == whole - 1


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("job_id,submit_time,duration\n")
    with pytest.raises(BadTrace, match=r"trace\.jsonl, line 1: no line of a recording"):
        check_recording(path)


def test_what_is_kept_of_a_size_is_no_part_of_what_it_takes_beside(tmp_path: Path) -> None:
    """`%%gpulane 3GiB` that keeps 2 GiB is 2 and 1, not 2 and 3: it would never fit where it ran."""
    path = tmp_path / "day.jsonl"
    world = RecordedWorld(path, compute=1.0, capacity=4 * GiB)
    world.open("a", "ann", interval=0.01)
    world.submit("a1", "a", size=3 * GiB)
    world.run(1.0)
    world.end("a1", persistent=2 * GiB)
    world.recorder.close()
    (job,) = read_recording(path).jobs
    assert (job.persistent, job.ephemeral) == (2 * GiB, 1 * GiB)


def test_events_that_go_otherwise_now_are_counted(recording: Path) -> None:
    """A recording of another version is a trace still, and says that it is not exact."""
    lines = recording.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if '"JobSubmitted"' in line)
    lines[at] = re.sub(r'"out":\d+', '"out":1', lines[at])
    recording.write_text("".join(lines))
    found = read_recording(recording)
    assert found.differs == 1
    assert {job.name for job in found.jobs} == {"a1", "b1", "c/plain"}


def test_a_policy_of_another_version_is_named_with_its_line(recording: Path) -> None:
    text = recording.read_text()
    assert text.count('"policy":"') == 1
    recording.write_text(text.replace('"policy":"', '"policy":"new'))
    with pytest.raises(BadTrace, match=r"day\.jsonl, line 1: policy 'new\w+' is not known\. .*[a-z]\. Only"):  # fmt: skip
        read_recording(recording)


def test_a_recording_without_its_beginning_is_refused(recording: Path) -> None:
    lines = recording.read_bytes().splitlines(keepends=True)
    recording.write_bytes(b"".join(lines[1:]))
    with pytest.raises(BadTrace, match="line 1: an event of the device host, which no line before"):
        read_recording(recording)
