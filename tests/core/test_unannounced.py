"""Who works without having said so, on a host too full to give it what it wants."""

from __future__ import annotations

import pytest

from gpushare_kernel.core.config import Config
from gpushare_kernel.core.probe import Probe
from gpushare_kernel.core.records import Session, User
from gpushare_kernel.core.values import Presence, SessionId, Usage, UserId


@pytest.mark.parametrize(
    ("used", "wanted", "begins"),
    [
        (0.9, 0.9, True),  # on a free host
        (0.12, 0.95, True),  # one of sixteen on two cores
        (0.12, 0.15, False),  # it wants no more
        (0.04, 0.95, False),  # it wakes often and always waits, but does next to nothing
    ],
)
def test_who_works_unannounced_is_seen(used: float, wanted: float, begins: bool) -> None:
    """A kernel without our client counts as working by what it wants, not by what it gets."""
    session = Session(SessionId("s"), User(UserId("ann")), 1, idle_since=0.0)
    session.become(Presence.BARE)
    probe = Probe(Config(capacity=2**30, compute=2.0))
    assert not probe.sample(session, Usage(0.0, 0.0), 1.0).begins
    assert probe.sample(session, Usage(used, wanted), 2.0).begins is begins
