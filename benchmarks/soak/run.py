"""Notebooks, their broker and its guardian under a scripted adversary. See README.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Stage as Folder
from benchmarks.common import as_json, commit, machine, print_table, progress, staged
from benchmarks.gpu.checkout import ROOT, place_startup
from benchmarks.soak.faults import Adversary, Disk
from benchmarks.soak.gpu import COMMAND, ERRORS, total_for
from benchmarks.soak.judge import Tally, left_over, wrong
from benchmarks.soak.people import Person, Stage
from benchmarks.soak.script import Fault, steps
from benchmarks.soak.watch import Watch, broker_at, described, descriptors, ours, processes, threads
from gpushare_kernel import kernel_session
from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.client.line import Line
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.devices.base import Hold
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire.snapshot import Snapshot

QUESTION = "Kill, stop, fill and break anything: is anybody left paused, is anything lost, is anything left behind?"
MINUTES, SESSIONS, SEED = 60.0, 50, 1
POLLS = 3.0
"""Seconds between two looks of a notebook server at its kernels."""
CALM = 120.0
"""Seconds in which everybody must be done once the adversary rests."""
_SLACK = 5
"""Descriptors and threads of a kernel that come and go: a log, a subprocess, a database of its history."""
_WORKERS = 12
"""Descriptors of a broker for workers, a database and a listener that its first look did not show."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, with how many, and which faults: `steps` of the script at most, in `minutes` at most."""

    minutes: float
    sessions: int
    seed: int
    kinds: Sequence[Fault] = tuple(Fault)
    steps: int | None = None


def soak(plan: Plan) -> Tally:
    """Run it all and return what was counted."""
    tally = Tally()
    with staged() as folder, Stage(folder.folder) as stage:
        place_startup(folder.folder / "ipython")
        disk = Disk(folder.places.runtime)
        try:
            _run(folder, stage, disk, tally, plan)
        finally:
            disk.close()
    return tally


def _run(folder: Folder, stage: Stage, disk: Disk, tally: Tally, plan: Plan) -> None:
    where = folder.places
    stage.gpu.mkdir()
    for name, value in {"total": total_for(-(-plan.sessions // 2)), "residency": 2.0}.items():
        (stage.gpu / name).write_text(str(value))
    _have(COMMAND)
    ensure_broker(where, 60.0, command=COMMAND)
    first = broker_at(where)
    bare = len(descriptors(first.pid)) if first else 0
    before = ours(descriptors(os.getpid()))
    people = [
        Person(n, plan.sessions, plan.seed, stage, tally, real=n % 10 < 2)
        for n in range(plan.sessions)
    ]
    watch = Watch(where, stage.gpu, people, tally.pauses, tally.served)
    with _polled(people):
        try:
            watch.start()
            for one in people:
                one.thread.start()
            for one in people:
                one.up.wait(CALM)
            progress(f"{plan.sessions} notebooks work")
            adversary = Adversary(where, stage.gpu, people, disk, tally)
            script = islice(steps(plan.seed, plan.kinds), plan.steps)
            adversary.run(script, time.monotonic() + 60 * plan.minutes)
            progress("the adversary rests")
            adversary.broker()
            _rest(where, people, watch, tally)
        finally:
            watch.stop()
            for one in people:
                one.leave()
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(Person.close, people))
    _ends(where, stage, tally, bare, before)
    _keep(folder, tally)


def _keep(folder: Folder, tally: Tally) -> None:
    """Keep the logs of a run that did not go well."""
    if all(figure.met for figure in tally.figures()):
        return
    kept = Path(tempfile.mkdtemp(prefix="gpushare-soak-"))
    for path in [
        *folder.places.runtime.glob("broker.log*"),
        folder.folder / "kernels.log",
        folder.folder / "gpu" / ERRORS,
    ]:
        if path.exists():
            shutil.copy(path, kept)
    progress(f"logs: {kept}")


def _rest(where: Places, people: Sequence[Person], watch: Watch, tally: Tally) -> None:
    """Everybody finishes and looks at what they have; then nobody may be paused, wait or hold a lane."""
    for one in people:
        one.leave()
    deadline = time.monotonic() + CALM
    for one in people:
        one.thread.join(max(0.1, deadline - time.monotonic()))
        if one.thread.is_alive():
            tally.stuck.append(f"{one}: has not come to its end")
    if not _eventually(lambda: not watch.paused(), 20):
        tally.invariants.append(f"I3: at the end {watch.paused()} stand paused")
    wrongs: list[str] = []

    def quiet() -> bool:
        wrongs[:] = _unquiet(_snapshot(where))
        return not wrongs

    if not _eventually(quiet, 20):
        tally.invariants += [f"at the end: {one}" for one in wrongs]
    if not _eventually(lambda: not _on_record(where), 20):
        tally.invariants.append(f"I3: at the end {_on_record(where)} are on record as paused")
    for one in people:
        for what, then in one.before.items():
            now = one.now[what]
            if now > then + _SLACK:
                tally.leaks.append(f"{one}: {what} {then} at its start, {now} at the end")


def _ends(where: Places, stage: Stage, tally: Tally, bare: int, before: Sequence[str]) -> None:
    """All notebooks are closed: nothing of them may be left, in the broker, in us, on the disk."""
    if not _eventually(lambda: not _snapshot(where).sessions, 30):
        tally.leaks.append(f"sessions: {[one.name for one in _snapshot(where).sessions]}")
    broker = broker_at(where)
    if broker is not None:
        held = descriptors(broker.pid)
        if len(held) > bare + _WORKERS:
            tally.leaks.append(
                f"broker: {bare} descriptors at its start, {len(held)} at the end: {sorted(held)}"
            )
        progress(f"broker at the end: {len(held)} descriptors, {threads(broker.pid)} threads")
    with contextlib.suppress(BrokerUnavailable):
        stop_broker(where, 30)
    if not _eventually(lambda: not processes(where), 20):
        tally.leaks += [f"process: {described(pid)}" for pid in processes(where)]
    mine = [one for one in ours(descriptors(os.getpid())) if one not in before]
    if mine:
        tally.leaks.append(f"provisioners: {mine}")
    names = [path.name for path in where.runtime.iterdir()]
    tally.leaks += [f"file: {name}" for name in left_over(names)]
    lines = [*_lines(where.log), *_lines(stage.gpu / ERRORS)]
    broken, errors = wrong(lines)
    tally.invariants += sorted(set(broken))
    # Where the checkout lies is nobody's business in a kept result.
    tally.errors += sorted({text.replace(f"{ROOT}/", "") for text in errors})


def _unquiet(seen: Snapshot) -> list[str]:
    """Say what is not as it must be while nobody does anything. An adopted process has no client to say that it is idle."""
    found = [
        f"{one.name} ({one.id}) is {one.state}"
        for one in seen.sessions
        if one.state not in {"idle", "parked"}
        and not (one.state == "bare" and (one.name or "").endswith("(adopted)"))
    ]
    found += [f"{one.id} has jobs {one.jobs}" for one in seen.sessions if one.jobs]
    found += [f"{one.job} waits: {one.reason}" for one in seen.queue]
    for device in seen.devices:
        found += [f"lane {lane.id} of {device.id} lives" for lane in device.lanes]
        kept = sum(one.p or 0 for one in seen.sessions if one.device == device.id)
        if kept != device.persistent:
            found.append(
                f"{device.id} has {device.persistent} bytes charged, its sessions keep {kept}"
            )
    return found


def _snapshot(where: Places) -> Snapshot:
    ensure_broker(where, 30.0, command=COMMAND)
    with Line(where, 30.0) as line:
        return line.snapshot()


def _on_record(where: Places) -> list[int]:
    table = IntentTable.open_existing(where.intents)
    if table is None:
        return []
    with contextlib.closing(table):
        return [key.pid for key in table.held(Hold.SIGNAL, Hold.LOCK)]


def _lines(path: Path) -> list[dict[str, object]]:
    found = []
    with contextlib.suppress(OSError):
        for file in sorted(path.parent.glob(f"{path.name}*")):
            for line in file.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):  # cut where the disk was full
                    found.append(json.loads(line))
    return found


def _have(command: Sequence[str]) -> None:
    """Have this process's provisioners start this broker, and undo its locks."""
    defaults = ensure_broker.__kwdefaults__
    assert defaults is not None
    defaults["command"] = command
    kernel_session._NVIDIA = Path("/dev/null")
    kernel_session._UNLOCKING = (*command, "unlock")


@contextlib.contextmanager
def _polled(people: Sequence[Person]) -> Iterator[None]:
    """Look at the kernels every few seconds, as a notebook server does."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(POLLS):
            for one in people:
                one.poll()

    server = threading.Thread(target=look, name="server", daemon=True)
    server.start()
    try:
        yield
    finally:
        over.set()
        server.join(30)


def _eventually(holds: object, seconds: float) -> bool:
    pace, deadline = threading.Event(), time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        pace.wait(0.1)
    return True


def main() -> int:
    """Return 0 where every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="benchmarks/soak/run.py", description=QUESTION)
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="M")
    parser.add_argument("--sessions", type=int, default=SESSIONS, metavar="N")
    parser.add_argument(
        "--seed", type=int, default=SEED, help="what the adversary does follows from it"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="of the script at most so many")
    parser.add_argument(
        "--only",
        action="append",
        choices=[one.value for one in Fault],
        help="of all faults only this (again for more)",
    )
    parser.add_argument(
        "--without", action="append", choices=[one.value for one in Fault], help="all but this"
    )
    parser.add_argument(
        "--script", action="store_true", help="print the first 100 steps and do nothing"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--quick", action="store_true", help="1 minute, 6 sessions, to see that it works"
    )
    given = parser.parse_args()
    left_out = {*(given.without or ())}
    kinds = [Fault(one) for one in given.only or Fault if one not in left_out]
    if given.script:
        script = steps(given.seed, kinds)
        print(*(next(script) for _ in range(100)), sep="\n")
        return 0
    minutes, sessions = (1.0, 6) if given.quick else (given.minutes, given.sessions)
    progress(f"{minutes:g} min, {sessions} sessions, again with: --seed {given.seed}")
    described_now, measured = machine(), commit()
    tally = soak(Plan(minutes, sessions, given.seed, kinds, given.steps))
    figures = tally.figures()
    if given.json:
        found = as_json("soak", QUESTION, described_now, figures, quick=given.quick)
        more = {
            "commit": measured,
            "seed": given.seed,
            "minutes": minutes,
            "sessions": sessions,
            "kinds": kinds,
        }
        print(json.dumps({**found, **more, **tally.details()}))
    else:
        print_table(QUESTION, described_now, figures)
        print(json.dumps(tally.details(), indent=1))
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
