"""What was measured is kept in the user's cache: a file for each model, form of input and machine."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import types
from pathlib import Path
from typing import Any

import msgspec

from gpushare_kernel.realtime import host, payload
from gpushare_kernel.realtime.chain import Chain
from gpushare_kernel.realtime.payload import is_array, is_tensor
from gpushare_kernel.realtime.profile import Profile

_VERSION = 3
"""Of the file, and of how we measure: another one is measured again."""
_DIGITS = 20


def folder() -> Path:
    """Return where measurements are kept; it may not be there."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gpushare" / "realtime"


def place_of(chain: Chain, example: Any) -> Path:
    """Return the file for a model with such an input on this machine."""
    said = (f"{_VERSION} {host.described()} {host.cores()} {payload.form_of(example)}").encode()
    digest = hashlib.sha256(said + fingerprint(chain)).hexdigest()[:_DIGITS]
    return folder() / f"{digest}.json"


def fingerprint(chain: Chain) -> bytes:
    """Return what tells models of different costs apart: their code and the forms of their weights, not what is in these."""
    import cloudpickle  # noqa: PLC0415  an extra

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, obj: Any) -> str | None:
            """Have weights told by their form, and code by what it does."""
            return _told(obj)

    digest = hashlib.sha256()
    for piece in chain.pieces:
        buffer = io.BytesIO()
        with contextlib.suppress(Exception):  # cannot be sent: said where it is to be sent
            Pickler(buffer).dump(piece.call)
        digest.update(piece.name.encode() + b"\0" + buffer.getvalue())
    return digest.digest()


def _told(thing: Any) -> str | None:
    """Return the words for what a pickle would tell too exactly; None for the rest.

    That is what is in weights, where code was written, and the number that cloudpickle draws for a class of a notebook.
    """
    if isinstance(thing, types.CodeType):
        return _code(thing)
    if isinstance(thing, type) and thing.__module__ == "__main__":
        methods = (getattr(value, "__code__", None) or value for value in vars(thing).values())
        said = [_code(one) if isinstance(one, types.CodeType) else type(one).__name__ for one in methods]  # fmt: skip
        return (
            f"class {thing.__qualname__} {[base.__qualname__ for base in thing.__bases__]} {said}"
        )
    if is_tensor(thing) or is_array(thing):
        return f"{type(thing).__name__} {thing.dtype} {tuple(thing.shape)}"
    return None


def _code(code: types.CodeType) -> str:
    inner = [_code(one) if isinstance(one, types.CodeType) else repr(one) for one in code.co_consts]
    return f"code {code.co_code.hex()} {code.co_names} {code.co_varnames} {inner}"


def load(path: Path) -> Profile | None:
    """Return what is kept there; None where there is nothing, or nothing that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Profile)
    except (OSError, msgspec.DecodeError):
        return None


def save(path: Path, profile: Profile) -> None:
    """Keep it. Where the cache cannot be written it is measured again next time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(msgspec.json.encode(profile))
        Path(file.name).replace(path)  # whole, or not at all
