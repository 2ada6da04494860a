"""The verdict about a GPU: each thing that stands in the way, with one command; and the lock that is tried."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.devices import verdict as verdict_module
from gpushare_kernel.devices.nvml import GpuInfo, Running
from gpushare_kernel.devices.unlocking import WORKER
from gpushare_kernel.devices.verdict import LOSES, Probe, Verdict, probe_capabilities
from tests.devices.gpu import INFO, fake_worker


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine with a driver of CUDA 13 on which a lock works."""
    monkeypatch.setattr(verdict_module, "versions", lambda: ("580.159", (13, 0)))
    return fake_worker(tmp_path)


def test_a_lock_that_works_is_full(worker: list[str], tmp_path: Path) -> None:
    """Tried for real, by one worker on another, which runs again afterwards."""
    found = probe_capabilities(INFO, worker=worker)
    assert (found.verdict, found.text) == (Verdict.FULL, "")
    assert found.facts["driver"] == "580.159 (CUDA 13.0)"
    assert (found.facts["lock"], found.facts["checkpoint"]) == ("works", "yes")
    assert (found.facts["MIG"], found.facts["NVML"]) == ("off", "answers")
    lock, unlock = (tmp_path / "log").read_text().splitlines()
    assert lock.split()[1] == unlock.split()[1]
    assert unlock.startswith("unlock")


@pytest.mark.parametrize(
    ("answer", "verdict", "why", "command"),
    [
        ("CUDA_ERROR_NOT_SUPPORTED", "COOPERATIVE ONLY", "MPS", "quit | nvidia-cuda-mps-control"),
        ("CUDA_ERROR_OPERATING_SYSTEM", "COOPERATIVE ONLY", "ptrace", "sysctl kernel.yama"),
        ("CUDA_ERROR_UNKNOWN", "COOPERATIVE ONLY", "CUDA_ERROR_UNKNOWN", "doctor"),
        ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "WATCH ONLY", "replaced", "reboot"),
    ],
)
def test_what_the_driver_answers_decides(
    worker: list[str], answer: str, verdict: str, why: str, command: str
) -> None:
    """Each refusal has its reason, what users lose, and one command."""
    (Path(worker[-1]) / "answer").write_text(answer)
    found = probe_capabilities(INFO, worker=worker)
    assert found.verdict == verdict
    assert why in found.why
    assert command in found.command
    assert LOSES[Verdict(verdict)] in found.text
    assert found.facts["lock"] == found.why


def test_a_driver_that_does_not_come_up(worker: list[str], tmp_path: Path) -> None:
    """Said by cuInit already: nothing is locked."""
    (tmp_path / "init").write_text("CUDA_ERROR_NO_DEVICE")
    assert probe_capabilities(INFO, worker=worker).verdict is Verdict.WATCH
    assert not (tmp_path / "log").exists()


def test_a_worker_that_does_not_start_is_an_answer(worker: list[str]) -> None:
    """No exception, whatever is wrong."""
    found = probe_capabilities(INFO, worker=["/nowhere/python"])
    assert found.verdict is Verdict.COOPERATIVE
    assert "/nowhere/python" in found.why
    assert "no answer" in probe_capabilities(INFO, worker=["/bin/false"]).why


def test_an_old_driver_is_not_even_tried(
    worker: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below CUDA 12.8 there is no lock."""
    monkeypatch.setattr(verdict_module, "versions", lambda: ("550.54", (12, 4)))
    found = probe_capabilities(INFO, worker=worker)
    assert found.verdict is Verdict.COOPERATIVE
    assert "serves CUDA 12.4, and pausing needs 12.8" in found.why
    assert found.facts["checkpoint"].startswith("no")
    assert not (tmp_path / "log").exists()


def test_mps_is_seen_before_it_is_met(
    worker: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control daemon where kernels would look for it; one of somebody else's is none of our business."""
    monkeypatch.setattr(verdict_module.procfs, "named", lambda name: [7])
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert probe_capabilities(INFO, worker=worker).verdict is Verdict.FULL
    (tmp_path / "control").touch()
    (tmp_path / "log").unlink()
    found = probe_capabilities(INFO, worker=worker)
    assert (found.verdict, found.command) == (Verdict.COOPERATIVE, "echo quit | nvidia-cuda-mps-control")  # fmt: skip
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("gpu", "command"),
    [
        (GpuInfo(2, "GPU-2", "A100", 1, mig=True), "sudo nvidia-smi -i 2 -mig 0"),
        (GpuInfo(2, "GPU-2", "A100", 1, exclusive=True), "sudo nvidia-smi -i 2 -c DEFAULT"),
    ],
)
def test_a_gpu_that_nobody_can_share(worker: list[str], gpu: GpuInfo, command: str) -> None:
    """WATCH ONLY, with the command for this very GPU."""
    found = probe_capabilities(gpu, worker=worker)
    assert (found.verdict, found.command) == (Verdict.WATCH, command)


def test_without_the_bindings_turns_are_cooperative(
    worker: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package, for the driver that runs."""
    monkeypatch.setattr(verdict_module, "_have_bindings", lambda: False)
    found = probe_capabilities(INFO, worker=WORKER)
    assert found.verdict is Verdict.COOPERATIVE
    assert found.command == "pip install '.[cuda13]'  # in a clone of gpushare"


def test_without_nvml_there_is_nothing_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """In NVML's words."""

    def fail() -> tuple[str, tuple[int, int]]:
        msg = "no driver. Does nvidia-smi work here?"
        raise DeviceError(msg)

    monkeypatch.setattr(verdict_module, "versions", fail)
    found = probe_capabilities()
    assert (found.verdict, found.command) == (Verdict.WATCH, "nvidia-smi")
    assert found.why.startswith("no driver")
    assert found.facts["NVML"] == "does not answer"


def test_a_machine_without_a_gpu(worker: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver, and nothing that it drives."""
    monkeypatch.setattr(verdict_module, "find_gpus", lambda: ())
    assert probe_capabilities(worker=worker).verdict is Verdict.WATCH


def test_the_text_of_a_probe() -> None:
    """Why, what users lose, and what to do; nothing where all is well."""
    assert Probe(Verdict.FULL).text == ""
    assert Probe(Verdict.WATCH, "Why.", "do this").text == (
        "Why. Notebooks run as they are: nobody takes turns on the GPU. Run: do this"
    )


@pytest.mark.parametrize(
    ("namespace", "pids", "says"),
    [
        ("pid:[4026531836]", [2**22 + 1], None),
        ("pid:[4026532000]", [], "is seen once one of them uses the GPU"),
        ("pid:[4026532000]", [os.getpid()], "names them alike"),
        ("pid:[4026532000]", [os.getpid(), 2**22 + 1], "--pid=host"),
    ],
)
def test_numbers_of_a_container(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    namespace: str,
    pids: list[int],
    says: str | None,
) -> None:
    """Where processes have numbers of their own, the driver's name nobody here: said with what is lost and what to do."""
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/pid").symlink_to(namespace)
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("Kernel Module  580.159")
    monkeypatch.setattr(verdict_module, "probe_capabilities", lambda: Probe(Verdict.FULL))
    monkeypatch.setattr(verdict_module, "find_gpus", lambda: [INFO])
    monkeypatch.setattr(
        verdict_module, "running", lambda _gpu: [Running(pid, 0, display=False) for pid in pids]
    )
    said = verdict_module.probe_machine(tmp_path).facts.get("processes")
    assert said is None if says is None else says in (said or "")
