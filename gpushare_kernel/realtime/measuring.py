"""How long each layer takes on this node: run as a job runs, look for orders between layers and all, again and again.

Every other run finds the caches empty, as a layer does that runs after other models' layers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gpushare_kernel.realtime import orders, payload
from gpushare_kernel.realtime.caches import emptier
from gpushare_kernel.realtime.holding import Holding
from gpushare_kernel.realtime.model import Kind
from gpushare_kernel.realtime.queues import Work

if TYPE_CHECKING:
    from gpushare_kernel.realtime.runner import Runner

_FEWEST = 10
"""Runs at least, however long they take."""
_FIRST, _LONG = 3, 5.0
"""Runs that count for nothing, at least; seconds after which there are no more of these."""
_REST, _RESTED = 0.01, 4
"""Seconds of rest before every so many runs: a job comes when its node has had nothing to do, and its threads are asleep."""

_STOLEN = 0.0001
"""Seconds that a layer's other threads waited for a stranger, from which on a run is disturbed."""


class Meter:
    """The longest and the shortest of each layer."""

    def __init__(self, layers: int) -> None:
        self._worst, self._amid = [0.0] * layers, [0.0] * layers
        self.best = [float("inf")] * layers
        self.moves = [0.0] * layers

    @property
    def worst(self) -> list[float]:
        """The longest of the undisturbed runs; of all, where a layer had none."""
        return [alone or amid for alone, amid in zip(self._worst, self._amid, strict=True)]

    def note(self, layer: int, took: float, moved: float, *, disturbed: bool = False) -> None:
        """One more run of a layer; `moved` is what bringing its input in took. `disturbed`: its threads waited for a stranger."""
        kept = self._amid if disturbed else self._worst
        kept[layer] = max(kept[layer], took)
        self.best[layer] = min(self.best[layer], took)
        self.moves[layer] = max(self.moves[layer], moved)


def measured(runner: Runner, held: Holding, order: orders.Measure) -> orders.Measured:
    """Measure; an error of the model is told instead."""
    try:
        return _Measurement(runner, held, order).made()
    except BaseException as problem:  # noqa: BLE001  whatever a layer raises belongs to who asked
        from gpushare_kernel.realtime.runner import pickled  # noqa: PLC0415  each needs the other

        return orders.Measured(order.task, [], [], [], [], 0, pickled(problem))


class _Measurement:
    """Runs of one model, each from the same input."""

    def __init__(self, runner: Runner, held: Holding, order: orders.Measure) -> None:
        self._runner, self._held, self._order = runner, held, order
        self._layers = range(held.last + 1)
        self._forms = self._seen()
        self._slot = memoryview(bytearray(max(form.room for form in self._forms)))
        self._empty = emptier(runner.device)

    def made(self) -> orders.Measured:
        """Warm up, and measure."""
        order, first = self._order, Meter(len(self._layers))
        slow = time.monotonic() + _LONG
        for run in range(order.warm):
            self._run(first)
            if run + 1 >= _FIRST and time.monotonic() > slow:
                break
        if order.enough is not None and sum(first.best) > order.enough:
            return orders.Measured(order.task, first.worst, first.best, first.moves, self._forms, 0, given_up=True)  # fmt: skip
        meter, done, end = Meter(len(self._layers)), 0, time.monotonic() + order.seconds
        while done < order.repeats and (done < _FEWEST or time.monotonic() < end):
            self._run(meter, cold=done % 2 == 1, rested=done % _RESTED == 1)
            done += 1
        return orders.Measured(order.task, meter.worst, meter.best, meter.moves, self._forms, done)

    def _run(self, meter: Meter, *, cold: bool = False, rested: bool = False) -> None:
        work, held = self._work(), self._held
        for layer in self._layers:
            if cold:
                self._empty()
            if rested and layer == 0:
                time.sleep(_REST)
            moved = self._moved(work.value)
            work.layer = layer
            began = self._runner.core.mark()
            self._runner.timed(held, work)
            payload.check(work.value, self._forms[layer + 1], held.where(layer))
            self._runner.hear()
            ended = self._runner.core.mark()
            # What strangers took is not the layer's, here as later. How long its other threads made it wait is not
            # exactly known: too little would be promised by a time that is too short, so such a run is left out.
            core = self._runner.core
            stolen = core.lost(began, ended, alone=True)
            disturbed = core.lost(began, ended) - stolen > _STOLEN
            meter.note(layer, ended.wall - began.wall - stolen, moved, disturbed=disturbed)

    def _seen(self) -> list[payload.Form]:
        """Run it once, to see what comes between its layers."""
        work, forms = self._work(), [self._order.form]
        for layer in self._layers:
            work.layer = layer
            self._runner.timed(self._held, work)
            forms.append(payload.form_of(work.value))
        return forms

    def _work(self) -> Work:
        order = self._order
        value = payload.read(self._held.slot(0), order.form, self._runner.device)
        return Work(order.task, 0, 0, 0, Kind.BE, 1.0, order.form, rehearsal=True, value=value, held=True)  # fmt: skip

    def _moved(self, value: Any) -> float:
        """Return the seconds that it takes to put a value into a slot and to take it out again."""
        started, device = time.monotonic(), self._runner.device
        payload.read(self._slot, payload.write(value, self._slot), device)
        if device != "cpu":
            import torch  # noqa: PLC0415  there where the device is

            torch.cuda.synchronize()
        return time.monotonic() - started
