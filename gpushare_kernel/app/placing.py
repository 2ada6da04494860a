"""How root writes files: whole or not at all, through no link, and never one that somebody else could have led it to.

A hub's configuration may lie in a folder of the hub's own account, and that account could change what a path leads to while root
works on it. So the way to the file is looked at first, and then only the folder that was opened is written to.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LINKS = 40
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class NotOurs(OSError):
    """A file that nobody should have root write to, with why and what to do."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file that is there: `at` is where its links lead, `owner` a uid."""

    at: Path
    owner: int

    def read(self) -> str:
        """Return its text.

        Raises
        ------
        OSError, UnicodeDecodeError
            Where it cannot be read, or is not what was found any more.
        """
        with self._opened() as (_, file), open(file, encoding="utf-8", closefd=False) as text:
            return text.read()

    def write(self, text: str) -> None:
        """Put `text` in its place; owner and mode stay.

        Raises
        ------
        OSError
            Where it cannot be written, or is not what was found any more.
        """
        with self._opened() as (folder, file):
            _replace(folder, self.at.name, text, os.fstat(file))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[int, int]]:
        """Yield descriptors of its folder and of itself: whatever a path leads to from now on, these stay."""
        with contextlib.ExitStack() as stack:
            folder = os.open(self.at.parent, _FOLDER)
            stack.callback(os.close, folder)
            file = os.open(self.at.name, _FILE, dir_fd=folder)
            stack.callback(os.close, file)
            found = os.fstat(file)
            if found.st_uid != self.owner or not stat.S_ISREG(found.st_mode):
                raise _not_ours(self.at, "it was exchanged meanwhile")
            if os.fstat(folder).st_uid not in _trusted(self.owner):
                raise _not_ours(self.at, "its folder was exchanged meanwhile")
            yield folder, file


def find(root: Path, path: Path) -> Found:
    """Return the file that `path` leads to on the machine whose files are below `root`: links lead nowhere else.

    Raises
    ------
    OSError
        Where there is none, or (NotOurs) where somebody other than root, its owner and us could say what the path leads to.
    """
    at, steps = root, list(path.relative_to("/").parts)
    met: list[tuple[Path, os.stat_result]] = []
    links = 0
    while steps:
        step = steps.pop(0)
        if step == "..":
            at = at if at == root else at.parent
            continue
        found = (at / step).lstat()
        met.append((at / step, found))
        if not stat.S_ISLNK(found.st_mode):
            at /= step
            continue
        links += 1
        if links > _LINKS:
            raise _not_ours(path, "it is a link that leads to itself")
        to = (at / step).readlink()
        at = root if to.is_absolute() else at
        steps[:0] = to.relative_to("/").parts if to.is_absolute() else to.parts
    if not met or not stat.S_ISREG(met[-1][1].st_mode):
        raise _not_ours(path, "it is no file")
    owner = met[-1][1].st_uid
    for one, found in met:
        _check(path, one, found, owner)
    return Found(at, owner)


def put(path: Path, text: str) -> None:
    """Write a file of ours, for everybody to read; its folder is made where there is none. Whoever reads meanwhile sees the old one or the new one.

    Raises
    ------
    OSError
        Where it cannot be written.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True)
        path.parent.chmod(0o755)  # whatever the umask: everybody is to see the mark
    folder = os.open(path.parent, _FOLDER)
    try:
        _replace(folder, path.name, text, None)
    finally:
        os.close(folder)


def _replace(folder: int, name: str, text: str, like: os.stat_result | None) -> None:
    here = f"/proc/self/fd/{folder}"
    fresh, made = tempfile.mkstemp(prefix=f".{name}.", dir=here)  # a new one, or an error
    try:
        with open(fresh, "w", encoding="utf-8") as file:  # noqa: PTH123  a descriptor
            file.write(text)
            file.flush()
            if like is not None:
                os.fchown(fresh, like.st_uid, like.st_gid)
            os.fchmod(fresh, 0o644 if like is None else stat.S_IMODE(like.st_mode))
            os.replace(Path(made).name, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(Path(made).name, dir_fd=folder)
        raise


def _check(path: Path, one: Path, found: os.stat_result, owner: int) -> None:
    if found.st_uid not in _trusted(owner):
        raise _not_ours(path, f"{one} belongs to uid {found.st_uid}, and the file to uid {owner}")
    open_to_all = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
    if open_to_all and not stat.S_ISLNK(found.st_mode):
        raise _not_ours(path, f"everybody may write to {one}")


def _trusted(owner: int) -> set[int]:
    return {0, os.geteuid(), owner}


def _not_ours(path: Path, why: str) -> NotOurs:
    return NotOurs(
        f"{path} is not written to: {why}. It and its folders must be root's, or the hub's own account's."
    )
