"""Reading what a machine gives us, on laid-out `/proc` and `/sys` folders and on the real ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpushare_kernel.devices.machine import Machine

GiB = 2**30
V2_MOUNT = "31 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "40 23 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "41 23 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 16 GiB available and no control groups."""
    lay(tmp_path, "proc/meminfo", "MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n")
    lay(tmp_path, "proc/cpuinfo", "processor : 0\nmodel name\t: Some   CPU @ 3 GHz\n")
    lay(tmp_path, "proc/self/cgroup", "")
    lay(tmp_path, "proc/self/mountinfo", "23 1 0:5 / / rw - ext4 /dev/vda rw\n")
    return tmp_path


def lay(root: Path, path: str, content: str) -> None:
    """Write one file of the laid-out machine."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content)


def affinity() -> int:
    """Return the cores this test process may use."""
    return len(os.sched_getaffinity(0))


def test_without_groups_memory_and_cores_are_the_machine_s(root: Path) -> None:
    """MemAvailable, and as many cores as our affinity leaves."""
    machine = Machine(root)
    assert machine.available() == 16 * GiB
    assert machine.cores() == affinity()
    assert machine.cpu_name() == "Some CPU @ 3 GHz"


def test_v2_limits_bind_from_every_level(root: Path) -> None:
    """The tightest limit minus its own usage counts, wherever on the way up it is set."""
    lay(root, "proc/self/mountinfo", V2_MOUNT)
    lay(root, "proc/self/cgroup", "0::/hub/user-1\n")
    lay(root, "sys/fs/cgroup/hub/memory.max", str(8 * GiB))
    lay(root, "sys/fs/cgroup/hub/memory.current", str(5 * GiB))
    lay(root, "sys/fs/cgroup/hub/memory.stat", f"anon 1\ninactive_file {GiB}\n")
    lay(root, "sys/fs/cgroup/hub/user-1/memory.max", "max")
    lay(root, "sys/fs/cgroup/hub/user-1/memory.current", str(GiB))
    lay(root, "sys/fs/cgroup/hub/cpu.max", "max 100000")
    lay(root, "sys/fs/cgroup/hub/user-1/cpu.max", "25000 50000")
    machine = Machine(root)
    assert machine.available() == 4 * GiB, "8 GiB less the 4 that cannot be dropped"
    assert machine.cores() == 0.5


def test_v1_limits_bind_and_its_largest_number_is_no_limit(root: Path) -> None:
    """Version 1: -1 is no quota, the largest page multiple is no memory limit."""
    lay(root, "proc/self/mountinfo", V1_MOUNTS)
    lay(root, "proc/self/cgroup", "4:memory:/a/b\n1:cpu,cpuacct:/a\n0::/\n")
    lay(root, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", str(3 * GiB))
    lay(root, "sys/fs/cgroup/memory/a/memory.usage_in_bytes", str(GiB))
    lay(root, "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712")
    lay(root, "sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", str(GiB))
    lay(root, "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "-1")
    lay(root, "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000")
    machine = Machine(root)
    assert machine.available() == 2 * GiB
    assert machine.cores() == affinity()
    lay(root, "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "75000")
    assert machine.cores() == 0.75


def test_in_a_container_the_mount_s_top_is_our_own_group(root: Path) -> None:
    """Where only our part of the hierarchy is mounted, its limits are read at the mount."""
    lay(root, "proc/self/mountinfo", V2_MOUNT.replace(" / /sys", " /docker/x /sys"))
    lay(root, "proc/self/cgroup", "0::/docker/x\n")
    lay(root, "sys/fs/cgroup/memory.max", str(2 * GiB))
    lay(root, "sys/fs/cgroup/memory.current", "0")
    assert Machine(root).available() == 2 * GiB


def test_over_its_limit_a_machine_has_nothing_not_less(root: Path) -> None:
    """Usage above a lowered limit reads as zero bytes available."""
    lay(root, "proc/self/mountinfo", V2_MOUNT)
    lay(root, "proc/self/cgroup", "0::/\n")
    lay(root, "sys/fs/cgroup/memory.max", str(GiB))
    lay(root, "sys/fs/cgroup/memory.current", str(2 * GiB))
    assert Machine(root).available() == 0


def test_a_cpu_without_a_model_name_is_called_by_its_architecture(root: Path) -> None:
    """ARM servers name no model."""
    lay(root, "proc/cpuinfo", "processor : 0\n")
    assert Machine(root).cpu_name() == os.uname().machine


def test_the_real_machine_has_something_to_give() -> None:
    """Whatever this runs on: some memory, some of a core, a name."""
    machine = Machine()
    assert machine.available() > 2**20
    assert 0 < machine.cores() <= affinity()
    assert machine.cpu_name()
