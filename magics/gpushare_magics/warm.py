"""The warm tier of this kernel, put together: its torch, its kernel, its cells, its output."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from gpushare_kernel.client.adapters.torch import Torch
from gpushare_kernel.client.warm.warm import Warm
from gpushare_magics.lines import UpdatingLine

if TYPE_CHECKING:
    from gpushare_kernel.client.copying import Copier
    from gpushare_magics.extension import Extension


VERIFY = "GPUSHARE_VERIFY"
"""Set to 1: every byte that is set aside is hashed before and after."""


def mover(extension: Extension) -> tuple[Warm, Copier] | None:
    """Return what moves this kernel's tensors, and what copies them; None where nothing can."""
    from gpushare_kernel.client.copying import CudaCopier  # noqa: PLC0415 - only where something is moved
    from gpushare_kernel.client.libcuda import Cuda  # noqa: PLC0415

    warm = warm_tier(extension, verify=os.environ.get(VERIFY) == "1")
    return None if warm is None else (warm, CudaCopier(Cuda()))


def warm_tier(extension: Extension, *, verify: bool = False) -> Warm | None:
    """Return the warm tier; None where there is no kernel, no GPU, or no torch that we have hooked."""
    shell, session = extension.shell, extension.session
    kernel = getattr(shell, "kernel", None)
    gpu = None if session is None else session.gpu
    if kernel is None or gpu is None:
        return None
    torch = next((one for one in gpu.adapters.active if type(one) is Torch), None)
    if torch is None:
        return None
    return Warm(
        sys.modules["torch"],
        torch.exports,
        kernel=kernel,
        running=lambda: extension.cells.running,
        line=lambda: UpdatingLine(extension.output).put,
        namespace=lambda: shell.user_ns,
        settle=torch.settle,
        trim=torch.trim,
        verify=verify,
    )
