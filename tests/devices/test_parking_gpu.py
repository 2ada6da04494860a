"""Parking on a real GPU: torch, CuPy and JAX processes give their memory back, live on, and have every byte again."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import time
from collections.abc import Iterator

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.core.values import GiB, MiB, MoveStatus, PauseStatus
from gpushare_kernel.devices.base import Hold, MoveOutcome, Target
from gpushare_kernel.devices.cuda import CudaDevice
from tests.devices.records import Record
from tests.procs import Program, eventually

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch"),
]

SIZE = 1 * GiB
MARGIN = 256 * MiB

TALK = """
import hashlib
def hashed(arrays):
    return hashlib.sha256(b''.join(host(a).tobytes() for a in arrays)).hexdigest()
def gpu(): say('gpu', answer())
say('up')
while True:
    asked = sys.stdin.readline().strip()
    if asked == 'hash': say('hash', hashed(arrays))
    elif asked == 'cpu':
        with open(os.devnull, 'w') as file: file.write('saved')
        say('cpu', 1 + 1, len(arrays))
    elif asked == 'gpu': threading.Thread(target=gpu).start()
    elif asked == 'drop': del arrays[-1]; say('dropped', len(arrays))
"""
"""`hash` reads every byte of every array, `cpu` uses none, `gpu` asks the GPU in a thread of its own, `drop` frees one."""

TORCH = (
    f"""
import torch
torch.manual_seed(7)
arrays = [torch.randn({SIZE} // 16, device='cuda') for _ in range(4)]
arrays.append(arrays[0][100:200])  # a view
model = torch.nn.Linear(512, 512, device='cuda'); optimizer = torch.optim.Adam(model.parameters())
model(torch.randn(8, 512, device='cuda')).square().mean().backward(); optimizer.step()
arrays += [*model.parameters(), *(v for s in optimizer.state.values() for v in s.values() if v.is_cuda)]
def host(a): return a.detach().cpu().numpy()
def answer(): return int(torch.arange(1000, device='cuda').sum())
torch.cuda.synchronize()
"""
    + TALK
)

CUPY = (
    f"""
import cupy
cupy.random.seed(7)
arrays = [cupy.random.standard_normal({SIZE} // 16, dtype=cupy.float32) for _ in range(4)]
def host(a): return cupy.asnumpy(a)
def answer(): return int(cupy.arange(1000).sum())
cupy.cuda.Device().synchronize()
"""
    + TALK
)

JAX = (
    f"""
os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
import jax, numpy
arrays = [jax.random.normal(jax.random.key(n), ({SIZE} // 16,)) for n in range(4)]
def host(a): return numpy.asarray(a)
def answer(): return int(jax.numpy.arange(1000).sum())
jax.block_until_ready(arrays)
"""
    + TALK
)

ROGUE = """
import torch
torch.zeros(1, device='cuda'); held = []; say('up')
while True:
    words = sys.stdin.readline().split()
    if words[0] == 'take':
        free = torch.cuda.mem_get_info()[0] - int(words[1])
        held.append(torch.empty(max(1, free), dtype=torch.uint8, device='cuda')); torch.cuda.synchronize()
    else:
        held.clear(); torch.cuda.empty_cache()
    say(torch.cuda.mem_get_info()[0])
"""
"""`take N` leaves N bytes free on the whole GPU, `give` gives all back."""

FRAMEWORKS = {"torch": TORCH, "cupy": CUPY, "jax": JAX}


class Holder(Program):
    """A process with arrays on the GPU."""

    def __init__(self, code: str) -> None:
        super().__init__(code, site=True)
        self.target = Target(self.key)
        assert self.said() == ["up"]

    def asked(self, what: str) -> list[str]:
        """Ask it something and return its answer."""
        self.tell(what)
        return self.said()


@pytest.fixture
def device(record: Record) -> Iterator[CudaDevice]:
    """The first GPU."""
    device = CudaDevice(record)
    yield device
    device.close()


@pytest.fixture
def holder() -> Iterator[Holder]:
    """A torch process."""
    with Holder(TORCH) as program:
        yield program


def park(device: CudaDevice, target: Target) -> MoveOutcome:
    return asyncio.run(device.park(target, limit=5.0))


def restore(device: CudaDevice, target: Target, margin: int = MARGIN) -> MoveOutcome:
    return asyncio.run(device.restore(target, margin=margin))


def resume(device: CudaDevice, target: Target) -> PauseStatus:
    return asyncio.run(device.resume(target)).status


def free(device: CudaDevice) -> int:
    """What NVML says is free now."""
    device._sampler.look()
    return device._sampler.now.memory.free


def back(device: CudaDevice, program: Holder, before: str) -> None:
    """Restore it, and find every byte as it was."""
    outcome = restore(device, program.target)
    assert outcome.status is MoveStatus.DONE, outcome.why
    assert resume(device, program.target) is PauseStatus.NOTHING
    assert program.asked("hash") == ["hash", before]


# ---------------------------------------------------------------- out and back


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_parked_process_lives_on_and_has_every_byte_again(device: CudaDevice, name: str) -> None:
    """K3, K4: its memory is free in NVML, CPU code runs, a GPU call waits without holding others up and is answered right."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}")
    with Holder(FRAMEWORKS[name]) as program:
        _, before = program.asked("hash")
        there = free(device)
        outcome = park(device, program.target)
        assert outcome.status is MoveStatus.DONE, outcome.why
        assert outcome.freed >= SIZE
        assert device.parked(program.target) == outcome.freed
        assert free(device) - there >= 0.97 * outcome.freed
        usage = device.usage(program.target, memory=True)
        assert usage is not None
        assert (usage.memory, usage.contexts) == (0, 0)
        _, two, arrays = program.asked("cpu")
        assert (two, int(arrays) >= 4) == ("2", True)
        program.tell("gpu")  # waits in the driver, in a thread of its own
        assert program.asked("cpu")[:2] == ["cpu", "2"]
        back_again = restore(device, program.target)
        assert back_again.status is MoveStatus.DONE, back_again.why
        print(f"{name}: {outcome.freed / GiB:.2f} GiB out {outcome.took:.2f} s, back {back_again.took:.2f} s")  # fmt: skip
        assert resume(device, program.target) is PauseStatus.NOTHING
        assert program.said() == ["gpu", "499500"]
        assert program.asked("hash") == ["hash", before]


def test_parks_can_follow_each_other(device: CudaDevice, record: Record, holder: Holder) -> None:
    """Three times, also of one that is paused already; the record is empty in the end."""
    _, before = holder.asked("hash")
    for paused in (False, True, False):
        if paused:
            assert asyncio.run(device.pause(holder.target, limit=5.0)).status is PauseStatus.PAUSED
        assert park(device, holder.target).status is MoveStatus.DONE
        assert record.held(Hold.PARK) == [holder.key]
        back(device, holder, before)
    assert record.keys == []


def test_what_is_deleted_while_parked_is_gone_afterwards(
    device: CudaDevice, holder: Holder
) -> None:
    """`del` works on the CPU side; the next GPU work is right."""
    assert park(device, holder.target).status is MoveStatus.DONE
    assert holder.asked("drop")[0] == "dropped"
    assert restore(device, holder.target).status is MoveStatus.DONE
    assert resume(device, holder.target) is PauseStatus.NOTHING
    assert holder.asked("gpu") == ["gpu", "499500"]


# ---------------------------------------------------------------- room


def test_a_restore_without_room_is_not_begun_and_nothing_is_lost(
    device: CudaDevice, holder: Holder
) -> None:
    """K1: as often as it is asked for; when the rogue has given back what it took, every byte is there."""
    _, before = holder.asked("hash")
    with Program(ROGUE, site=True) as rogue:
        assert rogue.said() == ["up"]
        parked = park(device, holder.target)
        assert parked.status is MoveStatus.DONE
        rogue.tell(f"take {parked.freed // 2}")
        rogue.said()
        for _ in range(3):
            outcome = restore(device, holder.target)
            assert outcome.status is MoveStatus.NOT_NOW
            assert "GiB" in outcome.why
        assert holder.asked("cpu")[:2] == ["cpu", "2"]
        rogue.tell("give")
        rogue.said()
        back(device, holder, before)


def test_a_rogue_that_grabs_what_is_free_again_and_again_loses_nobody_anything(
    device: CudaDevice, holder: Holder
) -> None:
    """K1, K2: it is held still for the restore, as the engine does; between restores it takes what it likes."""
    _, before = holder.asked("hash")
    with Program(ROGUE, site=True) as rogue:
        assert rogue.said() == ["up"]
        rogue_target = Target(rogue.key)
        for trial in range(10):
            size = park(device, holder.target).freed
            leaves = size + (MARGIN + 64 * MiB) * (1 if trial % 2 else -1)
            rogue.tell(f"take {leaves}")
            rogue.said()
            paused = asyncio.run(device.pause(rogue_target, limit=5.0))
            assert paused.status is PauseStatus.PAUSED
            fits = free(device) >= size + MARGIN
            outcome = restore(device, holder.target)
            assert outcome.status is (MoveStatus.DONE if fits else MoveStatus.NOT_NOW)
            assert resume(device, rogue_target) is PauseStatus.NOTHING
            rogue.tell("give")
            rogue.said()
            back(device, holder, before)


# ---------------------------------------------------------------- ends


def test_a_process_killed_while_parked_leaves_nothing(
    device: CudaDevice, record: Record, holder: Holder
) -> None:
    """At once, its bytes on the host too."""
    assert park(device, holder.target).status is MoveStatus.DONE
    os.kill(holder.pid, signal.SIGKILL)
    holder.process.wait(20)
    assert restore(device, holder.target).status is MoveStatus.GONE
    device.usage(holder.target)
    assert record.keys == []


@pytest.mark.parametrize("what", ["park", "restore"])
@pytest.mark.parametrize("after", [0.05, 0.2])
def test_a_process_killed_while_it_is_moved_leaves_nothing(
    device: CudaDevice, record: Record, holder: Holder, what: str, after: float
) -> None:
    """Its memory is free, its worker serves others, and the record is empty."""
    before_all = free(device)
    if what == "restore":
        assert park(device, holder.target).status is MoveStatus.DONE

    async def story() -> MoveOutcome:
        move = device.park(holder.target, limit=5.0) if what == "park" else device.restore(holder.target, margin=MARGIN)  # fmt: skip
        task = asyncio.create_task(move)
        await asyncio.sleep(after)  # into the driver's work, of which nothing tells
        os.kill(holder.pid, signal.SIGKILL)
        return await task

    outcome = asyncio.run(story())
    holder.process.wait(20)
    assert outcome.status in {MoveStatus.GONE, MoveStatus.DONE, MoveStatus.NOT_NOW, MoveStatus.LOST}
    eventually(lambda: free(device) >= before_all)
    device.usage(holder.target)
    eventually(lambda: not device._crew.busy_with(holder.key))
    device.usage(holder.target)
    assert record.keys == []
    with Holder(TORCH) as other:
        _, hashed = other.asked("hash")
        assert park(device, other.target).status is MoveStatus.DONE
        back(device, other, hashed)


@pytest.mark.parametrize("when", ["parked", "parking", "restoring"])
def test_a_broker_that_ends_meanwhile_leaves_nobody_lost(
    record: Record, holder: Holder, when: str
) -> None:
    """K5, K6, K7: its workers finish what they are at and neither unlock nor restore; the next broker brings the rest back."""
    device = CudaDevice(record)  # it ends in the test
    _, before = holder.asked("hash")
    if when != "parking":
        assert park(device, holder.target).status is MoveStatus.DONE

    async def story() -> None:
        move = device.park(holder.target, limit=5.0) if when == "parking" else device.restore(holder.target, margin=MARGIN)  # fmt: skip
        task = asyncio.create_task(move)
        await asyncio.to_thread(eventually, lambda: record.held(Hold.MOVER))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    if when != "parked":
        asyncio.run(story())
    device.close()
    again = CudaDevice(record)
    try:
        eventually(lambda: not again._crew.moving_before_us(), seconds=60)
        if again.parked(holder.target):
            back(again, holder, before)
        else:
            assert resume(again, holder.target) is PauseStatus.NOTHING
        assert holder.asked("hash") == ["hash", before]
        assert holder.asked("gpu") == ["gpu", "499500"]
        assert record.keys == []
    finally:
        again.close()


def test_a_worker_killed_in_the_middle_of_a_park_is_answered_for(
    device: CudaDevice, record: Record, holder: Holder
) -> None:
    """K5: what the target does then was never measured: this says it. Whatever it is, the record and the driver agree."""
    _, before = holder.asked("hash")

    async def story() -> MoveOutcome:
        task = asyncio.create_task(device.park(holder.target, limit=5.0))
        await asyncio.to_thread(eventually, lambda: record.held(Hold.MOVER))
        await asyncio.sleep(0.1)  # into the driver's work, of which nothing tells
        procfs.send(record.held(Hold.MOVER)[0], signal.SIGKILL)
        return await task

    began = time.monotonic()
    outcome = asyncio.run(story())
    parked = device.parked(holder.target)
    print(f"after {time.monotonic() - began:.2f} s: {outcome.status}, parked {parked}, {outcome.why}")  # fmt: skip
    assert (outcome.status is MoveStatus.DONE) == (parked > 0)
    if parked:
        eventually(lambda: restore(device, holder.target).status is MoveStatus.DONE, 60)
        assert resume(device, holder.target) is PauseStatus.NOTHING
        assert holder.asked("hash") == ["hash", before]
    else:
        eventually(lambda: resume(device, holder.target) is PauseStatus.NOTHING)
        assert holder.asked("hash") == ["hash", before]


# ---------------------------------------------------------------- what speaks against it


def test_a_profiled_process_keeps_its_memory(device: CudaDevice) -> None:
    """K9: CUPTI: the driver says so at the lock."""
    code = TORCH.replace("\nimport hashlib", "\nfrom torch.profiler import profile, ProfilerActivity\nprofile(activities=[ProfilerActivity.CUDA]).__enter__()\nimport hashlib")  # fmt: skip
    with Holder(code) as program:
        _, before = program.asked("hash")
        assert park(device, program.target).status is MoveStatus.UNABLE
        assert program.asked("hash") == ["hash", before]


def test_a_process_stopped_by_its_user_is_not_asked_about(
    device: CudaDevice, holder: Holder
) -> None:
    """K9: Ctrl-Z."""
    os.kill(holder.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(holder.pid) == "T")
    assert park(device, holder.target).status is MoveStatus.NOT_NOW
    os.kill(holder.pid, signal.SIGCONT)
    assert holder.asked("cpu")[:2] == ["cpu", "2"]
