"""The guardian, with real processes: a killed broker leaves nobody stopped and is started again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.broker import guardian, logs
from gpushare_kernel.broker.guardian import CRASH_LOOP_SECONDS, HANGS, _StandsStill
from gpushare_kernel.broker.intents import RESTARTS, IntentTable, let_run
from gpushare_kernel.core.values import GiB, ProcessKey
from gpushare_kernel.devices.base import Hold
from gpushare_kernel.devices.move_limits import back_limit
from gpushare_kernel.devices.unlocking import Unlockers
from tests.devices.gpu import fake_worker
from tests.procs import Program, eventually

BROKER = '''
"""Pauses the processes it is told, with a guardian, and waits. As a restart: says so, and is ready."""
import fcntl, json, os, signal, sys
from pathlib import Path
from gpushare_kernel import procfs
from gpushare_kernel.broker.guardian import spawn_guardian
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices.base import Hold
from gpushare_kernel.transport.launch import report_ready
from gpushare_kernel.transport.places import Places

mode, runtime, *rest = sys.argv[1:]
places = Places(Path(runtime), system=False, named=True)
with (places.runtime / "starts").open("a") as starts:
    starts.write(f"{mode} {os.getpid()}\\n")
ready = int(rest[rest.index("--ready-fd") + 1]) if "--ready-fd" in rest else None
if mode == "restarted":
    report_ready(ready)
    sys.exit()
lock = os.open(places.broker_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
fcntl.flock(lock, fcntl.LOCK_EX)
table = IntentTable(places.intents)
again = "loop" if mode == "loop" else "restarted"
worker = json.loads(os.environ.get("TEST_LOCK_WORKER", "[]"))
guardian = spawn_guardian(table, places, [sys.executable, __file__, again, runtime], worker)
if mode == "loop":
    if ready is not None:
        report_ready(ready)
    os.kill(os.getpid(), signal.SIGKILL)
print(guardian.pid, flush=True)
for line in sys.stdin:
    word, *numbers = line.split()
    if word == "pause":
        key = ProcessKey(*map(int, numbers))
        table.add(key)
        procfs.send(key, signal.SIGSTOP)
    elif word in ("LOCK", "WORKER"):
        table.add(ProcessKey(*map(int, numbers)), Hold[word])
        print("noted", flush=True)
    elif word in ("PARK", "MOVER"):
        key = ProcessKey(*map(int, numbers))
        table.add(key, Hold.LOCK)
        table.change(key, Hold[word], 2**30)
        print("noted", flush=True)
    elif word == "leave":
        table.mark_clean_exit()
        os._exit(0)
'''


class Scene:
    """A fake broker with a real guardian, and some kernels that it can pause."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self.script = runtime / "broker.py"
        self.script.write_text(BROKER)
        self.broker = subprocess.Popen(
            [sys.executable, str(self.script), "first", str(runtime)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.broker.stdout is not None
        self.guardian = int(self.broker.stdout.readline())
        self.guardian_fd = os.pidfd_open(self.guardian)
        self.kernels: list[subprocess.Popen[bytes]] = []

    def note(self, how: str, key: ProcessKey) -> None:
        """Put a process on the broker's record."""
        self.tell(how, key.pid, key.start_time)
        assert self.broker.stdout is not None
        assert self.broker.stdout.readline() == "noted\n"

    def tell(self, *words: object) -> None:
        assert self.broker.stdin is not None
        print(*words, file=self.broker.stdin, flush=True)

    def kernel(self) -> ProcessKey:
        self.kernels.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        key = procfs.process_key(self.kernels[-1].pid)
        assert key is not None
        return key

    def paused_kernel(self) -> ProcessKey:
        key = self.kernel()
        self.tell("pause", key.pid, key.start_time)
        os.waitid(os.P_PID, key.pid, os.WSTOPPED)
        return key

    def kill_broker(self) -> None:
        self.broker.kill()
        self.broker.wait()

    def guardian_ended(self) -> None:
        """Wait for the guardian's end."""
        poll = select.poll()
        poll.register(self.guardian_fd, select.POLLIN)
        assert poll.poll(60_000), "the guardian is still there"

    def starts(self) -> list[str]:
        return [line.split()[0] for line in (self.runtime / "starts").read_text().splitlines()]

    def log(self) -> list[str]:
        log = self.runtime / "broker.log"
        return (
            [json.loads(line)["message"] for line in log.read_text().splitlines()]
            if log.exists()
            else []
        )

    def close(self) -> None:
        self.broker.kill()
        self.broker.communicate()
        self.guardian_ended()
        os.close(self.guardian_fd)
        for kernel in self.kernels:
            kernel.kill()
            kernel.communicate()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Set the scene, and end every process of it."""
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def continued(key: ProcessKey) -> None:
    """Wait until somebody continues a child of ours."""
    result = os.waitid(os.P_PID, key.pid, os.WCONTINUED)
    assert result is not None
    assert result.si_status == signal.SIGCONT


def test_a_killed_broker_leaves_nobody_stopped_and_comes_back(scene: Scene) -> None:
    """Every process on record runs again, the broker is started again, and the guardian's work is over."""
    kernels = [scene.paused_kernel() for _ in range(3)]
    scene.kill_broker()
    for key in kernels:
        continued(key)
    scene.guardian_ended()
    assert scene.starts() == ["first", "restarted"]
    assert scene.log()[0] == "the broker is gone: resumed 3 processes"
    table = IntentTable.open_existing(scene.runtime / "intents")
    assert table is not None
    assert (table.held(), len(table.restarts)) == ((), 1)
    table.close()


def test_the_guardian_sees_what_was_paused_long_after_it_started(scene: Scene) -> None:
    """It reads the table when the broker is gone, not when it starts: nobody waits for another broker."""
    watches(scene)
    key = scene.paused_kernel()
    scene.kill_broker()
    continued(key)
    scene.guardian_ended()
    assert scene.log()[0] == "the broker is gone: resumed 1 processes"


def test_a_clean_exit_restarts_nothing(scene: Scene) -> None:
    """A broker that leaves on purpose is not brought back, and nothing is logged about it."""
    scene.tell("leave")
    scene.guardian_ended()
    assert (scene.starts(), scene.log()) == (["first"], [])


def test_a_clean_exit_that_forgot_somebody(scene: Scene) -> None:
    """Whoever is still on record runs again even then."""
    key = scene.paused_kernel()
    scene.tell("leave")
    continued(key)
    scene.guardian_ended()
    assert scene.starts() == ["first"]


def test_a_reused_pid_is_never_signalled(scene: Scene) -> None:
    """A row whose pid now belongs to another process (its start time differs) continues nobody."""
    key = scene.kernel()
    os.kill(key.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, key.pid, os.WSTOPPED)
    scene.tell("pause", key.pid, key.start_time - 1)
    marker = scene.paused_kernel()  # the row before is on record, too, once this one stands still
    scene.kill_broker()
    continued(marker)
    scene.guardian_ended()
    assert procfs.state(key.pid) == "T"


def test_while_the_broker_stands_still_nobody_else_does(scene: Scene) -> None:
    """I3, I4: it lives, so it is left alone; once it goes on it pauses whom it wants to, and its end is seen as ever."""
    kernels = [scene.paused_kernel() for _ in range(2)]
    scene.broker.send_signal(signal.SIGSTOP)
    for key in kernels:
        continued(key)
    assert procfs.state(scene.broker.pid) == "T"
    eventually(lambda: scene.log() == ["the broker was stopped and does not go on: whom it had paused runs meanwhile"])  # fmt: skip
    table = IntentTable.open_existing(scene.runtime / "intents")
    assert table is not None
    assert set(table.held()) == {*kernels}  # a broker that goes on relies on its record
    table.close()
    scene.broker.send_signal(signal.SIGCONT)
    eventually(lambda: scene.log()[1:] == ["the broker goes on"])
    again = scene.paused_kernel()
    scene.broker.send_signal(signal.SIGSTOP)
    continued(again)
    scene.kill_broker()
    scene.guardian_ended()
    assert scene.starts() == ["first", "restarted"]


def test_who_is_stopped_by_somebody_else_meanwhile_stays_so(tmp_path: Path) -> None:
    """We let it run once: who stops it then was not the broker, which stands still."""
    table = IntentTable(tmp_path / "intents")
    with Program("say('up'); wait()") as program:
        table.add(program.key)
        os.kill(program.pid, signal.SIGSTOP)
        eventually(lambda: procfs.state(program.pid) == "T")
        assert let_run(table, None) == [program.key]
        os.kill(program.pid, signal.SIGSTOP)
        eventually(lambda: procfs.state(program.pid) == "T")
        assert let_run(table, None, {program.key}) == []
        assert procfs.state(program.pid) == "T"
    table.close()


def test_a_profiler_is_no_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at two looks, but at work in between: nobody is resumed for it. At two looks without a stir it is."""
    table = IntentTable(tmp_path / "intents")
    monkeypatch.setattr(logs, "set_up", lambda _: None)
    code = "say('up')\nfor line in sys.stdin: spin(0.01); say('done')"
    with Program(code) as broker, Program("say('up'); wait()") as kernel:
        for one in (broker, kernel):
            one.said()
        table.add(kernel.key)
        kernel.process.send_signal(signal.SIGSTOP)
        pidfd = os.pidfd_open(broker.pid)
        looks = _StandsStill(pidfd, table, None, tmp_path / "log")

        def stop() -> None:
            broker.process.send_signal(signal.SIGSTOP)
            eventually(lambda: procfs.state(broker.pid) == "T")

        stop()
        looks.look()
        broker.process.send_signal(signal.SIGCONT)
        broker.tell()
        broker.said()
        stop()
        looks.look()
        assert procfs.state(kernel.pid) == "T"
        looks.look()
        eventually(lambda: procfs.state(kernel.pid) == "S")
        os.close(pidfd)
    table.close()


def test_a_broker_that_hangs_keeps_nobody_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its process lives and is not stopped, and gives no sign of life for many looks. A busy one does, now and then; who never did is none of ours to judge."""
    table = IntentTable(tmp_path / "intents")
    monkeypatch.setattr(logs, "set_up", lambda _: None)
    with Program("say('up'); wait()") as broker, Program("say('up'); wait()") as kernel:
        pidfd = os.pidfd_open(broker.pid)
        looks = _StandsStill(pidfd, table, None, tmp_path / "log")

        def paused() -> bool:
            return procfs.state(kernel.pid) == "T"

        def pause() -> None:
            table.add(kernel.key)
            kernel.process.send_signal(signal.SIGSTOP)
            eventually(paused)

        def silence(number: int) -> None:
            for _ in range(number):
                looks.look()

        pause()
        silence(3 * HANGS)
        for _ in range(3):
            table.beat()
            silence(HANGS)
        assert paused()
        assert not caplog.messages
        looks.look()
        assert not paused()
        assert "hangs and does not go on" in caplog.messages[-1]
        table.beat()
        looks.look()
        assert caplog.messages[-1] == "the broker goes on"
        table.remove(kernel.key)
        pause()
        silence(HANGS - 1)
        assert paused()
        os.close(pidfd)
    table.close()


def test_a_broker_that_hangs_while_nobody_is_paused_is_no_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that starts may take long."""
    table = IntentTable(tmp_path / "intents")
    monkeypatch.setattr(logs, "set_up", lambda _: None)
    with Program("say('up'); wait()") as broker:
        pidfd = os.pidfd_open(broker.pid)
        looks = _StandsStill(pidfd, table, None, tmp_path / "log")
        table.beat()
        for _ in range(2 * HANGS):
            looks.look()
        os.close(pidfd)
    assert not caplog.messages
    table.close()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_guardian_outlives_signals_to_the_group(scene: Scene, signum: int) -> None:
    """Who ends both by a polite signal does not leave stopped kernels to nobody."""
    key = scene.paused_kernel()
    ready_to_ignore(scene.guardian, signum)
    os.kill(scene.guardian, signum)
    scene.kill_broker()
    continued(key)
    scene.guardian_ended()
    assert scene.starts() == ["first", "restarted"]


def watches(scene: Scene) -> None:
    """Wait until a guardian has its table and sleeps: it has read all that it reads at its start."""
    table, maps = str(scene.runtime / "intents"), Path(f"/proc/{scene.guardian}/maps")
    eventually(lambda: table in maps.read_text() and procfs.state(scene.guardian) == "S")


def ready_to_ignore(pid: int, signum: int) -> None:
    """Wait until a process that has just been started ignores a signal."""

    def ignores() -> bool:
        status = Path(f"/proc/{pid}/status").read_text()
        mask = next(line for line in status.splitlines() if line.startswith("SigIgn:"))
        return bool(int(mask.split()[1], 16) >> (signum - 1) & 1)

    eventually(ignores)


def test_the_guardian_is_in_nobodys_group(scene: Scene) -> None:
    """It has a session of its own and holds nothing but the two descriptors it needs."""
    ready_to_ignore(scene.guardian, signal.SIGTERM)
    assert os.getsid(scene.guardian) == scene.guardian
    assert Path(f"/proc/{scene.guardian}/cwd").readlink() == Path("/")
    table = str(scene.runtime / "intents")

    def holds() -> set[str]:
        links = set()
        for link in Path(f"/proc/{scene.guardian}/fd").iterdir():
            with contextlib.suppress(
                FileNotFoundError
            ):  # closed since it was listed: it is not held
                links.add(str(link.readlink()))
        return {link for link in links if "pidfd" not in link}

    watches(scene)
    eventually(lambda: holds() == {"/dev/null", table})  # it may just be reading whom it watches


@pytest.mark.parametrize(("age", "started"), [(1.0, False), (CRASH_LOOP_SECONDS + 1, True)])
def test_a_crash_loop_ends(scene: Scene, age: float, started: bool) -> None:
    """After five starts in a minute the guardian resumes, gives up and says so; older starts do not count."""
    table = IntentTable.open_existing(scene.runtime / "intents")
    assert table is not None
    for _ in range(RESTARTS):
        table.note_restart(time.monotonic() - age)
    table.close()
    key = scene.paused_kernel()
    scene.kill_broker()
    continued(key)
    scene.guardian_ended()
    assert scene.starts() == (["first", "restarted"] if started else ["first"])
    assert ("it is not started again" in scene.log()[-1]) is not started


def test_a_broker_that_always_dies_is_started_five_times(tmp_path: Path) -> None:
    """The count goes from broker to broker: six deaths in a row, and it stays dead."""
    script = tmp_path / "broker.py"
    script.write_text(BROKER)
    subprocess.run([sys.executable, str(script), "loop", str(tmp_path)], check=False)
    log = tmp_path / "broker.log"
    eventually(lambda: log.exists() and "it is not started again" in log.read_text(), 60)
    starts = [int(line.split()[1]) for line in (tmp_path / "starts").read_text().splitlines()]
    assert len(starts) == 1 + RESTARTS


def test_another_broker_was_faster(scene: Scene) -> None:
    """Where a client has started a broker meanwhile, the guardian starts none."""
    key = scene.paused_kernel()
    start_lock = os.open(scene.runtime / "start.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(start_lock, fcntl.LOCK_EX)
    scene.kill_broker()
    continued(key)
    broker_lock = os.open(scene.runtime / "broker.lock", os.O_RDWR)
    fcntl.flock(broker_lock, fcntl.LOCK_EX)
    os.close(start_lock)
    scene.guardian_ended()
    os.close(broker_lock)
    assert scene.starts() == ["first"]
    assert scene.log()[-1] == "another broker already lives here"


# ---------------------------------------------------------------- the driver's locks


class Gpu:
    """A driver of files, and processes that it has locked."""

    def __init__(self, scene: Scene, place: Path) -> None:
        self.scene, self.place = scene, place

    def locked(self, key: ProcessKey) -> ProcessKey:
        """Lock a process, as a worker of the broker would have."""
        (self.place / f"state.{key.pid}").write_text("locked")
        self.scene.note("LOCK", key)
        return key

    def state(self, key: ProcessKey) -> str:
        return (self.place / f"state.{key.pid}").read_text()


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """A scene on a GPU."""
    place, runtime = tmp_path / "gpu", tmp_path / "run"
    place.mkdir()
    runtime.mkdir()
    monkeypatch.setenv("TEST_LOCK_WORKER", json.dumps(fake_worker(place)))
    scene = Scene(runtime)
    yield Gpu(scene, place)
    scene.close()


def test_a_killed_broker_leaves_nobody_locked(gpu: Gpu) -> None:
    """L3: by workers of the guardian's own, which were ready before; stopped ones are continued as ever."""
    watches(gpu.scene)
    assert len(procfs.children(gpu.scene.guardian)) == 2
    kernels = [gpu.locked(gpu.scene.kernel()) for _ in range(5)]
    stopped = gpu.scene.paused_kernel()
    workers = [procfs.process_key(pid) for pid in procfs.children(gpu.scene.guardian)]
    gpu.scene.kill_broker()
    continued(stopped)
    gpu.scene.guardian_ended()
    assert {gpu.state(key) for key in kernels} == {"running"}
    assert gpu.scene.log()[0] == "the broker is gone: resumed 6 processes"
    eventually(lambda: not any(key and procfs.alive(key) for key in workers))


def test_while_the_broker_stands_still_nobody_is_locked(gpu: Gpu) -> None:
    """L3: its workers live, and are left alone; a lock that comes through meanwhile is undone, too."""
    watches(gpu.scene)
    first, later, worker = (gpu.scene.kernel() for _ in range(3))
    gpu.locked(first)
    gpu.scene.note("WORKER", worker)
    gpu.scene.note("LOCK", later)
    gpu.scene.broker.send_signal(signal.SIGSTOP)
    eventually(lambda: gpu.state(first) == "running")
    (gpu.place / f"state.{later.pid}").write_text("locked")
    eventually(lambda: gpu.state(later) == "running")
    assert procfs.alive(worker)


def test_who_is_put_back_meanwhile_finds_its_room(tmp_path: Path) -> None:
    """K2: others stay locked, as long as that may take and no longer (I3); nobody can say that it is over."""
    table, place = IntentTable(tmp_path / "intents"), tmp_path / "gpu"
    place.mkdir()
    unlockers = Unlockers(fake_worker(place), spare=1)
    code = "say('up'); wait()"
    with Program(code) as other, Program(code) as back, Program(code) as worker:
        (place / f"state.{other.pid}").write_text("locked")
        table.add(other.key, Hold.LOCK)
        table.add(back.key, Hold.LOCK)
        table.change(back.key, Hold.PARK, GiB)
        table.add(worker.key, Hold.WORKER)
        table.change(worker.key, Hold.MOVER)
        longest = back_limit(GiB)
        assert let_run(table, unlockers, stood=longest - 1) == []
        assert (place / f"state.{other.pid}").read_text() == "locked"
        assert let_run(table, unlockers, stood=longest) == [other.key]
        (place / f"state.{other.pid}").write_text("locked")
        worker.process.kill()
        worker.process.wait()
        assert let_run(table, unlockers) == [other.key]
        assert (place / f"state.{other.pid}").read_text() == "running"
    unlockers.close()
    table.close()


def test_how_long_the_broker_stands_still_is_counted_from_its_first_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time anew."""
    table, seen = IntentTable(tmp_path / "intents"), []
    monkeypatch.setattr(logs, "set_up", lambda _: None)
    monkeypatch.setattr(guardian, "let_run", lambda *_, stood: seen.append(stood) or [])
    now = [100.0]
    monkeypatch.setattr(guardian, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Program("say('up'); wait()") as broker:
        broker.said()
        pidfd = os.pidfd_open(broker.pid)
        looks = _StandsStill(pidfd, table, None, tmp_path / "log")
        for signum, state in ((signal.SIGSTOP, "T"), (signal.SIGCONT, "S"), (signal.SIGSTOP, "T")):
            broker.process.send_signal(signum)
            eventually(lambda state=state: procfs.state(broker.pid) == state)
            for _ in range(3):
                looks.look()
                now[0] += 0.5
        os.close(pidfd)
    assert seen == [0.5, 1.0, 0.5, 1.0]
    table.close()


def test_the_broker_s_workers_are_gone_before_anybody_is_unlocked(gpu: Gpu) -> None:
    """L6: one that does not end by itself is killed: it might lock again what we unlock."""
    watches(gpu.scene)
    key = gpu.locked(gpu.scene.kernel())
    worker = gpu.scene.kernel()
    gpu.scene.note("WORKER", worker)
    gpu.scene.kill_broker()
    result = os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    assert result is not None
    assert result.si_status == signal.SIGKILL
    gpu.scene.guardian_ended()
    assert gpu.state(key) == "running"


def test_a_lock_of_a_killed_worker_that_comes_through_late_is_undone(gpu: Gpu) -> None:
    """L6: the driver says that the process runs, and only then locks it, as its dead worker had asked."""
    watches(gpu.scene)
    key, worker = gpu.scene.kernel(), gpu.scene.kernel()
    gpu.scene.note("LOCK", key)
    gpu.scene.note("WORKER", worker)
    (gpu.place / f"late.{key.pid}").write_text(str(worker.pid))
    gpu.scene.kill_broker()
    gpu.scene.guardian_ended()
    assert not (gpu.place / f"late.{key.pid}").exists(), "it has come through"
    assert gpu.state(key) == "running"


def test_a_worker_s_pid_that_was_reused_is_nobody_s_to_kill(gpu: Gpu) -> None:
    """L2."""
    watches(gpu.scene)
    other = gpu.scene.kernel()
    gpu.scene.note("WORKER", ProcessKey(other.pid, other.start_time - 1))
    gpu.scene.kill_broker()
    gpu.scene.guardian_ended()
    assert procfs.alive(other)


def test_who_is_stopped_by_its_user_stays_on_record(gpu: Gpu) -> None:
    """L5: the next broker sees to it."""
    watches(gpu.scene)
    key = gpu.locked(gpu.scene.kernel())
    os.kill(key.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, key.pid, os.WSTOPPED)
    gpu.scene.kill_broker()
    gpu.scene.guardian_ended()
    assert gpu.state(key) == "locked"
    table = IntentTable.open_existing(gpu.scene.runtime / "intents")
    assert table is not None
    assert table.held(Hold.LOCK) == (key,)
    table.close()


def test_who_is_parked_and_who_moves_somebody_is_left_to_the_next_broker(gpu: Gpu) -> None:
    """K5, K6: a restore needs room that the guardian cannot look for; a worker in a move finishes. The others are unlocked as ever."""
    watches(gpu.scene)
    parked, moving = gpu.scene.kernel(), gpu.scene.kernel()
    (gpu.place / f"state.{parked.pid}").write_text("checkpointed")
    gpu.scene.note("PARK", parked)
    gpu.scene.note("MOVER", moving)
    locked = gpu.locked(gpu.scene.kernel())
    gpu.scene.kill_broker()
    gpu.scene.guardian_ended()
    assert gpu.state(locked) == "running"
    assert gpu.state(parked) == "checkpointed"
    assert procfs.alive(moving)
    asked = (gpu.place / "log").read_text()
    assert str(parked.pid) not in asked.split()
    table = IntentTable.open_existing(gpu.scene.runtime / "intents")
    assert table is not None
    assert set(table.held(*Hold)) == {parked, moving}
    assert table.size(parked) == 2**30
    table.close()


def test_without_a_cuda_device_there_are_no_workers(scene: Scene) -> None:
    """Nothing of CUDA is loaded for a host."""
    watches(scene)
    assert procfs.children(scene.guardian) == []


def test_the_guardian_imports_little() -> None:
    """No loop, no codec, no database: what it does not load cannot fail in it."""
    code = "import sys, gpushare_kernel.broker.guardian\nprint(*sys.modules)"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
    )
    assert loaded.isdisjoint(
        {
            "asyncio",
            "cuda",
            "pynvml",
            "msgspec",
            "sqlite3",
            "traitlets",
            "jupyter_client",
            "IPython",
        }
    )
