"""`pack`: several trained models become one bundle, and what that cost is measured."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.nwv import checkpoint, task as tasks_room
from gpushare_kernel.nwv.budget import Bill, Budget, page_size_for
from gpushare_kernel.nwv.fisher import Labels, even, fisher
from gpushare_kernel.nwv.matching import Cut, Method, Placement, place, total_cost
from gpushare_kernel.nwv.packed import Packed, table_type
from gpushare_kernel.nwv.pages import Weights, check_apart, cut, page_type, paged, twins
from gpushare_kernel.nwv.quantised import LEVELS, encode
from gpushare_kernel.nwv.refusal import DropTooLarge, PackingStopped
from gpushare_kernel.nwv.report import PackReport
from gpushare_kernel.nwv.task import Task
from gpushare_kernel.nwv.training import Joint, Models, Plan, Progress, State, start

OWN = 0.02
"""Part of all pages that may stay their model's own, the most important first, where the budget has room."""
_LESS = 0.8
"""Each ratio that is tried for `max_drop` is this part of the one before."""
_TRIES = 5


@dataclass(slots=True)
class Result:
    """A bundle and its report. `plain` makes the bundle without sharing that the report compares it with."""

    packed: Packed
    report: PackReport
    cuts: Mapping[str, Weights]

    def plain(self, bits: int) -> Packed:
        """Return all models in pages of so many bits (8 or 4), none of them shared, nothing trained."""
        return plain(self.cuts, bits)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()  # noqa: SLF001  IPython's name

    def __str__(self) -> str:
        return str(self.report)


def pack(
    models: Mapping[str, Task | nn.Module],
    *,
    ratio: float | None = None,
    pages: int | None = None,
    bytes: int | str | None = None,  # noqa: A002  what it is called
    bits: int | None = None,
    page_size: int | None = None,
    max_drop: float | None = None,
    plan: Plan = Plan(),  # noqa: B008  frozen
    labels: Labels = "true",
    method: Method = "best",
    own: float = OWN,
    folder: str | os.PathLike[str] | None = None,
    control: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Pack trained models into one set of pages.

    Parameters
    ----------
    models
        By name, `Task`s. Where any is a bare module, all are merged without training, and nothing is known of how good they are.
    ratio, pages, bytes
        One of them: how many times smaller than the models by themselves, how many pages, or bytes at most (`"2MiB"`).
        All is counted that running needs: pages, scales, tables, and what is private to a model.
    bits
        8 or 4: pages of such codes; else weights stay as they are.
    page_size
        Weights of a page; by the largest model where it is not given.
    max_drop
        What any model may lose of its metric on validation data (0.03: three points of accuracy).
    plan
        Rounds, steps, kappa, learning rate.
    labels, method
        Of what the Fisher is, and how pages are matched.
    own
        Part of all pages that may stay one model's, where there is room.
    folder
        Where progress is kept, to go on after a kill; in the user's cache, until it is done, where none is given.
    control
        Whether each model is trained as long by itself too, to compare: it doubles the time.

    Raises
    ------
    BadDeclaration, BadModel
        For a budget, a task or a model that cannot be.
    DropTooLarge
        Where `max_drop` does not hold. It says which ratio does: smaller ones are tried, at the price of a packing each.
    PackingStopped
        Where memory ran out. The same call goes on from the last round.
    """
    one = _Packing(models, Budget(ratio, pages, bytes), bits, page_size, plan, labels, method, own, folder, control, seed, progress)  # fmt: skip
    one.check(max_drop)
    found = one.run()
    if max_drop is not None and max(found.report.drops.values()) > max_drop:
        raise _too_large(one, found.report, max_drop)
    return found


@dataclass(slots=True)
class _Packing:
    """One call of `pack`."""

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

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The models."""
        return {name: one.model if isinstance(one, Task) else one for name, one in self.given.items()}  # fmt: skip

    def check(self, max_drop: float | None) -> None:
        """Refuse what cannot be packed, before anything is computed."""
        _check_options(self)
        for name, module in self.modules.items():
            if not isinstance(module, nn.Module):
                msg = f"{name} must be a Task or a torch module, and is a {type(module).__name__}. Write Task(model, train, validate)."
                raise BadDeclaration(msg)
        bare = [name for name, one in self.given.items() if not isinstance(one, Task)]
        if bare and max_drop is not None:
            msg = f"max_drop={max_drop:g} cannot be checked: {', '.join(bare)} came without data. Give Task(model, train, validate), or leave max_drop out."
            raise BadDeclaration(msg)
        check_apart(self.modules)
        devices = {str(tasks_room.device_of(module)) for module in self.modules.values()}
        if len(devices) > 1:
            msg = f"models are on {' and '.join(sorted(devices))}, and pages are in one place. Move them to one device."
            raise BadDeclaration(msg)
        for name, one in tasks_room.tasks_of(self.given).items():
            tasks_room.check_loaders(name, one)

    def run(self) -> Result:
        """Pack, measure, and report."""
        size = self.page_size or page_size_for(max(sum(p.numel() for p in one.parameters()) for one in self.modules.values()))  # fmt: skip
        cuts = {name: cut(name, module, size) for name, module in self.modules.items()}
        contents = twins(cuts)
        dtype = page_type(cuts)
        bits = self.bits or dtype.itemsize * 8
        bill = Bill.of(cuts, len({one for row in contents.values() for one in row}), bits)
        count = bill.pages(self.budget)
        tasks = tasks_room.tasks_of(self.given)
        alone = {name: tasks_room.alone(one) for name, one in tasks.items()}
        for name, one in tasks.items():
            tasks_room.check_metric(name, one, alone[name])
        work = _Work(self, cuts, contents, dtype, bits, bill, count, tasks, alone)
        return work.done()


def _check_options(one: _Packing) -> None:
    if not one.given:
        msg = "there is nothing to pack. Give {name: Task(model, train, validate)}."
        raise BadDeclaration(msg)
    if one.bits not in {None, *LEVELS}:
        msg = (
            f"bits must be 8 or 4, and {one.bits} is not. Leave it out for pages like the weights."
        )
        raise BadDeclaration(msg)
    if one.page_size is not None and (one.page_size < 2 or one.page_size % 2):  # noqa: PLR2004
        msg = f"page_size must be an even number of weights, and {one.page_size} is not. Leave it out, or write 256."
        raise BadDeclaration(msg)
    if not 0 <= one.own < 1:
        msg = f"own is the part of all pages that stay one model's, from 0 up to 1, and {one.own:g} is not. Leave it out."
        raise BadDeclaration(msg)


@dataclass(slots=True)
class _Work:
    """What one packing has found out on its way."""

    call: _Packing
    cuts: Mapping[str, Weights]
    contents: Mapping[str, list[int]]
    dtype: torch.dtype
    bits: int
    bill: Bill
    count: int
    tasks: Mapping[str, Task]
    alone: Mapping[str, tuple[float, float]]

    def done(self) -> Result:
        """Return the bundle."""
        call = self.call
        key = checkpoint.key_of(self.cuts, self.count, self.bits, call.plan, call.labels, call.method, call.own, call.seed, self.cuts.keys())  # fmt: skip
        folder = Path(call.folder) if call.folder is not None else checkpoint.default_folder(key)
        with _nothing_lost(folder):
            fishers = self._fishers()
            spots = {name: Cut(one.values, fishers[name], self.contents[name]) for name, one in self.cuts.items()}  # fmt: skip
            kept = checkpoint.load(folder, key, list(self.cuts), self._device) if self.tasks else None  # fmt: skip
            placed = self._placed(spots) if kept is None else Placement(kept[0], 0.0)
            models = self._models(placed.tables)
            begun = start(models, fishers, self.count)
            reached = self._trained(models, fishers, begun, placed, kept[1] if kept else None, folder, key)  # fmt: skip
            state = reached.best if reached else begun
            packed = self._packed(state, placed.tables)
            report = self._report(packed, placed, spots, models, fishers, begun, reached)
        if call.folder is None:
            checkpoint.forget(folder)
        return Result(packed, report, self.cuts)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.cuts.values())).raw.device

    def _fishers(self) -> dict[str, torch.Tensor]:
        by_name = {name: fisher(self.tasks[name], self.call.labels) if self.tasks else even(module) for name, module in self.call.modules.items()}  # fmt: skip
        return {name: paged(self.cuts[name], found) for name, found in by_name.items()}

    def _placed(self, spots: Mapping[str, Cut], method: Method | None = None) -> Placement:
        own = round(self.call.own * sum(self.bill.rows.values()))
        return place(spots, self.count, method=method or self.call.method, own=own, seed=self.call.seed)  # fmt: skip

    def _models(self, tables: Mapping[str, torch.Tensor], bits: int | None = None) -> Models:
        given = self.tasks or {name: Task(module, (), ()) for name, module in self.call.modules.items()}  # fmt: skip
        return Models(given, self.cuts, tables, bits or self.bits, self.dtype)

    def _trained(
        self,
        models: Models,
        fishers: Mapping[str, torch.Tensor],
        begun: State,
        placed: Placement,
        kept: Progress | None,
        folder: Path,
        key: str,
    ) -> Progress | None:
        """Return what training reached; None where there is nothing to train, or no need to."""
        if not self.tasks or self._lossless:
            return None
        joint = Joint(models, fishers, self.call.plan, self.call.seed)
        reached = joint.begin(begun.copy()) if kept is None else kept
        for after in _shown(joint.rounds(reached), self.call, reached.round, "packing"):
            checkpoint.save(folder, key, placed.tables, after)
        return reached

    @property
    def _lossless(self) -> bool:
        return self.count >= self.bill.contents and self.bits not in LEVELS

    def _packed(self, state: State, tables: Mapping[str, torch.Tensor]) -> Packed:
        kind = table_type(self.count)
        return Packed(
            self.bill.page_size,
            self.bits,
            *_stored(state.pages, self.bits, self.dtype),
            {name: one.member for name, one in self.cuts.items()},
            {name: table.to(kind).to(self._device) for name, table in tables.items()},
            {
                name: {key: one.to(self.cuts[name].private[key].dtype) for key, one in kept.items()}
                for name, kept in state.private.items()
            },
        ).check()

    def _report(
        self,
        packed: Packed,
        placed: Placement,
        spots: Mapping[str, Cut],
        models: Models,
        fishers: Mapping[str, torch.Tensor],
        begun: State,
        reached: Progress | None,
    ) -> PackReport:
        sizes = {"alone": self.bill.alone, **{f"int{bits}": plain(self.cuts, bits).sizes().total for bits in LEVELS}}  # fmt: skip
        report = PackReport(
            packed.sizes(), self.bill.page_size, self.count, self.bits, placed.own, packed.tables, sizes,
            page_ratio=sum(one.member.weights * one.raw.element_size() for one in self.cuts.values()) / packed.sizes().pages,
            notes=self._notes(reached),
        )  # fmt: skip
        report.tables = {name: one.cpu() for name, one in packed.tables.items()}
        if self._lossless:
            report.own = self.count
        if not self.tasks:
            return report
        best = reached.best if reached else begun
        random = self._placed(spots, "random")
        at_random = self._models(random.tables)
        report.cost, report.cost_random = total_cost(spots, placed.tables, self.count), random.cost
        report.on_test = all(one.test is not None for one in self.tasks.values())
        report.validated = {"alone": _metrics(self.alone), "packed": _metrics(models.scores(best))}
        scores = {
            "alone": {name: tasks_room.alone(one, one.reported)[0] for name, one in self.tasks.items()},
            "random": _metrics(at_random.scores(start(at_random, fishers, self.count), reported=True)),
            "merged": _metrics(models.scores(begun, reported=True)),
            "packed": _metrics(models.scores(best, reported=True)),
            **{f"int{bits}": self._plain_scores(bits) for bits in LEVELS},
        }  # fmt: skip
        if self.call.control and reached is not None:
            scores["control"] = self._control()
        report.scores = scores
        if reached is not None:
            report.rounds, report.best_round = reached.scores, reached.best_round
        return report

    def _notes(self, reached: Progress | None) -> list[str]:
        notes = []
        if not self.tasks:
            notes.append("Merged without training, with all weights mattering alike: some came without data. How good they are is not known. Give Task(model, train, validate).")  # fmt: skip
        if self._lossless:
            notes.append("Lossless: every page that differs has a place of its own, and equal ones are stored once. Nothing was trained.")  # fmt: skip
        if reached is not None and reached.stopped:
            notes.append(f"Training stopped early: {reached.stopped}.")
        return notes

    def _plain_scores(self, bits: int) -> dict[str, float]:
        """Return how good models are that are only quantised: by themselves, in pages of their own."""
        found = {}
        for name, one in self.tasks.items():
            models, state = _by_itself(name, one, self.cuts[name], bits, self.dtype)
            found |= _metrics(models.scores(state, reported=True))
        return found

    def _control(self) -> dict[str, float]:
        """Return how good each model is after the same training by itself, chosen on validation data too."""
        found = {}
        for name, one in self.tasks.items():
            models, state = _by_itself(name, one, self.cuts[name], self.dtype.itemsize * 8, self.dtype)  # fmt: skip
            joint = Joint(models, {}, self.call.plan, self.call.seed)
            reached = joint.begin(state)
            for _ in _shown(joint.rounds(reached), self.call, 0, f"{name} alone, as long"):
                pass
            found |= _metrics(models.scores(reached.best, reported=True))
        return found


def _by_itself(name: str, one: Task, weights: Weights, bits: int, dtype: torch.dtype) -> tuple[Models, State]:  # fmt: skip
    table = torch.arange(len(weights.raw), device=weights.raw.device)
    models = Models({name: one}, {name: weights}, {name: table}, bits, dtype)
    return models, start(models, {name: torch.ones_like(weights.values)}, len(table))


def plain(cuts: Mapping[str, Weights], bits: int) -> Packed:
    """Return models in pages of `bits` (8 or 4), none shared."""
    values = torch.cat([one.values for one in cuts.values()])
    kind = table_type(len(values))
    tables, first = {}, 0
    for name, one in cuts.items():
        tables[name] = torch.arange(first, first + len(one.raw), device=values.device).to(kind)
        first += len(one.raw)
    codes, scales = encode(values, bits)
    size = next(iter(cuts.values())).raw.shape[1]
    members = {name: one.member for name, one in cuts.items()}
    private = {name: dict(one.private) for name, one in cuts.items()}
    return Packed(size, bits, codes, scales, members, tables, private).check()


def _stored(values: torch.Tensor, bits: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    return encode(values, bits) if bits in LEVELS else (values.to(dtype), None)


def _metrics(found: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: metric for name, (metric, _) in found.items()}


def _shown(rounds: Iterator[Progress], call: _Packing, done: int, title: str) -> Iterator[Progress]:
    """Pass rounds on, with a bar where one is wanted: what each model scored on validation data."""
    if not call.progress:
        yield from rounds
        return
    from tqdm.auto import tqdm  # noqa: PLC0415  an extra

    with tqdm(total=call.plan.rounds, initial=done, desc=title, unit="round", leave=False) as bar:
        for after in rounds:
            if after.scores:
                bar.set_postfix({name: f"{metric:.3f}" for name, metric in after.scores[-1].items()})  # fmt: skip
            bar.update()
            yield after


@contextmanager
def _nothing_lost(folder: Path) -> Iterator[None]:
    """Say what is kept and how to go on where memory runs out."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as problem:
        if isinstance(problem, RuntimeError) and not isinstance(problem, torch.OutOfMemoryError) and "can't allocate memory" not in str(problem):  # fmt: skip
            raise
        reached = "the rounds that are done are" if any(folder.glob("*.safetensors")) else "nothing was trained yet; your models are as they were"  # fmt: skip
        msg = f"memory ran out while packing ({str(problem).splitlines()[0]}); {reached} kept in {folder}. Free memory or take smaller batches, and make the same call again: it goes on from there."  # fmt: skip
        raise PackingStopped(msg, folder) from problem


def _too_large(one: _Packing, report: PackReport, max_drop: float) -> DropTooLarge:
    """Return the refusal, with a ratio that was tried and holds."""
    worst = max(report.drops, key=lambda name: report.drops[name])
    said = f"model {worst} loses {report.drops[worst]:.3g} on validation data at ratio {report.ratio:.3g}, and max_drop is {max_drop:g}."
    ratio, tried = report.ratio, []
    for _ in range(_TRIES):
        ratio = int(100 * _LESS * ratio) / 100  # what is advised is what was tried
        if ratio <= 1:
            break
        again = replace(one, budget=Budget(ratio=ratio), folder=None, control=False)
        found = again.run().report
        tried.append(f"{found.ratio:.3g}")
        if max(found.drops.values()) <= max_drop:
            advice = f"Ratio {ratio:g} was tried and holds (worst {max(found.drops.values()):.3g}): write ratio={ratio:g}."
            return DropTooLarge(f"{said} {advice}", report, ratio)
    return DropTooLarge(f"{said} None of these held either: {', '.join(tried) or 'none below it is over 1'}. Train longer (plan=Plan(rounds=30)), allow more, or leave {worst} out.", report, None)  # fmt: skip
