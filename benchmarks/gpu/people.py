"""Other users for a row: processes with a uid of their own that need no account, and what they can read.

The interpreter must be readable for everybody; a checkout, or a folder of PYTHONPATH, that is not is copied to where it is.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import NotMeasured, jupyter_folders
from benchmarks.drivers import DriverProcess
from benchmarks.gpu import checkout
from benchmarks.gpu.notebooks import Arm
from benchmarks.gpu.pauses import Line

_FIRST_UID = 61001
_LARGEST_COPY = 400 * 2**20
_NEEDED = ("gpushare_kernel", "magics", "widgets", "benchmarks", "etc", "pyproject.toml")
_READABLE = "import json, os, sys; print(json.dumps([os.access(p, os.R_OK | os.X_OK) for p in sys.argv[1:]]))"
_IMPORTS = "import gpushare_kernel.provisioner, ipykernel, jupyter_client"


def uids(number: int) -> list[int]:
    """Return uids that no account has."""
    found: list[int] = []
    for uid in _candidates():
        if len(found) == number:
            break
        found.append(uid)
    return found


class People:
    """Users for a row that lives in `folder` (readable for everybody).

    Raises
    ------
    NotMeasured
        Where processes of other users cannot be started, or cannot run this interpreter with our packages.
    """

    def __init__(self, folder: Path, number: int, *, imports: str = "") -> None:
        if os.geteuid():
            reason = f"it acts for other users, which needs root, and this is uid {os.geteuid()}"
            raise NotMeasured(reason)
        self.folder = folder
        self.uids = uids(number)
        self.root, self._path = self._readable_path()
        self._check(f"{_IMPORTS}{', ' + imports if imports else ''}")

    def environment(self, uid: int) -> dict[str, str]:
        """Return the environment of a process of `uid`: a home of its own, and nothing of ours but the paths."""
        home = self.folder / f"home-{uid}"
        if not home.exists():
            home.mkdir(mode=0o700)
            os.chown(home, uid, uid)
        kept = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("CUDA_", "NVIDIA_", "LD_LIBRARY_"))
        }
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(home),
            "USER": f"uid{uid}",
            "LOGNAME": f"uid{uid}",
            "TMPDIR": str(home),
            "PYTHONPATH": self._path,
            "GPUSHARE_RUNTIME_DIR": os.environ["GPUSHARE_RUNTIME_DIR"],
            **jupyter_folders(home),
        }

    def start(self, uid: int, *command: str, **pipes: Any) -> subprocess.Popen[str]:
        """Start a process of `uid`."""
        return subprocess.Popen(
            command,
            user=uid,
            group=uid,
            extra_groups=[],
            env=self.environment(uid),
            cwd="/",
            text=True,
            **pipes,
        )

    def _readable_path(self) -> tuple[Path, str]:
        """Return the checkout and the PYTHONPATH for others, copies where they cannot read ours."""
        existing = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
        ours = {str((checkout.ROOT / package).resolve()) for package in checkout.PACKAGES}
        others = [one for one in existing if one not in ours and Path(one).exists()]
        root, *rest = self._can_read([str(checkout.ROOT / "gpushare_kernel"), *others])
        where = checkout.ROOT if root else self._copy_checkout()
        entries = [
            one if readable else str(self._copy(Path(one), n))
            for n, (one, readable) in enumerate(zip(others, rest, strict=True))
        ]
        site = checkout.lay_out(self.folder / "site")
        return where, os.pathsep.join(checkout.search_path(site, where, entries))

    def _can_read(self, paths: Sequence[str]) -> list[bool]:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", _READABLE, *paths],
                user=self.uids[0],
                group=self.uids[0],
                extra_groups=[],
                env={},
                cwd="/",
                capture_output=True,
                text=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as problem:
            reason = f"other users cannot run {sys.executable}: {problem}"
            raise NotMeasured(reason) from problem
        return [bool(one) for one in json.loads(done.stdout)]

    def _copy_checkout(self) -> Path:
        target = self.folder / "checkout"
        for name in _NEEDED:
            source = checkout.ROOT / name
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "results")
                shutil.copytree(source, target / name, ignore=ignore)
            else:
                shutil.copy(source, target / name)
        return target

    def _copy(self, source: Path, number: int) -> Path:
        size = sum(one.lstat().st_size for one in source.rglob("*"))
        if size > _LARGEST_COPY:
            reason = (
                f"other users cannot read {source}, and its {size >> 20} MiB are too many to copy"
            )
            raise NotMeasured(reason)
        target = self.folder / f"path-{number}"
        return Path(
            shutil.copytree(source, target, symlinks=True)
            if source.is_dir()
            else shutil.copy(source, target)
        )

    def _check(self, imports: str) -> None:
        for uid in self.uids:
            pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
            process = self.start(uid, sys.executable, "-c", imports, **pipes)
            _, said = process.communicate()
            if process.returncode:
                last = said.strip().splitlines()[-1:] or ["it said nothing"]
                reason = f"uid {uid} cannot import what it needs with {sys.executable}: {last[0]}"
                raise NotMeasured(reason)


class Driver(DriverProcess):
    """One user's driver process, and the notebooks it holds."""

    def __init__(self, people: People, uid: int) -> None:
        script = str(people.root / "benchmarks/gpu/driver.py")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        super().__init__(people.start(uid, sys.executable, script, **pipes), uid)
        self._groups = 0

    def send(self, arm: Arm, number: int, kinds: Sequence[str], place: str) -> None:
        """Have it start a group of notebooks; `meet` waits for them."""
        self.order(start=[arm.name, number, list(kinds), place])

    def meet(self, arm: Arm) -> list[RemoteNotebook]:
        """Return the notebooks of a group, ready."""
        pids = self.started()
        group = Group(self, self._groups, len(pids))
        self._groups += 1
        return [
            RemoteNotebook(group, n, pid, shared=arm.provisioner == "gpushare")
            for n, pid in enumerate(pids)
        ]


class Group:
    """Notebooks of a driver that get their cells in one order, and are waited for together."""

    def __init__(self, driver: Driver, number: int, size: int) -> None:
        self._driver, self._number, self._size = driver, number, size
        self._cells: list[list[str]] = []
        self._values: list[Any] = []

    def begin(self, code: str, value: str) -> None:
        """Send a cell, with that of the last of them."""
        self._cells.append([code, value])
        if len(self._cells) == self._size:
            self._driver.order(begin=[self._number, self._cells])
            self._driver.answer()

    def finish(self, index: int, timeout: float | None) -> tuple[Any, list[Line]]:
        """Return the value and the lines of one of them; all are waited for when the first is asked for."""
        if self._cells:
            self._cells.clear()
            self._driver.order(finish=[self._number, timeout])
            self._values = self._driver.answer()
        value, lines = self._values[index]
        return value, [Line(*line) for line in lines]


class RemoteNotebook:
    """A notebook of another user."""

    def __init__(self, group: Group, index: int, pid: int, *, shared: bool) -> None:
        self.pid, self.shared = pid, shared
        self.lines: list[Line] = []
        self._group, self._index = group, index

    def begin(self, code: str, value: str = "None") -> None:
        """Send a cell."""
        self._group.begin(code, value)

    def finish(self, timeout: float | None = None) -> Any:
        """Wait for its end; return its value."""
        value, lines = self._group.finish(self._index, timeout)
        self.lines += lines
        return value


def _candidates() -> Iterator[int]:
    taken = {account.pw_uid for account in pwd.getpwall()}
    return (uid for uid in range(_FIRST_UID, _FIRST_UID + 500) if uid not in taken)
