"""`jupyter gpushare stop`."""

from __future__ import annotations

from gpushare_kernel.app.base import Command, say
from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.transport.places import places

_PATIENCE = 15.0


class StopApp(Command):
    """Stops the broker."""

    name = "jupyter-gpushare-stop"
    description = (
        "Resume everybody and end the broker. Kernels run on, unshared, until one is there again."
    )

    def start(self) -> None:
        """Stop it, and wait until it is gone."""
        pid = stop_broker(places(), _PATIENCE)
        say(f"The broker (pid {pid}) is gone. Kernels run on, and share again when one is started.")
