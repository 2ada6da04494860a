"""Pictures of replays: how soon jobs are done under each policy, and when each of them waited, ran and was parked.

Needs matplotlib, which the extra `replay` brings. Colours are those of Okabe and Ito: told apart without red or green.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpushare_kernel.core.errors import UserError
from gpushare_kernel.replay.outcome import Outcome

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
WAITS, RUNS, PARKED = "#D9D9D9", "#0072B2", "#E69F00"
_STYLES = ("-", "--", "-.", ":")
MOST_BARS = 300
"""More jobs than this are not told apart: every second, third, ... is shown."""
_FINE = 1000
"""Gaps shorter than this part of the whole are not drawn."""


def check_can_draw(path: Path) -> None:
    """Refuse what cannot be drawn, before anything is reckoned.

    Raises
    ------
    UserError
        Where matplotlib is missing, or the name ends in something else than .svg or .png.
    """
    if path.suffix.lower() not in {".svg", ".png"}:
        msg = f"--plot {path}: a picture's name ends in .svg or .png."
        raise UserError(msg)
    _matplotlib()


def draw(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Draw all of it into `path`, as SVG or PNG by its name."""
    figure_of = _matplotlib()
    several = len(outcomes)
    figure = figure_of(figsize=(9.0, 3.6 + 3.0 * several), layout="constrained")
    axes = figure.subplots(1 + several, 1, height_ratios=[3.6] + [3.0] * several)
    _completions(axes[0], outcomes)
    longest = max(job.ended for outcome in outcomes.values() for job in outcome.jobs)
    for at, (name, outcome) in enumerate(outcomes.items(), 1):
        _timeline(axes[at], name, outcome, longest)
        axes[at].sharex(axes[1])
    # Beside the title: bars reach every corner of the picture itself.
    axes[1].legend(
        handles=_legend(), loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=3, frameon=False
    )
    axes[-1].set_xlabel(f"time ({_unit(longest)[0]})")
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _matplotlib() -> Any:
    try:
        import matplotlib  # noqa: PLC0415  an extra: only who draws needs it
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        msg = "--plot needs matplotlib, which is not installed here. In a clone of gpushare: pip install '.[replay]'"
        raise UserError(msg) from None
    matplotlib.rcParams["svg.hashsalt"] = "gpushare"  # the same picture, byte for byte
    return Figure


def _completions(axes: Any, outcomes: Mapping[str, Outcome]) -> None:
    """Which part of the jobs is done so long after its submission."""
    most = max(job.completion for outcome in outcomes.values() for job in outcome.jobs)
    unit, seconds = _unit(most)
    for at, (name, outcome) in enumerate(outcomes.items()):
        times = sorted(job.completion / seconds for job in outcome.jobs)
        parts = [n / len(times) for n in range(1, len(times) + 1)]
        axes.step(
            [0.0, *times, most / seconds],
            [0.0, *parts, 1.0],
            where="post",
            label=name,
            color=COLOURS[at % len(COLOURS)],
            linestyle=_STYLES[at % len(_STYLES)],
            linewidth=1.8,
        )
    axes.set_title("completion times", loc="left")
    axes.set(
        xlabel=f"submission to end ({unit})",
        ylabel="part of the jobs done",
        xlim=(0, most / seconds),
        ylim=(0, 1.02),
    )
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right")


def _timeline(axes: Any, name: str, outcome: Outcome, longest: float) -> None:
    """One bar a job, from its submission to its end."""
    _, seconds = _unit(longest)
    step = -(-len(outcome.jobs) // MOST_BARS)
    shown = outcome.jobs[::step]
    for row, job in enumerate(shown):
        for colour, spans in (
            (WAITS, [(job.submitted, job.ended)]),
            (RUNS, _joined(job.stretches, longest / _FINE)),
            (PARKED, job.parks),
        ):
            bars = [(begin / seconds, (end - begin) / seconds) for begin, end in spans]
            axes.broken_barh(bars, (row + 0.1, 0.8), facecolors=colour, linewidth=0)
    axes.set_title(name, loc="left")
    axes.set(xlim=(0, longest / seconds * 1.01), ylim=(len(shown), 0))
    axes.set_ylabel("jobs, as they came" if step == 1 else f"every {step}th job, as they came")


def _joined(stretches: Iterable[tuple[float, float]], gap: float) -> Sequence[tuple[float, float]]:
    """Join what lies so close together that the gap could not be seen."""
    found: list[tuple[float, float]] = []
    for begin, end in stretches:
        if found and begin - found[-1][1] < gap:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return found


def _legend() -> list[Any]:
    from matplotlib.patches import Patch  # noqa: PLC0415

    kinds = (("waits", WAITS), ("runs, or takes turns", RUNS), ("parked", PARKED))
    return [Patch(facecolor=colour, label=label) for label, colour in kinds]


def _unit(longest: float) -> tuple[str, float]:
    """Return the unit for a picture as long as that, and its seconds."""
    if longest < 300:  # noqa: PLR2004
        return "s", 1.0
    return ("min", 60.0) if longest < 48 * 3600 else ("h", 3600.0)
