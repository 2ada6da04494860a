"""Packed models: how much smaller, what is lost, and how long does matching take? See README.md."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, progress
from benchmarks.nwv_pack import suite
from gpushare_kernel.nwv import PackReport, pack
from gpushare_kernel.nwv import assignment as solving
from gpushare_kernel.nwv.matching import costs_between, left_side, matched, right_side
from gpushare_kernel.nwv.training import Plan

QUESTION = "Five, nine and ten models in one set of pages: how much smaller, all bytes counted, and what is lost?"
PARTS = ("five", "int8", "many", "merge", "matching")
UNTRAINED = Plan(rounds=0)
FRESH = 10
"""The first seed of merging without training: the Fisher's form and P were chosen by how merging did on seeds 0 to 4."""


def measure(options: Options) -> Sequence[Figure]:
    """Measure the parts that were asked for."""
    parts: dict[str, Callable[[Options], list[Figure]]] = {"five": _five, "int8": _int8, "many": _many, "merge": _merge, "matching": _matching}  # fmt: skip
    return [figure for part in PARTS if part in GIVEN.parts for figure in parts[part](options)]


def _seeds(options: Options, count: int) -> range:
    return range(1 if options.quick else count)


def _packed(names: Mapping[str, Any], seed: int, **how: Any) -> tuple[PackReport, float, float]:
    """Return a report, and the seconds of training alone, packing and comparing: by the clock, and of the CPU."""
    begun, worked = time.perf_counter(), time.process_time()
    found = pack(suite.tasks(dict(names), seed), seed=seed, progress=False, **how).report
    took, worked = time.perf_counter() - begun, time.process_time() - worked
    means = {way: f"{100 * fmean(scores.values()):.2f}" for way, scores in found.scores.items()}
    progress(f"{len(names)} tasks, seed {seed}: {found.ratio:.2f} times smaller, {took:.0f} s ({worked:.0f} CPU), {means}")  # fmt: skip
    return found, took, worked


def _five(options: Options) -> list[Figure]:
    runs = [_packed(suite.FIVE, seed, ratio=4.0) for seed in _seeds(options, 5)]
    reports = [report for report, _, _ in runs]
    return [
        Figure("five_ratio_all_bytes", "x", [one.ratio for one in reports], at_least=4.0, worst=True),
        Figure("five_ratio_pages_only", "x", [one.page_ratio for one in reports]),
        Figure("five_mean_over_alone", "points", [_mean(reports)], at_least=-0.5),
        Figure("five_worst_task", "points", [_worst(reports)], at_least=-3.0),
        *_ways("five", reports),
        Figure("five_seconds", "s", [took for _, took, _ in runs], at_most=60.0, worst=True),
        Figure("five_seconds_of_cpu", "s", [worked for _, _, worked in runs]),
    ]  # fmt: skip


def _int8(options: Options) -> list[Figure]:
    reports = [_packed(suite.FIVE, seed, ratio=15.0, bits=8, control=False)[0] for seed in _seeds(options, 5)]  # fmt: skip
    return [
        Figure("int8_ratio_all_bytes", "x", [one.ratio for one in reports], at_least=15.0, worst=True),
        Figure("int8_ratio_pages_only", "x", [one.page_ratio for one in reports]),
        Figure("int8_mean_over_alone", "points", [_mean(reports)], at_least=-0.5),
        Figure("int8_worst_task", "points", [_worst(reports)]),
        Figure("int8_packed", "%", [100 * fmean(one.scores["packed"].values()) for one in reports]),
    ]  # fmt: skip


def _many(options: Options) -> list[Figure]:
    figures = []
    for title, names in (("nine", suite.NINE), ("ten", suite.TEN)):
        reports = [_packed(names, seed, ratio=6.0, control=False)[0] for seed in _seeds(options, 3)]
        above = [min(report.scores["packed"][name] - suite.CHANCE[name] for name in names) for report in reports]  # fmt: skip
        figures += [
            Figure(f"{title}_ratio_all_bytes", "x", [one.ratio for one in reports], at_least=6.0, worst=True),
            Figure(f"{title}_private_pages", "pages", [float(one.own) for one in reports], at_least=1, worst=True),
            Figure(f"{title}_mean_over_alone", "points", [_mean(reports)]),
            Figure(f"{title}_worst_task", "points", [_worst(reports)], at_least=-4.0),
            Figure(f"{title}_least_above_chance", "points", [100 * one for one in above], at_least=10.0, worst=True),
            Figure(f"{title}_stopped_on_nan", "runs", [float(any("no numbers" in note for note in one.notes)) for one in reports], at_most=0, worst=True),
            *_ways(title, reports),
        ]  # fmt: skip
    return figures


def _merge(options: Options) -> list[Figure]:
    """Matched against random, nothing trained: small pages, the same number of them, both with the weighted mean."""
    best, random, costs = [], [], []
    for seed in (FRESH + one for one in _seeds(options, 5)):
        tasks = suite.tasks(suite.FIVE, seed)
        how = {"ratio": 4.0, "page_size": 64, "own": 0.0, "plan": UNTRAINED, "control": False, "progress": False}  # fmt: skip
        drawn = [pack(tasks, seed=draw, **how).report for draw in range(1 if options.quick else 3)]
        best.append(100 * fmean(drawn[0].scores["merged"].values()))
        random.append(fmean(100 * fmean(one.scores["random"].values()) for one in drawn))
        costs.append(fmean(one.cost_random for one in drawn) / drawn[0].cost)
        progress(f"merged, seed {seed}: matched {best[-1]:.1f}, random {random[-1]:.1f}, cost {costs[-1]:.2f}")  # fmt: skip
    return [
        Figure("merged_matched", "%", best),
        Figure("merged_random", "%", random),
        Figure("merged_less_random", "points", [fmean(best) - fmean(random)], at_least=10.0),
        Figure("matching_cost_random_over_ours", "x", costs),
    ]


def _matching(options: Options) -> list[Figure]:
    """Two models of 10 and 100 million weights with log-normal Fishers, P = 1024."""
    device = torch.device(GIVEN.device)
    gpu = device.type == "cuda"
    figures = []
    for millions, limit, wanted in ((10, 5.0, True), (100, 60.0, gpu or GIVEN.large)):
        if not wanted:
            continue
        took, over, block = _pair(millions * 1_000_000 // (10 if options.quick else 1), 1024, device)  # fmt: skip
        progress(f"matching {millions} M: {took:.1f} s, {over:.3f} of exact on a block of {block}")
        figures += [
            Figure(f"matching_{millions}M", "s", [took], at_most=limit if gpu else None),
            Figure(f"matching_{millions}M_cost_over_exact", "x", [over], at_most=1.2),
        ]
    return figures


def _pair(weights: int, size: int, device: torch.device) -> tuple[float, float, int]:
    source = torch.Generator(device).manual_seed(0)
    pages = -(-weights // size)

    def model() -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.randn(pages, size, generator=source, device=device)
        page = torch.randn(pages, 1, generator=source, device=device)
        fisher = (page + torch.randn(pages, size, generator=source, device=device)).exp()
        return values, fisher / fisher.mean()

    (p, fp), (q, fq) = model(), model()
    _wait(device)
    begun = time.perf_counter()
    found = matched(left_side(p, fp), right_side(q, fq))
    _wait(device)
    took = time.perf_counter() - begun
    if len(found.unique()) != pages:
        msg = "a page was used twice"
        raise AssertionError(msg)
    # What greedy and swaps are worth: on a block that can be solved exactly, drawn at random.
    block = min(2000, pages)
    rows = torch.randperm(pages, generator=torch.Generator().manual_seed(1))[:block].to(device)
    columns = torch.randperm(pages, generator=torch.Generator().manual_seed(2))[:block].to(device)
    costs = costs_between(left_side(p[rows], fp[rows]), right_side(q[columns], fq[columns]))
    each = torch.arange(block, device=device)
    ours = solving.polished(costs, solving.greedy(costs))
    return took, float(costs[each, ours].sum() / costs[each, solving.exact(costs)].sum()), block


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _drops(reports: Sequence[PackReport]) -> dict[str, float]:
    """Return what each task gained (or lost, less than 0) over alone on test data, averaged over the seeds, in points."""
    names = reports[0].scores["alone"]
    return {name: 100 * fmean(one.scores["packed"][name] - one.scores["alone"][name] for one in reports) for name in names}  # fmt: skip


def _mean(reports: Sequence[PackReport]) -> float:
    return fmean(_drops(reports).values())


def _worst(reports: Sequence[PackReport]) -> float:
    return min(_drops(reports).values())


def _ways(title: str, reports: Sequence[PackReport]) -> list[Figure]:
    ways = ("alone", "random", "merged", "packed", "control", "int8", "int4")
    return [
        Figure(f"{title}_{way}{'_plain' if way.startswith('int') else ''}", "%", [100 * fmean(one.scores[way].values()) for one in reports])
        for way in ways
        if way in reports[0].scores
    ]  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", default="cpu", help="of the matching: cpu or cuda")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=PARTS)
    parser.add_argument("--large", action="store_true", help="match 100 M weights without a GPU too")  # fmt: skip
    given, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    return given


GIVEN = argparse.Namespace(device="cpu", parts=PARTS, large=False)

if __name__ == "__main__":
    GIVEN = _arguments()
    torch.set_num_threads(1)  # small nets: two threads wait for each other
    sys.exit(main("nwv_pack", QUESTION, measure))
