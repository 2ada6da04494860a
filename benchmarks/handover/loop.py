"""A cooperative loop that stamps every hand-over. Run in kernels as a cell; clocks are CLOCK_MONOTONIC, in ns."""

from __future__ import annotations

from time import monotonic_ns

import gpushare_kernel as gpushare
from gpushare_kernel.client import api
from gpushare_kernel.wire.messages import Yield


def hand_over(until: float) -> list[tuple[int, int, int]]:
    """Step until the monotonic clock says `until`; return (boundary met, yield sent, granted again) of each."""
    stamps: list[tuple[int, int, int]] = []
    end = int(until * 1e9)
    link = api.get_session()._link  # only there is the moment of sending seen
    send = link.send
    sent = 0

    def stamping(message, *rest):
        nonlocal sent
        if isinstance(message.body, Yield):
            sent = monotonic_ns()
        return send(message, *rest)

    link.send = stamping
    try:
        with gpushare.lane(size="64MiB") as lane:
            now = monotonic_ns()
            while now < end:
                busy = now + 20_000
                while monotonic_ns() < busy:
                    pass
                before = monotonic_ns()
                lane.step()
                now = monotonic_ns()
                if sent:
                    stamps.append((before, sent, now))
                    sent = 0
    finally:
        del link.send
    return stamps
