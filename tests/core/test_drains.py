"""How long before a release others are paused: by what their work took to stop, of late and for a good while."""

from __future__ import annotations

import random

from gpushare_kernel.core import drains
from gpushare_kernel.core.records import DRAINS, Session, User
from gpushare_kernel.core.values import SessionId, UserId

PERIOD, WORK, QUEUE = 0.1, 0.004, 0.04


def session() -> Session:
    return Session(SessionId("s"), User(UserId("u")), 0)


def test_deep_queues_are_paused_ahead_of_all_but_one_release_in_a_hundred() -> None:
    """A notebook submits 40 ms of work at a time; where in it a pause falls follows from how long the last ones took."""
    hog, rnd, late = session(), random.Random(7), []
    left = QUEUE
    for _ in range(600):
        lead = min(drains.usual(hog) or 0.002, PERIOD / 2)
        runs = PERIOD - WORK - lead
        while runs >= left:
            runs, left = runs - left, QUEUE * rnd.uniform(0.97, 1.03)
        drain, left = left - runs, QUEUE * rnd.uniform(0.97, 1.03)
        drains.note(hog, drain)
        late.append(max(0.0, drain - lead))
    assert sorted(late)[int(0.99 * len(late))] <= 0.001


def test_one_long_drain_of_short_work_is_forgotten() -> None:
    """Work that stops in 1 ms is not paused 20 ms ahead for good because it once took that long."""
    hog = session()
    drains.note(hog, 0.02)
    for _ in range(DRAINS):
        drains.note(hog, 0.001)
    assert drains.usual(hog) == 0.001
