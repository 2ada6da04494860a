"""A broker's options as the words of a command: those of one that runs or is installed, and what is asked for beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

_NO_OPTIONS = frozenset({"--again", "--service", "--foreground"})
"""What says how a broker was started, not what it is to do."""
_DEFAULTS = {"--device": "auto", "--policy": "fair", "--turn": "0.1"}
"""Values that a broker has without being told: nobody needs to write them."""


def options_of(words: Sequence[str]) -> dict[str, str | None]:
    """Return the options among `words` (`--name value`, `--name=value`), by name; None where one has no value."""
    found: dict[str, str | None] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found[name] = value if equals else None
        elif name and found[name] is None:
            found[name] = word
    return {name: value for name, value in found.items() if name not in _NO_OPTIONS}


def noted(path: Path) -> list[str]:
    """Return what a broker noted of how it was started; nothing where nobody knows: then one is started as for a first notebook."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    known = isinstance(found, list) and all(isinstance(one, str) for one in found)
    return found if known else []


def told(words: Sequence[str]) -> list[str]:
    """Return what of a running broker's options somebody told it."""
    options = options_of(words)
    return words_of(
        {name: value for name, value in options.items() if _DEFAULTS.get(name, "") != value}
    )


def words_of(options: Mapping[str, str | None]) -> list[str]:
    """Return options as words."""
    return [word for pair in options.items() for word in pair if word is not None]


def merged(before: Sequence[str], asked: Sequence[str]) -> list[str]:
    """Return the options of `before`, but for what is `asked` otherwise."""
    return words_of(options_of(before) | options_of(asked))
