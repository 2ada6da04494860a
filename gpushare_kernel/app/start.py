"""`jupyter gpushare start` and `broker`: a broker in the background, or here."""

from __future__ import annotations

import os
import shlex
import sys

from gpushare_kernel.app.base import BrokerCommand, say
from gpushare_kernel.client.line import Line
from gpushare_kernel.client.start import COMMAND, answers, ensure_broker
from gpushare_kernel.transport.places import how_to_restart, places

_PATIENCE = 15.0


class StartApp(BrokerCommand):
    """Starts the broker where none runs."""

    name = "jupyter-gpushare-start"
    description = "Start this host's broker in the background. Does nothing where one runs; its exit status is 1 where it was given options then."

    def start(self) -> None:
        """Start it, and say where it is."""
        where, arguments = places(), self.broker_arguments()
        ran = answers(where, _PATIENCE)
        ensure_broker(where, timeout=_PATIENCE, args=arguments)
        unused = ran and bool(arguments)
        with Line(where) as line:
            said = f"The broker (pid {line.pid}) answers at {where.socket}. Its log: {where.log}"
        if unused:
            options = shlex.join(arguments)
            said += f". It ran already: {options} changes nothing. To have it so: {how_to_restart(where, options)}. A policy changes while it runs: jupyter gpushare policy NAME."
        say(said)
        if unused:
            self.exit(1)


class ForegroundApp(BrokerCommand):
    """Becomes the broker."""

    name = "jupyter-gpushare-broker"
    description = "Run the broker in the foreground, for a service manager or for debugging."

    def start(self) -> None:
        """Become it: signals and exit status are its own."""
        sys.stdout.flush()
        command = [*COMMAND, "--foreground", *self.broker_arguments()]
        os.execv(command[0], command)  # noqa: S606  our own interpreter
