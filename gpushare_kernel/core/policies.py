"""The order of turns, as small pure objects. FIFO and FAIR (Salus, section 4); RT ranks above them later."""

from __future__ import annotations

from typing import Protocol

from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.core.records import Session, User


class Policy(Protocol):
    """Ranks users and sessions that wait; smaller keys come first."""

    name: str
    #: Whether a turn ends while others wait (else the first keeps the device).
    rotates: bool

    def session_key(self, session: Session) -> tuple[float, int]:
        """Rank among the sessions of one user."""

    def user_key(self, user: User, best: Session, ahead: float) -> tuple[float, int]:
        """Rank among users: `best` is the user's next session, `ahead` what the user was already given in this turn."""


class Fair:
    """Equal progress: least virtual time first (I6)."""

    name = "fair"
    rotates = True

    def session_key(self, session: Session) -> tuple[float, int]:
        """Least weighted use among the user's own."""
        return (session.vtime, session.order)

    def user_key(self, user: User, best: Session, ahead: float) -> tuple[float, int]:
        """Least weighted use among users."""
        return (user.vtime + ahead, best.order)


class Fifo:
    """Arrival order: the oldest job keeps the device until it ends."""

    name = "fifo"
    rotates = False

    def session_key(self, session: Session) -> tuple[float, int]:
        """Oldest job first."""
        return (float(min((job.order for job in session.jobs.values()), default=0)), session.order)

    def user_key(self, user: User, best: Session, ahead: float) -> tuple[float, int]:  # noqa: ARG002
        """Users do not matter."""
        return self.session_key(best)


POLICIES: dict[str, type[Policy]] = {"fair": Fair, "fifo": Fifo}


def policy_named(name: str) -> Policy:
    """Return the policy called `name`.

    Raises
    ------
    BadDeclaration
        With the names there are.
    """
    try:
        return POLICIES[name]()
    except KeyError:
        msg = f"policy {name!r} is not known. Choose one of: {', '.join(sorted(POLICIES))}."
        raise BadDeclaration(msg) from None
