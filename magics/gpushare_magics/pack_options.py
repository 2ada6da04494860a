"""What `--pack digits=t1,wine=t2 --ratio 1.6` says, read without torch."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from gpushare_kernel.core.errors import BadDeclaration

OPTIONS = ("ratio", "bits", "max_drop")
"""What goes with `--pack`, as `nwv.pack` calls it."""
_BITS = (8, 4)


@dataclass(frozen=True, slots=True)
class Packing:
    """Models by name, each with the notebook's variable that it is in, and how they are packed; None is what `nwv.pack` takes then."""

    models: tuple[tuple[str, str], ...]
    ratio: float | None = None
    bits: int | None = None
    max_drop: float | None = None


def add_to(parser: argparse.ArgumentParser) -> None:
    """Have a parser take them, as texts."""
    parser.add_argument("--pack", metavar="NAME=VARIABLE,...")
    for option in OPTIONS:
        parser.add_argument(f"--{option.replace('_', '-')}", dest=option)


def read(seen: argparse.Namespace) -> Packing | None:
    """Return what a line declares to pack; None where it packs nothing.

    Raises
    ------
    BadDeclaration
        Where it cannot be, with the rule, what was written and what to write.
    """
    if seen.pack is None:
        given = next((one for one in OPTIONS if getattr(seen, one) is not None), None)
        if given is not None:
            msg = f"--{given.replace('_', '-')} says how models are packed, and the line packs none. Write %%gpulane --pack digits=t1,wine=t2 --ratio 1.6."
            raise BadDeclaration(msg)
        return None
    for option, other in (("--class RT", seen.kind == "RT"), ("--dry-run", seen.dry_run)):
        if other:
            msg = f"--pack and {option} exclude each other. Pack in one cell; the next one has the models: bundle['digits']."
            raise BadDeclaration(msg)
    models = _models(seen.pack)
    if seen.ratio is None:
        msg = "--pack needs --ratio: how many times less memory than separate copies, at most what all models take over what the largest does (four times that with --bits 8). Write for example --ratio 1.6."
        raise BadDeclaration(msg)
    return Packing(
        models,
        _number("--ratio", seen.ratio, 1.0, "times less memory than separate copies", "1.6"),
        _bits(seen.bits),
        _number("--max-drop", seen.max_drop, 0.0, "what a model's metric may lose on validation data: 0.03 is three points of accuracy", "0.03"),
    )  # fmt: skip


def words(packing: Packing | None) -> list[str]:
    """Return a line that says the same."""
    if packing is None:
        return []
    found = ["--pack", ",".join("=".join(one) for one in packing.models)]
    for option in OPTIONS:
        value = getattr(packing, option)
        if value is not None:
            found += [f"--{option.replace('_', '-')}", f"{value:g}"]
    return found


def as_in_line(text: str) -> str:
    """Return what `nwv.pack` says with its options as a line has them."""
    text = text.replace("plan=Plan(rounds=30)", "gpushare.nwv.pack has a plan for that")
    text = text.replace("this error's result", "import sys; sys.last_value.result")
    for option in OPTIONS:
        text = re.sub(rf"\b{option}=", f"--{option.replace('_', '-')} ", text)
    return re.sub(r"\bmax_drop\b", "--max-drop", text)


def _models(text: str) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for word in text.split(","):
        name, _, variable = word.strip().partition("=")
        variable = variable or name
        if not (name.isidentifier() and variable.isidentifier()):
            msg = f"--pack names models and variables, name=variable with commas and no spaces between, and {word!r} is none. Write for example --pack digits=t1,wine=t2."
            raise BadDeclaration(msg)
        if name in found:
            msg = f"--pack has one model of a name, and {name} is there twice ({found[name]}, {variable}). Give one of them another name."
            raise BadDeclaration(msg)
        found[name] = variable
    return tuple(found.items())


def _number(option: str, text: str | None, least: float, what: str, example: str) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value < float("inf"):
        msg = f"{option} is a number of {least:g} or more ({what}), not {text!r}. Write for example {option} {example}."
        raise BadDeclaration(msg)
    return value


def _bits(text: str | None) -> int | None:
    if text is None:
        return None
    if text not in map(str, _BITS):
        msg = f"--bits is 8 or 4 for each weight in a page, not {text!r}; without it weights stay as they are. Write for example --bits 8."
        raise BadDeclaration(msg)
    return int(text)
