"""Where kernels go on 10 and 100 hosts: how good that is, and what it costs. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from time import process_time

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, progress
from gpushare_kernel.core.values import GiB
from gpushare_kernel.hub.placement import GPU, DeviceState, HostState, Wish, order
from gpushare_kernel.replay.engine import Settings
from gpushare_kernel.replay.hosts import PLACINGS, POOL, replay_hosts
from gpushare_kernel.replay.salus import CAPACITY, read_salus
from gpushare_kernel.replay.trace import TraceJob

QUESTION = "Jobs of Salus' trace on 10 and 100 hosts: their completion time by how hosts are chosen, and the CPU of a choice?"
DATA = Path(__file__).resolve().parents[1] / "salus_table" / "data"
LOAD, PEOPLE_A_HOST, JOBS_A_HOST = 0.8, 3, 100
"""Of what all devices together can do; people and jobs for each host."""
POLICIES = ("fair", "srtf")
DRAWS = {10: 8, 100: 2}
CHOICES = 200


def measure(options: Options) -> Sequence[Figure]:
    """Each way over the same draws; then the choice alone."""
    figures: list[Figure] = []
    for number, draws in DRAWS.items():
        seeds = range(1 if options.quick else draws)
        for policy in POLICIES:
            figures += _quality(number, policy, seeds, 10 if options.quick else JOBS_A_HOST)
        figures.append(Figure(f"choice_of_{number}", "us CPU", _cost(number)))
    return figures


def _quality(number: int, policy: str, seeds: Sequence[int], each: int) -> list[Figure]:
    ways = (*PLACINGS, POOL)
    average: dict[str, list[float]] = {way: [] for way in ways}
    for seed in seeds:
        jobs = trace(number, number * each, seed)
        for way in ways:
            settings = Settings(policy=policy, capacity=CAPACITY)
            found = replay_hosts(jobs, settings, number, way, seed).summary()
            average[way].append(float(found["avg_jct_s"]))
        said = ", ".join(f"{way} {values[-1]:.0f}" for way, values in average.items())
        progress(f"{number} hosts, {policy}, draw {seed}: average completion in s: {said}")
    ours = average["soonest"]
    return [
        Figure(f"{policy}_{number}_soonest", "s", ours),
        *(
            Figure(f"{policy}_{number}_{way}_over_soonest", "times", _over(values, ours))
            for way, values in average.items()
            if way != "soonest"
        ),
    ]


def _over(these: Sequence[float], those: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(these, those, strict=True)]


def trace(number: int, jobs: int, seed: int) -> list[TraceJob]:
    """Jobs of Salus' trace, drawn, at random times so that `number` devices have `LOAD` to do."""
    chance, known = Random(seed), read_salus(DATA, seed)
    work = sum(job.duration * job.demand for job in known) / len(known)
    at, made = 0.0, []
    for n in range(jobs):
        at += chance.expovariate(LOAD * number / work)
        owner = f"u{chance.randrange(number * PEOPLE_A_HOST)}"
        made.append(replace(chance.choice(known), name=str(n), submitted=at, user=owner))
    return made


def _cost(number: int) -> list[float]:
    """CPU of one choice among hosts of four GPUs with something on the way to each."""
    chance = Random(0)
    hosts = [
        HostState(
            f"h{n}",
            tuple(
                DeviceState(
                    GPU,
                    80 * GiB,
                    chance.randrange(80) * GiB,
                    chance.randrange(4),
                    0,
                    chance.randrange(12),
                )
                for _ in range(4)
            ),
            coming=(0,) * chance.randrange(3),
            driver="580.65.06",
        )
        for n in range(number)
    ]
    taken = []
    for _ in range(5):
        began = process_time()
        for n in range(CHOICES):
            order(hosts, Wish(6 * GiB, "570", salt=str(n)))
        taken.append((process_time() - began) / CHOICES * 1e6)
    return taken


if __name__ == "__main__":
    raise SystemExit(main("placement", QUESTION, measure))
