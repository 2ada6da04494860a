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

from gpushare_kernel import __version__, procfs
from gpushare_kernel.broker import logs, service
from gpushare_kernel.broker.adoption import Foreign
from gpushare_kernel.broker.audit import Audit
from gpushare_kernel.broker.broker import Broker
from gpushare_kernel.broker.budgets import Budgets
from gpushare_kernel.broker.doorway import Doorway
from gpushare_kernel.broker.exporter import Exporter, Offer
from gpushare_kernel.broker.groups import Groups, host_of
from gpushare_kernel.broker.hardware import Parking, config_of, find_devices, lock_worker
from gpushare_kernel.broker.housekeeping import Housekeeping
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.broker.keeper import Keeper
from gpushare_kernel.broker.ledger import Ledger, Loaded
from gpushare_kernel.broker.left_over import lock, resume_left_over
from gpushare_kernel.broker.options import parser, size_of
from gpushare_kernel.broker.overdraft import Over
from gpushare_kernel.broker.people import Anybody, People
from gpushare_kernel.broker.persons import Persons
from gpushare_kernel.broker.recorder import Recorder
from gpushare_kernel.broker.settings import Host, Settings, parsed, read
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import (
    BadSettings,
    GpushareError,
    InternalError,
)
from gpushare_kernel.core.policies import policy_named
from gpushare_kernel.core.sizes import parse_size
from gpushare_kernel.core.values import ProcessKey, UserId
from gpushare_kernel.devices.base import Device
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.transport.launch import WHY, report_ready
from gpushare_kernel.transport.places import Places, places, prepare
from gpushare_kernel.transport.server import Listener, serve
from gpushare_kernel.wire.messages import Closing

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
    "metrics",
    "metrics_users",
    "metrics_names",
)
"""Options that a broker which is started again gets too."""
_PROGRAM = 4
"""So many words of a broker's command are no arguments: an interpreter, -P, -m, the module."""
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
    # A service manager starts us again in the same words: what was noted at the start is there still after a crash only.
    given.again = given.again or (given.service and where.again.exists())
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
    except Exception:  # its guardian starts another one; where it was started by nobody's terminal, only the log tells why
        _logger.critical("the broker failed, and ends", exc_info=True)
        raise
    finally:
        os.close(held)


def _say_why(given: argparse.Namespace, error: GpushareError) -> None:
    """Tell who started us: by the pipe that is our stderr, or in a terminal."""
    print(error, end="\n" if given.ready_fd is None else f"{WHY}\n", file=sys.stderr)  # noqa: T201


async def _run(given: argparse.Namespace, where: Places, held: int) -> int:
    loop = asyncio.get_running_loop()
    # Whoever starts one by hand is told what is wrong with it; where nobody looks, metrics are no reason to be without a broker.
    unattended = given.again or given.service
    offer = None if given.metrics is None or unattended else await Offer.made(given)
    table = IntentTable(where.intents)
    ledger = Ledger(where.ledger)
    known = ledger.load()
    devices = find_devices(
        given.device,
        table,
        capacity=_capacity(given),
        compute=given.compute,
        held=sum(_resident(row.process) for row in known.sessions),
    )
    broker = _broker(given, where, devices, known, ledger)
    _remember(broker, known, given.record)
    listener = Listener(where.socket, 0o666 if where.system else 0o600, release=__version__)
    keeper = Keeper(table, where, _command(given), lock_worker(devices), restarts=not given.service)
    keeper.start(partial(_let_run, broker))
    _hear_signals(loop, broker)
    housekeeping = _housekeeping(given, broker, listener, where, held)
    exporting = loop.create_task(_export(given, offer, broker, where, listener))
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
    if not unattended:
        await exporting
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
        leaving.push_async_callback(_export_no_more, exporting)
        _mark_stopped(broker, where)
        tidying.cancel()
        await asyncio.gather(tidying, return_exceptions=True)
        broker.say(Closing(broker.stop_reason))
    return 0


async def _export(
    given: argparse.Namespace,
    offer: Offer | None,
    broker: Broker,
    where: Places,
    listener: Listener,
) -> Exporter | None:
    """Offer metrics. A broker that is started unattended waits for its address while notebooks find it already."""
    if offer is None and given.metrics is not None:
        offer = await Offer.in_the_end(given, broker)
    return None if offer is None else Exporter.started(offer, broker, where.log, listener)


async def _export_no_more(exporting: asyncio.Task[Exporter | None]) -> None:
    exporting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        exporter = await exporting
        if exporter is not None:
            await exporter.stop()


def _say_ready(ready_fd: int | None) -> None:
    """Tell whoever started us that we listen."""
    if ready_fd is not None:
        report_ready(ready_fd)
    service.tell("READY=1")


def _broker(
    given: argparse.Namespace,
    where: Places,
    devices: Sequence[Device],
    known: Loaded,
    ledger: Ledger,
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
            options=_command(given)[_PROGRAM:],
        )
        for device in devices
    ]
    broker = Broker(
        [*zip(configs, devices, strict=True)],
        ledger,
        system=where.system,
        budgets=Budgets.of(Machine(), size_of(given.arena), size_of(given.arena_user)),
        settings=_settings(given, where, devices),
        audit=Audit(where.audit),
        persons=_persons(given.hub_api, given.hub_uids),
    )
    broker.groups.good, broker.groups.place = where.settings_kept, where.settings
    broker.groups.capacity = _capacity(given)
    broker.groups.keep()
    return broker


def _housekeeping(
    given: argparse.Namespace, broker: Broker, listener: Listener, where: Places, held: int
) -> Housekeeping:
    idle_exit = (
        given.idle_exit if given.idle_exit is not None else (0.0 if where.system else IDLE_EXIT)
    )
    return Housekeeping(
        broker,
        listener,
        where,
        idle_exit,
        lock=held,
        foreign=Foreign(given.foreign or (Foreign.ADOPT if where.system else Foreign.IGNORE)),
        over=Over(given.over or "tell"),
    )


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
    broker.upkeep.all_told()
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
    inventories = [device.inventory for device in devices]
    host = host_of(inventories, People(), _capacity(given))
    try:
        return read(path, host)
    except BadSettings as problem:
        if not (given.again and where.settings_kept.exists()):
            raise
        _logger.error("the configuration was not taken, what was read last holds: %s", problem)  # noqa: TRY400  its own words say all
        kept = where.settings_kept.read_text(encoding="utf-8")
        any_host = Host(Anybody(), 2**62, 2**31, math.inf, 2**62)
        return parsed(kept, path, any_host)  # it was held against this one when it was read


def _capacity(given: argparse.Namespace) -> int | None:
    """Return what the administrator gave of each device; None: all of it."""
    return None if given.capacity is None else parse_size(given.capacity)


def _reload(groups: Groups) -> None:
    """Somebody wants the file read again; what is wrong with it is in the log and the status."""

    async def reloading() -> None:
        with contextlib.suppress(BadSettings):
            await groups.reload()

    groups.begin(reloading())


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
