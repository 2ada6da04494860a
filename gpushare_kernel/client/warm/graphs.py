"""CUDA graphs that live: a replay uses the addresses of the capture, those of ordinary tensors too."""

from __future__ import annotations

import gc
from typing import Any


def any_alive(torch: Any) -> bool:
    """Say whether a captured graph can be replayed here. What cannot be seen has a memory pool of its own (`pools`)."""
    base = getattr(torch._C, "_CUDAGraph", None)
    if base is None:
        return False
    kinds = {id(base)}
    todo = [base, torch.cuda.CUDAGraph]
    while todo:
        kind = todo.pop()
        kinds.add(id(kind))
        todo += [one for one in type.__subclasses__(kind) if id(one) not in kinds]
    return any(id(type(one)) in kinds for one in gc.get_objects())
