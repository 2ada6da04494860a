"""What stands behind `%%gpulane`."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from gpushare_kernel.client.shown import Report
from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.core.sizes import parse_size, parse_time
from gpushare_kernel.wire import need_texts
from gpushare_magics import pack_options
from gpushare_magics.completion import OPTIONS
from gpushare_magics.pack_options import Packing

_REALTIME = ("period", "deadline", "model", "input")
_NEGATIVE_SIZE = re.compile(r"-[0-9.]+\s*[A-Za-z%].*")


@dataclass(frozen=True, slots=True)
class RealTime:
    """What `--class RT` promises and asks for. Times are seconds; `model` and `input` name variables of the notebook."""

    period: float
    deadline: float
    model: str | None = None
    input: str | None = None


@dataclass(frozen=True, slots=True)
class Declaration:
    """A parsed line. Sizes are texts: a percentage needs a device to be of."""

    size: str | None = None
    persistent: str | None = None
    ephemeral: str | None = None
    weight: float = 1.0
    name: str | None = None
    wait: float | None = None
    time: str | None = None
    dry_run: bool = False
    realtime: RealTime | None = None
    pack: Packing | None = None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        msg = f"{message}. %%gpulane? shows the options."
        raise BadDeclaration(msg)


def _parser() -> _Parser:
    parser = _Parser(prog="%%gpulane", add_help=False, allow_abbrev=False)
    parser.add_argument("size", nargs="*", metavar="SIZE")
    parser.add_argument("-p", "--persistent", nargs="+", metavar="SIZE")
    parser.add_argument("-e", "--ephemeral", nargs="+", metavar="SIZE")
    parser.add_argument(
        "--weight", type=_number("--weight takes a number", "--weight 2"), default=1.0
    )
    parser.add_argument("--name")
    parser.add_argument(
        "--wait",
        type=_number("--wait takes the seconds to wait at most", "--wait 60"),
        metavar="SECONDS",
    )
    parser.add_argument("--time")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--class", dest="kind", default="BE", type=str.upper)
    for option in _REALTIME:
        parser.add_argument(f"--{option}")
    pack_options.add_to(parser)
    return parser


def _number(rule: str, example: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            msg = f"{rule}, and {text!r} is no number. Write for example {example}."
            raise BadDeclaration(msg) from None

    return read


def parse(text: str) -> Declaration:
    """Read the magic's line.

    Raises
    ------
    BadDeclaration, BadSize, BadTime
        Where it makes no sense, with what to write instead.
    """
    words = _with_time(_words(text))
    for word in words:
        if _NEGATIVE_SIZE.fullmatch(word):
            parse_size(word)
        _check_known(word)
    seen = _parser().parse_intermixed_args(words)
    return Declaration(
        size=_joined(seen.size),
        persistent=_joined(seen.persistent),
        ephemeral=_joined(seen.ephemeral),
        weight=seen.weight,
        name=seen.name,
        wait=seen.wait,
        time=seen.time,
        dry_run=seen.dry_run,
        realtime=_realtime(seen),
        pack=pack_options.read(seen),
    )


def _realtime(seen: argparse.Namespace) -> RealTime | None:
    """Return what a real-time cell declares; None for any other."""
    if seen.kind not in ("RT", "BE"):
        msg = f"--class is RT (with a deadline) or BE (best effort, the usual), not {seen.kind}."
        raise BadDeclaration(msg)
    given = [name for name in _REALTIME if getattr(seen, name) is not None]
    if seen.kind == "BE":
        if given:
            msg = f"--{given[0]} is for cells with a deadline. Write %%gpulane --class RT --period 33ms --deadline 30ms."
            raise BadDeclaration(msg)
        return None
    missing = [name for name in ("period", "deadline") if name not in given]
    if missing:
        msg = f"--class RT needs --{missing[0]}. Write for example --class RT --period 33ms --deadline 30ms."
        raise BadDeclaration(msg)
    if (seen.model is None) != (seen.input is None):
        msg = "--model and --input go together: the names of a model and of an example of its input. Name both, or open a Pipeline in the cell."
        raise BadDeclaration(msg)
    return RealTime(parse_time(seen.period), parse_time(seen.deadline), seen.model, seen.input)


def next_line(declaration: Declaration, report: Report) -> str:
    """Return the magic to paste over the cell next time: by what was used, with the options it had."""
    parts = declaration.persistent is not None or declaration.ephemeral is not None
    words = ["%%gpulane", need_texts.next_sizes(report, parts=parts)]
    words += _realtime_words(declaration.realtime)
    words += pack_options.words(declaration.pack)
    if declaration.weight != 1.0:
        words.append(f"--weight {declaration.weight:g}")
    if declaration.time is not None:
        words.append(f"--time {shlex.quote(declaration.time)}")
    if declaration.name is not None:
        words.append(f"--name {shlex.quote(declaration.name)}")
    if declaration.wait is not None:
        words.append(f"--wait {declaration.wait:g}")
    return " ".join(words)


def _realtime_words(declared: RealTime | None) -> list[str]:
    if declared is None:
        return []
    times = [f"--period {declared.period * 1000:g}ms", f"--deadline {declared.deadline * 1000:g}ms"]
    if declared.model is None or declared.input is None:
        return ["--class RT", *times]
    names = [f"--model {declared.model}", f"--input {declared.input}"]
    return ["--class RT", *times, *names]


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as problem:
        msg = f"cannot read {text!r}: {str(problem).lower()}. Close the quotation mark."
        raise BadDeclaration(msg) from None


def _with_time(words: list[str]) -> list[str]:
    """Return the words with `--time` and its value as one: a value may look like a size, or an option."""
    out: list[str] = []
    for word in words:
        if out and out[-1] == "--time":
            parse_time(word)
            out[-1] = f"--time={word}"
        else:
            out.append(word)
    return out


def _check_known(word: str) -> None:
    name = word.partition("=")[0]
    if not name.startswith("--") or name in OPTIONS or name == "--":
        return
    if name == "--help":
        msg = "%%gpulane? shows the options."
        raise BadDeclaration(msg)
    near = difflib.get_close_matches(name, OPTIONS, 1)
    hint = f"Did you mean {near[0]}?" if near else "%%gpulane? shows the options."
    msg = f"%%gpulane has no option {name}. {hint}"
    raise BadDeclaration(msg)


def _joined(words: list[str] | None) -> str | None:
    """Return a size that may have been written as two words: `6 GiB`."""
    return " ".join(words) if words else None
