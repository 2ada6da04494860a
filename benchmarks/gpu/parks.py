"""What the rows about parking share: how much fits and how long it takes, a ballast on the GPU, and the broker's own log of moves."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import Figure, NotMeasured, Options, Stage
from benchmarks.gpu.row import note
from gpushare_kernel.broker.hardware import PARK_COST, PARK_SPEED, RESTORE_SPEED
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.values import GiB, MiB, MoveStatus
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.devices.nvml import Nvml

CELLS = Path(__file__).with_name("park_cells.py").read_text(encoding="utf-8")
BALLAST = Path(__file__).with_name("ballast.py")
COLD = ("--parking", "cold")
QUARTER = GiB // 4
USABLE = 0.8
"""Part of the host's memory that may hold what is parked: the rest is for the kernels, and what is checked to be spare."""
MOVED, LOST = "a session's memory was to be moved", "a session's device memory is lost"
"""What the broker's log says of a move."""
_END_LIMIT = 20.0
_START_LIMIT = 90.0


# --- how much -------------------------------------------------------------------------------------------------


def cost(size: int) -> float:
    """Return the seconds that the broker takes parking and restoring `size` bytes for, before it has measured any."""
    return 2 * PARK_COST + size / PARK_SPEED + size / RESTORE_SPEED


def affordable(seconds: float) -> int:
    """Return how many bytes can be parked and restored in `seconds`, by the same reckoning."""
    return int(max(0.0, seconds - 2 * PARK_COST) / (1 / PARK_SPEED + 1 / RESTORE_SPEED))


def whole(size: float, name: str, least: int = QUARTER) -> int:
    """Return `size` in whole quarters of a GiB; NotMeasured where that is too little to say anything."""
    found = int(size) // QUARTER * QUARTER
    if found < least:
        reason = f"{name} leaves {size / GiB:.2f} GiB for each notebook: too little"
        raise NotMeasured(reason)
    return found


def least_of(limits: dict[str, float]) -> tuple[str, float]:
    """Return the limit that binds, by its name."""
    name = min(limits, key=lambda one: limits[one])
    return name, limits[name]


def host_room() -> int:
    """Return the bytes of the host's memory that may hold what is parked."""
    return int(USABLE * Machine().room())


def free_memory() -> int:
    """Return the bytes that are free on the GPU now."""
    with contextlib.closing(Nvml()) as nvml:
        return nvml.memory().free


# --- who may ----------------------------------------------------------------------------------------------------


def needs_gpu(options: Options) -> None:
    """A row about parking has nothing to say of a CPU."""
    if options.device == "host":
        reason = "a CPU has no device memory to park"
        raise NotMeasured(reason)


def check_parks(stage: Stage) -> None:
    """NotMeasured where this broker's device does not park."""
    with Line(stage.places) as line:
        (device,) = line.snapshot().devices
    if "park" not in (device.can or ()):
        reason = "this GPU does not park here: jupyter gpushare doctor says why"
        raise NotMeasured(reason)


def note_sessions(stage: Stage) -> None:
    """Say how the broker sees everybody, and why who is not parked cannot be."""
    with Line(stage.places) as line:
        seen = line.snapshot()
    note(f"free by the broker: {seen.devices[0].free / GiB:.2f} GiB")
    for one in seen.sessions:
        away = f", parked {one.parked / GiB:.2f} GiB" if one.parked else ""
        note(
            f"{one.name}: {one.state}, P {(one.p or 0) / GiB:.2f} GiB{away}. {one.why_not_parked or ''}"
        )


def parked(line: Line, pid: int) -> int | None:
    """Return how many bytes of the notebook with this process are parked; None where none are."""
    sessions = line.snapshot().sessions
    return next((session.parked for session in sessions if session.pid == pid), None)


# --- the ballast --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ballast(stage: Stage, leave: int, script: Path = BALLAST) -> Iterator[tuple[int, int]]:
    """Have a process hold all of the GPU's memory but `leave` bytes, as a session; yield what is free, and what it took."""
    stop = stage.folder / f"stop-ballast-{time.monotonic_ns()}"
    run = [sys.executable, "-m", "gpushare_kernel.app.main", "run", "--name", "ballast", "--"]
    process = subprocess.Popen(
        [*run, sys.executable, str(script), str(leave), str(stop)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        free, taken = _ready(process)
        note(f"ballast: {taken / GiB:.2f} GiB, {free / GiB:.2f} GiB are free")
        yield free, taken
    finally:
        stop.touch()
        _end(process)


def _ready(process: subprocess.Popen[str]) -> tuple[int, int]:
    assert process.stdout is not None
    said: list[str] = []
    if select.select([process.stdout], [], [], _START_LIMIT)[0]:
        said = process.stdout.readline().split()
    if said[:1] != ["ready"]:
        msg = f"the ballast did not start ({process.poll()}): {' '.join(said)}"
        raise AssertionError(msg)
    return int(said[1]), int(said[2])


def _end(process: subprocess.Popen[str]) -> None:
    """It ends by its file; its starter passes a signal on; without its starter it ends by itself."""
    for harder in (process.terminate, process.kill):
        try:
            process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            harder()
        else:
            break
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


# --- what the broker saw ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Move:
    """A park or a restore, as the broker wrote it down. `freed` is 0 for a restore, and for what did not come about."""

    session: str
    status: str
    freed: int
    took: float
    why: str


def moves_of(text: str) -> list[Move]:
    """Return the moves in a broker's log."""
    found = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        message = entry.get("message", "") if isinstance(entry, dict) else ""
        if message.startswith((MOVED, LOST)):
            status = MoveStatus.LOST if message == LOST else message.rpartition(": ")[2]
            took = float(entry.get("took", 0.0))
            found.append(Move(entry["session"], status, entry["freed"], took, entry["why"]))
    return found


def moves(stage: Stage) -> list[Move]:
    """Return the moves of this stage's broker so far; what did not come about is said."""
    found = moves_of(stage.places.log.read_text(encoding="utf-8", errors="replace"))
    for why in dict.fromkeys(f"{one.status}: {one.why}" for one in found if one.status != "done"):
        note(f"a move that was not done: {why}")
    return found


def sizes(found: Sequence[Move]) -> dict[str, int]:
    """Return the most that was parked of each session, its context included."""
    most: dict[str, int] = {}
    for move in found:
        most[move.session] = max(most.get(move.session, 0), move.freed)
    return {session: size for session, size in most.items() if size}


def rates(found: Sequence[Move]) -> tuple[list[float], list[float]]:
    """Return bytes a second of each park and of each restore; a restore brings back what its session's last park took."""
    out: list[float] = []
    back: list[float] = []
    away: dict[str, int] = {}
    for move in found:
        if move.status != MoveStatus.DONE or move.took <= 0:
            continue
        if move.freed:
            away[move.session] = move.freed
            out.append(move.freed / move.took)
        elif move.session in away:
            back.append(away.pop(move.session) / move.took)
    return out, back


def figures(found: Sequence[Move]) -> list[Figure]:
    """Return what is published of the moves of a row; none may be lost."""
    out, back = rates(found)
    count = [move.status for move in found].count
    return [
        *([Figure("park_rate", "GB/s", [rate / 1e9 for rate in out])] if out else []),
        *([Figure("restore_rate", "GB/s", [rate / 1e9 for rate in back])] if back else []),
        Figure("parks", "", [float(len(out))], at_least=1.0),
        Figure("restores", "", [float(len(back))], at_least=1.0),
        Figure("moves_put_off", "", [float(count(MoveStatus.NOT_NOW))]),
        Figure("moves_lost", "", [float(count(MoveStatus.LOST))], at_most=0.0),
    ]


def gib(name: str, size: float) -> Figure:
    """Return a size as a figure."""
    return Figure(name, "GiB", [size / GiB])


def declared(persistent: int, ephemeral: int) -> str:
    """Return the first line of a cell that keeps `persistent` bytes and takes `ephemeral` beside them."""
    keeps = f"-p {-(-persistent // MiB)}MiB " if persistent else ""  # no size is zero
    return f"%%gpulane {keeps}-e {-(-ephemeral // MiB)}MiB"
