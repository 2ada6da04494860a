"""The broker's process, as it is started by hand and by others."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.broker import daemon
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import BadSettings, BrokerUnavailable
from gpushare_kernel.transport.locks import free
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire import messages as msg
from tests.broker.house import Caller, House
from tests.procs import eventually


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder for a broker; what runs in it is ended."""
    with tempfile.TemporaryDirectory(prefix="gps") as folder:
        runtime = Path(folder) / "r"
        monkeypatch.setenv("GPUSHARE_RUNTIME_DIR", str(runtime))
        yield runtime
        places = Places(runtime, system=os.geteuid() == 0, named=True)
        if runtime.exists():
            with contextlib.suppress(BrokerUnavailable):
                stop_broker(places, 30.0)


def start(*arguments: str) -> None:
    runtime = Path(os.environ["GPUSHARE_RUNTIME_DIR"])
    ensure_broker(
        Places(runtime, system=os.geteuid() == 0, named=True),
        60,
        ["--capacity", "1GiB", *arguments],
    )


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "gpushare_kernel.broker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def broker_pid(runtime: Path) -> int:
    caller = Caller(runtime / "broker.sock", msg.Observe())
    caller.close()
    return caller.welcome.broker_pid


def log(runtime: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (runtime / "broker.log").read_text().splitlines()]


def test_a_second_broker_is_refused(runtime: Path) -> None:
    """One per host: the second says where the first is and goes; the first does not notice."""
    start()
    first = broker_pid(runtime)
    second = run()
    assert second.returncode == 1
    assert "already runs" in second.stderr
    assert "Traceback" not in second.stderr
    assert broker_pid(runtime) == first


def test_an_over_long_path_is_refused_with_the_numbers(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is made there."""
    long = runtime / ("x" * 120)
    monkeypatch.setenv("GPUSHARE_RUNTIME_DIR", str(long))
    refused = run()
    monkeypatch.setenv("GPUSHARE_RUNTIME_DIR", str(runtime))
    assert refused.returncode == 1
    assert "may have 107 bytes" in refused.stderr
    assert not long.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--turn", "0"], "--turn"),
        (["--turn", "nan"], "--turn"),
        (["--turn", "-1"], "--turn"),
        (["--turn", "inf"], "--turn"),
        (["--compute", "0"], "--compute"),
        (["--compute", "nan"], "--compute"),
        (["--idle-exit", "-1"], "--idle-exit"),
        (["--idle-exit", "inf"], "--idle-exit"),
        (["--idle-exit", "soon"], "--idle-exit"),
        (["--policy", "lottery"], "--policy"),
        (["--capacity", "banana"], "'banana' is not a size"),
        (["--capacity", "2"], "has no unit"),
        (["--capacity", "0GiB"], "is zero"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_bad_options_are_refused_by_name(runtime: Path, arguments: list[str], says: str) -> None:
    """No broker, no traceback, and the option in the message."""
    refused = run(*arguments)
    assert refused.returncode in (1, 2)
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (runtime / "broker.sock").exists()


def test_what_it_is_as_a_process(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cwd /, nobody's descriptors, no Jupyter or hub token or session of ours in its environment; its guardian's neither."""
    for name in (
        "JUPYTERHUB_API_TOKEN",
        "JPY_API_TOKEN",
        "JUPYTER_TOKEN",
        "GPUSHARE_TOKEN",
        "GPUSHARE_SESSION",
        "AWS_SECRET_ACCESS_KEY",
    ):
        monkeypatch.setenv(name, "secret-value")
    read, write = os.pipe()
    os.set_inheritable(write, True)
    start("--idle-exit", "0")
    os.close(write)
    assert os.read(read, 1) == b"", "nobody else holds the pipe's end"
    os.close(read)
    broker = broker_pid(runtime)
    for pid in (broker, *procfs.children(broker)):
        proc = Path(f"/proc/{pid}")
        assert str((proc / "cwd").readlink()) == "/"
        assert b"secret-value" not in (proc / "environ").read_bytes()
    assert procfs.parent(broker) != os.getpid()
    soft = next(
        line
        for line in Path(f"/proc/{broker}/limits").read_text().splitlines()
        if "open files" in line
    ).split()
    assert soft[3] == soft[4], "as many descriptors as it may have"


def test_its_log_is_json_lines(runtime: Path) -> None:
    """From its first word to its last, with where it listened and why it went."""
    start()
    broker = broker_pid(runtime)
    os.kill(broker, signal.SIGTERM)
    eventually(
        lambda: not (runtime / "broker.sock").exists() and procfs.process_key(broker) is None
    )
    lines = log(runtime)
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    listening = next(line for line in lines if line["message"] == "listening")
    assert listening["socket"] == str(runtime / "broker.sock")
    assert listening["capacity"] == 2**30
    assert any("SIGTERM" in str(line["message"]) for line in lines)
    assert not [line for line in lines if line["level"] in ("error", "critical")]


def test_its_own_failure_is_in_its_log(runtime: Path) -> None:
    """Whoever started it may be gone, and its guardian starts the next one: what it died of is nowhere else."""
    program = (
        "from gpushare_kernel.broker import daemon; daemon.IntentTable = None; daemon.main([])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
    assert done.returncode == 1
    (line,) = (line for line in log(runtime) if line["level"] == "critical")
    assert line["message"] == "the broker failed, and ends"
    assert str(line["traceback"]).endswith("TypeError: 'NoneType' object is not callable")


def test_it_leaves_by_itself_when_nobody_needs_it(runtime: Path) -> None:
    """Idle exit: the process and its socket are gone, its guardian too, and a new one can start."""
    start("--idle-exit", "0.1")
    broker = procfs.process_key(broker_pid(runtime))
    assert broker is not None
    guardians = [key for pid in procfs.children(broker.pid) if (key := procfs.process_key(pid))]
    eventually(lambda: not procfs.alive(broker))
    eventually(lambda: not any(procfs.alive(key) for key in guardians))
    assert not (runtime / "broker.sock").exists()
    start()
    assert broker_pid(runtime) != broker.pid


def test_one_whose_folder_is_removed_makes_room_for_the_next(runtime: Path) -> None:
    """Whoever comes meanwhile starts another; the first sees it, goes, and leaves the other's socket alone."""
    start("--idle-exit", "0")
    first = procfs.process_key(broker_pid(runtime))
    assert first is not None
    shutil.rmtree(runtime)
    start("--idle-exit", "0")
    second = broker_pid(runtime)
    assert second != first.pid
    eventually(lambda: not procfs.alive(first))
    assert broker_pid(runtime) == second


def test_one_that_cannot_say_that_it_was_stopped_goes_all_the_same(runtime: Path) -> None:
    """The mark cannot be written (a full disk, say): it is a clean exit, and the guardian starts nothing."""
    start("--idle-exit", "0")
    broker = procfs.process_key(broker_pid(runtime))
    assert broker is not None
    guardians = [key for pid in procfs.children(broker.pid) if (key := procfs.process_key(pid))]
    (runtime / "stopped").symlink_to("stopped")
    os.kill(broker.pid, signal.SIGTERM)
    eventually(lambda: not procfs.alive(broker))
    eventually(lambda: not any(procfs.alive(key) for key in guardians))
    assert free(runtime / "broker.lock")
    said = [str(line["message"]) for line in log(runtime)]
    assert any("may start another broker" in text for text in said)
    assert not any("the broker is gone" in text for text in said)


def test_everybody_runs_while_there_is_no_guardian(house: House) -> None:
    """Also who stands in nobody's way; and whom a signal freed for longer stays free for as long."""
    first, second = house.open(), house.open()
    engine = house.broker.engine
    long = house.do(lambda: engine.now) + 1000
    house.do(lambda: engine.feed(ev.Exempted(at=engine.now, session=first.session, until=long)))
    before = house.do(lambda: engine.now)
    house.do(lambda: daemon._let_run(house.broker, 50))
    sessions = engine.scheduler.sessions
    assert sessions[first.session].exempt_until == long
    assert sessions[second.session].exempt_until >= before + 50


def test_a_system_broker_reads_the_file_of_its_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, house: House
) -> None:
    """Where there is one; a broker in a named folder, or a user's, has none but the one it is given."""
    monkeypatch.setattr("gpushare_kernel.transport.places.SYSTEM_MARK", tmp_path)
    system, given = Places(tmp_path / "run", system=True), daemon.parser().parse_args([])
    devices = [house.device]
    assert daemon._settings(given, system, devices).groups == ()
    known = house.ledger.load()
    made = house.do(lambda: daemon._broker(given, system, devices, known, house.ledger))
    assert made.groups.place == tmp_path / "gpushare.toml", "it may be written later"
    house.wait(made.finish())
    file = tmp_path / "gpushare.toml"
    file.write_text("[groups.everybody]\nweight = 2\n")
    file.chmod(0o644)
    assert daemon._settings(given, system, devices).groups[0].caps.weight == 2.0
    for other in (Places(tmp_path / "run", system=True, named=True), Places(tmp_path, system=False)):  # fmt: skip
        assert daemon._settings(given, other, devices).groups == ()
    given = daemon.parser().parse_args(["--config", str(tmp_path / "missing.toml")])
    with pytest.raises(BadSettings, match="cannot be read: No such file"):
        daemon._settings(given, system, devices)


def test_after_a_crash_what_was_read_last_is_asked_of_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, house: House
) -> None:
    """The file was changed since and is wrong; whoever the kept one names has left, and the device has less. No start but one after a crash takes it."""
    where, file = Places(tmp_path / "run", system=True), tmp_path / "gpushare.toml"
    where.runtime.mkdir()
    monkeypatch.setattr(Places, "settings_kept", tmp_path / "kept.toml")
    file.write_text("nonsense")
    where.settings_kept.write_text(
        '[groups.g]\nusers = ["long-gone"]\nunix_groups = ["gone-too"]\nmemory = "900TiB"\n'
    )
    words = ["--config", str(file)]
    with pytest.raises(BadSettings):
        daemon._settings(daemon.parser().parse_args(words), where, [house.device])
    found = daemon._settings(daemon.parser().parse_args([*words, "--again"]), where, [house.device])
    (group,) = found.groups
    assert (group.users, group.unix_groups) == ({"long-gone"}, {"gone-too"})
    assert group.caps.memory == 900 * 2**40
