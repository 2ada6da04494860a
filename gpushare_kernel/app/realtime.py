"""`jupyter gpushare realtime`: whether a set of tasks keeps its deadlines, and the same as a simulation sees it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from traitlets import Bool, Float, Integer

from gpushare_kernel.app import words
from gpushare_kernel.app.base import Command, console, say
from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.realtime.analysis import Analysis, Bound, analyse
from gpushare_kernel.realtime.answers import answer_to
from gpushare_kernel.realtime.model import BadTaskset, Kind, Task
from gpushare_kernel.realtime.simulation import simulate
from gpushare_kernel.realtime.taskset import Taskset, parse_taskset

LONGEST = 1e6


class _TasksetCommand(Command):
    """A command on one task set."""

    exact = Bool(False, config=True, help="Try every configuration of nodes.")  # noqa: FBT003  traitlets
    json = Bool(False, config=True, help="Print JSON.")  # noqa: FBT003  traitlets
    flags = {  # noqa: RUF012  traitlets reads it from the class
        **Command.flags,
        "exact": (
            {"_TasksetCommand": {"exact": True}},
            "Try every configuration of nodes, not only the promising ones.",
        ),
        "json": ({"_TasksetCommand": {"json": True}}, "Print JSON."),
    }
    _path: Path | None = None

    def parse_command_line(self, argv: Sequence[str] | None = None) -> None:
        """Read our words; the one that stands for itself is the file."""
        files, rest = words.positionals(list(argv or ()), options=self.aliases, flags=self.flags)
        if not any(word in words.EVERYWHERE for word in rest):
            if len(files) != 1:
                verb = self.name.rpartition("-")[2]
                msg = (
                    f"this needs one task set, and got {', '.join(files) or 'none'}. "
                    f"Write: jupyter gpushare realtime {verb} TASKSET.json [options]"
                )
                raise BadDeclaration(msg)
            self._path = Path(files[0])
        super().parse_command_line(rest)

    def read(self) -> Taskset:
        """Read the task set; what is wrong with it is said with the file's name."""
        path = self._path or Path()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else "it is no UTF-8 text"
            msg = f"{path} cannot be read: {reason}. Name a task set, such as examples/realtime/camera.json"
            raise BadTaskset(msg) from None
        try:
            return parse_taskset(text)
        except BadTaskset as problem:
            msg = f"{path}: {problem}"
            raise BadTaskset(msg) from None


class AnalyseApp(_TasksetCommand):
    """Proves deadlines."""

    name = "jupyter-gpushare-realtime-analyse"
    description = """Find nodes and a placement by which all deadlines hold: jupyter gpushare realtime analyse TASKSET.json [options]

    A set that cannot keep its deadlines is refused: with the task that fails, by how much, and what would fit. docs/realtime.md has the format."""

    def start(self) -> None:
        """Analyse, and print."""
        taskset = self.read()
        found = analyse(taskset, exact=self.exact)
        if self.json:
            say(json.dumps(answer_to(found), indent=2))
            return
        say(_verdict(taskset, found))
        if found.configuration:
            console().print(_table(taskset, found))


class SimulateApp(_TasksetCommand):
    """Simulates what was proven."""

    name = "jupyter-gpushare-realtime-simulate"
    description = """Simulate a task set at its worst, and show what was seen beside the bounds: jupyter gpushare realtime simulate TASKSET.json [options]"""
    seconds = Float(60.0, config=True, help="Virtual seconds.")
    seed = Integer(0, config=True, help="Draws releases and times: the same seed, the same run.")
    aliases = {  # noqa: RUF012  traitlets reads it from the class
        **Command.aliases,
        "seconds": "SimulateApp.seconds",
        "seed": "SimulateApp.seed",
    }

    def start(self) -> None:
        """Analyse, simulate, and print."""
        if not 0 < self.seconds <= LONGEST or math.isnan(self.seconds):
            msg = f"--seconds {self.seconds:g} is no length of a simulation. Give more than 0, and at most {LONGEST:g}."
            raise BadDeclaration(msg)
        taskset = self.read()
        found = analyse(taskset, exact=self.exact)
        placement = {task.name: task.stages for task in found.tasks}
        seen = (
            simulate(taskset, found.configuration, placement, seconds=self.seconds, seed=self.seed)
            if found.configuration
            else {}
        )
        if self.json:
            answer = answer_to(found)
            for task in answer["tasks"]:
                task["observed"] = seen.get(task["name"])
            say(json.dumps({**answer, "seconds": self.seconds, "seed": self.seed}, indent=2))
            return
        say(_verdict(taskset, found))
        if found.configuration:
            console().print(_table(taskset, found, seen))


class RealtimeApp(Command):
    """Dispatches to the two."""

    name = "jupyter-gpushare-realtime"
    description = "Deadlines that are proven: analyse a set of tasks, or simulate it."
    subcommands = {  # noqa: RUF012  traitlets reads it from the class
        "analyse": (AnalyseApp, "whether all deadlines hold, and on which nodes"),
        "simulate": (SimulateApp, "the same set at its worst, on a virtual clock"),
    }

    def start(self) -> None:
        """Run the command, or say which there are."""
        super().start()
        self.print_help()
        self.exit(1)


def _verdict(taskset: Taskset, found: Analysis) -> str:
    nodes = " ".join(str(node) for node in found.configuration)
    if found.refusal is not None:
        return f"refused: {found.refusal.message}"
    return (
        f"admitted on {nodes}: the best of {found.candidates} configurations, "
        f"mode {taskset.mode}, W = {found.objective:.4g}; times in ms"
    )


def _table(taskset: Taskset, found: Analysis, seen: Mapping[str, float] | None = None) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("task")
    table.add_column("class")
    for name in ("period", "deadline", "bound", *(["seen"] if seen is not None else [])):
        table.add_column(name, justify="right")
    table.add_column("node:type layers", no_wrap=True)
    tasks = {task.name: task for task in taskset.tasks}
    for one in found.tasks:
        task = tasks[one.name]
        observed = [] if seen is None else [_ms(seen.get(one.name))]
        times = [_ms(task.period), _ms(task.deadline), _bound(task, one), *observed]
        table.add_row(one.name, str(task.kind), *times, _stages(found, one))
    return table


def _bound(task: Task, one: Bound) -> str:
    return "none" if task.kind is Kind.RT and one.bound is None else _ms(one.bound)


def _stages(found: Analysis, one: Bound) -> str:
    return ", ".join(
        f"{stage.node}:{found.configuration[stage.node]} {stage.first}-{stage.last}"
        for stage in one.stages
    )


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.4g}"
