"""Who is not parked, and why: what can be seen of a process, and whether the host has room for its bytes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.core.values import MiB, MoveStatus, ProcessKey
from gpushare_kernel.devices import parkable
from gpushare_kernel.devices.base import Target
from gpushare_kernel.nwv import vmm
from tests.devices.gpu import Gpu
from tests.procs import Program, eventually

# ---------------------------------------------------------------- what speaks against it


def test_who_is_stopped_by_its_user_is_not_asked_about(gpu: Gpu, program: Program) -> None:
    """K9: the driver would hang; and so for one of several."""
    os.kill(program.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(program.pid) == "T")
    outcome = gpu.park(Target(program.key))
    assert outcome.status is MoveStatus.NOT_NOW
    assert "stopped" in outcome.why
    assert gpu.log() == []
    os.kill(program.pid, signal.SIGCONT)


def test_who_was_stopped_while_parked_is_restored_when_it_is_continued(
    gpu: Gpu, program: Program
) -> None:
    """K9: not before."""
    target = Target(program.key)
    gpu.park(target)
    os.kill(program.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(program.pid) == "T")
    assert gpu.restore(target).status is MoveStatus.NOT_NOW
    os.kill(program.pid, signal.SIGCONT)
    eventually(lambda: procfs.state(program.pid) == "S")
    assert gpu.restore(target).status is MoveStatus.DONE
    gpu.resume(target)


def test_who_draws_a_screen_is_not_parked(gpu: Gpu, program: Program) -> None:
    """K9, L8: also where it is a notebook's process."""
    gpu.nvml.displays = {program.pid}
    gpu.device._sampler.look()
    outcome = gpu.park(Target(program.key))
    assert outcome.status is MoveStatus.UNABLE
    assert "screen" in outcome.why
    assert gpu.log() == []


@pytest.mark.parametrize("name", ["nccl-gpushare-test", "cuda.shm.0.gpushare.1"])
@pytest.mark.parametrize("how", ["mapped", "open"])
def test_who_shares_with_others_is_not_parked(gpu: Gpu, name: str, how: str) -> None:
    """K9: the files of NCCL and of CUDA's IPC, mapped or held open."""
    path = Path("/dev/shm") / name
    path.write_bytes(bytes(4096))
    close = "; fd.close()" if how == "mapped" else ""
    code = f"import mmap; fd = open({str(path)!r}, 'r+b'); kept = mmap.mmap(fd.fileno(), 4096){close}; say('up'); wait()"
    if how == "open":
        code = f"fd = open({str(path)!r}, 'r+b'); say('up'); wait()"
    try:
        with Program(code) as program:
            program.said()
            gpu.holds(program.key)
            outcome = gpu.park(Target(program.key))
    finally:
        path.unlink()
    assert outcome.status is MoveStatus.UNABLE
    assert name in outcome.why
    assert gpu.log() == []


def test_who_maps_a_bundle_is_not_parked_whatever_a_broker_knows(gpu: Gpu) -> None:
    """K9, I5: the file that is open for as long as it does says so; a broker that has just started sees it too."""
    code = f"fd = os.memfd_create({vmm.MARK!r}); say('up'); wait(); os.close(fd); say('let go'); wait()"
    with Program(code) as program:
        program.said()
        gpu.holds(program.key)
        target = Target(program.key)
        outcome = gpu.park(target)
        assert outcome.status is MoveStatus.UNABLE
        assert "bundle" in outcome.why
        assert gpu.log() == []
        program.tell()
        program.said()
        assert gpu.park(target).status is MoveStatus.DONE
    gpu.device.usage(target)


def test_somebody_elses_is_not_parked_by_a_broker_of_ones_own(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K9: said with both uids."""
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    refusal = parkable.may_park(program.key)
    assert refusal is not None
    assert refusal.status is MoveStatus.UNABLE
    assert "54321" in refusal.why


# ---------------------------------------------------------------- the host's memory


def host(root: Path, key: ProcessKey, files: dict[str, str]) -> Path:
    """Lay a machine out: 8 GiB available, one group of version 2 for the process unless said otherwise."""
    usual = {
        "proc/meminfo": f"MemAvailable: {8 * 1024 * 1024} kB\n",
        "proc/self/mountinfo": "30 1 0:26 / /cg rw - cgroup2 cgroup2 rw\n",
        f"proc/{key.pid}/cgroup": "0::/user/nb\n",
        f"proc/{key.pid}/limits": "Max address space         unlimited            unlimited            bytes\n",
        f"proc/{key.pid}/status": "VmSize:\t  1048576 kB\nVmData:\t  1048576 kB\n",
    }
    for name, text in (usual | files).items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


GIB = 1024 * MiB
ROOMY = {"cg/user/nb/memory.current": "0\n", "cg/user/memory.current": "0\n"}


@pytest.mark.parametrize(
    ("files", "fits"),
    [
        ({}, True),
        ({"proc/meminfo": f"MemAvailable: {4 * 1024 * 1024} kB\n"}, False),
        ({**ROOMY, "cg/user/nb/memory.max": f"{4 * GIB}\n"}, False),
        ({**ROOMY, "cg/user/nb/memory.max": f"{5 * GIB}\n"}, True),
        ({**ROOMY, "cg/user/memory.max": f"{4 * GIB}\n"}, False),
        ({**ROOMY, "cg/user/nb/memory.high": f"{4 * GIB}\n"}, False),
        ({**ROOMY, "cg/user/nb/memory.max": f"{6 * GIB}\n", "cg/user/nb/memory.current": f"{2 * GIB}\n"}, False),
        ({"proc/1/limits": ""}, True),
    ],
)  # fmt: skip
def test_the_host_must_hold_what_is_parked(
    tmp_path: Path, files: dict[str, str], *, fits: bool
) -> None:
    """K10: MemAvailable, and memory.max and memory.high of the process's group and of each above it; 4 GiB and a margin."""
    key = ProcessKey(os.getpid(), 1)
    refusal = parkable.no_host_room({key: 4 * GIB}, host(tmp_path, key, files))
    assert (refusal is None) is fits
    if refusal is not None:
        assert refusal.status is MoveStatus.NOT_NOW
        assert "4.0 GiB on the GPU and 0.5 GiB to spare" in refusal.why


def test_limits_of_version_1_count_too(tmp_path: Path) -> None:
    """K10: memory.limit_in_bytes."""
    key = ProcessKey(os.getpid(), 1)
    files = {
        "proc/self/mountinfo": "30 1 0:26 / /m rw - cgroup cgroup rw,memory\n",
        f"proc/{key.pid}/cgroup": "3:memory:/nb\n",
        "m/nb/memory.limit_in_bytes": f"{4 * GIB}\n",
        "m/nb/memory.usage_in_bytes": "0\n",
    }
    assert parkable.no_host_room({key: 4 * GIB}, host(tmp_path, key, files)) is not None


@pytest.mark.parametrize("name", ["address space", "data size"])
def test_a_limit_of_its_own_counts_too(tmp_path: Path, name: str) -> None:
    """K10: ulimit -v and -d, less what it has of it already."""
    key = ProcessKey(os.getpid(), 1)
    for limit, fits in ((5 * GIB, False), (6 * GIB, True)):
        line = f"Max {name:<22}{limit:<21}{limit:<21}bytes\n"
        root = host(tmp_path, key, {f"proc/{key.pid}/limits": line})
        refusal = parkable.no_host_room({key: 4 * GIB}, root)
        assert (refusal is None) is fits


def test_a_short_host_keeps_it_on_the_gpu(
    gpu: Gpu, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K10: it runs on."""
    monkeypatch.setattr("gpushare_kernel.devices.machine.Machine.room", lambda _: 800 * MiB)
    outcome = gpu.park(Target(program.key))
    assert outcome.status is MoveStatus.NOT_NOW
    assert "0.8 GiB" in outcome.why
    assert gpu.moves() == ["lock", "unlock"]
    assert gpu.state(program.key) == "running"
