"""From `start_kernel` to the first output, local against shared, broker up and cold. See README.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, progress, staged
from benchmarks.kernels import LOCAL, SHARED, Kernel

QUESTION = "From start_kernel to a kernel's first output: what does gpushare add?"
_LIMIT = 60


def measure(options: Options) -> Sequence[Figure]:
    """Start one kernel of each sort in every round; the order moves on from round to round."""
    rounds = 3 if options.quick else 11
    times: dict[str, list[float]] = {"local": [], "up": [], "cold": []}
    with staged() as stage:
        _first_output(LOCAL)  # writes the profile, fills the page cache
        for n in range(rounds):
            for m in range(len(times)):
                arm = [*times][(n + m) % len(times)]
                if arm == "up":
                    with stage.broker():
                        times[arm].append(_first_output(SHARED))
                elif arm == "cold":
                    stage.stop_broker()
                    times[arm].append(_first_output(SHARED))
                    stage.stop_broker()  # the one that the provisioner started
                else:
                    times[arm].append(_first_output(LOCAL))
            progress(
                f"round {n + 1} of {rounds}: "
                + ", ".join(f"{arm} {taken[-1]:.2f} s" for arm, taken in times.items())
            )
    local = times["local"]
    return (
        Figure("broker_up_adds", "ms", _added(times["up"], local), at_most=200.0),
        Figure("cold_adds", "ms", _added(times["cold"], local), at_most=1000.0),
        *(Figure(f"start_{arm}", "s", taken) for arm, taken in times.items()),
    )


def _added(times: Sequence[float], local: Sequence[float]) -> list[float]:
    return [1000 * (a - b) for a, b in zip(times, local, strict=True)]


def _first_output(provisioner: str) -> float:
    """Start a kernel as a front end does, run `print`, and return the seconds until the text is here."""
    kernel = Kernel(provisioner)
    start = time.monotonic()
    try:
        kernel.launch()
        kernel.client.execute("print('here')")
        while True:
            message = kernel.client.get_iopub_msg(timeout=_LIMIT)
            if message["msg_type"] == "stream":
                return time.monotonic() - start
    finally:
        kernel.close()


if __name__ == "__main__":
    sys.exit(main("kernel_start", QUESTION, measure))
