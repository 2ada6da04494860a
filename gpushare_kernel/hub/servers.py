"""Which notebook servers run here, and what of their environment decides whether their kernels share."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from gpushare_kernel import procfs

VARIABLE = "JUPYTER_DEFAULT_PROVISIONER_NAME"
OURS = "gpushare"
_PROGRAMS = frozenset(
    {
        "jupyterhub-singleuser",
        "jupyter-labhub",
        "jupyter-lab",
        "jupyter-notebook",
        "jupyter-server",
        "jupyter-nbclassic",
    }
)
_MODULES = frozenset({"jupyterhub.singleuser", "jupyterlab", "notebook", "jupyter_server"})
_WORDS = 4
"""A server's program is among the first words: an interpreter, its options, the script or -m and the module."""
_LARGEST = 2**20
"""Bytes that a hub's configuration never has."""


@dataclass(frozen=True, slots=True)
class Server:
    """A notebook server. `name` is its user at the hub, or the account's; `shares` None where its environment cannot be read."""

    pid: int
    name: str
    shares: bool | None


def servers() -> list[Server]:
    """Return the servers that run here, as far as we may see them, by name."""
    found = [_server(int(folder.name)) for folder, words in _commands() if _serves(words)]
    return sorted(found, key=lambda one: (one.name, one.pid))


def hub_configs() -> list[Path]:
    """Return the configuration files that hubs which run here were started with.

    Anybody can have a process that is called like a hub: it is one for files of its own only, unless it is root's. And what is
    called so is not yet Python: a `sudo jupyterhub -f FILE` that waits for its password is root's, too. A container's root is root
    to us, and its paths are not ours.
    """
    found = []
    for folder, words in _commands():
        with contextlib.suppress(OSError):  # it has ended, or is not ours to see
            path = _configuration(folder, words) if _program(words) == "jupyterhub" else None
            found += [] if path is None else [path]
    return list(dict.fromkeys(found))


def _configuration(folder: Path, words: list[str]) -> Path | None:
    """Return the file that a process called like a hub names; None where it is to be believed nothing."""
    python = (folder / "exe").readlink().name.startswith("python")
    if not python or not (folder / "root").samefile("/"):
        return None
    path = (folder / "cwd").readlink() / _config_of(words)
    found = path.stat()
    # The saved and effective ones, too: a program that root lets anybody run is not root's.
    owned = procfs.uids(int(folder.name)) in ({0}, {found.st_uid})
    whole = stat.S_ISREG(found.st_mode) and found.st_size < _LARGEST
    return path if owned and whole and str(path).isprintable() else None


def without_text(running: list[Server]) -> str:
    """Return who of them runs without us; empty where nobody does."""
    names = [one.name for one in running if one.shares is False]
    if not names:
        return ""
    run = "1 server runs" if len(names) == 1 else f"{len(names)} servers run"
    return f"{run} without it until restarted: {', '.join(names)}."


def _commands() -> Iterator[tuple[Path, list[str]]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:  # it has ended, or is not ours to see
                continue
            yield folder, line.decode(errors="replace").rstrip("\0").split("\0")


def _serves(words: list[str]) -> bool:
    first = words[:_WORDS]
    named = any(Path(word).name in _PROGRAMS for word in first)
    return named or any(option == "-m" and module in _MODULES for option, module in pairwise(first))


def _program(words: list[str]) -> str:
    """Return the name of the script, or the module, that an interpreter was given; empty where it was given none."""
    rest = iter(words[1:])
    for word in rest:
        if word in {"-X", "-W"}:
            next(rest, None)
        elif not word.startswith("-") or word == "-":
            return Path(word).name
    return ""


def _server(pid: int) -> Server:
    chosen = procfs.environ(pid, VARIABLE)
    told = (procfs.environ(pid, "JUPYTERHUB_USER"), procfs.environ(pid, "USER"))
    # Anybody writes what they like there, and root's terminal shows it.
    name = next((one for one in told if one and one.isprintable()), f"pid {pid}")
    readable = procfs.environ(pid, "PATH") is not None
    return Server(pid, name, chosen == OURS if readable else None)


def _config_of(words: list[str]) -> str:
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word in {"-f", "--config"}:
            return value
        if word.startswith(("--config=", "-f=")):
            return word.partition("=")[2]
    return "jupyterhub_config.py"
