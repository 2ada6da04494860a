"""The broker's process from its first line to its last: lock, recovery, listening, housekeeping, a clean exit."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import json
import logging
import math
import os
import resource
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gpushare_kernel import __version__, procfs
from gpushare_kernel.broker import logs
from gpushare_kernel.broker.adoption import Foreign
from gpushare_kernel.broker.broker import Broker
from gpushare_kernel.broker.budgets import Budgets
from gpushare_kernel.broker.doorway import Doorway
from gpushare_kernel.broker.exporter import MOST_NAMED, NAMED, Exporter, Offer
from gpushare_kernel.broker.hardware import AUTO, Parking, config_of, find_devices, lock_worker
from gpushare_kernel.broker.housekeeping import Housekeeping
from gpushare_kernel.broker.intents import IntentTable, resume_all
from gpushare_kernel.broker.keeper import Keeper
from gpushare_kernel.broker.ledger import Ledger, Loaded
from gpushare_kernel.broker.metrics_address import parse_address
from gpushare_kernel.broker.overdraft import Over
from gpushare_kernel.broker.recorder import Recorder
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import BadDeclaration, BadSize, BrokerUnavailable, GpushareError
from gpushare_kernel.core.policies import POLICIES, policy_named
from gpushare_kernel.core.sizes import parse_size
from gpushare_kernel.core.values import ProcessKey, UserId
from gpushare_kernel.devices.base import Device
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.transport.launch import report_ready
from gpushare_kernel.transport.places import Places, places, prepare
from gpushare_kernel.transport.server import Listener, serve
from gpushare_kernel.wire.messages import Closing
from gpushare_kernel.wire.recording import SUFFIX

IDLE_EXIT = 60.0
_AGAIN = (
    "idle_exit",
    "capacity",
    "compute",
    "device",
    "foreign",
    "over",
    "parking",
    "turn",
    "policy",
    "record",
    "arena",
    "arena_user",
    "metrics",
    "metrics_users",
    "metrics_names",
)
"""Options that a broker which is started again gets too."""
_PROGRAM = 4
"""So many words of a broker's command are no arguments: an interpreter, -P, -m, the module."""
LEAST = 0.01
"""A turn shorter than this (seconds) would be spent on its own end; less of a core is nothing to share."""
_logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a broker until it is told to stop, or has had nothing to do for a while."""
    given = parser().parse_args(arguments)
    where = places()
    try:
        prepare(where)
        lock = _lock(where)
    except GpushareError as error:
        print(error, file=sys.stderr)  # noqa: T201  whoever started us reads this from the pipe
        return 1
    os.chdir("/")
    logs.set_up(where.log, stderr=given.foreground)
    _raise_limits()
    try:
        return asyncio.run(_run(given, where, lock))
    except GpushareError as error:
        _logger.exception("the broker could not start")
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    finally:
        os.close(lock)


def parser() -> argparse.ArgumentParser:
    """Return the options of a broker."""
    found = argparse.ArgumentParser(prog="jupyter gpushare broker", description=__doc__)
    found.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    # By the guardian, after a crash: what was chosen live still holds.
    found.add_argument("--again", action="store_true", help=argparse.SUPPRESS)
    found.add_argument(
        "--idle-exit",
        type=_seconds,
        metavar="S",
        help="exit after S seconds without notebooks (0: never)",
    )
    found.add_argument(
        "--capacity", metavar="SIZE", help="memory to share (default: what is free now)"
    )
    found.add_argument(
        "--compute",
        type=_positive,
        metavar="CORES",
        help="cores to share (default: all we may use)",
    )
    found.add_argument(
        "--device",
        default=AUTO,
        metavar="WHICH",
        help="auto (GPUs, else the CPU), host, cuda, or GPUs by number or UUID: 0,1 (default auto)",
    )
    found.add_argument(
        "--foreign",
        choices=[one.value for one in Foreign],
        help="GPU processes of known users that nobody opened a session for: adopt them (default of a "
        "system broker) or ignore them",
    )
    found.add_argument(
        "--over",
        choices=[one.value for one in Over],
        help="whoever holds more than it was granted, and was paused for it in vain while others wait: tell only "
        "(default), or end its process",
    )
    found.add_argument(
        "--parking",
        choices=[one.value for one in Parking],
        help="whether GPU memory of idle notebooks, with all that is in it, goes to the host's memory while others wait for it: "
        "off (default), cold (by the driver's checkpoint), or warm (quiet torch notebooks move their own tensors first, which is quicker)",
    )
    found.add_argument(
        "--turn", type=_positive, default=0.1, metavar="S", help="length of a turn (default 0.1)"
    )
    found.add_argument(
        "--policy",
        type=_policy,
        default="fair",
        metavar="NAME",
        help=f"who comes next: {', '.join(POLICIES)} (default fair)",
    )
    found.add_argument(
        "--record",
        type=_file,
        metavar="FILE",
        help="write down every event, to be replayed (jupyter gpushare replay FILE.jsonl); only you can read it",
    )
    found.add_argument(
        "--arena",
        type=_size,
        metavar="SIZE",
        help="memory of the host into which GPU memory of idle notebooks may be set aside, in all (default: a quarter of it; 0: none)",
    )
    found.add_argument(
        "--arena-user",
        type=_size,
        metavar="SIZE",
        help="how much of it one user's notebooks may have (default: half)",
    )
    found.add_argument(
        "--metrics",
        type=_address,
        metavar="WHERE",
        help="offer metrics to Prometheus at 127.0.0.1:9469 or unix:/run/gpushare/metrics.sock (needs the extra: metrics)",
    )
    found.add_argument(
        "--metrics-users",
        type=_named,
        metavar="N",
        help=f"how many people have a series of their own, those who use most; the others are one (default {NAMED}, at most {MOST_NAMED})",
    )
    found.add_argument(
        "--metrics-names",
        choices=["initials", "names"],
        help="what people are called there: initials, as everybody sees them (default), or names (default on a Unix socket)",
    )
    found.add_argument("--foreground", action="store_true", help="log to the terminal too")
    found.add_argument("--version", action="version", version=__version__)
    return found


def _address(text: str) -> str:
    """Where metrics are offered; kept as it was written, for a broker that is started again."""
    try:
        parse_address(text)
    except BadDeclaration as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
    return text


def _named(text: str) -> int:
    if not text.isdecimal() or int(text) > MOST_NAMED:
        msg = f"{text} is no number from 0 to {MOST_NAMED}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _policy(text: str) -> str:
    try:
        return policy_named(text).name
    except BadDeclaration as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


async def _run(given: argparse.Namespace, where: Places, lock: int) -> int:
    loop = asyncio.get_running_loop()
    _resume_left_over(where)
    offer = None if given.metrics is None else await Offer.made(given)
    table = IntentTable(where.intents)
    ledger = Ledger(where.ledger)
    known = ledger.load()
    devices = find_devices(
        given.device,
        table,
        capacity=None if given.capacity is None else parse_size(given.capacity),
        compute=given.compute,
        held=sum(_resident(row.process) for row in known.sessions),
    )
    broker = _broker(given, devices, known, ledger, system=where.system)
    _remember(broker, known, given.record)
    listener = Listener(where.socket, 0o666 if where.system else 0o600, release=__version__)
    keeper = Keeper(table, where, _command(given), lock_worker(devices))
    keeper.start(partial(_let_run, broker))
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, broker.stop, f"signal {signum.name}")
    housekeeping = _housekeeping(given, broker, listener, where, lock)
    exporter = None if offer is None else Exporter.started(offer, broker, where.log, listener)
    tidying = loop.create_task(housekeeping.run())
    serving = loop.create_task(serve(listener, Doorway(broker).on_hello))
    _logger.info(
        "listening",
        extra={
            "socket": str(where.socket),
            "device": ", ".join(device.inventory.name for device in devices),
            "capacity": sum(device.inventory.capacity for device in devices),
        },
    )
    _note_start(where, _command(given))
    gc.freeze()
    if given.ready_fd is not None:
        report_ready(given.ready_fd)
    await broker.stopping.wait()
    _logger.info("going away: %s", broker.stop_reason)
    async with contextlib.AsyncExitStack() as leaving:  # the last goes first, and all of them go
        leaving.callback(table.close)
        leaving.callback(ledger.close)
        if broker.recorder is not None:
            leaving.callback(broker.recorder.close)
        leaving.push_async_callback(keeper.stop)  # else the guardian takes this for a crash
        leaving.push_async_callback(_hang_up, broker, listener, serving)
        leaving.push_async_callback(broker.finish)
        if exporter is not None:
            leaving.push_async_callback(exporter.stop)
        _mark_stopped(broker, where)
        tidying.cancel()
        await asyncio.gather(tidying, return_exceptions=True)
        broker.say(Closing(broker.stop_reason))
    return 0


def _broker(
    given: argparse.Namespace,
    devices: Sequence[Device],
    known: Loaded,
    ledger: Ledger,
    *,
    system: bool,
) -> Broker:
    chosen = dict(known.policies) if given.again else {}
    if not given.again:
        ledger.policies_dropped()
    configs = [
        config_of(
            device,
            policy=policy_named(chosen.get(device.inventory.id, given.policy)).name,
            turn=given.turn,
            parking=Parking(given.parking or Parking.OFF),
        )
        for device in devices
    ]
    return Broker(
        [*zip(configs, devices, strict=True)],
        ledger,
        system=system,
        budgets=Budgets.of(Machine(), _bytes(given.arena), _bytes(given.arena_user)),
    )


def _housekeeping(
    given: argparse.Namespace, broker: Broker, listener: Listener, where: Places, lock: int
) -> Housekeeping:
    idle_exit = (
        given.idle_exit if given.idle_exit is not None else (0.0 if where.system else IDLE_EXIT)
    )
    return Housekeeping(
        broker,
        listener,
        where,
        idle_exit,
        lock=lock,
        foreign=Foreign(given.foreign or (Foreign.ADOPT if where.system else Foreign.IGNORE)),
        over=Over(given.over or "tell"),
    )


def _remember(broker: Broker, known: Loaded, record: Path | None) -> None:
    """Tell the schedulers what the ledger knows; from where on events are written down, if they are."""
    for user, account in known.users:
        broker.know_user(UserId(user), account.device_time, account.weight)
    if record is not None:
        broker.record(Recorder(record))
    for row in known.sessions:
        broker.adopt(row)
    broker.needs.know(known.needs)


def _let_run(broker: Broker, seconds: float) -> None:
    """Resume everybody, and pause nobody for a while; whom a signal has freed for longer stays free."""
    for session in list(broker.sessions()):
        engine = broker.engine_of(session.id)
        engine.feed(ev.Exempted(at=engine.now, session=session.id, until=engine.now + seconds))


async def _hang_up(broker: Broker, listener: Listener, serving: asyncio.Task[None]) -> None:
    listener.close()
    await serving
    broker.hang_up()
    broker.save_accounts()
    await asyncio.sleep(0)  # let what was said last go out


def _mark_stopped(broker: Broker, where: Places) -> None:
    """Have open notebooks start no other one, where that can be written down; what we were told holds for nobody after us."""
    with contextlib.suppress(OSError):
        where.again.unlink()
    if not broker.stopped_for_good:
        return
    try:
        where.stopped.touch(mode=0o644)
    except OSError as problem:
        _logger.warning("open notebooks may start another broker: %s", problem)


def _note_start(where: Places, command: Sequence[str]) -> None:
    """There is a broker again. Note how it was started, for a kernel that finds both us and our guardian killed; the guardian has it by itself."""
    where.stopped.unlink(missing_ok=True)
    fresh = where.again.with_name("again.new")
    try:
        fresh.write_text(json.dumps(command[_PROGRAM:]), encoding="utf-8")
        fresh.replace(where.again)
    except OSError as problem:
        _logger.warning("a broker started after both are killed has its defaults: %s", problem)


def _resume_left_over(where: Places) -> None:
    """Let those run whom a former broker left paused, where its guardian could not."""
    table = IntentTable.open_existing(where.intents)
    if table is None:
        return
    for key in resume_all(table):
        _logger.warning(
            "resumed a process that a former broker left paused", extra={"pid": key.pid}
        )
    table.close()


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        msg = f"{text} is no number of seconds: give 0 or more"
        raise argparse.ArgumentTypeError(msg)
    return value


def _size(text: str) -> str:
    """A size, or 0; kept as it was written, for a broker that is started again."""
    try:
        _bytes(text)
    except BadSize as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
    return text


def _bytes(text: str | None) -> int | None:
    return None if text is None else 0 if text.strip() == "0" else parse_size(text)


def _positive(text: str) -> float:
    value = float(text)
    if not LEAST <= value < math.inf:
        msg = f"{text} is too little or no number: give {LEAST:g} or more"
        raise argparse.ArgumentTypeError(msg)
    return value


def _file(text: str) -> Path:
    """A file to record into; the broker works in another folder than whoever starts it."""
    path = Path(text).absolute()
    if path.suffix != SUFFIX:
        msg = f"{text} is to end in {SUFFIX}, by which replay knows a recording"
        raise argparse.ArgumentTypeError(msg)
    return path


def _command(given: argparse.Namespace) -> list[str]:
    """Return how to start a broker like this one again."""
    command = [sys.executable, "-P", "-m", "gpushare_kernel.broker", "--again"]
    for name in _AGAIN:
        value = getattr(given, name)
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    return command


def _resident(key: ProcessKey | None) -> int:
    """What a session taken over from the broker before holds already: part of the capacity."""
    return 0 if key is None or not procfs.alive(key) else procfs.private_memory(key.pid) or 0


def _lock(where: Places) -> int:
    """Hold broker.lock for as long as this process lives: whoever holds it is the broker.

    Raises
    ------
    BrokerUnavailable
        Where another one lives.
    """
    fd = os.open(where.broker_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        msg = f"a gpushare broker already runs in {where.runtime}: one per host. See: jupyter gpushare status."
        raise BrokerUnavailable(msg) from None
    return fd


def _raise_limits() -> None:
    """Descriptors: three a session; the usual soft limit of 1,024 would be 300 notebooks."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
