"""The words of a command line, checked before traitlets reads them: it lets most mistakes pass, or answers with pages."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence

from gpushare_kernel.core.errors import BadDeclaration

EVERYWHERE = (
    "-h",
    "--help",
    "--help-all",
    "-V",
    "--version",
    "--show-config",
    "--generate-config",
)


def check_command(words: Sequence[str], commands: Collection[str]) -> None:
    """Refuse a first word that is no command.

    Raises
    ------
    BadDeclaration
        With the command that was meant.
    """
    if words and not words[0].startswith("-") and words[0] not in commands:
        near = difflib.get_close_matches(words[0], commands, 1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(commands)}."
        msg = f"no command {words[0]!r}. {hint}"
        raise BadDeclaration(msg)


def positionals(
    words: Sequence[str], *, options: Collection[str], flags: Collection[str]
) -> tuple[list[str], list[str]]:
    """Return the words that stand for themselves, and the rest: options with their values, and flags.

    Raises
    ------
    BadDeclaration
        Where there is no option of that name, with what was meant: what follows it would be taken for a word of its own.
    """
    alone: list[str] = []
    rest: list[str] = []
    takes = False
    for word in words:
        name, given, _ = word.partition("=")
        if takes or not word.startswith("-"):
            (rest if takes else alone).append(word)
            takes = False
            continue
        _check_option(name, options, flags)
        rest.append(word)
        takes = not given and name.removeprefix("--") in options
    return alone, rest


def checked(words: Sequence[str], *, options: Collection[str], flags: Collection[str]) -> list[str]:
    """Return the words with each option and its value as one, which may begin with a dash.

    Raises
    ------
    BadDeclaration
        Where a word means nothing here, with what was meant.
    """
    return list(_checked(iter(words), options, flags))


def _checked(
    words: Iterator[str], options: Collection[str], flags: Collection[str]
) -> Iterator[str]:
    known = [f"--{name}" for name in (*options, *flags)]
    for word in words:
        name, given, _ = word.partition("=")
        if not word.startswith("-"):
            msg = f"{word!r} means nothing here. The options are {', '.join(known)}."
            raise BadDeclaration(msg)
        _check_option(name, options, flags)
        if _is_theirs(name):
            yield word
        elif name.removeprefix("--") in flags:
            if given:
                msg = f"{name} takes no value, but {word} has one. Leave it out."
                raise BadDeclaration(msg)
            yield word
        else:
            value = word if given else next(words, None)
            if value is None:
                msg = f"{name} needs a value. Write {name}=VALUE."
                raise BadDeclaration(msg)
            yield word if given else f"{name}={value}"


def _check_option(name: str, options: Collection[str], flags: Collection[str]) -> None:
    known = [f"--{one}" for one in (*options, *flags)]
    if name not in known and not _is_theirs(name):
        near = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}."
        msg = f"no option {name}. {hint}"
        raise BadDeclaration(msg)


def _is_theirs(name: str) -> bool:
    """Whether traitlets reads this word itself; `--Class.trait` is its own way."""
    return name in EVERYWHERE or "." in name
