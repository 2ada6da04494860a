"""How much of the host's memory arenas may have: budgets, and the words in which a lease is refused."""

from __future__ import annotations

from typing import NamedTuple, Self

from gpushare_kernel.broker.extents import BLOCK, rounded
from gpushare_kernel.core.errors import BadSize, Refused
from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.core.values import LARGEST_SIZE
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.devices.parkable import host_margin

_HOST_PART, _USER_PART = 4, 2


class Budgets(NamedTuple):
    """Bytes of the host's memory that all arenas, and those of one user, may have."""

    host: int
    user: int

    @classmethod
    def of(cls, machine: Machine, host: int | None = None, user: int | None = None) -> Self:
        """Return what was asked for; by default a quarter of the memory that this process may use, and half of that for one user."""
        all_ = machine.total() // _HOST_PART if host is None else host
        one = all_ // _USER_PART if user is None else min(user, all_)
        return cls(all_ // BLOCK * BLOCK, one // BLOCK * BLOCK)

    def of_one(self, most: int | None) -> Self:
        """Return these for a user whose group allows it `most` bytes (None: no cap)."""
        return self if most is None else self._replace(user=min(self.user, most // BLOCK * BLOCK))

    def check(self, size: int, *, mine: int, all_: int) -> None:
        """Raise Refused where `size` bytes do not fit beside what is leased to this user (`mine`) and to all."""
        asked = format_size(size)
        if not self.host or not self.user:
            problem = "this broker keeps no memory of the host for GPU memory that is set aside (--arena 0, or --arena-user 0)."
            raise Refused(problem)
        if mine + size > self.user:
            problem = (
                f"a user's notebooks may set aside {format_size(self.user)} of the host's memory in all; {format_size(mine)} of it are in use, and {asked} more do not fit. "
                "Bring back or shut down a notebook that is set aside; an administrator can raise it (--arena-user)."
            )
            raise Refused(problem)
        if all_ + size > self.host:
            problem = (
                f"all notebooks together may set aside {format_size(self.host)} of the host's memory; {format_size(all_)} of it are in use, and {asked} more do not fit now. "
                "It fits when others have theirs back; an administrator can raise it (--arena)."
            )
            raise Refused(problem)


def checked_size(size: int) -> int:
    """Return `size` in whole blocks.

    Raises
    ------
    BadSize
        Where it is no size of a lease.
    """
    if not 0 < size < LARGEST_SIZE:
        problem = (
            f"a lease has from 1 to under {LARGEST_SIZE} bytes, and this one is to have {size}."
        )
        raise BadSize(problem)
    return rounded(size)


def check_room(needed: int, room: int) -> None:
    """Raise Refused where the host has no memory for `needed` bytes more and a margin."""
    margin = host_margin(needed)
    if needed + margin > room:
        problem = (
            f"the host's memory is short: {format_size(needed)} and {format_size(margin)} to spare are needed, and the machine and the broker's control "
            f"groups (MemAvailable, memory.max, memory.high) leave {format_size(max(0, room))}. Nothing was set aside; try again when others have let go of some."
        )
        raise Refused(problem)
