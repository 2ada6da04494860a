"""What became of a pipeline's releases, beside what was promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpushare_kernel.realtime.model import Kind
from gpushare_kernel.realtime.tenant import Tenant
from gpushare_kernel.shown import Table, figure, milliseconds

_SHOWN_EVENTS = 5
_BINS = 60


@dataclass(frozen=True, slots=True, repr=False)
class PipelineReport:
    """Times are seconds. A response is from a job's release to its result; `delivered` is until this process had it.

    Attributes
    ----------
    bound
        The response that is proven now, whatever came and went since it was admitted; None where nothing is.
    lapsed
        Whether one was proven before, and is not promised any more.
    delayed
        Releases that came earlier than a period after the last one, and were held back until then.
    skipped
        Ticks of `every_period` on which nothing was released: the source or the reader was behind, the pipeline had lost its
        class and the job before was not done, or nodes were held up so long that its deadline was not certain any more.
    overruns, losses
        Jobs of which a layer took longer than measured; how often it lost its deadline for that.
    disturbed, longest_wait
        Jobs whose layers had no core for over a millisecond, because somebody else was on it; the longest of these waits.
        No bound holds where nodes do not have their cores.
    latest_release
        How long after its tick a release came at most: by the source, or by an interpreter that was busy.
    """

    name: str
    kind: Kind
    period: float | None
    deadline: float | None
    bound: float | None
    lapsed: bool
    stages: Sequence[str]
    releases: int
    done: int
    failed: int
    misses: int
    delayed: int
    skipped: int
    moved: int
    overruns: int
    losses: int
    disturbed: int
    longest_wait: float
    demoted: bool
    latest_release: float
    longest: float
    longest_delivered: float
    responses: Sequence[float]
    delivered: Sequence[float]
    events: Sequence[str]

    def percentile(self, percent: float) -> float | None:
        """Return the response that `percent` of the kept ones are not above; None where there are none."""
        return _percentile(self.responses, percent)

    def table(self) -> Table:
        """Return it to look at."""
        columns = ("", ">releases", ">done", ">missed", ">p50", ">p99", ">max", ">bound", ">deadline")  # fmt: skip
        response = self._row("response", self.responses, self.longest, self.misses)
        handed = self._row("until you had it", self.delivered, self.longest_delivered, None)
        title = f"Pipeline {self.name} ({self.kind}{'' if self.period is None else f', every {milliseconds(self.period)} ms'})"
        return Table(title, columns, [response, handed], self._notes())

    def plot(self) -> Any:
        """Return a matplotlib figure: how many responses were how long, with bound and deadline."""
        drawn = figure(figsize=(7.0, 3.2))
        axes = drawn.subplots()
        axes.hist([1000 * one for one in self.responses], bins=_BINS, color="#0072B2")
        for name, seconds, style in (("bound", self.bound, "--"), ("deadline", self.deadline, "-")):
            if seconds is not None:
                axes.axvline(1000 * seconds, color="#D55E00", linestyle=style, label=name)
        axes.set_yscale("log")
        axes.set_xlabel("response (ms)")
        axes.set_ylabel("jobs")
        axes.set_title(f"Pipeline {self.name}: {self.done} done, {self.misses} missed")
        if self.bound is not None or self.deadline is not None:
            axes.legend(frameon=False)
        return drawn

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        """Called by IPython."""
        return self.table().html()

    def _row(self, what: str, seconds: Sequence[float], most: float, missed: int | None) -> tuple[str, ...]:  # fmt: skip
        counted = ("", "", "") if missed is None else (str(self.releases), str(self.done), str(missed))  # fmt: skip
        promised = ("", "") if missed is None else (milliseconds(self.bound), milliseconds(self.deadline))  # fmt: skip
        times = (_percentile(seconds, 50), _percentile(seconds, 99), most if seconds else None)
        return (what, *counted, *map(milliseconds, times), *promised)

    def _notes(self) -> Sequence[str]:
        notes = [f"Milliseconds. Runs as: {', '.join(self.stages)}."]
        if self.lapsed:
            notes.append("Its bound is not promised any more: the broker came back, and could not prove it again. Close it, and open it again.")  # fmt: skip
        elif self.kind is Kind.RT and self.bound is None:
            notes.append("No bound was proven: this placement promises nothing.")
        over = 0 if self.bound is None else sum(one > self.bound for one in self.responses)
        counts = (
            (over, "took longer than the bound"),
            (self.failed, "failed"),
            (self.delayed, "came too early and were held back"),
            (
                self.skipped,
                "ticks were skipped, for want of input, of a reader, of its class or of free nodes",
            ),
            (self.moved, "ran on other nodes than planned"),
            (self.overruns, "had a layer that took longer than measured"),
        )
        if self.disturbed:
            notes.append(f"{self.disturbed} had to wait for a core that somebody else was on, {milliseconds(self.longest_wait)} ms at most.")  # fmt: skip
        notes += [f"{count} {what}." for count, what in counts if count]
        if self.demoted:
            notes.append("It has lost its deadline until it behaves again.")
        elif self.losses:
            notes.append(f"It lost its deadline {self.losses} times for that, and has it again.")
        if self.latest_release > 0.001:  # noqa: PLR2004  the interpreter's own hiccups are shorter
            notes.append(f"A release came {milliseconds(self.latest_release)} ms late at most.")
        return [*notes, *self.events[-_SHOWN_EVENTS:]]


def report_of(tenant: Tenant, nodes: Sequence[object]) -> PipelineReport:
    """Return what became of a task so far. The caller holds the nodes' lock."""
    record, task = tenant.record, tenant.task
    return PipelineReport(
        name=task.name,
        kind=task.kind,
        period=task.period,
        deadline=task.deadline,
        bound=tenant.bound,
        lapsed=tenant.lapsed,
        stages=[_stage(one.first, one.last, one.node, nodes) for one in tenant.stages],
        releases=record.releases,
        done=record.responses.count,
        failed=record.failed,
        misses=record.misses,
        delayed=record.delayed,
        skipped=record.skipped,
        moved=record.moved,
        overruns=tenant.conduct.overruns,
        losses=tenant.conduct.losses,
        disturbed=record.disturbed,
        longest_wait=record.longest_wait,
        demoted=tenant.conduct.demoted,
        latest_release=record.latest_release,
        longest=record.responses.longest,
        longest_delivered=record.delivered.longest,
        responses=record.responses.kept(),
        delivered=record.delivered.kept(),
        events=[event.text for event in record.events],
    )


def _stage(first: int, last: int, number: int, nodes: Sequence[object]) -> str:
    kind = f" ({nodes[number]})" if number < len(nodes) else ""
    layers = f"layer {first}" if first == last else f"layers {first}-{last}"
    return f"{layers} on node {number}{kind}"


def _percentile(seconds: Sequence[float], percent: float) -> float | None:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else None
