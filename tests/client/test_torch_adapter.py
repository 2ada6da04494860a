"""The real torch in a GPU session, its CUDA side played: boundaries, first use, caps, memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from gpushare_kernel.client import api, display
from gpushare_kernel.client.adapters.torch import QUIET
from gpushare_kernel.client.lanes import Lane
from gpushare_kernel.client.session import Session
from gpushare_kernel.core.errors import Refused
from gpushare_kernel.core.values import GiB, MiB, Wait, WaitReason
from gpushare_kernel.transport.words import LANE, TURN
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import (
    Announce,
    Budget,
    Cancel,
    CellEnded,
    CellStarted,
    End,
    Failure,
    Granted,
    Submit,
    Waiting,
    Yield,
)
from tests.client.fake_cuda import FakeCuda, torch
from tests.client.scripted_broker import Peer, ScriptedBroker, attached, report
from tests.client.test_session import in_thread, interrupt_when, submit

New = Callable[[], Session]
GPU = attached("cuda", 78 * GiB, reserve=600 * MiB)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """The CUDA side of torch, played."""
    monkeypatch.delenv("GPUSHARE_ADAPTERS", raising=False)
    return FakeCuda(monkeypatch)


class Notebook:
    """A session on a GPU, the broker it talks to, and what it shows."""

    def __init__(self, session: Session, broker: ScriptedBroker, welcome: object = GPU) -> None:
        self.session = session
        self.shown: list[str] = []
        session.listen(lambda notice: self.shown.append(getattr(notice, "text", "")))
        session.start()
        self.peer: Peer = broker.accept(welcome)  # type: ignore[arg-type]
        session.wait_attached(20)
        assert session.gpu is not None
        self.gpu = session.gpu

    @property
    def counted(self) -> int:
        """Boundaries, as the broker reads them."""
        return self.peer.tally.read()

    def budget(self, limit: int | None) -> None:
        """Have the broker set a limit, and wait until the client has heard of it."""
        heard = threading.Event()
        listen = lambda _: heard.set()  # noqa: E731
        self.session.listen(listen)
        self.peer.notice(Budget(limit))
        self.peer.notice(Announce("after it"))
        assert heard.wait(20)
        self.session.unlisten(listen)

    def lane(self, slot: int = 1) -> Lane:
        """Enter a lane in this thread's context; the broker admits it."""
        lane = Lane(self.session, submit(cooperative=True))

        def admit() -> None:
            number, asked = self.peer.expect(Submit)
            self.peer.grant(number, asked, slot=slot)

        admitted = in_thread(admit)
        lane.__enter__()
        admitted.result(20)
        return lane

    def leave(self, lane: Lane) -> End:
        """Leave it; returns what the broker is told."""

        def answer() -> End:
            number, end = self.peer.expect(End)
            self.peer.reply(number, report(end.job))
            return end

        ending = in_thread(answer)
        lane.close()
        return ending.result(20)  # type: ignore[return-value]


@pytest.fixture
def notebook(cuda: FakeCuda, new_session: New, broker: ScriptedBroker) -> Iterator[Notebook]:
    """A session on a GPU in which torch was imported before."""
    yield Notebook(new_session(), broker)
    display.use(None)


class Block(torch.nn.Module):
    """Calls its parts by a helper, as torchvision's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.Sequential(
            torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.ReLU())
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts(self.parts(x))


def train(rounds: int, model: torch.nn.Module | None = None) -> None:
    """A training loop as students write it."""
    model = model or Block()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(rounds):
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()


def infer(rounds: int, model: torch.nn.Module | None = None) -> None:
    """Inference, without gradients."""
    model = model or Block()
    with torch.no_grad():
        for _ in range(rounds):
            model(torch.ones(1, 4))


# --- Boundaries ----------------------------------------------------------------------------------------------


def test_training_counts_optimizer_steps(notebook: Notebook) -> None:
    """An iteration counts once, whatever it calls; only the first pass of all is counted before a step was seen."""
    train(5)
    assert notebook.counted == 6
    train(5)
    assert notebook.counted == 11


def test_inference_counts_root_modules(notebook: Notebook) -> None:
    """A forward pass counts once, however deep the model and whatever helper calls its parts."""
    infer(4)
    assert notebook.counted == 4
    infer(3, torch.nn.Sequential(Block(), Block()))
    assert notebook.counted == 7


def test_a_failed_forward_pass_leaves_nothing_behind(notebook: Notebook) -> None:
    """After an error inside a model the next pass is a root again."""
    model = torch.nn.Sequential(Block(), torch.nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        infer(1, model)
    assert notebook.counted == 0
    infer(2)
    assert notebook.counted == 2


def test_evaluation_after_training_counts(notebook: Notebook) -> None:
    """Passes between two steps belong to an iteration (a teacher); an evaluation is longer and counts."""
    train(1)
    before = notebook.counted
    infer(QUIET)
    assert notebook.counted == before
    infer(5)
    assert notebook.counted == before + 5


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch itself, while it traces
@pytest.mark.parametrize("way", ["function", "decorator", "method"])
def test_compiled_models_are_not_disturbed(notebook: Notebook, way: str) -> None:
    """A compiled model is one graph without a warning of hooks nobody knows; optimizer steps still count."""
    model: torch.nn.Module = torch.nn.Sequential(Block(), Block())
    with torch.no_grad():
        expected = model(torch.ones(1, 4))
        if way == "function":
            compiled = torch.compile(model, backend="eager", fullgraph=True)
        elif way == "decorator":
            compiled = torch.compile(backend="eager", fullgraph=True)(model)
        else:
            model.compile(backend="eager", fullgraph=True)
            compiled = model
        for _ in range(3):
            assert torch.equal(compiled(torch.ones(1, 4)), expected)
    assert notebook.counted == 1
    train(2, compiled)
    assert notebook.counted == 3


def test_compiled_functions_leave_the_hook(notebook: Notebook) -> None:
    """A function that is compiled (libraries do that when imported) may call models in one graph; others still count."""
    model = Block()
    function = torch.compile(lambda x: model(x) + 1, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(function(torch.ones(1, 4)), model(torch.ones(1, 4)) + 1)
    assert notebook.counted == 1


def test_lane_meets_boundaries_unasked(notebook: Notebook, cuda: FakeCuda) -> None:
    """In a declared cell the optimizer's step is the boundary: nobody wants anything, nothing is sent."""
    lane = notebook.lane()
    train(3)
    end = notebook.leave(lane)
    assert lane.boundaries == end.boundaries == 3
    assert notebook.counted == 4


def test_lane_is_trimmed_and_yielded(notebook: Notebook, cuda: FakeCuda) -> None:
    """Where somebody waits for the lane, the step waits for the device, gives unused memory back, and yields."""
    lane = notebook.lane()
    cuda.use(3 * GiB)
    cuda.free_some(2 * GiB)
    cuda.calls.clear()
    notebook.peer.page.set(1, LANE)
    training = in_thread(lambda: _yielded(notebook))
    train(1)
    asked = training.result(20)
    assert cuda.calls == ["synchronize", "synchronize", "empty_cache"]
    assert (asked.trimmed, asked.persistent) == (True, 1 * GiB)
    notebook.leave(lane)


def _yielded(notebook: Notebook) -> Yield:
    number, asked = notebook.peer.expect(Yield)
    notebook.peer.page.set(1, 0)
    notebook.peer.reply(number, Granted(asked.job, 1, 1, 0.0, 0, 0))
    return asked


def test_a_turn_is_passed_when_the_device_is_done(notebook: Notebook, cuda: FakeCuda) -> None:
    """A turn alone passes no memory: nothing is trimmed, but what was launched is waited for."""
    lane = notebook.lane()
    cuda.use(GiB)
    cuda.calls.clear()
    notebook.peer.page.set(1, TURN)
    training = in_thread(lambda: _yielded(notebook))
    infer(1)
    assert not training.result(20).trimmed
    assert cuda.calls == ["synchronize"]
    notebook.leave(lane)


def test_a_pass_with_gradients_is_no_place_to_yield(notebook: Notebook) -> None:
    """Between a forward and its backward pass memory is in use: it counts, but nothing is met there."""
    lane = notebook.lane()
    notebook.peer.page.set(1, TURN | LANE)
    Block()(torch.ones(1, 4))
    assert (lane.boundaries, notebook.counted) == (0, 1)
    notebook.peer.page.set(1, 0)
    notebook.leave(lane)


def test_steps_by_hand_are_the_only_ones(notebook: Notebook) -> None:
    """Whoever calls `lane.step()` knows the boundaries: the optimizer's steps are then none."""
    lane = notebook.lane()
    model = Block()
    for _ in range(3):
        lane.step()
        train(2, model)
    assert lane.boundaries == 3
    notebook.leave(lane)


def test_step_outside_lanes(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gpushare.step()` counts for whatever runs."""
    monkeypatch.setattr(api, "_session", notebook.session)
    for _ in range(4):
        api.step()
    assert notebook.counted == 4


def test_a_forked_child_counts_for_itself(notebook: Notebook) -> None:
    """What a DataLoader's worker does is none of the parent's boundaries."""
    child = os.fork()
    if child == 0:
        infer(5)
        os._exit(0 if notebook.peer.tally.read() == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert notebook.counted == 0


# --- First use -------------------------------------------------------------------------------------------------

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
    training = in_thread(lambda: _yielded(notebook))
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


# --- Budgets ---------------------------------------------------------------------------------------------------


def test_budget_is_applied_at_a_boundary(notebook: Notebook, cuda: FakeCuda) -> None:
    """Above the limit what is unused goes back, then torch is capped there; None lifts the cap."""
    cuda.use(3 * GiB)
    cuda.free_some(2 * GiB)
    cuda.calls.clear()
    notebook.budget(2 * GiB)
    assert cuda.calls == []
    infer(1)
    assert cuda.calls == ["synchronize", "empty_cache", "cap"]
    assert cuda.cap == 2.0
    notebook.budget(None)
    infer(1)
    assert cuda.cap == 80.0


def test_nothing_is_capped_below_what_it_holds(notebook: Notebook, cuda: FakeCuda) -> None:
    """What is in use stays: the cap follows it down, at the latest at the next cell."""
    cuda.use(5 * GiB)
    notebook.budget(2 * GiB)
    notebook.session.cell_started(1)
    notebook.session.cell_ended(1)
    assert cuda.cap == 5.0
    cuda.free_some(4 * GiB)
    notebook.session.cell_started(2)
    notebook.session.cell_ended(2)
    assert (cuda.cap, cuda.cached) == (2.0, 0)


def test_budget_before_the_first_use(
    cuda: FakeCuda, new_session: New, broker: ScriptedBroker
) -> None:
    """A limit that came with the attach is set as soon as there is a context, and makes none."""
    notebook = Notebook(new_session(), broker, attached("cuda", 78 * GiB, limit=6 * GiB))
    infer(1)
    assert cuda.calls == []
    cuda.use(GiB)
    assert cuda.calls == ["init", "cap"]
    assert cuda.cap == 6.0
    assert notebook.shown == []


def test_a_context_from_before_is_capped_on_the_users_thread(cuda: FakeCuda, new_session: New, broker: ScriptedBroker) -> None:  # fmt: skip
    """Where CUDA ran before the broker answered, nothing is called until the notebook's own thread comes by."""
    cuda.use(GiB)
    Notebook(new_session(), broker, attached("cuda", 78 * GiB, limit=6 * GiB)).session.boundary()
    assert cuda.calls == ["init", "cap"]
    assert set(cuda.threads) == {threading.get_ident()}


def test_idle_kernels_apply_it_on_their_main_thread(notebook: Notebook, cuda: FakeCuda) -> None:
    """While nothing runs, the front end says when; never is torch called on the reader's thread."""
    cuda.use(3 * GiB)
    cuda.free_some(3 * GiB)
    later: list[Callable[[], None]] = []
    notebook.session.when_idle = later.append
    notebook.budget(GiB)
    notebook.budget(2 * GiB)
    assert cuda.cap is None
    for call in later:
        call()
    assert (cuda.cap, cuda.cached) == (2.0, 0)
    assert cuda.calls.count("cap") == 1


def test_a_cap_that_fails_is_one_line(
    notebook: Notebook, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An allocator of the user's own takes no cap: the cell goes on, and it is said once."""

    def refuse(_fraction: float, _device: object) -> None:
        msg = "pluggable"
        raise RuntimeError(msg)

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", refuse)
    cuda.use(GiB)
    notebook.budget(2 * GiB)
    infer(2)
    notebook.budget(3 * GiB)
    infer(2)
    assert notebook.shown.count(texts.uncapped_text("RuntimeError: pluggable")) == 1


def test_mem_get_info(notebook: Notebook, cuda: FakeCuda) -> None:
    """Libraries that size themselves see what this notebook may take: real numbers until it is capped."""
    assert torch.cuda.mem_get_info() == (70 * GiB, 80 * GiB)
    cuda.use(2 * GiB)
    notebook.budget(6 * GiB)
    assert torch.cuda.mem_get_info() == (4 * GiB, 6 * GiB + 600 * MiB)
    assert torch.cuda.memory.mem_get_info(0) == (4 * GiB, 6 * GiB + 600 * MiB)
    cuda.free = GiB
    assert torch.cuda.mem_get_info()[0] == GiB


# --- On, off, and leaving ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["off", "cupy", ""])
def test_switched_off(
    cuda: FakeCuda,
    new_session: New,
    broker: ScriptedBroker,
    monkeypatch: pytest.MonkeyPatch,
    switch: str,
) -> None:
    """GPUSHARE_ADAPTERS leaves torch alone: nothing is counted, held or capped."""
    monkeypatch.setenv("GPUSHARE_ADAPTERS", switch)
    notebook = Notebook(new_session(), broker)
    train(2)
    notebook.budget(GiB)
    cuda.use(GiB)
    assert (notebook.counted, cuda.calls) == (0, ["init"])


def test_real_mem_get_info(cuda: FakeCuda, new_session: New, broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """GPUSHARE_MEM_INFO=real leaves torch's own numbers."""
    monkeypatch.setenv("GPUSHARE_MEM_INFO", "real")
    notebook = Notebook(new_session(), broker)
    notebook.budget(GiB)
    assert torch.cuda.mem_get_info() == (70 * GiB, 80 * GiB)


def test_host_sessions_leave_torch_alone(
    cuda: FakeCuda, new_session: New, broker: ScriptedBroker
) -> None:
    """Where the device is the host nothing of torch is touched."""
    session = new_session()
    session.start()
    peer = broker.accept()
    session.wait_attached(20)
    train(2)
    assert session.gpu is None
    assert peer.tally.read() == 0


def test_closing_takes_the_hooks_back(notebook: Notebook) -> None:
    """After the session torch is as it was."""
    from torch.nn.modules import module
    from torch.optim import optimizer

    assert module._global_forward_hooks
    lazy_init = torch.cuda._lazy_init
    notebook.session.close()
    assert not module._global_forward_hooks
    assert not optimizer._global_optimizer_post_hooks
    assert torch.cuda._lazy_init is not lazy_init


def test_a_version_that_lacks_a_part(
    cuda: FakeCuda, new_session: New, broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be hooked is said in one line, and the rest works."""
    monkeypatch.delattr(torch.cuda, "mem_get_info")
    notebook = Notebook(new_session(), broker)
    infer(2)
    assert notebook.counted == 2
    (line,) = notebook.shown
    assert line.startswith(f"torch {torch.__version__} is shared, but not all of it is seen: mem_get_info reports the whole GPU")  # fmt: skip
