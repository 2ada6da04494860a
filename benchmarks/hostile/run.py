"""What hostile users can do to others: fuzzed frames, requests about others' sessions, a flood. See README.md."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, Stage, main, percentile, progress, staged
from benchmarks.handover.run import LOOP, TURN, hand_overs, window
from benchmarks.hostile.crew import PYTHON, UIDS, Mallory, crew
from benchmarks.kernels import SHARED, Kernel, kernels
from gpushare_kernel.client.line import Line

QUESTION = "Fuzzed frames, requests about others' sessions, a flood: what reaches the others?"
RATE = 10_000
FLOOD = ["GetNeeds", "GetSnapshot", "Stop", "Release"]
SLICE = 5_000
"""Frames that each hostile user sends before we look at how the others are."""


def measure(options: Options) -> Sequence[Figure]:
    """Send a million frames, a thousand requests, and then flood beside two loops that pass the turn."""
    if os.geteuid() or not os.access(PYTHON, os.X_OK):
        msg = f"this benchmark acts for other users: it needs root, and {PYTHON}"
        raise SystemExit(msg)
    frames, rounds, seconds = (20_000, 2, 3.0) if options.quick else (1_000_000, 6, 8.0)
    with (
        staged() as stage,
        stage.broker("--compute", "1", "--turn", str(TURN), "--capacity", "8GiB"),
        kernels(SHARED, 2) as pair,
        crew(len(UIDS), stage.places.socket) as users,
    ):
        for kernel in pair:
            kernel.run(LOOP)
        watch = Watch(stage, pair)
        for user in users:
            user.do("open")
        figures = [
            *_flooded(pair, users, rounds, seconds),
            *_attacked(watch, users),
            *_fuzzed(watch, users, frames),
        ]
        watch.look()
        return [*figures, Figure("broker_crashes", "in all", [float(watch.crashes)], at_most=0.0)]


class Watch:
    """Looks whether anything has happened to the broker or to our two notebooks."""

    def __init__(self, stage: Stage, pair: Sequence[Kernel]) -> None:
        self._stage, self._pair = stage, pair
        self._ours = {kernel.pid for kernel in pair}
        for kernel in pair:
            kernel.run("1")
        self._before = self._seen()
        self.crashes = 0

    def look(self) -> int:
        """Return the number of effects since the last look; crashes (tracebacks, a new broker) are counted beside them."""
        now, effects = self._seen(), 0
        for what, before in self._before.items():
            if now.get(what) != before:
                effects += 1
                progress(f"an effect: {what} was {before} and is {now.get(what)}")
        for kernel in self._pair:
            worked = kernel.run(
                "with gpushare.lane(size='64MiB') as lane:\n    lane.step(); answer = 42", "answer"
            )
            effects += worked != 42
        errors = [line for line in self._log() if line["level"] in {"error", "critical"}]
        self.crashes = len(errors) + (now["broker"] != self._before["broker"])
        for line in errors[:3]:
            progress(f"an error: {line}")
        return effects

    def _seen(self) -> dict[str, Any]:
        with Line(self._stage.places) as line:
            seen = line.snapshot()
            found: dict[str, Any] = {"broker": line.pid}
        found["policy"] = [device.policy for device in seen.devices]
        found["capacity"] = [device.capacity for device in seen.devices]
        for one in seen.sessions:
            if one.pid in self._ours:
                found[one.id] = (one.user, one.name, one.pid, one.state, one.jobs)
        return found

    def _log(self) -> list[dict[str, Any]]:
        files = self._stage.places.log.parent.glob("broker.log*")
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def victims(self) -> list[dict[str, Any]]:
        """Return what a thief who has read everything knows of our notebooks."""
        found = []
        for kernel in self._pair:
            session = kernel.manager.provisioner._session
            keys = {"session": session.session, "token": session.token, "pid": kernel.pid}
            with Line(self._stage.places) as line:
                name = next(s.name for s in line.snapshot().sessions if s.id == session.session)
            secrets = [session.token, f'"pid": {kernel.pid},']
            found.append({**keys, "name": name, "job": "j1", "secrets": secrets})
        return found


def _fuzzed(watch: Watch, users: Sequence[Mallory], frames: int) -> list[Figure]:
    handled, effects, seed = 0, 0, 0
    while handled < frames:
        each = min(SLICE, -(-(frames - handled) // len(users)))
        for user in users:
            seed += 1
            user.begin("fuzz", seed, each)
        handled += sum(user.answer()["handled"] for user in users)
        effects += watch.look()
        progress(f"{handled} frames, {effects} effects, {watch.crashes} crashes")
    return [
        Figure("fuzzed_frames", "handled", [float(handled)], at_least=float(frames)),
        Figure("fuzz_effects", "on others", [float(effects)], at_most=0.0),
    ]


def _attacked(watch: Watch, users: Sequence[Mallory]) -> list[Figure]:
    answers: dict[str, int] = {}
    leaks, effects = 0, 0
    for number, victim in enumerate(watch.victims()):
        said = users[number].do("attack", victim, 500, number)
        leaks += said["leaks"]
        for what, times in said["answers"].items():
            answers[what] = answers.get(what, 0) + times
        effects += watch.look()
    progress(f"hostile requests were answered with {answers}")
    return [
        Figure("hostile_requests", "sent", [float(sum(answers.values()))], at_least=1000.0),
        Figure("hostile_effects", "on others", [float(effects)], at_most=0.0),
        Figure("hostile_leaks", "answers", [float(leaks)], at_most=0.0),
    ]


def _flooded(
    pair: Sequence[Kernel], users: Sequence[Mallory], rounds: int, seconds: float
) -> list[Figure]:
    """Windows of each kind in turn: a peer that burns a core, one that floods, one that fuzzes, nobody."""
    orders = {
        "burn": ("burn", seconds),
        "flood": ("flood", seconds, RATE, FLOOD),
        "fuzz": ("fuzz", 7, 10**9, seconds),
        "alone": None,
    }
    times: dict[str, list[float]] = {name: [] for name in orders}
    sent, answered, tails = [], [], dict[str, list[float]]()
    for n in range(rounds):
        for name, order in orders.items():
            if order is not None:
                users[0].begin(*order)
            stamps = window(pair, seconds)
            said = users[0].answer() if order is not None else None
            found = hand_overs(stamps, since=1)
            times[name] += found
            tails.setdefault(name, []).append(percentile(found, 99))
            if name == "flood":
                sent.append(said["sent"] / said["seconds"])
                answered.append(said["answered"] / said["seconds"])
            progress(
                f"round {n + 1} of {rounds}, {name}: {len(found)} hand-overs, p99 {tails[name][-1]:.0f} us"
            )
    whole = {name: percentile(each, 99) for name, each in times.items()}
    return [
        Figure("flood_asked", "requests/s", [float(RATE)]),
        Figure("flood_sent", "requests/s", sent),
        Figure("flood_answered", "requests/s", answered),
        Figure("flood_over_burn_p99", "ratio", [whole["flood"] / whole["burn"]], at_most=2.0),
        Figure("fuzz_over_burn_p99", "ratio", [whole["fuzz"] / whole["burn"]], at_most=2.0),
        *(Figure(f"{name}_p99_all", "us", [value]) for name, value in whole.items()),
        *(Figure(f"{name}_p99", "us", each) for name, each in tails.items()),
        *(
            Figure(f"{name}_hand_overs", "in all", [float(len(each))])
            for name, each in times.items()
        ),
    ]


if __name__ == "__main__":
    sys.exit(main("hostile", QUESTION, measure))
