"""Accounts of the same machine that mean no good: what they try, and that nobody else feels it."""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.host import Host, stopped
from tests.hostile.conftest import Scene, needs_root
from tests.procs import eventually

pytestmark = [pytest.mark.root, needs_root]
SEVERAL_TURNS = """import time
end = time.process_time() + 8
print('burning', flush=True)
while time.process_time() < end: pass
print('done')"""
"""A cell that wants eight seconds of a core: more than it is owed when the other one has had a turn with its child."""
WITH_A_CHILD = """import subprocess, sys
child = subprocess.Popen([sys.executable, '-S', '-c', 'while True: pass'])
print('child', child.pid, flush=True)
try:
    while True: pass
finally:
    child.kill()
    child.wait()"""
HARMLESS = {"Close: Ok", "Cancel: Ok", "GetSnapshot: SnapshotReply"}
"""A goodbye to what is not there, a job that is not there, and what one may see."""


def test_nobody_acts_on_anothers_session(scene: Scene) -> None:
    """With the token, the pid, the name and the job's id in hand: every request is refused, and no answer tells more."""
    scene.mallory.do("open")
    for seed, user in enumerate(
        (scene.mallory, scene.eve)
    ):  # with a session of its own, and without
        said = user.do("attack", scene.victim, 200, seed)
        assert said["leaks"] == 0
        assert sum(said["answers"].values()) == 200
        codes = {what for what in said["answers"] if what not in HARMLESS}
        assert {what.split(": ")[1] for what in codes} <= {"BadToken", "NotYours", "BadDeclaration"}
    scene.mallory.do("close")
    scene.unharmed()


def test_a_token_is_not_used_twice(scene: Scene) -> None:
    """That of before a restart, and that of a session that has ended, are worth nothing to their own user either."""
    old = scene.mallory.do("open")
    keys = {key: old[key] for key in ("session", "token")}
    (again,) = scene.mallory.do("says", "Restart", keys, [])
    for kind, body in (("Attach", {"token": old["token"]}), ("Restart", keys)):
        assert scene.mallory.do("says", kind, body, [])[0]["code"] == "BadToken"
    new = {**keys, "token": again["token"]}
    assert scene.mallory.do("says", "Close", new, [])[0]["type"] == "Ok"
    for kind, body in (("Attach", {"token": new["token"]}), ("Restart", new)):
        assert scene.mallory.do("says", kind, body, [])[0]["code"] == "BadToken"
    scene.mallory.do("close")
    scene.unharmed()


def test_frames_that_are_none(scene: Scene) -> None:
    """Mutated by value, by shape and by byte: no traceback in the log, and nobody else notices."""
    for user in (scene.mallory, scene.eve):
        assert user.do("open")["bound"] == "Ok"
    for seed, user in enumerate((scene.mallory, scene.eve)):
        user.begin("fuzz", seed, 3000)
    assert all(user.answer()["handled"] >= 3000 for user in (scene.mallory, scene.eve))
    for user in (scene.mallory, scene.eve):
        user.do("close")
    scene.unharmed()


def test_who_asks_without_end_waits_and_reads_why(scene: Scene) -> None:
    """Its requests get a share of the broker's time and no more; it is told so, and the log is, a line a minute at most."""
    told = scene.oscar.do("nag", 60.0)  # nobody has told this one within the last minute
    assert "one user's requests get at most 5% of the broker's time, and yours take more" in told
    said = scene.oscar.do("flood", 2.0, 10_000, ["GetSnapshot", "GetNeeds"])
    assert said["sent"] > 0
    lines = [
        each for each in scene.host.log("warning") if "take more than their" in each["message"]
    ]
    assert scene.oscar.uid in {each["uid"] for each in lines}
    assert len(scene.host.log("warning")) < 20
    scene.unharmed()


def test_descriptors_by_the_thousand(scene: Scene) -> None:
    """A hello in single bytes, with descriptors beside each: the broker keeps none of them."""
    assert scene.mallory.do("descriptors", 3000) == "BadFrame"
    held = len(os.listdir(f"/proc/{scene.broker.pid}/fd"))  # noqa: PTH208
    assert held < 100
    scene.unharmed()


def test_sessions_by_the_hundred(scene: Scene) -> None:
    """Opened and dropped, half of them without a goodbye: everybody else opens theirs, and the log has no line for each."""
    said = scene.mallory.do("churn", 300)
    assert said == {"Opened": 300}
    assert scene.eve.do("open")["bound"] == "Ok"
    scene.eve.do("close")
    closed = [each for each in scene.host.log() if each["message"] == "a session is closed"]
    assert len(closed) < 30
    scene.unharmed()


def test_a_stopped_kernel_keeps_no_turn(host: Host) -> None:
    """Who stops a kernel of theirs in the middle of a turn keeps the core neither by that nor by a child that works on: others get theirs."""
    host.start("--capacity", "1GiB", "--compute", "1", "--turn", "1")
    stuck, other = host.notebook("stuck.ipynb"), host.notebook("other.ipynb")
    outputs = stuck.outputs(stuck.start(f"%%gpulane 10MiB\n{WITH_A_CHILD}"))
    child = int(stuck.read_until(outputs, "child").split()[1])
    waits = other.outputs(other.start(f"%%gpulane 10MiB\n{SEVERAL_TURNS}"))
    other.read_until(waits, "burning")
    eventually(lambda: stopped(other.pid) and not stopped(stuck.pid), 60)
    os.kill(stuck.pid, signal.SIGSTOP)
    try:
        eventually(lambda: stopped(child) and not stopped(other.pid), 20)
        eventually(lambda: stopped(other.pid) and not stopped(child), 20)
        assert stopped(stuck.pid)
        other.read_until(waits, "done")
    finally:
        os.kill(stuck.pid, signal.SIGCONT)
    stuck.interrupt()
    list(outputs)
