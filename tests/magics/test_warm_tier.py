"""The warm tier is put together only where there is a kernel, a GPU, and a torch that was seen from its start."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

from gpushare_magics.lines import Output
from gpushare_magics.warm import warm_tier

from gpushare_kernel.client.adapters.torch import Torch
from tests.client.warm.host_memory import torch


def extension(*, kernel: bool = True, gpu: bool = True, adapters: tuple[Any, ...] = ()) -> Any:
    """As much of an extension as is asked."""
    shell: Any = SimpleNamespace(user_ns={})
    if kernel:
        shell.kernel = SimpleNamespace(shell_handlers={}, control_handlers={}, io_loop=None)
    session = SimpleNamespace(gpu=SimpleNamespace(adapters=SimpleNamespace(active=list(adapters))) if gpu else None)  # fmt: skip
    return SimpleNamespace(shell=shell, session=session, output=Output(shell), cells=SimpleNamespace(running=False))  # fmt: skip


def test_where_there_is_none() -> None:
    """No kernel, no session, no GPU, no torch: no warm tier."""
    adapter = Torch(torch, SimpleNamespace())  # type: ignore[arg-type]
    for lacking in (extension(kernel=False, adapters=(adapter,)), extension(gpu=False), extension()):  # fmt: skip
        assert warm_tier(lacking) is None
    without = extension(adapters=(adapter,))
    without.session = None
    assert warm_tier(without) is None


def test_not_seen_from_its_start() -> None:
    """Torch whose exports nobody has watched is left to the cold tier, with the reason."""
    assert sys.modules["torch"] is torch
    adapter = Torch(torch, SimpleNamespace())  # type: ignore[arg-type]
    warm = warm_tier(extension(adapters=(adapter,)))
    assert warm is not None
    assert warm.why_not().startswith("torch used the GPU before gpushare was there")
    assert warm.away == 0
    assert warm.back().bytes == 0
    adapter.exports.hook()
    try:
        # This kernel has no event loop, and this process may have threads of other tests: it is not quiet, for another reason now.
        why = warm.why_not()
        assert why == "the kernel's event loop is of a kind that cannot be looked into" or why.startswith("the thread ")  # fmt: skip
    finally:
        adapter.exports.remove()
