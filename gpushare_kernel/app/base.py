"""What every command has: a terminal to speak to, and errors of one line."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from jupyter_core.application import JupyterApp
from rich.console import Console
from traitlets import Float, Integer, List, Unicode
from traitlets.config import Configurable

from gpushare_kernel import __version__
from gpushare_kernel.app import words
from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.core.sizes import parse_size

NO_BROKER = 3
"""Exit status where no broker answers; every other error is 1."""

_SYNONYMS = {"kill": "end", "on": "cold"}
"""What people call a word of ours that is spelt nothing like it."""

_OPTIONS = (
    "capacity",
    "compute",
    "policy",
    "turn",
    "idle_exit",
    "device",
    "foreign",
    "over",
    "parking",
    "record",
    "arena",
    "arena_user",
    "hub_api",
    "hub_uids",
    "metrics",
    "metrics_users",
    "metrics_names",
)


class Command(JupyterApp):
    """A command of `jupyter gpushare`."""

    version = __version__
    aliases = {  # noqa: RUF012  traitlets reads it from the class
        "log-level": "Application.log_level",
        "config": "JupyterApp.config_file",
    }
    flags = {  # noqa: RUF012  traitlets reads it from the class
        "debug": JupyterApp.flags["debug"]
    }

    def parse_command_line(self, argv: Sequence[str] | None = None) -> None:
        """Read the words, once each of them means something here."""
        given = sys.argv[1:] if argv is None else list(argv)
        if self.subcommands:
            words.check_command(given, self.subcommands)
        if not given or given[0] not in self.subcommands:
            given = words.checked(given, options=self.aliases, flags=self.flags)
            self._check_numbers(given)
            self._check_traits(given)
        super().parse_command_line(given)

    def _check_numbers(self, given: Sequence[str]) -> None:
        """Refuse what is no number where one is to be, and what is said twice: traitlets would answer in its own terms, or take the last."""
        seen = set()
        for word in given:
            option, is_value, value = word.partition("=")
            target = self.aliases.get(option.removeprefix("--"))
            if not is_value or target is None:
                continue
            trait = self.traits()[target.rpartition(".")[2]]
            if option in seen and not isinstance(trait, List):
                msg = f"{option} is given twice. Give it once."
                raise BadDeclaration(msg)
            seen.add(option)
            if not isinstance(trait, Float | Integer):
                continue
            try:
                trait.from_string(value)
            except ValueError:
                kind = "a whole number" if isinstance(trait, Integer) else "a number"
                msg = f"{option} takes {kind}, and {value!r} is none. Write for example {option}={trait.default_value or 1:g}."
                raise BadDeclaration(msg) from None

    def _check_traits(self, given: Sequence[str]) -> None:
        """Refuse `--Class.option` where there is none: traitlets would go on without."""
        ours = {one.__name__: one for made in self.classes for one in made.mro()}
        for word in given:
            name = word.partition("=")[0]
            owner, _, trait = name.removeprefix("--").partition(".")
            made = ours.get(owner)
            if not name.startswith("--") or made is None or not issubclass(made, Configurable):
                continue
            known = made.class_trait_names(config=True)
            if trait.partition(".")[0] not in known:
                near = difflib.get_close_matches(trait, known, 1)
                hint = (
                    f"Did you mean --{owner}.{near[0]}?"
                    if near
                    else f"{owner} has {', '.join(sorted(known))}."
                )
                msg = f"no option {name}. {hint}"
                raise BadDeclaration(msg)

    def migrate_config(self) -> None:
        """Nothing to migrate: we are younger than the change this is for."""


class BrokerCommand(Command):
    """A command that may start a broker, and says how."""

    not_done = "The broker was not started."
    """What ends the refusal of a broker's option."""

    capacity = Unicode(
        None,
        allow_none=True,
        config=True,
        help="Memory to share (8GiB); what is free now by default.",
    )
    compute = Float(
        None, allow_none=True, config=True, help="Cores to share; all we may use by default."
    )
    policy = Unicode(
        None,
        allow_none=True,
        config=True,
        help="Who comes next: fair (the default), fifo, srtf or pack.",
    )
    turn = Float(None, allow_none=True, config=True, help="Seconds of a turn.")
    idle_exit = Float(
        None,
        allow_none=True,
        config=True,
        help="Seconds without notebooks after which the broker exits; 0 is never.",
    )
    device = Unicode(
        None,
        allow_none=True,
        config=True,
        help="What to share: auto (GPUs, else the CPU), host, cuda, or GPUs by number or UUID: 0,1.",
    )
    foreign = Unicode(
        None,
        allow_none=True,
        config=True,
        help="GPU processes without a session: adopt (they take turns too) or ignore (they are counted).",
    )
    over = Unicode(
        None,
        allow_none=True,
        config=True,
        help="Who holds more than it was granted while others wait: tell it (and pause it a while), or end it in the end.",
    )

    parking = Unicode(
        None,
        allow_none=True,
        config=True,
        help="GPU memory of idle notebooks, with all that is in it, goes to the host's memory while others wait for it: off, cold or warm.",
    )

    record = Unicode(
        None,
        allow_none=True,
        config=True,
        help="Write every event into this file (FILE.jsonl), to be replayed; only you can read it.",
    )

    arena = Unicode(
        None,
        allow_none=True,
        config=True,
        help="Memory of the host into which GPU memory of idle notebooks may be set aside, in all (32GiB; 0: none); a quarter of it by default.",
    )
    arena_user = Unicode(
        None,
        allow_none=True,
        config=True,
        help="How much of it one user's notebooks may have; half by default.",
    )
    settings = Unicode(
        None,
        allow_none=True,
        config=True,
        help="Groups, caps, budgets and administrators (FILE.toml); a system broker reads /etc/gpushare/gpushare.toml where there is one.",
    )

    hub_api = Unicode(
        None,
        allow_none=True,
        config=True,
        help="The API of the JupyterHub that tells who somebody is where many people share a uid: http://127.0.0.1:8081/hub/api.",
    )
    hub_uids = Unicode(
        None,
        allow_none=True,
        config=True,
        help="The uids that many people share, with commas between; all by default.",
    )

    metrics = Unicode(
        None,
        allow_none=True,
        config=True,
        help="Offer metrics to Prometheus at 127.0.0.1:9469 or unix:/run/gpushare/metrics.sock.",
    )
    metrics_users = Integer(
        None,
        allow_none=True,
        config=True,
        help="How many people have metrics of their own, those who use most (20).",
    )
    metrics_names = Unicode(
        None,
        allow_none=True,
        config=True,
        help="What people are called in metrics: initials, or names (the default on a Unix socket).",
    )

    aliases = {  # noqa: RUF012  traitlets reads it from the class
        **Command.aliases,
        **{name.replace("_", "-"): f"BrokerCommand.{name}" for name in _OPTIONS},
        "config": "BrokerCommand.settings",
    }

    def broker_arguments(self) -> list[str]:
        """Return what was asked of the broker, as its own command line takes it.

        Raises
        ------
        BadSize, BadDeclaration
            Where a broker would refuse it: said here, also where one runs already.
        """
        asked = []
        for name in _OPTIONS:
            value = getattr(self, name)
            if value is not None:
                if name == "record":
                    value = Path(value).absolute()  # the broker works in a folder of its own
                asked += [f"--{name.replace('_', '-')}", str(value)]
        if self.settings is not None:
            asked += ["--config", str(Path(self.settings).absolute())]
        if self.capacity is not None:
            parse_size(self.capacity)
        self.check_arguments(asked)
        return asked

    def check_arguments(self, asked: Sequence[str]) -> None:
        """Refuse what a broker would refuse.

        Raises
        ------
        BadDeclaration
            With the option, why, and what is meant.
        """
        from gpushare_kernel.broker.options import parser  # noqa: PLC0415 - the broker's own rules, for two commands

        rules = parser()
        rules.exit_on_error = False
        try:
            found, unknown = rules.parse_known_args(asked)
        except argparse.ArgumentError as problem:
            name = problem.argument_name or ""
            hint = _meant(rules, name, asked)
            msg = f"{name}: {problem.message.rstrip('.')}. {hint}{self.not_done}"
            raise BadDeclaration(msg) from None
        if unknown:
            msg = f"{unknown[0]}: the broker has no such option. {self.not_done}"
            raise BadDeclaration(msg)
        if found.device == "host" and found.parking in {"cold", "warm"}:
            msg = f"--parking: the CPU has nothing to park. {self.not_done}"
            raise BadDeclaration(msg)


def _meant(rules: argparse.ArgumentParser, option: str, asked: Sequence[str]) -> str:
    """Return which of an option's words may be meant by the one it was given; empty where none is near."""
    known = next((one.choices for one in rules._actions if option in one.option_strings), None)
    if not known:
        return ""
    given = asked[asked.index(option) + 1]
    near = (
        [_SYNONYMS[given]]
        if _SYNONYMS.get(given) in known
        else difflib.get_close_matches(given, known, 1)
    )
    return f"Did you mean {near[0]}? " if near else ""


def console() -> Console:
    """Return the terminal; made when asked, so that redirected output is respected."""
    return Console(highlight=False)


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")


def complain(text: object) -> None:
    """Print an error, as one line."""
    line = " ".join(str(text).split())
    sys.stderr.write(f"gpushare: {line}\n")
