"""P6: what a job is held to on a node, and how it is told of."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from gpushare_kernel.realtime import orders, payload
from gpushare_kernel.realtime.chain import chain
from gpushare_kernel.realtime.discipline import Discipline
from gpushare_kernel.realtime.model import Kind, Task
from gpushare_kernel.realtime.nodes import Nodes
from gpushare_kernel.realtime.pipeline import Pipeline
from gpushare_kernel.realtime.placement import Fixed
from gpushare_kernel.realtime.profile import Costs, Profile
from gpushare_kernel.realtime.tenant import Tenant
from tests.realtime.pieces import ONE, profile_of

X = np.arange(4.0)


def test_a_quick_layer_leaves_its_time_to_the_others() -> None:
    """P6: one layer is longer than measured, all of them together are not: nobody counted on more."""

    def spin(seconds: float) -> Any:
        def layer(x: Any) -> Any:
            end = time.thread_time() + seconds
            while time.thread_time() < end:
                pass
            return x

        return layer

    told: list[str] = []
    layers = [spin(0.05), lambda x: x, lambda x: x]
    made = profile_of(layers, X, [X] * 3)
    costs = Costs([0.02, 0.3, 0.02], [0.0] * 3, [0.0] * 3, 1)
    profile = Profile(made.model, made.machine, made.layers, made.forms, {"c1": costs})
    with Pipeline(layers, X, name="net", period=60, deadline=50, profile=profile, tell=told.append, nodes=Nodes(Fixed((ONE,)))) as pipe:  # fmt: skip
        pipe(X)
    report = pipe.report()
    assert (report.overruns, report.misses, told) == (0, 0, [])


def test_layers_that_took_too_long_together_are_named_together() -> None:
    """P6: from the stage's first one to the one at which it was too much, with what they took and what they had."""
    tenant = Tenant(0, Task("net", Kind.RT, (), 0.1, 0.1), chain([np.negative, abs, np.abs], X), [payload.form_of(X)] * 2, X)  # fmt: skip
    said = orders.Overran(0, 0, 0, 2, 1, took=0.02, worst=0.015, running=False)
    told, _ = Discipline().overran(tenant, said, 0.0, promised=True)
    tenant.close()
    assert told == (
        "layers 0 to 2 (absolute) of net took 20 ms on node 1, at most 15 when they were measured. "
        "Its deadline is not promised until it behaves again."
    )
