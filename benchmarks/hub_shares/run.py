"""A real JupyterHub: user A with three one-thread kernels, user B with one. By real uids, then under one uid by the hub's token. See README.md."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, progress
from benchmarks.hub import environment
from benchmarks.hub.hub import REAL, SHARED, Hub, HubKernel
from benchmarks.kernels import WORKLOAD, Counters, Window, beside, window

QUESTION = "Two users of a JupyterHub, one with three kernels and one with one: does each get half?"
NUMBERS = (3, 1)
ARMS = {
    "uid": (REAL, ("gpxann", "gpxbob"), ("gpxann", "gpxbob"), ""),
    "token": (SHARED, ("ann", "bob"), ("gpxhub",), "gpxhub"),
}


class Worker:
    """A kernel of a hub's server that is given cells and left alone meanwhile."""

    def __init__(self, kernel: HubKernel) -> None:
        kernel.run(WORKLOAD)
        self.pid = kernel.pid()
        self._kernel = kernel
        self._thread: threading.Thread | None = None
        self._failed: list[BaseException] = []

    def begin(self, code: str, value: str = "None") -> None:  # noqa: ARG002  nothing comes back
        """Send a cell."""
        self._thread = threading.Thread(target=self._run, args=(code,), daemon=True)
        self._thread.start()

    def _run(self, code: str) -> None:
        try:
            self._kernel.run(code)
        except BaseException as problem:  # noqa: BLE001  told by `finish`
            self._failed.append(problem)

    def finish(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        assert self._thread is not None
        self._thread.join(timeout)
        if self._failed:
            raise self._failed[0]


def measure(options: Options) -> Sequence[Figure]:
    """Windows of four kernels, three of A's and one of B's; each arm has a hub and a broker of its own."""
    missing = environment.missing()
    if missing:
        msg = f"this benchmark makes users and acts for them: it needs {', '.join(missing)}"
        raise SystemExit(msg)
    place = environment.installed()
    figures: list[Figure] = []
    for arm, (spawner, names, accounts, account) in ARMS.items():
        with (
            environment.people(*accounts),
            Hub(place, names, spawner, account, by_hub=arm == "token") as hub,
        ):
            windows = _windows(hub, arm, 2 if options.quick else 5, 6.0 if options.quick else 20.0)
            users = {one.name for one in hub.snapshot().users}
        shares = [sum(one.shares[: NUMBERS[0]]) for one in windows]
        figures += [
            Figure(f"share_of_a_{arm}", "%", shares, at_least=48.0, at_most=52.0, worst=True),
            Figure(f"accounts_{arm}", "accounts", [len(users)], at_least=2, at_most=2),
            *beside(windows, arm),
        ]
    return tuple(figures)


def _windows(hub: Hub, arm: str, number: int, seconds: float) -> list[Window]:
    found = []
    for name in hub.names:
        hub.start_server(name)
    workers = [
        Worker(hub.kernel(name, f"{name}-{n}.ipynb"))
        for name, many in zip(hub.names, NUMBERS, strict=True)
        for n in range(many)
    ]
    with contextlib.closing(Counters(hub.folder / "counters")) as counters:
        for n in range(number):
            found.append(window(counters, workers, seconds=seconds))
            share = sum(found[-1].shares[: NUMBERS[0]])
            progress(f"{arm}: window {n + 1} of {number}: A {share:.1f} % of {found[-1].total:.0f}")
    return found


if __name__ == "__main__":
    sys.exit(main("hub_shares", QUESTION, measure))
