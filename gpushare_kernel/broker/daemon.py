"""The broker's process from its first line to its last: lock, recovery, listening, housekeeping, a clean exit."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
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
from urllib.parse import urlsplit

from gpushare_kernel import __version__, procfs
from gpushare_kernel.broker import logs, service
from gpushare_kernel.broker.adoption import Foreign
from gpushare_kernel.broker.audit import Audit
from gpushare_kernel.broker.broker import Broker
from gpushare_kernel.broker.budgets import Budgets
from gpushare_kernel.broker.doorway import Doorway
from gpushare_kernel.broker.groups import Groups, host_of
from gpushare_kernel.broker.hardware import AUTO, Parking, config_of, find_devices, lock_worker
from gpushare_kernel.broker.housekeeping import Housekeeping
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.broker.keeper import Keeper
from gpushare_kernel.broker.ledger import Ledger, Loaded
from gpushare_kernel.broker.left_over import lock, resume_left_over
from gpushare_kernel.broker.overdraft import Over
from gpushare_kernel.broker.people import People
from gpushare_kernel.broker.persons import Persons
from gpushare_kernel.broker.recorder import Recorder
from gpushare_kernel.broker.settings import Settings, parsed, read
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.errors import (
    BadDeclaration,
    BadSettings,
    BadSize,
    GpushareError,
    InternalError,
)
from gpushare_kernel.core.policies import POLICIES, policy_named
from gpushare_kernel.core.sizes import parse_size
from gpushare_kernel.core.values import ProcessKey, UserId
from gpushare_kernel.devices.base import Device
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.transport.launch import WHY, report_ready
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
    "hub_api",
    "hub_uids",
    "config",
)
"""Options that a broker which is started again gets too."""
_PROGRAM = 4
"""So many words of a broker's command are no arguments: an interpreter, -P, -m, the module."""
LEAST = 0.01
"""A turn shorter than this (seconds) would be spent on its own end; less of a core is nothing to share."""
_logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None, *, resumed: Sequence[ProcessKey] = ()) -> int:
    """Run a broker until it is told to stop, or has had nothing to do for a while; `resumed` are those who were left paused."""
    given = parser().parse_args(arguments)
    where = places()
    try:
        prepare(where)
        held = lock(where)
    except GpushareError as error:
        _say_why(given, error)
        return 1
    os.chdir("/")
    logs.set_up(where.log, stderr=given.foreground)
    _raise_limits()
    for key in (*resumed, *resume_left_over(where)):
        _logger.warning(
            "resumed a process that a former broker left paused", extra={"pid": key.pid}
        )
    try:
        return asyncio.run(_run(given, where, held))
    except GpushareError as error:
        ours = isinstance(error, InternalError)  # else its words are all there is to know
        _logger.critical("the broker could not start: %s", error, exc_info=ours)
        _say_why(given, error)
        return 1
    finally:
        os.close(held)


def _say_why(given: argparse.Namespace, error: GpushareError) -> None:
    """Tell who started us: by the pipe that is our stderr, or in a terminal."""
    print(error, end="\n" if given.ready_fd is None else f"{WHY}\n", file=sys.stderr)  # noqa: T201


def parser() -> argparse.ArgumentParser:
    """Return the options of a broker."""
    found = argparse.ArgumentParser(prog="jupyter gpushare broker", description=__doc__)
    found.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    found.add_argument(
        "--service",
        action="store_true",
        help="run for a service manager, which starts it again after a crash: the guardian only resumes",
    )
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
        "--hub-api",
        type=_hub,
        metavar="URL",
        help="the API of the JupyterHub (http://127.0.0.1:8081/hub/api) that tells who somebody is where many people share a uid",
    )
    found.add_argument(
        "--hub-uids",
        type=_uids,
        metavar="UIDS",
        help="the uids that many people share, with commas between (default: all)",
    )
    found.add_argument(
        "--config",
        type=_path,
        metavar="FILE",
        help="groups, caps, budgets and administrators (docs/admin/groups.md); a system broker reads /etc/gpushare/gpushare.toml where there is one",
    )
    found.add_argument("--foreground", action="store_true", help="log to the terminal too")
    found.add_argument("--version", action="version", version=__version__)
    return found


def _policy(text: str) -> str:
    try:
        return policy_named(text).name
    except BadDeclaration as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


async def _run(given: argparse.Namespace, where: Places, held: int) -> int:
    loop = asyncio.get_running_loop()
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
    broker = _made(given, where, [*zip(configs, devices, strict=True)], ledger)
    _remember(broker, known, given.record)
    listener = Listener(where.socket, 0o666 if where.system else 0o600, release=__version__)
    keeper = Keeper(table, where, _command(given), lock_worker(devices), restarts=not given.service)
    keeper.start(partial(_let_run, broker))
    _hear_signals(loop, broker)
    idle_exit = (
        given.idle_exit if given.idle_exit is not None else (0.0 if where.system else IDLE_EXIT)
    )
    foreign = Foreign(given.foreign or (Foreign.ADOPT if where.system else Foreign.IGNORE))
    housekeeping = Housekeeping(
        broker,
        listener,
        where,
        idle_exit,
        lock=held,
        foreign=foreign,
        over=Over(given.over or "tell"),
    )
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
    _say_ready(given.ready_fd)
    await broker.stopping.wait()
    _logger.info("going away: %s", broker.stop_reason)
    service.tell("STOPPING=1")
    async with contextlib.AsyncExitStack() as leaving:  # the last goes first, and all of them go
        leaving.callback(table.close)
        leaving.callback(ledger.close)
        if broker.recorder is not None:
            leaving.callback(broker.recorder.close)
        leaving.push_async_callback(keeper.stop)  # else the guardian takes this for a crash
        leaving.push_async_callback(_hang_up, broker, listener, serving)
        leaving.push_async_callback(broker.finish)
        _mark_stopped(broker, where)
        tidying.cancel()
        await asyncio.gather(tidying, return_exceptions=True)
        broker.say(Closing(broker.stop_reason))
    return 0


def _say_ready(ready_fd: int | None) -> None:
    """Tell whoever started us that we listen."""
    if ready_fd is not None:
        report_ready(ready_fd)
    service.tell("READY=1")


def _made(
    given: argparse.Namespace,
    where: Places,
    devices: Sequence[tuple[Config, Device]],
    ledger: Ledger,
) -> Broker:
    broker = Broker(
        devices,
        ledger,
        system=where.system,
        budgets=Budgets.of(Machine(), _bytes(given.arena), _bytes(given.arena_user)),
        settings=_settings(given, where, [device for _, device in devices]),
        audit=Audit(where.audit),
        persons=_persons(given.hub_api, given.hub_uids),
    )
    broker.groups.good = where.settings_kept
    broker.groups.keep()
    return broker


def _hear_signals(loop: asyncio.AbstractEventLoop, broker: Broker) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, broker.stop, f"signal {signum.name}")
    loop.add_signal_handler(signal.SIGHUP, _reload, broker.groups)


def _remember(broker: Broker, known: Loaded, record: Path | None) -> None:
    """Tell the schedulers what the ledger knows; from where on events are written down, if they are."""
    for user, account in known.users:
        broker.know_user(UserId(user), account.device_time, account.weight)
    if record is not None:
        broker.record(Recorder(record))
    broker.groups.spending.begin(known.spent, broker.accounts())
    broker.upkeep.restore(known.notes)
    for row in known.sessions:
        broker.adopt(row)
    broker.needs.know(known.needs)


def _persons(hub: str | None, uids: str | None) -> Persons:
    """Who asks is told by the uid, or by a hub; it is loaded where there is one."""
    if hub is None:
        return Persons()
    from gpushare_kernel.hub.identity import HubTokens  # noqa: PLC0415 - an HTTP client

    return Persons(HubTokens(hub), None if uids is None else {int(uid) for uid in uids.split(",")})


def _let_run(broker: Broker, seconds: float) -> None:
    """Resume everybody, and pause nobody for a while; whom a signal has freed for longer stays free."""
    for session in list(broker.sessions()):
        engine = broker.engine_of(session.id)
        engine.feed(ev.Exempted(at=engine.now, session=session.id, until=engine.now + seconds))


async def _hang_up(broker: Broker, listener: Listener, serving: asyncio.Task[None]) -> None:
    listener.close()
    await serving
    broker.save_accounts()
    broker.hang_up()
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


def _hub(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        msg = f"{text} is no address: give the hub's API, such as http://127.0.0.1:8081/hub/api"
        raise argparse.ArgumentTypeError(msg)
    return text


def _uids(text: str) -> str:
    """Uids; kept as they were written, for a broker that is started again."""
    if not all(uid.isdecimal() for uid in text.split(",")):
        msg = f"{text} are no uids: give numbers with commas between, such as 1000"
        raise argparse.ArgumentTypeError(msg)
    return text


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


def _path(text: str) -> Path:
    """A file; the broker works in another folder than whoever starts it."""
    return Path(text).absolute()


def _settings(given: argparse.Namespace, where: Places, devices: Sequence[Device]) -> Settings:
    """Return what the administrator's file says. After a crash one that is wrong by now keeps nobody out: what was read last holds.

    Raises
    ------
    BadSettings
        Where it is wrong otherwise.
    """
    path = given.config or where.settings
    if path is None or not (given.config or path.exists()):
        return Settings()
    host = host_of([device.inventory for device in devices], People())
    try:
        return read(path, host)
    except BadSettings as problem:
        if not (given.again and where.settings_kept.exists()):
            raise
        _logger.error("the configuration was not taken, what was read last holds: %s", problem)  # noqa: TRY400  its own words say all
        return parsed(where.settings_kept.read_text(encoding="utf-8"), path, host)


def _reload(groups: Groups) -> None:
    """Somebody wants the file read again; what is wrong with it is in the log and the status."""
    with contextlib.suppress(BadSettings):
        groups.reload()


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


def _raise_limits() -> None:
    """Descriptors: three a session; the usual soft limit of 1,024 would be 300 notebooks."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
