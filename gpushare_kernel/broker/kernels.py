"""The kernels a broker knows: their processes, tokens, words and connections. No decisions here."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from gpushare_kernel import procfs
from gpushare_kernel.broker.ledger import Account, token_hash
from gpushare_kernel.broker.persons import Person
from gpushare_kernel.core.errors import BadFrame, BadToken, UserError
from gpushare_kernel.core.values import JobId, ProcessKey, SessionId, UserId
from gpushare_kernel.devices.base import Target
from gpushare_kernel.transport import pidfds
from gpushare_kernel.transport.peers import Peer
from gpushare_kernel.transport.tally import Tally
from gpushare_kernel.transport.words import AWAY, ENDED, PAUSED, SLOTS, WordPage
from gpushare_kernel.wire.limit_texts import sessions_text
from gpushare_kernel.wire.messages import BrokerNotice

MOST_SESSIONS_PER_USER = 1024
"""At most, and never with more than a quarter of the broker's descriptors; its connections get as many."""
_DESCRIPTORS = 3
"""Of a session: its process, its words, its tally."""
LONGEST_NAME = 200
_ID, _TOKEN = re.compile(r"s[0-9a-f]{12}"), 32
"""What ids look like, and how many characters a token has: we made them."""
EXEMPT_AT_ONCE, EXEMPT_SHARE = 120.0, 0.1
"""For how long (seconds) a session may be exempt from pauses, and how much of the time when it asks again and again."""


class Line(Protocol):
    """An attached client, as far as the rest of the broker needs it."""

    def notify(self, notice: BrokerNotice) -> None:
        """Send a notice."""

    def hears(self, notice: BrokerNotice) -> bool:
        """Whether its version has this notice; else `notify` sends nothing."""

    def hang_up(self) -> None:
        """End the connection."""


@dataclass(slots=True, eq=False)
class Kernel:
    """One session, seen from outside: what it takes to find it, pause it and talk to it."""

    id: SessionId
    uid: int
    user: UserId
    name: str
    token_hash: str
    page: WordPage
    weight: float = 1.0
    #: It yields to every other session.
    background: bool = False
    #: The name that a hub vouches for, where its uid is that of many.
    hub: str = ""
    #: What its client is told with the first line: why it is not who it could be.
    remark: str = ""
    #: Since when the announcement that it was told last holds.
    heard: float = 0.0
    #: It keeps a bundle's pages and does nothing.
    keeps_pages: bool = False
    #: What it is known to need at its next start, in bytes (0: nothing is known).
    needs: int = 0
    #: How far its client has come, by its own count.
    tally: Tally = field(default_factory=Tally.create)
    #: The budget its client was last told: bytes, None for no cap; -1 before it was told any.
    told_budget: int | None = -1
    #: Its root process, once bound, and the line it was in then; `without` are the roots of sessions below it.
    key: ProcessKey | None = None
    line: frozenset[int] = frozenset()
    pidfd: int = -1
    without: set[int] = field(default_factory=set)
    #: Whoever opened it: while that process lives, a session without a process may still get one; until then it is watched.
    opener: ProcessKey | None = None
    opener_pidfd: int = -1
    bound: asyncio.Event = field(default_factory=asyncio.Event)
    #: Why it must not be parked, of what only we know; "": nothing.
    barred: str = ""
    #: Bytes of device memory that its client has set aside itself.
    aside: int = 0
    #: Bytes its interpreter held when its client attached: its context.
    baseline: int = 0
    #: Bytes its tree was last seen to hold beyond that; None before anybody looked.
    held: int | None = None
    lines: list[Line] = field(default_factory=list)
    slots: list[int] = field(default_factory=lambda: list(range(SLOTS - 1, 0, -1)))
    slot_of: dict[JobId, int] = field(default_factory=dict)
    #: Pauses and resumes are carried out one after the other.
    tail: asyncio.Task[None] | None = None
    orphaned: bool = False
    #: Seconds for which it may still be exempt, and when that was reckoned.
    exempt_left: float = 0.0
    exempt_at: float = -inf
    #: How often it was left without a process: a deadline of an earlier time does not count.
    awaited: int = 0
    #: Its account in the ledger.
    saved: Account = field(default_factory=Account)
    #: Wall clock seconds.
    opened_at: float = field(default_factory=time.time)

    @property
    def person(self) -> Person:
        """Whose it is (I9)."""
        return Person(self.uid, self.hub)

    @property
    def watched(self) -> Sequence[int]:
        """The descriptors that tell when a process has ended."""
        return [pidfd for pidfd in (self.pidfd, self.opener_pidfd) if pidfd >= 0]

    @property
    def target(self) -> Target | None:
        """The session as a device sees it; None without a process."""
        return None if self.key is None else Target(self.key, frozenset(self.without))

    def take_slot(self, job: JobId, wanted: int = 0) -> int:
        """Return the word of `job`; UserError where all are taken."""
        if job in self.slot_of:
            return self.slot_of[job]
        if not self.slots:
            msg = (
                f"a notebook may run {SLOTS - 1} jobs at once, and so many run. Let one end first."
            )
            raise UserError(msg)
        if wanted in self.slots:
            self.slots.remove(wanted)
            slot = wanted
        else:
            slot = self.slots.pop()
        self.page.set(slot, 0)
        self.slot_of[job] = slot
        return slot

    def free_slot(self, job: JobId) -> None:
        """The job is over."""
        slot = self.slot_of.pop(job, None)
        if slot is not None and self.page.fd >= 0:  # a client's line may outlast its session
            self.page.set(slot, 0)
            self.slots.append(slot)

    def exempted(self, seconds: float, now: float, until: float) -> float:
        """Return for how many of `seconds` it is exempt from pauses, and charge what that is beyond `until`.

        Whoever asks is resumed at once in any case; who asks without end is paused like everybody else.
        """
        back = EXEMPT_SHARE * (now - self.exempt_at)
        self.exempt_left = min(EXEMPT_AT_ONCE, self.exempt_left + back)
        self.exempt_at = now
        anyway = max(0.0, until - now)
        taken = min(max(0.0, seconds - anyway), self.exempt_left)
        self.exempt_left -= taken
        return min(seconds, anyway + taken)

    def mark_paused(self, *, paused: bool) -> None:
        """Put the intent into the session's own word, where its provisioner reads it (I4)."""
        self._mark(PAUSED, there=paused)

    def mark_away(self, *, away: bool) -> None:
        """Say in the session's own word that its device memory is not there: its client then asks no framework for anything."""
        self._mark(AWAY, there=away)

    def mark_ended(self, *, ended: bool) -> None:
        """Say in the session's own word that it was we who ended its process; until the next one starts."""
        self._mark(ENDED, there=ended)

    def _mark(self, bit: int, *, there: bool) -> None:
        if self.page.fd >= 0:
            word = self.page.get(0)
            self.page.set(0, word | bit if there else word & ~bit)

    def notify(self, notice: BrokerNotice) -> None:
        """Send a notice to the client of the kernel itself (not to those of its children)."""
        if self.lines:
            self.lines[0].notify(notice)

    def let_go(self) -> None:
        """Close the process's descriptor, and its opener's; the session has no process from here on."""
        for pidfd in self.watched:
            os.close(pidfd)
        self.pidfd = self.opener_pidfd = -1
        self.key = None
        self.bound.clear()

    def close(self) -> None:
        """Close every descriptor."""
        self.let_go()
        self.page.close()
        self.tally.close()


class Registry:
    """Kernels by id and by token; whose process lies below whose."""

    def __init__(self) -> None:
        self._kernels: dict[SessionId, Kernel] = {}
        self._by_hash: dict[str, Kernel] = {}

    def __iter__(self) -> Iterator[Kernel]:
        return iter(list(self._kernels.values()))

    def __len__(self) -> int:
        return len(self._kernels)

    def get(self, session: SessionId) -> Kernel | None:
        """Return the kernel of `session`."""
        return self._kernels.get(session)

    def of(self, person: Person) -> list[Kernel]:
        """Return the kernels of one person."""
        return [kernel for kernel in self._kernels.values() if kernel.person == person]

    def has(self, uid: int) -> bool:
        """Whether anybody with this uid has one."""
        return any(kernel.uid == uid for kernel in self._kernels.values())

    def open(
        self,
        person: Person,
        name: str,
        weight: float,
        opener: ProcessKey | None,
        *,
        background: bool = False,
    ) -> tuple[Kernel, str]:
        """Return a new kernel and its token.

        Raises
        ------
        UserError
            Where the user has as many as anyone may have.
        """
        most = most_sessions()
        if len(self.of(person)) >= most:
            raise UserError(sessions_text(most))
        token = secrets.token_urlsafe(24)
        kernel = Kernel(
            SessionId(f"s{secrets.token_hex(6)}"),
            person.uid,
            person.user,
            name,
            token_hash(token),
            WordPage.create(),
            weight,
        )
        kernel.opener, kernel.background, kernel.hub = opener, background, person.hub
        self.add(kernel)
        return kernel, token

    def open_again(
        self, person: Person, token: str, session: SessionId, name: str
    ) -> Kernel | None:
        """Return the kernel of a session that a lost ledger was to tell of; None where its id or token is somebody's, or neither is one.

        Raises
        ------
        UserError
            Where the user has as many as anyone may have.
        """
        known = session in self._kernels or token_hash(token) in self._by_hash
        if known or not _ID.fullmatch(session) or len(token) < _TOKEN:
            return None
        most = most_sessions()
        if len(self.of(person)) >= most:
            raise UserError(sessions_text(most))
        kernel = Kernel(session, person.uid, person.user, clean_name(name), token_hash(token), WordPage.create())  # fmt: skip
        self.add(kernel)
        return kernel

    def add(self, kernel: Kernel) -> None:
        """Know `kernel` from here on."""
        self._kernels[kernel.id] = kernel
        self._by_hash[kernel.token_hash] = kernel

    def renew(self, kernel: Kernel) -> str:
        """Return a new token for `kernel`; the old one is worth nothing."""
        del self._by_hash[kernel.token_hash]
        token = secrets.token_urlsafe(24)
        kernel.token_hash = token_hash(token)
        self._by_hash[kernel.token_hash] = kernel
        return token

    def by_token(self, token: str, uid: int) -> Kernel:
        """Return the kernel that `token` belongs to.

        Raises
        ------
        BadToken
            Where it belongs to none, or to one of another user.
        """
        kernel = self._by_hash.get(token_hash(token))
        if kernel is None or uid not in (0, kernel.uid):
            msg = "this token belongs to no notebook of yours that the broker knows. Restart the kernel."
            raise BadToken(msg)
        return kernel

    def inside(self, token: str, peer: Peer) -> Kernel:
        """Return the kernel that `token` belongs to; it is believed from inside that kernel only.

        Raises
        ------
        BadToken
            Where it belongs to none, to another user's, or comes from outside.
        """
        kernel = self.by_token(token, peer.uid)
        # A pid of 0 is a process in a pid namespace we cannot see into: its token and uid must do.
        if kernel.key is None or (peer.pid and not procfs.is_descendant(peer.pid, kernel.key.pid)):
            msg = f"this token belongs to a kernel of yours, and process {peer.pid} is not in it."
            raise BadToken(msg)
        return kernel

    def bind(self, kernel: Kernel, pidfd: int, pid: int) -> None:
        """`kernel`'s process is `pid`, which `pidfd` holds (taken over)."""
        key = procfs.process_key(pid)
        try:
            pidfds.pid_of(pidfd)  # alive still: the key that was read in between is this process's
        except BadFrame:
            key = None
        if key is None:
            os.close(pidfd)
            msg = f"the kernel's process {pid} has ended already."
            raise BadToken(msg)
        kernel.let_go()
        kernel.pidfd, kernel.key, kernel.line = pidfd, key, procfs.line(pid)
        kernel.bound.set()
        for other in self._kernels.values():
            if other is kernel or other.key is None or other.key.pid == pid:
                continue  # a second session of a process takes nothing from the first: it is paused for either
            if other.key.pid in kernel.line:
                other.without.add(pid)
            # Read only where a line says so: hundreds that are taken over at once would read each other's thousands of times.
            elif pid in other.line and procfs.is_descendant(other.key.pid, pid):
                kernel.without.add(other.key.pid)

    def unbind(self, kernel: Kernel) -> None:
        """`kernel`'s process is gone."""
        if kernel.key is not None:
            for other in self._kernels.values():
                other.without.discard(kernel.key.pid)
        kernel.let_go()

    def drop(self, kernel: Kernel) -> None:
        """Forget `kernel`."""
        self.unbind(kernel)
        self._kernels.pop(kernel.id, None)
        self._by_hash.pop(kernel.token_hash, None)
        kernel.close()


def most_sessions() -> int:
    """Return how many sessions a user may have."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return min(MOST_SESSIONS_PER_USER, descriptors // 4 // _DESCRIPTORS)


def clean_name(name: str) -> str:
    """Return a notebook's or job's name that cannot break a screen or a log."""
    if len(name) > LONGEST_NAME * 4:
        msg = f"a name may have {LONGEST_NAME} characters, and this one has {len(name)}."
        raise UserError(msg)
    printable = "".join(c if c.isprintable() else "?" for c in name)
    return printable[:LONGEST_NAME] or "notebook"
