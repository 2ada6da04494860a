"""The warm tier of this kernel, put together: its torch, its kernel, its cells, its output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gpushare_kernel.client.adapters.torch import Torch
from gpushare_kernel.client.warm.warm import Warm
from gpushare_magics.lines import UpdatingLine

if TYPE_CHECKING:
    from gpushare_magics.extension import Extension


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
