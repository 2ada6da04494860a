"""One packing, step by step: cut, weigh, place, train, store, compare."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch
from torch import nn

from gpushare_kernel.nwv import checkpoint
from gpushare_kernel.nwv import task as tasks_room
from gpushare_kernel.nwv.beside import control_scores, metrics, plain, plain_scores
from gpushare_kernel.nwv.budget import Bill, Budget, page_size_for
from gpushare_kernel.nwv.code import setting_of
from gpushare_kernel.nwv.fisher import Labels, even, fisher
from gpushare_kernel.nwv.matching import Cut, Method, Placement, place, total_cost
from gpushare_kernel.nwv.packed import Packed, table_type
from gpushare_kernel.nwv.pages import alike, as_they_are, cut, page_type, paged, returns, twins
from gpushare_kernel.nwv.quantised import LEVELS, encode
from gpushare_kernel.nwv.refusal import PackingStopped
from gpushare_kernel.nwv.report import PackReport
from gpushare_kernel.nwv.task import Task, of_task
from gpushare_kernel.nwv.training import Joint, Models, Plan, Progress, Spans, State, start


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What `pack` was asked for."""

    given: Mapping[str, Task | nn.Module]
    budget: Budget
    bits: int | None
    page_size: int | None
    plan: Plan
    labels: Labels
    method: Method
    own: float
    folder: str | os.PathLike[str] | None
    control: bool
    seed: int
    progress: bool
    max_drop: float | None = None
    title: str = "packing"
    """What the bar says."""

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The models."""
        return {name: one.model if isinstance(one, Task) else one for name, one in self.given.items()}  # fmt: skip

    def shown(self, rounds: Iterator[Progress], done: int, title: str) -> Iterator[Progress]:
        """Pass rounds on, with a bar where one is wanted: what each model scored on validation data."""
        if not self.progress:
            yield from rounds
            return
        from tqdm.auto import tqdm  # noqa: PLC0415  an extra

        with tqdm(total=self.plan.rounds, initial=done, desc=title, unit="round", leave=False) as bar:  # fmt: skip
            for after in rounds:
                if after.scores:
                    bar.set_postfix({name: f"{metric:.3f}" for name, metric in after.scores[-1].items()})  # fmt: skip
                bar.update()
                yield after


@dataclass(slots=True)
class _Stand:
    """Where a packing stands: matched, ready to train or trained."""

    fishers: Mapping[str, torch.Tensor]
    spots: Mapping[str, Cut]
    tables: Mapping[str, torch.Tensor]
    models: Models
    begun: State
    reached: Progress | None = None

    @property
    def best(self) -> State:
        """The best state by validation; the start where nothing was trained."""
        return self.reached.best if self.reached else self.begun


class Work:
    """One packing."""

    def __init__(self, call: Call) -> None:
        """Cut the models and see what the budget pays for; refuse what cannot be, before anything is computed."""
        self.call = call
        with _nothing_lost(None):
            self._begin()

    def _begin(self) -> None:
        call = self.call
        largest = max(sum(one.numel() for one in module.parameters()) for module in call.modules.values())  # fmt: skip
        size = call.page_size or page_size_for(largest)
        #: As each model would be by itself; `cuts` is how it is in the bundle.
        self.apart = {name: cut(name, module, size) for name, module in call.modules.items()}
        self.contents = twins(self.apart)
        self.dtype = page_type(self.apart)
        self.bits = call.bits or self.dtype.itemsize * 8
        different = len({one for row in self.contents.values() for one in row})
        self.bill = Bill.of(self.apart, different, self.bits)
        self.count = self.bill.pages(call.budget)
        self.cuts = as_they_are(self.apart) if self._unmerged else alike(self.apart, self.contents, self.dtype)  # fmt: skip
        self.tasks = tasks_room.apart(tasks_room.tasks_of(call.given))
        self.alone: dict[str, tuple[float, float]] = {}
        self.fresh: dict[str, tuple[float, float] | None] = {}
        for name, one in self.tasks.items():
            with of_task(name):
                self.alone[name] = tasks_room.alone(one)
                self.fresh[name] = tasks_room.check_metric(name, one, self.alone[name])

    def done(self) -> tuple[Packed, PackReport]:
        """Return the bundle, and what it costs.

        Raises
        ------
        PackingStopped
            Where memory runs out; what was reached is kept.
        """
        call = self.call
        folder, key = self._kept_in()
        if call.folder is None:
            checkpoint.tidy(folder)
        with _nothing_lost(folder):
            stand = self._trained(folder, key)
            packed = self._packed(stand)
            report = self._report(packed, stand)
        if call.folder is None:
            checkpoint.forget(folder)
        return packed, report

    def _kept_in(self) -> tuple[Path, str]:
        """Return where progress is kept, and what tells it from that of other packings."""
        call = self.call
        judged = [(name, setting_of(one.metric), setting_of(one.loss)) for name, one in self.tasks.items()]  # fmt: skip
        key = checkpoint.key_of(self.cuts, self.count, self.bits, call.plan, call.labels, call.method, call.own, call.seed, judged)  # fmt: skip
        return Path(call.folder) if call.folder is not None else checkpoint.default_folder(key), key

    def _trained(self, folder: Path, key: str) -> _Stand:
        """Weigh, place and train; from where an earlier call with this key stopped."""
        fishers = self._fishers()
        spots = {name: Cut(one.values, fishers[name], self.contents[name]) for name, one in self.cuts.items()}  # fmt: skip
        call = self.call
        trains = bool(self.tasks) and not self._unmerged
        kept = checkpoint.load(folder, key, list(self.cuts), self._device) if trains else None
        tables = kept[0] if kept else self._placed(spots, call.method).tables
        models = self._models(tables)
        stand = _Stand(fishers, spots, tables, models, start(models, fishers, self.count))
        if trains:
            joint = Joint(models, fishers, call.plan, self._spans, call.seed)
            stand.reached = joint.go_on(kept[1]) if kept else joint.begin(stand.begun.copy())
            rounds = joint.rounds(stand.reached)
            for after in call.shown(rounds, stand.reached.round, call.title):
                checkpoint.save(folder, key, tables, after)
        return stand

    @property
    def _device(self) -> torch.device:
        return next(iter(self.cuts.values())).raw.device

    @property
    def _unmerged(self) -> bool:
        """Whether every page that differs has a place of its own."""
        return self.count >= self.bill.contents and self.bits not in LEVELS

    @property
    def _spans(self) -> Spans:
        return {name: _span(found, self.fresh[name]) for name, found in self.alone.items()}

    def _fishers(self) -> dict[str, torch.Tensor]:
        found = {}
        for name, module in self.call.modules.items():
            with of_task(name):
                each = fisher(self.tasks[name], self.call.labels) if self.tasks else even(module)
            found[name] = paged(self.cuts[name], each)
        return found

    def _placed(self, spots: Mapping[str, Cut], method: Method) -> Placement:
        own = round(self.call.own * sum(self.bill.rows.values()))
        return place(spots, self.count, method=method, own=own, seed=self.call.seed)

    def _models(self, tables: Mapping[str, torch.Tensor]) -> Models:
        given = self.tasks or {name: Task(module, (), ()) for name, module in self.call.modules.items()}  # fmt: skip
        return Models(given, self.cuts, tables, self.bits, self.dtype)

    def _packed(self, stand: _Stand) -> Packed:
        kind = table_type(self.count)
        pages, scales = stand.best.pages.to(self.dtype), None
        if self.bits in LEVELS:
            pages, scales = encode(stand.best.pages, self.bits)
        return Packed(
            self.bill.page_size,
            self.bits,
            pages,
            scales,
            {name: one.member for name, one in self.cuts.items()},
            {name: table.to(kind).to(self._device) for name, table in stand.tables.items()},
            {
                name: {key: one.to(self.cuts[name].private[key].dtype) for key, one in kept.items()}
                for name, kept in stand.best.private.items()
            },
        ).check()

    def _report(self, packed: Packed, stand: _Stand) -> PackReport:
        in_pages = sum(one.member.weights * one.raw.element_size() for one in self.cuts.values())
        plains = {f"int{bits}": plain(self.apart, bits).sizes().total for bits in LEVELS}
        report = PackReport(
            sizes=packed.sizes(),
            page_size=self.bill.page_size,
            pages=self.count,
            bits=self.bits,
            tables={name: one.cpu() for name, one in packed.tables.items()},
            bytes={"alone": self.bill.alone, **plains},
            page_ratio=in_pages / packed.sizes().pages,
            notes=self._notes(packed, stand.reached),
        )
        if self.tasks:
            self._compare(report, stand)
        return report

    def _compare(self, report: PackReport, stand: _Stand) -> None:
        """Fill in how good each way is."""
        call, tasks = self.call, self.tasks
        random = self._placed(stand.spots, "random")
        at_random = self._models(random.tables)
        merged = start(at_random, stand.fishers, self.count)
        report.cost, report.cost_random = total_cost(stand.spots, stand.tables, self.count), random.cost  # fmt: skip
        report.on_test = all(one.test is not None for one in tasks.values())
        report.validated = {
            "alone": metrics(self.alone),
            "packed": metrics(stand.models.scores(stand.best)),
        }
        report.scores = {
            "alone": {name: self._as_given(name, one) for name, one in tasks.items()},
            "random": metrics(at_random.scores(merged, reported=True)),
            "merged": metrics(stand.models.scores(stand.begun, reported=True)),
            "packed": metrics(stand.models.scores(stand.best, reported=True)),
            **{f"int{bits}": plain_scores(tasks, self.apart, bits) for bits in LEVELS},
        }
        if stand.reached is not None:
            report.rounds, report.best_round = stand.reached.scores, stand.reached.best_round
            refused = call.max_drop is not None and not report.holds(call.max_drop)
            if call.control and not refused:  # it takes as long as all the rest
                report.scores["control"] = control_scores(tasks, self.apart, call.plan, call.seed, call.shown)  # fmt: skip

    def _as_given(self, name: str, one: Task) -> float:
        with of_task(name):
            return tasks_room.alone(one, one.reported)[0]

    def _returns(self, packed: Packed) -> bool:
        """Tell whether every weight can be read out as it was given, bit by bit."""
        return all(returns(one, packed.pages[packed.tables[name].to(torch.int64)]) for name, one in self.cuts.items())  # fmt: skip

    def _notes(self, packed: Packed, reached: Progress | None) -> list[str]:
        notes = []
        if not self.tasks:
            notes.append("Merged without training, with all weights mattering alike: some came without data. How good they are is not known. Give Task(model, train, validate).")  # fmt: skip
        if self._unmerged and self._returns(packed):
            notes.append("Lossless: every page that differs has a place of its own, and equal ones are stored once. Nothing was trained.")  # fmt: skip
        unknown = [name for name, one in self.fresh.items() if one is None]
        if unknown:
            notes.append(f"Whether more is better by the metric of {', '.join(unknown)} was not looked at: fresh weights say nothing of it.")  # fmt: skip
        if reached is not None and reached.stopped:
            notes.append(f"Training stopped early: {reached.stopped}.")
        return notes


def _span(trained: tuple[float, float], fresh: tuple[float, float] | None) -> tuple[float, float]:
    """Return how much better a model is than a fresh one, in metric and loss; its own size where that is not known."""
    better = (0.0, 0.0) if fresh is None else (trained[0] - fresh[0], fresh[1] - trained[1])
    metric, loss = (one if 0 < one < inf else abs(own) or 1.0 for one, own in zip(better, trained, strict=True))  # fmt: skip
    return metric, loss


@contextmanager
def _nothing_lost(folder: Path | None) -> Iterator[None]:
    """Say what is kept and how to go on where memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        if not (isinstance(problem, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(problem)):  # fmt: skip
            raise
        said = (str(problem).splitlines() or [type(problem).__name__])[0]
        kept = f"the rounds that are done are kept in {folder}" if folder is not None and any(folder.glob("*.safetensors")) else "no round was done yet, and your models are as they were"  # fmt: skip
        msg = f"memory ran out while packing ({said}): {kept}. Free memory or take smaller batches, and make the same call again{': it goes on from there' if kept.startswith('the rounds') else ''}."  # fmt: skip
        raise PackingStopped(msg, folder) from problem
