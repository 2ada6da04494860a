"""The broker's side of its guardian: a real one, killed for real."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.broker import keeper as keeper_module
from gpushare_kernel.broker.hardware import lock_worker
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.broker.keeper import Keeper
from gpushare_kernel.devices.cuda import CudaDevice
from gpushare_kernel.devices.host import HostDevice
from gpushare_kernel.devices.unlocking import WORKER
from gpushare_kernel.devices.verdict import Probe, Verdict
from gpushare_kernel.transport.places import Places
from tests.devices.gpu import FakeNvml
from tests.devices.records import Record
from tests.procs import eventually


async def guardian_of(keeper: Keeper) -> subprocess.Popen[bytes]:
    """Wait for the next guardian: it is started by a timer, of which nothing tells."""
    async with asyncio.timeout(20):
        while keeper._guardian is None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return keeper._guardian


def keeping(folder: Path, worker: Sequence[str] = ()) -> tuple[IntentTable, Keeper]:
    places = Places(folder, system=False, named=True)
    table = IntentTable(places.intents)
    # Should the guardian ever start "the broker" here, that is /bin/true.
    return table, Keeper(table, places, ["/bin/true"], worker)


async def one_guardian(folder: Path, worker: Sequence[str] = ()) -> None:
    """Have a guardian started, and ended."""
    table, keeper = keeping(folder, worker)
    keeper.start(lambda _: None)
    guardian = await guardian_of(keeper)
    await keeper.stop()
    guardian.kill()
    guardian.wait()
    table.close()


def test_a_guardian_that_dies_is_replaced_and_everybody_resumed_first(tmp_path: Path) -> None:
    """I4: without a guardian nobody may stand still; then there is another one, and another."""

    async def scene() -> list[int]:
        table, keeper = keeping(tmp_path)
        resumed: asyncio.Queue[int] = asyncio.Queue()
        keeper.start(lambda _: resumed.put_nowait(1))
        guardians = []
        for _ in range(3):
            guardian = keeper._guardian
            assert guardian is not None
            guardians.append(guardian.pid)
            os.kill(guardian.pid, signal.SIGKILL)
            async with asyncio.timeout(20):
                await resumed.get()
            await guardian_of(keeper)
        last = await guardian_of(keeper)
        assert last.poll() is None
        await keeper.stop()
        last.kill()
        last.wait()
        table.close()
        return [*guardians, last.pid]

    pids = asyncio.run(scene())
    assert len(set(pids)) == 4


def test_a_guardian_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No memory for a process, now: the broker goes on, and there is a guardian as soon as there can be one."""
    monkeypatch.setattr(keeper_module, "_SLOWEST", 0.01)
    real = keeper_module.spawn_guardian
    failures = iter([OSError("Cannot allocate memory")])

    def spawn(*arguments: object, **more: object) -> subprocess.Popen[bytes]:
        for failure in failures:
            raise failure
        return real(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(keeper_module, "spawn_guardian", spawn)

    asyncio.run(one_guardian(tmp_path))
    assert "cannot be started" in caplog.text


def test_a_guardian_that_cannot_be_watched_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No descriptor is left for it: it is ended, or there would be two, and tried again."""
    monkeypatch.setattr(keeper_module, "_SLOWEST", 0.01)
    real, spawn, started = os.pidfd_open, keeper_module.spawn_guardian, []
    failures = iter([OSError(24, "Too many open files")])

    def watch(pid: int) -> int:
        if started and pid == started[-1].pid:
            for failure in failures:
                raise failure
        return real(pid)

    def spawned(*arguments: object, **more: object) -> subprocess.Popen[bytes]:
        started.append(spawn(*arguments, **more))  # type: ignore[arg-type]
        return started[-1]

    monkeypatch.setattr(keeper_module.os, "pidfd_open", watch)
    monkeypatch.setattr(keeper_module, "spawn_guardian", spawned)
    asyncio.run(one_guardian(tmp_path))
    assert [one.returncode for one in started] == [-signal.SIGKILL] * 2
    assert "cannot be started" in caplog.text


def test_nobody_is_paused_while_there_is_no_guardian(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I4: everybody is freed again and again, each time before the last has passed, until a guardian lives."""
    monkeypatch.setattr(keeper_module, "FREE", 0.02)
    monkeypatch.setattr(keeper_module, "_SLOWEST", 0.01)
    real, there = keeper_module.spawn_guardian, False

    def spawn(*arguments: object, **more: object) -> subprocess.Popen[bytes]:
        if there:
            return real(*arguments, **more)  # type: ignore[arg-type]
        problem = "Cannot allocate memory"
        raise OSError(problem)

    monkeypatch.setattr(keeper_module, "spawn_guardian", spawn)

    async def scene() -> None:
        nonlocal there
        table, keeper = keeping(tmp_path)
        freed: asyncio.Queue[float] = asyncio.Queue()
        keeper.start(freed.put_nowait)
        async with asyncio.timeout(20):
            assert [await freed.get() for _ in range(5)] == [0.02] * 5
        there = True
        guardian = await guardian_of(keeper)
        assert keeper._freeing is None
        await keeper.stop()
        guardian.kill()
        guardian.wait()
        table.close()

    asyncio.run(scene())


def test_only_who_locks_needs_workers(tmp_path: Path) -> None:
    """Neither a host, nor a GPU on which nobody can be paused."""
    host = HostDevice(Record(), capacity=1, compute=1.0)

    def gpu(verdict: Verdict) -> CudaDevice:
        return CudaDevice(Record(), nvml=FakeNvml(), worker=["/bin/false"], probe=Probe(verdict))

    full, cooperative = gpu(Verdict.FULL), gpu(Verdict.COOPERATIVE)
    assert lock_worker([host, cooperative]) == ()
    assert lock_worker([cooperative, full]) == WORKER
    for device in (host, full, cooperative):
        device.close()


def test_each_guardian_gets_workers_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is a CUDA device: the command of a lock worker is passed on to every one."""
    passed: list[object] = []
    real = keeper_module.spawn_guardian

    def spawn(*arguments: object, **more: object) -> subprocess.Popen[bytes]:
        passed.append(arguments[-1])
        return real(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(keeper_module, "spawn_guardian", spawn)

    asyncio.run(one_guardian(tmp_path, worker=["/bin/cat"]))
    assert passed == [["/bin/cat"]]


def test_a_loop_that_goes_on_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop itself, not a thread beside it: one that hangs does not. A broker that goes says no more."""
    monkeypatch.setattr(keeper_module, "BEAT", 0.01)

    async def scene() -> None:
        table, keeper = keeping(tmp_path)
        keeper.start(lambda _: None)
        first = await guardian_of(keeper)
        before = table.beats
        assert before > 0
        async with asyncio.timeout(20):
            while table.beats < before + 3:  # noqa: ASYNC110 - a word in a file: nothing tells of it
                await asyncio.sleep(0.005)
        beats = table.beats
        time.sleep(0.05)  # noqa: ASYNC251 - the loop hangs
        assert table.beats == beats
        await keeper.stop()
        assert keeper._beating is not None
        assert keeper._beating.cancelled()
        first.kill()
        first.wait()
        table.close()

    asyncio.run(scene())


def test_a_guardian_that_lived_long_is_replaced_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deaths in a row make the next wait; one after a minute of life starts a new row."""

    async def scene() -> int:
        table, keeper = keeping(tmp_path)
        freed: asyncio.Queue[float] = asyncio.Queue()
        keeper.start(freed.put_nowait)
        guardian = keeper._guardian
        assert guardian is not None
        keeper._deaths = 20
        monkeypatch.setattr(keeper_module, "_GROWN_UP", 0.0)
        guardian.kill()
        async with asyncio.timeout(20):
            await freed.get()
        last = await guardian_of(keeper)
        await keeper.stop()
        last.kill()
        last.wait()
        table.close()
        return keeper._deaths

    assert asyncio.run(scene()) == 1


def test_a_broker_that_goes_on_purpose_takes_its_guardian_along(tmp_path: Path) -> None:
    """The guardian sees a clean exit, ends, and starts nothing."""
    script = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.broker.keeper import Keeper
from gpushare_kernel.transport.places import Places
async def scene():
    places = Places(Path({str(tmp_path)!r}), system=False, named=True)
    table = IntentTable(places.intents)
    keeper = Keeper(table, places, ["/usr/bin/touch", {str(tmp_path / "started")!r}])
    keeper.start(lambda _: None)
    print(keeper._guardian.pid, flush=True)
    keeper._guardian.returncode = 0  # it outlives us
    await keeper.stop()
    table.close()
asyncio.run(scene())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    guardian = int(done.stdout)
    eventually(lambda: procfs.state(guardian) in (None, "Z"))
    assert not (tmp_path / "started").exists()
