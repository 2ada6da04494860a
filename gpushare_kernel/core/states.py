"""The states of the architecture as data: what may follow what. The diagrams in docs/ are made from these tables."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar

from gpushare_kernel.core.errors import InvalidTransition
from gpushare_kernel.core.values import JobState, Presence


class Phase(StrEnum):
    """Where a session stands with its turn. `LEAVING` still uses the device: it was asked, or is being paused."""

    OFF = "off"  # wants nothing
    WAITING = "waiting"  # wants a turn; its process waits inside our client, or is stopped
    ON = "on"  # holds a turn
    LEAVING = "leaving"  # its turn is over; it has not stopped yet


P, J = Presence, JobState
S = TypeVar("S", Presence, JobState)

PRESENCE: Mapping[Presence, frozenset[Presence]] = MappingProxyType(
    {
        P.OPENED: frozenset({P.ATTACHED, P.BARE, P.ORPHANED, P.CLOSED}),
        P.BARE: frozenset({P.OPENED, P.ATTACHED, P.ORPHANED, P.CLOSED}),
        P.ATTACHED: frozenset({P.OPENED, P.BARE, P.ORPHANED, P.CLOSED}),
        P.ORPHANED: frozenset({P.OPENED, P.ATTACHED, P.BARE, P.CLOSED}),
        P.CLOSED: frozenset(),
    }
)

JOB: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        J.SUBMITTED: frozenset({J.QUEUED, J.ADMITTED, J.REFUSED}),
        J.QUEUED: frozenset({J.ADMITTED, J.CANCELLED, J.REFUSED, J.DONE, J.LOST}),
        J.ADMITTED: frozenset({J.RUNNING, J.QUEUED, J.CANCELLED, J.DONE, J.LOST}),
        J.RUNNING: frozenset({J.PAUSED, J.ADMITTED, J.DONE, J.LOST}),
        J.PAUSED: frozenset({J.RUNNING, J.DONE, J.LOST}),
        J.DONE: frozenset(),
        J.REFUSED: frozenset(),
        J.CANCELLED: frozenset(),
        J.LOST: frozenset(),
    }
)
"""A job at a boundary is ADMITTED again: it keeps its lane, and its next line waits for the broker. Where its memory was
given to a better one, or is too small for it, it is QUEUED again."""


def checked(table: Mapping[S, frozenset[S]], now: S, then: S, who: str) -> S:
    """Return `then` where `table` allows it after `now` (staying is always allowed).

    Raises
    ------
    InvalidTransition
        With the name of what was asked to change.
    """
    if then != now and then not in table[now]:
        msg = f"{who}: {now} cannot become {then}; allowed: {', '.join(sorted(table[now])) or 'nothing'}"
        raise InvalidTransition(msg)
    return then


def diagram(
    table: Mapping[Presence, frozenset[Presence]] | Mapping[JobState, frozenset[JobState]],
) -> str:
    """Return the Mermaid state diagram of `table`, as docs/states.md shows it."""
    lines = ["stateDiagram-v2"]
    for now, nexts in table.items():
        if not nexts:
            lines.append(f"    {now} --> [*]")
        lines += [f"    {now} --> {then}" for then in sorted(nexts)]
    return "\n".join(lines)


_PAGE = """\
# States

Made from the tables in `gpushare_kernel/core/states.py`; a test compares. After a change of a table, print it again:

```
python -c "from gpushare_kernel.core.states import page; print(page(), end='')" > docs/states.md
```

## Sessions

A session is one kernel's presence at the broker. `opened`: a provisioner is about to start it. `attached`: our client is
connected. `bare`: a kernel without it. `orphaned`: a broker that came back knows it from its ledger, and it has not
confirmed yet what it holds. A restart leads back to `opened`.

```mermaid
{presence}
```

## Jobs

A job is one declared (or seen) piece of device work. `admitted`: it has its memory, and waits inside our client for its
lane or its turn: before its first line, or at a boundary. From there it may be `queued` again: it needs more memory than it
was granted, or a better ranked job displaced it. `paused`: stopped from outside, with its memory where it was.

```mermaid
{job}
```

## Turns

Where a session stands with its turn, which is apart from where its jobs stand with their memory.

| phase | meaning |
|---|---|
| `off` | wants nothing |
| `waiting` | wants a turn; its process waits inside our client, or is stopped |
| `on` | holds a turn |
| `leaving` | its turn is over and it has not stopped yet: it was asked, or is being paused; it still counts as using the device |

```mermaid
stateDiagram-v2
    off --> waiting: a job occupies its lane
    off --> on: a plain cell is seen at work
    waiting --> on: its turn comes
    on --> leaving: the frame is over, others are due
    leaving --> waiting: at its boundary, or it stands still
    leaving --> on: nobody else needs the room any more
    waiting --> off: no job of it occupies a lane
    on --> off: no job of it occupies a lane
    leaving --> off: no job of it occupies a lane
```
"""


def page() -> str:
    """Return docs/states.md."""
    return _PAGE.format(presence=diagram(PRESENCE), job=diagram(JOB))
