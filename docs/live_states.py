"""The states of the live view that docs/live.md shows, as snapshots: nobody waits until a real host is in each of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpushare_kernel.core.values import GiB, Holder, MiB
from gpushare_kernel.wire.snapshot import (
    BrokerView,
    LaneView,
    QueueView,
    RealtimeView,
    Snapshot,
    UserView,
)
from tests.widgets.snapshots import (
    FULL,
    GPU,
    NewerDevice,
    NewerSnapshot,
    Turn,
    session,
)

NOTICE = "No gpushare broker runs for you: jupyter gpushare start."
_BROKER = BrokerView(811, "0.1.0", 3900.0, system=True, longest_wait_today=360.0)


def _gpu(*turns: Turn, lanes: tuple[LaneView, ...] = (), **more: Any) -> NewerDevice:
    """An H100 of which lanes and what is kept have a part."""
    kept = more.pop("persistent", 0)
    used = kept + sum(lane.size for lane in lanes) + GPU.reserve
    return replace(GPU, persistent=kept, lanes=lanes, free=78 * GiB - used, turns=turns, desktop=0, foreign=0, **more)  # fmt: skip


def _in_turns(*who: str, since: float = 30.0, turn: float = 0.5) -> tuple[Turn, ...]:
    """Turns one after the other; at each third the work that was submitted ended later."""
    made: list[Turn] = []
    count = int(since / turn)
    for n in range(count):
        began, one = since - n * turn, who[n % len(who)]
        late = 0.12 if n % 3 == 2 else 0.0  # noqa: PLR2004
        ended = round(began - turn + late, 3) if n < count - 1 else 0.0
        made.append(Turn(one, began, ended, "turn"))
        if late and ended:
            made.append(Turn(one, ended, round(ended - late, 3), "drain"))
    return tuple(made)


def idle() -> Snapshot:
    """One's notebooks keep something, and nobody runs."""
    mine = (
        session("s1", "ann", "train.ipynb", "idle", 6 * GiB, own=True),
        session("s2", "ann", "plots.ipynb", "idle", 0, own=True),
    )
    return NewerSnapshot(1, _BROKER, (_gpu(persistent=6 * GiB),), mine, (), (UserView("ann", 1.0, 9.0),))  # fmt: skip


def waiting() -> Snapshot:
    """One's own cell waits for what one's own other notebook holds."""
    sessions = (
        session("s1", "ann", "train.ipynb", "busy", 2 * GiB, own=True, jobs=("j1",), doing=("big fit",)),
        session("s2", "ann", "explore.ipynb", "idle", 38 * GiB, own=True),
        session("s3", "bl", None, "busy", None, mode="exclusive", jobs=("j3",)),
        session("s4", "cd", None, "busy", None, jobs=("j4",)),
    )  # fmt: skip
    queue = (
        QueueView("j4", "s4", "occupancy", 0, None, 0, 8.0),
        QueueView(
            "j1",
            "s1",
            "memory",
            1,
            240.0,
            40 * GiB,
            75.0,
            "big fit",
            18 * GiB,
            (Holder("explore.ipynb", 38 * GiB, 2400.0, own=True),),
        ),
    )
    gpu = _gpu(Turn("s1", 30.0, 26.0, "turn"), Turn("s3", 26.0, 0.0, "turn"), lanes=(LaneView(1, 14 * GiB, "j3", ("j3",)),), persistent=44 * GiB)  # fmt: skip
    accounts = (UserView("ann", 1.0, 300.0), UserView("bl", 1.0, 600.0))
    return NewerSnapshot(1, _BROKER, (gpu,), sessions, queue, accounts)


def strangers() -> Snapshot:
    """What others see: initials, states and shares; two who have the same initials are two."""
    sessions = (
        session("s1", "al", None, "busy", None, mode="exclusive", jobs=("j1",)),
        session("s2", "al2", None, "busy", None, mode="exclusive", jobs=("j2",)),
        session("s3", "al2", None, "idle", None),
        session("s4", "bob", "mine.ipynb", "idle", 3 * GiB, own=True),
    )
    lanes = (LaneView(1, 0, "j1", ("j1",)), LaneView(2, 0, "j2", ("j2",)))
    gpu = replace(_gpu(*_in_turns("s1", "s2"), persistent=26 * GiB), lanes=lanes, free=30 * GiB)
    accounts = (UserView("al", 1.0, 300.0), UserView("al2", 1.0, 600.0), UserView("bob", 1.0, 5.0))
    return NewerSnapshot(1, _BROKER, (gpu,), sessions, (), accounts)


def stopped() -> Snapshot:
    """One is paused, one is parked, one comes back."""
    sessions = (
        session("s1", "ann", "train.ipynb", "busy", 14 * GiB, own=True, jobs=("j1",), doing=("epoch 3",)),
        session("s2", "ann", "sweep.ipynb", "paused", 8 * GiB, own=True, jobs=("j2",), why_paused="by-its-owner"),
        session("s3", "ann", "old.ipynb", "parked", 0, own=True, parked=12 * GiB),
        session("s4", "bl", None, "restoring", None, parked=5 * GiB),
    )  # fmt: skip
    turns = (
        Turn("s2", 30.0, 22.0, "turn"),
        Turn("s2", 22.0, 0.0, "pause"),
        Turn("s3", 26.0, 18.0, "turn"),
        Turn("s3", 18.0, 0.0, "park"),
        Turn("s4", 30.0, 3.0, "park"),
        Turn("s1", 22.0, 0.0, "turn"),
    )
    lanes = (LaneView(1, 12 * GiB, "j1", ("j1",), used=9 * GiB),)
    gpu = _gpu(*turns, lanes=lanes, persistent=22 * GiB)
    accounts = (UserView("ann", 1.0, 300.0), UserView("bl", 1.0, 600.0))
    return NewerSnapshot(1, _BROKER, (gpu,), sessions, (), accounts)


def deadlines() -> Snapshot:
    """Work with deadlines beside a training, and models that share pages."""
    sessions = (
        session("s1", "ann", "camera.ipynb", "busy", 2 * GiB, own=True, jobs=("j1",), doing=("detect",)),
        session("s2", "ann", "train.ipynb", "busy", 9 * GiB, own=True, jobs=("j2",)),
    )  # fmt: skip
    turns = tuple(
        Turn(*one)
        for n in range(25)
        for one in (
            ("s1", round(30 - n * 1.2, 3), round(29.7 - n * 1.2, 3), "turn"),
            ("s2", round(29.7 - n * 1.2, 3), round(28.8 - n * 1.2, 3), "turn"),
        )
    )
    rt = (
        RealtimeView("s1", 0.033, 0.03, 0.028, 0.004, 900, 0),
        RealtimeView("s2", 0.5, 0.5, 0.4, 0.1, 60, 2),
    )
    bundles = (
        _Fed(name="eyes", session="s1", pages=640, shared=512, size=5 * GiB),
        _Fed(name="voices", session="s1", pages=96, shared=24, size=768 * MiB),
    )
    lanes = (LaneView(1, 4 * GiB, "j2", ("j2",), used=3 * GiB),)
    gpu = _gpu(*turns, lanes=lanes, persistent=11 * GiB)
    accounts = (UserView("ann", 1.0, 300.0),)
    return NewerSnapshot(1, _BROKER, (gpu,), sessions, (), accounts, rt=rt, bundles=bundles)


class _Fed:
    def __init__(self, **told: Any) -> None:
        self.__dict__.update(told)


STATES: dict[str, Snapshot] = {
    "everything": FULL,
    "waiting": waiting(),
    "idle": idle(),
    "strangers": strangers(),
    "stopped": stopped(),
    "deadlines": deadlines(),
}
