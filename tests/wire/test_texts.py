"""Every sentence people read, as a string."""

from __future__ import annotations

import pytest
from msgspec import structs

from gpushare_kernel.core.values import GiB, Holder, JobId, MiB, PauseReason, Wait, WaitReason
from gpushare_kernel.wire import cell_texts, framework_texts, need_texts, parking_texts, texts
from gpushare_kernel.wire.messages import DryRun, ReleasedNow, Report, Slowed
from gpushare_kernel.wire.snapshot import NeedView

OWN = Holder("hw2.ipynb", int(4.8 * GiB), 40 * 60.0, own=True)
ANN = Holder("A.B.", 2 * GiB, None, own=False)
BOB = Holder("B.C.", 3 * GiB, 600.0, own=False)
CYD = Holder("C.D.", GiB, None, own=False)


def wait(reason: WaitReason = WaitReason.MEMORY, **changes: object) -> Wait:
    """Return a wait for 6 GiB where 2.1 are free."""
    numbers: dict[str, object] = {"needs": 6 * GiB, "free": int(2.1 * GiB), "ahead": 2}
    return Wait(reason, **(numbers | changes))  # type: ignore[arg-type]


MEMORY = "Waiting for GPU memory: needs 6.0 GiB, 2.1 free."
END = "Interrupt gives up your place."


@pytest.mark.parametrize(
    ("waiting", "text"),
    [
        (wait(holders=(OWN,)), f"{MEMORY} Your own hw2.ipynb holds 4.8 GiB, idle 40 min: %gpushare release hw2. 2 ahead of you. {END}"),
        (wait(), f"{MEMORY} 2 ahead of you. {END}"),
        (wait(ahead=0), f"{MEMORY} You are next. {END}"),
        (wait(eta=180.0, longest_today=360.0), f"{MEMORY} 2 ahead of you. About 3 min to go. {END}"),
        (wait(eta=180.0, exact=True), f"{MEMORY} 2 ahead of you. 3 min to go. {END}"),
        (wait(eta=0.4, longest_today=360.0), f"{MEMORY} 2 ahead of you. Longest wait today 6 min. {END}"),
        (wait(WaitReason.TURN, eta=90.0, exact=True), f"Waiting for a turn: others are running now. 2 min to go. {END}"),
        (wait(WaitReason.TURN, eta=0.1), f"Waiting for a turn: others are running now. {END}"),
        (wait(longest_today=0.2), f"{MEMORY} 2 ahead of you. {END}"),
        (wait(longest_today=360.0), f"{MEMORY} 2 ahead of you. Longest wait today 6 min. {END}"),
        (wait(free=512 * MiB), f"Waiting for GPU memory: needs 6.0 GiB, 512 MiB free. 2 ahead of you. {END}"),
        (wait(free=-GiB), f"Waiting for GPU memory: needs 6.0 GiB, 0 B free. 2 ahead of you. {END}"),
        (wait(holders=(ANN, OWN)), f"{MEMORY} Your own hw2.ipynb holds 4.8 GiB, idle 40 min: %gpushare release hw2. In use by A.B. (2.0 GiB). 2 ahead of you. {END}"),
        (wait(holders=(ANN, CYD, BOB)), f"{MEMORY} In use by B.C. (3.0 GiB), A.B. (2.0 GiB) and 1 more. 2 ahead of you. {END}"),
        (wait(holders=(Holder("my work.ipynb", GiB, 0.2, own=True),)), f"{MEMORY} Your own my work.ipynb holds 1.0 GiB: %gpushare release 'my work'. 2 ahead of you. {END}"),
        (wait(holders=(Holder("hw3.ipynb", 64 * MiB, 300.0, own=True),)), f"{MEMORY} Your own hw3.ipynb holds 64 MiB, idle 5 min. 2 ahead of you. {END}"),
        (wait(holders=(Holder("hw3.ipynb", 64 * MiB, 0.2, own=True),)), f"{MEMORY} Your own hw3.ipynb holds 64 MiB and is idle. 2 ahead of you. {END}"),
        (wait(holders=(Holder("hw3.ipynb", GiB, None, own=True),)), f"{MEMORY} Your own hw3.ipynb holds 1.0 GiB and is running. 2 ahead of you. {END}"),
        (wait(WaitReason.OCCUPANCY), f"Waiting for GPU memory that another cell is using: needs 6.0 GiB, 2.1 free. It is yours when that cell reaches its next step or ends. 2 ahead of you. {END}"),
        (wait(WaitReason.TURN), f"Waiting for a turn: others are running now. {END}"),
        (wait(WaitReason.CAP, cap=8 * GiB, group="students", holders=(OWN,), ahead=0),
         f"Waiting for GPU memory: needs 6.0 GiB, 2.1 left of your own. Each of the group students may hold 8.0 GiB of this device. Your own hw2.ipynb holds 4.8 GiB, idle 40 min: %gpushare release hw2. You are next. {END}"),
        (wait(WaitReason.MAINTENANCE, note="new driver, back at 16:00", holders=(OWN,)),
         f"Waiting for the end of a maintenance (new driver, back at 16:00): nothing new begins on this device until then, and nothing is lost. {END}"),
        (wait(over_budget=True, eta=180.0, holders=(ANN,)), f"{MEMORY} In use by A.B. (2.0 GiB). Your budget of device time is used up: others come first. %gpushare status says what is left. {END}"),
        (wait(WaitReason.TURN, over_budget=True), f"Waiting for a turn: others are running now. Your budget of device time is used up: others come first. %gpushare status says what is left. {END}"),
        (wait(WaitReason.MAINTENANCE), f"Waiting for the end of a maintenance: nothing new begins on this device until then, and nothing is lost. {END}"),
        (wait(WaitReason.GRACE, until=4.6), f"Waiting for the gpushare broker: it restarted, and asks all notebooks what they hold. It goes on in 5 s at most. {END}"),
        (wait(WaitReason.GRACE, holders=(OWN, ANN)), f"Waiting for the gpushare broker: it restarted, and asks all notebooks what they hold. It goes on soon. {END}"),
    ],
)  # fmt: skip
def test_waiting(waiting: Wait, text: str) -> None:
    """Why, who (own notebooks first), the place, how long, what one can do."""
    assert texts.wait_text(waiting) == text


def test_every_reason_has_a_sentence() -> None:
    """The list of reasons is closed: a new one without its sentence fails here."""
    said = {texts.wait_text(wait(reason)) for reason in WaitReason}
    assert len(said) == len(WaitReason)


def test_nothing_pretends_to_be_a_gpu() -> None:
    """The noun follows the device's kind."""
    assert texts.wait_text(wait(), texts.memory_noun("host")).startswith(
        "Waiting for memory: needs"
    )
    assert [texts.memory_noun(k) for k in ("cuda", "host", "model")] == ["GPU memory", "memory", "memory"]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.25, "0.2 s"), (12.4, "12 s"), (59.9, "60 s"), (60, "1 min"), (2400, "40 min"), (3600, "1 h"), (3900, "1 h 5 min"), (7195, "2 h"), (200_000, "2 d")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    """Times are said in the unit one would use."""
    assert texts.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("notice", "text"),
    [
        (Slowed(people=3, fraction=0.25), "Shared with 3 people: about 1/4 speed"),
        (Slowed(people=1, fraction=0.51), "Shared with 1 person: about 1/2 speed"),
        (Slowed(people=1, fraction=0.66), "Shared with 1 person: about 2/3 speed"),
        (Slowed(people=9, fraction=0.1), "Shared with 9 people: about 1/10 speed"),
        (Slowed(people=0, fraction=0.5), "Shared with your own other notebooks: about 1/2 speed"),
        (Slowed(people=2, fraction=0.0), "Shared with 2 people: about no speed"),
        (Slowed(people=2, fraction=0.97), "Shared with 2 people: about full speed"),
        (Slowed(1, 0.0, 8.0, PauseReason.TURN_ENDED), "Was paused for 8 s: others had their turn."),
        (Slowed(0, 0.0, 60.0, PauseReason.OVER_GRANT), "Was paused for 1 min: it held more than it may, and others waited for that."),
        (Slowed(1, 0.0, 8.0, PauseReason.RESTOPPED), "Was paused for 8 s: somebody had continued it out of turn."),
        (Slowed(1, 0.0, 90.0, "a deadline job runs."), "Was paused for 2 min: a deadline job runs."),
    ],
)  # fmt: skip
def test_slowed(notice: Slowed, text: str) -> None:
    """Who shares, how fast it still is; or, once it goes on, how long it stood still and why."""
    assert texts.slowed_text(notice) == text


def report(persistent: int, ephemeral: int) -> Report:
    """Return a report of a job that used this much."""
    return Report(JobId("j"), 0, 1, 1, 1, 0, persistent, 0, ephemeral, 0, 1)


def test_line_after_a_cell() -> None:
    """One line, ready to paste: never less than was used."""
    used = report(5 * GiB, int(0.2 * GiB))
    assert cell_texts.used_text(used, "%%gpulane 7GiB") == "used 5.2 GiB; next time: %%gpulane 7GiB"


def test_one_advice_wherever_it_is_given() -> None:
    """After the cell, in the table and in its line to paste: what was taken with the margin, rounded once."""
    known = need(declared_size=8 * GiB)
    after = structs.replace(
        report(2 * GiB, GiB),
        persistent_advised=known.persistent,
        ephemeral_advised=known.ephemeral,
    )
    assert need_texts.next_sizes(after, parts=False) == "3.5GiB"
    assert need_texts.next_sizes(after, parts=True) == "-p 2.5GiB -e 1.5GiB"
    assert need_texts.need_sizes(known) == ("3.5GiB",)
    assert need_texts.need_sizes(need(**PARTS)) == ("2.5GiB", "1.5GiB")


def test_advice_is_never_more_than_there_is() -> None:
    """Rounding up must not lead to a size that can never fit; nothing is cut where the room is not known."""
    sizes = need_texts.advised_sizes
    assert sizes(70 * GiB, 9 * GiB, 79 * GiB + 512 * MiB, parts=False) == ("79GiB",)
    assert sizes(70 * GiB, int(9.2 * GiB), 79 * GiB + 512 * MiB, parts=False) == ("81408MiB",)
    assert sizes(70 * GiB, int(9.2 * GiB), 79 * GiB + 512 * MiB, parts=True) == ("70GiB", "9728MiB")
    assert sizes(70 * GiB, int(9.2 * GiB), 0, parts=False) == ("80GiB",)


def test_a_broker_of_before_advises_nothing() -> None:
    """Then it is what was used."""
    assert need_texts.next_sizes(report(5 * GiB, int(0.2 * GiB)), parts=False) == "6GiB"
    assert need_texts.next_sizes(report(0, 70 * MiB), parts=False) == "128MiB"


def test_what_stays_of_a_cell() -> None:
    """How long it waited and ran is said where that is worth a word."""
    told = structs.replace(report(5 * GiB, int(0.2 * GiB)), waited=12.3, ran=100.4, boundaries=500)
    assert cell_texts.used_text(told, "%%gpulane 6GiB") == (
        "used 5.2 GiB; waited 12 s; ran 1 min 40 s, 500 steps; next time: %%gpulane 6GiB"
    )
    assert cell_texts.ran_text(0.02, 1) == "ran 0.0 s, 1 step"
    assert (
        cell_texts.ran_text(100, 500, 52) == "ran 1 min 40 s, 52 s of it with the device, 500 steps"
    )
    assert cell_texts.ran_text(100, 500, 95) == "ran 1 min 40 s, 500 steps"
    assert cell_texts.ran_text(3900, 0) == "ran 1 h 5 min"


def test_a_cell_that_runs() -> None:
    """How far it is, how fast, what it holds of what it declared; only what is known."""
    assert cell_texts.running_text(0.2) == "Running"
    parts = [("kept", int(2.1 * GiB), 4 * GiB), ("iteration", int(0.9 * GiB), 2 * GiB)]
    assert cell_texts.running_text(100, [(120, 500, 60.0)], parts) == (
        "Running 1 min 40 s · step 120 of 500, 2/s, about 3 min to go · kept 2.1 of 4.0 GiB · iteration 922 MiB of 2.0 GiB"
    )
    assert cell_texts.running_text(9, [(7, None, 8.9)], [("holds", 200 * MiB, 6 * GiB)]) == (
        "Running 9 s · step 7, 1.3 s each · holds 200 MiB of 6.0 GiB"
    )
    loops = [(2, 10, 20.0), (300, 1000, 1.5)]
    assert cell_texts.running_text(21, loops) == (
        "Running 21 s · step 2 of 10, inside 300 of 1000, 200/s, about 1 min to go"
    )


def test_waiting_says_how_long_already() -> None:
    """In steps of 10 s at first: a line that changes every second cannot be read."""
    texts_of = {n: cell_texts.waited_so_far_text("Waiting.", n) for n in (9, 11, 19.9, 61)}
    assert texts_of == {
        9: "Waiting.",
        11: "Waiting. Waited 10 s so far.",
        19.9: "Waiting. Waited 10 s so far.",
        61: "Waiting. Waited 1 min so far.",
    }
    assert cell_texts.gave_up_text(75) == "Waited 1 min 15 s."


def test_other_lines() -> None:
    """What is said once the waiting is over, or was in vain."""
    assert texts.waited_text(12.2) == "Waited 12 s for GPU memory."
    assert texts.wait_ended_text(30, wait()) == (
        "still no GPU memory after 30 s, as long as --wait says; the cell has not run. "
        "It needs 6.0 GiB, 2.1 free. Run it again later, or without --wait."
    )
    assert texts.wait_ended_text(0, wait(), "memory").startswith("no memory for it now, and --wait 0 waits for none; the cell has not run. It needs")  # fmt: skip
    assert texts.wait_ended_text(30, None, "memory") == (
        "still no memory after 30 s, as long as --wait says; the cell has not run. "
        "Run it again later, or without --wait."
    )
    assert texts.wait_ended_text(5, None, what="command").endswith(
        "as long as --wait says; the command has not run. Run it again later, or without --wait."
    )
    assert texts.LEFT_QUEUE_COMMAND == "Left the queue. The command has not run."
    assert texts.for_command(texts.BROKER_AWAY) == (
        "The gpushare broker is away: this command runs on, and shares again when it is back."
    )
    told, asked, idle = (
        texts.over_told_text(7 * GiB, 6 * GiB),
        texts.over_paused_text(7 * GiB, 6 * GiB, 2, 60),
        texts.asked_to_release_text(2, 3 * GiB, "14:02"),
    )
    assert texts.for_command(told) == (
        "This command holds 7.0 GiB of GPU memory and may use 6.0. Next time: jupyter gpushare run 7GiB"
    )
    assert texts.for_command(asked) == (
        "Paused for at most 60 s: this command holds 7.0 GiB of GPU memory and may use 6.0, and 2 people wait."
    )
    assert texts.for_command(idle) == "2 people wait; you hold 3.0 GiB idle since 14:02"
    assert texts.LEFT_QUEUE == "Left the queue. The cell has not run."
    assert texts.PLACE_LOST == "The gpushare broker restarted and your place in the queue is lost: waiting again."  # fmt: skip
    assert texts.BROKER_AWAY == "The gpushare broker is away: this notebook runs on, and shares again when it is back."  # fmt: skip
    assert (
        texts.BROKER_STOPPED
        == "the gpushare broker was stopped. Start it again: jupyter gpushare start."
    )
    assert texts.BROKER_SILENT == "Waiting for the gpushare broker to come back. Interrupt gives up."  # fmt: skip
    assert texts.NO_SESSION == "This program has no session: nothing is shared, and the code runs as it is. Start it with: jupyter gpushare run -- python s.py"  # fmt: skip
    assert texts.NO_BROKER == "No gpushare broker is here: nothing is shared, and the code runs as it is."  # fmt: skip


def test_a_wait_that_is_not_for_memory_and_ends_says_for_what() -> None:
    """Memory that is free is no reason."""
    drain = wait(WaitReason.MAINTENANCE, note="new driver")
    why = "Waiting for the end of a maintenance (new driver): nothing new begins on this device until then, and nothing is lost."  # fmt: skip
    assert texts.wait_ended_text(3, drain, "memory", "command") == (
        f"not let in after 3 s, as long as --wait says; the command has not run. {why} Run it again later, or without --wait."
    )
    assert texts.wait_ended_text(0, drain) == (
        f"not let in now, and --wait 0 waits for nothing; the cell has not run. {why} Run it again later, or without --wait."
    )
    assert "answer again: It is gone." in texts.wait_ended_text(3, wait(lost="It is gone."))


def test_a_wait_for_a_cap_that_ends_says_whose_is_left() -> None:
    """Not what is free of the device."""
    capped = wait(WaitReason.CAP, cap=8 * GiB, group="students")
    assert "It needs 6.0 GiB, 2.1 left of your own." in texts.wait_ended_text(60, capped)


def test_dry_run() -> None:
    """What would happen, with the split and why it would wait."""
    assert texts.dry_run_text(DryRun(fits=True, persistent=4 * GiB, ephemeral=2 * GiB, free=7 * GiB)) == (
        "It would run at once: needs 6.0 GiB of GPU memory (4.0 GiB to keep, 2.0 GiB while it runs), 7.0 free."
    )  # fmt: skip
    assert texts.dry_run_text(DryRun(False, 4 * GiB, 2 * GiB, GiB, wait(holders=(OWN,)))) == (
        "It would wait. Waiting for GPU memory: needs 6.0 GiB, 2.1 free. "
        "Your own hw2.ipynb holds 4.8 GiB, idle 40 min: %gpushare release hw2. 2 ahead of you."
    )
    assert texts.dry_run_text(DryRun(False, 4 * GiB, 2 * GiB, GiB), "memory") == (
        "It would wait: needs 6.0 GiB of memory (4.0 GiB to keep, 2.0 GiB while it runs), 1.0 free."
    )


def test_sizes_that_round_alike_are_told_apart() -> None:
    """`needs 21.7 GiB, 21.7 free` would say that there is room."""
    needs, free = int(21.72 * GiB), int(21.68 * GiB)
    said = texts.reason_text(Wait(WaitReason.MEMORY, needs, free, 0))
    assert said == "Waiting for GPU memory: needs 22241 MiB, 22200 free."
    said = texts.reason_text(Wait(WaitReason.MEMORY, GiB + 1, GiB, 0))
    assert said == "Waiting for GPU memory: needs 1073741825 B, 1073741824 free."
    assert texts.over_told_text(needs, free) == (
        "This notebook holds 22241 MiB of GPU memory and may use 22200. Put this on the first line next time: %%gpulane 22GiB"
    )
    assert texts.dry_run_text(DryRun(False, needs, 0, free)) == (
        "It would wait: needs 22241 MiB of GPU memory (21.7 GiB to keep, 0 B while it runs), 22200 free."
    )


def test_released() -> None:
    """What came back, from which notebook; or why nothing did."""
    assert texts.released_text(ReleasedNow(int(4.8 * GiB), ("hw2.ipynb",))) == (
        "Released 4.8 GiB of GPU memory: hw2.ipynb."
    )
    assert texts.released_text(ReleasedNow(0, ("hw2.ipynb",)), "memory") == (
        "Nothing to release: hw2.ipynb uses all it holds. `del` what it no longer needs, or restart it."
    )
    assert texts.released_text(ReleasedNow(2 * GiB, ("hw2.ipynb",), held=3 * GiB)) == (
        "Released 2.0 GiB of GPU memory: hw2.ipynb. "
        "3.0 GiB is still in use: del what you do not need and release again, or restart the kernel."
    )
    assert texts.released_text(ReleasedNow(0, ("hw2.ipynb",), held=3 * GiB)) == (
        "Nothing to release: hw2.ipynb uses the 3.0 GiB of GPU memory it holds: "
        "del what you do not need and release again, or restart the kernel."
    )
    asked = "hw2.ipynb was asked to give back what it keeps unused: %gpushare status shows what is left."
    assert texts.released_text(ReleasedNow(0, ("hw2.ipynb",), asked=("hw2.ipynb",))) == asked
    assert texts.released_text(ReleasedNow(2 * GiB, ("hw2.ipynb",), asked=("hw2.ipynb",))) == (
        f"Released 2.0 GiB of GPU memory: hw2.ipynb. {asked}"
    )
    assert texts.released_text(ReleasedNow(0, ())) == (
        "No notebook of yours by that name. %gpushare status lists them."
    )


def test_out_of_memory() -> None:
    """The last line of the output: what it may use, what it needed, what came back, and one line to paste."""
    line = f"%%gpulane {texts.oom_size(int(7.4 * GiB), 78 * GiB)}"
    assert texts.oom_text(6 * GiB, int(7.4 * GiB), int(5.1 * GiB), line) == (
        "GPU memory: this notebook may use 6.0 GiB and needed about 7.4. 5.1 GiB came back. "
        "Put this on the first line and run again: %%gpulane 9GiB"
    )
    assert texts.oom_text(None, 3 * GiB, 0, "") == (
        "GPU memory: this notebook needed about 3.0 GiB, and there is no room for that now. "
        "That is more than there is: run again with a smaller batch."
    )
    assert texts.oom_text(512 * MiB, 2 * GiB, 0, "%%gpulane 2.5GiB", "memory") == (
        "memory: this notebook may use 512 MiB and needed about 2.0 GiB. "
        "Put this on the first line and run again: %%gpulane 2.5GiB"
    )


def test_out_of_memory_where_a_restart_is_needed() -> None:
    """JAX reads its limit once: the size is remembered for the next start."""
    assert texts.oom_restart_text(6 * GiB, 17 * GiB, "%gpushare memory 20GiB") == (
        "GPU memory: this notebook may use 6.0 GiB and needed about 17.0. JAX takes its limit when the kernel starts. "
        "Run this, then restart the kernel: %gpushare memory 20GiB"
    )
    assert texts.restart_memory_text(20 * GiB) == (
        "From its next restart on this notebook may use 20.0 GiB of GPU memory. Restart the kernel."
    )


def test_a_full_device() -> None:
    """Where no limit of ours was in the way, others hold the memory: how much, where it is known."""
    assert texts.oom_text(None, 8 * GiB, GiB, "%%gpulane 10GiB", others=70 * GiB) == (
        "GPU memory: this notebook needed about 8.0 GiB, and there is no room for that now. Others hold 70.0 GiB. "
        "1.0 GiB came back. Put this on the first line and run again: %%gpulane 10GiB"
    )


def test_lines_about_frameworks() -> None:
    """What a framework does not let us see is said with what that means."""
    assert framework_texts.adapter_text("torch", "9.9", "its steps are not seen") == (
        "torch 9.9 is shared, but not all of it is seen: its steps are not seen."
    )
    assert framework_texts.uncapped_text("RuntimeError: no") == (
        "This notebook's limit of GPU memory could not be set (RuntimeError: no): the broker watches it from outside."
    )
    assert framework_texts.unadapted_text("No module named 'wrapt'") == (
        "This notebook is shared, but its frameworks are not seen from inside (No module named 'wrapt'). "
        "jupyter gpushare doctor says more."
    )


def test_a_broker_of_before() -> None:
    """What a broker does not know yet is said with both versions, and with what to do."""
    assert texts.older_broker_text(1, 2, "systemctl restart gpushare.service") == (
        "the broker is older than this notebook's gpushare: it speaks protocol version 1, and this is known since 2. "
        "Have it restarted: systemctl restart gpushare.service."
    )


def test_lines_of_a_gpu_session() -> None:
    """What cannot be paused, and what is broken, is said with what it means for whom."""
    assert texts.LEFT_FIRST_USE == "Left the queue. The cell ended at its first use of the GPU."
    assert texts.RESTART_DEFAULT == "From its next restart on this notebook starts like any other."
    assert texts.FRAMES_KEPT == "Errors keep their frames for %debug, and the memory that these hold. %gpushare debug off undoes it."  # fmt: skip
    assert texts.FRAMES_CLEARED == "The frames of a cell that runs out of GPU memory are cleared after it, so that its memory comes back."  # fmt: skip
    assert texts.BROKEN_SESSION == "This notebook's GPU session is broken (others are fine): restart the kernel."  # fmt: skip


def test_asking_for_memory_back() -> None:
    """Idle holders are asked; whoever is over its grant is told, asked, then paused for a bounded time."""
    held, limit = int(7.4 * GiB), 6 * GiB
    assert texts.asked_to_release_text(2, int(4.8 * GiB), "12:10") == (
        "2 people wait; you hold 4.8 GiB idle since 12:10: %gpushare release"
    )
    assert texts.asked_to_release_text(1, GiB, "09:05").startswith("1 person waits; ")
    assert texts.over_told_text(held, limit) == (
        "This notebook holds 7.4 GiB of GPU memory and may use 6.0. Put this on the first line next time: %%gpulane 8GiB"
    )
    assert texts.over_asked_text(held, limit, 2) == (
        "This notebook holds 7.4 GiB of GPU memory and may use 6.0, and 2 people wait: it gives back what it does not use."
    )
    assert texts.over_paused_text(held, limit, 1, 60.0) == (
        "Paused for at most 60 s: this notebook holds 7.4 GiB of GPU memory and may use 6.0, and 1 person waits. "
        "Interrupt the cell, then: %gpushare release"
    )


def test_others_on_the_device() -> None:
    """Who takes no part is counted and named for what it is."""
    assert texts.desktop_text(410 * MiB) == "The desktop uses 410 MiB of GPU memory; it is never paused."  # fmt: skip
    assert texts.foreign_text(5 * GiB, "memory") == "Programs outside gpushare use 5.0 GiB of memory; they take no turns."  # fmt: skip


def test_waiting_at_the_first_use() -> None:
    """A plain cell that finds no room is held where it first uses the GPU; Interrupt ends it."""
    assert texts.first_use_text(wait(needs=GiB, free=300 * MiB, holders=(OWN,))) == (
        "Waiting for GPU memory: this notebook's first use of it needs 1.0 GiB, 300 MiB free. "
        "Your own hw2.ipynb holds 4.8 GiB, idle 40 min: %gpushare release hw2. 2 ahead of you. Interrupt ends the cell."
    )
    turn = wait(WaitReason.TURN)
    assert texts.first_use_text(turn) == texts.wait_text(turn)


def need(code: str = "cell:1", **more: object) -> NeedView:
    """What is known of code that keeps 2 GiB and takes 1 GiB beside it, for 5 min; learned with a tenth more."""
    last = {"measured_persistent": 2 * GiB, "measured_ephemeral": GiB, "measured_time": 300.0}
    learned = {"persistent": int(2.2 * GiB), "ephemeral": int(1.1 * GiB), "time": 300.0}
    return NeedView(code, "hw1.ipynb", 4, **{**last, **learned, **more})  # type: ignore[arg-type]


PARTS = {"declared_persistent": 8 * GiB, "declared_ephemeral": 2 * GiB}


@pytest.mark.parametrize(
    ("known", "text"),
    [
        (need(), "nothing to declare: it takes what was learned"),
        (need(declared_size=4 * GiB), "fits"),
        (need(declared_size=4 * GiB, declared_time=200.0), "fits"),
        (need(declared_size=8 * GiB), "declare 3.5 GiB instead of 8.0: nobody waits for what you do not use: %%gpulane 3.5GiB"),
        (need(declared_size=2 * GiB), "declares 2.0 GiB and took 3.0: %%gpulane 3.5GiB"),
        (need(declared_size=512 * MiB), "declares 512 MiB and took 3.0 GiB: %%gpulane 3.5GiB"),
        (need(**PARTS), "declare 4.0 GiB instead of 10.0: nobody waits for what you do not use: %%gpulane -p 2.5GiB -e 1.5GiB"),
        (need(declared_persistent=4 * GiB, declared_ephemeral=512 * MiB), "declares 512 MiB while it runs and took 1.0 GiB: %%gpulane -p 2.5GiB -e 1.5GiB"),
        (need(declared_size=4 * GiB, declared_time=60.0), "says 1 min and takes 5 min: %%gpulane 3.5GiB --time 5min"),
        (need(declared_size=4 * GiB, elsewhere="H100"), "learned elsewhere (H100), so its time does not count here; fits"),
        (need("lane:1", declared_size=2 * GiB, declared_time=300.0), 'declares 2.0 GiB and took 3.0: gpushare.lane(size="3.5GiB", time="5min")'),
        (need("lane:1", **PARTS), 'declare 4.0 GiB instead of 10.0: nobody waits for what you do not use: gpushare.lane("2.5GiB", "1.5GiB")'),
        (need("run:1", declared_persistent=2 * GiB, declared_time=300.0), ""),
        (need("run:1", declared_persistent=2 * GiB, declared_time=20.0), "says 20 s and takes 5 min: jupyter gpushare run 2.0GiB --time 5min -- ..."),
    ],
)  # fmt: skip
def test_advice_on_what_to_declare(known: NeedView, text: str) -> None:
    """Why, and the line to paste where there is something to change."""
    assert need_texts.need_advice(known) == text


def test_who_takes_what_was_learned_is_told() -> None:
    """What, and from how many runs; a dry run says it too."""
    assert texts.learned_text(3 * GiB, 4) == (
        "Takes 3.0 GiB of GPU memory, learned from 4 runs of this code."
    )
    assert "1 run of" in texts.learned_text(3 * GiB, 1)
    assert texts.dry_run_text(DryRun(True, GiB, GiB, 4 * GiB, learned=2)) == (
        "It would run at once: needs 2.0 GiB of GPU memory (1.0 GiB to keep, 1.0 GiB while it runs, "
        "learned from 2 runs), 4.0 free."
    )


def test_a_cell_whose_memory_is_set_aside_reads_what_it_waits_for() -> None:
    """Only what is under way is said to be put back now."""

    def said(wait: Wait) -> str:
        return parking_texts.aside_text(4 * GiB, wait).partition("all else runs. ")[2]

    assert said(Wait(WaitReason.RESTORE, 4 * GiB, 0, 0)) == "It is put back now."
    grace = said(Wait(WaitReason.GRACE, 4 * GiB, 0, 0, until=4.0))
    assert grace == "Waiting for the gpushare broker: it restarted, and asks all notebooks what they hold. It goes on in 4 s at most."  # fmt: skip
    assert said(Wait(WaitReason.TURN, 0, 0, 1)) == "Waiting for a turn: others are running now."
    assert said(Wait(WaitReason.MEMORY, 4 * GiB, GiB, 2)) == "It needs 4.0 GiB, 1.0 free. 2 ahead of you."  # fmt: skip
