"""What people read of administrators, as strings."""

from __future__ import annotations

import pytest

from gpushare_kernel.core.values import GiB, MiB, PauseStatus, Wait, WaitReason
from gpushare_kernel.wire import admin_texts, cell_texts, limit_texts, parking_texts, texts
from gpushare_kernel.wire.admin import EvictedNow, Left
from gpushare_kernel.wire.snapshot import BudgetView, MaintenanceView, UserView

DAY = BudgetView("day", 7200.0, 5100.0, 32400.0)


def maintenance(**changes: object) -> MaintenanceView:
    """Return one in which one notebook runs."""
    usual: dict[str, object] = {"note": "new driver", "running": ("ann: a.ipynb",), "holding": (), "parked": 0, "empty": False}  # fmt: skip
    return MaintenanceView(since=0.0, **(usual | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("view", "text"),
    [
        (maintenance(), "Maintenance since 15:02 (new driver): nothing new begins. Still running: ann: a.ipynb."),
        (maintenance(running=tuple(map(str, range(8)))), "Maintenance since 15:02 (new driver): nothing new begins. Still running: 0, 1, 2, 3, 4, 5 and 2 more."),
        (maintenance(running=()), "Maintenance since 15:02 (new driver): nothing new begins. Memory is on its way to the host."),
        (maintenance(running=(), empty=True, note=""), "Maintenance since 15:02: nothing new begins. Nothing runs on the device."),
        (maintenance(running=(), empty=True, holding=("b",), parked=2), "Maintenance since 15:02 (new driver): nothing new begins. Nothing runs on the device. 1 idle keep what they hold (b); 2 are set aside."),
    ],
)  # fmt: skip
def test_how_far_a_maintenance_is(view: MaintenanceView, text: str) -> None:
    assert admin_texts.maintenance_text(view, "15:02") == text


def test_what_came_of_evict() -> None:
    """Each sort on a line of its own, and what to do about the rest."""
    left = Left("bob: c.ipynb", 3 * GiB, "it has a deadline to keep")
    assert admin_texts.evicted_text(EvictedNow(("ann: a",), ("ann: b",), (left,))).splitlines() == [
        "Set aside now: ann: a.",
        "Set aside as soon as its cell has ended: ann: b.",
        "bob: c.ipynb holds 3.0 GiB, which cannot be set aside: it has a deadline to keep. Its user was asked to release it.",
        "gpushare ends no process. Whoever must have the memory now ends the kernel: jupyter gpushare status has its pid.",
    ]
    assert admin_texts.evicted_text(EvictedNow()) == "It holds nothing of the device."


def test_what_is_left_of_a_budget() -> None:
    """With what the group allows besides; nobody without a group reads anything."""
    user = UserView("bob", 1.0, 0.0, "students", 8 * GiB, 3, (DAY,), own=True)
    assert admin_texts.account_text(user) == (
        "bob (students): 8.0 GiB of each device at most, 3 kernels at most, 35 min of 2 h device time left this day, anew in 9 h."
    )
    assert admin_texts.account_text(UserView("bob", 1.0, 0.0, "g", kernels=1)) == (
        "bob (g): 1 kernel at most."
    )
    aside = UserView("bob", 1.0, 0.0, "students", kernels=2, parked=32 * GiB)
    assert admin_texts.account_text(aside) == (
        "bob (students): 32.0 GiB set aside at most, 2 kernels at most."
    )
    used_up = UserView("bob", 1.0, 0.0, "students", budgets=(BudgetView("week", 3600.0, 4000.0, 60.0),))  # fmt: skip
    assert admin_texts.account_text(used_up) == (
        "bob (students): 0 s of 1 h device time left this week, anew in 1 min. "
        "A budget is used up: cells run when nobody else wants the device."
    )
    assert admin_texts.account_text(UserView("bob", 1.0, 0.0)) == ""
    assert admin_texts.account_text(UserView("bob", 2.0, 0.0, "students")) == ""


def test_what_every_notebook_reads() -> None:
    assert admin_texts.maintenance_begins_text("back at 16:00") == (
        "Maintenance (back at 16:00): what runs goes on to its end, nothing new begins on the device. Nothing is lost."
    )
    assert admin_texts.asked_by_admin_text(GiB) == (
        "Your administrator asks for the 1.0 GiB that this notebook holds of the device: %gpushare release, or shut it down when you can."
    )
    assert admin_texts.set_aside_by_admin_text(after_cell=False) == (
        "Your administrator has this notebook's GPU memory set aside now. Nothing is lost: a cell that needs it has it back as soon as there is room."
    )


def test_others_read_no_numbers_of_a_cap() -> None:
    """Whose it is not sees that somebody waits for its own."""
    assert texts.others_wait_text(Wait(WaitReason.CAP, 0, 0, 0)) == "Waiting for GPU memory."


def test_a_parked_cell_that_waits_for_a_cap_or_a_maintenance() -> None:
    waits = Wait(WaitReason.MAINTENANCE, GiB, 0, 0)
    assert parking_texts.aside_text(GiB, waits).endswith("all else runs. Waiting for the end of a maintenance: nothing new begins on this device until then, and nothing is lost.")  # fmt: skip


def test_limits() -> None:
    many = limit_texts.kernels_text("g", 9, [f"{n}.ipynb" for n in range(9)])
    assert many == "each of the group g may have 9 kernels open, and yours are 0.ipynb, 1.ipynb, 2.ipynb, 3.ipynb, 4.ipynb, 5.ipynb, 6.ipynb, 7.ipynb and 1 more. Shut one down first."  # fmt: skip
    assert limit_texts.kernels_text("g", 1, ["a.ipynb"]) == (
        "each of the group g may have 1 kernel open, and yours is a.ipynb. Shut it down first."
    )
    assert cell_texts.did_not_run_text(30.0) == "GPUSHARE: did not run, waited 30 s"


def test_what_an_administrator_asks_a_command_for_is_a_sentence() -> None:
    """A command releases nothing by a magic: it is ended."""
    asked = admin_texts.asked_by_admin_text(50 * MiB)
    assert texts.for_command(asked) == (
        "Your administrator asks for the 50 MiB that this command holds of the device. End it when you can."
    )


def test_work_that_cannot_be_paused_beside_a_deadline() -> None:
    """W4: what was seen of it, and what that means; nobody's name (I9)."""
    after = (
        ": its deadline is not certain until that has ended. `pipe.report()` says what was late."
    )
    before = "Somebody's work beside this real-time job cannot be paused"
    assert limit_texts.beside_text(None) == before + after
    assert limit_texts.beside_text(PauseStatus.UNSUPPORTED) == (
        f"{before} (a profiler is at work there, or MPS){after}"
    )
