"""The two kernelspecs we write, and how they go away again.

`python3` with our provisioner is for everything built on jupyter_client. Editors that start kernels by
themselves (VS Code among them) read only argv: for those is `gpushare`, whose argv is our launcher.
What was there before is kept beside, and comes back.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from ipykernel.kernelspec import RESOURCES, get_kernel_dict

from gpushare_kernel.app import placing
from gpushare_kernel.core.errors import BadDeclaration

NATIVE, LAUNCHED = "python3", "gpushare"
_MARK = "gpushare"
_KEPT = "kernel.json.before-gpushare"
_STANZA = {"provisioner_name": "gpushare", "config": {}}
_OTHERS = (None, "local-provisioner", "gpushare")


def install(kernels: Path) -> list[str]:
    """Write both kernelspecs below `kernels`; return what was done, line by line."""
    return [_install_native(kernels / NATIVE), _install_launched(kernels / LAUNCHED)]


def planned(kernels: Path) -> list[tuple[Path, str]]:
    """Return both files as `install` would write them; what is refused there is refused here."""
    native = kernels / NATIVE / "kernel.json"
    specs = ((native, _native(native)), (kernels / LAUNCHED / "kernel.json", _launched()))
    return [(path, _text(spec)) for path, spec in specs]


def uninstall(kernels: Path) -> list[str]:
    """Take both back; return what was done. Idempotent."""
    done = [_uninstall(kernels / NATIVE), _uninstall(kernels / LAUNCHED)]
    return [line for line in done if line]


def is_ours(spec: dict[str, Any]) -> bool:
    """Say whether a kernelspec was written by `install`."""
    return bool(spec.get("metadata", {}).get(_MARK, {}).get("installed"))


def shares(folder: Path) -> bool:
    """Say whether the kernelspec in `folder` was written by `install`."""
    found = _read(folder / "kernel.json")
    return found is not None and is_ours(found)


def _install_native(folder: Path) -> str:
    path = folder / "kernel.json"
    spec, found = _native(path), _read(path)
    if found is not None and not is_ours(found):
        shutil.copy2(path, folder / _KEPT)
    _write(folder, spec)
    kept = f" (what was there is kept as {_KEPT})" if (folder / _KEPT).exists() else ""
    return f"{path}: Python 3 notebooks share the device{kept}"


def _install_launched(folder: Path) -> str:
    _write(folder, _launched())
    return (
        f"{folder / 'kernel.json'}: for editors that start kernels by themselves, such as VS Code"
    )


def _native(path: Path) -> dict[str, Any]:
    """Return the spec of `python3` with our provisioner: what is at `path`, or a plain one."""
    found = _read(path)
    if found is not None:
        other = found.get("metadata", {}).get("kernel_provisioner", {}).get("provisioner_name")
        if other not in _OTHERS:
            msg = f"{path} names the provisioner {other!r}, and a kernel has one. Remove that, or choose another place."
            raise BadDeclaration(msg)
    return _shared(found or get_kernel_dict())


def _launched() -> dict[str, Any]:
    spec = _shared(get_kernel_dict())
    spec["display_name"] = "Python 3 (shared GPU)"
    spec["argv"] = [sys.executable, "-m", "gpushare_kernel.app.launcher", "-f", "{connection_file}"]
    return spec


def _text(spec: dict[str, Any]) -> str:
    return json.dumps(spec, indent=1) + "\n"


def _uninstall(folder: Path) -> str | None:
    path, kept = folder / "kernel.json", folder / _KEPT
    found = _read(path)
    if found is None or not is_ours(found):
        if (
            kept.exists()
        ):  # somebody wrote a newer one over ours: that stays, the older one is of no use
            kept.unlink()
            return f"{kept}: removed; {path} is not ours any more and stays"
        return None
    if kept.exists():
        kept.replace(path)
        return f"{path}: as it was before"
    shutil.rmtree(folder)
    return f"{folder}: removed"


def _shared(spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {
        **spec.get("metadata", {}),
        "kernel_provisioner": _STANZA,
        _MARK: {"installed": True},
    }
    return {**spec, "metadata": metadata}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as problem:
        msg = f"{path} is no kernelspec ({problem}). Mend or remove it."
        raise BadDeclaration(msg) from problem
    if not isinstance(spec, dict):
        msg = (
            f"{path} must hold a JSON object, but holds a {type(spec).__name__}. Mend or remove it."
        )
        raise BadDeclaration(msg)
    return spec


def _write(folder: Path, spec: dict[str, Any]) -> None:
    """Write a kernelspec so that a server that lists kernels meanwhile sees the old one or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    for resource in Path(RESOURCES).iterdir():
        if resource.is_file() and not (folder / resource.name).exists():
            shutil.copyfile(resource, folder / resource.name)
    placing.put(folder / "kernel.json", _text(spec))
