"""What was measured, as files: one JSON object a row, and on request all of them in one file that is easy to carry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]
TAIL = 200
"""Lines of a crashed row's output that are kept."""


def keep(folder: Path, name: str, result: Mapping[str, Any]) -> None:
    """Write a row's result; whoever is stopped meanwhile leaves the former one or the new one."""
    _write(folder / f"{name}.json", result)
    (folder / f"{name}.log").unlink(missing_ok=True)


def keep_log(folder: Path, name: str, text: str) -> None:
    """Keep the end of what a row said that gave no result."""
    lines = text.splitlines()[-TAIL:]
    (folder / f"{name}.log").write_text("\n".join(lines) + "\n", encoding="utf-8")


def gather(folder: Path, target: Path) -> None:
    """Write all results and logs of `folder` into one file."""
    logs = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.log"))}
    _write(target, {"rows": found(folder), "logs": logs})


def found(place: Path) -> dict[str, Result]:
    """Return row -> result of a folder, or of a gathered file; what cannot be read is no result."""
    if place.is_dir():
        pairs = [(path.stem, _read(path)) for path in sorted(place.glob("*.json"))]
        return {name: result for name, result in pairs if "figures" in result}
    rows = _read(place).get("rows", {})
    return {name: result for name, result in rows.items() if "figures" in result}


def usable(result: Mapping[str, Any], *, quick: bool, device: str) -> bool:
    """Say whether a former result stands: measured, on the same device, and no short run where a full one is asked for."""
    if result.get("device") != device or "not_measured" in result:
        return False
    return quick or not result.get("quick", False)


def _read(path: Path) -> Result:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)
