"""What is new in a scene: the least that the browser needs to know to have it too. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Scene: TypeAlias = Mapping[str, Any]
"""What `scene()` makes of a snapshot: plain lists and dicts."""

KEYS = {"devices": "id", "time": "device", "shares": "user", "queue": "job", "sessions": "id"}
"""What tells the entries of a section apart. Any other section is sent whole where it changed."""


def changes(before: Scene | None, after: Scene) -> dict[str, Any] | None:
    """Return what makes `after` of `before`; None where nothing happened but time.

    Returns
    -------
    dict
        `at`; `whole`: sections to be taken as they are; `parts`: for a section `order`, the keys of its entries (absent
        where it is as before), and `items`, those that are new or differ; `gone`: sections that have nothing to say any
        more. Without a scene before, `fresh` is true and every section is whole.
    """
    if before is None:
        return {"at": after.get("at"), "fresh": True, "whole": _sections(after)}
    whole: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    for name, now in _sections(after).items():
        if name in before and before[name] == now:
            continue
        key = KEYS.get(name)
        if key is None or name not in before or not _keyed(key, before[name], now):
            whole[name] = now
        else:
            parts[name] = _part(key, before[name], now)
    gone = [name for name in _sections(before) if name not in after]
    found = {"whole": whole, "parts": parts, "gone": gone}
    said = {name: value for name, value in found.items() if value}
    return {"at": after.get("at"), **said} if said else None


def _sections(scene: Scene) -> dict[str, Any]:
    return {name: value for name, value in scene.items() if name != "at"}


def _keyed(key: str, *lists: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether an entry is known by its key in each of the lists: two alike could not be told apart."""
    return all(len({entry[key] for entry in entries}) == len(entries) for entries in lists)


def _part(
    key: str, before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    known = {entry[key]: entry for entry in before}
    order = [entry[key] for entry in now]
    part: dict[str, Any] = {"items": [entry for entry in now if known.get(entry[key]) != entry]}
    if order != list(known):
        part["order"] = order
    return part
