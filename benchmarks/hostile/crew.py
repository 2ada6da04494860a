"""Hostile users: `mallory.py` as real accounts, in the system's Python, from a folder that everybody can read."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PYTHON = "/usr/bin/python3"
UIDS = tuple(range(61001, 61009))
"""Of people, as far as the broker can tell, and nobody's here."""
_HERE = Path(__file__).parent
_SCRIPTS = (_HERE / "mallory.py", _HERE / "frames.py", _HERE.parents[1] / "tests/faults/wire.py")


class Mallory:
    """One of them. `begin` gives an order, `answer` waits for what came of it."""

    def __init__(self, uid: int, socket: Path, folder: Path) -> None:
        self.uid = uid
        self.process = subprocess.Popen(
            [PYTHON, "-I", "-S", "-c", _MAIN, str(folder), str(socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=uid,
            group=uid,
            extra_groups=[],
            cwd="/",
        )

    def begin(self, name: str, *words: Any) -> None:
        """Give an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, *words]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Return the answer to the oldest order that has none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            message = f"the hostile user {self.uid} ended ({self.process.wait()})"
            raise AssertionError(message)
        return json.loads(line)

    def do(self, name: str, *words: Any) -> Any:
        """Give an order, and return what came of it."""
        self.begin(name, *words)
        return self.answer()


_MAIN = "import sys; sys.path.insert(0, sys.argv[1]); import mallory; mallory.main(sys.argv[2])"


@contextlib.contextmanager
def crew(number: int, socket: Path) -> Iterator[list[Mallory]]:
    """Have so many of them while the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="gph", dir="/tmp"))
    members: list[Mallory] = []
    try:
        folder.chmod(0o755)
        for script in _SCRIPTS:
            Path(shutil.copy(script, folder)).chmod(0o644)
        members += [Mallory(uid, socket, folder) for uid in UIDS[:number]]
        yield members
    finally:
        for member in members:
            with contextlib.suppress(BrokenPipeError):
                member.process.communicate(timeout=60)
        shutil.rmtree(folder)
