"""What packing cannot go on with.

UserError
├── BadDeclaration          budgets and tasks that make no sense (of core)
├── BadModel                weights that cannot be in pages
├── DropTooLarge            the bundle loses more than `max_drop`
└── PackingStopped          memory ran out; what was reached is kept
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpushare_kernel.core.errors import UserError

if TYPE_CHECKING:
    from gpushare_kernel.nwv.packing import Result
    from gpushare_kernel.nwv.report import PackReport


class BadModel(UserError):
    """Weights that cannot be in pages."""


class DropTooLarge(UserError):
    """The bundle loses more on validation than `max_drop`.

    Attributes
    ----------
    report
        Of the bundle that was refused.
    holds
        The largest ratio that was tried and held; None where none did.
    result
        What `pack` would return for that ratio, without the control; None where none held.
    """

    def __init__(
        self,
        message: str,
        report: PackReport,
        holds: float | None = None,
        result: Result | None = None,
    ) -> None:
        super().__init__(message)
        self.report, self.holds, self.result = report, holds, result


class PackingStopped(UserError):
    """Memory ran out while packing. `folder` has what was reached, if anything (None: not yet): the same call goes on from there."""

    def __init__(self, message: str, folder: Path | None) -> None:
        super().__init__(message)
        self.folder = folder
