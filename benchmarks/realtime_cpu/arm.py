"""One arm in a process of its own: `arm.py ARM '{"seconds": .., "periods": {..}, ...}'` prints responses and counts as JSON."""

from __future__ import annotations

import heapq
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.realtime_cpu.models import nets

Found = dict[str, Any]
WARM = 5


class Job:
    """A model that can be called: one whole run, done when it returns."""

    def __init__(self, name: str, device: str) -> None:
        rt, be = nets(device)
        self.net = next(net for net in (*rt, *be) if net.name == name)
        self._device = device
        self._model, self._x = self.net.built(device)
        for _ in range(WARM):
            self()

    def __call__(self) -> None:
        """Run it."""
        with torch.inference_mode():
            self._model(self._x)
            if self._device != "cpu":
                torch.cuda.synchronize()


def jobs(given: Found) -> dict[str, Job]:
    """Return all models."""
    return {
        net.name: Job(net.name, given["device"]) for part in nets(given["device"]) for net in part
    }


def costs(given: Found) -> Found:
    """Return how long each whole model takes in its turn among the others, with the threads of (c): the median of many runs."""
    found: dict[str, list[float]] = {}
    models = jobs(given)
    for _ in range(100):
        for name, job in models.items():
            started = time.monotonic()
            job()
            found.setdefault(name, []).append(time.monotonic() - started)
    return {name: statistics.median(times) for name, times in found.items()}


def queue(given: Found, rank: Callable[[str, float], tuple[float, float]]) -> Found:
    """Run whole models one after the other, the one with the least rank first; best effort always has a job ready."""
    models = jobs(given)
    periods: dict[str, float] = given["periods"]
    start = time.monotonic()
    end = start + given["seconds"]
    releases = dict.fromkeys(periods, start)
    ready = [(rank(name, start), name, start) for name in models if name not in periods]
    heapq.heapify(ready)
    responses: dict[str, list[float]] = {name: [] for name in periods}
    counts = {name: 0 for name in models if name not in periods}
    while (now := time.monotonic()) < end:
        for name, period in periods.items():
            while (due := releases[name]) <= now:
                heapq.heappush(ready, (rank(name, due), name, due))
                releases[name] = due + period
        _, name, due = heapq.heappop(ready)
        models[name]()
        now = time.monotonic()
        if name in periods:
            responses[name].append(now - due)
        else:
            counts[name] += 1
            heapq.heappush(ready, (rank(name, now), name, now))
    # A job that never got its turn has waited until the end at least.
    for _, name, due in ready:
        if name in periods:
            responses[name].append(end - due)
    return {"rt": responses, "be": counts}


def fifo(given: Found) -> Found:
    """(b): in the order of arrival."""
    return queue(given, lambda _name, due: (0.0, due))


def single(given: Found) -> Found:
    """The slides' single-threaded run: (b) with one thread."""
    torch.set_num_threads(1)
    return fifo(given)


def priority(given: Found) -> Found:
    """(c): deadlines by weight, then best effort; nothing is interrupted."""
    order = {name: float(place) for place, name in enumerate(given["periods"])}
    return queue(given, lambda name, due: (order.get(name, float(len(order))), due))


def priority_single(given: Found) -> Found:
    """(c) with one thread: where nets are small, or cores are not free, threads cost more than they bring."""
    torch.set_num_threads(1)
    return priority(given)


def _looped(given: Found, name: str, job: Callable[[], None], start: float) -> Found:
    """Run one model by itself: on its releases, or without pause."""
    period, end = given["periods"].get(name), start + given["seconds"]
    pace = threading.Event()
    pace.wait(max(0.0, start - time.monotonic()))
    responses, count, due = [], 0, start
    while time.monotonic() < end:
        if period is not None:
            pace.wait(max(0.0, due - time.monotonic()))
        job()
        count += 1
        if period is not None:
            responses.append(time.monotonic() - due)
            due += period
            if due >= end:
                break
    return {"rt": {name: responses}, "be": {}} if period else {"rt": {}, "be": {name: count}}


def one(given: Found) -> Found:
    """A process of (a): it says when it is ready, and is told when all begin."""
    job = Job(given["model"], given["device"])
    print(flush=True)
    return _looped(given, given["model"], job, float(sys.stdin.readline()))


def threads(given: Found) -> Found:
    """The slides' multi-threaded run: a thread for each model in one process."""
    models, found = jobs(given), []
    start = time.monotonic() + 0.2
    running = [
        threading.Thread(target=lambda name=name, job=job: found.append(_looped(given, name, job, start)))
        for name, job in models.items()
    ]  # fmt: skip
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return merged(found)


def merged(found: list[Found]) -> Found:
    """Return several results as one."""
    return {part: {name: value for one in found for name, value in one[part].items()} for part in ("rt", "be")}  # fmt: skip


def ours(given: Found) -> Found:
    """(d)."""
    from benchmarks.realtime_cpu.ours import run  # noqa: PLC0415  the other arms have nothing of ours

    return run(given)


def profile(given: Found) -> Found:
    """Measure what (d) needs to know, and keep it."""
    from benchmarks.realtime_cpu.ours import profiles  # noqa: PLC0415  the other arms have nothing of ours

    profiles(given)
    return {}


ARMS = {
    "profile": profile,
    "costs": costs,
    "one": one,
    "fifo": fifo,
    "single": single,
    "threads": threads,
    "priority": priority,
    "priority_single": priority_single,
    "ours": ours,
}

if __name__ == "__main__":
    print(json.dumps(ARMS[sys.argv[1]](json.loads(sys.argv[2]))))
    sys.stdout.flush()
    os._exit(0)
