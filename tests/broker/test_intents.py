"""The table of intents: what is on record survives every death, and nobody is resumed who was not paused."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpushare_kernel import procfs
from gpushare_kernel.broker import intents
from gpushare_kernel.broker.intents import ROWS, IntentTable, resume_all
from gpushare_kernel.core.errors import BrokerUnavailable, DeviceError
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices.base import Hold
from gpushare_kernel.devices.unlocking import Unlockers
from tests.devices.gpu import fake_worker
from tests.procs import eventually


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the table is."""
    return tmp_path / "intents"


@pytest.fixture
def table(path: Path) -> Iterator[IntentTable]:
    """Make a table, and close it."""
    table = IntentTable(path)
    yield table
    table.close()


@pytest.fixture
def stopped() -> Iterator[ProcessKey]:
    """Make a child of this process that stands still."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        key = procfs.process_key(process.pid)
        assert key is not None
        yield key
        process.kill()


def test_its_blocks_are_there_before_they_are_written(path: Path) -> None:
    """On a disk that is full afterwards a store into a hole would end the broker with a SIGBUS."""
    IntentTable(path).close()
    found = path.stat()
    assert found.st_blocks * 512 >= found.st_size


def test_a_full_disk_is_said_and_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts a broker reads what to do; the table of the one before is as it was."""
    IntentTable(path).close()
    before = path.read_bytes()

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BrokerUnavailable, match=r"No space left on device\. Free some"):
        IntentTable(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


def on_record(path: Path, *hows: Hold) -> set[ProcessKey]:
    """Return what somebody else finds on record."""
    table = IntentTable.open_existing(path)
    assert table is not None
    held = set(table.held(*hows))
    table.close()
    return held


@settings(deadline=None)  # files are made, and read again, which a busy disk makes slow
@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(1, 9), st.integers(0, 2), st.sampled_from(Hold))
    )
)
def test_the_file_always_says_what_is_held(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int, int, Hold]]
) -> None:
    """After any adds and removes, in any order and repeated, a reader of the file finds exactly what is held."""
    path = tmp_path_factory.mktemp("intents") / "intents"
    table, model = IntentTable(path), {}
    for adds, pid, start, how in steps:
        key = ProcessKey(pid, start)
        if adds:
            table.add(key, how)
            model.setdefault(key, how)
        else:
            table.remove(key)
            model.pop(key, None)
    for how in Hold:
        held = {key for key, its in model.items() if its is how}
        assert set(table.held(how)) == held == on_record(path, how)
    assert set(table.held()) == {
        key for key, how in model.items() if how in (Hold.SIGNAL, Hold.LOCK)
    }
    table.close()


def test_a_killed_writer_leaves_its_entries(path: Path) -> None:
    """What another process had on record when it was killed is there for whoever comes."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from gpushare_kernel.broker.intents import IntentTable\nfrom gpushare_kernel.core.values import ProcessKey\n"
        "table = IntentTable(Path(sys.argv[1]))\ntable.add(ProcessKey(7, 8))\ntable.add(ProcessKey(2**22, 2**60))\n"
        "table.note_restart(5.0)\ntable.mark_clean_exit()\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert on_record(path) == {ProcessKey(7, 8), ProcessKey(2**22, 2**60)}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_table_refuses(table: IntentTable) -> None:
    """Over the limit nothing may be paused, with the number; a row that becomes free is used again."""
    for pid in range(1, ROWS + 1):
        table.add(ProcessKey(pid, 1))
    with pytest.raises(DeviceError, match=f"at most {ROWS} processes"):
        table.add(ProcessKey(ROWS + 1, 1))
    table.add(ProcessKey(5, 1))
    table.remove(ProcessKey(5, 1))
    table.add(ProcessKey(ROWS + 1, 1))
    assert len(table.held()) == ROWS


def test_each_broker_has_a_file_of_its_own(path: Path, table: IntentTable) -> None:
    """The guardian of the one before, which holds the old table, does not see what the new broker pauses."""
    old = IntentTable.open_existing(path)
    assert old is not None
    table.note_restart(100.0)
    table.add(ProcessKey(3, 3))
    table.mark_clean_exit()
    table.add(ProcessKey(5, 5), Hold.LOCK)
    new = IntentTable(path)
    new.add(ProcessKey(4, 4))
    assert set(old.held()) == set()
    assert on_record(path, Hold.SIGNAL) == {ProcessKey(3, 3), ProcessKey(4, 4)}
    assert on_record(path, Hold.LOCK) == {ProcessKey(5, 5)}
    assert (new.restarts, new.clean_exit, old.clean_exit) == ([100.0], False, True)
    new.close()
    old.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_restarts_are_remembered_newest_first(table: IntentTable) -> None:
    """The last five starts are kept."""
    for now in range(1, 8):
        table.note_restart(now + 0.5)
    assert table.restarts == [7.5, 6.5, 5.5, 4.5, 3.5]


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(intents._SIZE), b"x" * intents._SIZE])
def test_what_is_no_table_is_none(path: Path, content: bytes) -> None:
    """A file of another shape counts as none, and a broker replaces it."""
    path.write_bytes(content)
    assert IntentTable.open_existing(path) is None
    table = IntentTable(path)
    table.close()
    assert on_record(path) == set()


def test_a_row_that_says_nothing_we_know_is_free(path: Path, table: IntentTable) -> None:
    """Whatever wrote it: a broker starts."""
    table.add(ProcessKey(7, 7))
    table._words[table._rows[ProcessKey(7, 7)][0]] |= 99 << 32
    assert on_record(path, *Hold) == set()


def test_a_table_of_another_size_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker of another version left it: whom it paused is resumed all the same."""
    monkeypatch.setattr(intents, "_SIZE", 8 * (16 + 2 * 4096))
    old = IntentTable(path)
    old.add(ProcessKey(7, 7))
    old.note_restart(5.0)
    old.close()
    monkeypatch.undo()
    assert on_record(path) == {ProcessKey(7, 7)}
    new = IntentTable(path)
    assert (new.held(), new.restarts) == ((ProcessKey(7, 7),), [5.0])
    assert path.stat().st_size == intents._SIZE
    new.close()


def test_a_new_broker_has_given_no_sign_of_life(path: Path, table: IntentTable) -> None:
    """Those of the one before are not its own."""
    table.beat()
    assert table.beats == 1
    new = IntentTable(path)
    assert new.beats == 0
    new.close()


def test_another_boots_table_is_none(
    path: Path, table: IntentTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start times mean nothing after a reboot."""
    table.add(ProcessKey(1, 1))
    monkeypatch.setattr(procfs, "boot_id", lambda: "11111111-2222-3333-4444-555555555555")
    assert IntentTable.open_existing(path) is None


def test_no_table_and_a_link_are_none(tmp_path: Path, table: IntentTable) -> None:
    """Nothing at the path is no error, and a link is not followed."""
    assert IntentTable.open_existing(tmp_path / "nothing") is None
    (tmp_path / "link").symlink_to(tmp_path / "intents")
    assert IntentTable.open_existing(tmp_path / "link") is None


def test_resume_all_continues_what_stands_still(table: IntentTable, stopped: ProcessKey) -> None:
    """Whoever is on record runs again and leaves the record; the dead leave it too."""
    table.add(stopped)
    table.add(ProcessKey(stopped.pid, stopped.start_time + 1))
    table.add(ProcessKey(2**22 + 5, 1))
    assert resume_all(table) == [stopped]
    os.waitid(os.P_PID, stopped.pid, os.WCONTINUED)
    assert table.held() == ()


def test_resume_all_touches_nobody_who_reuses_a_pid(
    table: IntentTable, stopped: ProcessKey
) -> None:
    """A process with the pid, but not the start time, of one on record stays as it is."""
    table.add(ProcessKey(stopped.pid, stopped.start_time - 1))
    assert resume_all(table) == []
    assert procfs.state(stopped.pid) == "T"


def test_resume_all_keeps_what_it_may_not_signal(
    table: IntentTable, stopped: ProcessKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has become somebody else's stays on record, and does not keep the others from running."""
    other = ProcessKey(1, 1)

    def send(key: ProcessKey, signum: int) -> bool:
        if key == other:
            raise PermissionError
        return real(key, signum)

    real = procfs.send
    monkeypatch.setattr(procfs, "send", send)
    table.add(other)
    table.add(stopped)
    assert resume_all(table) == [stopped]
    assert table.held() == (other,)


def test_a_shared_table_is_read_anew(path: Path, table: IntentTable) -> None:
    """Two map one file; each sees what the other has written when it asks for it."""
    other = IntentTable.open_existing(path)
    assert other is not None
    table.add(ProcessKey(7, 7), Hold.LOCK)
    assert other.held() == ()
    other.refresh()
    assert other.held(Hold.LOCK) == (ProcessKey(7, 7),)
    other.close()


def test_resume_all_undoes_the_driver_s_locks(
    table: IntentTable, tmp_path: Path, stopped: ProcessKey
) -> None:
    """L2: each row by what it says: one process is unlocked, another one continued; the dead leave the record."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        key = procfs.process_key(process.pid)
        assert key is not None
        (tmp_path / f"state.{key.pid}").write_text("locked")
        table.add(key, Hold.LOCK)
        table.add(ProcessKey(2**22 + 5, 1), Hold.LOCK)
        table.add(ProcessKey(2**22 + 6, 1), Hold.WORKER)
        table.add(stopped)
        workers = Unlockers(fake_worker(tmp_path), spare=1)
        eventually(lambda: set(resume_all(table, workers)) <= {key, stopped} and not table.held())
        workers.close()
        assert (tmp_path / f"state.{key.pid}").read_text() == "running"
        assert table.held(*Hold) == ()
        process.kill()


def test_a_lock_that_cannot_be_undone_stays_on_record(table: IntentTable, tmp_path: Path) -> None:
    """The driver does not come up, say: the next one tries again."""
    (tmp_path / "init").write_text("CUDA_ERROR_NO_DEVICE")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        key = procfs.process_key(process.pid)
        assert key is not None
        table.add(key, Hold.LOCK)
        workers = Unlockers(fake_worker(tmp_path), spare=1)
        assert resume_all(table, workers) == []
        workers.close()
        assert table.held() == (key,)
        process.kill()


def test_who_is_parked_stays_on_record_with_its_size_from_broker_to_broker(
    path: Path, table: IntentTable
) -> None:
    """K7: in whole MiB, rounded up; changed in one store."""
    key = ProcessKey(2**22, 2**60)
    table.add(key, Hold.LOCK)
    table.change(key, Hold.PARK, 5 * 2**30 + 1)
    assert on_record(path, Hold.PARK) == {key}
    later = IntentTable(path)
    assert later.held(Hold.PARK) == (key,)
    assert later.size(key) == 5 * 2**30 + 2**20
    assert later.held() == ()
    later.change(key, Hold.LOCK)
    assert (later.held(), later.size(key)) == ((key,), 0)
    later.close()


def test_resume_all_neither_restores_who_is_parked_nor_ends_who_moves(
    table: IntentTable, tmp_path: Path
) -> None:
    """K5, K6: the guardian, and whoever else resumes all: a restore needs room, and a worker in a move is left to finish."""
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as mover,
    ):
        parked, moving = procfs.process_key(process.pid), procfs.process_key(mover.pid)
        assert parked is not None
        assert moving is not None
        (tmp_path / f"state.{parked.pid}").write_text("checkpointed")
        table.add(parked, Hold.LOCK)
        table.change(parked, Hold.PARK, 2**30)
        table.add(moving, Hold.WORKER)
        table.change(moving, Hold.MOVER)
        table.add(ProcessKey(2**22 + 6, 1), Hold.MOVER)
        workers = Unlockers(fake_worker(tmp_path), spare=1)
        assert resume_all(table, workers) == []
        workers.close()
        assert mover.poll() is None
        assert set(table.held(*Hold)) == {parked, moving}
        assert not (tmp_path / "log").exists()
        process.kill()
        mover.kill()
