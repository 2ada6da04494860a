"""Who comes in: the first frame of a connection decides what it is, and whether it may."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gpushare_kernel import __version__, procfs
from gpushare_kernel.broker.kernels import Kernel, clean_name
from gpushare_kernel.broker.persons import Person
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import (
    BadFrame,
    BadToken,
    GpushareError,
    NotYours,
    VersionMismatch,
)
from gpushare_kernel.core.sizes import check_weight
from gpushare_kernel.core.values import LARGEST_SIZE
from gpushare_kernel.transport import pidfds
from gpushare_kernel.transport.peers import Peer
from gpushare_kernel.transport.server import Connection, Handler
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.codec import choose_version, decode_hello, encode

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker

BIND_WAIT = 5.0
"""A kernel's client may be faster than its provisioner: it waits this long (seconds) for the bind."""
EXEMPT_MOST = 60.0
_logger = logging.getLogger(__name__)

Factory = Callable[[Connection], Handler] | None
_Answer = tuple[
    msg.Opened | msg.Attached | msg.BundleHeld | msg.ArenaLeased | msg.Ok, Sequence[int], Factory
]


class Doorway:
    """Answers hellos."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def on_hello(
        self, payload: bytes, fds: list[int], peer: Peer
    ) -> tuple[bytes, Sequence[int], Factory]:
        """Answer one hello; a GpushareError raised here is the answer too."""
        try:
            return await self._on_hello(payload, fds, peer)
        except GpushareError as error:
            self._broker.refusals[type(error).__name__] += 1
            raise

    async def _on_hello(
        self, payload: bytes, fds: list[int], peer: Peer
    ) -> tuple[bytes, Sequence[int], Factory]:
        hello = decode_hello(payload)
        version = choose_version(hello.versions)
        if version is None:
            problem = (
                f"this broker speaks protocol versions {_listed(msg.SPOKEN)}, and {hello.agent[:80]!r} speaks "
                f"{_listed(hello.versions)}. Update the older of the two: pip install . in a newer clone of gpushare."
            )
            raise VersionMismatch(problem)
        body, beside, factory = await self._answer(hello.body, fds, peer, version)
        welcome = msg.Welcome(version, self._broker.pid, __version__, body)
        return encode(welcome), beside, factory

    async def _answer(  # noqa: PLR0911  one per message
        self, body: msg.HelloBody, fds: list[int], peer: Peer, version: int
    ) -> _Answer:
        self._broker.touch()
        match body:
            case msg.Open():
                return await self._open(body, peer)
            case msg.Restart():
                return await self._restart(body, peer)
            case msg.Bind():
                return await self._bind(body, fds, peer)
            case msg.Close():
                return self._close(body, peer)
            case msg.Exempt():
                return await self._exempt(body, peer)
            case msg.TakePage():
                kernel = self._starter_of(body.session, body.token, peer)
                return msg.Ok(), (kernel.page.fd,), None
            case msg.Attach():
                return await self._attach(body, peer, version)
            case msg.OfferBundle() | msg.MapBundle():
                return await self._bundle(body, fds, peer)
            case msg.LeaseArena():
                return await self._lease(body, peer)
            case msg.Observe():
                return await self._observe(body, peer)

    async def _observe(self, body: msg.Observe, peer: Peer) -> _Answer:
        who, _ = await self._who(peer, body.hub_token)
        return msg.Ok(), (), lambda c: self._broker.observe(c, who)

    async def _who(self, peer: Peer, token: str) -> tuple[Person, str]:
        """Return who comes in, with what the host's directory knows of them, and what they should know of it."""
        await self._broker.groups.meet(Person(peer.uid))
        who, remark = await self._broker.persons.who(peer, token)
        if who.hub:
            await self._broker.groups.meet(who)
        return who, remark

    async def _open(self, body: msg.Open, peer: Peer) -> _Answer:
        weight = check_weight(body.weight)
        opener = procfs.process_key(peer.pid) if peer.pid else None
        who, remark = await self._who(peer, body.hub_token)
        registry = self._broker.registry
        self._broker.groups.check_kernels(who.user)
        kernel, token = registry.open(
            who, clean_name(body.name), weight, opener, background=body.background
        )
        kernel.remark = remark
        kernel.needs = min(max(0, body.needs), LARGEST_SIZE)
        try:
            self._broker.opened(kernel, device=body.device, needs=kernel.needs)
        except BaseException:
            registry.drop(kernel)
            raise
        return self._opened(kernel, token)

    def _opened(self, kernel: Kernel, token: str) -> _Answer:
        device = self._broker.engine_of(kernel.id).device
        environment = dict(device.environment(kernel.needs))
        answer = msg.Opened(
            kernel.id, token, device.inventory.id, environment, kernel.needs, kernel.remark
        )
        return answer, (kernel.page.fd,), None

    async def _restart(self, body: msg.Restart, peer: Peer) -> _Answer:
        kernel = self._starter_of(body.session, body.token, peer)
        who, kernel.remark = kernel.person, ""
        if not who.hub and kernel.uid == peer.uid:
            who, kernel.remark = await self._who(peer, body.hub_token)
            kernel = self._starter_of(body.session, body.token, peer)  # it may have gone meanwhile
        self._broker.groups.check_moved(kernel, who)  # before anything of it is another's
        token = self._broker.registry.renew(kernel)
        kernel.opener = procfs.process_key(peer.pid) if peer.pid else None
        self._broker.emptied(kernel)
        self._broker.moved(kernel, who)
        kernel.mark_ended(ended=False)
        return self._opened(kernel, token)

    async def _bind(self, body: msg.Bind, fds: list[int], peer: Peer) -> _Answer:
        kernel = self._kernel(body.session, body.token, peer)
        if not fds:
            problem = "a bind comes with the kernel's pidfd beside it, and none came."
            raise BadFrame(problem)
        pidfds.check_owner(fds[0], peer)
        pid = pidfds.pid_of(fds[0])
        # Root may open for somebody else: the account is that of whoever the kernel runs as.
        owner = procfs.owner(pid) if peer.uid == 0 and kernel.uid == 0 else None
        if owner:
            await self._broker.groups.meet(Person(owner))
            kernel = self._kernel(body.session, body.token, peer)  # it may have gone meanwhile
        if kernel.key is not None:
            problem = f"this session's process is {kernel.key.pid} already, and {pid} cannot take its place. Restart the session first."
            raise NotYours(problem)
        if owner:
            who = Person(owner)
            self._broker.groups.check_moved(kernel, who)
            self._broker.moved(kernel, who)
        self._broker.bind(kernel, os.dup(fds[0]), pid)
        return msg.Ok(), (), None

    def _close(self, body: msg.Close, peer: Peer) -> _Answer:
        try:
            kernel = self._starter_of(body.session, body.token, peer)
        except BadToken:
            return msg.Ok(), (), None  # closed already: a goodbye may come twice
        self._broker.close(kernel)
        return msg.Ok(), (), None

    async def _exempt(self, body: msg.Exempt, peer: Peer) -> _Answer:
        kernel = self._starter_of(body.session, body.token, peer)
        engine = self._broker.engine_of(kernel.id)
        session = self._broker.session(kernel)
        until = engine.now if session is None else session.exempt_until
        seconds = kernel.exempted(min(max(body.seconds, 0.0), EXEMPT_MOST), engine.now, until)
        engine.feed(ev.Exempted(at=engine.now, session=kernel.id, until=engine.now + seconds))
        await engine.settled(kernel)
        return msg.Ok(), (), None

    async def _attach(self, body: msg.Attach, peer: Peer, version: int) -> _Answer:
        registry = self._broker.registry
        try:
            kernel = registry.by_token(body.token, peer.uid)
        except BadToken:
            again = None
            # Who shares a uid is told by their hub, when the session is opened: nobody vouches for them here.
            if body.again is not None and peer.pid and not self._broker.persons.share(peer.uid):
                await self._broker.groups.meet(Person(peer.uid))
                for engine in self._broker.engines.values():
                    await (
                        engine.moves.quiet()
                    )  # it may be on its way back, as that of somebody whom nobody knows
                again = self._broker.known_again(peer.uid, body.token, body.again, peer.pid)
            if again is None:
                raise
            kernel = again
        try:
            async with asyncio.timeout(BIND_WAIT):
                await kernel.bound.wait()
        except TimeoutError:
            problem = "this notebook's session has no process yet: its provisioner did not bind it. Restart the kernel."
            raise BadToken(problem) from None
        if registry.get(kernel.id) is not kernel or kernel.key is None:
            problem = "this notebook's session has ended. Restart the kernel."
            raise BadToken(problem)
        # A pid of 0 is a client in a pid namespace we cannot see into: its token and uid must do.
        inside = not peer.pid or procfs.is_descendant(peer.pid, kernel.key.pid)
        if not inside:
            # A command's starter holds its memory for it: from outside, where no pause reaches.
            if kernel.opener is None or procfs.process_key(peer.pid) != kernel.opener:
                problem = f"this token belongs to process {kernel.key.pid} and its children, and {peer.pid} is none of them."
                raise BadToken(problem)
            self._broker.accompanied(kernel)
        is_root = not peer.pid or peer.pid == kernel.key.pid
        engine = self._broker.engine_of(kernel.id)
        device = engine.device.inventory
        attached = msg.Attached(
            kernel.id,
            device.id,
            device.kind,
            device.name,
            engine.scheduler.config.capacity,
            engine.scheduler.config.plain_grace,
            device.reserve,
            self._broker.budget(kernel),
            engine.scheduler.config.warm,
        )
        if is_root:
            self._broker.attached(kernel)
        beside = (kernel.page.fd, kernel.tally.fd) if version > 1 else (kernel.page.fd,)
        return (
            attached,
            beside,
            lambda c: self._broker.take_over(
                kernel, c, body, first=is_root, inside=inside, version=version
            ),
        )

    async def _bundle(
        self, body: msg.OfferBundle | msg.MapBundle, fds: list[int], peer: Peer
    ) -> _Answer:
        bundles = self._broker.bundles
        if isinstance(body, msg.OfferBundle):
            held = await bundles.offer(body, fds, peer)
        else:
            held = await bundles.map(body, peer)
        kernel = self._broker.registry.by_token(body.token, peer.uid)
        answer = msg.BundleHeld(held.name, held.size)
        return answer, (held.fd,), lambda c: bundles.lease(held, c, kernel)

    async def _lease(self, body: msg.LeaseArena, peer: Peer) -> _Answer:
        arenas = self._broker.arenas
        found = await arenas.lease(body, peer)
        whole = found.arena.extents.size
        answer = msg.ArenaLeased(found.span.start, found.span.size, whole)
        return answer, (found.fd,), lambda c: arenas.claim(found, c)

    def _starter_of(self, session: str, token: str, peer: Peer) -> Kernel:
        """What ends or exempts a session comes from whoever started it: a kernel does not free itself from turns."""
        kernel = self._kernel(session, token, peer)
        started = kernel.opener is not None and procfs.process_key(peer.pid) == kernel.opener
        inside = kernel.key is not None and procfs.is_descendant(peer.pid, kernel.key.pid)
        if peer.pid and inside and not started:
            problem = "only whoever started this kernel may end or exempt its session, not the kernel itself."
            raise NotYours(problem)
        return kernel

    def _kernel(self, session: str, token: str, peer: Peer) -> Kernel:
        kernel = self._broker.registry.by_token(token, peer.uid)
        if kernel.id != session:
            problem = f"this token does not belong to session {session[:40]!r}."
            raise BadToken(problem)
        return kernel


def _listed(versions: Sequence[int]) -> str:
    return ", ".join(str(version) for version in versions[:8]) or "none"
