"""Snapshots to draw: a host with everything on it, a crowd, hostile names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec

from gpushare_kernel.core.values import GiB, Holder, MiB
from gpushare_kernel.wire.snapshot import (
    AnnouncementView,
    BrokerView,
    DeviceView,
    LaneView,
    MaintenanceView,
    QueueView,
    RealtimeView,
    SessionView,
    Snapshot,
    UserView,
)

NOW = 1_790_000_000.0
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)> & ' `",
    "\u202egnp.exe\u202c \u2066x\u2069",
    "x" * 10_000,
    "👩‍🔬🔥 ünï",
    "תרגיל 3.ipynb",
    "line\nbreak\x1b[31m\x00\ud800",
    "Z" + "\u0301" * 40,
    "[a](javascript:alert(1)) **b** | c",
)
SCREEN_BREAKERS = "\n\r\x00\x1b\u202e\u202c\u2066\u2069\ud800"


class Turn(msgspec.Struct, frozen=True):
    session: str
    began: float
    ended: float
    kind: str


class NewerDevice(DeviceView, frozen=True):
    """What a broker of later steps tells of a device."""

    turns: tuple[Turn, ...] = ()
    can: tuple[str, ...] = ("pause", "park")


class NewerSession(SessionView, frozen=True):
    parked: int = 0


class NewerSnapshot(Snapshot, frozen=True):
    bundles: tuple[Any, ...] = ()
    weather: str = "fine"


def session(id_: str, user: str, name: str | None, state: str, p: int | None, **more: Any) -> NewerSession:  # fmt: skip
    told: dict[str, Any] = {"pid": None, "mode": None, "device_time": 10.0, "device": "GPU-5f3c"}
    return NewerSession(id=id_, user=user, name=name, state=state, p=p, **(told | more))


TURNS = (
    *(
        Turn(who, 30.0 - n * 0.5, 29.5 - n * 0.5 + (0.02 if n % 7 else 0.1), "turn")
        for n, who in enumerate(["s1", "s3"] * 30)
    ),
    Turn("s3", 12.4, 12.1, "drain"),
    Turn("s1", 8.0, 5.0, "pause"),
    Turn("gone", 29.0, 27.0, "park"),
)

GPU = NewerDevice(
    "GPU-5f3c",
    "cuda",
    "NVIDIA H100 80GB HBM3",
    78 * GiB,
    1300 * MiB,
    34 * GiB,
    (
        LaneView(1, 12 * GiB, "j1", ("j1", "j3"), used=9 * GiB),
        LaneView(2, 0, "j4", ("j4",)),
    ),
    free=24 * GiB,
    total=80 * GiB,
    desktop=410 * MiB,
    foreign=1536 * MiB,
    turns=TURNS,
)

FULL = NewerSnapshot(
    1,
    BrokerView(811, "0.1.0", 3900.0, system=True, longest_wait_today=360.0),
    (GPU,),
    (
        session("s1", "ann", "train.ipynb", "busy", 14 * GiB, own=True, mode="exclusive", jobs=("j1",), doing=("epoch 3",)),
        session("s2", "ann", "hw2.ipynb", "idle", 4 * GiB, own=True, device_time=2.0, jobs=("j2",)),
        session("s3", "bl", None, "busy", None, mode="exclusive", jobs=("j3", "j4")),
        session("s4", "cd", None, "idle", None),
        session("s5", "ann", "old.ipynb", "parked", 0, own=True, parked=3 * GiB),
    ),
    (
        QueueView("j2", "s2", "memory", 1, 240.0, 30 * GiB, 75.0, "big fit", 24 * GiB, (Holder("train.ipynb", 26 * GiB, None, own=True),)),
        QueueView("j9", "s4", "occupancy", 0, None, 0, 12.0),
    ),
    (
        UserView("ann", 1.0, 900.0, "students", 40 * GiB, 3, (), own=True, parked=32 * GiB),
        UserView("bl", 1.0, 600.0),
        UserView("cd", 2.0, 0.0),
    ),
    announcement=AnnouncementView("GPU 1 is away on Monday, 9 to 11", NOW - 7200),
    maintenance=MaintenanceView(NOW - 600, "new driver, back at 16:00", ("train.ipynb", "bl"), ("hw2.ipynb",), 1, empty=False),
    rt=(RealtimeView("s1", 0.033, 0.03, 0.028, 0.004, 900, 0),),
    bundles=(SimpleNamespace(name="eyes", session="s1", pages=640, shared=512, size=5 * GiB),),
)  # fmt: skip

IDLE = Snapshot(
    1,
    BrokerView(811, "0.1.0", 39.0),
    (DeviceView("host", "host", "AMD EPYC (CPU, no GPU)", 8 * GiB, 0, 0, (), free=8 * GiB),),
)
EMPTY = Snapshot(1, None)


def crowd(count: int, *, own: int = 3, users: int = 25) -> NewerSnapshot:
    """Return a class of `count` notebooks with long names, of which many run and wait."""
    people = [f"student.number.{n % users:03d}" for n in range(count)]
    sessions = tuple(
        session(
            f"{n:032x}", "me" if n < own else people[n], f"{'assignment of the week ' * 3}{n}.ipynb",
            "busy" if n % 3 else "idle", (100 + n) * MiB, own=n < own, jobs=(f"job{n:029x}",), mode="exclusive",
            doing=("training a rather large model",),
        )
        for n in range(count)
    )  # fmt: skip
    jobs = [one.jobs[0] for one in sessions]
    lanes = tuple(LaneView(n, 50 * MiB, job, (job,)) for n, job in enumerate(jobs))
    turns = tuple(
        Turn(sessions[n % count].id, 30.0 - n * 0.05, 29.95 - n * 0.05, ("turn", "drain")[n % 9 == 0])
        for n in range(600)
    )  # fmt: skip
    kept = sum(one.p or 0 for one in sessions)
    gpu = NewerDevice("GPU-5f3c", "cuda", "NVIDIA H100 80GB HBM3", 78 * GiB, 50 * GiB // 100, kept, lanes,
                      free=10 * GiB, total=80 * GiB, turns=turns)  # fmt: skip
    queue = tuple(QueueView(f"w{n}", one.id, "memory", n, n * 30.0, GiB, 60.0, "fit") for n, one in enumerate(sessions[::2]))  # fmt: skip
    accounts = tuple(UserView(user, 1.0, 10.0) for user in sorted({"me", *people}))
    return NewerSnapshot(1, BrokerView(1, "0.1.0", 1.0), (gpu,), sessions, queue, accounts)


def hostile() -> NewerSnapshot:
    """Return a snapshot in which everything that somebody else may name is hostile."""
    sessions = tuple(
        session(f"s{n}", name, name, "busy", GiB, own=n % 2 == 0, jobs=(f"j{n}",), doing=(name,))
        for n, name in enumerate(HOSTILE)
    )
    lanes = tuple(LaneView(n, GiB, f"j{n}", (f"j{n}",)) for n in range(len(HOSTILE)))
    queue = tuple(QueueView(f"q{n}", f"s{n}", "memory", n, None, GiB, 1.0, name) for n, name in enumerate(HOSTILE))  # fmt: skip
    gpu = NewerDevice("g", "cuda", HOSTILE[0] * 9, 40 * GiB, 0, len(HOSTILE) * GiB, lanes, free=22 * GiB, limits=HOSTILE[1],
                      turns=tuple(Turn(f"s{n}", 9.0, 3.0, "turn") for n in range(len(HOSTILE))))  # fmt: skip
    named = tuple(msgspec.structs.replace(one, device="g") for one in sessions)
    users = tuple(UserView(n, 1.0, 1.0, n, kernels=1, own=True) for n in HOSTILE)
    word = AnnouncementView(" ".join(HOSTILE), NOW)
    upkeep = MaintenanceView(NOW, HOSTILE[0], HOSTILE, HOSTILE, 0, empty=False)
    return NewerSnapshot(1, None, (gpu,), named, queue, users, announcement=word, maintenance=upkeep)  # fmt: skip
