"""Wait for the broker's death, resume what it had paused, and start it again (I4).

`python -P -m gpushare_kernel.broker.guardian`, exec'ed by the broker (which starts another when this one
dies). It holds the broker by a pidfd and its table of intents by an inherited descriptor, imports
little, owns no thread and sleeps in one poll: what can fail here is as little as possible. Where there is a CUDA
device it has workers of its own, which undo the driver's locks; it never calls the driver itself.

A broker that stands still (SIGSTOP, a debugger) or hangs is not dead, and is not ended: whom it has paused runs meanwhile.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gpushare_kernel import procfs
from gpushare_kernel.broker import logs
from gpushare_kernel.broker.intents import RESTARTS, IntentTable, let_run, resume_all
from gpushare_kernel.core.errors import BadFrame, BrokerUnavailable
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices.unlocking import Unlockers
from gpushare_kernel.transport import pidfds
from gpushare_kernel.transport.launch import environment, launch
from gpushare_kernel.transport.locks import free, locked
from gpushare_kernel.transport.places import Places

CRASH_LOOP_SECONDS = 60.0
"""More than 5 starts in this time are a crash loop; then the guardian gives up."""
START_SECONDS = 30.0
LOOK = 0.5
"""Seconds between two looks at whether the broker stands still."""
HANGS = 20
"""So many looks without a sign of life of the broker, and it hangs. Looks, not seconds: a machine that is held holds us, too."""
_READY = 2
"""Workers kept ready: an unlock takes a quarter of a millisecond, so few serve many."""
_logger = logging.getLogger("gpushare_kernel.broker.guardian")  # __name__ is __main__ here


def spawn_guardian(
    table: IntentTable,
    places: Places,
    command: Sequence[str],
    lock_worker: Sequence[str] = (),
    *,
    restarts: bool = True,
) -> subprocess.Popen[bytes]:
    """Start the guardian of this process and return it; the caller watches it and starts another if it dies.

    Parameters
    ----------
    table
        This broker's table. On a clean exit, `mark_clean_exit` it: the guardian then just goes.
    places
        Where the broker lives (for its locks and its log).
    command
        How to start the broker again, without `--ready-fd`.
    lock_worker
        How to start a worker that undoes the driver's locks; empty where there is no CUDA device. The guardian
        keeps some ready.
    restarts
        Whether it starts the broker again; a service manager that does leaves only the resuming to it.
    """
    broker = os.pidfd_open(os.getpid())
    try:
        return subprocess.Popen(  # noqa: S603  the command is ours
            [
                *(sys.executable, "-P", "-m", "gpushare_kernel.broker.guardian"),
                *("--broker-fd", str(broker), "--table-fd", str(table.fd)),
                *("--lock-worker", json.dumps(lock_worker)),
                *(() if restarts else ("--resume-only",)),
                *("--runtime", str(places.runtime), "--log", str(places.log), "--", *command),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[broker, table.fd],
            cwd="/",
            env=environment(os.environ),
            start_new_session=True,
        )
    finally:
        os.close(broker)


def main(arguments: Sequence[str] | None = None) -> int:
    """Guard one broker until it is gone, and do what its death asks for."""
    # A group or service manager that ends us before the broker would leave stopped kernels to nobody.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="gpushare-guardian")
    parser.add_argument("--broker-fd", type=int, required=True)
    parser.add_argument("--table-fd", type=int, required=True)
    parser.add_argument("--lock-worker", type=json.loads, default=[])
    parser.add_argument("--resume-only", action="store_true")
    parser.add_argument("--runtime", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(arguments)
    table = IntentTable.from_fd(given.table_fd)
    if table is None:
        parser.error("--table-fd is no table of this boot")
    # Ready long before they are needed: starting one takes half of the second in which everybody is to run again.
    unlockers = Unlockers(given.lock_worker, spare=_READY) if given.lock_worker else None
    _wait_for_end(given.broker_fd, _StandsStill(given.broker_fd, table, unlockers, given.log))
    # First of all, and also after a clean exit (which leaves nothing): nobody else will.
    resumed = resume_all(table, unlockers)
    if unlockers is not None:
        unlockers.close()
    if table.clean_exit and not resumed:
        return 0
    logs.set_up(given.log)
    _logger.warning(
        "the broker is gone: resumed %d processes",
        len(resumed),
        extra={"pids": [key.pid for key in resumed]},
    )
    return (
        0
        if table.clean_exit or given.resume_only
        else _restart(table, Places(given.runtime, system=False), given.command)
    )


class _StandsStill:
    """Looks whether the broker does, and lets everybody run for as long as that lasts."""

    def __init__(
        self, pidfd: int, table: IntentTable, unlockers: Unlockers | None, log: Path
    ) -> None:
        try:
            self._broker = procfs.process_key(pidfds.pid_of(pidfd))
        except BadFrame:
            self._broker = None  # it is gone already
        self._table, self._unlockers, self._log = table, unlockers, log
        #: What its CPU clock showed at the last look, where it was stopped then; and when it was first.
        self._clock: float | None = None
        self._since = 0.0
        #: How often it had said that it goes on, and how many looks ago it said so last.
        self._beats = self._silent = 0
        self._freed: set[ProcessKey] = set()
        self._said = False

    def look(self) -> None:
        """Look once. One look is not enough: a profiler stops it for a moment, again and again."""
        broker = self._broker
        stopped = broker is not None and procfs.state_of(broker) in procfs.STOPPED
        before, self._clock = self._clock, procfs.cpu_seconds(broker.pid) if broker and stopped else None  # fmt: skip
        beats, self._beats = self._beats, self._table.beats
        self._silent = self._silent + 1 if beats == self._beats != 0 else 0
        if self._clock is None or before is None:
            self._since = time.monotonic()
        if self._clock is not None and self._clock == before:
            self._frees(time.monotonic() - self._since)
            self._say("was stopped")
        elif self._silent >= HANGS:
            self._frees(self._silent * LOOK)
            if self._freed:
                self._say("hangs")
        elif self._clock is None:
            self._goes_on()

    def _frees(self, stood: float) -> None:
        self._freed.update(let_run(self._table, self._unlockers, self._freed, stood=stood))

    def _say(self, what: str) -> None:
        if not self._said:
            self._said = True
            logs.set_up(self._log)
            _logger.warning(
                "the broker %s and does not go on: whom it had paused runs meanwhile",
                what,
                extra={"pids": [key.pid for key in self._freed]},
            )

    def _goes_on(self) -> None:
        if self._said:
            _logger.warning("the broker goes on")
        self._freed.clear()
        self._said = False


def _wait_for_end(pidfd: int, broker: _StandsStill) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while not poll.poll(LOOK * 1000):
        broker.look()
    os.close(pidfd)


def _restart(table: IntentTable, places: Places, command: Sequence[str]) -> int:
    now = time.monotonic()
    if sum(now - start < CRASH_LOOP_SECONDS for start in table.restarts) >= RESTARTS:
        _logger.error(
            "the broker died %d times in %g s: it is not started again",
            RESTARTS + 1,
            CRASH_LOOP_SECONDS,
        )
        return 1
    try:
        with locked(places.start_lock, START_SECONDS):
            if not free(places.broker_lock):
                _logger.info("another broker already lives here")
                return 0
            table.note_restart(now)
            launch(command, START_SECONDS)
    except (BrokerUnavailable, OSError) as problem:
        _logger.error("the broker could not be started again: %s", problem)  # noqa: TRY400  the text says it all
        return 1
    _logger.info("the broker was started again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
