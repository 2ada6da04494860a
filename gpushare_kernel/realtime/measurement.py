"""Measure a model on this machine, or take what was measured before."""

from __future__ import annotations

import datetime
import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from gpushare_kernel.client.display import Steps
from gpushare_kernel.core.errors import Refused, UserError
from gpushare_kernel.realtime import cache, host, node, orders, payload, traffic
from gpushare_kernel.realtime.chain import BadModel, Chain, chain, on_example
from gpushare_kernel.realtime.load_page import LoadPage
from gpushare_kernel.realtime.model import Kind, Layer, NodeType, Stage, Task
from gpushare_kernel.realtime.node import Node, NodeDied
from gpushare_kernel.realtime.placement import cores_of
from gpushare_kernel.realtime.profile import Costs, Profile, joined
from gpushare_kernel.realtime.queues import Mode
from gpushare_kernel.realtime.steps import measuring_text, shown
from gpushare_kernel.realtime.tenant import Tenant

WARM, REPEATS, SECONDS = 10, 200, 3.0
"""Runs that count for nothing; runs that count, at most; seconds after which there are no more (but ten at least)."""


def node_types(cores: int, gpus: int) -> tuple[NodeType, ...]:
    """Return the types that are worth measuring: core counts that are powers of two, and all cores; with a GPU and without."""
    counts = {cores, *(1 << n for n in range(cores.bit_length()) if 1 << n <= cores)}
    return tuple(NodeType(cpus, gpu) for gpu in range(min(1, gpus) + 1) for cpus in sorted(counts))


def measure(
    model: Any,
    example: Any,
    types: Sequence[NodeType] | None = None,
    *,
    name: str = "",
    repeats: int = REPEATS,
    seconds: float = SECONDS,
    again: bool = False,
    beside: Sequence[str] = (),
    deadline: float | None = None,
    step: Steps | None = None,
) -> Profile:
    """Return how long `model`'s layers take with inputs like `example`.

    What was measured on this machine before is taken from the user's cache; only the types that miss are measured.

    Parameters
    ----------
    types
        Node types; all that are worth it where none are given.
    repeats, seconds
        Runs that count at most, and seconds after which there are no more of them.
    again
        Whether what the cache has of these types is left aside.
    beside
        Pipelines that have deadlines now. A measurement would take cores from them, and find times that are not the model's.
    deadline
        Seconds: a model that takes longer is refused after its first runs.
    step
        Called with what happens now; shown where none is given.

    Raises
    ------
    BadModel, UserError
        Where the model is none, raises, or gives outputs of changing forms.
    Refused
        Where its layers take longer than `deadline` on whichever type is fastest for each.
    """
    links = chain(model, example, name=name)
    wanted = node_types(host.cores(), host.gpus()) if types is None else tuple(types)
    place = cache.place_of(links, example)
    known = cache.load(place)
    missing = [kind for kind in wanted if again or known is None or str(kind) not in known.costs]
    if not missing and known is not None:
        return known
    if beside:
        listed = ", ".join(map(str, missing))
        msg = f"model {links.name}: measuring it on {listed} would take cores from the deadlines of {', '.join(beside)}. Close those, call gpushare.realtime.measure(model, example), and open them all."
        raise UserError(msg)
    with shown(step) as say:
        say(measuring_text(links.name, len(links), missing, seconds))
        limit = deadline if known is None else None
        found = joined(
            known,
            _measured(links, example, missing, repeats=repeats, seconds=seconds, deadline=limit),
        )
    cache.save(place, found)
    return found


def _measured(links: Chain, example: Any, types: Sequence[NodeType], *, repeats: int, seconds: float, deadline: float | None) -> Profile:  # fmt: skip
    found: dict[str, orders.Measured] = {}
    for kind in types:
        found[str(kind)] = _on(
            kind, links, example, repeats=repeats, seconds=seconds, deadline=deadline
        )
    if deadline is not None:
        _refuse_hopeless(links, found, deadline)
        for kind in types:  # slow as a whole, but maybe not where others have the slow layers
            if found[str(kind)].given_up:
                found[str(kind)] = _on(
                    kind, links, example, repeats=repeats, seconds=seconds, deadline=None
                )
    first = next(iter(found.values()))
    for name, one in found.items():
        if one.forms != first.forms:
            msg = f"model {links.name}: its layers must give the same forms on every node, and give others on {name}. Have it not ask where it runs."
            raise BadModel(msg)
    return Profile(
        model=links.name,
        machine=host.described(),
        layers=[piece.name for piece in links.pieces],
        forms=first.forms,
        costs={
            name: Costs(one.worst, one.best, one.moves, one.repeats) for name, one in found.items()
        },
        when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _refuse_hopeless(links: Chain, found: Mapping[str, orders.Measured], deadline: float) -> None:
    """Refuse a model whose layers were never quick enough, each on the type that is best for it."""
    if not all(one.given_up for one in found.values()):
        return
    fastest = sum(map(min, zip(*(one.best for one in found.values()), strict=True)))
    if fastest > deadline:
        msg = (
            f"model {links.name}: its layers took {1000 * fastest:.4g} ms at least, alone and each on its fastest nodes "
            f"({', '.join(found)}): more than its deadline of {1000 * deadline:.4g} ms. Lengthen the deadline, or make the model smaller."
        )
        raise Refused(msg)


def _on(kind: NodeType, links: Chain, example: Any, *, repeats: int, seconds: float, deadline: float | None) -> orders.Measured:  # fmt: skip
    """Measure on one type: a node of its own, traffic on all the cores that it leaves."""
    if kind.gpus > host.gpus():
        msg = f"node type {kind} has a GPU, and torch finds {host.gpus()} here. Take another type, or a machine that has one."
        raise UserError(msg)
    (mine,) = cores_of([kind])
    others = sorted(os.sched_getaffinity(0) - set(mine))
    page = LoadPage.create(1)
    row: list[Node] = []
    tenant = _tenant(kind, links, example)
    try:
        row = node.start([kind], [mine], page, Mode.LAYER)
        with traffic.beside(others):
            return _ask(row[0], kind, tenant, orders.Measure(0, tenant.forms[0], WARM, repeats, seconds, deadline))  # fmt: skip
    finally:
        node.stop(row)
        tenant.close()
        page.close()


def _tenant(kind: NodeType, links: Chain, example: Any) -> Tenant:
    """Return the model as a task that is measured: what comes between its layers is not known yet."""
    form = payload.form_of(example)
    layers = tuple(Layer({kind: 1.0}) for _ in links.pieces)
    tenant = Tenant(0, Task(links.name, Kind.BE, layers), links, [form], example)
    tenant.stages = (Stage(0, 0, len(links) - 1),)
    payload.write(example, tenant.slot(0))
    return tenant


def _ask(one: Node, kind: NodeType, tenant: Tenant, order: orders.Measure) -> orders.Measured:
    (home,) = tenant.homes([kind])
    load, blob = tenant.load(kind, home, [home])
    try:
        one.tell(load, (tenant.fd, blob))
    finally:
        os.close(blob)
    one.tell(order)
    while True:
        said = orders.from_node(one.control)
        if said is None:
            raise NodeDied(one.obituary())
        if isinstance(said, orders.Loaded) and said.problem:
            msg = f"model {tenant.chain.name} cannot be loaded in a node's process: {said.problem}. What it imports must be installed for this Python."
            raise BadModel(msg)
        if isinstance(said, orders.Measured):
            if said.problem:
                raise on_example(tenant.chain.name, pickle.loads(said.problem))  # noqa: S301  our own node wrote it
            return said
