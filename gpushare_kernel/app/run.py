"""`jupyter gpushare run`: a session for any command and its tree, with or without a declared size."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traitlets import Bool, Float, Unicode

from gpushare_kernel.app import words
from gpushare_kernel.app.base import Command, complain
from gpushare_kernel.app.foreground import NOT_FOUND, Child, blocked, unblocked
from gpushare_kernel.app.holding import Holding
from gpushare_kernel.client.fingerprint import of_command
from gpushare_kernel.core.errors import (
    BadDeclaration,
    BadSize,
    GpushareError,
    UserError,
    WaitEnded,
)
from gpushare_kernel.core.sizes import check_weight, parse_size, parse_time
from gpushare_kernel.core.values import TiB
from gpushare_kernel.kernel_session import (
    KernelSession,
    find_broker,
    open_session,
)
from gpushare_kernel.transport.places import places
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.cell_texts import did_not_run_text

WAIT_ENDED = 75
"""Exit status where `--wait` was over (EX_TEMPFAIL: try again later)."""
NOT_STARTED = 125
"""Exit status where gpushare did not start the command, also for a mistake on its own line, as `env` and `timeout` have it."""
INTERRUPTED = 128 + signal.SIGINT
_LONGEST = 40
_HOW = "Write: jupyter gpushare run [SIZE] [options] -- COMMAND"


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run, and how."""

    command: tuple[str, ...]
    size: str = ""
    name: str = ""
    device: str = ""
    weight: float = 1.0
    wait: float | None = None
    time: float | None = None
    background: bool = False


class RunApp(Command):
    """Runs a command as a session."""

    name = "jupyter-gpushare-run"
    description = """Run any command so that it takes turns and its memory counts: jupyter gpushare run [SIZE] [options] -- COMMAND

    With a SIZE (6GiB) it waits for that much memory first, and holds it until it ends; kernels that it starts (nbgrader, nbconvert,
    papermill) share that memory and wait for none. Its exit status is the
    command's (128 + n for signal n); 75 where --wait was over, 125 where it was not started (a mistake in
    our own options included), 127 where it was not found."""
    background = Bool(False, config=True, help="Yield to every notebook.")  # noqa: FBT003  traitlets
    wait = Float(None, allow_none=True, config=True, help="Seconds to wait for SIZE at most.")
    time = Unicode(
        "",
        config=True,
        help="How long it takes with the device to itself (90s, 5min, 1h30m); for a SIZE.",
    )
    device = Unicode(
        "",
        config=True,
        help="The device: its id, or its number in the status list; GPUSHARE_DEVICE otherwise.",
    )
    job_name = Unicode("", config=True, help="What it is called in status lists.")
    weight = Float(1.0, config=True, help="How it counts among your own.")
    aliases = {  # noqa: RUF012  traitlets reads it from the class
        **Command.aliases,
        "wait": "RunApp.wait",
        "time": "RunApp.time",
        "device": "RunApp.device",
        "name": "RunApp.job_name",
        "weight": "RunApp.weight",
    }
    flags = {  # noqa: RUF012  traitlets reads it from the class
        **Command.flags,
        "background": ({"RunApp": {"background": True}}, "Yield to every notebook."),
    }

    _command: tuple[str, ...] = ()
    _size = ""

    def initialize(self, argv: Any = None) -> None:
        """Read the command line; whatever is wrong with it, no status of ours can be taken for the command's."""
        try:
            super().initialize(argv)
        except GpushareError as problem:
            complain(problem)
            self.exit(NOT_STARTED)
        except SystemExit as ended:  # traitlets has said what is wrong with a value
            self.exit(NOT_STARTED if ended.code == 1 else ended.code)

    def parse_command_line(self, argv: Sequence[str] | None = None) -> None:
        """Read our words up to `--`; what follows is the command's, whatever it looks like."""
        given = list(argv or ())
        if "--" in given:
            at = given.index("--")
            self._command, given = tuple(given[at + 1 :]), given[:at]
        sizes, rest = words.positionals(given, options=self.aliases, flags=self.flags)
        asks_help = any(word in words.EVERYWHERE for word in rest)
        if not asks_help:
            self._size = _only_size(sizes, self._command)
        super().parse_command_line(rest)

    def start(self) -> None:
        """Run it, and end as it ends."""
        try:
            order = Order(
                self._command,
                self._size,
                self.job_name or called(self._command),
                self.device,
                check_weight(self.weight),
                _checked_wait(self.wait, self._size),
                _checked_time(self.time, self._size),
                self.background,
            )
        except GpushareError as problem:
            complain(problem)
            self.exit(NOT_STARTED)
        self.exit(status_of(order))


def status_of(order: Order) -> int:
    """Run a command and return the exit status to end with; what goes wrong is one line on stderr."""
    if shutil.which(order.command[0]) is None:
        complain(f"{order.command[0]}: there is no such program here (nothing was run).")
        return NOT_FOUND
    try:
        return run(order)
    except KeyboardInterrupt:
        complain(texts.LEFT_QUEUE_COMMAND)
        return INTERRUPTED
    except WaitEnded as ended:
        sys.stderr.write(f"{did_not_run_text(order.wait or 0.0)}\n")
        complain(ended)
        return WAIT_ENDED
    except (GpushareError, OSError) as problem:
        complain(f"{texts.for_command(str(problem))} The command has not run.")
        return NOT_STARTED


def run(order: Order) -> int:
    """Run a command as a session of this host's broker and return its exit status.

    Raises
    ------
    WaitEnded, GpushareError, KeyboardInterrupt
        Where it has not run.
    """
    where = places()
    find_broker(where)
    needs = parse_size(order.size) if order.size and "%" not in order.size else 0
    session = open_session(
        where,
        order.name,
        kernel_id="",
        language="",
        weight=order.weight,
        device=order.device,
        needs=needs,
        background=order.background,
    )
    with _closing(session), blocked() as mask:
        env = session.joined(os.environ, grants=bool(order.size))
        child = Child(order.command, env, mask)
        holding = Holding(session)
        status: int | None = None
        try:
            session.bind(child.pid)
            holding.attach()
            with unblocked():
                holding.take(
                    order.size,
                    name=order.name,
                    weight=order.weight,
                    wait=order.wait,
                    time=order.time,
                    code=of_command(order.command, str(Path.cwd())),
                )
            child.go()
            status = child.wait(_Keeper(session, child.pid))
        except GpushareError:
            status = child.ended()
            if status is None:
                raise
            return status  # killed at its gate: what the broker says of that is no news
        else:
            return status
        finally:
            child.give_up()
            holding.end(failed=status != 0)


class _Keeper:
    """Looks after a running command's session, as a provisioner does after its kernel's."""

    def __init__(self, session: KernelSession, pid: int) -> None:
        self._session, self._pid = session, pid

    def before_signal(self, signum: int) -> None:
        """Have it resumed, and not paused for a while. Whatever is wrong with the broker, the signal goes out."""
        try:
            self._session.exempt(briefly=signum in (signal.SIGINT, signal.SIGTSTP))
        except UserError:
            return
        except (GpushareError, OSError):
            self.look()

    def look(self) -> None:
        """Broker and guardian gone: let it run (I4). The client's own link starts another broker."""
        if self._session.broker_is_gone():
            self._session.resume(self._pid)


@contextlib.contextmanager
def _closing(session: KernelSession) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(GpushareError, OSError):  # the broker's pidfd says the same
            session.close()


def called(command: Sequence[str]) -> str:
    """Return what a command is called where it was given no name: `python train.py`."""
    program = [Path(word).name for word in command[:1]]
    script = [Path(word).name for word in command[1:2] if not word.startswith("-")]
    return " ".join(program + script)[:_LONGEST]


def _only_size(sizes: Sequence[str], command: Sequence[str]) -> str:
    if not command:
        said = (
            f"It got {' '.join(sizes)!r}, which may be the command: put -- before it. "
            if sizes
            else ""
        )
        msg = f"run needs a command behind two dashes. {said}{_HOW}."
        raise BadDeclaration(msg)
    if len(sizes) > 1:
        msg = f"run takes one size, and {' '.join(sizes)!r} are {len(sizes)} words. {_joined(sizes)}{_HOW}."
        raise BadDeclaration(msg)
    if sizes:
        parse_size(sizes[0], whole=TiB)
    return "".join(sizes)


def _joined(sizes: Sequence[str]) -> str:
    """Return how to write a size that has a space in it; empty where the words are none."""
    try:
        parse_size("".join(sizes), whole=TiB)
    except BadSize:
        return ""
    return f"Write {''.join(sizes)}. "


def _checked_wait(wait: float | None, size: str) -> float | None:
    if wait is None:
        return None
    if not size:
        msg = f"--wait={wait:g} is for a SIZE, and none was given. {_HOW}."
        raise BadDeclaration(msg)
    if not 0 <= wait < float("inf"):
        msg = f"--wait must be 0 seconds or more, not {wait:g}. Leave it out to wait without limit."
        raise BadDeclaration(msg)
    return wait


def _checked_time(time: str, size: str) -> float | None:
    if not time:
        return None
    seconds = parse_time(time)
    if not size:
        msg = f"--time={time} is for a SIZE, and none was given: nothing is declared then. {_HOW}."
        raise BadDeclaration(msg)
    return seconds
