"""`jupyter gpushare drain`, `evict`, `announce`, `reload` and `audit`: for administrators."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from threading import Event

from traitlets import Bool, Integer

from gpushare_kernel.app.base import Command, say
from gpushare_kernel.app.words import positionals
from gpushare_kernel.client.calls import expect
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.errors import BadDeclaration, NoBroker, NotYours
from gpushare_kernel.transport.places import places
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.admin import AuditEntry
from gpushare_kernel.wire.admin_texts import evicted_text, maintenance_text

_LOOK = 1.0
"""Seconds between two looks at how far a maintenance is."""


class _WithWords(Command):
    """A command with words of its own beside its options."""

    given: tuple[str, ...] = ()

    def parse_command_line(self, argv: Sequence[str] | None = None) -> None:
        """Take the words out, and read the options."""
        alone, rest = positionals(
            sys.argv[1:] if argv is None else list(argv), options=self.aliases, flags=self.flags
        )
        super().parse_command_line(rest)
        self.given = tuple(alone)


class DrainApp(_WithWords):
    """Begins or ends a maintenance."""

    name = "jupyter-gpushare-drain"
    description = """Begin a maintenance: what runs goes on to its end, nothing new begins on the device, idle notebooks' GPU memory is
    set aside where that can be. Says when nothing runs any more. It lasts, over restarts of the broker and the host, until --end.
    Said again without a text it keeps the one it has.
    Interrupting this command ends only the watching."""
    examples = """
    jupyter gpushare drain "new driver, back at 16:00"
    jupyter gpushare drain --end
    """
    end = Bool(False, config=True, help="The maintenance is over.")  # noqa: FBT003  traitlets
    no_wait = Bool(False, config=True, help="Do not wait until nothing runs any more.")  # noqa: FBT003  traitlets
    flags = {  # noqa: RUF012  traitlets reads it from the class
        **Command.flags,
        "end": ({"DrainApp": {"end": True}}, "The maintenance is over."),
        "no-wait": (
            {"DrainApp": {"no_wait": True}},
            "Do not wait until nothing runs any more.",
        ),
    }

    def start(self) -> None:
        """Begin it and watch, or end it."""
        with Line(places()) as line:
            before = line.snapshot().maintenance
            line.ask(msg.Drain(on=not self.end, note=" ".join(self.given)))
            if self.end:
                say(
                    "There was no maintenance." if before is None else "Notebooks are let in again."
                )
                return
            self._watch(line)

    def _watch(self, line: Line) -> None:
        told, pace = "", Event()
        while True:
            view = line.snapshot().maintenance
            if view is None:
                say("Somebody has ended the maintenance.")
                self.exit(1)
                return
            text = maintenance_text(view, time.strftime("%H:%M", time.localtime(view.since)))
            if text != told:
                say(text)
                told = text
            if view.empty or self.no_wait:
                return
            pace.wait(_LOOK)


class EvictApp(_WithWords):
    """Has memory of others given back."""

    name = "jupyter-gpushare-evict"
    description = """Have a notebook, or all of a user's, give back its device memory: set aside with all that is in it, now where it is idle, else
    after its cell. Where that cannot be, its user is asked and you read why. No process is ended, nothing is lost."""
    examples = """
    jupyter gpushare evict ann
    jupyter gpushare evict hw2.ipynb
    """

    def start(self) -> None:
        """Ask for it, and say what came of it."""
        if len(self.given) != 1:
            problem = f"say which notebook or user, and {len(self.given)} were named: jupyter gpushare evict hw2. jupyter gpushare status lists them."
            raise BadDeclaration(problem)
        with Line(places()) as line:
            say(evicted_text(expect(line.ask(msg.Evict(self.given[0])), msg.EvictedNow)))


class AnnounceApp(_WithWords):
    """Tells everybody something."""

    name = "jupyter-gpushare-announce"
    description = (
        "Tell everybody something: in the next output of each notebook, also of those that start later, and in every status. "
        "It stays until another one, or --clear."
    )
    examples = """
    jupyter gpushare announce "GPU 1 is away on Monday, 9 to 11"
    jupyter gpushare announce --clear
    """
    clear = Bool(False, config=True, help="Take it back.")  # noqa: FBT003  traitlets
    flags = {  # noqa: RUF012  traitlets reads it from the class
        **Command.flags,
        "clear": ({"AnnounceApp": {"clear": True}}, "Take it back."),
    }

    def start(self) -> None:
        """Tell them."""
        text = " ".join(self.given).strip()
        if bool(text) == self.clear:
            problem = 'write what everybody is to read, or --clear: jupyter gpushare announce "GPU 1 is away on Monday"'
            raise BadDeclaration(problem)
        with Line(places()) as line:
            told = expect(line.ask(msg.Proclaim(text)), msg.Proclaimed)
        count = f"{told.notebooks} notebook{'s' * (told.notebooks != 1)}"
        say(f"{count} read it with the next output." if text else "Taken back.")


class ReloadApp(Command):
    """Has the administrator's file read again."""

    name = "jupyter-gpushare-reload"
    description = "Have the broker read its configuration again (as SIGHUP does). Where it is wrong the former one holds, and you read why."

    def start(self) -> None:
        """Have it read."""
        with Line(places()) as line:
            found = expect(line.ask(msg.ReloadSettings()), msg.SettingsRead)
        say(f"{found.path} holds now: {found.groups} group{'s' * (found.groups != 1)}.")


class AuditApp(Command):
    """Shows what administrators did."""

    name = "jupyter-gpushare-audit"
    description = "What administrators did: when, who, what, to whom. The oldest first."
    last = Integer(100, config=True, help="How many of the latest to show.")
    aliases = {  # noqa: RUF012  traitlets reads it from the class
        **Command.aliases,
        "last": "AuditApp.last",
    }

    def start(self) -> None:
        """Ask the broker; without one read the file, where we may."""
        found: Sequence[AuditEntry]
        if self.last < 1:
            problem = f"--last must be 1 or more, not {self.last}. Leave it out for the latest 100."
            raise BadDeclaration(problem)
        try:
            with Line(places()) as line:
                found = expect(line.ask(msg.GetAudit(self.last)), msg.Audited).entries
        except NoBroker:
            from gpushare_kernel.broker.audit import entries  # noqa: PLC0415 - only without a broker

            path = places().audit
            try:
                found = entries(path, self.last)
            except PermissionError:
                problem = (
                    f"{path} is its broker's owner's to read, and no broker runs that could tell an administrator. "
                    "Run it as root, or start the broker first."
                )
                raise NotYours(problem) from None
        for one in found:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.at))
            rest = " · ".join(filter(None, (one.whom, one.detail)))
            say(f"{when}  {one.who} (uid {one.uid})  {one.what}{f'  {rest}' if rest else ''}")
        if not found:
            say("No administrator has done anything yet.")
