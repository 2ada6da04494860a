"""What somebody reads who meets a limit that keeps one user from holding up the others: the rule, the value, the next step."""

from __future__ import annotations

from collections.abc import Sequence

from gpushare_kernel.core.values import PauseStatus

_NAMED = 8
"""Names in one sentence at most."""
_NOT_PAUSED = {
    PauseStatus.UNSUPPORTED: "a profiler is at work there, or MPS",
    PauseStatus.FORBIDDEN: "it is of an account that this broker may not pause",
}


def connections_text(most: int, seen: int) -> str:
    """Too many connections stand."""
    return f"a user may have {most} connections to the broker, and yours are {seen}. Close some of them."


def handshakes_text(most: int, seen: int) -> str:
    """Too many connections come in at once."""
    return (
        f"the broker answers {most} new connections of a user at once, and yours are {seen}. "
        "Try again in a moment."
    )


def requests_text(share: float) -> str:
    """Too much is asked: it is answered, later."""
    return (
        f"one user's requests get at most {share:.0%} of the broker's time, and yours take more: they are answered late. "
        "Ask less often, and look for a loop that asks without end."
    )


def sessions_text(most: int) -> str:
    """Too many sessions are open."""
    return f"a user may have {most} notebooks open, and you have so many. Shut some down first."


def jobs_text(most: int) -> str:
    """Too many jobs run or wait."""
    return (
        f"the jobs of all your notebooks may be {most} at once, and so many run or wait. "
        "Let one end first."
    )


def proofs_text(most: int) -> str:
    """Too many deadlines are being proven."""
    return (
        f"{most} deadlines of a user are proven at once, and so many of yours are. "
        "Begin this job when one of them has its answer."
    )


def job_id_text(longest: int, seen: int) -> str:
    """A job's id is no id."""
    return f"a job's id has 1 to {longest} printable ASCII characters, and one with {seen} characters came."


def hub_away_text(why: str, account: str) -> str:
    """Nobody can tell now whose notebook it is: it shares the account of its uid."""
    return f"{why} This notebook counts as one of {account}'s, with everybody else of whom nothing is known. Restart its kernel once the hub answers."


def not_vouched_text() -> str:
    """A token that the hub does not know."""
    return (
        "JupyterHub does not know the token in JUPYTERHUB_API_TOKEN: it has expired, or is none of its own. "
        "Restart your server (File > Hub Control Panel > Stop My Server, then start it)."
    )


def not_a_person_text(name: str) -> str:
    """A token that belongs to a service of the hub."""
    return f"the token in JUPYTERHUB_API_TOKEN belongs to {name}, which is a service of the hub and nobody who has notebooks. Use that of a user's server."


def not_of_a_server_text() -> str:
    """A token that a server got of somebody who opened it in a browser."""
    return "the token in JUPYTERHUB_API_TOKEN is that of somebody's browser, and not of their server. Restart your server: the hub gives it the right one."


def kernels_text(group: str, most: int, names: Sequence[str]) -> str:
    """Too many kernels of a member of a group are open."""
    more = len(names) - _NAMED
    named = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    if most == 1:
        return f"each of the group {group} may have 1 kernel open, and yours is {named}. Shut it down first."
    return f"each of the group {group} may have {most} kernels open, and yours are {named}. Shut one down first."


def realtime_text(group: str, most: float, taken: float, asked: float) -> str:
    """A deadline would take more than a group allows its members."""
    return (
        f"deadlines of each of the group {group} may take {most:.0%} of the device; yours take {taken:.0%}, and this one "
        f"{asked:.0%} more. Lengthen its period, or close another one."
    )


def budget_text(period: str, limit: float, renews: float) -> str:
    """A deadline is asked for by somebody whose budget is used up."""
    return (
        f"your budget of {limit / 3600:.3g} device hours a {period} is used up, and a deadline would come before everybody "
        f"else's work. It begins anew in {renews / 3600:.1f} hours; without a deadline the cell runs when nobody else wants the device."
    )


def not_promised_again_text(name: str, why: str) -> str:
    """Return what a notebook reads whose deadline a new broker cannot promise where its pipeline runs."""
    return f"Pipeline {name} takes turns like everybody else since the broker has restarted: {why.rstrip('.')}. Close it, and open it again."


def beside_text(status: PauseStatus | None) -> str:
    """Return what a notebook with a deadline reads when somebody comes to work beside it whom nobody can pause (W4)."""
    why = _NOT_PAUSED.get(status) if status is not None else None
    seen = f" ({why})" if why else ""
    return f"Somebody's work beside this real-time job cannot be paused{seen}: its deadline is not certain until that has ended. `pipe.report()` says what was late."
