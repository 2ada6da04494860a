"""What is done by the clock rather than by events: idle kernels, foreign memory, waiters' lines, accounts, idle exit."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gpushare_kernel import procfs
from gpushare_kernel.broker.adoption import Adoption, Foreign
from gpushare_kernel.broker.broker import Broker
from gpushare_kernel.broker.engine import Engine
from gpushare_kernel.broker.kernels import Kernel
from gpushare_kernel.broker.memory_watch import MemoryWatch
from gpushare_kernel.broker.overdraft import Over
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import BrokerUnavailable, DeviceError
from gpushare_kernel.core.records import Session
from gpushare_kernel.core.values import MiB, SessionId, Usage
from gpushare_kernel.transport.locks import locked
from gpushare_kernel.transport.places import Places
from gpushare_kernel.transport.server import Listener
from gpushare_kernel.wire.messages import Announce

PERIOD = 1.0
AGAIN = 0.25
"""Seconds between two looks for memory that was given back: each holds up everybody's calls into the driver for up to 4.5 ms."""
ROUNDS = 10
"""Kernels that seem idle are looked at closely (children, memory) once in so many periods."""
_STIRRED = 0.01
_CAPACITY_STEP = 64 * MiB
_logger = logging.getLogger(__name__)


class Housekeeping:
    """One pass a second. `lock` is the descriptor of broker.lock."""

    def __init__(
        self,
        broker: Broker,
        listener: Listener,
        places: Places,
        idle_exit: float,
        *,
        lock: int,
        foreign: Foreign = Foreign.IGNORE,
        over: Over = Over.TELL,
    ) -> None:
        self._broker, self._listener, self._places = broker, listener, places
        self._idle_exit, self._lock = idle_exit, lock
        self._adoption = {
            name: Adoption(
                foreign,
                take=partial(broker.take_in, engine=engine),
                has_sessions=broker.registry.has,
                has_name=broker.groups.knows,
            )
            for name, engine in broker.engines.items()
        }
        self._watch = MemoryWatch(broker, over)
        self._round = 0
        #: Which steps failed, of which device, and how: told already.
        self._failures: set[tuple[str, str, str]] = set()
        self._cpu: dict[SessionId, float] = {}
        #: Bytes each session was last seen to hold, its lanes' included: part of what is used, and not by others.
        self._memory: dict[SessionId, int] = {}
        #: Who knows that it cannot be paused, and why.
        self._run_on: dict[SessionId, str] = {}

    async def run(self) -> None:
        """Tidy until cancelled. What sessions of a broker before us hold of a GPU is known before anybody asks for some."""
        self._look_at_what_was_here()
        async with asyncio.TaskGroup() as followed:
            for engine in self._broker.engines.values():
                followed.create_task(self._follow(engine))
                followed.create_task(self._bring_back(engine))
            while True:
                await asyncio.sleep(PERIOD)
                self._attempt(self._tidy)

    async def _follow(self, engine: Engine) -> None:
        """Whoever waits for memory has it as soon as the device says that it is free, not with the next pass."""
        while True:
            await engine.freed.wait()
            engine.freed.clear()
            try:
                await engine.device.look()
            except Exception:  # it is looked at again
                _logger.exception("a device could not be looked at")
            self._attempt(self._look_at_kernels, engine)
            self._attempt(self._watch_capacity, engine)
            await asyncio.sleep(AGAIN)

    async def _bring_back(self, engine: Engine) -> None:
        """Whoever was parked and is in no session (the ledger was lost) would wait for ever: nobody else asks for it."""
        while True:
            try:
                await engine.moves.bring_back()
            except Exception:  # it is tried again
                _logger.exception("what was parked could not be brought back")
            await asyncio.sleep(PERIOD)

    def _attempt(self, step: Callable[..., None], *of: Engine) -> None:
        """Do one step; where it fails, the others are done all the same. It is logged once for each kind of failure."""
        try:
            step(*of)
        except Exception as problem:
            device = of[0].device.inventory.id if of else ""
            name = getattr(step, "__name__", repr(step))
            kind = name, device, type(problem).__name__
            if kind not in self._failures:
                self._failures.add(kind)
                _logger.exception("housekeeping failed", extra={"step": name, "device": device})

    def _look_at_what_was_here(self) -> None:
        for engine in self._broker.engines.values():
            if not engine.scheduler.config.divisible and len(self._broker.registry):
                self._attempt(self._look_at_kernels, engine)
                self._attempt(self._watch_capacity, engine)

    def _tidy(self) -> None:
        broker = self._broker
        if not (self._listener.in_place and _leads_to(self._places.broker_lock, self._lock)):
            # Nobody finds us, and the next to come starts a second broker for the same device.
            broker.stop("its folder was removed", for_good=False)
            return
        self._round += 1
        if broker.recorder is not None:
            broker.recorder.flush()
        self._forget_the_gone()
        for engine in broker.engines.values():
            engine.here(engine.now)
            for look in (
                self._watch_device,
                self._look_at_kernels,
                self._watch_capacity,
                self._look_at_strangers,
                self._watch_memory,
                self._tell_who_runs_on,
                Engine.look_at_paused,
            ):
                self._attempt(look, engine)
        for step in (
            self._watch.forget,
            broker.tell_waits,
            broker.tell_budgets,
            broker.save_accounts,
            broker.groups.look,
            broker.upkeep.look,
            self._go_if_idle,
        ):
            self._attempt(step)

    def _go_if_idle(self) -> None:
        if self._idle_exit and self._broker.idle_for >= self._idle_exit:
            self._retire()

    def _forget_the_gone(self) -> None:
        """What was seen of a process says nothing of the one that comes after it."""
        here = {kernel.id for kernel in self._broker.registry if kernel.key is not None}
        for seen in (self._memory, self._cpu, self._run_on):
            for session in seen.keys() - here:
                del seen[session]

    def _watch_memory(self, engine: Engine) -> None:
        self._watch.look(engine, self._memory)

    def _tell_who_runs_on(self, engine: Engine) -> None:
        """Who cannot be paused, and can do something about it, is told; once for as long as it lasts."""
        for session in engine.scheduler.sessions.values():
            kernel = self._broker.registry.get(session.id)
            if session.pausable or kernel is None or kernel.target is None:
                self._run_on.pop(session.id, None)
                continue
            why = engine.device.runs_on(kernel.target)
            if why and session.id not in self._run_on:
                self._run_on[session.id] = why
                _logger.warning("a session runs on: %s", why, extra={"session": session.id})
                kernel.notify(Announce(why))

    def _look_at_kernels(self, engine: Engine) -> None:
        """Who stirs without having said so? One clock read each; a close look only where it is worth it."""
        used: dict[SessionId, Usage] = {}
        for number, kernel in enumerate(self._broker.registry):
            if self._broker.engine_of(kernel.id) is not engine:
                continue
            if self._worth_a_look(engine, kernel) or number % ROUNDS == self._round % ROUNDS:
                usage = engine.usage(kernel, memory=True)
                if usage is not None:
                    used[kernel.id] = usage
                    if usage.memory is not None:  # None: it is on its way
                        self._memory[kernel.id] = usage.memory
        if used:
            engine.feed(ev.Sampled(at=engine.now, used=used))

    def _worth_a_look(self, engine: Engine, kernel: Kernel) -> bool:
        if kernel.key is None:
            return False
        session = engine.scheduler.sessions.get(kernel.id)
        if session is not None and (session.jobs or not engine.scheduler.config.divisible):
            return True  # what a device's driver knows of it has been read already
        cpu = procfs.cpu_seconds(kernel.key.pid) or 0.0
        stirred = cpu - self._cpu.get(kernel.id, 0.0) > _STIRRED
        self._cpu[kernel.id] = cpu
        return stirred

    def _watch_device(self, engine: Engine) -> None:
        """A device that is lost: everybody on it runs, nothing is admitted there, and people are told what to do."""
        why = engine.device.lost
        if (why is not None) == engine.scheduler.lost:
            return
        engine.feed(ev.DeviceLost(at=engine.now, lost=why is not None, why=why or ""))
        if why is not None:
            _logger.error("a device is lost: %s", why, extra={"device": engine.device.inventory.id})
            self._broker.say(Announce(why))

    def _look_at_strangers(self, engine: Engine) -> None:
        """Who uses the device and is in no session: they take part, where that is wanted."""
        kernels = self._broker.registry
        targets = [kernel.target for kernel in kernels if kernel.target is not None]
        adoption = self._adoption[engine.device.inventory.id]
        adoption.look(engine.device.strangers(targets))
        engine.desktop, engine.foreign = adoption.desktop, adoption.foreign_memory

    def _watch_capacity(self, engine: Engine) -> None:
        """What others took of the device since we started is not ours to give."""
        book = engine.scheduler.book
        sessions = engine.scheduler.sessions
        managed = sum(self._held_by(engine, s) + s.context for s in sessions.values())
        try:
            foreign = engine.device.foreign(managed)
        except DeviceError as problem:
            _logger.warning("foreign memory cannot be measured: %s", problem)
            return
        inventory = engine.device.inventory
        capacity = max(0, inventory.capacity - foreign)
        if abs(capacity - book.table.capacity) < _CAPACITY_STEP:
            capacity = book.table.capacity
        if (capacity, inventory.reserve) != (book.table.capacity, book.reserve):
            engine.feed(
                ev.CapacityChanged(at=engine.now, capacity=capacity, reserve=inventory.reserve)
            )

    def _held_by(self, engine: Engine, session: Session) -> int:
        """Return what a session was last seen to hold; of what is on its way back, all (K8): it is taken by nobody else."""
        seen = max(session.measured, self._memory.get(session.id, 0))
        kernel = self._broker.registry.get(session.id)
        if kernel is None or kernel.target is None or not engine.moves.under_way(kernel):
            return seen
        return max(seen, engine.device.parked(kernel.target))

    def _retire(self) -> None:
        """Nothing to do for a while: go, unless somebody is just coming in."""
        try:
            with locked(self._places.start_lock, 0.0):
                if self._listener.try_retire():
                    self._broker.stop("nothing to do", for_good=False)
        except (BrokerUnavailable, OSError) as problem:
            if isinstance(problem, OSError) or isinstance(problem.__cause__, FileNotFoundError):
                self._broker.stop("its folder is gone, and nobody can find it", for_good=False)
            else:
                self._broker.touch()  # somebody is just looking for a broker, or the disk is read-only


def _leads_to(path: Path, fd: int) -> bool:
    """Say whether `path` is still the file that `fd` was opened from."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except OSError:
        return False
