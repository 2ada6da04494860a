"""A broker for whoever needs one: find it, or start it, once, however many ask at the same time."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from gpushare_kernel.core.errors import BrokerUnavailable, NoBroker
from gpushare_kernel.transport.channel import connect
from gpushare_kernel.transport.launch import SaysWhy, launch
from gpushare_kernel.transport.locks import free, locked
from gpushare_kernel.transport.options import noted
from gpushare_kernel.transport.peers import check_broker
from gpushare_kernel.transport.places import Places, how_to_start, may_start, prepare

COMMAND = (sys.executable, "-P", "-m", "gpushare_kernel.broker")
_LOG_LINES = 5
_LOCK_POLL = 0.01


def ensure_broker(
    places: Places,
    timeout: float = 10.0,
    args: Sequence[str] = (),
    *,
    command: Sequence[str] = COMMAND,
) -> None:
    """Return once a broker answers at `places`; start one where none does.

    Parameters
    ----------
    places
        Where it lives.
    timeout
        Seconds for all of it.
    args
        Further arguments for a broker that is started here.
    command
        The program that is the broker.

    Raises
    ------
    NoBroker
        Where none runs and this user may start none.
    BrokerUnavailable
        Where it cannot be reached or does not start; with the last lines of its log.
    """
    deadline = time.monotonic() + timeout
    if answers(places, timeout):
        return
    if not may_start(places):
        msg = (
            f"no gpushare broker runs at {places.socket}, and on this machine only its administrator may start one. "
            f"Ask them for, as root: {how_to_start(places)}."
        )
        raise NoBroker(msg)
    prepare(places)
    with locked(places.start_lock, timeout):
        if _answers_or_is_gone(places, deadline):
            return
        try:
            launch([*command, *args], _left(deadline))
        except SaysWhy:
            raise
        except BrokerUnavailable as problem:
            msg = f"{problem}{_last_words(places.log)}"
            raise BrokerUnavailable(msg) from problem


def start_again(places: Places, timeout: float = 10.0) -> None:
    """As `ensure_broker`, where broker and guardian were killed: the new one gets the arguments of the one before (I4)."""
    ensure_broker(places, timeout, noted(places.again))


def _answers_or_is_gone(places: Places, deadline: float) -> bool:
    """Wait for the end of a broker that goes (it has its lock, but no socket any more), or for the start of one.

    Raises
    ------
    BrokerUnavailable
        Where somebody has the lock to the deadline: another one could not start.
    """
    pace = threading.Event()
    while not answers(places, _left(deadline)):
        if free(places.broker_lock):
            return False
        if time.monotonic() > deadline:
            msg = (
                f"a broker holds the lock {places.broker_lock} and does not answer at {places.socket}. "
                "Try again; if it stays so, end that process (fuser names it) and start one: jupyter gpushare start."
            )
            raise BrokerUnavailable(msg)
        pace.wait(
            _LOCK_POLL
        )  # the lock is the only sign it gives, and flock cannot wait with a limit
    return True


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def answers(places: Places, timeout: float) -> bool:
    """Say whether a broker that may be trusted listens at `places`. `BrokerUnavailable` where one may not."""
    try:
        sock = connect(places.socket, timeout)
    except NoBroker:
        return False
    with sock:
        check_broker(sock, places)
    return True


def _last_words(log: Path) -> str:
    """Return the end of the log for people to read, or where it would be."""
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            last = deque(lines, maxlen=_LOG_LINES)
    except OSError:
        return f"\nThere is no log at {log}."
    return "\n".join(["", f"The end of its log {log}:", *(f"  {_readable(line)}" for line in last)])


def _readable(line: str) -> str:
    try:
        entry = json.loads(line)
        return f"{entry['time']} {entry['level']}: {entry['message']}"
    except (ValueError, KeyError, TypeError):
        return line.rstrip()
