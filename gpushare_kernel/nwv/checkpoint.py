"""What packing has reached, in a folder: after each round, whole or not at all. The same call goes on from it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from math import isfinite, nan
from pathlib import Path
from typing import Any

import msgspec
import torch

from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.nwv.pages import Weights
from gpushare_kernel.nwv.training import Progress, State

MOST, OLD = 8, 3600.0
"""Packings that nobody went on with: so many are kept, and those that were written to within so many seconds."""
_FILE = "packing.safetensors"
_KEY = "gpushare.nwv.packing"


class _Said(msgspec.Struct):
    key: str
    round: int
    best_round: int
    best_score: tuple[float, float]
    scores: list[dict[str, float | None]]
    """None where a metric was no number: JSON knows none such."""
    stopped: str


def default_folder(key: str) -> Path:
    """Return where a packing is kept where nobody names a folder: in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gpushare" / "nwv" / key


def key_of(cuts: Mapping[str, Weights], *choices: Any) -> str:
    """Return what tells packings apart: the models, their weights, and what was asked for. Data are not in it: see `Joint.go_on`."""
    digest = hashlib.sha256(repr(choices).encode())
    for name, one in cuts.items():
        member = one.member
        digest.update(f"{name} {member.code} {member.shift} {member.scale} {tuple(one.raw.shape)}".encode())  # fmt: skip
        for tensor in (one.raw, *one.private.values()):
            digest.update(tensor.contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:20]


def save(folder: Path, key: str, tables: Mapping[str, torch.Tensor], progress: Progress) -> None:
    """Keep it. What was kept before is replaced when this is on disk."""
    from safetensors.torch import save_file  # noqa: PLC0415  an extra

    scores = [{name: one if isfinite(one) else None for name, one in each.items()} for each in progress.scores]  # fmt: skip
    said = _Said(
        key, progress.round, progress.best_round, progress.best_score, scores, progress.stopped
    )
    names = list(tables)
    tensors = {f"table/{n}": tables[name] for n, name in enumerate(names)}
    for role, state in (("now", progress.state), ("best", progress.best)):
        tensors[f"{role}/pages"] = state.pages
        for n, name in enumerate(names):
            tensors[f"{role}/left/{n}"] = state.left[name]
            tensors |= {f"{role}/private/{n}/{key}": one for key, one in state.private[name].items()}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{_FILE}.{os.getpid()}"
    whole = {name: one.detach().clone().contiguous() for name, one in tensors.items()}
    save_file(whole, partial, {_KEY: _json(said)})
    partial.replace(folder / _FILE)


def _json(said: _Said) -> str:
    finite = tuple(max(one, -1e300) for one in said.best_score)  # JSON knows no infinity
    return msgspec.json.encode(msgspec.structs.replace(said, best_score=finite)).decode()


def load(folder: Path, key: str, names: list[str], device: torch.device) -> tuple[dict[str, torch.Tensor], Progress] | None:  # fmt: skip
    """Return tables and progress that are kept there; None where there is nothing.

    Raises
    ------
    BadDeclaration
        Where it is of another packing: it is not overwritten.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  an extra

    place = folder / _FILE
    if not place.exists():
        return None
    try:
        with safe_open(place, framework="pt", device=str(device)) as file:
            said = msgspec.json.decode((file.metadata() or {})[_KEY], type=_Said)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except (OSError, SafetensorError, KeyError, msgspec.DecodeError) as problem:
        msg = f"{place} cannot be read as a packing: {problem}. Delete it, or give another folder."
        raise BadDeclaration(msg) from None
    if said.key != key:
        msg = f"{folder} has another packing: of other models or weights, or with another budget, other options, another metric or loss. Give another folder=, or delete {place}."
        raise BadDeclaration(msg)
    now, best = (_state(tensors, role, names) for role in ("now", "best"))
    tables = {name: tensors[f"table/{n}"].cpu() for n, name in enumerate(names)}
    scores = [{name: nan if one is None else one for name, one in each.items()} for each in said.scores]  # fmt: skip
    return tables, Progress(
        now, best, said.best_score, said.best_round, said.round, scores, said.stopped
    )


def _state(tensors: Mapping[str, torch.Tensor], role: str, names: list[str]) -> State:
    private = {}
    for n, name in enumerate(names):
        prefix = f"{role}/private/{n}/"
        private[name] = {
            key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)
        }
    left = {name: tensors[f"{role}/left/{n}"] for n, name in enumerate(names)}
    return State(tensors[f"{role}/pages"], private, left)


def tidy(mine: Path) -> None:
    """Remove packings beside `mine`, in the user's cache, that nobody went on with: all but the last ones."""
    others = []
    for one in mine.parent.glob("*"):
        with contextlib.suppress(OSError):  # somebody else's packing is done in this moment
            others.append((one.stat().st_mtime, one))
    others = sorted((when, one) for when, one in others if one != mine)
    for when, one in others[: -(MOST - 1)]:
        if time.time() - when > OLD:  # else it may be under way
            forget(one)


def forget(folder: Path) -> None:
    """Remove a folder that was ours to choose."""
    shutil.rmtree(folder, ignore_errors=True)
