"""What the machine has for these benchmarks: GPUs, driver, framework versions. Asks; starts nothing on a GPU."""

from __future__ import annotations

import contextlib
import importlib.metadata
from typing import Any

VERSIONS = (
    "torch",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "jax",
    "cuda-bindings",
    "nvidia-ml-py",
    "ipykernel",
    "jupyter_client",
)


def versions() -> dict[str, str]:
    """Return package -> version of what is installed of those that matter."""
    found = {}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def gpus() -> dict[str, Any]:
    """Return driver, CUDA version and GPUs as NVML says; empty where there is none."""
    try:
        import pynvml as nvml  # noqa: PLC0415  a machine without it measures on its CPU

        nvml.nvmlInit()
    except Exception:  # noqa: BLE001  no library, no driver, no GPU: there is nothing to describe
        return {}
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        return {
            "driver": nvml.nvmlSystemGetDriverVersion(),
            "cuda": nvml.nvmlSystemGetCudaDriverVersion_v2() / 1000,
            "gpus": [
                {
                    "name": nvml.nvmlDeviceGetName(handle),
                    "memory": int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                }
                for handle in handles
            ],
        }
    finally:
        nvml.nvmlShutdown()
