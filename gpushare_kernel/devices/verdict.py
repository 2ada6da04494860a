"""What gpushare can do with a GPU of this machine, found by trying: FULL, COOPERATIVE ONLY or WATCH ONLY.

Two workers are started and one locks the other: that is the whole way a pause goes, needs no GPU memory and no
broker, and takes half a second.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.devices import answers
from gpushare_kernel.devices.cuda_worker import LOCKABLE
from gpushare_kernel.devices.nvml import NEEDED_CUDA, GpuInfo, find_gpus, versions
from gpushare_kernel.devices.unlocking import WORKER, Caller

_START_LIMIT = 30.0
_ANSWER_LIMIT = 5.0
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_LOADED = Path("/sys/module/nvidia/version")
_CONTROLLERS = Path("/sys/fs/cgroup/cgroup.controllers")
_MPS = "nvidia-cuda-mps"
_MPS_PIPES = "CUDA_MPS_PIPE_DIRECTORY"

LOSES = "Notebooks take turns where they meet boundaries; code that meets none is never paused, and may take more than its share."
"""What users lose where nobody can be paused."""


class Verdict(StrEnum):
    """How much of gpushare a GPU allows."""

    FULL = "FULL"
    COOPERATIVE = "COOPERATIVE ONLY"
    WATCH = "WATCH ONLY"


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found: the verdict, why, one command that changes it, and what else there is to know (name -> text)."""

    verdict: Verdict
    why: str = ""
    command: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Why and what to do, in a line; what users lose in between."""
        loses = LOSES if self.verdict is Verdict.COOPERATIVE else ""
        step = f"Run: {self.command}" if self.command else ""
        return " ".join(part for part in (self.why, loses, step) if part)


def probe_capabilities(gpu: GpuInfo | None = None, *, worker: Sequence[str] = WORKER) -> Probe:
    """Find out what can be done with a GPU. Never raises for what it finds.

    Parameters
    ----------
    gpu
        Which one; default is the first.
    worker
        The command of a lock worker.
    """
    try:
        driver, cuda = versions()
        if gpu is None:
            gpu = next(iter(find_gpus()), None)
    except DeviceError as problem:
        return Probe(Verdict.WATCH, str(problem), "nvidia-smi", _system_facts())
    facts = {"driver": f"{driver} (CUDA {cuda[0]}.{cuda[1]})", **_system_facts()}
    if gpu is None:
        return Probe(Verdict.WATCH, "This machine has no NVIDIA GPU.", "nvidia-smi", facts)
    facts["MIG"] = "on" if gpu.mig else "off"
    facts["checkpoint"] = "yes" if cuda >= NEEDED_CUDA else "no: the driver is too old"
    refused = _refused_by(gpu) or _pausing(cuda, worker)
    facts["lock"] = "works" if refused is None else refused.why
    if refused is None:
        return Probe(Verdict.FULL, facts=facts)
    return Probe(refused.verdict, refused.why, refused.command, facts)


def _refused_by(gpu: GpuInfo) -> Probe | None:
    if gpu.mig:
        why = f"{gpu.name} is cut into parts (MIG): gpushare shares whole GPUs."
        return Probe(Verdict.WATCH, why, f"sudo nvidia-smi -i {gpu.index} -mig 0")
    if gpu.exclusive:
        why = f"{gpu.name} admits one process at a time (its compute mode): nobody can share it."
        return Probe(Verdict.WATCH, why, f"sudo nvidia-smi -i {gpu.index} -c DEFAULT")
    return None


def _pausing(cuda: tuple[int, int], worker: Sequence[str]) -> Probe | None:
    """Return what keeps us from pausing others; None where nothing does."""
    if cuda < NEEDED_CUDA:
        why = f"The driver serves CUDA {cuda[0]}.{cuda[1]}, and pausing needs 12.8: driver 570 or newer."
        return Probe(Verdict.COOPERATIVE, why, "sudo apt install nvidia-driver-580-server")
    if worker is WORKER and not _have_bindings():
        why = "Pausing needs the package cuda-bindings, which is not installed."
        return Probe(Verdict.COOPERATIVE, why, f"pip install 'gpushare-kernel[cuda{cuda[0]}]'")
    if _mps_runs():
        return _with_mps("MPS runs on this machine: under it nobody can be paused.")
    return _meaning(_tried() if worker is WORKER else _try_lock(worker))


def _meaning(answer: str) -> Probe | None:
    if answer == answers.SUCCESS:
        return None
    if answer == answers.NOT_SUPPORTED:
        return _with_mps("The driver refuses to pause a process, as it does under MPS.")
    if answer == answers.OPERATING_SYSTEM:
        why = "The system does not let us pause processes of our own user (ptrace is restricted)."
        return Probe(Verdict.COOPERATIVE, why, "sudo sysctl kernel.yama.ptrace_scope=1")
    if answer in answers.SICK_DRIVER:
        why = f"The CUDA driver does not come up ({answer}): it was replaced, or the GPU is gone."
        return Probe(Verdict.WATCH, why, "sudo reboot")
    why = f"The driver answers {answer} when a process is to be paused."
    return Probe(Verdict.COOPERATIVE, why, "jupyter gpushare doctor")


def _with_mps(why: str) -> Probe:
    return Probe(Verdict.COOPERATIVE, why, "echo quit | nvidia-cuda-mps-control")


@cache
def _tried() -> str:
    """It is the same for all GPUs of a machine, and as long as we run."""
    return _try_lock(WORKER)


def _try_lock(worker: Sequence[str]) -> str:
    """Have one worker lock another; return the driver's answer."""
    callers: list[Caller] = []
    try:
        callers += [Caller(worker), Caller(worker, extra=[LOCKABLE])]
        for caller in callers:
            up = caller.wait(_START_LIMIT)
            if up is None or up.answer != answers.SUCCESS:
                return "no answer" if up is None else up.answer
        asking, asked = callers
        key = procfs.process_key(asked.process.pid)
        if key is None:
            return "no answer"
        asking.ask("lock", key, round(_ANSWER_LIMIT * 500))
        reply = asking.wait(_ANSWER_LIMIT)
    except OSError as problem:
        return f"no worker: {problem}"
    else:
        return "no answer" if reply is None else reply.answer
    finally:
        for caller in callers:  # the first unlocks the second when its line ends
            caller.close(waits=_ANSWER_LIMIT)


def _have_bindings() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:
        return False


def _mps_runs() -> bool:
    """Tell whether kernels started here would find an MPS daemon; one for others is none of our business."""
    pipes = Path(os.environ.get(_MPS_PIPES, "/tmp/nvidia-mps"))  # noqa: S108 - the driver's default
    return (pipes / "control").exists() and bool(procfs.named(_MPS))


def _system_facts() -> dict[str, str]:
    facts = {
        "ptrace scope": _text(_YAMA) or "not restricted",
        "dmem limits": "yes" if "dmem" in _text(_CONTROLLERS).split() else "no",
    }
    loaded, installed = _text(_LOADED), _installed_driver()
    if loaded and installed and loaded != installed:
        facts["pending upgrade"] = (
            f"driver {installed} is installed, {loaded} runs: restart the machine"
        )
    return facts


def _installed_driver() -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["modinfo", "-F", "version", "nvidia"],  # noqa: S607 - a question, asked as the caller
            capture_output=True,
            text=True,
            check=False,
            timeout=_ANSWER_LIMIT,
        )
        return done.stdout.strip()
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
