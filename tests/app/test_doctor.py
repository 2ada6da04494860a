"""doctor: the verdict, its reasons, and how they look."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console

from gpushare_kernel.app.checks import Check, Finding, examine
from gpushare_kernel.app.doctor import as_json, failures, show, verdict_line
from gpushare_kernel.app.gpu_facts import (
    COOPERATIVE,
    CPU,
    FULL,
    WATCH,
    GpuFacts,
    dmem_limits,
    gpu_facts,
    library_version_of,
)

WELL = Check(Finding.WELL, "provisioner", "It is registered.")
FAILED = Check(Finding.FAILED, "kernels", "Nothing makes kernels share here.")
OLD = GpuFacts(COOPERATIVE, "The driver is too old.", "sudo apt install newer", {"lock": "no"})


class Machine:
    """A made-up `/proc` and `/sys`, and a driver that answers as told."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        module = ModuleType("gpushare_kernel.devices.verdict")
        module.probe_capabilities = lambda: self.probe  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr("gpushare_kernel.app.gpu_facts.library_version", lambda: self.library)
        self.library = "580.159"
        self.probe = SimpleNamespace(
            verdict="FULL", why="", command="", facts={"driver": "580.159 (CUDA 13.0)", "lock": "works"}
        )  # fmt: skip

    def write(self, path: str, text: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def load_driver(self, version: str = "580.159") -> None:
        self.write(
            "proc/driver/nvidia/version",
            f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\nGCC version: 13.3.0\n",
        )

    def facts(self) -> GpuFacts:
        return gpu_facts(self.root)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def test_a_machine_without_a_gpu_shares_its_cpu(machine):
    """It says so and nothing more: nothing pretends."""
    assert machine.facts() == GpuFacts(
        CPU, "This machine has no NVIDIA GPU: notebooks share its cores and its memory."
    )


def test_a_gpu_without_its_driver_is_only_watched(machine):
    """The bus shows one (a sound chip of the same maker is none); the driver is not there."""
    machine.write("sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n")
    machine.write("sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n")
    assert machine.facts().verdict == CPU
    machine.write("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    machine.write("sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
    facts = machine.facts()
    assert (facts.verdict, facts.command) == (WATCH, "nvidia-smi")
    assert "driver is not loaded" in facts.why


def test_a_driver_is_tried(machine):
    """What the devices' room finds is the verdict; what the system says stands beside."""
    machine.load_driver()
    machine.write("proc/sys/kernel/yama/ptrace_scope", "1\n")
    facts = machine.facts()
    assert facts.sentence == "FULL: Notebooks take turns on the GPU, whatever code they run."
    assert facts.facts["driver"] == "580.159 (CUDA 13.0)"
    assert facts.facts["NVML"] == "answers"
    assert facts.facts["ptrace scope"].startswith("1 (")
    assert "pending upgrade" not in facts.facts


def test_a_driver_that_does_not_answer(machine):
    """Then there is no version but the module's."""
    machine.load_driver()
    machine.probe = SimpleNamespace(verdict="WATCH ONLY", why="NVML says no.", command="nvidia-smi", facts={})  # fmt: skip
    facts = machine.facts()
    assert facts.sentence == (
        "WATCH ONLY: NVML says no. Notebooks run as they are: nobody takes turns on the GPU. Run: nvidia-smi"
    )
    assert (facts.facts["driver"], facts.facts["NVML"]) == ("580.159 is loaded", "does not answer")


def test_a_pending_upgrade_is_seen(machine):
    """Libraries on disk that are not the module's: new kernels fail until a restart, so it is said before they do."""
    machine.load_driver("580.126.09")
    machine.library = "590.44.01"
    said = machine.facts().facts["pending upgrade"]
    assert "580.126.09" in said
    assert "590.44.01" in said
    assert "restarted" in said


def test_the_library_on_disk_has_its_version_in_its_name(tmp_path):
    """`ldconfig -p` leads to a link, the link to the file."""
    (tmp_path / "libcuda.so.580.159.03").touch()
    (tmp_path / "libcuda.so.1").symlink_to("libcuda.so.580.159.03")
    listed = (
        "1 libs found\n\tlibcudadebugger.so.1 (libc6,x86-64) => /x/libcudadebugger.so.1\n"
        f"\tlibcuda.so.1 (libc6,x86-64) => {tmp_path / 'libcuda.so.1'}\n"
    )
    assert library_version_of(listed) == "580.159.03"
    assert library_version_of("0 libs found") == ""


def test_limits_of_device_memory(machine):
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


# --- the report ------------------------------------------------------------------------------------------


def test_the_first_line_is_the_verdict():
    """With what people lose and one command; where something else fails, that."""
    assert verdict_line(OLD, [WELL]) == (
        "COOPERATIVE ONLY: The driver is too old. Notebooks take turns where they meet steps; code that meets none "
        "is never paused, and may take more than its share. Run: sudo apt install newer"
    )
    assert verdict_line(GpuFacts(FULL), [WELL, FAILED]) == (
        "FULL, but not all is well: Nothing makes kernels share here."
    )


def test_a_gpu_that_is_only_watched_fails_and_one_that_cooperates_does_not(where):
    """The exit status follows; the GPU's own reason does not take the verdict's place."""
    watched = GpuFacts(WATCH, "MIG is on.", "sudo nvidia-smi -mig 0", {"MIG": "on"})
    for gpu, finding in ((watched, Finding.FAILED), (OLD, Finding.NOTE)):
        checks = [check for check in examine(where, gpu) if check.name == "GPU"]
        assert [check.finding for check in checks] == [finding]
        assert f"Run: {gpu.command}" in checks[0].text
        assert verdict_line(gpu, checks) == gpu.sentence


def test_facts_that_are_not_as_they_should_be_stand_out(where):
    """In a fixed order, before the broker."""
    facts = {"MIG": "off", "pending upgrade": "restart", "lock": "works", "driver": "1", "checkpoint": "no"}  # fmt: skip
    checks = list(examine(where, GpuFacts(FULL, facts=facts)))[:5]
    assert [(check.name, check.finding.value[0]) for check in checks] == [
        ("driver", "ok"),
        ("lock", "ok"),
        ("checkpoint", "note"),
        ("MIG", "ok"),
        ("pending upgrade", "note"),
    ]


@pytest.mark.parametrize("width", [80, 100])
def test_a_terminal_gets_columns(width):
    """Long texts wrap beneath themselves, nothing is cut, and no line is longer than the terminal."""
    long = Check(
        Finding.NOTE, "pending upgrade", "the driver that runs is " + "older " * 20 + "end"
    )
    out = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    show(GpuFacts(FULL), [WELL, long], out)
    lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert lines[1].rstrip() == "ok    provisioner      It is registered."
    assert lines[2].startswith("note  pending upgrade  the driver that runs")
    assert lines[3].startswith(" " * 23 + "older")
    assert lines[-1].rstrip().endswith("end")


def test_a_pipe_gets_a_line_each():
    """So that grep finds what it looks for."""
    out = Console(file=io.StringIO(), width=40)
    show(GpuFacts(FULL), [WELL, Check(Finding.NOTE, "log", "x" * 90)], out)
    assert out.file.getvalue().splitlines()[1:] == [  # type: ignore[attr-defined]
        "ok    provisioner  It is registered.",
        "note  log          " + "x" * 90,
    ]


def test_json_has_the_same():
    """Verdict, one command, and every check."""
    found = json.loads(as_json(OLD, [WELL, FAILED]))
    assert found["verdict"] == "COOPERATIVE ONLY"
    assert (found["why"], found["command"], found["well"]) == (OLD.why, OLD.command, False)
    assert found["checks"][1] == {
        "finding": "fail",
        "name": "kernels",
        "text": "Nothing makes kernels share here.",
    }
    assert failures([WELL]) == []


def test_doctor_json(gpushare, broker):
    """The command prints it, and its exit status is that of the report."""
    done = gpushare("doctor", "--json", JUPYTER_DEFAULT_PROVISIONER_NAME="gpushare")
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["well"] else 1)
    assert {"broker", "device", "provisioner", "kernels"} <= {
        one["name"] for one in found["checks"]
    }
