"""What `pack` may be asked: refused here, before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import NoReturn, get_args

from torch import nn

from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.nwv.fisher import Labels
from gpushare_kernel.nwv.fit import check_models
from gpushare_kernel.nwv.matching import Method
from gpushare_kernel.nwv.quantised import LEVELS
from gpushare_kernel.nwv.task import Task, check_loaders, device_of, tasks_of
from gpushare_kernel.nwv.training import Plan
from gpushare_kernel.nwv.work import Call

_GIVE = "Give {name: Task(model, train, validate)}"


def check_call(call: Call) -> None:
    """Refuse what cannot be packed.

    Raises
    ------
    BadDeclaration, BadModel
        With the rule, the value and what to write.
    """
    _check_models(call)
    _check_options(call)
    _check_choices(call)
    if call.folder is not None:
        _check_folder(Path(call.folder))
    check_models(call.modules)
    devices = {str(device_of(module)) for module in call.modules.values()}
    if len(devices) > 1:
        _refuse(f"models are on {' and '.join(sorted(devices))}, and pages are in one place", "Move them to one device")  # fmt: skip
    for name, one in tasks_of(call.given).items():
        check_loaders(name, one)


def check_bits(bits: object, *, none: bool = True) -> None:
    """Refuse bits that pages cannot have."""
    if bits not in LEVELS and not (none and bits is None):
        _refuse(f"bits must be 8 or 4, and {bits!r} is not", "Leave it out for pages like the weights" if none else "Write 8")  # fmt: skip


def _check_models(call: Call) -> None:
    given: object = call.given
    if not isinstance(given, Mapping):
        _refuse(f"models come by name, and this is a {type(given).__name__}", _GIVE)
    if not given:
        _refuse("there is nothing to pack", _GIVE)
    for name, module in call.modules.items():
        if not isinstance(name, str):
            _refuse(f"models are named by texts, and {name!r} is none", _GIVE)
        if not isinstance(module, nn.Module):
            _refuse(f"{name} must be a Task or a torch module, and is a {type(module).__name__}", "Write Task(model, train, validate)")  # fmt: skip
    bare = [name for name, one in call.given.items() if not isinstance(one, Task)]
    if bare and call.max_drop is not None:
        _refuse(f"max_drop={call.max_drop} cannot be checked: {', '.join(bare)} came without data", "Give Task(model, train, validate), or leave max_drop out")  # fmt: skip


def _check_options(call: Call) -> None:
    check_bits(call.bits)
    size: object = call.page_size
    if size is not None and not (isinstance(size, int) and size > 1 and size % 2 == 0):
        _refuse(f"page_size must be an even number of weights, and {size!r} is not", "Leave it out, or write 256")  # fmt: skip
    own: object = call.own
    if not (isinstance(own, int | float) and 0 <= own < 1):
        _refuse(f"own is the part of all pages that stay one model's, from 0 up to 1, and {own!r} is not", "Leave it out")  # fmt: skip
    drop: object = call.max_drop
    if drop is not None and not (isinstance(drop, int | float) and isfinite(drop)):
        _refuse(f"max_drop is what a metric may lose on validation data, a number, and {drop!r} is none", "Write max_drop=0.03 for three points of accuracy")  # fmt: skip
    plan: object = call.plan
    if not isinstance(plan, Plan):
        _refuse(f"plan must be a Plan, and is a {type(plan).__name__}", "Write plan=gpushare.nwv.Plan(rounds=30), or leave it out")  # fmt: skip


def _check_choices(call: Call) -> None:
    for option, given, choices in (("method", call.method, get_args(Method)), ("labels", call.labels, get_args(Labels))):  # fmt: skip
        if given not in choices:
            _refuse(f"{option} is {' or '.join(choices)}, and {given!r} is none of them", "Leave it out")  # fmt: skip


def _check_folder(folder: Path) -> None:
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        _refuse(f"folder={str(folder)!r} is where progress is kept, and {there} is a file", "Give a folder, there already or not")  # fmt: skip
    if not os.access(there, os.W_OK | os.X_OK):
        _refuse(f"folder={str(folder)!r} is where progress is kept, and {there} cannot be written to", "Give one of your own")  # fmt: skip


def _refuse(rule: str, mend: str) -> NoReturn:
    msg = f"{rule}. {mend}."
    raise BadDeclaration(msg)
