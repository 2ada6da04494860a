"""The kernel provisioner `gpushare`: a local kernel that is a session of this host's broker.

Jupyter calls these methods in several event loops and threads, inside the server's process. So nothing
here blocks a loop (the broker is asked in a thread, with timeouts), nothing of a connection is kept
between calls, and only `cleanup` decides that a kernel is gone: `kill` cannot tell an end from a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Enum, Float, Unicode
from traitlets.config import Configurable

from gpushare_kernel import procfs
from gpushare_kernel.client.start import start_again
from gpushare_kernel.client.vitals import Vitals
from gpushare_kernel.core.errors import (
    BadSettings,
    BadToken,
    BrokerUnavailable,
    GpushareError,
    UserError,
    VersionMismatch,
)
from gpushare_kernel.core.values import ProcessKey, SessionId
from gpushare_kernel.interpreters import has_package
from gpushare_kernel.kernel_session import (
    BEFORE,
    EXCHANGE_TIMEOUT,
    LOOK_EVERY,
    KernelSession,
    find_broker,
    granted,
    notebook_name,
    open_session,
    restart_session,
    without_session,
)
from gpushare_kernel.transport.places import Places, may_revive, may_start, places
from gpushare_kernel.wire.end_texts import ENDED_BY_US

_P = ParamSpec("_P")
_R = TypeVar("_R")

DEFAULT_PROVISIONER = "JUPYTER_DEFAULT_PROVISIONER_NAME"
_ENDING = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
"""Signals by which Jupyter ends a kernel."""


def check_options(made: type[Configurable], options: Iterable[str]) -> None:
    """Refuse what a provisioner has no option for: traitlets would pass it over, and the default would hold.

    Raises
    ------
    BadSettings
        With the one that may be meant.
    """
    for name in options:
        if name not in made.class_trait_names():
            known = sorted(made.class_trait_names(config=True))
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known)}."
            msg = f"the kernelspec's config has {name!r}, and {made.__name__} has no such option. {hint} Mend it in kernel.json."
            raise BadSettings(msg)


class GpuShareProvisioner(LocalProvisioner):
    """Starts kernels on this host that share its device through the broker."""

    on_missing_broker = Enum(
        ["start", "degrade", "fail"],
        default_value=None,
        allow_none=True,
        config=True,
        help="""What a kernel's start does where no broker answers: start one (the default of a user),
        degrade to a kernel that shares nothing (the default where a system installation is marked),
        or fail. What cannot be started degrades, with one line in the log.""",
    )
    weight = Float(1.0, config=True, help="This kernel's weight among its user's own.")
    device = Unicode(
        "",
        config=True,
        help="""The GPU for this kernel: a UUID, or its number. Empty: GPUSHARE_DEVICE in the kernel's
        environment, else where it fits best and least is going on.""",
    )

    _session: KernelSession | None = None
    #: What makes it part of the session of the command that it is started below.
    _granted: Mapping[str, str] = MappingProxyType({})
    _launched = False
    _warned = False
    _looked = 0.0
    #: The broker that gave us no page: it is not asked again.
    _refused_by: ProcessKey | None = None
    #: Of the kernel that runs, until its end is noted; whether its end was asked for; why the one before ended.
    _vitals: Vitals | None = None
    _asked = False
    _before = ""
    _reviving: threading.Thread | None = None

    @property
    def gpushare_session(self) -> str | None:
        """The broker's id of this kernel's session; None where it shares nothing. The server's extension shows what belongs to it."""
        return None if self._session is None else str(self._session.session)

    def __init__(self, **options: Any) -> None:
        """Take the kernelspec's `config` among `options`; what it misspells starts no kernel."""
        check_options(type(self), options)
        super().__init__(**options)

    # --- Starting ---------------------------------------------------------------------------------

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Open (or restart) the kernel's session, then prepare the launch. Called before every start.

        Below a command that holds memory for all it starts the kernel is part of that one's session.
        """
        self._granted = granted(os.environ)
        session = None if self._granted else await self._open(kwargs.get("env"))
        try:
            kwargs = await super().pre_launch(**kwargs)
            kwargs["env"] = await self._kernel_environment(kwargs["env"], session)
        except BaseException:
            await self._undo()
            raise
        return kwargs

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel and tell the broker which process it is."""
        session = self._session
        try:
            info = await super().launch_kernel(cmd, **kwargs)
            if session is not None and self.pid is not None:
                self._vitals, self._asked = Vitals.of(self.pid), False
                await self._bind(session, self.pid)
        except BaseException:
            await self._end_process()
            await self._undo()
            raise
        self._launched = True
        return info

    async def _open(self, env: dict[str, str] | None) -> KernelSession | None:
        opening = asyncio.ensure_future(off_loop(self._open_blocking, env))
        try:
            self._session = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread goes on; a session that nobody waits for would stay open.
            self._session = await opening
            await self._close()
            raise
        except BrokerUnavailable as problem:
            if self._policy(places()) == "fail":
                raise
            self._warn_once(f"this kernel shares nothing: {problem}")
            self._drop()
        if (
            self._session is not None and self._session.remark
        ):  # a bare kernel's user has no other way to read it
            self.log.warning("gpushare: %s", self._session.remark)
        return self._session

    def _open_blocking(self, env: dict[str, str] | None) -> KernelSession:
        where = places() if self._session is None else self._session.places
        find_broker(where, start=self._policy(where) == "start")
        try:
            return self._open_at(where, env)
        except VersionMismatch:
            raise
        except BrokerUnavailable:  # it was found, and died that moment: there is another one soon
            find_broker(where, start=self._policy(where) == "start")
            return self._open_at(where, env)

    def _open_at(self, where: Places, env: dict[str, str] | None) -> KernelSession:
        old = self._session
        if old is not None:
            with contextlib.suppress(BadToken):  # forgotten, so it is a first start again
                return restart_session(old)
        language = self.kernel_spec.language or "python"
        return open_session(
            where,
            self._name(env),
            kernel_id=self.kernel_id,
            language=language,
            weight=self.weight,
            env=env,
            device=self.device,
            needs=0 if old is None else old.needs,
        )

    async def _bind(self, session: KernelSession, pid: int) -> None:
        try:
            await off_loop(session.bind, pid)
        except ProcessLookupError:
            pass  # the kernel ended at once: jupyter_client's poll will say so
        except BadToken as problem:
            # Its broker was killed since, before it had written the session down. A restart shares again.
            self._warn_once(f"this kernel shares nothing until it is restarted: {problem}")
            self._drop()
        except BrokerUnavailable as problem:
            if self._policy(session.places) == "fail":
                raise
            self._warn_once(f"the broker went away while this kernel started: {problem}")

    async def _kernel_environment(
        self, env: dict[str, str], session: KernelSession | None
    ) -> dict[str, str]:
        env = {**without_session(env), **self._granted} if session is None else session.joined(env)
        before, self._before = self._before, ""
        if before and session is not None:
            env[BEFORE] = before
        program = self.kernel_spec.argv[0]
        # A nested nbconvert in an environment without us could not find its provisioner.
        if DEFAULT_PROVISIONER in env and not await off_loop(has_package, program, env.get("PATH")):
            del env[DEFAULT_PROVISIONER]
        return env

    def _name(self, env: dict[str, str] | None) -> str:
        return notebook_name(env or {}) or str(getattr(self.parent, "kernel_name", "")) or "kernel"

    def _policy(self, where: Places) -> str:
        chosen = self.on_missing_broker
        return str(chosen) if chosen else "start" if may_start(where) else "degrade"

    def _warn_once(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            self.log.warning("gpushare: %s", text)

    # --- Undoing: jupyter_client does not call cleanup for a start that failed ------------------------

    async def _end_process(self) -> None:
        if self.process is not None:
            with contextlib.suppress(OSError):
                await super().send_signal(signal.SIGKILL)
            await super().wait()

    async def _undo(self) -> None:
        await self._close()
        if self.ports_cached and not self._launched:
            # After a first launch they belong to the connection file that clients still read.
            await super().cleanup(restart=False)
            self.ports_cached = False
            if self.parent is not None:
                self.parent.cleanup_connection_file()

    async def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            try:
                await off_loop(session.close)
            except (
                GpushareError,
                OSError,
            ) as problem:  # the broker's pidfd, or its absence, says the same
                self.log.debug("gpushare: session %s not closed: %s", session.session, problem)

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None and session.page is not None:
            session.page.close()

    # --- Signals and the end ----------------------------------------------------------------------

    async def send_signal(self, signum: int) -> None:
        """Signal the kernel's process group; a paused kernel runs again first, or it would not notice."""
        if signum != 0 and self.process is not None:
            self._note_asked(ends=signum in _ENDING)
            await self._exempt(briefly=signum == signal.SIGINT)
            if signum == signal.SIGINT and self._interrupt(self.process.pid):
                return
        await super().send_signal(signum)

    def _interrupt(self, pid: int) -> bool:
        """Interrupt the kernel's main thread, which may have been continued just now."""
        group = self.pgid
        if not group or self._session is None:
            return False
        with contextlib.suppress(ProcessLookupError):  # then super says so
            return procfs.interrupt(pid, group)
        return False

    async def shutdown_requested(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002  jupyter_client's signature
        """A shutdown message was sent; a paused kernel could not read it."""
        self._note_asked(ends=True)
        await self._exempt()
        await super().shutdown_requested(restart=restart)

    async def cleanup(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002  jupyter_client's signature
        """The kernel is gone: for good, or to come again with `restart`. Idempotent.

        Voila calls this while a kernel lives. Then the session stays; the broker sees its end.
        """
        if not restart and (self.process is None or self.process.poll() is not None):
            await self._close()
        await super().cleanup(restart=restart)

    async def _exempt(self, *, briefly: bool = False) -> None:
        """Never raises: whatever is wrong with the broker, the signal goes out."""
        session = self._session
        if session is None:
            return
        try:
            await off_loop(session.exempt, briefly=briefly)
        except (GpushareError, OSError) as problem:
            self.log.debug("gpushare: not exempted: %s", problem)
            # One that lives is only slow: it resumes the kernel itself, and would fight over it with us.
            if not isinstance(problem, UserError) and session.broker_is_gone():
                self._resume(session)

    # --- Looking after the kernel --------------------------------------------------------------------

    async def poll(self) -> int | None:
        """Return the exit code, or None while the kernel runs. Called every few seconds, so also the last resort (I4)."""
        code = await super().poll()
        if code is not None and self.process is not None:
            self._note_end(code)
        now = time.monotonic()
        if code is None and self._session is not None and now - self._looked >= LOOK_EVERY:
            self._looked = now
            await self._look_after(self._session)
        return code

    def _note_asked(self, *, ends: bool) -> None:
        """Somebody presses a button: what the kernel ends of from here on is no surprise."""
        code = None if self.process is None else self.process.poll()
        if code is not None:
            self._note_end(code)
        self._asked |= ends

    def _note_end(self, code: int) -> None:
        """Keep why it ended, where nobody asked for that, for the log and for the next start. Once for each kernel."""
        vitals, self._vitals = self._vitals, None
        if vitals is None or self._asked or code == 0:
            return
        page = None if self._session is None else self._session.page
        ours = page is not None and page.says_ended()
        self._before = ENDED_BY_US if ours else vitals.ended(code)
        self.log.warning("gpushare: %s: %s", self.kernel_id, self._before)

    async def _look_after(self, session: KernelSession) -> None:
        """Broker and guardian gone: let the kernel run, and get a broker. Another broker: its page tells who is paused from now on."""
        if not session.broker_is_gone():
            if session.page_is_stale and session.broker != self._refused_by:
                await self._renew_page(session)
            return
        self._resume(session)
        busy = self._reviving is not None and self._reviving.is_alive()
        if not busy and self._policy(session.places) == "start" and may_revive(session.places):
            self._reviving = threading.Thread(
                target=self._revive, args=(session.places,), name="gpushare-revive", daemon=True
            )
            self._reviving.start()

    async def _renew_page(self, session: KernelSession) -> None:
        try:
            await off_loop(session.renew_page)
        except (BrokerUnavailable, OSError) as problem:  # the next look tries again
            self.log.debug("gpushare: no page yet: %s", problem)
        except (
            GpushareError
        ) as problem:  # one that is too old to know the question, or not to know the session
            self._refused_by = session.broker
            self.log.debug("gpushare: no page: %s", problem)

    def _resume(self, session: KernelSession) -> None:
        if self.pid is not None and self.process is not None and session.resume(self.pid):
            self.log.warning("gpushare: the broker is gone; resumed kernel %s.", self.kernel_id)

    def _revive(self, where: Places) -> None:
        try:
            start_again(where, timeout=EXCHANGE_TIMEOUT)
        except GpushareError as problem:
            self._warn_once(f"no broker could be started: {problem}")

    # --- Handing the kernel over to another server process ------------------------------------------------

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return what another server process needs to take this kernel over."""
        info = cast("dict[str, Any]", await super().get_provisioner_info())
        if self._session is not None:
            info["gpushare"] = {
                "session": self._session.session,
                "token": self._session.token,
                "needs": self._session.needs,
            }
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Take a kernel over. Its page stays behind: descriptors do not travel."""
        await super().load_provisioner_info(provisioner_info)
        kept = provisioner_info.get("gpushare")
        if kept:
            self._session = KernelSession(
                places(), SessionId(kept["session"]), kept["token"], needs=kept.get("needs", 0)
            )


async def off_loop(function: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Run a blocking call in a thread, or here where the interpreter ends and starts no threads any more.

    Clients such as nbclient shut their kernels down in atexit hooks; those kernels must end, too.
    """
    if threading.main_thread().is_alive():
        return await asyncio.to_thread(function, *args, **kwargs)
    return function(*args, **kwargs)
