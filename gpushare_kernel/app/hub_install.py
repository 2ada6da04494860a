"""What `install --hub` writes, and how it goes away again: a service, a mark, and a few lines for the hub.

Everything is planned first; what was written is noted beside it, with a hash, so that what an administrator has changed since is
kept aside and not removed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpushare_kernel import __version__
from gpushare_kernel.app import placing, unit
from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.hub import snippet
from gpushare_kernel.hub.settings import TLJH
from gpushare_kernel.transport.places import (
    SERVICE,
    SYSTEM_LOGS,
    SYSTEM_MARK,
    SYSTEM_RUNTIME,
    SYSTEM_STATE,
)

NOTE = SYSTEM_MARK / "installed.json"
_KEPT = (SYSTEM_STATE, SYSTEM_LOGS, SYSTEM_RUNTIME)
"""Folders that systemd made for the broker: accounts and what was learned, the log and the audit, and what is empty of sockets by then."""
_CHANGED = ".changed-since-gpushare"


@dataclass(frozen=True, slots=True)
class Text:
    """A file of ours."""

    path: Path
    text: str
    why: str


@dataclass(slots=True)
class Plan:
    """What is to be written. Paths are those of the machine it is for; `root` is where that machine's files are."""

    root: Path
    files: list[Text] = field(default_factory=list)
    #: Configuration files of hubs that get a block at their end.
    blocks: list[Path] = field(default_factory=list)
    #: Those of them that nobody named and that are a user's: a hub's own account, or anybody who has a process called like one.
    users: set[Path] = field(default_factory=set)

    def at(self, path: Path) -> Path:
        """Return where `path` is now."""
        return self.root / path.relative_to("/")


def plan(
    root: Path,
    python: str,
    startup: Path,
    arguments: Sequence[str],
    hubs: Sequence[Path],
    *,
    named: bool = True,
) -> Plan:
    """Plan an installation below `root`.

    Parameters
    ----------
    root
        `/`, or where an image's files are.
    python
        The interpreter of the broker.
    startup
        A file of ours in the servers' environment.
    arguments
        The broker's.
    hubs
        Configuration files of hubs, as they are called on that machine. Those of an earlier plan stay while they are there.
    named
        Whether an administrator named them: else one of a user's that cannot be written to stops nobody's installation.
    """
    made = Plan(root)
    made.files += [
        Text(
            SYSTEM_MARK / SERVICE,
            f"{unit.NAME}\n",
            "marks a system installation: nobody starts a broker of their own",
        ),
        Text(unit.PLACE, unit.unit(python, arguments), "the broker, as a service"),
    ]
    text = snippet.snippet(startup)
    tljh = snippet.place_in_tljh(made.at(TLJH))
    if tljh is not None:
        place = Path("/") / tljh.relative_to(root)
        made.files.append(Text(place, text, "TLJH's servers start kernels that share"))
    else:
        made.files.append(Text(snippet.PLACE, text, "what a hub loads: its servers' kernels share"))
        noted = map(Path, _note(made.at(NOTE))["blocks"])
        made.blocks += dict.fromkeys([*hubs, *(one for one in noted if _is_there(made.at(one)))])
        made.users = set() if named else {one for one in hubs if _is_a_users(made.at(one))}
    return made


def write(planned: Plan) -> list[str]:
    """Carry a plan out; return what was done, line by line. Idempotent; what an earlier plan wrote and this one does not is taken back.

    Raises
    ------
    BadDeclaration
        Where a hub's configuration cannot be read, or is not one that root should write to.
    """
    before = _note(planned.at(NOTE))
    blocks, left = _texts(planned)
    kept = {str(one.path) for one in planned.files}
    old = {path: known for path, known in before["files"].items() if path not in kept}
    done = [line for path, known in old.items() if (line := _take(planned, Path(path), known))]
    done += _without_blocks(planned, {*map(Path, before["blocks"])} - blocks.keys())
    for one in planned.files:
        placing.put(planned.at(one.path), one.text)
        done.append(f"{one.path}: {one.why}")
    for path, (file, text) in blocks.items():
        file.write(snippet.with_block(text))
        done.append(f"{path}: loads {snippet.PLACE}, by three lines at its end")
    placing.put(planned.at(NOTE), note_of(planned))
    return [*done, *left]


def note_of(planned: Plan) -> str:
    """Return what is noted of a plan, by which it is taken back later."""
    note = {
        "version": __version__,
        "files": {str(one.path): _hash(one.text) for one in planned.files},
        "blocks": sorted(map(str, planned.blocks)),
    }
    return json.dumps(note, indent=1) + "\n"


def take_back(root: Path, hubs: Sequence[Path]) -> list[str]:
    """Take back what was ever written below `root`; return what was done. Idempotent."""
    planned = Plan(root)
    note = _note(planned.at(NOTE))
    known = {str(path): "" for path in (SYSTEM_MARK / SERVICE, unit.PLACE, snippet.PLACE)}
    tljh = snippet.place_in_tljh(planned.at(TLJH))
    if tljh is not None:
        known[str(Path("/") / tljh.relative_to(root))] = ""
    files = known | note["files"]
    done = [line for path, digest in files.items() if (line := _take(planned, Path(path), digest))]
    done += _without_blocks(planned, [*map(Path, note["blocks"]), *hubs])
    planned.at(NOTE).unlink(missing_ok=True)
    mark = planned.at(SYSTEM_MARK)
    if mark.is_dir():
        left = sorted(path.name for path in mark.iterdir())
        if left:
            done.append(
                f"{SYSTEM_MARK} stays, for what else is in it ({', '.join(left)}). While it is there, nobody starts a broker of their own."
            )
        else:
            mark.rmdir()
            done.append(f"{SYSTEM_MARK}: removed")
    kept = [str(path) for path in _KEPT if planned.at(path).is_dir()]
    if kept:
        done.append(
            f"What the broker remembers and logged stays: {', '.join(kept)}. To remove that, once the service is stopped: rm -r {' '.join(kept)}"
        )
    return done


def _without_blocks(planned: Plan, paths: Iterable[Path]) -> list[str]:
    done = []
    for path in dict.fromkeys(paths):
        try:
            file = placing.find(planned.root, path)
            text = file.read()
            if (without := snippet.without_block(text)) != text:
                file.write(without)
                done.append(f"{path}: as it was before")
        except placing.NotOurs as problem:
            done.append(str(problem))
        except (OSError, UnicodeDecodeError):
            continue
    return done


def _take(planned: Plan, path: Path, digest: str) -> str | None:
    at = planned.at(path)
    if not at.is_file():
        return None
    if digest and _hash(at.read_text(encoding="utf-8", errors="replace")) != digest:
        aside = at.with_name(at.name + _CHANGED)
        at.replace(aside)
        return f"{path}: somebody changed it, so it is kept as {aside.name}"
    at.unlink()
    return f"{path}: removed"


def _texts(planned: Plan) -> tuple[dict[Path, tuple[placing.Found, str]], list[str]]:
    """Return the hubs' files with what is in them, and what is said of those that are left as they are, which leave the plan."""
    found, left = {}, []
    for path in list(planned.blocks):
        try:
            found[path] = _read(planned.root, path)
        except BadDeclaration as problem:
            if path not in planned.users:
                raise
            planned.blocks.remove(path)
            left.append(f"{path}: left as it is, servers of its hub do not share: {problem.__cause__}")  # fmt: skip
    return found, left


def _is_a_users(path: Path) -> bool:
    try:
        return path.stat().st_uid not in {0, os.geteuid()}
    except OSError:
        return False


def _read(root: Path, path: Path) -> tuple[placing.Found, str]:
    try:
        file = placing.find(root, path)
        return file, file.read()
    except placing.NotOurs as problem:
        msg = f"the hub's configuration {problem} Nothing was written."
        raise BadDeclaration(msg) from problem
    except (OSError, UnicodeDecodeError) as problem:
        msg = f"the hub's configuration {path} cannot be read: {problem}. Nothing was written. Name it: --hub-config FILE."
        raise BadDeclaration(msg) from problem


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # whoever only asks what would be written may not look there
        return False


def _note(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return {"files": dict(note["files"]), "blocks": list(note["blocks"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"files": {}, "blocks": []}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
