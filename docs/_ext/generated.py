"""What the reference says of commands, options, traits and sentences is made of the code when the documentation is built.

A page has a line `<!-- generated: NAME -->`; what `PARTS[NAME]()` returns stands there in its place. A name that nobody makes is an error.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from gpushare_magics.magics import GpuShareMagics
from traitlets import HasTraits
from traitlets.utils.importstring import import_item

from gpushare_kernel.app.main import GpuShareApp
from gpushare_kernel.core import errors
from gpushare_kernel.core.values import GiB, Holder, PauseReason, Wait, WaitReason
from gpushare_kernel.provisioner import GpuShareProvisioner
from gpushare_kernel.wire import snapshot, texts
from gpushare_kernel.wire.messages import Slowed

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
_LINE = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
_LINK = re.compile(r"(`[^`]*`)|\]\(([^)\s]+)")
"""Code, which is left alone, or the target of a link."""
_CALL = re.compile(r": (jupyter gpushare .*?)(?=\.?$)", re.MULTILINE)
"""How a command is written, at the end of a line of its description."""
_PAGES = {
    "examples/README.md": "examples.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
"""Pages of the repository that are in the documentation, too."""
_OURS = ("log-level", "debug")
"""Options of every command, told once; and `--config`, where it is Jupyter's."""


def setup(app: Any) -> dict[str, bool]:
    """Have Sphinx read pages through us."""
    app.connect("source-read", _fill)
    app.connect("doctree-read", _dashes)
    return {"parallel_read_safe": True}


def _fill(_app: Any, page: str, source: list[str]) -> None:
    text = _LINE.sub(lambda found: PARTS[found[1]](), source[0])
    here = (DOCS / page).parent
    source[0] = _LINK.sub(lambda found: found[1] or f"]({_outside(here, found[2])}", text)


def _outside(here: Path, target: str) -> str:
    """Return a link of a page in `here`; where it leads out of the documentation, as one to a file to download (of a folder: its README)."""
    path = Path(os.path.normpath(here / target))
    if not path.is_relative_to(ROOT) or path.is_relative_to(DOCS) or not path.exists():
        return target
    if page := _PAGES.get(str(path.relative_to(ROOT))):
        return os.path.relpath(DOCS / page, here)
    return f"path:{os.path.relpath(path / 'README.md' if path.is_dir() else path, here)}"


def _dashes(_app: Any, tree: nodes.document) -> None:
    """Parameters are told from what they are by a dash; Sphinx writes two and has them joined, which would join those of options too."""
    for text in [one for one in tree.findall(nodes.Text) if one == " -- "]:
        text.parent.replace(text, nodes.Text(" \N{EN DASH} "))


def repository(name: str) -> str:
    """Return a page of the repository as one of the documentation's root."""
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    return _LINK.sub(lambda found: found[1] or f"]({_moved(page.parent, found[2])}", text)


def _moved(folder: Path, target: str) -> str:
    return target if "://" in target else os.path.relpath(folder / target, DOCS)


def admin_pages() -> str:
    """Return the list of what is in `docs/admin`."""
    return _list(f"admin/{path.stem}" for path in (DOCS / "admin").glob("*.md"))


def other_notes() -> str:
    """Return the list of pages that are in no list: a note is found without having been listed."""
    lists = "\n".join((DOCS / page).read_text(encoding="utf-8") for page in ("index.md", "how.md"))
    listed = {"index", *lists.splitlines()}
    return _list(path.stem for path in DOCS.glob("*.md") if path.stem not in listed)


def _list(pages: Iterable[str]) -> str:
    """Return a list of pages; nothing where there is none, which Sphinx takes for a mistake."""
    names = "\n".join(sorted(pages))
    return f"```{{toctree}}\n:maxdepth: 1\n\n{names}\n```" if names else ""


def commands() -> str:
    """Return each command: what it is for, and its options."""
    return "\n\n".join(_commands(GpuShareApp, "jupyter gpushare", "##"))


def _commands(app: Any, called: str, mark: str) -> Iterator[str]:
    if not isinstance(app.subcommands, dict):  # the trait itself: it has none
        return
    for name, (where, short) in app.subcommands.items():
        command = import_item(where) if isinstance(where, str) else where
        said = _CALL.sub(r": `\1`", inspect.cleandoc(command.description or short))
        yield f"{mark} {called} {name}\n\n{said}"
        if isinstance(command.examples, str):
            yield f"```text\n{inspect.cleandoc(command.examples)}\n```"
        if options := [*_aliases(command), *_flags(command)]:
            yield _table(("option", "", "by default"), options)
        yield from _commands(command, f"{called} {name}", mark + "#")


def _aliases(command: Any) -> Iterator[tuple[str, str, str]]:
    for alias, target in command.aliases.items():
        name, said = target if isinstance(target, tuple) else (target, "")
        if alias in _OURS or name == "JupyterApp.config_file":
            continue
        trait = _trait(command, name)
        value = "" if trait.default_value in (None, "") else f"`{trait.default_value}`"
        yield f"`--{alias}=...`", said or trait.help, value


def _flags(command: Any) -> Iterator[tuple[str, str, str]]:
    for flag, (_, said) in command.flags.items():
        if flag not in _OURS:
            yield f"`--{flag}`", said, ""


def _trait(command: Any, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    homes = {one.__name__: one for one in (*command.__mro__, *command.classes)}
    return homes[owner].class_traits()[name]


def magic(name: str) -> str:
    """Return what `%%gpulane?` or `%gpushare?` shows."""
    said = inspect.getdoc(getattr(GpuShareMagics, name)) or ""
    return f"```\n{said}\n```"


def provisioner() -> str:
    """Return the settings of the provisioner."""
    return _table(("setting", "says", "by default"), _traits(GpuShareProvisioner))


def _traits(home: type[HasTraits]) -> Iterator[tuple[str, str, str]]:
    for name, trait in home.class_own_traits(config=True).items():
        value = "" if trait.default_value in (None, "") else f"`{trait.default_value}`"
        yield f"`c.{home.__name__}.{name}`", " ".join(trait.help.split()), value


_HERS = Holder("hw2.ipynb", 5 * GiB, 2400.0, own=True)
_HIS = Holder("al", 9 * GiB, None, own=False)
_WAITS = {
    WaitReason.OCCUPANCY: Wait(WaitReason.OCCUPANCY, 2 * GiB, GiB, 0, (_HIS,)),
    WaitReason.TURN: Wait(WaitReason.TURN, GiB, GiB, 0),
    WaitReason.GRACE: Wait(WaitReason.GRACE, GiB, GiB, 0, until=5.0),
    WaitReason.RESTORE: Wait(WaitReason.RESTORE, 4 * GiB, 8 * GiB, 0),
}


def waiting() -> str:
    """Return every reason for waiting, each with a sentence that the product makes of it."""
    lost = Wait(WaitReason.MEMORY, GiB, 0, 0, lost="it fell off the bus; nvidia-smi says more.")
    usual = (6 * GiB, 2 * GiB, 1, (_HERS, _HIS))
    waits = {reason: _WAITS.get(reason) or Wait(reason, *usual, eta=180.0) for reason in WaitReason}
    rows = [(f"`{reason}`", texts.wait_text(wait)) for reason, wait in waits.items()]
    return _table(("reason", "for example"), [*rows, ("the GPU is gone", texts.wait_text(lost))])


def pauses() -> str:
    """Return every reason for a pause, as a cell reads it afterwards."""
    rows = ((f"`{why}`", texts.slowed_text(Slowed(0, 0.0, 3.0, why))) for why in PauseReason)
    return _table(("reason", "reads"), rows)


def error_tree() -> str:
    """Return the tree of errors, as the module that has them draws it."""
    return f"```\n{inspect.getdoc(errors)}\n```"


def status_json() -> str:
    """Return what `jupyter gpushare status --json` tells, by the types that it is made of."""
    parts = []
    for name, view in vars(snapshot).items():
        if inspect.isclass(view) and view.__module__ == snapshot.__name__:
            fields = getattr(view, "__struct_fields__", ())
            said = " ".join((inspect.getdoc(view) or "").split())
            parts.append(f"`{name}`\n: {said}\n\n  {', '.join(f'`{one}`' for one in fields)}")
    return "\n\n".join(parts)


def _table(head: tuple[str, ...], rows: Any) -> str:
    rows = list(rows)
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


PARTS: dict[str, Callable[[], str]] = {
    "admin-pages": admin_pages,
    "other-notes": other_notes,
    "commands": commands,
    "gpulane": lambda: magic("gpulane"),
    "gpushare": lambda: magic("gpushare"),
    "provisioner": provisioner,
    "waiting": waiting,
    "pauses": pauses,
    "errors": error_tree,
    "status-json": status_json,
    "examples": lambda: repository("examples/README.md"),
    "contributing": lambda: repository("CONTRIBUTING.md"),
    "changes": lambda: repository("CHANGELOG.md"),
}
