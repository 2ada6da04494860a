"""A net with a deadline beside hogs on one GPU: its responses beside those alone, and what is left for the hog. See README.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, percentile, progress
from benchmarks.gpu.notebooks import SEEN, Notebook, several
from benchmarks.gpu.row import row
from benchmarks.gpu.scene import scene
from benchmarks.gpu.windows import Floor

QUESTION = "A net with a deadline beside a hog: how long are its responses beside those alone, and what is left for the hog?"
CELLS = Path(__file__).with_name("cells.py").read_text(encoding="utf-8")
SETTLED = 20.0
"""Seconds within which the broker has seen that a cell's work is over."""
WARM = 1.0
"""Seconds of the hog before it is counted: its drains are on record then."""


def measure(options: Options) -> Sequence[Figure]:
    """Alone, beside a hog that syncs often, beside one with deep queues; then what cannot be promised, and who comes later."""
    short, long = (100, 30) if options.quick else (2000, 400)
    with scene(options, several(SEEN, 3), ["matmul"]) as (floor, (camera, hog, late)):
        for notebook in (camera, hog, late):
            notebook.run(CELLS)
            notebook.run(f"prepare_more({options.device!r})")
        _opened(camera, options, 0.02, 0.02)
        bound = float(camera.run("1", "pipe.report().bound"))
        alone = _responses(camera, short // 2)
        beside, rest = _beside(floor, camera, hog, "matmul", (short, 0.02))
        misses, events = camera.run("told = pipe.report()", "[told.misses, list(told.events)]")
        progress(
            f"20 ms: p99 {1000 * percentile(beside, 99):.2f} ms, alone {1000 * percentile(alone, 99):.2f}; the hog has {rest:.3f} of the rest"
        )
        offences = _offender(floor, camera, late, options)
        camera.run("pipe.close()")
        _opened(camera, options, 0.1, 0.095)
        alone_deep = _responses(camera, long // 4)
        beside_deep, rest_deep = _beside(floor, camera, hog, "deep", (long, 0.1))
        progress(
            f"100 ms: p99 {1000 * percentile(beside_deep, 99):.2f} ms, alone {1000 * percentile(alone_deep, 99):.2f}; the hog has {rest_deep:.3f} of the rest"
        )
        camera.run("pipe.close()")
        refused = _refused(floor, camera, hog, options)
    ratio, deep = (
        percentile(a, 99) / percentile(b, 99)
        for a, b in ((beside, alone), (beside_deep, alone_deep))
    )
    return [
        Figure("p99_of_alone", "times", [ratio], at_most=1.10),
        Figure("hog_of_the_rest", "of what is left", [rest], at_least=0.95),
        Figure("misses", "", [float(misses)], at_most=0.0),
        Figure("longest_of_bound", "of the bound", [max(beside) / bound], at_most=1.0),
        Figure("deep_p99_of_alone", "times", [deep], at_most=1.10),
        Figure("deep_hog_of_the_rest", "of what is left", [rest_deep]),
        Figure("refused_with_numbers", "", [float(refused)], at_least=1.0),
        Figure("misses_by_one_offender", "", [float(offences)], at_most=1.0),
        Figure("alone", "ms", [1000 * one for one in _summary(alone)]),
        Figure("beside", "ms", [1000 * one for one in _summary(beside)]),
        Figure("deep_alone", "ms", [1000 * one for one in _summary(alone_deep)]),
        Figure("deep_beside", "ms", [1000 * one for one in _summary(beside_deep)]),
        Figure("bound", "ms", [1000 * bound]),
        Figure("overruns_told", "", [float(len(events))]),
    ]


def _opened(camera: Notebook, options: Options, period: float, deadline: float) -> None:
    """Open the pipeline; a cell that has just ended counts as somebody at work for a second or two more."""
    until, said = time.monotonic() + SETTLED, None
    while True:
        again = (
            said is not None and "best of" in said
        )  # its own layers are too long: measured at a bad moment?
        code = f"pipe = opened({options.device!r}, {period}, {deadline}, {again})"
        _, said = camera.attempt(code, timeout=180)
        if said is None:
            return
        if time.monotonic() > until:
            raise RuntimeError(said)
        progress(f"not yet: {said}")
        time.sleep(1.0)


def _summary(responses: Sequence[float]) -> list[float]:
    return [percentile(responses, part) for part in (50, 99, 100)]


def _responses(camera: Notebook, number: int) -> list[float]:
    """Return the responses (seconds) of so many releases on the grid."""
    return [
        float(one) for one in camera.run(f"seen = run_for(pipe, {number})", "seen", timeout=number)
    ]


def _beside(
    floor: Floor, camera: Notebook, hog: Notebook, kind: str, grid: tuple[int, float]
) -> tuple[list[float], float]:
    """Return the responses beside a hog; and the hog's rate over what the camera leaves of the time, by its rate before and after."""
    around, (number, period) = 2.0, grid
    seconds = number * period
    until = time.monotonic() + WARM + 2 * around + seconds + 3.0
    hog.begin(f"done = work({kind!r}, {str(floor.counters.path)!r}, 0, {until})", "done")
    time.sleep(WARM)
    before = _rate(floor, around)
    camera.begin(f"seen = run_for(pipe, {number})", "seen")
    time.sleep(2 * period)  # the first release comes a period after
    during = _rate(floor, seconds - 4 * period)
    responses = [float(one) for one in camera.finish(seconds + 60)]
    after = _rate(floor, around)
    hog.finish(120)
    share = sum(responses) / len(responses) / period
    return responses, during / ((before + after) / 2) / (1 - share)


def _rate(floor: Floor, seconds: float) -> float:
    """Return how many steps a second the hog makes from now on."""
    before, at = floor.counters.read()[0], time.monotonic()
    time.sleep(seconds)
    return (floor.counters.read()[0] - before) / (time.monotonic() - at)


def _refused(floor: Floor, camera: Notebook, hog: Notebook, options: Options) -> int:
    """Ask for a deadline that a running hog's drain does not fit into; return 1 where it is refused with the numbers."""
    until = time.monotonic() + 60.0
    stop = floor.stage.folder / "stop-deep"
    hog.begin(
        f"done = work('deep', {str(floor.counters.path)!r}, 0, {until}, {str(stop)!r})", "done"
    )
    _opened(camera, options, 0.1, 0.095)
    _responses(camera, 20)  # its drains are on record then
    camera.run("pipe.close()")
    _, said = camera.attempt(f"pipe = opened({options.device!r}, 0.02, 0.015, False)", timeout=180)
    stop.touch()
    hog.finish(120)
    progress(f"refused: {said}")
    return int(said is not None and "ms" in said and "cannot be promised" in said)


def _offender(floor: Floor, camera: Notebook, late: Notebook, options: Options) -> int:
    """Have a notebook come whose kernels take 200 ms; return how many deadlines it breaks."""
    before = int(camera.run("1", "pipe.report().misses"))
    stop = floor.stage.folder / "stop-long"
    camera.begin(f"seen = run_for(pipe, {50 if options.quick else 300})", "seen")
    until = time.monotonic() + 60.0
    late.begin(
        f"done = work('long', {str(floor.counters.path)!r}, 1, {until}, {str(stop)!r})", "done"
    )
    camera.finish(120)
    stop.touch()
    misses = int(camera.run("1", "pipe.report().misses")) - before
    camera.run("pipe.close()")  # it runs on now, and ends
    late.finish(120)
    _opened(camera, options, 0.02, 0.02)
    progress(f"an offender: {misses} misses")
    return misses


if __name__ == "__main__":
    sys.exit(row("gpu_realtime", QUESTION, measure))
