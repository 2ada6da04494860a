"""`jupyter gpushare replay`: what a trace, or a recorded day, would have been like under other policies."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Sequence
from pathlib import Path

from traitlets import Bool, Float, Integer, Unicode

from gpushare_kernel.app import words
from gpushare_kernel.app.base import Command, console, say
from gpushare_kernel.core.errors import BadDeclaration, BadSize
from gpushare_kernel.core.policies import POLICIES
from gpushare_kernel.core.sizes import format_size, parse_size
from gpushare_kernel.replay.engine import CAPACITY, Settings, replay
from gpushare_kernel.replay.hosts import PLACINGS, POOL, replay_hosts
from gpushare_kernel.replay.outcome import Outcome
from gpushare_kernel.replay.plots import check_can_draw, draw
from gpushare_kernel.replay.recording import AS_IT_WAS
from gpushare_kernel.replay.report import check_can_write, table, waits_text, write_records
from gpushare_kernel.replay.sources import read_source
from gpushare_kernel.replay.trace import TraceJob

_ORDER = ("fifo", "srtf", "pack", "fair")
ADMISSIONS, PARKINGS, DURATIONS = ("policy", "arrival"), ("off", "on"), ("declared", "unknown")
_OPTIONS = (
    "policy",
    "admission",
    "parking",
    "durations",
    "capacity",
    "turn",
    "seed",
    "device",
    "plot",
    "jobs",
    "hosts",
    "placing",
)
SHORTEST = 0.001
"""Seconds of a turn; a shorter one is a typing error."""
MOST_HOSTS = 10_000
"""More are a typing error: each has a scheduler of its own."""
_HOW = "Write: jupyter gpushare replay TRACE.csv [--policy fifo|srtf|pack|fair|all] [options]"


@dataclasses.dataclass(frozen=True, slots=True)
class On:
    """How many hosts, how jobs are sent to them, and what draws."""

    hosts: int
    placing: str
    seed: int


class ReplayApp(Command):
    """Replays a trace."""

    name = "jupyter-gpushare-replay"
    description = """Replay a trace through the scheduler on a virtual clock: jupyter gpushare replay TRACE.csv [options]

    TRACE.csv has a row for each job: job_id, submit_time and duration (seconds); user, persistent and ephemeral (bytes, or 6GiB),
    iteration_time, class (BE or RT) and demand (0 to 1) if known. TRACE.jsonl is a recording: jupyter gpushare start --record FILE."""
    policy = Unicode(
        "fifo",
        config=True,
        help="fifo, srtf, pack or fair; several (srtf,fair) or all are compared.",
    )
    admission = Unicode(
        "policy",
        config=True,
        help="Who gets memory first: whom the policy ranks first (policy), or who came first (arrival).",
    )
    parking = Unicode(
        "off",
        config=True,
        help="Whether a job's memory may be parked for a better ranked one: off or on.",
    )
    durations = Unicode(
        "declared",
        config=True,
        help="Whether jobs tell the scheduler how long they take: declared or unknown.",
    )
    capacity = Unicode(
        None,
        allow_none=True,
        config=True,
        help="Memory of the device (default 16GiB; that of a recording's).",
    )
    turn = Float(
        None,
        allow_none=True,
        config=True,
        help="Seconds of a turn; by default 0.1, longer where a trace has more work than 2000 s.",
    )
    seed = Integer(
        0, config=True, help="Draws what a trace leaves open: the memory of Salus' jobs."
    )
    device = Unicode(
        "", config=True, help="Which device of a recording, where it has several: its number or id."
    )
    plot = Unicode(
        "", config=True, help="Draw completion times and timelines: FILE.svg or FILE.png."
    )
    jobs = Unicode("", config=True, help="Write what became of each job: FILE.csv.")
    hosts = Integer(
        1, config=True, help="On so many hosts, each with a device of its own as --capacity says."
    )
    placing = Unicode(
        "soonest",
        config=True,
        help="How jobs are sent to hosts: soonest (as a gateway does), blind (likewise, not knowing needs), fewest, own, turns, random, "
        "or pool (bound to no host: the ideal); several or all are compared.",
    )
    json = Bool(False, config=True, help="Print the figures as JSON.")  # noqa: FBT003  traitlets
    aliases = {  # noqa: RUF012  traitlets reads it from the class
        **Command.aliases,
        **{name: f"ReplayApp.{name}" for name in _OPTIONS},
    }
    flags = {  # noqa: RUF012  traitlets reads it from the class
        **Command.flags,
        "json": ({"ReplayApp": {"json": True}}, "Print the figures as JSON."),
    }

    _trace: Path | None = None

    def parse_command_line(self, argv: Sequence[str] | None = None) -> None:
        """Read our words; the one that stands for itself is the trace."""
        traces, rest = words.positionals(list(argv or ()), options=self.aliases, flags=self.flags)
        if not any(word in words.EVERYWHERE for word in rest):
            if len(traces) != 1:
                msg = f"a replay needs one trace, and got {', '.join(traces) or 'none'}. {_HOW}"
                raise BadDeclaration(msg)
            self._trace = Path(traces[0])
        super().parse_command_line(rest)

    def start(self) -> None:
        """Replay it under every policy asked for, and print."""
        policies, settings = chosen_policies(self.policy), self._settings()
        declared = one_of("--durations", self.durations, DURATIONS) == DURATIONS[0]
        plot = Path(self.plot) if self.plot else None
        if plot is not None:
            check_can_write("--plot", plot, reads=self._trace or Path())
            check_can_draw(plot)
        if self.jobs:
            check_can_write("--jobs", Path(self.jobs), reads=self._trace or Path())
        if self.jobs and plot == Path(self.jobs):
            msg = f"--jobs and --plot both write {plot}. Name two files."
            raise BadDeclaration(msg)
        source = read_source(
            self._trace or Path(), seed=self.seed, declare=declared, device=self.device
        )
        if self.capacity is None and source.capacity is not None:
            settings = dataclasses.replace(settings, capacity=source.capacity)
        outcomes = {
            name: replayed(source.jobs, dataclasses.replace(settings, policy=policy), on)
            for name, policy, on in self._arms(policies)
        }
        was = {} if source.was is None else {AS_IT_WAS: source.was}
        differs = {"differs": source.differs} if source.differs else {}
        if self.json:
            found = {
                name: {
                    **outcome.summary(),
                    "durations": self.durations,
                    "seed": self.seed,
                    **differs,
                }
                for name, outcome in outcomes.items()
            }
            shown = found if len(found) > 1 else next(iter(found.values()))
            before = {"as_it_was": source.was.summary()} if source.was is not None else {}
            say(json.dumps({**shown, **before}, indent=2))
        else:
            first = next(iter(outcomes.values()))
            each = f"{self.hosts} hosts of " if self.hosts > 1 else ""
            say(
                f"{len(source.jobs)} {'job' if len(source.jobs) == 1 else 'jobs'}, {each}{format_size(first.settings.capacity)}, admission {first.settings.admission}, "
                f"parking {'on' if first.settings.parking else 'off'}, turns of {first.turn:g} s"
            )
            out = console()
            out.print(table({**was, **outcomes}, out.width))
            stood = waits_text({**was, **outcomes}) if was else ""
            if stood:
                say(stood)
            if source.differs:
                say(
                    f"{source.differs} events give other instructions now than when they were recorded, by another gpushare or a bug: "
                    "who had the device when, and for how long, may be a little off. The gpushare that recorded it replays it exactly."
                )
        if self.jobs:
            write_records(Path(self.jobs), {**was, **outcomes})
        if plot is not None:
            draw(plot, {**was, **outcomes})

    def _arms(self, policies: Sequence[str]) -> list[tuple[str, str, On]]:
        """Return what is compared: its name, its policy, and on how many hosts and how they are chosen."""
        if not 1 <= self.hosts <= MOST_HOSTS:
            msg = f"--hosts {self.hosts} is no number of hosts. Give from 1 to {MOST_HOSTS}."
            raise BadDeclaration(msg)
        known = [*PLACINGS, POOL]
        asked = [one_of("--placing", word, [*known, "all"]) for word in self.placing.split(",")]
        if self.hosts == 1:
            return [(policy, policy, On(1, "", self.seed)) for policy in policies]
        placings = known if "all" in asked else list(dict.fromkeys(asked))
        return [
            (
                policy
                if len(placings) == 1
                else f"{policy} {placing}"
                if len(policies) > 1
                else placing,
                policy,
                On(self.hosts, placing, self.seed),
            )
            for policy in policies
            for placing in placings
        ]

    def _settings(self) -> Settings:
        if self.turn is not None and not SHORTEST <= self.turn < math.inf:
            msg = (
                f"--turn {self.turn:g} is no length of a turn. Give seconds, {SHORTEST:g} or more."
            )
            raise BadDeclaration(msg)
        return Settings(
            admission=one_of("--admission", self.admission, ADMISSIONS),
            parking=one_of("--parking", self.parking, PARKINGS) == "on",
            capacity=CAPACITY if self.capacity is None else _bytes("--capacity", self.capacity),
            turn=self.turn,
        )


def replayed(jobs: Sequence[TraceJob], settings: Settings, on: On) -> Outcome:
    """Return what becomes of `jobs`."""
    if on.hosts == 1:
        return replay(jobs, settings)
    return replay_hosts(jobs, settings, on.hosts, on.placing, on.seed)


def _bytes(option: str, text: str) -> int:
    """Return a size; a number alone is bytes, as in a trace."""
    digits = text.strip()
    if digits.isdecimal() and digits.strip("0"):
        text = f"{digits}B"
    try:
        return parse_size(text)
    except BadSize as problem:
        msg = f"{option}: {problem}"
        raise BadDeclaration(msg) from None


def chosen_policies(text: str) -> list[str]:
    """Return the policies that `text` names, in any case: one, several with commas, or `all`.

    Raises
    ------
    BadDeclaration
        With the one that was meant.
    """
    known = [name for name in _ORDER if name in POLICIES]
    asked = [word for word in text.split(",") if word.strip()] or [text]
    chosen = [one_of("--policy", word, [*known, "all"]) for word in asked]
    return known if "all" in chosen else list(dict.fromkeys(chosen))


def one_of(option: str, value: str, known: Sequence[str]) -> str:
    """Return which of `known` is meant by `value`, in any case.

    Raises
    ------
    BadDeclaration
        With the nearest.
    """
    word = value.strip().lower()
    if word in known:
        return word
    near = difflib.get_close_matches(word, known, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    msg = f"{option} {value.strip()!r} is not known.{hint} There are: {', '.join(sorted(known))}."
    raise BadDeclaration(msg)
