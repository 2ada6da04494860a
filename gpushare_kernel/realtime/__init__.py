"""DART (Xiang and Kim, RTSS 2019): deadlines that are proven at admission and held at run time, beside best effort.

Pure, and importing core values only: `model`, `taskset`, `configurations`, `allocation`, `response`, `analysis`, `simulation`.
The rest runs: `chain` and `profile` make a task of a model, `node_main` is a node's process, `pipeline` is what a notebook
uses. The names below are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpushare_kernel.realtime.chain import BadModel
    from gpushare_kernel.realtime.measurement import measure
    from gpushare_kernel.realtime.node import NodeDied
    from gpushare_kernel.realtime.nodes import Nodes
    from gpushare_kernel.realtime.payload import ShapeChanged
    from gpushare_kernel.realtime.pipeline import Pipeline
    from gpushare_kernel.realtime.placement import Fixed, OneNode
    from gpushare_kernel.realtime.profile import Profile
    from gpushare_kernel.realtime.report import PipelineReport

__all__ = [
    "BadModel",
    "Fixed",
    "NodeDied",
    "Nodes",
    "OneNode",
    "Pipeline",
    "PipelineReport",
    "Profile",
    "ShapeChanged",
    "measure",
]

_HOMES = {
    "BadModel": "chain",
    "Fixed": "placement",
    "NodeDied": "node",
    "Nodes": "nodes",
    "OneNode": "placement",
    "Pipeline": "pipeline",
    "PipelineReport": "report",
    "Profile": "profile",
    "ShapeChanged": "payload",
    "measure": "measurement",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
