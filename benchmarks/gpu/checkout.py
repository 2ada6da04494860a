"""Make a checkout that nobody installed look installed to the processes of a benchmark, in a folder of its own.

A machine without a network has our dependencies on PYTHONPATH and no pip to install us with. What an installation
would add is little: the entry point of the provisioner (a `.dist-info`), the packages on the path, and the startup
file of IPython. Nothing outside the folder is written.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("", "magics", "widgets")
"""Folders of a checkout that hold packages of ours."""
STARTUP = Path("etc/ipython/startup/00-gpushare.py")
_GROUP = "jupyter_client.kernel_provisioners"


def announced() -> bool:
    """Say whether this interpreter finds our provisioner by itself."""
    return any(point.name == "gpushare" for point in importlib.metadata.entry_points(group=_GROUP))


def lay_out(folder: Path, root: Path = ROOT) -> Path:
    """Write the `.dist-info` of the checkout at `root` below `folder`; return the folder for the path."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"].replace("-", "_"), project["version"]
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    (info / "entry_points.txt").write_text(_entry_points(project), encoding="utf-8")
    return folder


def search_path(folder: Path, root: Path = ROOT, existing: Sequence[str] = ()) -> list[str]:
    """Return what PYTHONPATH must name: `folder`, the checkout's packages, then what it named before."""
    wanted = [str(folder), *(str((root / package).resolve()) for package in PACKAGES)]
    return [*wanted, *(entry for entry in existing if entry and entry not in wanted)]


def environment(folder: Path, root: Path = ROOT) -> dict[str, str]:
    """Return the variables of a process that is to find the checkout, having laid it out where that is needed."""
    if not announced():
        lay_out(folder, root)
    existing = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {
        "PYTHONPATH": os.pathsep.join(search_path(folder, root, existing)),
        "JUPYTER_PATH": str(_kernelspec(folder)),
    }


def _kernelspec(folder: Path) -> Path:
    """Write the usual kernelspec of this interpreter below `folder`; return the folder for JUPYTER_PATH."""
    place = folder / "jupyter" / "kernels" / "python3"
    place.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
    (place / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder / "jupyter"


def adopt(path: str) -> None:
    """Have this process look where the children will: `path` is their PYTHONPATH."""
    for entry in reversed(path.split(os.pathsep)):
        if entry and entry not in sys.path:
            sys.path.insert(0, entry)


def place_startup(ipython: Path, root: Path = ROOT) -> bool:
    """Put the startup file into the profile below `ipython`, unless the environment has one; say whether it did."""
    if (Path(sys.prefix) / STARTUP).is_file():
        return False
    target = ipython / "profile_default" / "startup" / STARTUP.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / STARTUP, target)
    return True


def _entry_points(project: dict) -> str:
    lines = []
    groups = {**project.get("entry-points", {}), "console_scripts": project.get("scripts", {})}
    for group, points in groups.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items()), ""]
    return "\n".join(lines)
