"""A broker with 200 sessions is killed: when do turns go on, and what do the accounts say? See README.md."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, Stage, main, progress, staged
from benchmarks.idle_sessions.run import crowd
from benchmarks.killed.host import Host, wait_for
from gpushare_kernel import procfs
from gpushare_kernel.client.line import Line
from gpushare_kernel.kernel_session import KernelSession, open_session
from gpushare_kernel.wire.snapshot import Snapshot

QUESTION = (
    "A broker with 200 sessions is killed: when do turns go on, and what do the accounts say?"
)
IDLE, AT_WORK = 196, 4
TURN = 0.25
ARGUMENTS = ("--device", "host", "--compute", "0.2", "--turn", str(TURN))
_BURNERS = Path(__file__).parents[1] / "killed" / "burners.py"


def measure(options: Options) -> Sequence[Figure]:
    """Kill the broker some times, each time with a new host: a guardian starts it five times a minute only."""
    rounds = 2 if options.quick else 5
    figures: dict[str, list[float]] = {"resumed": [], "answers": [], "all_back": [], "turns": [], "accounts": []}  # fmt: skip
    for n in range(rounds):
        with (
            staged() as stage,
            stage.broker(*ARGUMENTS),
            crowd(stage, IDLE) as idle,
            _at_work(stage) as host,
        ):
            for name, value in _kill(stage, host, len(idle)).items():
                figures[name].append(value)
        progress(f"round {n + 1} of {rounds}: " + ", ".join(f"{k} {v[-1]:.3f}" for k, v in figures.items()))  # fmt: skip
    return (
        Figure("resumed", "s", figures["resumed"], at_most=1.0, worst=True),
        Figure("broker_answers", "s", figures["answers"]),
        Figure("all_back", "s", figures["all_back"]),
        Figure("turns_after_answer", "s", figures["turns"], at_most=1.0, worst=True),
        Figure("account_error", "turns", figures["accounts"], at_most=1.0, worst=True),
    )


def _kill(stage: Stage, host: Host, idle: int) -> dict[str, float]:
    """Return what one kill showed; times of the broker's from its death, of turns from when the next one answers."""
    wait_for(lambda: host.stopped() == AT_WORK - 1, "turns")
    broker = host.broker()
    host.guardian(broker)
    time.sleep(2.5)  # accounts are written once a second
    before = _accounts(_seen(stage))
    measured = _cpu(host)
    wait_for(lambda: host.stopped() == AT_WORK - 1, "turns")
    began = time.monotonic()
    host.kill(broker)
    wait_for(lambda: not host.stopped(), "all to run")
    resumed = time.monotonic() - began
    host.broker()
    answers = time.monotonic() - began
    wait_for(host.stopped, "somebody to stand still")
    turns = time.monotonic() - began - answers
    wait_for(lambda: _all_back(stage, idle + AT_WORK), "all sessions to be back", 0.02)
    back = time.monotonic() - began
    time.sleep(2.5)
    after, used = _accounts(_seen(stage)), _cpu(host)
    # What each used by the kernel's own clock, against what its account grew by.
    errors = [
        abs((after[session.session] - before[session.session]) - (now - then)) / TURN
        for session, now, then in zip(host.sessions, used, measured, strict=True)
    ]
    return {"resumed": resumed, "answers": answers, "all_back": back, "turns": turns, "accounts": max(errors)}  # fmt: skip


def _seen(stage: Stage) -> Snapshot:
    with Line(stage.places) as line:
        return line.snapshot()


def _accounts(seen: Snapshot) -> dict[str, float]:
    return {one.id: one.device_time for one in seen.sessions}


def _cpu(host: Host) -> list[float]:
    return [procfs.cpu_seconds(pid) or 0.0 for pid in host.pids]


def _all_back(stage: Stage, number: int) -> bool:
    states = [one.state for one in _seen(stage).sessions]
    return len(states) == number and not {"orphaned", "opened", "bare"} & {*states}


@contextlib.contextmanager
def _at_work(stage: Stage) -> Iterator[Host]:
    """Have sessions that want the device beside the idle ones."""
    host = Host(stage)
    with subprocess.Popen(
        [sys.executable, str(_BURNERS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as burners:
        try:
            for n in range(AT_WORK):
                host.add(_session(stage, n), burners)
            yield host
        finally:
            host.end(burners)


def _session(stage: Stage, n: int) -> KernelSession:
    return open_session(
        stage.places, f"burn-{n}.ipynb", kernel_id="", language="python", weight=1.0
    )


if __name__ == "__main__":
    sys.exit(main("broker_restart", QUESTION, measure))
