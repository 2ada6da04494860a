"""Frames that a hostile client may send: valid ones, mutated by value, by shape and by byte. By seed, so that a find can be repeated."""

from __future__ import annotations

import random
import struct
from typing import Any

from wire import pack

LAYER = {"worst": {"c1": 0.001}, "transfer": 0.0, "name": "l"}
TASK = {"name": "rt", "period": 0.1, "deadline": 0.1, "layers": [LAYER]}
REQUESTS: dict[str, dict[str, Any]] = {
    "Submit": {"job": "j1", "name": "n", "persistent": 1, "ephemeral": 1, "dry_run": True},
    "Cancel": {"job": "j1"},
    "Yield": {"job": "j1", "trimmed": True, "persistent": 0, "peak": 0, "boundaries": 1, "interval": 0.1},
    "End": {"job": "j1", "persistent": 0, "peak": 0, "boundaries": 1},
    "Release": {"notebook": None},
    "PauseNotebook": {"notebook": None},
    "ResumeNotebook": {"notebook": None},
    "ParkNotebook": {"notebook": None},
    "UnparkNotebook": {"notebook": None},
    "AskHolder": {"session": "s0"},
    "RealtimeBeside": {"chains": []},
    "GetSnapshot": {},
    "GetNeeds": {"frameworks": []},
    "SetWeight": {"weight": 1.0},
    "SetNeeds": {"needs": 0},
    "SetPolicy": {"policy": "fair"},
    "Stop": {},
    "BundleFilled": {},
}  # fmt: skip
NOTICES: dict[str, dict[str, Any]] = {
    "CellStarted": {"cell": 1},
    "CellEnded": {"cell": 1, "persistent": 0},
    "WentAside": {"ticket": 1, "size": 0, "why": ""},
    "CameBack": {"ticket": 1, "why": ""},
    "RealtimeGrid": {"job": "j1", "first": 0.0},
    "RealtimeReleased": {"job": "j1"},
    "RealtimeDone": {"job": "j1"},
    "RealtimeKept": {
        "job": "j1",
        "task": TASK,
        "placement": {"configuration": [], "stages": [], "bound": 0.1, "absorbs": 0.0},
    },
}
HELLOS: dict[str, dict[str, Any]] = {
    "Open": {"name": "x"},
    "Restart": {"session": "s", "token": "t"},
    "Bind": {"session": "s", "token": "t"},
    "Close": {"session": "s", "token": "t"},
    "Exempt": {"session": "s", "token": "t", "seconds": 1.0},
    "Attach": {"token": "t", "held": []},
    "Observe": {},
    "OfferBundle": {"token": "t", "name": "x", "size": 1},
    "MapBundle": {"token": "t", "name": "x"},
    "LeaseArena": {"token": "t", "size": 1},
}
HELD = {"job": "j1", "name": "n", "persistent": 1, "ephemeral": 1, "lane": 1, "slot": 1, "running": True}  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**50, 2**63 - 1, -(2**63), 2**64 - 1,
    0.0, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"),
    "", "x", "\x00", "\x1b[2J\x07", "\u202eevil", "\ud7ff", "a" * 5000, "../../x", "j1", "s0", "%s%n",
    [], [[]], {}, {"type": "Stop"}, [None] * 50, {"": ""}, TASK, HELD, [HELD] * 3,
]  # fmt: skip


class Fuzz:
    """Makes frames for the owner of the session `mine`."""

    def __init__(self, seed: int, mine: dict[str, str]) -> None:
        self.rng = random.Random(seed)
        self.mine = mine

    def request(self, number: int) -> bytes:
        """Return the payload of a request or notice, most with something wrong in it."""
        rng = self.rng
        if rng.random() < 0.05:
            # Some of the first; of the rest few, as what is wrong in a notice ends its connection.
            among = [*NOTICES.items()] if rng.random() < 0.03 else [*NOTICES.items()][:4]
            kind, body = rng.choice(among)
            frame: Any = [2, 0, {"type": kind, **self._mutated(body)}]
        else:
            kind, body = rng.choice([*REQUESTS.items()])
            if kind == "Submit" and rng.random() < 0.02:
                body = {**body, "realtime": {**TASK, **self._mutated(TASK)}}
            if kind == "Submit" and rng.random() < 0.3:
                body = {**body, "dry_run": False, "job": f"j{rng.randrange(80)}"}
            frame = [0, number, {"type": kind, **self._mutated(body)}]
        return self._bent(frame)

    def hello(self) -> bytes:
        """Return the payload of a hello."""
        rng = self.rng
        kind, body = rng.choice([*HELLOS.items()])
        told = {**body, **{key: self.mine[key] for key in body if key in self.mine and rng.random() < 0.5}}  # fmt: skip
        if kind in {"Restart", "Close"}:
            told["token"] = "t"  # it wants its session a while longer
        if kind == "Attach" and rng.random() < 0.5:
            told["held"] = [self._mutated(HELD) for _ in range(rng.randrange(5))]
        frame = {"versions": [2], "agent": "fuzz", "body": {"type": kind, **self._mutated(told)}}
        return self._bent(frame)

    def frame(self, payload: bytes) -> bytes:
        """Return it with its length, which is rarely wrong."""
        if self.rng.random() < 0.001:
            return struct.pack("<I", self.rng.choice([0, 2**16 + 1, 2**32 - 1])) + payload
        return struct.pack("<I", len(payload)) + payload

    def _mutated(self, body: dict[str, Any]) -> dict[str, Any]:
        out, rng = dict(body), self.rng
        for key, value in body.items():
            # Of the same type mostly: what is refused by its shape never reaches what decides.
            if rng.random() < 0.3:
                like = [v for v in VALUES if type(v) is type(value)]
                out[key] = rng.choice(like if like and rng.random() < 0.97 else VALUES)
        if rng.random() < 0.005 and out:
            del out[rng.choice([*out])]
        if rng.random() < 0.05:
            out[rng.choice(["type2", "uid", "pid", "x"])] = rng.choice(VALUES)
        return out

    def _bent(self, frame: Any) -> bytes:
        rng = self.rng
        payload = pack(frame)
        if rng.random() < 0.01:
            raw = bytearray(payload)
            for _ in range(rng.randrange(1, 4)):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            payload = bytes(raw)
        if rng.random() < 0.002:
            payload = payload[: rng.randrange(len(payload))] or rng.randbytes(rng.randrange(1, 300))
        return payload
