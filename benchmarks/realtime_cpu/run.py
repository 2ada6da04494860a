"""Four nets with deadlines beside four without: how late is the worst, and how much do the others get done? See README.md."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, main, percentile, progress
from benchmarks.realtime_cpu.arm import merged
from benchmarks.realtime_cpu.models import nets

QUESTION = "Deadlines beside best effort: the worst response, and the others' throughput, against one priority queue over whole models?"
ARM = Path(__file__).with_name("arm.py")
RT_LOAD = 0.5
"""What the deadlines take of (c), where they take it alone."""
OVERLOAD = 1.3
"""The same, where there are more deadlines than anybody can keep."""
ARMS = ("process_each", "fifo", "single", "threads", "priority", "priority_single", "ours")
OVERLOADED = ("process_each", "fifo", "ours")
_SOON = 0.2
"""Seconds after which the processes of (a), which are all there by then, begin together."""


@dataclass(frozen=True, slots=True)
class Course:
    """What is run: on which device, the arms, how often and how long (seconds), and the nodes of the small rule.

    `most` is how long a net's layers are measured on each type of node (seconds).
    """

    device: str = "cpu"
    nodes: str = "c1,c1"
    arms: Sequence[str] = ARMS
    rounds: int = 3
    seconds: float = 20.0
    most: float = 3.0


def measure(course: Course) -> Sequence[Figure]:
    """Run the arms one after the other, round by round; then once more with more deadlines than can be kept."""
    given = {
        "device": course.device,
        "nodes": course.nodes.split(","),
        "seconds": course.seconds,
        "measure": course.most,
    }
    _arm("profile", given)  # first: what is refused is refused before all the rest
    alone = _arm("costs", given)
    progress(
        "in turn, ms: " + ", ".join(f"{name} {1000 * took:.2f}" for name, took in alone.items())
    )
    asked = {**given, "periods": _periods(course.device, alone, RT_LOAD), "rule": True}
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in course.arms}
    for number in range(course.rounds):
        for arm in course.arms:
            found[arm].append(_ran(arm, asked))
            progress(f"round {number + 1}: {_said(arm, found[arm][-1], course.seconds)}")
    figures = _figures(
        found, alone, course.seconds, asked["periods"], targets=course.device != "cpu"
    )
    asked = {**given, "periods": _periods(course.device, alone, OVERLOAD), "rule": False}
    over = {}
    for arm in (one for one in OVERLOADED if one in course.arms):
        over[arm] = _ran(arm, asked)
        progress(f"overload: {_said(arm, over[arm], course.seconds)}")
    return [*figures, *_overload(over, course.seconds, asked["periods"])]


def _periods(device: str, alone: dict[str, float], load: float) -> dict[str, float]:
    """Return periods with which those with deadlines take so much of (c), each as much as the others."""
    rt, _ = nets(device)
    return {net.name: len(rt) * alone[net.name] / load for net in rt}


def _ran(arm: str, given: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = _each(given) if arm == "process_each" else _arm(arm, given)
    return found


def _figures(
    found: dict[str, list[dict[str, Any]]],
    alone: dict[str, float],
    seconds: float,
    periods: dict[str, float],
    *,
    targets: bool,
) -> Sequence[Figure]:
    figures = []
    mine = found["ours"]
    for other in (arm for arm in ("priority", "priority_single") if arm in found):
        theirs, judged = found[other], targets and other == "priority"
        pairs = [*zip(theirs, mine, strict=True)]
        task = [max(max(d["rt"][name]) / max(c["rt"][name]) for name in c["rt"]) for c, d in pairs]
        figures += [
            Figure(f"worst_response_ours_over_{other}", "x", [_worst(d) / _worst(c) for c, d in pairs], at_most=0.5 if judged else None),
            Figure(f"worst_task_ours_over_{other}", "x", task),
            Figure(f"be_jobs_ours_over_{other}", "x", [_jobs(d) / _jobs(c) for c, d in pairs], at_least=1.15 if judged else None),
            Figure(f"be_work_ours_over_{other}", "x", [_work(d, alone) / _work(c, alone) for c, d in pairs]),
        ]  # fmt: skip
    for arm, ran in found.items():
        figures += [
            Figure(f"{arm}_worst_response", "ms", [1000 * _worst(one) for one in ran]),
            Figure(f"{arm}_p99_response", "ms", [1000 * _p99(one) for one in ran]),
            Figure(f"{arm}_missed", "%", [100 * _missed(one, periods) for one in ran]),
            Figure(f"{arm}_be_jobs", "1/s", [_jobs(one) / seconds for one in ran]),
            Figure(f"{arm}_be_work", "s/s", [_work(one, alone) / seconds for one in ran]),
        ]
    figures += [
        Figure("ours_proven", "nets", [_proven(one) for one in mine]),
        Figure("ours_longest_of_bound", "of the bound", [_of_bound(one) for one in mine if _proven(one)] or [0.0]),
        Figure("ours_until_delivered", "ms", [1000 * max(one["delivered"].values()) for one in mine]),
        Figure("ours_overruns", "jobs", [sum(one["overruns"].values()) for one in mine]),
        Figure("ours_disturbed", "jobs", [one["disturbed"] for one in mine]),
        Figure("ours_moved", "jobs", [one["moved"] for one in mine]),
    ]  # fmt: skip
    return figures


def _overload(
    over: dict[str, dict[str, Any]], seconds: float, periods: dict[str, float]
) -> Sequence[Figure]:
    """Figures of a set that nobody can keep: ours keeps what it admitted, and the others are late with all."""
    mine = over["ours"]
    in_time = len(mine["rt"]) > 0
    figures = [
        Figure("overload_admitted", "nets", [len(mine["rt"])]),
        Figure("overload_admitted_missed", "jobs", [mine["missed"] + mine["skipped"]], at_most=0.0),
        Figure("overload_ours_longest_of_bound", "of the bound", [_of_bound(mine) if in_time else 0.0], at_most=1.0),
        Figure("overload_ours_be_jobs", "1/s", [_jobs(mine) / seconds]),
    ]  # fmt: skip
    for arm, one in over.items():
        figures.append(
            Figure(
                f"overload_{arm}_missed", "%", [100 * _missed(one, periods) if one["rt"] else 0.0]
            )
        )
        if arm != "ours":
            worst = max(max(one["rt"][name]) for name in mine["rt"]) if in_time else _worst(one)
            figures += [
                Figure(f"overload_worst_ours_over_{arm}", "x", [_worst(mine) / worst if in_time else 0.0]),
                Figure(f"overload_be_jobs_ours_over_{arm}", "x", [_jobs(mine) / _jobs(one)]),
            ]  # fmt: skip
    return figures


def _proven(one: dict[str, Any]) -> int:
    return sum(bound is not None for bound in one["bounds"].values())


def _of_bound(one: dict[str, Any]) -> float:
    """Return the longest response as a part of what was proven, of the net that came nearest."""
    return max(
        max(times) / one["bounds"][name] for name, times in one["rt"].items() if one["bounds"][name]
    )


def _worst(one: dict[str, Any]) -> float:
    return max((max(times) for times in one["rt"].values()), default=0.0)


def _p99(one: dict[str, Any]) -> float:
    return percentile([seconds for times in one["rt"].values() for seconds in times], 99)


def _missed(one: dict[str, Any], periods: dict[str, float]) -> float:
    """Return which part of the jobs took longer than their period, which is their deadline, or was not run at all."""
    late = [seconds > periods[name] for name, times in one["rt"].items() for seconds in times]
    skipped: int = one.get("skipped", 0)
    return (sum(late) + skipped) / (len(late) + skipped)


def _jobs(one: dict[str, Any]) -> float:
    return max(1, sum(one["be"].values()))  # so that one that got nothing done can be compared


def _work(one: dict[str, Any], alone: dict[str, float]) -> float:
    """Return the jobs as seconds that they take alone in (c)."""
    return sum(count * alone[name] for name, count in one["be"].items())


def _said(arm: str, one: dict[str, Any], seconds: float) -> str:
    beside = {name: value for name, value in one.items() if name not in ("rt", "be", "delivered")}
    return f"{arm}: worst {1000 * _worst(one):.1f} ms, best effort {_jobs(one) / seconds:.1f}/s {beside or ''}"


def _arm(arm: str, given: dict[str, Any]) -> Any:
    done = subprocess.run([sys.executable, str(ARM), arm, json.dumps(given)], stdout=subprocess.PIPE, text=True, check=True)  # fmt: skip
    return json.loads(done.stdout)


def _each(given: dict[str, Any]) -> Any:
    """(a): a process for each model, with default threads; they begin together."""
    running = [
        subprocess.Popen([sys.executable, str(ARM), "one", json.dumps({**given, "model": net.name})], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for part in nets(given["device"])
        for net in part
    ]  # fmt: skip
    for process in running:
        process.stdout.readline()
    start = time.monotonic() + _SOON
    for process in running:
        process.stdin.write(f"{start}\n")
        process.stdin.flush()
    found = [json.loads(process.communicate()[0]) for process in running]
    return merged(found)


def _arguments() -> Course:
    """Take our own options out of the line; `common.main` reads the rest."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--arms", type=_arms, default=ARMS)
    given, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    return Course(arms=given.arms)


def _arms(text: str) -> tuple[str, ...]:
    """Read which arms run; those that all are compared with do in any case."""
    return (*text.split(","), "priority", "priority_single", "ours")


if __name__ == "__main__":
    GIVEN = _arguments()
    QUICK = dataclasses.replace(GIVEN, rounds=1, seconds=6.0)
    sys.exit(
        main("realtime_cpu", QUESTION, lambda options: measure(QUICK if options.quick else GIVEN))
    )
