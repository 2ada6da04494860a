"""The first use of a GPU: who is held, how it ends, and what the end of a declared cell gives back."""

from __future__ import annotations

import threading

import pytest

from gpushare_kernel.client import display
from gpushare_kernel.core.errors import Refused
from gpushare_kernel.core.values import GiB, MiB, Wait, WaitReason
from gpushare_kernel.transport.words import TURN
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import (
    Cancel,
    CellEnded,
    CellStarted,
    End,
    Failure,
    Submit,
    Trim,
    Waiting,
)
from tests.client.fake_cuda import FakeCuda, torch
from tests.client.gpu_notebook import (
    GPU,
    Notebook,
    cuda,
    infer,
    notebook,
    yielded,
)
from tests.client.scripted_broker import ScriptedBroker
from tests.client.test_session import in_thread, interrupt_when

__all__ = ["cuda", "notebook"]


ROOM = Wait(WaitReason.MEMORY, needs=GiB, free=300 * MiB, ahead=2)


class Screen(display.Line):
    """Keeps what it is told."""

    lines: list[str] = []  # noqa: RUF012

    def _write(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def screen() -> list[str]:
    """What a waiting job shows."""
    Screen.lines = []
    display.use(Screen)
    return Screen.lines


def test_first_use_in_a_plain_cell_waits(
    notebook: Notebook, cuda: FakeCuda, screen: list[str]
) -> None:
    """The call that starts CUDA is held until the broker has room; the job ends with the cell."""
    peer = notebook.peer
    seen: list[list[str]] = []

    def admit() -> None:
        peer.expect(CellStarted)
        number, asked = peer.expect(Submit)
        assert asked.plain
        peer.notice(Waiting(asked.job, ROOM))
        seen.append(list(cuda.calls))
        peer.grant(number, asked)

    admitted = in_thread(admit)
    notebook.session.cell_started(1)
    cuda.use(2 * GiB)
    admitted.result(20)
    assert seen == [[]]
    assert cuda.calls == ["init"]
    assert screen[0].startswith(
        "Waiting for GPU memory: this notebook's first use of it needs 1.0 GiB"
    )
    cuda.use(GiB)
    notebook.session.cell_ended(1)
    end = peer.expect(End)[1]
    assert (end.persistent, end.peak) == (3 * GiB, 3 * GiB)
    assert peer.expect(CellEnded)[1].persistent == 3 * GiB


@pytest.mark.parametrize("during", ["peak", "now", "trim"])
def test_an_interrupt_at_the_end_leaves_nothing_running(notebook: Notebook, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, during: str) -> None:  # fmt: skip
    """Whatever of it is interrupted, the broker hears that the job and the cell are over; what somebody wants comes back next time."""
    peer, memory = notebook.peer, notebook.gpu.memory
    admitted = in_thread(lambda: (peer.expect(CellStarted), peer.grant(*peer.expect(Submit))))
    notebook.session.cell_started(1)
    cuda.use(3 * GiB)
    admitted.result(20)
    cuda.free_some(2 * GiB)
    notebook.hear(Trim())
    with monkeypatch.context() as once:

        def interrupted() -> int:
            once.undo()
            raise KeyboardInterrupt

        once.setattr(memory, during, interrupted)
        with pytest.raises(KeyboardInterrupt):
            notebook.session.cell_ended(1)
    peer.expect(End)
    assert peer.expect(CellEnded)[1].cell == 1
    assert cuda.cached == 2 * GiB
    notebook.session.cell_started(2)
    notebook.session.cell_ended(2)
    assert cuda.cached == 0


def test_a_plain_job_is_confirmed_as_one(
    notebook: Notebook, cuda: FakeCuda, broker: ScriptedBroker
) -> None:
    """A broker that comes back hears that nobody declared it, and what it held at last."""
    peer = notebook.peer
    admitted = in_thread(lambda: (peer.expect(CellStarted), peer.grant(*peer.expect(Submit))))
    notebook.session.cell_started(1)
    cuda.use(GiB)
    admitted.result(20)
    notebook.session.memory.now()
    peer.close()
    second = broker.accept(GPU)
    assert [job.plain for job in second.attach.held] == [True]
    assert second.attach.persistent == GiB


def test_interrupt_at_the_first_use(notebook: Notebook, cuda: FakeCuda, screen: list[str]) -> None:
    """Interrupt leaves the queue with one line; CUDA has not started, and the next use asks again."""
    peer, queued = notebook.peer, threading.Event()
    interrupt_when(queued)
    side = in_thread(lambda: (peer.expect(CellStarted), peer.expect(Submit), queued.set()))
    notebook.session.cell_started(1)
    with pytest.raises(KeyboardInterrupt) as caught:
        cuda.use(GiB)
    side.result(20)
    assert caught.value._render_traceback_() == [f"gpushare: {texts.LEFT_FIRST_USE}"]  # type: ignore[attr-defined]
    peer.expect(Cancel)
    assert cuda.calls == []
    again = in_thread(lambda: peer.grant(*peer.expect(Submit)))
    cuda.use(GiB)
    again.result(20)
    assert cuda.calls == ["init"]


def test_refusal_at_the_first_use(notebook: Notebook, cuda: FakeCuda, screen: list[str]) -> None:
    """What can never fit ends the cell where it first uses the GPU, with the broker's words."""
    peer = notebook.peer
    side = in_thread(lambda: (peer.expect(CellStarted), peer.reply(peer.expect(Submit)[0], Failure("Refused", "no room ever"))))  # fmt: skip
    notebook.session.cell_started(1)
    with pytest.raises(Refused, match="no room ever"):
        cuda.use(GiB)
    side.result(20)
    assert cuda.calls == []


def test_an_error_of_ours_does_not_end_the_cell(
    notebook: Notebook, cuda: FakeCuda, screen: list[str]
) -> None:
    """Where the broker fails, the cell runs as it would without us, and one line says so."""
    peer = notebook.peer
    side = in_thread(lambda: (peer.expect(CellStarted), peer.reply(peer.expect(Submit)[0], Failure("InternalError", "a bug"))))  # fmt: skip
    notebook.session.cell_started(1)
    cuda.use(GiB)
    side.result(20)
    assert cuda.calls == ["init"]
    assert screen == [f"a bug {texts.RUNS_UNSHARED}"]


def test_a_declared_cell_asks_nothing_more(notebook: Notebook, cuda: FakeCuda) -> None:
    """Inside a lane the room is there: the first use is not held."""
    lane = notebook.lane()
    cuda.use(GiB)
    assert cuda.calls == ["init"]
    assert notebook.leave(lane).persistent == GiB


def test_the_end_of_a_declared_cell_gives_back(notebook: Notebook, cuda: FakeCuda) -> None:
    """What it held beyond what is kept goes back to the device, and is reported as its peak."""
    lane = notebook.lane()
    cuda.use(5 * GiB)
    cuda.free_some(3 * GiB)
    end = notebook.leave(lane)
    assert (end.persistent, end.peak) == (2 * GiB, 5 * GiB)
    assert cuda.cached == 0


def test_errors_of_the_device_are_left_to_the_users_call(notebook: Notebook, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Where waiting for the device fails, the boundary and the end go on: the next call of the cell shows it."""

    def broken(_device: object) -> None:
        msg = "CUDA error: an illegal memory access was encountered"
        raise RuntimeError(msg)

    lane = notebook.lane()
    cuda.use(GiB)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    notebook.peer.page.set(1, TURN)
    training = in_thread(lambda: yielded(notebook))
    infer(1)
    training.result(20)
    assert notebook.leave(lane).persistent == GiB


def test_other_threads_and_idle_kernels_are_not_held(notebook: Notebook, cuda: FakeCuda) -> None:
    """Nobody could see or interrupt such a wait: a thread of the cell, and a task after it, go on."""
    notebook.session.cell_started(1)
    notebook.peer.expect(CellStarted)
    in_thread(lambda: cuda.use(GiB)).result(20)
    assert cuda.calls == ["init"]
    notebook.session.cell_ended(1)
    assert isinstance(notebook.peer.next().body, CellEnded)  # type: ignore[union-attr]
    cuda.up = False
    cuda.use(GiB)
    assert cuda.calls == ["init", "init"]


def test_without_a_broker_nothing_is_held(notebook: Notebook, cuda: FakeCuda) -> None:
    """A broker that is away is not waited for."""
    notebook.session.cell_started(1)
    notebook.peer.expect(CellStarted)
    down = threading.Event()
    notebook.session.listen(lambda _: down.set())
    notebook.peer.close()
    assert down.wait(20)
    cuda.use(GiB)
    assert cuda.calls == ["init"]
