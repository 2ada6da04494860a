"""What a broker with many idle sessions costs. See README.md."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, Stage, main, progress, staged
from gpushare_kernel import procfs
from gpushare_kernel.client.line import Line
from gpushare_kernel.kernel_session import KernelSession, open_session

QUESTION = "200 idle sessions: what do the broker and its guardian use?"
SESSIONS = 200
_SETTLE = 3.0


def measure(options: Options) -> Sequence[Figure]:
    """Open, bind and attach the sessions, then watch the broker do nothing."""
    windows, seconds = (3, 3.0) if options.quick else (6, 10.0)
    cpu: list[list[float]] = [[], []]
    with staged() as stage, stage.broker(), crowd(stage) as sessions:
        _check(stage, len(sessions))
        broker, guardian = stage.pids
        time.sleep(_SETTLE)
        for n in range(windows):
            start, before = time.monotonic(), [_cpu(broker), _cpu(guardian)]
            time.sleep(seconds)
            passed = time.monotonic() - start
            for values, now, then in zip(cpu, (_cpu(broker), _cpu(guardian)), before, strict=True):
                values.append(100 * (now - then) / passed)
            progress(f"window {n + 1} of {windows}: {cpu[0][-1]:.2f} % of a core")
        memory = [_memory(broker), _memory(guardian)]
        _check(stage, len(sessions))
    return (
        Figure("broker_cpu", "% of a core", cpu[0], at_most=2.0),
        Figure("broker_rss", "MB", [memory[0]["Rss"]], at_most=80.0),
        Figure("broker_pss", "MB", [memory[0]["Pss"]]),
        Figure("guardian_cpu", "% of a core", cpu[1]),
        Figure("guardian_rss", "MB", [memory[1]["Rss"]]),
        Figure("guardian_pss", "MB", [memory[1]["Pss"]]),
    )


@contextlib.contextmanager
def crowd(stage: Stage, number: int = SESSIONS) -> Iterator[list[KernelSession]]:
    """Have the sessions and their processes while the block runs. We are their provisioner."""
    program = Path(__file__).with_name("crowd.py")
    sessions: list[KernelSession] = []
    with subprocess.Popen(
        [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as crowd:
        try:
            for n in range(number):
                session = open_session(
                    stage.places, f"idle-{n}.ipynb", kernel_id="", language="python", weight=1.0
                )
                sessions.append(session)
                crowd.stdin.write(json.dumps(session.environment()) + "\n")
                crowd.stdin.flush()
                session.bind(int(crowd.stdout.readline()))
                if crowd.stdout.readline().strip() != "attached":
                    msg = f"the process of session {n} could not attach"
                    raise AssertionError(msg)
            yield sessions
        finally:
            crowd.stdin.close()  # they end
            crowd.wait()
            for session in sessions:
                session.close()


def _check(stage: Stage, number: int) -> None:
    """All are there, attached and idle: a broker that lost some would look cheap."""
    with Line(stage.places) as line:
        states = [one.state for one in line.snapshot().sessions]
    if len(states) != number or set(states) != {"idle"}:
        msg = f"{number} idle sessions were opened, and the broker tells of {states}"
        raise AssertionError(msg)


def _cpu(pid: int) -> float:
    seconds = procfs.cpu_seconds(pid)
    if seconds is None:
        msg = f"process {pid} is gone"
        raise AssertionError(msg)
    return seconds


def _memory(pid: int) -> dict[str, float]:
    """Return Rss and Pss in MB (10^6 bytes)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}
    return {name: sizes[name] for name in ("Rss", "Pss")}


if __name__ == "__main__":
    sys.exit(main("idle_sessions", QUESTION, measure))
