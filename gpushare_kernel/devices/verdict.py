"""What gpushare can do on this machine, found by trying: FULL, COOPERATIVE ONLY or WATCH ONLY; CPU ONLY without a GPU.

Two workers are started and one locks the other: that is the whole way a pause goes, needs no GPU memory and no
broker, and takes half a second.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from pathlib import Path

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.devices import answers
from gpushare_kernel.devices.cuda_worker import LOCKABLE
from gpushare_kernel.devices.nvml import NEEDED_CUDA, GpuInfo, find_gpus, running, versions
from gpushare_kernel.devices.system import (
    driver_runs,
    has_gpu,
    sees_all_processes,
    system_facts,
)
from gpushare_kernel.devices.unlocking import WORKER, Caller

_OWN_NUMBERS = "numbered by this container"
_START_LIMIT = 30.0
_ANSWER_LIMIT = 5.0
_MPS = "nvidia-cuda-mps"
_MPS_PIPES = "CUDA_MPS_PIPE_DIRECTORY"


class Verdict(StrEnum):
    """How much of gpushare a machine, or one GPU of it, allows."""

    FULL = "FULL"
    COOPERATIVE = "COOPERATIVE ONLY"
    WATCH = "WATCH ONLY"
    CPU = "CPU ONLY"


_ALL = "Notebooks take turns on the GPU, whatever code they run."
LOSES: Mapping[Verdict, str] = {
    Verdict.COOPERATIVE: "Notebooks take turns where they meet steps; code that meets none is never paused, and may take more than its share.",
    Verdict.WATCH: "Notebooks run as they are: nobody takes turns on the GPU.",
}
"""What users lose."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found: the verdict, why, one command that changes it, and what else there is to know (name -> text)."""

    verdict: Verdict
    why: str = ""
    command: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Why, what users lose, and what to do, in a line; empty where all works."""
        step = f"Run: {self.command}" if self.command else ""
        parts = (self.why, LOSES.get(self.verdict, ""), step)
        return " ".join(part for part in parts if part)

    @property
    def sentence(self) -> str:
        """The verdict as people read it."""
        return f"{self.verdict}: {self.text or _ALL}"


def probe_machine(root: Path = Path("/")) -> Probe:
    """Find out what can be done on this machine, and what the system says of it. Never raises for what it finds.

    Parameters
    ----------
    root
        Where `/proc` and `/sys` are.
    """
    if not has_gpu(root):
        why = "This machine has no NVIDIA GPU: notebooks share its cores and its memory."
        return Probe(Verdict.CPU, why)
    facts = system_facts(root)
    if not driver_runs(root):
        why = "An NVIDIA GPU is here, and its driver is not loaded."
        return Probe(Verdict.WATCH, why, "nvidia-smi", facts)
    found = probe_capabilities()
    numbers = {} if sees_all_processes(root) else {"processes": _numbers_here()}
    return replace(found, facts={**facts, **found.facts, **numbers})


def _numbers_here() -> str:
    """Return what a pid namespace of our own means: whether the driver's numbers name the processes that are here."""
    try:
        pids = [one.pid for gpu in find_gpus() for one in running(gpu.index)]
    except DeviceError:
        pids = []
    if not pids:
        return f"{_OWN_NUMBERS}: whether the driver names them alike is seen once one of them uses the GPU"
    if all(procfs.exists(pid) for pid in pids):
        return f"{_OWN_NUMBERS}, and the driver names them alike"
    return (
        f"{_OWN_NUMBERS}, and the driver names processes that are not here: what notebooks and others hold and use is "
        "not seen. Start the container with --pid=host (Kubernetes: hostPID: true)"
    )


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
        return Probe(Verdict.WATCH, str(problem), "nvidia-smi", {"NVML": "does not answer"})
    facts = {"driver": f"{driver} (CUDA {cuda[0]}.{cuda[1]})", "NVML": "answers"}
    if gpu is None:
        return Probe(Verdict.WATCH, "This machine has no NVIDIA GPU.", "nvidia-smi", facts)
    facts["MIG"] = "on" if gpu.mig else "off"
    facts["checkpoint"] = "yes" if cuda >= NEEDED_CUDA else "no: the driver is too old"
    refused = refused_by(gpu) or _pausing(cuda, worker)
    facts["lock"] = "works" if refused is None else refused.why
    if refused is None:
        return Probe(Verdict.FULL, facts=facts)
    return Probe(refused.verdict, refused.why, refused.command, facts)


def refused_by(gpu: GpuInfo) -> Probe | None:
    """Return how `gpu` is set up so that it cannot be shared; None where it is not."""
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
        return Probe(
            Verdict.COOPERATIVE, why, f"pip install '.[cuda{cuda[0]}]'  # in a clone of gpushare"
        )
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
