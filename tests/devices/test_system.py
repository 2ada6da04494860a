"""What a machine's own files say of its GPUs, and the verdict about the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpushare_kernel.devices import system, verdict
from gpushare_kernel.devices.system import dmem_limits, library_version_of
from gpushare_kernel.devices.verdict import Probe, Verdict, probe_machine


class Machine:
    """A made-up `/proc` and `/sys`, and a driver that answers as told."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        monkeypatch.setattr(verdict, "probe_capabilities", lambda: self.probe)
        monkeypatch.setattr(system, "library_version", lambda: self.library)
        self.library = "580.159"
        self.probe = Probe(Verdict.FULL, facts={"driver": "580.159 (CUDA 13.0)", "lock": "works"})

    def write(self, path: str, text: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def load_driver(self, version: str = "580.159") -> None:
        self.write(
            "proc/driver/nvidia/version",
            f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\nGCC version: 13.3.0\n",
        )

    def found(self) -> Probe:
        return probe_machine(self.root)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine without a GPU, at first."""
    return Machine(tmp_path, monkeypatch)


def test_a_machine_without_a_gpu_shares_its_cpu(machine: Machine) -> None:
    """It says so and nothing more: nothing pretends."""
    assert machine.found() == Probe(
        Verdict.CPU, "This machine has no NVIDIA GPU: notebooks share its cores and its memory."
    )


def test_a_gpu_without_its_driver_is_only_watched(machine: Machine) -> None:
    """The bus shows one (a sound chip of the same maker is none); the driver is not there."""
    machine.write("sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n")
    machine.write("sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n")
    assert machine.found().verdict is Verdict.CPU
    machine.write("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    machine.write("sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
    found = machine.found()
    assert (found.verdict, found.command) == (Verdict.WATCH, "nvidia-smi")
    assert "driver is not loaded" in found.why


def test_a_driver_is_tried(machine: Machine) -> None:
    """What the devices' room finds is the verdict; what the system says stands beside."""
    machine.load_driver()
    machine.write("proc/sys/kernel/yama/ptrace_scope", "1\n")
    found = machine.found()
    assert found.sentence == "FULL: Notebooks take turns on the GPU, whatever code they run."
    assert found.facts["driver"] == "580.159 (CUDA 13.0)"
    assert found.facts["ptrace scope"].startswith("1 (")
    assert "pending upgrade" not in found.facts


def test_a_driver_that_does_not_answer(machine: Machine) -> None:
    """Then there is no version but the module's."""
    machine.load_driver()
    facts = {"NVML": "does not answer"}
    machine.probe = Probe(Verdict.WATCH, "NVML says no.", "nvidia-smi", facts)
    found = machine.found()
    assert found.sentence == (
        "WATCH ONLY: NVML says no. Notebooks run as they are: nobody takes turns on the GPU. Run: nvidia-smi"
    )
    assert (found.facts["driver"], found.facts["NVML"]) == ("580.159 is loaded", "does not answer")


def test_a_pending_upgrade_is_seen(machine: Machine) -> None:
    """Libraries on disk that are not the module's: new kernels fail until a restart, so it is said before they do."""
    machine.load_driver("580.126.09")
    machine.library = "590.44.01"
    said = machine.found().facts["pending upgrade"]
    assert "580.126.09" in said
    assert "590.44.01" in said
    assert "restarted" in said


def test_the_library_on_disk_has_its_version_in_its_name(tmp_path: Path) -> None:
    """`ldconfig -p` leads to a link, the link to the file."""
    (tmp_path / "libcuda.so.580.159.03").touch()
    (tmp_path / "libcuda.so.1").symlink_to("libcuda.so.580.159.03")
    listed = (
        "1 libs found\n\tlibcudadebugger.so.1 (libc6,x86-64) => /x/libcudadebugger.so.1\n"
        f"\tlibcuda.so.1 (libc6,x86-64) => {tmp_path / 'libcuda.so.1'}\n"
    )
    assert library_version_of(listed) == "580.159.03"
    assert library_version_of("0 libs found") == ""


def test_limits_of_device_memory(machine: Machine) -> None:
    """Read from the group of this process, region by region; without the controller there are none."""
    assert dmem_limits(machine.root) == ""
    machine.write("sys/fs/cgroup/cgroup.controllers", "cpu memory dmem pids\n")
    machine.write("proc/self/cgroup", "1:cpu:/old\n0::/user.slice/lab\n")
    assert dmem_limits(machine.root) == "not switched on for this group"
    group = "sys/fs/cgroup/user.slice/lab/dmem."
    machine.write(group + "max", "drm/0000:03:00.0/vram0 8589934592\ndrm/0000:04:00.0/vram0 max\n")
    machine.write(group + "current", "drm/0000:03:00.0/vram0 1048576\n")
    assert dmem_limits(machine.root) == (
        "drm/0000:03:00.0/vram0: 1048576 of 8589934592, drm/0000:04:00.0/vram0: 0 of max"
    )
