"""`pack`: several trained models become one bundle, and what that cost is measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isnan

from torch import nn

from gpushare_kernel.nwv.asked import check_bits, check_call
from gpushare_kernel.nwv.beside import plain
from gpushare_kernel.nwv.budget import Budget
from gpushare_kernel.nwv.fisher import Labels
from gpushare_kernel.nwv.matching import Method
from gpushare_kernel.nwv.packed import Packed
from gpushare_kernel.nwv.pages import Weights
from gpushare_kernel.nwv.refusal import DropTooLarge
from gpushare_kernel.nwv.report import PackReport
from gpushare_kernel.nwv.task import Task
from gpushare_kernel.nwv.training import Plan
from gpushare_kernel.nwv.work import Call, Work

OWN = 0.02
"""Part of all pages that may stay their model's own, the most important first, where the budget has room."""
_LESS = 0.8
"""Each ratio that is tried for `max_drop` is this part of the one before."""
_TRIES = 5


@dataclass(slots=True)
class Result:
    """A bundle and its report. `plain` makes the bundle without sharing that the report compares it with."""

    packed: Packed
    report: PackReport
    cuts: Mapping[str, Weights]

    def plain(self, bits: int) -> Packed:
        """Return all models in pages of so many bits (8 or 4), none of them shared, nothing trained."""
        check_bits(bits, none=False)
        return plain(self.cuts, bits)

    def _repr_html_(self) -> str:
        """Called by IPython."""
        return self.report._repr_html_()

    def __str__(self) -> str:
        return str(self.report)


def pack(
    models: Mapping[str, Task | nn.Module],
    *,
    ratio: float | None = None,
    pages: int | None = None,
    bytes: int | str | None = None,  # noqa: A002  what it is called
    bits: int | None = None,
    page_size: int | None = None,
    max_drop: float | None = None,
    plan: Plan = Plan(),  # noqa: B008  frozen
    labels: Labels = "true",
    method: Method = "best",
    own: float = OWN,
    folder: str | os.PathLike[str] | None = None,
    control: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Pack trained models into one set of pages.

    Parameters
    ----------
    models
        By name, each a `Task`. Where any is a bare module, all are merged without training, and nothing is known of how good they are.
    ratio, pages, bytes
        One of them: how many times smaller than the models by themselves, how many pages, or bytes at most (`"2MiB"`).
        All is counted that running needs: pages, scales, tables, and what is private to a model.
    bits
        8 or 4: pages of such codes; else weights stay as they are.
    page_size
        Weights of a page; by the largest model where it is not given.
    max_drop
        What any model may lose of its metric on validation data (0.03: three points of accuracy).
    plan
        Rounds, steps, kappa, learning rate.
    labels, method
        Of what the Fisher is, and how pages are matched.
    own
        Part of all pages that may stay one model's, where there is room.
    folder
        Where progress is kept, to go on after a kill; in the user's cache, until it is done, where none is given.
    control
        Whether each model is trained as long by itself too, to compare: it doubles the time.

    Raises
    ------
    BadDeclaration, BadModel
        For a budget, a task or a model that cannot be.
    DropTooLarge
        Where `max_drop` does not hold. It says which ratio does: smaller ones are tried, at the price of a packing each.
    PackingStopped
        Where memory ran out. The same call goes on from the last round.
    """
    call = Call(given=models, budget=Budget(ratio, pages, bytes), bits=bits, page_size=page_size, plan=plan, labels=labels, method=method, own=own, folder=folder, control=control, seed=seed, progress=progress, max_drop=max_drop)  # fmt: skip
    check_call(call)
    found = _made(call)
    if max_drop is not None and not found.report.holds(max_drop):
        raise _too_large(call, found.report, max_drop)
    return found


def _made(call: Call) -> Result:
    work = Work(call)
    packed, report = work.done()
    return Result(packed, report, work.apart)


def _too_large(call: Call, report: PackReport, max_drop: float) -> DropTooLarge:
    """Return the refusal, with a ratio that was tried and holds."""
    for name, drop in report.drops.items():
        if isnan(drop):
            return DropTooLarge(f"model {name}: its metric is no number on validation data once it is packed, so max_drop={max_drop:g} cannot be kept. Have the metric return a number for every model.", report)  # fmt: skip
    worst = max(report.drops, key=lambda name: report.drops[name])
    said = f"model {worst} loses {report.drops[worst]:.3g} on validation data at ratio {report.ratio:.3g}, and max_drop is {max_drop:g}."
    ratio, tried = report.ratio, []
    for _ in range(_TRIES):
        ratio = int(100 * _LESS * ratio) / 100  # what is advised is what was tried
        if ratio <= 1:
            break
        title = f"{worst} lost {report.drops[worst]:.3g}, trying ratio {ratio:g}"
        found = _made(replace(call, budget=Budget(ratio=ratio), folder=None, control=False, title=title))  # fmt: skip
        tried.append(f"{found.report.ratio:.3g}")
        if found.report.holds(max_drop):
            advice = f"Ratio {ratio:g} was tried and holds (worst {max(found.report.drops.values()):.3g}): write ratio={ratio:g}, or take that bundle: this error's result."
            return DropTooLarge(f"{said} {advice}", report, ratio, found)
    return DropTooLarge(f"{said} None of these held either: {', '.join(tried) or 'none below it is over 1'}. Train longer (plan=Plan(rounds=30)), allow more, or leave {worst} out.", report)  # fmt: skip
