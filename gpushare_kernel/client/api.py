"""What notebooks and scripts call: `gpushare.lane` and `gpushare.current_lane`."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from gpushare_kernel.client import display, fingerprint
from gpushare_kernel.client.lanes import Lane, Reports, current_lane, ended, new_job_id
from gpushare_kernel.client.session import Session
from gpushare_kernel.client.start import answers
from gpushare_kernel.core.errors import BadDeclaration, GpushareError
from gpushare_kernel.core.sizes import check_weight, parse_size, parse_time
from gpushare_kernel.core.values import TiB
from gpushare_kernel.transport.places import places
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import Submit

__all__ = ["current_lane", "get_session", "lane", "make_lane", "reports", "session_name", "step"]

_LOOK = 1.0
"""Seconds in which a broker that is here takes a connection."""
_making = threading.Lock()
_session: Session | None = None
_told = False


def get_session() -> Session | None:
    """Return this process's session, attaching in the background; None where the environment names none."""
    global _session  # noqa: PLW0603 - a process has one
    token = os.environ.get("GPUSHARE_TOKEN")
    if not token:
        return _session
    with _making:
        if _session is None:
            named = os.environ.get("GPUSHARE_SOCKET")
            _session = Session(token, Path(named) if named else places().socket)
        _session.start()
    return _session


def session_name() -> str:
    """Return the notebook's name as Jupyter tells it, or a plain word."""
    return Path(os.environ.get("JPY_SESSION_NAME") or "python").name


def lane(
    persistent: int | str | None = None,
    ephemeral: int | str | None = None,
    *,
    size: int | str | None = None,
    name: str | None = None,
    weight: float = 1.0,
    wait: float | None = None,
    time: float | str | None = None,
) -> Lane:
    """Declare what the code below needs, and wait until it may run.

    Parameters
    ----------
    persistent
        What the notebook keeps in all, in bytes or as text (`"2GiB"`, `"25%"`).
    ephemeral
        What this block holds beyond that while it runs, empty between its iterations.
    size
        Instead of both: the most the notebook may hold while the block runs. With none of the three it gets what
        earlier runs of this very block took, where there were any.
    name
        What the job is called in status lists; the notebook's name otherwise.
    weight
        How this work counts among your own.
    wait
        Seconds to wait at most.
    time
        How long the block takes with the device to itself, in seconds or as text (`"5min"`, `"1h30m"`).
        Policies that prefer short work, and what others read about their wait, use it.

    Returns
    -------
    Lane
        A context manager. `step()` meets a boundary, `steps(loader)` one per round, `report` says afterwards what became of it.

    Raises
    ------
    BadSize, BadTime, BadDeclaration
        Where the declaration makes no sense.
    Refused
        On entering, where it can never fit the device.
    WaitEnded
        On entering, where `wait` is over.
    """
    made = make_lane(
        code=fingerprint.of_place(sys._getframe(1)),
        size=size,
        persistent=persistent,
        ephemeral=ephemeral,
        name=name,
        weight=weight,
        wait=wait,
        time=time,
        cooperative=True,
    )
    if get_session() is None:
        _tell_unshared()
    return made


def step() -> None:
    """Meet a boundary of whatever runs here: of the open lane, or of a cell that declares nothing.

    For loops whose iterations nobody sees (raw CuPy, JAX). In PyTorch an optimizer's step is seen without it.
    """
    lane = current_lane()
    if lane is not None:
        lane.step()
    elif _session is not None:
        _session.boundary()


def reports() -> Reports:
    """Return what became of this process's jobs (the last 1,000), oldest first."""
    return Reports(ended)


def make_lane(
    *,
    size: int | str | None = None,
    persistent: int | str | None = None,
    ephemeral: int | str | None = None,
    name: str | None = None,
    weight: float = 1.0,
    wait: float | None = None,
    time: float | str | None = None,
    cooperative: bool = False,
    code: str = "",
    show: display.Factory | None = None,
) -> Lane:
    """Check a declaration and return its lane, not entered yet; `code` is the hash of what runs in it, `show` how its waiting is shown."""
    session = get_session()
    return Lane(
        session,
        submission(
            session,
            size=size,
            persistent=persistent,
            ephemeral=ephemeral,
            name=name,
            weight=weight,
            wait=wait,
            time=time,
            cooperative=cooperative,
            code=code,
        ),
        wait=wait,
        show=show,
    )


def submission(
    session: Session | None,
    *,
    size: int | str | None,
    persistent: int | str | None,
    ephemeral: int | str | None,
    name: str | None,
    weight: float,
    wait: float | None,
    time: float | str | None = None,
    cooperative: bool = False,
    dry_run: bool = False,
    code: str = "",
) -> Submit:
    """Return a checked declaration as the broker takes it."""
    if size is not None and (persistent is not None or ephemeral is not None):
        msg = "one size and its parts exclude each other. Give the size (6GiB), or -p and -e."
        raise BadDeclaration(msg)
    check_weight(weight)
    if wait is not None and not 0 <= wait < float("inf"):
        msg = f"the time to wait must be 0 seconds or more, not {wait:g}. Leave it out to wait without limit."
        raise BadDeclaration(msg)
    parts = [
        None if given is None else _bytes(given, session) for given in (size, persistent, ephemeral)
    ]
    if size is None and (persistent is None) is not (ephemeral is None):
        parts = [None, parts[1] or 0, parts[2] or 0]  # the part that is not named is not needed
    return Submit(
        job=new_job_id(),
        name=name or session_name(),
        size=parts[0],
        persistent=parts[1],
        ephemeral=parts[2],
        weight=float(weight),
        cooperative=cooperative and (session is None or session.cooperates),
        dry_run=dry_run,
        time=None if time is None else _time(time),
        code=code,
        frameworks=fingerprint.frameworks() if code else (),
    )


def _tell_unshared() -> None:
    """Say once in a process that what it declares is declared to nobody."""
    global _told  # noqa: PLW0603 - once in a process
    if not _told:
        _told = True
        sys.stderr.write(f"gpushare: {texts.NO_SESSION if _broker_here() else texts.NO_BROKER}\n")


def _broker_here() -> bool:
    """Whether a broker answers, which knows nothing of this process."""
    try:
        return answers(places(), _LOOK)
    except (GpushareError, OSError):
        return False


def _bytes(given: int | str, session: Session | None) -> int:
    if isinstance(given, str):
        return parse_size(given, whole=_capacity(session) if "%" in given else None)
    if isinstance(given, bool) or not isinstance(given, int):
        msg = f"a size is a number of bytes or a text such as '2GiB', not {given!r}."
        raise BadDeclaration(msg)
    return parse_size(f"{given}B")


def _time(given: float | str) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        msg = f"a time is a number of seconds or a text such as '5min', not {given!r}."
        raise BadDeclaration(msg)
    return parse_time(given)


def _capacity(session: Session | None) -> int:
    """Return the device's capacity; without a broker nothing is shared, and any whole will do."""
    return TiB if session is None else session.wait_attached().capacity
