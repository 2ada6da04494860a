"""gpushare: share one GPU between many Jupyter notebooks.

    import gpushare_kernel as gpushare

    with gpushare.lane(persistent="2GiB", ephemeral="1GiB") as lane:
        for batch in lane.steps(loader):
            ...

The names below are imported when first used: a kernel that never asks for a lane pays nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpushare_kernel import nwv, realtime
    from gpushare_kernel.client.api import current_lane, lane, reports, step
    from gpushare_kernel.client.lanes import Lane
    from gpushare_kernel.core.errors import (
        BadDeclaration,
        BadSize,
        BadTime,
        BrokerUnavailable,
        GpushareError,
        Refused,
        UserError,
        WaitEnded,
    )

__version__ = "0.1.0"

__all__ = [
    "BadDeclaration",
    "BadSize",
    "BadTime",
    "BrokerUnavailable",
    "GpushareError",
    "Lane",
    "Refused",
    "UserError",
    "WaitEnded",
    "__version__",
    "current_lane",
    "lane",
    "nwv",
    "realtime",
    "reports",
    "step",
]

_ROOMS = ("nwv", "realtime")
_HOMES = {
    "lane": "gpushare_kernel.client.api",
    "reports": "gpushare_kernel.client.api",
    "step": "gpushare_kernel.client.api",
    "current_lane": "gpushare_kernel.client.api",
    "Lane": "gpushare_kernel.client.lanes",
}


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES.get(name, "gpushare_kernel.core.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
