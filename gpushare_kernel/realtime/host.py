"""The machine that nodes run on, as a measurement names it: what was measured on another one is measured again."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def gpus() -> int:
    """Return how many GPUs torch can use; none where it is not imported. Makes no context."""
    torch = sys.modules.get("torch")
    return 0 if torch is None else int(torch.cuda.device_count())


def described() -> str:
    """Return what a layer's time depends on: processor, cores, GPUs, and the libraries that compute."""
    libraries = [f"{name} {found}" for name in ("torch", "numpy") if (found := _version(name))]
    parts = [_processor(), f"{os.cpu_count()} cores", *_gpu_names(), *libraries]
    return ", ".join([*parts, f"Python {platform.python_version()}"])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    found = next((line for line in lines if line.startswith("model name")), "")
    return found.partition(":")[2].strip() or platform.machine()


def _gpu_names() -> list[str]:
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return found


def _version(name: str) -> str:
    if name not in sys.modules:
        return ""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
