"""Pages that kernels of one user share: a holder process has them, who maps them keeps a connection, and they are charged once.

The holder is a session of the user, without a client: its P is the pages' bytes, admitted as anybody's (I1). Who maps them is
charged nothing for them. Only kernels of the same user, or of the same trust group, on the same device, may (I9). When the last connection for a bundle has
ended, or this process has, the holder ends; what is mapped then stays mapped until its kernel lets go.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpushare_kernel import procfs
from gpushare_kernel.broker.ids import job_of
from gpushare_kernel.broker.kernels import Kernel, clean_name
from gpushare_kernel.broker.persons import Person
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import BadFrame, DeviceError, Refused, UserError
from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.core.values import LARGEST_SIZE, JobId, JobState
from gpushare_kernel.transport import fds as descriptors
from gpushare_kernel.transport import pidfds
from gpushare_kernel.transport.server import Connection
from gpushare_kernel.transport.words import sealed_size
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.codec import decode_to_broker, encode, failure_from
from gpushare_kernel.wire.snapshot import BundleView

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker
    from gpushare_kernel.broker.engine import Engine
    from gpushare_kernel.transport.peers import Peer

HOLDER = (sys.executable, "-P", "-m", "gpushare_kernel.nwv.holder")
"""How a holder is started. It is no import: what it needs of a device stays in its own process."""
ANSWER = 20.0
"""Seconds in which a holder has taken the memory: Python, the bindings and cuInit on a busy machine."""
UNUSED = 10.0
"""Seconds after which a bundle that nobody uses is given up: whoever offered it left before it had its answer."""
AGAIN, FAREWELL = 0.2, 1.0
"""Seconds between two looks at holders that are about to end; and for which they are waited for when we do."""
_TOLD = frozenset({"PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"})
"""What a holder has of our environment (and CUDA's): its user may read all of it."""
MAPS = "it maps the pages of bundle {!r}, which other kernels share: the driver could not put them back. It keeps its GPU memory."
"""Why a kernel that uses a bundle is not parked (I5)."""
HOLDS = "it holds the pages of a bundle that kernels map."
FILLED = 60.0
"""Seconds for which somebody who wants to map a bundle waits until it is filled."""
_logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Held:
    """One bundle: its holder, what it is charged to, and who uses it."""

    name: str
    owner: Person
    size: int
    pages: int
    shared: int
    engine: Engine
    process: subprocess.Popen[bytes]
    line: socket.socket
    kernel: Kernel | None = None
    fd: int = -1
    filled: asyncio.Event = field(default_factory=asyncio.Event)
    users: set[Lease] = field(default_factory=set)
    ended: bool = False
    #: Done when the holder's answer is to be read, or nobody waits for it any more.
    answered: asyncio.Future[None] | None = None

    def close(self) -> None:
        """Have the holder end: it does when its line does."""
        self.line.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Lease:
    """One use of a bundle: a connection, for as long as it stands."""

    def __init__(
        self, bundles: Bundles, held: Held, connection: Connection, kernel: Kernel | None = None
    ) -> None:
        self._bundles, self._held, self._connection = bundles, held, connection
        #: Whose it is; None in tests.
        self.kernel = kernel
        held.users.add(self)

    def on_frame(self, payload: bytes) -> None:
        """Hear that the pages are in their memory; nothing else is said here."""
        frame = decode_to_broker(payload)
        reply: msg.Reply = msg.Ok()
        if isinstance(frame.body, msg.BundleFilled):
            self._held.filled.set()
        else:
            problem = (
                f"a bundle's connection takes BundleFilled, and {type(frame.body).__name__} came."
            )
            reply = failure_from(BadFrame(problem))
        self._connection.send(encode(msg.FromBroker(msg.Kind.REPLY, frame.id, reply)))

    def on_closed(self) -> None:
        """It is let go."""
        self._bundles.left(self._held, self)

    def hang_up(self) -> None:
        """End it: the pages are not held any more."""
        self._connection.close()


class Bundles:
    """All bundles of a broker."""

    def __init__(self, broker: Broker, holder: Sequence[str] = HOLDER) -> None:
        self._broker, self._holder = broker, holder
        self._held: dict[tuple[Person, str, str], Held] = {}
        self._ending: list[subprocess.Popen[bytes]] = []

    def views(self, who: Person) -> Iterator[BundleView]:
        """Return what `who` may see (I9): names and sizes of their own."""
        for one in self._held.values():
            mine = self._may_map(who, one)
            if one.kernel is not None and (mine or self._broker.administers(who)):
                yield BundleView(one.name, one.kernel.id, one.pages, one.shared, one.size, len(one.users))  # fmt: skip

    async def offer(self, body: msg.OfferBundle, fds: Sequence[int], peer: Peer) -> Held:
        """Have a holder keep a new bundle.

        Raises
        ------
        UserError
            Where this user has one of that name there.
        Refused
            Where it does not fit now, with the numbers.
        DeviceError
            Where the holder cannot take the memory.
        """
        owner, engine = self._caller(body.token, peer)
        name = clean_name(body.name)
        key = owner.person, engine.device.inventory.id, name
        if not body.name.strip():
            problem = "a bundle is shared under a name, and this one is empty. Write for example bundle.share('eyes')."
            raise UserError(problem)
        if self._found(owner.person, engine, name):
            problem = f"you have a bundle {name!r} on this device already. Map it, or give this one another name."
            raise UserError(problem)
        if not 0 < body.size < LARGEST_SIZE:
            problem = (
                f"a bundle has from 1 to under {LARGEST_SIZE} bytes, and this one {body.size}."
            )
            raise UserError(problem)
        host = engine.device.inventory.kind != "cuda"
        came = sealed_size(fds[0], "a bundle's pages") if host and fds else None
        if host and came != body.size:
            problem = f"a bundle on a host comes with its pages as a sealed memfd of its {body.size} bytes, and {'none' if came is None else f'one of {came}'} came."
            raise BadFrame(problem)
        held = self._start(owner, engine, name, body)
        self._held[key] = held
        try:
            self._admit(held)
            await self._take(held, os.dup(fds[0]) if host else -1)
        except BaseException:
            self._end(held)
            raise
        _logger.info("a bundle is held", extra={"user": owner.user, "size": body.size})
        return held

    async def map(self, body: msg.MapBundle, peer: Peer) -> Held:
        """Return a bundle that its user may map, once it is filled.

        Raises
        ------
        UserError
            Where there is none of that name on the caller's device, or several are.
        """
        owner, engine = self._caller(body.token, peer)
        held = self._the(owner.person, engine, clean_name(body.name))
        try:
            async with asyncio.timeout(FILLED):
                await held.filled.wait()
        except TimeoutError:
            problem = f"bundle {held.name!r} is still being filled by the kernel that shares it. Try again."
            raise UserError(problem) from None
        if held.fd < 0:
            problem = f"bundle {held.name!r} was let go meanwhile. Share it anew."
            raise UserError(problem)
        if not self._may_map(owner.person, held):  # trust ended while it was waited for
            raise self._none(owner.person, engine, held.name)
        return held

    def _the(self, who: Person, engine: Engine, name: str) -> Held:
        found = self._found(who, engine, name)
        if not found:
            raise self._none(who, engine, name)
        if len(found) > 1:
            owners = " and ".join(sorted(one.owner.user for one in found))
            problem = f"{owners} have a bundle {name!r} each: they came into one trust group after they had shared them. Have all but one let it go, and share it under another name."
            raise UserError(problem)
        return found[0]

    def _none(self, who: Person, engine: Engine, name: str) -> UserError:
        mine = [one.name for one in self._held.values() if one.engine is engine and self._may_map(who, one)]  # fmt: skip
        return UserError(f"you have no bundle {name!r} on this device; there are: {', '.join(mine) or 'none'}. Share it first: bundle.share(name).")  # fmt: skip

    def _found(self, who: Person, engine: Engine, name: str) -> list[Held]:
        """Return the bundles that `who` means by a name: its own, else those of whoever trusts it now."""
        own = self._held.get((who, engine.device.inventory.id, name))
        if own is not None:
            return [own]
        return [one for one in self._held.values() if one.name == name and one.engine is engine and self._may_map(who, one)]  # fmt: skip

    def _may_map(self, who: Person, held: Held) -> bool:
        """Whether `who` and the bundle's owner are in one trust group: as the groups are now, not as they were when it was offered."""
        realm = self._broker.groups.realm
        return who == held.owner or realm(who.user) == realm(held.owner.user)

    def lease(self, held: Held, connection: Connection, kernel: Kernel | None = None) -> Lease:
        """Count a connection as a use of `kernel`; of what has ended while its answer was on the way it is none."""
        found = Lease(self, held, connection, kernel)
        if kernel is not None and held.engine.device.inventory.kind == "cuda":
            held.engine.bar(kernel, MAPS.format(held.name))
        if held.ended:
            found.hang_up()
        return found

    def left(self, held: Held, lease: Lease) -> None:
        """One use is over; the last one takes the holder with it."""
        held.users.discard(lease)
        if lease.kernel is not None:
            self._unbar(held.engine, lease.kernel)
        if not held.users:
            self._end(held)

    def _unbar(self, engine: Engine, kernel: Kernel) -> None:
        """What it maps still, though its use has ended, is seen by the device (`vmm.MARK`)."""
        uses = (lease.kernel for one in self._held.values() for lease in one.users)
        if kernel.barred and kernel not in uses:
            engine.bar(kernel, "")

    def close(self) -> None:
        """Let all holders go."""
        for held in [*self._held.values()]:
            self._end(held)
        for process in self._ending:
            with suppress(subprocess.TimeoutExpired):
                process.wait(FAREWELL)

    # --- a holder -----------------------------------------------------------------------------------------

    def _caller(self, token: str, peer: Peer) -> tuple[Kernel, Engine]:
        """Return whose kernel asks, and on what: a token is believed from inside its kernel only."""
        kernel = self._broker.registry.inside(token, peer)
        return kernel, self._broker.engine_of(kernel.id)

    def _start(self, owner: Kernel, engine: Engine, name: str, body: msg.OfferBundle) -> Held:
        ours, theirs = socket.socketpair()
        ours.settimeout(0)
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                self._holder,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={**_environment(), **engine.device.environment(0)},
                start_new_session=True,
                **_as_user(owner.uid),
            )
        except OSError as problem:
            ours.close()
            text = f"a bundle's holder cannot be started: {problem}."
            raise DeviceError(text) from problem
        finally:
            theirs.close()
        return Held(name, owner.person, body.size, body.pages, body.shared, engine, process, ours)

    def _admit(self, held: Held) -> None:
        """Charge the pages to the holder, as what its session keeps; now or not at all."""
        broker, engine = self._broker, held.engine
        key = procfs.process_key(held.process.pid)
        pidfd = None if key is None else pidfds.open_key(key)
        if key is None or pidfd is None:
            problem = (
                "a bundle's holder ended as soon as it was started. The broker's log may say why."
            )
            raise DeviceError(problem)
        held.kernel = broker.take_in_holder(held.owner, f"bundle {held.name}", engine, pidfd, key)
        if held.kernel is None and procfs.alive(key):
            problem = "a bundle's holder is a session, and you have as many as one may. Shut a notebook down first."
            raise UserError(problem)
        if held.kernel is None:
            problem = (
                "a bundle's holder ended as soon as it was started. The broker's log may say why."
            )
            raise DeviceError(problem)
        if engine.device.inventory.kind == "cuda":
            engine.bar(held.kernel, HOLDS)
        session, job = held.kernel.id, job_of(held.kernel.id, "pages")
        engine.feed(ev.JobSubmitted(at=engine.now, job=job, session=session, persistent=held.size, ephemeral=0, usage=engine.usage(held.kernel)))  # fmt: skip
        if not _admitted(engine, job):
            owner, core = engine.scheduler.sessions[session].user, engine.scheduler
            capped = owner.cap_ever is not None and owner.cap_ever < held.size
            if job not in core.jobs:
                most = f"each of the group {owner.group} may hold {format_size(owner.cap_ever or 0)} of this device" if capped else f"the device has {format_size(core.book.whole)} in all"  # fmt: skip
                problem = f"a bundle of {format_size(held.size)} can never fit: {most}. Pack it smaller, or share fewer models."
                raise Refused(problem)
            engine.feed(ev.JobCancelled(at=engine.now, job=job))
            left = core.book.table.free if owner.cap is None else owner.cap - core.held_by(owner)
            free = max(0, min(core.book.table.free, left))
            problem = f"a bundle of {format_size(held.size)} does not fit now: {format_size(free)} are free. Release something (%gpushare release), or share it later."
            raise Refused(problem)
        engine.feed(ev.JobEnded(at=engine.now, job=job, persistent=held.size))

    async def _take(self, held: Held, fd: int) -> None:
        """Give the holder the pages, or have it take memory for them; keep a descriptor to pass on."""
        loop, got = asyncio.get_running_loop(), list[int]()
        request = f"{'take' if fd < 0 else 'keep'} {held.size}\n".encode()
        try:
            descriptors.send(held.line, request, [] if fd < 0 else [fd])
            async with asyncio.timeout(ANSWER):
                await _readable(held)
            answer = descriptors.receive(held.line, 200, got).decode(errors="replace").strip()
        except (OSError, TimeoutError) as problem:
            answer = f"no answer ({problem})"
        except BaseException:
            descriptors.close_all([fd] if fd >= 0 else [])
            raise
        if fd < 0 and answer == "ok" and len(got) == 1:
            fd = got.pop()
        descriptors.close_all(got)
        if answer != "ok" or fd < 0:
            if fd >= 0:
                os.close(fd)
            problem_said = f"a bundle's holder could not take {format_size(held.size)}: {answer or 'it ended'}."
            raise DeviceError(problem_said)
        held.fd = fd
        loop.add_reader(held.line, self._end, held)  # it says nothing more: what comes is its end
        loop.call_later(UNUSED, self._unused, held)
        if request.startswith(b"keep"):
            held.filled.set()

    def _unused(self, held: Held) -> None:
        """Whoever offered it may have gone before it had its answer."""
        if not held.users:
            self._end(held)

    def _end(self, held: Held) -> None:
        """Let a bundle go: the holder ends, and with it what is charged."""
        if held.ended:
            return
        held.ended = True
        for key in [key for key, one in self._held.items() if one is held]:
            del self._held[key]
        if held.line.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(held.line)
        if held.answered is not None and not held.answered.done():
            held.answered.set_result(None)  # what is read then says that there is no line
        held.close()
        held.filled.set()  # whoever waits for it is told that it is gone
        kernel, held.kernel = held.kernel, None
        if kernel is not None:
            self._broker.close(kernel)
        for lease in [*held.users]:
            lease.hang_up()
        self._ending.append(held.process)
        self._reap()

    def _reap(self) -> None:
        """Collect holders that have ended: each does as soon as it sees its line end."""
        self._ending = [process for process in self._ending if process.poll() is None]
        if self._ending:
            asyncio.get_running_loop().call_later(AGAIN, self._reap)


def _environment() -> dict[str, str]:
    known = os.environ.items()
    return {name: value for name, value in known if name in _TOLD or name.startswith("CUDA_")}


def _as_user(uid: int) -> dict[str, Any]:
    """Return how a process is started as somebody else, where that is to be."""
    if os.geteuid() != 0 or uid == 0:
        return {}
    with suppress(KeyError):
        return {"user": uid, "group": pwd.getpwuid(uid).pw_gid, "extra_groups": []}
    return {"user": uid, "group": uid, "extra_groups": []}


def _admitted(engine: Engine, job: JobId) -> bool:
    record = engine.scheduler.jobs.get(job)
    return record is not None and record.state not in {JobState.QUEUED}


async def _readable(held: Held) -> None:
    """Wait until the holder's answer is there, or the bundle has ended."""
    loop = asyncio.get_running_loop()
    ready = held.answered = loop.create_future()
    loop.add_reader(held.line, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        if not held.ended:
            loop.remove_reader(held.line)
