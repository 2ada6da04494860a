"""`jupyter gpushare stop`."""

from __future__ import annotations

import contextlib

from gpushare_kernel.app.base import Command, say
from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.client.line import Line
from gpushare_kernel.client.shown import label, parking_texts
from gpushare_kernel.core.errors import GpushareError
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
        aside = _set_aside()
        pid = stop_broker(places(), _PATIENCE)
        say(f"The broker (pid {pid}) is gone. Kernels run on, and share again when one is started.")
        if aside:
            say(parking_texts.left_aside_text(aside))


def _set_aside() -> list[str]:
    """Return the notebooks whose GPU memory is set aside, by the names that may be seen."""
    with contextlib.suppress(GpushareError), Line(places()) as line:
        snapshot = line.snapshot()
        return [label(one) for one in snapshot.sessions if one.state in {"parked", "restoring"}]
    return []
