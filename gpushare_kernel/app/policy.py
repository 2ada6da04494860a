"""`jupyter gpushare policy`: which policy each device follows, and another one, live."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from traitlets import Unicode

from gpushare_kernel.app.base import Command, say
from gpushare_kernel.app.words import positionals
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.core.policies import policy_named
from gpushare_kernel.transport.places import places
from gpushare_kernel.wire.messages import SetPolicy


class PolicyApp(Command):
    """Shows or switches the policy."""

    name = "jupyter-gpushare-policy"
    description = (
        "Who comes next, for memory and for turns. Without a name: what each device follows. With one (fair, fifo, "
        "srtf, pack), for the broker's owner or root: follow it from now on."
    )
    examples = """
    jupyter gpushare policy                   # what is followed
    jupyter gpushare policy srtf              # the shortest first, on every device
    jupyter gpushare policy fair --device 1   # on one
    """
    device = Unicode("", config=True, help="One device: its number or UUID; all by default.")
    aliases = {  # noqa: RUF012  traitlets reads it from the class
        **Command.aliases,
        "device": "PolicyApp.device",
    }
    chosen: str | None = None

    def parse_command_line(self, argv: Sequence[str] | None = None) -> None:
        """Take the policy's name from the words."""
        given = sys.argv[1:] if argv is None else list(argv)
        alone, rest = positionals(given, options=self.aliases, flags=self.flags)
        if len(alone) > 1:
            msg = f"policy takes one name, and {' '.join(alone)!r} are {len(alone)} words. Write: jupyter gpushare policy {alone[0]} [--device N]."
            raise BadDeclaration(msg)
        if alone:
            self.chosen = policy_named(alone[0]).name
        super().parse_command_line(rest)

    def start(self) -> None:
        """Switch it where one was named, and say what is followed."""
        with Line(places()) as line:
            if self.chosen is not None:
                line.ask(SetPolicy(self.chosen, self.device))
            for device in line.snapshot().devices:
                say(f"{device.name}: {device.policy}")
