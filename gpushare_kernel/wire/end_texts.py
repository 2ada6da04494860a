"""What people read of a kernel that ended by itself, when the next one starts. The other sentences are in `texts`."""

from __future__ import annotations

import signal

_BEFORE = "The kernel before this one"
_NOT_OURS = "It was not ended by gpushare. Its variables are gone: run your cells again."
_CRASHES = {"SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGTRAP", "SIGSYS"}
ENDED_BY_US = (
    f"{_BEFORE} was ended by gpushare, as whoever runs it decided (--over end): it held more memory than it was granted, "
    "and others waited for that. Put what it needs on the first line: %%gpulane SIZE"
)


def ended_text(code: int, limit: str = "", *, machine: bool = False) -> str:
    """Return why a kernel ended that nobody had asked to.

    Parameters
    ----------
    code
        Its exit status; -n where signal n ended it.
    limit
        The cgroup whose memory limit it met; empty where it met none.
    machine
        Whether the machine as a whole ran out of memory.
    """
    return f"{_BEFORE} {_how(code, limit, machine=machine)}. {_NOT_OURS}"


def _how(code: int, limit: str, *, machine: bool) -> str:
    if code >= 0:
        return f"ended with exit status {code}"
    name = _name(-code)
    if name in _CRASHES:
        return f"crashed ({name})"
    if name != "SIGKILL":
        return f"was ended by signal {name}, which somebody sent"
    if limit:
        return f"was killed (SIGKILL): the memory limit of its cgroup {limit} was reached"
    if machine:
        return "was killed (SIGKILL): this machine ran out of memory"
    return "was killed (SIGKILL) by somebody, or by a program that watches over memory"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
