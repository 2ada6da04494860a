"""Random task sets for the benchmarks and tests of the analysis: drawn by a seed, nothing of it is measured."""

from __future__ import annotations

from random import Random

from gpushare_kernel.realtime.model import Kind, Layer, NodeType, Stage, Task
from gpushare_kernel.realtime.taskset import Drain, Mode, Overhead, Taskset


def kinds(cpus: int, gpus: int) -> list[NodeType]:
    """Return every node type of a machine."""
    return [NodeType(n, g) for g in range(min(gpus, 1) + 1) for n in range(1, cpus + 1)]


def layers(
    chance: Random, number: int, mean: float, types: list[NodeType], least: float
) -> tuple[Layer, ...]:
    """Draw layers of `mean` seconds on a core: part of each is serial, and a GPU is 3 to 12 times as fast as a core.

    Every tenth runs on CPUs only. The least cost is the worst times `least`.
    """
    found = []
    for _ in range(number):
        base, serial = mean * chance.uniform(0.2, 1.8), chance.uniform(0.05, 0.3)
        faster, cpu_only = chance.uniform(3, 12), chance.random() < 0.1
        worst = {
            kind: base / faster if kind.gpus else base * (serial + (1 - serial) / kind.cpus)
            for kind in types
            if not (kind.gpus and cpu_only)
        }
        if cpu_only:
            worst |= {
                kind: base * (serial + (1 - serial) / kind.cpus) for kind in types if kind.gpus
            }
        best = {kind: seconds * least for kind, seconds in worst.items()}
        found.append(Layer(worst, best, transfer=mean * chance.uniform(0, 0.1)))
    return tuple(found)


def draw(
    seed: int,
    *,
    cpus: int,
    gpus: int,
    max_nodes: int,
    realtime: int,
    best_effort: int,
    depth: int,
    load: float,
    mode: Mode = Mode.LAYER,
    least: float = 1.0,
    costs: bool = False,
) -> Taskset:
    """Draw a set: `load` is what RT asks of the machine as `cpus` single cores; `costs` adds overheads, drains and jitter."""
    chance, types = Random(seed), kinds(cpus, gpus)
    tasks = []
    shares = [chance.uniform(0.5, 1.5) for _ in range(realtime)]
    for n, share in enumerate(shares):
        period = chance.choice([0.01, 0.02, 0.033, 0.05, 0.1])
        wanted = load * cpus * share / sum(shares)
        tasks.append(
            Task(
                name=f"rt{n}",
                kind=Kind.RT,
                layers=layers(chance, depth, wanted * period / depth, types, least),
                period=period,
                deadline=period * chance.uniform(0.8, 1.0),
                weight=float(chance.randint(1, max(2, realtime))),
                jitter=period * chance.uniform(0, 0.05) if costs else 0.0,
            )
        )
    for n in range(best_effort):
        mean = chance.uniform(0.0002, 0.001)
        tasks.append(
            Task(name=f"be{n}", kind=Kind.BE, layers=layers(chance, depth, mean, types, least))
        )
    return Taskset(
        cpus=cpus,
        gpus=gpus,
        max_nodes=max_nodes,
        mode=mode,
        tasks=tuple(tasks),
        overhead=Overhead(20e-6, 50e-6) if costs else Overhead(),
        drain=Drain(gpu=chance.uniform(0, 0.0005)) if costs else Drain(),
    )


def scatter(chance: Random, taskset: Taskset, nodes: int) -> dict[str, tuple[Stage, ...]]:
    """Place tasks at random: each on some of the nodes, cut anywhere. Every layer must run on every node."""
    found = {}
    for task in taskset.tasks:
        size = len(task.layers)
        parts = chance.randint(1, min(nodes, size))
        where = sorted(chance.sample(range(nodes), parts))
        cuts = [0, *sorted(chance.sample(range(1, size), parts - 1)), size]
        found[task.name] = tuple(
            Stage(node, cuts[n], cuts[n + 1] - 1) for n, node in enumerate(where)
        )
    return found
