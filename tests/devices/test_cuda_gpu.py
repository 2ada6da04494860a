"""The CUDA device on a real GPU: torch processes that multiply matrices, and count their steps."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import select
import signal
from collections.abc import Iterator

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.core.values import MiB, PauseStatus, ProcessKey
from gpushare_kernel.devices import locker as locker_module
from gpushare_kernel.devices.base import PauseOutcome, Target
from gpushare_kernel.devices.cuda import CudaDevice
from gpushare_kernel.devices.verdict import Verdict, probe_capabilities
from tests.devices.gpu_programs import LOOP, MATMULS, Counting, matmuls
from tests.devices.records import Record
from tests.procs import Program, eventually

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch"),
]

LONG_KERNEL = """
import torch
torch.cuda._sleep(1); torch.cuda.synchronize(); say('up'); wait()
torch.cuda._sleep(6_000_000_000); say('launched'); torch.cuda.synchronize(); say('over'); wait()
"""

DEEP = """
import torch
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
b = torch.empty_like(a)
torch.matmul(a, a, out=b); torch.cuda.synchronize(); say('up')
while True:
    for _ in range(50): torch.matmul(a, a, out=b)
    torch.cuda.synchronize(); counted()
"""
"""Fifty launches of about 2 ms ahead of each synchronisation."""

CHEAT = (
    MATMULS
    + """
from cuda.bindings import driver
def cheat():
    wait(); say(driver.cuCheckpointProcessUnlock(os.getpid(), None)[0].name)
threading.Thread(target=cheat, daemon=True).start()
"""
    + LOOP
)

PROFILED = (
    MATMULS
    + """
from torch.profiler import profile, ProfilerActivity
with profile(activities=[ProfilerActivity.CUDA]):
    step(); say('profiling')
    while True: step(); counted()
"""
)

BROKEN = """
import torch
torch.zeros(1, device="cuda"); say('up'); wait()
try:
    torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]; torch.cuda.synchronize()
except Exception: say('broken')
wait()
"""

CHILDREN = """
import multiprocessing, torch
def work(place):
    a = torch.randn(1024, 1024, device="cuda")
    while True: torch.matmul(a, a); torch.cuda.synchronize(); counted(place)
context = multiprocessing.get_context("fork")
children = [context.Process(target=work, args=(place,), daemon=True) for place in (1, 2)]
for child in children: child.start()  # before CUDA is up here
say(*[child.pid for child in children]); wait()
a = torch.randn(1024, 1024, device="cuda"); say('up')
while True: torch.matmul(a, a); torch.cuda.synchronize(); counted()
"""

LOADERS = """
import torch
from torch.utils.data import DataLoader, Dataset
class Numbers(Dataset):
    def __len__(self): return 1_000_000
    def __getitem__(self, index): return torch.full((64, 64), float(index))
a = torch.randn(64, 64, device="cuda")
loader = DataLoader(Numbers(), batch_size=16, num_workers=2, pin_memory=False)
for batch in loader:
    (batch.cuda() @ a).sum().item()
    if not struct.unpack('<Q', shared[:8])[0]: say('up')
    counted()
"""

GIL = (
    MATMULS
    + """
import ctypes
wait(); say('in')
ctypes.PyDLL(None).usleep(3_000_000)
say('out'); wait()
"""
)
"""It sleeps in C for 3 s without letting go of the GIL."""

DDP = """
import torch, torch.distributed as dist, torch.multiprocessing as mp
def rank(place):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore({store!r}, 2)
    dist.init_process_group("gloo", store=store, rank=place, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(512, 512).cuda())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(256, 512, device="cuda")
    while True:
        optimizer.zero_grad(); model(x).square().mean().backward(); optimizer.step()
        torch.cuda.synchronize(); counted(place)
context = mp.get_context("fork")
ranks = [context.Process(target=rank, args=(place,)) for place in (0, 1)]
for each in ranks: each.start()
say(*[each.pid for each in ranks]); wait()
"""


@pytest.fixture
def device(record: Record) -> Iterator[CudaDevice]:
    """The first GPU."""
    device = CudaDevice(record)
    yield device
    device.close()
    assert record.hows == {}


@pytest.fixture(scope="module")
def shared() -> Iterator[Counting]:
    """A torch process at work, for the tests that leave it unharmed: it takes seconds to start."""
    with matmuls() as program:
        program.up()
        yield program


@pytest.fixture
def worker(shared: Counting) -> Iterator[Counting]:
    """A torch process at work, that is at work again afterwards."""
    shared.goes_on()
    yield shared
    shared.goes_on()


def pause(device: CudaDevice, target: Target, limit: float = 2.0) -> PauseOutcome:
    return asyncio.run(device.pause(target, limit=limit))


def resume(device: CudaDevice, target: Target) -> PauseStatus:
    return asyncio.run(device.resume(target)).status


def still(device: CudaDevice, target: Target) -> bool:
    return asyncio.run(device.still(target))


def worker_of(device: CudaDevice, key: ProcessKey) -> int:
    """The lock worker that holds a process."""
    link = next(s.lockers[key]._link for s in device._sessions.values() if key in s.lockers)
    assert link is not None
    return link.pid


def seen_by_nvml(device: CudaDevice, *pids: int) -> None:
    """Wait until NVML lists processes."""

    def there() -> bool:
        device._sampler.look()
        sample = device._sampler.sample
        return sample is not None and set(pids) <= {user.key.pid for user in sample.users}

    eventually(there)


# ---------------------------------------------------------------- what it is


def test_inventory_is_the_gpu_s(device: CudaDevice) -> None:
    """A name, a uuid, and memory; it can pause, since it tried."""
    assert device.inventory.kind == "cuda"
    assert device.inventory.id.startswith("GPU-")
    assert device.inventory.total >= device.inventory.capacity > 1024 * MiB
    assert (device.capabilities.can_pause, device.lost) == (True, None)


def test_the_verdict_is_full() -> None:
    """Found by a lock of one worker on another."""
    found = probe_capabilities()
    assert (found.verdict, found.text) == (Verdict.FULL, "")
    print(dict(found.facts))


def test_what_nvml_says_of_a_session(device: CudaDevice, worker: Counting) -> None:
    """One context, measured in the end; at work; the GPU is busy."""
    seen_by_nvml(device, worker.pid)
    usage = device.usage(worker.target, memory=True)
    assert usage is not None
    assert usage.contexts == 1
    eventually(lambda: device.usage(worker.target, active=True).active is True)  # type: ignore[union-attr]
    eventually(lambda: (busy := device.utilization()) is not None and busy.part > 0.5)
    device._sampler.look()
    device.usage(worker.target, memory=True)
    assert 200 * MiB <= device.inventory.reserve <= 900 * MiB
    assert worker.key in [stranger.key for stranger in device.strangers([])]
    assert worker.key not in [each.key for each in device.strangers([worker.target])]


# ---------------------------------------------------------------- pause and resume


def test_a_paused_process_stands_still_and_goes_on(
    device: CudaDevice, record: Record, worker: Counting
) -> None:
    """L1: its counter stops, its memory stays; after the resume it counts on from there."""
    seen_by_nvml(device, worker.pid)
    before = device.usage(worker.target, memory=True)
    outcome = pause(device, worker.target)
    assert outcome.status is PauseStatus.PAUSED
    assert outcome.drain < 1.0
    assert record.keys == [worker.key]
    assert worker.stands_still()
    assert still(device, worker.target)
    device._sampler.look()
    during = device.usage(worker.target, memory=True)
    assert before is not None
    assert during is not None
    assert during.memory == before.memory
    assert resume(device, worker.target) is PauseStatus.NOTHING


def test_pauses_can_follow_each_other_fast(device: CudaDevice, worker: Counting) -> None:
    """Fifty turns, and what a turn costs, for the record."""
    drains, resumes = [], []
    for _ in range(50):
        outcome = pause(device, worker.target)
        assert outcome.status is PauseStatus.PAUSED
        drains.append(outcome.drain)
        answer = asyncio.run(device.resume(worker.target))
        assert answer.status is PauseStatus.NOTHING
        resumes.append(answer.drain)
    drains, resumes = sorted(drains), sorted(resumes)
    print(f"pause median {drains[25] * 1e3:.2f} ms, worst {drains[-1] * 1e3:.2f} ms")
    print(f"resume median {resumes[25] * 1e3:.2f} ms, worst {resumes[-1] * 1e3:.2f} ms")


def test_a_deep_launch_queue_drains_first(device: CudaDevice) -> None:
    """L1: 'it waits until submitted work has drained'; the time it takes is said."""
    with Counting(DEEP) as program:
        program.up()
        program.goes_on(steps=1)
        outcome = pause(device, program.target)
        assert outcome.status is PauseStatus.PAUSED
        print(f"drained for {outcome.drain * 1e3:.1f} ms")
        assert program.stands_still()
        assert resume(device, program.target) is PauseStatus.NOTHING
        program.goes_on(steps=1)


def test_without_a_context_there_is_nothing_to_pause(device: CudaDevice, record: Record) -> None:
    """'CUDA_ERROR_NOT_INITIALIZED: not lockable, nothing to pause'."""
    with Program("say('up'); wait()") as program:
        program.said()
        assert pause(device, Target(program.key)).status is PauseStatus.NOTHING
        assert record.keys == []


def test_a_long_kernel_reaches_the_limit_and_is_unharmed(device: CudaDevice) -> None:
    """'500 ms limit on a 5 s kernel gives CUDA_ERROR_NOT_READY [...] RUNNING and unharmed'."""
    with Program(LONG_KERNEL, site=True) as program:
        program.said()
        target = Target(program.key)
        assert pause(device, target).status is PauseStatus.PAUSED
        resume(device, target)
        program.tell()
        assert program.said() == ["launched"]
        outcome = pause(device, target, limit=0.3)
        assert outcome.status is PauseStatus.BUSY
        assert outcome.drain < 1.0
        assert program.said() == ["over"]
        assert pause(device, target).status is PauseStatus.PAUSED
        resume(device, target)


# ---------------------------------------------------------------- workers


def test_a_worker_killed_while_it_holds_the_lock_is_replaced(
    device: CudaDevice, worker: Counting
) -> None:
    """L2: 'the locker dies holding the lock: target stays locked; any other allowed process can unlock it'."""
    pause(device, worker.target)
    os.kill(worker_of(device, worker.key), signal.SIGKILL)
    assert worker.stands_still()
    assert resume(device, worker.target) is PauseStatus.NOTHING


def all_of_it_has_ended(pid: int) -> None:
    """Wait until its last thread is gone: the driver's own outlive the first one."""
    pidfd = os.pidfd_open(pid)
    try:
        assert select.select([pidfd], [], [], 20.0)[0]
    finally:
        os.close(pidfd)


def test_a_second_pause_by_a_new_worker_finds_the_lock(
    device: CudaDevice, worker: Counting
) -> None:
    """ILLEGAL_STATE and LOCKED: paused as asked."""
    pause(device, worker.target)
    locker = worker_of(device, worker.key)
    os.kill(locker, signal.SIGKILL)
    all_of_it_has_ended(locker)
    assert pause(device, worker.target).status is PauseStatus.PAUSED
    assert worker.stands_still()
    assert resume(device, worker.target) is PauseStatus.NOTHING


def test_the_end_of_the_line_unlocks(device: CudaDevice, worker: Counting) -> None:
    """L3: the broker dies without a word: its worker lets the target go."""
    pause(device, worker.target)
    assert worker.stands_still()
    device._sessions[worker.key].close()
    worker.goes_on()


# ---------------------------------------------------------------- stopped, killed, cheating


def test_a_process_stopped_by_its_user_is_left_alone(device: CudaDevice, worker: Counting) -> None:
    """L5: the driver is not asked; after SIGCONT a pause works."""
    os.kill(worker.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(worker.pid) == "T")
    assert pause(device, worker.target).status is PauseStatus.STOPPED
    os.kill(worker.pid, signal.SIGCONT)
    worker.goes_on()
    assert pause(device, worker.target).status is PauseStatus.PAUSED
    assert resume(device, worker.target) is PauseStatus.NOTHING


def test_stopped_just_before_the_lock_it_is_unlocked_in_the_end(
    device: CudaDevice, worker: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L6: 'Lock hangs far beyond its limit, until SIGCONT': the worker undoes what comes through late."""
    pause(device, worker.target)
    resume(device, worker.target)
    os.kill(worker.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(worker.pid) == "T")
    look, looks = procfs.state_of, []

    def too_late(key: ProcessKey) -> str | None:
        looks.append(key)
        return look(key) if len(looks) > 1 else "S"

    with monkeypatch.context() as patch:
        patch.setattr(locker_module.procfs, "state_of", too_late)
        outcome = pause(device, worker.target, limit=0.2)
    assert outcome.status is PauseStatus.STOPPED
    assert outcome.drain < 2.0
    os.kill(worker.pid, signal.SIGCONT)
    eventually(lambda: not device._crew.busy_with(worker.key))
    worker.goes_on()
    device.usage(worker.target)
    assert pause(device, worker.target).status is PauseStatus.PAUSED
    assert resume(device, worker.target) is PauseStatus.NOTHING


def test_killed_while_paused_it_is_gone(device: CudaDevice) -> None:
    """'SIGKILL of a locked process: dies at once, its memory is freed'."""
    with matmuls() as victim:
        victim.up()
        device._sampler.look()
        used = device.foreign(0)
        pause(device, victim.target)
        victim.process.kill()
        victim.process.wait(20)
        assert resume(device, victim.target) is PauseStatus.GONE

    def freed() -> bool:
        device._sampler.look()
        return device.foreign(0) < max(1, used - 300 * MiB)

    eventually(freed)


def test_a_process_that_unlocks_itself_is_found_and_locked_again(device: CudaDevice) -> None:
    """L7: 'the target unlocks itself: works, from any of its threads: a cheat'."""
    with Counting(CHEAT) as program:
        program.up()
        program.goes_on()
        assert pause(device, program.target).status is PauseStatus.PAUSED
        assert program.stands_still()
        program.tell()
        assert program.said() == ["CUDA_SUCCESS"]
        program.goes_on()
        assert not still(device, program.target)
        assert program.stands_still()
        assert still(device, program.target)
        assert resume(device, program.target) is PauseStatus.NOTHING
        program.goes_on()


def test_a_profiled_process_cannot_be_paused_and_runs_on(device: CudaDevice) -> None:
    """L9: 'CUPTI in use (torch.profiler): CUDA_ERROR_NOT_SUPPORTED; it runs on unharmed'."""
    with Counting(PROFILED) as program:
        program.up()
        assert program.said() == ["profiling"]
        assert pause(device, program.target).status is PauseStatus.UNSUPPORTED
        program.goes_on()


def test_a_broken_context_is_said_and_leaves_others_alone(
    device: CudaDevice, worker: Counting
) -> None:
    """'a target whose context is broken (device-side assert) [...] a neighbour's context is untouched'."""
    with Program(BROKEN, site=True) as program:
        assert program.said() == ["up"]
        program.tell()
        assert program.said() == ["broken"]
        assert pause(device, Target(program.key)).status is PauseStatus.BROKEN
        worker.goes_on()
        assert pause(device, worker.target).status is PauseStatus.PAUSED
        assert resume(device, worker.target) is PauseStatus.NOTHING


def test_a_call_that_keeps_the_gil_does_not_keep_the_lock_waiting(device: CudaDevice) -> None:
    """The driver answers for the process, not its interpreter."""
    with Program(GIL, site=True) as program:
        assert program.said() == ["up"]
        program.tell()
        assert program.said() == ["in"]
        outcome = pause(device, Target(program.key))
        assert outcome.status is PauseStatus.PAUSED
        assert outcome.drain < 1.0
        assert resume(device, Target(program.key)) is PauseStatus.NOTHING
        assert program.said() == ["out"]


# ---------------------------------------------------------------- several processes


def test_children_with_a_context_are_paused_with_their_root(
    device: CudaDevice, record: Record
) -> None:
    """L4: all three stand still, all three go on; the two that outlive their root run and are named."""
    with Counting(CHILDREN) as program:
        children = program.said_pids()
        program.tell()
        program.up()
        for place in range(3):
            program.goes_on(place)
        seen_by_nvml(device, program.pid, *children)
        assert pause(device, program.target).status is PauseStatus.PAUSED
        assert len(record.keys) == 3
        assert all(program.stands_still(place) for place in range(3))
        usage = device.usage(program.target, memory=True)
        assert usage is not None
        assert usage.contexts == 3
        program.process.kill()
        program.process.wait(20)
        assert program.stands_still(1)
        assert resume(device, program.target) is PauseStatus.GONE
        for place in (1, 2):
            program.goes_on(place)


def test_data_loader_workers_have_nothing_to_lock(device: CudaDevice, record: Record) -> None:
    """Forked from a process with a context they have none; the training stands still, and goes on."""
    with Counting(LOADERS) as program:
        program.up()
        program.goes_on()
        assert len(procfs.children(program.pid)) >= 2
        seen_by_nvml(device, program.pid)
        assert pause(device, program.target).status is PauseStatus.PAUSED
        assert record.keys == [program.key]
        assert program.stands_still()
        assert resume(device, program.target) is PauseStatus.NOTHING
        program.goes_on()


def test_two_ranks_on_one_gpu_are_locked_together(device: CudaDevice, tmp_path: object) -> None:
    """L4: they wait for each other in every step; one of them alone would never drain."""
    with Counting(DDP.format(store=f"{tmp_path}/store")) as program:
        ranks = program.said_pids()
        for place in (0, 1):
            program.goes_on(place, seconds=60)
        seen_by_nvml(device, *ranks)
        for _ in range(10):
            assert pause(device, program.target).status is PauseStatus.PAUSED
            assert program.stands_still(0)
            assert program.stands_still(1)
            assert resume(device, program.target) is PauseStatus.NOTHING
            program.goes_on(0, steps=2)
