"""What people read of an administrator's acts."""

from __future__ import annotations

from collections.abc import Sequence

from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.admin import EvictedNow
from gpushare_kernel.wire.snapshot import BudgetView, MaintenanceView, UserView

_NAMED = 6


def maintenance_begins_text(note: str) -> str:
    """Return what every notebook reads when a maintenance begins."""
    return f"Maintenance{_note(note)}: what runs goes on to its end, nothing new begins on the device. Nothing is lost."


def maintenance_over_text() -> str:
    """Return what every notebook reads when it is over."""
    return "The maintenance is over: cells that waited for that go on."


def announced_text(text: str) -> str:
    """Return how an announcement reads in a notebook."""
    return f"From your administrator: {text}"


def set_aside_by_admin_text(*, after_cell: bool) -> str:
    """Return what a notebook reads whose memory an administrator had set aside."""
    when = "as soon as this cell has ended" if after_cell else "now"
    return f"Your administrator has this notebook's GPU memory set aside {when}. Nothing is lost: a cell that needs it has it back as soon as there is room."


def asked_by_admin_text(size: int) -> str:
    """Return what a notebook reads whose memory cannot be set aside and is wanted back."""
    return f"Your administrator asks for the {format_size(size)} that this notebook holds of the device: %gpushare release, or shut it down when you can."


def evicted_text(evicted: EvictedNow) -> str:
    """Return what came of `evict`, a line each."""
    lines = []
    if evicted.parked:
        lines.append(f"Set aside now: {', '.join(evicted.parked)}.")
    if evicted.after_cell:
        lines.append(f"Set aside as soon as its cell has ended: {', '.join(evicted.after_cell)}.")
    lines += [f"{one.name} holds {format_size(one.size)}, which cannot be set aside: {one.why}. Its user was asked to release it." for one in evicted.left]  # fmt: skip
    if evicted.left:
        lines.append("gpushare ends no process. Whoever must have the memory now ends the kernel: jupyter gpushare status has its pid.")  # fmt: skip
    return "\n".join(lines) or "It holds nothing of the device."


def maintenance_text(view: MaintenanceView, since: str) -> str:
    """Return how far a maintenance is; `since` is a time of day."""
    first = f"Maintenance since {since}{_note(view.note)}: nothing new begins."
    if view.empty:
        kept = [f"{len(view.holding)} idle keep what they hold ({_list(view.holding)})"] if view.holding else []  # fmt: skip
        kept += [f"{view.parked} are set aside"] if view.parked else []
        rest = f" {'; '.join(kept)}." if kept else ""
        return f"{first} Nothing runs on the device.{rest}"
    running = f" Still running: {_list(view.running)}." if view.running else " Memory is on its way to the host."  # fmt: skip
    return first + running


def account_text(user: UserView) -> str:
    """Return what a user's group allows it, and what is left of its budgets; empty where there is nothing to say."""
    parts = [] if user.memory is None else [f"{format_size(user.memory)} of each device at most"]
    parts += [] if user.parked is None else [f"{format_size(user.parked)} set aside at most"]
    parts += (
        []
        if user.kernels is None
        else [f"{user.kernels} {'kernel' if user.kernels == 1 else 'kernels'} at most"]
    )
    parts += [budget_text(one) for one in user.budgets]
    if not parts or user.group is None:
        return ""
    said = f"{user.name} ({user.group}): {', '.join(parts)}."
    if any(one.used >= one.limit for one in user.budgets):
        said += " A budget is used up: cells run when nobody else wants the device."
    return said


def budget_text(budget: BudgetView) -> str:
    """Return what is left of a budget, and when it begins anew."""
    left = max(0.0, budget.limit - budget.used)
    return (
        f"{_hours(left)} of {_hours(budget.limit)} device time left this {budget.period}, "
        f"anew in {texts.format_duration(budget.renews)}"
    )


def _hours(seconds: float) -> str:
    return texts.format_duration(seconds) if seconds >= 1 else "0 s"


def _note(note: str) -> str:
    return f" ({note})" if note else ""


def _list(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
