"""The CPU as a device: CPU seconds for device time, private memory for device memory, SIGSTOP for a pause.

It has no context (reserve 0) and cannot park: what a stopped process holds stays where it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, thread_time

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import DeviceId, MoveStatus, PauseStatus, ProcessKey, Usage
from gpushare_kernel.devices.base import (
    Busy,
    Capabilities,
    Intents,
    Inventory,
    MoveOutcome,
    PauseOutcome,
    Stranger,
    Target,
)
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.devices.meter import TreeMeter

_STILL = procfs.STOPPED | {"D"}
"""Who stays in D uses no CPU, and stops before it runs user code again: a read that hangs, or a parent
inside vfork, for as long as its child is stopped."""

_EAGER_ROUNDS = 0
_PATIENT_ROUNDS = 10
"""So long (about 20 ms) D is waited for: inside a fork it may still give birth."""
_LONGEST_NAP = 0.005
_CONFIRMATIONS = 2
_AGAIN = 0.1
"""Seconds within which a tree is stopped again that somebody has continued."""
MOST = 4096
"""Processes of one user that stand still at once: each is a row of the table of intents, which is everybody's."""
BIG = 64
"""From so many processes on a tree is walked beside the loop, and its samples come one question later: a walk takes 45 us for each."""
SHARE = 0.05
"""How much of a core looks at all big trees of one user may take."""
_FRESH = 1.0
"""Seconds for which CPU seconds that were read beside the loop are of now; memory is until the next look."""
_AT_ONCE = 64
"""Processes that are signalled before the loop goes on."""


@dataclass(slots=True)
class _Session:
    """What we know of one session's tree."""

    meter: TreeMeter = field(default_factory=TreeMeter)
    user: int | None = None
    members: dict[ProcessKey, None] = field(default_factory=dict)  # of the last walk, root excluded
    stopped: dict[ProcessKey, None] = field(default_factory=dict)  # by us, in this order
    why: str = ""  # it could not be paused
    look: asyncio.Task[None] | None = None  # the last one beside the loop
    seen: dict[bool, tuple[float, Usage]] = field(
        default_factory=dict
    )  # by it: with memory, without
    due: dict[bool, float] = field(default_factory=dict)  # when to look again

    @property
    def is_big(self) -> bool:
        return len(self.members) >= BIG


class HostDevice:
    """The host's CPU as a `Device`.

    Parameters
    ----------
    intents
        Where each process is put on record before it is stopped.
    capacity
        Bytes to share; default is what is available now, within the memory limits of our control groups.
    compute
        Cores to share; default is what affinity and CPU quotas leave us.
    held
        Bytes that sessions taken over from an earlier broker hold already: part of the capacity.
    machine
        Where to read the machine; for tests.
    most
        Processes of one user that stand still at once.
    """

    def __init__(
        self,
        intents: Intents,
        *,
        capacity: int | None = None,
        compute: float | None = None,
        held: int = 0,
        machine: Machine | None = None,
        most: int = MOST,
    ) -> None:
        self._intents, self._most = intents, most
        self._machine = machine or Machine()
        self._available = self._machine.available() + held
        self._sessions: dict[ProcessKey, _Session] = {}
        self.capabilities = Capabilities(
            can_pause=True,
            can_park=False,
            why="a CPU has no memory apart from the process's own: there is nothing to park",
        )
        self.inventory = Inventory(
            id=DeviceId("host"),
            kind="host",
            name=f"{self._machine.cpu_name()} (CPU, no GPU)",
            capacity=self._available if capacity is None else capacity,
            compute=self._machine.cores() if compute is None else compute,
            reserve=0,
        )
        if self.inventory.capacity <= 0 or self.inventory.compute <= 0:
            msg = (
                "a device needs memory and compute over zero, not "
                f"{self.inventory.capacity} bytes and {self.inventory.compute:g} cores. "
                "Free some memory, or give the broker --capacity SIZE."
            )
            raise DeviceError(msg)

    @property
    def lost(self) -> str | None:
        """Return None: a host that has lost its CPU asks nobody."""
        return None

    def usage(self, target: Target, *, memory: bool = False, active: bool = False) -> Usage | None:  # noqa: ARG002
        """Return the tree's CPU seconds, also of those who ended, and its private bytes if asked."""
        if not procfs.alive(target.root):
            return None  # whom it leaves behind is still asked for: `survivors`
        session = self._session(target.root)
        if not session.is_big and (session.look is None or session.look.done()):
            return self._sample(target, session, memory=memory)
        self._look_beside(target, session, memory=memory)
        at, seen = session.seen.pop(memory, (0.0, None))
        return seen if memory or monotonic() - at < _FRESH else None

    def _sample(self, target: Target, session: _Session, *, memory: bool) -> Usage:
        processes = self._walk(target, session)
        session.meter.sample(processes, target.without)
        return Usage(
            device_time=session.meter.device_time,
            wanted=session.meter.device_time + session.meter.waited,
            memory=sum(procfs.private_memory(key.pid) or 0 for key in processes)
            if memory
            else None,
        )

    def _look_beside(self, target: Target, session: _Session, *, memory: bool) -> None:
        """Sample a big tree in a thread, one look after the other, and no more of them than its user's share; the next question is answered from it."""
        free = session.look is None or session.look.done()
        if free and monotonic() >= session.due.get(memory, 0.0):
            session.look = asyncio.get_running_loop().create_task(self._looking(target, session, memory=memory))  # fmt: skip

    async def _looking(self, target: Target, session: _Session, *, memory: bool) -> None:
        def sample() -> tuple[Usage, float]:
            began = thread_time()
            return self._sample(target, session, memory=memory), thread_time() - began

        seen, cost = await asyncio.to_thread(sample)
        session.seen[memory] = monotonic(), seen
        others = sum(one.is_big for one in self._sessions.values() if one.user == session.user)
        session.due[memory] = monotonic() + cost / SHARE * max(1, others)

    async def look(self) -> None:
        """Do nothing: what is asked for is read at once."""

    def moving(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: everybody's seconds are their own here."""
        return contextlib.nullcontext()

    def utilization(self) -> Busy | None:
        """Return None: here demand is measured by session."""
        return None

    @property
    def window(self) -> float:
        """Return 0: there is no utilization."""
        return 0.0

    def environment(self, needs: int = 0) -> Mapping[str, str]:  # noqa: ARG002
        """Return nothing: a kernel finds its CPU by itself."""
        return {}

    def strangers(self, targets: Collection[Target]) -> Sequence[Stranger]:  # noqa: ARG002
        """Return nobody: on a CPU everybody is."""
        return ()

    def foreign(self, managed: int) -> int:
        """Return what others took of the capacity since we started.

        Where the capacity was set below what was available, the rest is theirs to take first.
        """
        spare = max(0, self._available - self.inventory.capacity)
        return max(0, self._available - self._machine.available() - managed - spare)

    async def pause(self, target: Target, *, limit: float) -> PauseOutcome:
        """Stop the tree: everybody in it, until a walk finds nobody new and nobody moving."""
        asked = monotonic()
        state = procfs.state_of(target.root)
        session = self._session(target.root)
        if state is None or state in procfs.ENDED:
            return PauseOutcome(PauseStatus.GONE)
        session.why = ""
        try:
            status = await self._stop(target, session, asked + limit)
        except DeviceError as why:  # there is no row for all of it
            session.why, status = str(why), PauseStatus.UNSUPPORTED
        except BaseException:
            self._continue(session)  # a cancelled pause leaves nobody behind
            raise
        if status is not PauseStatus.PAUSED:
            await self._let_run(session)
        elif not session.stopped:
            return PauseOutcome(PauseStatus.STOPPED)  # its user has stopped all of it
        return PauseOutcome(status, monotonic() - asked)

    async def still(self, target: Target) -> bool:
        """Stop again whom somebody has continued, and who is new."""
        session = self._sessions.get(target.root)
        async for key in _in_pieces(() if session is None else session.stopped):
            state = procfs.state_of(key)
            if state is not None and state not in _STILL | procfs.ENDED:
                await self.pause(target, limit=_AGAIN)
                return False
        return True

    async def resume(self, target: Target) -> PauseOutcome:
        """Continue whom we stopped, orphans too. NOTHING: nobody stands still on our account any more."""
        session = self._sessions.get(target.root)
        if session is not None:
            await self._let_run(session)
            if session.stopped:
                return PauseOutcome(PauseStatus.FORBIDDEN)
        if procfs.alive(target.root):
            return PauseOutcome(PauseStatus.NOTHING)
        self._forget(target.root)
        return PauseOutcome(PauseStatus.GONE)

    def paused(self, target: Target) -> Collection[ProcessKey]:
        """Return whom we stopped and nobody has continued since."""
        session = self._sessions.get(target.root)
        keys = () if session is None else session.stopped
        return [key for key in keys if procfs.state_of(key) in _STILL]

    def runs_on(self, target: Target) -> str:
        """Say that its user has too many processes to pause it, or the table of intents is full."""
        session = self._sessions.get(target.root)
        return "" if session is None else session.why

    async def park(self, target: Target, *, limit: float) -> MoveOutcome:  # noqa: ARG002
        """Say that there is nothing to park."""
        return MoveOutcome(MoveStatus.UNABLE, why=self.capabilities.why)

    async def restore(self, target: Target, *, margin: int) -> MoveOutcome:  # noqa: ARG002
        """Say that nothing was parked."""
        return MoveOutcome(MoveStatus.DONE)

    def parked(self, target: Target) -> int:  # noqa: ARG002
        """Return 0."""
        return 0

    def loose(self, target: Target) -> int:  # noqa: ARG002
        """Return 0: nothing is ever parked."""
        return 0

    async def bring_back(self, targets: Collection[Target], *, margin: int) -> Sequence[ProcessKey]:  # noqa: ARG002
        """Nobody was parked."""
        return ()

    def survivors(self, target: Target) -> Sequence[ProcessKey]:
        """Return the children that outlived their root, as far as a walk has seen them; forget the rest."""
        session = self._sessions.get(target.root)
        self._forget(target.root)
        if session is None or procfs.alive(target.root):
            return ()
        return procfs.topmost(session.members, target.without)

    def close(self) -> None:
        """Continue everybody whom we stopped."""
        for session in self._sessions.values():
            self._continue(session)
            if session.look is not None:
                session.look.cancel()
        self._sessions.clear()

    async def _stop(self, target: Target, session: _Session, deadline: float) -> PauseStatus:
        rounds = confirmed = 0
        # Who was born while we walked is seen only by a walk that starts after all stood still.
        while confirmed < _CONFIRMATIONS:
            if await self._stop_round(
                target, session, procfs.STOPPED if rounds < _PATIENT_ROUNDS else _STILL
            ):
                confirmed += 1
                continue
            if not _stands(target.root, session):
                gone = not procfs.alive(target.root)
                return PauseStatus.GONE if gone else PauseStatus.FORBIDDEN
            if monotonic() >= deadline:
                return PauseStatus.BUSY
            # Nothing tells a stranger that a process has stopped, so we look again, less and less often. Not at
            # once: a target whose core we run on stops only when we let go of it.
            confirmed = 0
            rounds += 1
            nap = 0.0 if rounds <= _EAGER_ROUNDS else 0.0005 * 2 ** (rounds - _EAGER_ROUNDS)
            await asyncio.sleep(min(nap, _LONGEST_NAP))
        return PauseStatus.PAUSED if procfs.alive(target.root) else PauseStatus.GONE

    async def _stop_round(self, target: Target, session: _Session, still: Collection[str]) -> bool:
        """Walk the tree once and stop who moves; tell whether all stood still already."""
        moved = False
        if session.is_big:
            tree = await asyncio.to_thread(self._walk, target, session)
        else:
            tree = self._walk(target, session)
        self._check_rows(session, tree)
        async for key in _in_pieces(tree):
            state = procfs.state_of(key)
            if state is None or state in procfs.ENDED:
                continue
            if state in (still if key in session.stopped else procfs.STOPPED):
                continue  # stopped: by us, or by somebody else, and then not ours to continue
            if self._stop_one(key, session):
                moved = True
            elif key == target.root:
                return False
        return not moved and _stands(target.root, session)

    def _check_rows(self, session: _Session, tree: Collection[ProcessKey]) -> None:
        """Raise DeviceError, before anybody of it is stopped, where a tree would take more rows than its user may have."""
        held = sum(len(o.stopped) for o in self._sessions.values() if o.user == session.user and o is not session)  # fmt: skip
        if held + len(tree) > self._most:
            also = f", beside {held} of your other notebooks" if held else ""
            msg = (
                f"this notebook is {len(tree)} processes{also}, and of one user's at most {self._most} can be paused at once: it is not paused, runs beside "
                "the others, and is charged for that. End those that it does not need; its next cell takes turns again."
            )
            raise DeviceError(msg)

    def _stop_one(self, key: ProcessKey, session: _Session) -> bool:
        """Stop one process; False where it is gone or not ours to stop (a child under sudo, say)."""
        ours = key in session.stopped
        if not ours:
            self._intents.add(key)
        try:
            sent = procfs.send(key, signal.SIGSTOP)
        except PermissionError:
            sent = False
        if sent:
            session.stopped[key] = None
        elif not ours:
            self._intents.remove(key)
        return sent

    def _continue(self, session: _Session) -> None:
        """Continue all we stopped, the last one first."""
        for key in [*reversed(session.stopped)]:
            self._continue_one(key, session)

    async def _let_run(self, session: _Session) -> None:
        """The same, in pieces."""
        async for key in _in_pieces(reversed(session.stopped)):
            self._continue_one(key, session)

    def _continue_one(self, key: ProcessKey, session: _Session) -> None:
        try:
            procfs.send(key, signal.SIGCONT)
        except PermissionError:
            return  # it became somebody else's; it stays on record
        if key in session.stopped:
            del session.stopped[key]
            self._intents.remove(key)

    def _session(self, root: ProcessKey) -> _Session:
        known = self._sessions.get(root)
        if known is None:
            known = self._sessions[root] = _Session(user=procfs.owner(root.pid))
        return known

    def _walk(self, target: Target, session: _Session) -> list[ProcessKey]:
        """Return the living tree, with members whose parent ended (and who belong to init now)."""
        root, without = target.root, target.without
        if not session.members and not procfs.children(root.pid):
            return [root]  # most kernels, most of the time: half the cost
        found = dict.fromkeys(procfs.tree(root.pid, without) if procfs.alive(root) else ())
        for key in session.members:
            if key not in found and procfs.alive(key) and not procfs.is_below(key.pid, without):
                found.update(dict.fromkeys(procfs.tree(key.pid, without)))
        # A broker that was started from a kernel is nobody's child, but it must not stop itself even if it were.
        session.members = {key: None for key in found if key != root and key.pid != os.getpid()}
        return [root, *session.members] if root in found else list(session.members)

    def _forget(self, root: ProcessKey) -> None:
        session = self._sessions.get(root)
        if session is not None and not session.stopped:
            del self._sessions[root]


def _stands(root: ProcessKey, session: _Session) -> bool:
    """Whether we have stopped the root of a session, or its user has: what is below it may run all the same."""
    return root in session.stopped or procfs.state_of(root) in procfs.STOPPED


async def _in_pieces(keys: Iterable[ProcessKey]) -> AsyncIterator[ProcessKey]:
    """Yield all of them, and let the loop go on now and then."""
    for number, key in enumerate([*keys], 1):
        yield key
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
