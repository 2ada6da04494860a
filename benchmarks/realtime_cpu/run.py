"""Four nets with deadlines beside four without: how late is the worst, and how much do the others get done? See README.md."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, percentile, progress
from benchmarks.realtime_cpu.arm import merged
from benchmarks.realtime_cpu.models import nets

QUESTION = "Deadlines beside best effort: the worst response, and the others' throughput, against one priority queue over whole models?"
ARM = Path(__file__).with_name("arm.py")
RT_LOAD = 0.5
"""What the deadlines take of (c), where they take it alone."""
ARMS = ("process_each", "fifo", "single", "threads", "priority", "priority_single", "ours")
_SOON = 0.2
"""Seconds after which the processes of (a), which are all there by then, begin together."""


def measure(options: Options) -> Sequence[Figure]:
    """Run the arms one after the other, round by round."""
    rounds, seconds = (1, 6.0) if options.quick else (3, 20.0)
    device, nodes = options.device or "cpu", GIVEN.nodes.split(",")
    arms = [arm for arm in ARMS if arm in GIVEN.arms]
    _arm(
        "profile", {"device": device, "nodes": nodes}
    )  # first: what is refused is refused before all the rest
    alone = _arm("costs", {"device": device})
    rt, _ = nets(device)
    periods = {net.name: len(rt) * alone[net.name] / RT_LOAD for net in rt}
    progress("alone, ms: " + ", ".join(f"{name} {1000 * took:.2f}" for name, took in alone.items()))
    given = {"device": device, "nodes": nodes, "seconds": seconds, "periods": periods}
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for number in range(rounds):
        for arm in arms:
            found[arm].append(_each(given) if arm == "process_each" else _arm(arm, given))
            progress(f"round {number + 1}: {_said(arm, found[arm][-1], seconds)}")
    return _figures(found, alone, seconds, targets=device != "cpu")


def _figures(found: dict[str, list[dict[str, Any]]], alone: dict[str, float], seconds: float, *, targets: bool) -> Sequence[Figure]:  # fmt: skip
    figures = []
    theirs, mine = found["priority"], found["ours"]
    late = [_worst(d) / _worst(c) for c, d in zip(theirs, mine, strict=True)]
    task = [max(max(d["rt"][name]) / max(c["rt"][name]) for name in c["rt"]) for c, d in zip(theirs, mine, strict=True)]  # fmt: skip
    more = [_jobs(d) / _jobs(c) for c, d in zip(theirs, mine, strict=True)]
    work = [_work(d, alone) / _work(c, alone) for c, d in zip(theirs, mine, strict=True)]
    single = found["priority_single"]
    figures += [
        Figure(
            "worst_response_ours_over_priority_single",
            "x",
            [_worst(d) / _worst(c) for c, d in zip(single, mine, strict=True)],
        ),
        Figure(
            "be_jobs_ours_over_priority_single",
            "x",
            [_jobs(d) / _jobs(c) for c, d in zip(single, mine, strict=True)],
        ),
        Figure("worst_response_ours_over_priority", "x", late, at_most=0.5 if targets else None),
        Figure("worst_task_ours_over_priority", "x", task),
        Figure("be_jobs_ours_over_priority", "x", more, at_least=1.15 if targets else None),
        Figure("be_work_ours_over_priority", "x", work),
    ]
    for arm, ran in found.items():
        figures += [
            Figure(f"{arm}_worst_response", "ms", [1000 * _worst(one) for one in ran]),
            Figure(f"{arm}_p99_response", "ms", [1000 * _p99(one) for one in ran]),
            Figure(f"{arm}_missed", "%", [100 * _missed(one, alone) for one in ran]),
            Figure(f"{arm}_be_jobs", "1/s", [_jobs(one) / seconds for one in ran]),
            Figure(f"{arm}_be_work", "s/s", [_work(one, alone) / seconds for one in ran]),
        ]
    figures += [
        Figure("ours_until_delivered", "ms", [1000 * max(one["delivered"].values()) for one in mine]),
        Figure("ours_overruns", "jobs", [sum(one["overruns"].values()) for one in mine]),
        Figure("ours_disturbed", "jobs", [one["disturbed"] for one in mine]),
        Figure("ours_moved", "jobs", [one["moved"] for one in mine]),
    ]  # fmt: skip
    return figures


def _worst(one: dict[str, Any]) -> float:
    return max(max(times) for times in one["rt"].values())


def _p99(one: dict[str, Any]) -> float:
    return percentile([seconds for times in one["rt"].values() for seconds in times], 99)


def _missed(one: dict[str, Any], alone: dict[str, float]) -> float:
    """Return which part of the jobs took longer than their period, which is their deadline."""
    limit = {name: len(one["rt"]) * alone[name] / RT_LOAD for name in one["rt"]}
    late = [seconds > limit[name] for name, times in one["rt"].items() for seconds in times]
    return statistics.fmean(late)


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


def _arguments() -> argparse.Namespace:
    """Take our own options out of the line; `common.main` reads the rest."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--nodes", default="c1,c1")
    parser.add_argument("--arms", type=_arms, default=ARMS)
    given, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    return given


def _arms(text: str) -> tuple[str, ...]:
    """Read which arms run; those that all are compared with do in any case."""
    return (*text.split(","), "priority", "priority_single", "ours")


GIVEN = argparse.Namespace(device="cpu", nodes="c1,c1", arms=ARMS)

if __name__ == "__main__":
    GIVEN = _arguments()
    sys.exit(main("realtime_cpu", QUESTION, lambda options: measure(Options(quick=options.quick, device=GIVEN.device))))  # fmt: skip
