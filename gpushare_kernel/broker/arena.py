"""Arenas: memory of the host, a file of it for each user, into which their kernels copy what they set aside. Rules A1 to A9 in docs/arena.md.

A kernel leases an extent by a connection, and has it for as long as that stands: no lease is taken back. What a lease leaves
stays populated for the next one, up to the budgets. All that takes time (first touch, giving back) is done by one thread, in
steps, in the order in which it is asked for; the loop only keeps the books.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from gpushare_kernel.broker.budgets import Budgets, check_room, checked_size
from gpushare_kernel.broker.extents import Extents, Rest, Span
from gpushare_kernel.broker.memfile import MemFile
from gpushare_kernel.broker.persons import Person
from gpushare_kernel.core.errors import BrokerUnavailable, NotYours, Refused
from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.core.values import GiB, MiB, UserId
from gpushare_kernel.devices.parkable import host_margin
from gpushare_kernel.transport.server import Connection
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.snapshot import ArenaView

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker
    from gpushare_kernel.transport.peers import Peer

STEP = 256 * MiB
"""By how much an arena grows, and what is populated between two looks at the host's memory."""
UNCLAIMED = 10.0
"""Seconds after which a lease that nobody came for is over: whoever asked left before the answer."""
LOOK = 5.0
"""Seconds between two looks at arenas, while there are any."""
LONG = 600.0
"""Seconds for which memory rests unused before it goes back."""
LOW = GiB
"""Where the host has less left than this, what rests goes back at the next look."""
_logger = logging.getLogger(__name__)


class Arena:
    """One user's file, and the map of it."""

    def __init__(self, owner: Person) -> None:
        self.owner, self.file, self.extents = owner, MemFile(), Extents(STEP)


class Leased:
    """One extent, from the moment it is set apart until its connection ends. `fd` is for whoever asked, until it is sent."""

    def __init__(self, arenas: Arenas, arena: Arena, span: Span, holes: Iterable[Span]) -> None:
        self._arenas = arenas
        self.arena, self.span, self.holes = arena, span, tuple(holes)
        #: Bytes that are to be populated still.
        self.owed = sum(hole.size for hole in self.holes)
        self.fd = -1
        self.connection: Connection | None = None
        self.over = False

    def on_frame(self, payload: bytes) -> None:
        """Hear nothing: no word changes a lease, and none ends it (A4)."""

    def on_closed(self) -> None:
        """It is given back."""
        self._arenas.left(self)

    def close_fd(self) -> None:
        """Close what was for whoever asked."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Arenas:
    """All arenas of a broker.

    Attributes
    ----------
    budgets
        What they may have.
    room
        Returns the bytes that this process can take of the host's memory now.
    """

    def __init__(self, broker: Broker, budgets: Budgets, room: Callable[[], int]) -> None:
        self._broker, self.budgets, self.room = broker, budgets, room
        self._of: dict[Person, Arena] = {}
        self._filling: set[Leased] = set()
        self._standing: set[Leased] = set()
        self._going: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="gpushare-arena")

    def views(self, who: Person) -> Iterator[ArenaView]:
        """Return what `who` may see (I9): their own arena; an administrator all."""
        for one in self._of.values():
            if who == one.owner or self._broker.administers(who):
                user = one.owner.user
                yield ArenaView(user, one.extents.leased, one.file.resident(), self._budgets(user).user)  # fmt: skip

    def _budgets(self, user: UserId) -> Budgets:
        """Return the budgets that hold for `user`, in its group."""
        return self.budgets.of_one(self._broker.groups.caps(user).parked)

    # --- leases -------------------------------------------------------------------------------------------------

    async def lease(self, body: msg.LeaseArena, peer: Peer) -> Leased:
        """Set an extent apart and take memory for it.

        Raises
        ------
        BadToken, NotYours
            Where the caller is not inside the kernel that the token belongs to, as its user.
        BadSize, Refused
            Where it cannot be given, with the numbers.
        """
        kernel = self._broker.registry.inside(body.token, peer)
        if peer.uid != kernel.uid:
            problem = f"an arena is one user's: this kernel is of uid {kernel.uid}, and uid {peer.uid} asks. Ask as the kernel's user."
            raise NotYours(problem)
        if self._closed:
            problem = "the broker is going away: nothing is set aside any more."
            raise BrokerUnavailable(problem)
        size = checked_size(body.size)
        mine = self._of.get(kernel.person)
        self._budgets(kernel.user).check(size, mine=0 if mine is None else mine.extents.leased, all_=self._sum()[0])  # fmt: skip
        arena = mine or self._begin(kernel.person)
        found = Leased(self, arena, *arena.extents.take(size))
        try:
            await self._fill(found)
            found.fd = arena.file.another()
        except BaseException:
            self._drop(found)
            raise
        self._standing.add(found)
        asyncio.get_running_loop().call_later(UNCLAIMED, self._unclaimed, found)
        _logger.info("an extent is leased", extra={"user": kernel.user, "size": size})
        return found

    def claim(self, found: Leased, connection: Connection) -> Leased:
        """The answer is out: from now on the connection is the lease."""
        found.close_fd()
        found.connection = connection
        if found.over or self._closed:
            connection.close()
        return found

    def left(self, found: Leased) -> None:
        """A lease is over: its memory rests, as far as the budgets allow."""
        self._standing.discard(found)
        found.close_fd()
        if found.over or self._closed:
            return
        found.over = True
        found.arena.extents.release(found.span, self._now())
        self._keep_budgets(found.arena)

    def give_back(self, size: int = 2**62) -> int:
        """Begin to give resting memory back to the machine, the longest unused first; return how much (0: none rests)."""
        rests = [(rest, arena) for arena in self._of.values() for rest in arena.extents.rests]
        given = 0
        for rest, arena in sorted(rests, key=lambda one: one[0].since):
            if given >= size:
                break
            given += self._drain(arena, rest, size - given)
        return given

    async def close(self) -> None:
        """Let go of the files. What is leased stays where it is: its kernels have a descriptor (A9)."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.to_thread(self._worker.shutdown, wait=True, cancel_futures=True)
        await asyncio.gather(*self._going, return_exceptions=True)
        for found in [*self._standing]:
            found.close_fd()  # whoever asked for it is gone, and has not claimed it
            if found.connection is not None:
                found.connection.close()
        for arena in self._of.values():
            arena.file.close()
        self._of.clear()

    # --- taking memory --------------------------------------------------------------------------------------------

    def _begin(self, owner: Person) -> Arena:
        try:
            arena = self._of[owner] = Arena(owner)
        except OSError as problem:
            text = f"the host gives no memory file ({problem.strerror}). Nothing was set aside."
            raise Refused(text) from problem
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK, self._look)
        return arena

    async def _fill(self, found: Leased) -> None:
        """Have memory behind all of it: the host is looked at before, and again before each step."""
        file = found.arena.file
        self._filling.add(found)
        try:
            self._keep_budgets(found.arena)
            if found.owed:
                await self._make_room()
                file.reach(found.arena.extents.size)
            for step in _steps(found.holes):
                check_room(step.size, self.room())
                await self._work(file.populate, step)
                found.owed -= step.size
        except OSError as problem:
            text = f"the host gave no memory for {format_size(found.span.size)} ({problem.strerror}). Nothing was set aside; try again later."
            raise Refused(text) from problem
        finally:
            self._filling.discard(found)

    async def _make_room(self) -> None:
        """See that the host has what all who are being served are owed; where it has not, what rests is given back first."""
        owed = sum(one.owed for one in self._filling)
        missing = owed + host_margin(owed) - self.room()
        if missing > 0 and self.give_back(missing):
            await asyncio.gather(*self._going, return_exceptions=True)
        check_room(owed, self.room())

    async def _work(self, call: Callable[[Span], None], span: Span) -> None:
        await asyncio.get_running_loop().run_in_executor(self._worker, call, span)

    # --- giving it back -------------------------------------------------------------------------------------------

    def _drop(self, found: Leased) -> None:
        """A lease did not come about: what there is of its memory goes back."""
        if self._closed:
            return
        found.over = True
        found.close_fd()
        found.arena.extents.discard(found.span)
        self._give(found.arena, found.span)

    def _unclaimed(self, found: Leased) -> None:
        if found.connection is None:
            self.left(found)

    def _sum(self) -> tuple[int, int]:
        """Return what is leased, and what rests, in all arenas."""
        all_ = [one.extents for one in self._of.values()]
        return sum(one.leased for one in all_), sum(one.resting for one in all_)

    def _keep_budgets(self, arena: Arena) -> None:
        """Give back what rests beyond this user's budget, and then beyond the host's."""
        mine = arena.extents
        over = mine.leased + mine.resting - self.budgets.user
        for rest in mine.rests:
            if over > 0:
                over -= self._drain(arena, rest, over)
        over = sum(self._sum()) - self.budgets.host
        if over > 0:
            self.give_back(over)

    def _drain(self, arena: Arena, rest: Rest, most: int) -> int:
        span = arena.extents.drain(rest, most)
        self._give(arena, span)
        return span.size

    def _give(self, arena: Arena, span: Span) -> None:
        task = asyncio.get_running_loop().create_task(self._gone(arena, span))
        self._going.add(task)
        task.add_done_callback(self._going.discard)

    async def _gone(self, arena: Arena, span: Span) -> None:
        try:
            await self._work(arena.file.punch, span)
        except OSError:
            _logger.exception("memory of an arena could not be given back: it is used no more")
            return
        arena.extents.drained(span)
        self._settle(arena)

    def _settle(self, arena: Arena) -> None:
        """Let go of a file that nobody has anything in."""
        if arena.extents.empty and not self._closed:
            del self._of[arena.owner]
            arena.file.close()

    def _look(self) -> None:
        """See what has rested for long, whether the host needs it, and what lies where nothing is leased."""
        self._timer = None
        now = self._now()
        for arena in [*self._of.values()]:
            for rest in arena.extents.rests:
                if now - rest.since >= LONG:
                    self._drain(arena, rest, rest.span.size)
            self._sweep(arena)
        missing = LOW - self.room()
        if missing > 0:
            self.give_back(missing)
        if self._of:
            self._timer = asyncio.get_running_loop().call_later(LOOK, self._look)

    def _sweep(self, arena: Arena) -> None:
        """Take away what a user wrote outside their leases (A8)."""
        extents, file = arena.extents, arena.file
        busy = extents.draining or any(one.arena is arena for one in self._filling)
        if busy or file.resident() <= extents.leased + extents.resting:
            return
        _logger.warning("an arena has memory outside its leases", extra={"user": arena.owner.user})
        # Whoever leases one of these holes meanwhile is served after this, by the same thread.
        for hole in [*extents.holes(), Span(extents.size, 2**62)]:
            self._worker.submit(file.punch, hole)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _steps(holes: Iterable[Span]) -> Iterator[Span]:
    """Cut holes into steps."""
    for hole in holes:
        for start in range(hole.start, hole.end, STEP):
            yield Span(start, min(start + STEP, hole.end))
