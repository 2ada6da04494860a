"""The lock worker's own conduct, and the table of the driver's answers."""

from __future__ import annotations

import io

import pytest

from gpushare_kernel.core.values import PauseStatus, ProcessKey
from gpushare_kernel.devices import answers
from gpushare_kernel.devices.answers import ProcessState, lock_status, unlock_status
from gpushare_kernel.devices.cuda_worker import Worker


class Script:
    """A driver that answers from a list and writes down what it was asked."""

    def __init__(self, *replies: str, state: ProcessState = ProcessState.RUNNING) -> None:
        self.replies = list(replies)
        self.asked: list[str] = []
        self.standing = state

    def init(self) -> str:
        return self.replies.pop(0)

    def lock(self, pid: int, milliseconds: int) -> str:
        self.asked.append(f"lock {pid} {milliseconds}")
        return self.replies.pop(0)

    def unlock(self, pid: int) -> str:
        self.asked.append(f"unlock {pid}")
        return self.replies.pop(0)

    def checkpoint(self, pid: int) -> str:
        self.asked.append(f"checkpoint {pid}")
        return self.replies.pop(0)

    def restore(self, pid: int) -> str:
        self.asked.append(f"restore {pid}")
        return self.replies.pop(0)

    def state(self, pid: int) -> ProcessState:
        self.asked.append(f"state {pid}")
        return self.standing


def talk(driver: Script, *requests: str, dead: frozenset[int] = frozenset()) -> list[str]:
    """Return the worker's lines; the processes 7 and 8 have start time 1, and live where they are not `dead`."""

    def alive(key: ProcessKey) -> bool:
        return key.start_time == 1 and key.pid not in dead

    replies = io.StringIO()
    Worker(driver, alive).serve(io.StringIO("".join(f"{line}\n" for line in requests)), replies)
    return replies.getvalue().splitlines()


def test_worker_says_at_once_whether_the_driver_came_up() -> None:
    """And ends where it did not."""
    assert talk(Script("CUDA_ERROR_NO_DEVICE"), "lock 7 1 5") == ["CUDA_ERROR_NO_DEVICE none"]


def test_worker_unlocks_what_it_holds_when_the_line_ends() -> None:
    """L3: the broker is gone: nobody stays locked."""
    driver = Script(*["CUDA_SUCCESS"] * 5)
    locked = talk(driver, "lock 7 1 5", "lock 8 1 5")
    assert locked == ["CUDA_SUCCESS none", *["CUDA_SUCCESS locked"] * 2]
    assert driver.asked[:2] == ["lock 7 5", "lock 8 5"]
    assert set(driver.asked[2:]) == {"unlock 7", "unlock 8"}


def test_worker_unlocks_nothing_that_it_does_not_hold() -> None:
    """A target that drained too long, or was unlocked on request, is left alone."""
    driver = Script("CUDA_SUCCESS", "CUDA_ERROR_NOT_READY")
    assert talk(driver, "lock 7 1 5")[1:] == ["CUDA_ERROR_NOT_READY running"]
    assert driver.asked == ["lock 7 5"]
    driver = Script("CUDA_SUCCESS", "CUDA_SUCCESS", "CUDA_SUCCESS")
    assert talk(driver, "lock 7 1 5", "unlock 7 1")[2:] == ["CUDA_SUCCESS running"]
    assert driver.asked == ["lock 7 5", "unlock 7"]


@pytest.mark.parametrize(
    ("replies", "standing", "undone"),
    [
        (["CUDA_ERROR_NO_DEVICE"], ProcessState.LOCKED, False),
        (["CUDA_SUCCESS", "CUDA_SUCCESS"], ProcessState.LOCKED, True),
        (["CUDA_SUCCESS", answers.ILLEGAL_STATE], ProcessState.RUNNING, True),
        (["CUDA_SUCCESS", *[answers.OPERATING_SYSTEM] * 2], ProcessState.FAILED, False),
        (["CUDA_SUCCESS", answers.NOT_READY, "CUDA_SUCCESS"], ProcessState.LOCKED, True),
    ],
)
def test_worker_tells_by_its_end_whether_all_is_undone(
    replies: list[str], standing: ProcessState, *, undone: bool
) -> None:
    """L2: an unlock that did not come about is tried once more; what the driver did not say is not done."""
    driver = Script(*replies, state=standing)
    worker = Worker(driver, lambda _: True)
    assert worker.serve(io.StringIO("unlock 7 1\n"), io.StringIO()) is undone
    assert driver.replies == []


def test_worker_answers_for_whom_it_finds_locked() -> None:
    """L3: by a worker that died, say."""
    driver = Script("CUDA_SUCCESS", "CUDA_SUCCESS", state=ProcessState.LOCKED)
    assert talk(driver, "state 7 1")[1:] == ["CUDA_SUCCESS locked"]
    assert driver.asked == ["state 7", "unlock 7"]


def test_worker_asks_for_the_state_only_where_the_answer_leaves_it_open() -> None:
    """ILLEGAL_STATE: locked by somebody before us, and now ours to unlock."""
    driver = Script("CUDA_SUCCESS", answers.ILLEGAL_STATE, answers.SUCCESS)
    driver.standing = ProcessState.LOCKED
    assert talk(driver, "lock 7 1 5")[1:] == ["CUDA_ERROR_ILLEGAL_STATE locked"]
    assert driver.asked == ["lock 7 5", "state 7", "unlock 7"]


def test_worker_says_how_a_process_stands() -> None:
    """Asked for each quantum; whoever unlocked itself is still unlocked by us in the end, which harms nobody."""
    driver = Script(*["CUDA_SUCCESS"] * 3)
    assert talk(driver, "lock 7 1 5", "state 7 1")[2:] == ["CUDA_SUCCESS running"]
    assert driver.asked == ["lock 7 5", "state 7", "unlock 7"]


def test_worker_never_asks_about_a_pid_that_was_reused() -> None:
    """L2: its start time differs: neither locked, nor unlocked, nor looked at."""
    driver = Script("CUDA_SUCCESS")
    assert talk(driver, "lock 7 2 5", "unlock 7 2", "state 7 2")[1:] == ["GONE none"] * 3
    assert driver.asked == []


def test_worker_unlocks_nobody_who_has_ended() -> None:
    """L2: nor whoever has its pid now."""
    dead: set[int] = set()

    class Killed(Script):
        def lock(self, pid: int, milliseconds: int) -> str:
            dead.add(pid)
            return super().lock(pid, milliseconds)

    driver = Killed("CUDA_SUCCESS", "CUDA_SUCCESS")
    talk(driver, "lock 7 1 5", dead=dead)  # type: ignore[arg-type]
    assert driver.asked == ["lock 7 5"]


def test_worker_does_what_was_asked_though_nobody_listens_any_more() -> None:
    """L3: left behind with an unlock, it waits for the driver and carries it out."""

    class Deaf(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    driver = Script("CUDA_SUCCESS", "CUDA_SUCCESS")
    Worker(driver, lambda _: True).serve(io.StringIO("unlock 7 1\n"), Deaf())
    assert driver.asked == ["unlock 7"]


# ---------------------------------------------------------------- parked


def test_worker_leaves_who_is_parked_as_it_is() -> None:
    """K6: neither unlocked nor restored when the line ends: nobody has looked for room; and its end tells that one stands still."""
    driver = Script(*["CUDA_SUCCESS"] * 3)
    worker = Worker(driver, lambda _: True)
    assert not worker.serve(io.StringIO("lock 7 1 5\ncheckpoint 7 1\n"), io.StringIO())
    assert driver.asked == ["lock 7 5", "checkpoint 7"]


def test_worker_unlocks_whom_it_has_just_restored() -> None:
    """K6: its broker died meanwhile: it has its memory again, and runs."""
    driver = Script(*["CUDA_SUCCESS"] * 3)
    worker = Worker(driver, lambda _: True)
    assert worker.serve(io.StringIO("restore 7 1\n"), io.StringIO())
    assert driver.asked == ["restore 7", "unlock 7"]


def test_worker_unlocks_whom_the_driver_would_not_park() -> None:
    """K6: it is locked still."""
    driver = Script(
        *["CUDA_SUCCESS"] * 2, answers.NOT_SUPPORTED, "CUDA_SUCCESS", state=ProcessState.LOCKED
    )
    said = talk(driver, "lock 7 1 5", "checkpoint 7 1")
    assert said[2:] == ["CUDA_ERROR_NOT_SUPPORTED locked"]
    assert driver.asked == ["lock 7 5", "checkpoint 7", "state 7", "unlock 7"]


def test_worker_does_not_unlock_again_who_turns_out_to_be_parked() -> None:
    """K6: ILLEGAL_STATE of a CHECKPOINTED process is no error and nothing to be tried again; another one's end is told as usual."""
    driver = Script("CUDA_SUCCESS", answers.ILLEGAL_STATE, state=ProcessState.CHECKPOINTED)
    worker = Worker(driver, lambda _: True)
    assert not worker.serve(io.StringIO("unlock 7 1\n"), io.StringIO())
    assert driver.asked == ["unlock 7", "state 7"]
    driver = Script("CUDA_SUCCESS", answers.ILLEGAL_STATE, "CUDA_SUCCESS")
    driver.standing = ProcessState.CHECKPOINTED
    assert Worker(driver, lambda _: True).serve(
        io.StringIO("unlock 7 1\nunlock 8 1\n"), io.StringIO()
    )


def test_worker_holds_nobody_whose_restore_failed() -> None:
    """It is lost: an unlock would do nothing."""
    driver = Script("CUDA_SUCCESS", answers.OUT_OF_MEMORY, state=ProcessState.FAILED)
    assert talk(driver, "restore 7 1")[1:] == ["CUDA_ERROR_OUT_OF_MEMORY failed"]
    assert driver.asked == ["restore 7", "state 7"]


# ---------------------------------------------------------------- the table of answers


def test_every_answer_we_know_is_one_of_the_driver_s() -> None:
    """A misspelt name would never be met."""
    driver = pytest.importorskip("cuda.bindings.driver")
    ours = {v for v in vars(answers).values() if isinstance(v, str) and v.startswith("CUDA_")}
    known = (ours | set(answers._STATUS_OF) | answers.SICK_DRIVER) - {answers.GONE}
    assert len(known) > 8
    assert known <= {each.name for each in driver.CUresult}


def test_illegal_state_depends_on_how_the_process_stands() -> None:
    """Locked: paused as asked. Running: an unlock too many. Failed: lost. Parked: restore first."""
    state = ProcessState
    assert lock_status(answers.ILLEGAL_STATE, state.LOCKED) is PauseStatus.PAUSED
    assert lock_status(answers.ILLEGAL_STATE, state.FAILED) is PauseStatus.BROKEN
    assert unlock_status(answers.ILLEGAL_STATE, state.RUNNING) is PauseStatus.NOTHING
    assert unlock_status(answers.ILLEGAL_STATE, state.CHECKPOINTED) is PauseStatus.UNSUPPORTED
    assert unlock_status(answers.ILLEGAL_STATE, state.FAILED) is PauseStatus.BROKEN
    assert unlock_status(answers.ILLEGAL_STATE, state.LOCKED) is PauseStatus.BUSY


def test_an_unlock_is_done_only_where_the_driver_says_so() -> None:
    """L1: an error of its own, and nobody knows how the process stands: it is asked again."""
    for answer in ("CUDA_ERROR_UNKNOWN", answers.OUT_OF_MEMORY, answers.ASSERT):
        assert unlock_status(answer, ProcessState.RUNNING) is PauseStatus.BROKEN
        for state in (ProcessState.FAILED, ProcessState.LOCKED):
            assert unlock_status(answer, state) not in answers.UNDONE


def test_an_unlock_never_says_paused() -> None:
    """Whatever the driver says, and however the process stands."""
    for answer in (answers.SUCCESS, answers.ILLEGAL_STATE, answers.NOT_READY, "CUDA_ERROR_UNKNOWN"):
        for state in ProcessState:
            assert unlock_status(answer, state) is not PauseStatus.PAUSED
