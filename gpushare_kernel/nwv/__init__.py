"""NWV (Lee and Nirjon, MobiSys 2020): several models in one set of weight pages, and nothing kept beside it.

`pack` makes a bundle of trained models: it matches their pages by what each weight matters, trains what is shared, and says
what that cost. Pure torch, and importing core values only. The names below are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpushare_kernel.nwv.bundle import Bundle
    from gpushare_kernel.nwv.packed import BadBundle, Member, Packed, Piece, Sizes
    from gpushare_kernel.nwv.packing import Result, pack
    from gpushare_kernel.nwv.refusal import DropTooLarge, PackingStopped
    from gpushare_kernel.nwv.report import PackReport
    from gpushare_kernel.nwv.task import Task, accuracy
    from gpushare_kernel.nwv.training import Plan

__all__ = [
    "BadBundle",
    "Bundle",
    "DropTooLarge",
    "Member",
    "PackReport",
    "Packed",
    "PackingStopped",
    "Piece",
    "Plan",
    "Result",
    "Sizes",
    "Task",
    "accuracy",
    "pack",
]

_HOMES = {
    "BadBundle": "packed",
    "Bundle": "bundle",
    "DropTooLarge": "refusal",
    "Member": "packed",
    "PackReport": "report",
    "Packed": "packed",
    "PackingStopped": "refusal",
    "Piece": "packed",
    "Plan": "training",
    "Result": "packing",
    "Sizes": "packed",
    "Task": "task",
    "accuracy": "task",
    "pack": "packing",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
