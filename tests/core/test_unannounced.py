"""Who works without having said so, on a host too full to give it what it wants; and what a start leaves in memory."""

from __future__ import annotations

import pytest
from tests_core_world import World  # type: ignore[import-not-found]

from gpushare_kernel.core import events as ev
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.probe import Probe
from gpushare_kernel.core.records import Session, User
from gpushare_kernel.core.values import MiB, Need, Presence, SessionId, Usage, UserId


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


def test_what_a_kernel_holds_while_it_starts_is_charged_once() -> None:
    """Seen before its client is there it is P; from then on it is its context, and a small declaration runs."""
    world = World()
    one = SessionId("one")
    world.send(ev.SessionOpened(at=0.0, session=one, user=UserId("ann")))
    world.send(ev.Sampled(at=0.5, used={one: Usage(0.2, 0.2, memory=35 * MiB)}))
    session, book = world.core.sessions[one], world.core.book
    assert (session.charged, book.table.reserve) == (35 * MiB, 0)
    world.send(ev.SessionReady(at=0.6, session=one, bare=False, context=38 * MiB))
    assert (session.charged, session.context) == (0, 38 * MiB)
    assert book.table.persistent == 0
    assert book.never_fits(session, Need(0, 10 * MiB), 10 * MiB) is None
    world.send(ev.Sampled(at=2.0, used={one: Usage(0.2, 0.2, memory=5 * MiB)}))
    world.send(ev.SessionReady(at=2.1, session=one, bare=False, context=38 * MiB))
    assert session.charged == 5 * MiB, "its client came back: what it holds now is known"
