"""`%gpushare rescue`: what is set aside goes to a file, straight from host memory, by the names that the notebook has for it."""

from __future__ import annotations

import ctypes
import os
import shlex
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from gpushare_kernel.client.arrays import is_one
from gpushare_kernel.client.warm.aside import Aside, Entry
from gpushare_kernel.core.errors import UserError
from gpushare_kernel.wire import parking_texts

_DEPTH = 20
_DEFAULT = "gpushare-rescue{}.pt"
_DICTS = {id(dict), id(OrderedDict), id(defaultdict)}


def save(torch: Any, aside: Aside, namespace: Mapping[str, object], file: str | None) -> str:
    """Save what is away, and return what to say of it."""
    path = _place(file)
    with torch._C.DisableTorchFunction(), torch.no_grad():
        host = _Host(torch, aside)
        found: dict[str, Any] = {}
        left: set[int] = set()
        for name, tensor in named(torch, namespace):
            here = host.tensor(tensor)
            if here is not None:
                found[name] = here
            elif torch._C.TensorBase.device.__get__(tensor).type != "cpu":
                left.add(id(tensor))
        found.update(host.unnamed())
    _write(torch, found, path)
    return parking_texts.rescued_text(len(found), aside.size, str(path), len(left))


def named(torch: Any, namespace: Mapping[str, object]) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a notebook by name: `x`, `model.0.weight`, `optimizer.state.0.exp_avg`, `batches.3`. Runs no code of the user's."""
    tensors = {id(torch.Tensor), id(torch.nn.Parameter)}
    todo: list[tuple[str, object, int]] = [
        (name, value, 0)
        for name, value in [*namespace.items()]
        if type(name) is str and not name.startswith("_")
    ]
    inside: set[int] = set()
    while todo:
        name, value, depth = todo.pop(0)
        if id(type(value)) in tensors:
            yield name, value
        elif depth < _DEPTH and id(value) not in inside:
            inside.add(id(value))
            todo += [(f"{name}.{key}", one, depth + 1) for key, one in _parts(torch, value)]


def _parts(torch: Any, value: Any) -> list[tuple[object, object]]:
    kind = type(value)
    if id(kind) in _DICTS:
        return [(key, one) for key, one in dict.items(value) if type(key) in (str, int)]
    if kind is list or kind is tuple:
        return [*enumerate(value)]
    if is_one(kind, torch.nn.Module):
        own = object.__getattribute__(value, "__dict__")
        parts = ("_parameters", "_buffers", "_modules")
        return [item for part in parts for item in (own.get(part) or {}).items()]
    if is_one(kind, torch.optim.Optimizer):
        own = object.__getattribute__(value, "__dict__")
        groups, state = own.get("param_groups", ()), own.get("state", {})
        order = [one for group in groups for one in group["params"]]
        return [("state", {n: state[one] for n, one in enumerate(order) if one in state})]
    return []


class _Host:
    """The lease, seen as tensors of the host. They share memory as the originals do."""

    def __init__(self, torch: Any, aside: Aside) -> None:
        self._torch, self._aside = torch, aside
        self._base: Any = torch._C.TensorBase
        self._by = {entry.storage._cdata: entry for entry in aside.entries}
        self._bytes: dict[int, Any] = {}
        self._used: set[int] = set()

    def tensor(self, tensor: Any) -> Any:
        """Return a tensor's twin on the host; None where it is not away, or is of a kind that its bytes do not tell."""
        base = self._base
        try:
            key = base.untyped_storage(tensor)._cdata
        except (NotImplementedError, RuntimeError):
            return None
        entry = self._by.get(key)
        if entry is None or base.is_quantized.__get__(tensor):
            return None
        self._used.add(key)
        twin = self._torch.empty(0, dtype=base.dtype.__get__(tensor), device="cpu")
        place = (base.storage_offset(tensor), base.size(tensor), base.stride(tensor))
        base.set_(twin, self._whole(entry).untyped_storage(), *place)
        twin = base.conj(twin) if base.is_conj(tensor) else twin
        return base._neg_view(twin) if base.is_neg(tensor) else twin

    def unnamed(self) -> Iterator[tuple[str, Any]]:
        """Yield what no name leads to, as bytes."""
        left = (entry for key, entry in self._by.items() if key not in self._used)
        for number, entry in enumerate(left, 1):
            yield f"unnamed.{number}", self._whole(entry)

    def _whole(self, entry: Entry) -> Any:
        key = entry.storage._cdata
        if key not in self._bytes:
            place = (ctypes.c_char * entry.size).from_address(self._aside.lease.address + entry.offset)  # fmt: skip
            self._bytes[key] = self._torch.frombuffer(place, dtype=self._torch.uint8)
        return self._bytes[key]


def _place(file: str | None) -> Path:
    words = shlex.split(file or "")
    if not words:
        numbers = ("", *(f"-{n}" for n in range(2, 1000)))
        return next(p for n in numbers if not (p := Path(_DEFAULT.format(n))).exists())
    path = Path(words[0]).expanduser()
    if len(words) > 1 or path.exists():
        what = "say one file" if len(words) > 1 else f"{path} exists already, and is not overwritten"  # fmt: skip
        msg = f"{what}: %gpushare rescue tensors.pt, or tensors.safetensors."
        raise UserError(msg)
    return path


def _write(torch: Any, found: dict[str, Any], path: Path) -> None:
    """Write beside, then rename: half a file must not look like a whole one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".safetensors":
            # It knows no views and no shared memory: each tensor is saved by itself.
            whole = {name: one.resolve_conj().resolve_neg().contiguous().clone() for name, one in found.items()}  # fmt: skip
            import_module("safetensors.torch").save_file(whole, str(beside))
        else:
            torch.save(found, str(beside))
        beside.replace(path)
    except ModuleNotFoundError as missing:
        msg = (
            f"{missing.name} is not installed here: %gpushare rescue tensors.pt needs nothing else."
        )
        raise UserError(msg) from missing
    except OSError as problem:
        msg = f"{path} cannot be written ({problem}). Name another place: %gpushare rescue /tmp/tensors.pt."
        raise UserError(msg) from problem
    finally:
        beside.unlink(missing_ok=True)
