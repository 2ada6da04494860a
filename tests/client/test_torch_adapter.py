"""The real torch in a GPU session, its CUDA side played: boundaries, switching off, and leaving."""

from __future__ import annotations

import os
import pickle
from typing import Any

import cloudpickle
import pytest
from msgspec import structs

from gpushare_kernel.client import api
from gpushare_kernel.client.adapters.torch import QUIET, Torch
from gpushare_kernel.core.values import GiB, Wait, WaitReason
from gpushare_kernel.transport.words import LANE, TURN
from gpushare_kernel.wire.messages import Granted, Waiting, Yield
from tests.client.fake_cuda import FakeCuda, torch
from tests.client.gpu_notebook import (
    GPU,
    Block,
    New,
    Notebook,
    cuda,
    infer,
    notebook,
    train,
    yielded,
)
from tests.client.scripted_broker import ScriptedBroker
from tests.client.test_session import in_thread

__all__ = ["cuda", "notebook"]


def test_training_counts_optimizer_steps(notebook: Notebook) -> None:
    """An iteration counts once, whatever it calls; only the first pass of all is counted before a step was seen."""
    train(5)
    assert notebook.counted == 6
    train(5)
    assert notebook.counted == 11


class Checkpointed(torch.nn.Module):
    """Blocks that keep nothing for the backward pass, which runs them again."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(32))
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from torch.utils.checkpoint import checkpoint

        x = x.requires_grad_()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_a_backward_pass_runs_again_is_no_iteration(notebook: Notebook, *, reentrant: bool) -> None:  # fmt: skip
    """However many checkpointed blocks there are; nor are they a place to yield: the pass is in the middle."""
    train(5, Checkpointed(reentrant=reentrant))
    assert notebook.counted == 6
    train(5)
    assert notebook.counted == 11


def test_a_torch_that_does_not_tell_a_backward_pass(new_session: New, broker: ScriptedBroker, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Where a version lacks the private name everything else is seen as ever."""
    monkeypatch.delattr(torch._C, "_current_graph_task_id")
    notebook = Notebook(new_session(), broker)
    train(3)
    assert notebook.counted == 4
    assert notebook.shown == []


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
    training = in_thread(lambda: yielded(notebook))
    train(1)
    asked = training.result(20)
    assert cuda.calls == ["synchronize", "empty_cache"]
    assert (asked.trimmed, asked.persistent) == (True, 1 * GiB)
    notebook.leave(lane)


def test_at_a_boundary_the_most_that_was_in_use_is_told(notebook: Notebook, cuda: FakeCuda) -> None:
    """Above what it keeps, since the boundary before; the peak of the whole job is its own number."""
    lane = notebook.lane()
    cuda.use(GiB)
    told = []
    for size in (3 * GiB, 2 * GiB, 0):
        cuda.use(size)
        cuda.free_some(size)
        notebook.peer.page.set(1, LANE)
        training = in_thread(lambda: yielded(notebook))
        train(1)
        asked = training.result(20)
        told.append((asked.persistent, asked.ephemeral, asked.peak))
    assert told == [(GiB, 3 * GiB, 4 * GiB), (GiB, 2 * GiB, 4 * GiB), (GiB, 0, 4 * GiB)]
    assert notebook.leave(lane).peak == 4 * GiB


def test_who_outgrew_its_grant_reads_why_it_waits(notebook: Notebook, cuda: FakeCuda) -> None:
    """Once, and only where it is memory that it waits for; then it has what it needs."""
    lane = notebook.lane()
    assert lane.ephemeral == 3 * GiB
    cuda.use(5 * GiB)
    cuda.free_some(5 * GiB)
    wait = Wait(WaitReason.MEMORY, 5 * GiB, GiB, 0, eta=60.0)

    def answer() -> None:
        number, asked = notebook.peer.expect(Yield)
        for one in (wait, Wait(WaitReason.MEMORY, 5 * GiB, 2 * GiB, 0)):
            notebook.hear(Waiting(asked.job, one))
        notebook.peer.page.set(1, 0)
        notebook.peer.reply(number, Granted(asked.job, 2, 1, 0.0, 0, asked.ephemeral))

    notebook.peer.page.set(1, LANE)
    answering = in_thread(answer)
    train(1)
    answering.result(20)
    assert [line for line in notebook.shown if "granted" in line] == [
        "This needs more GPU memory than it was granted: 5.0 GiB while it runs, and it has 3.0. It waits at "
        "this step until there is room, and goes on; nothing is lost. You are next. About 1 min to go."
    ]
    assert lane.ephemeral == 5 * GiB
    notebook.peer.page.set(1, LANE)
    cuda.use(4 * GiB)
    cuda.free_some(4 * GiB)
    answering = in_thread(answer)
    train(1)
    answering.result(20)
    assert len([line for line in notebook.shown if "granted" in line]) == 1
    notebook.leave(lane)


def test_a_turn_is_passed_when_the_device_is_done(notebook: Notebook, cuda: FakeCuda) -> None:
    """A turn alone passes no memory: nothing is trimmed, but what was launched is waited for."""
    lane = notebook.lane()
    cuda.use(GiB)
    cuda.calls.clear()
    notebook.peer.page.set(1, TURN)
    training = in_thread(lambda: yielded(notebook))
    infer(1)
    assert not training.result(20).trimmed
    assert cuda.calls == ["synchronize"]
    notebook.leave(lane)


@pytest.mark.parametrize("word", [TURN, LANE])
def test_a_capture_is_not_disturbed(notebook: Notebook, cuda: FakeCuda, word: int) -> None:
    """To wait for the device would spoil a CUDA graph that is being captured: the boundary after it is the one that yields."""
    lane = notebook.lane()
    cuda.use(GiB)
    cuda.calls.clear()
    notebook.peer.page.set(1, word)
    answering = in_thread(lambda: yielded(notebook))
    cuda.capturing = True
    train(1)
    assert (lane.boundaries, cuda.calls) == (1, [])
    assert not [one for one in notebook.peer.seen if isinstance(one, Yield)]
    cuda.capturing = False
    train(1)
    assert answering.result(20).boundaries == 2
    assert "synchronize" in cuda.calls
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


def test_what_is_wrapped_is_pickled_by_name(new_session: New, broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A function of a notebook that uses it goes to workers as without us."""
    monkeypatch.delenv("GPUSHARE_ADAPTERS", raising=False)
    real = torch.cuda.mem_get_info, torch.cuda._lazy_init
    Notebook(new_session(), broker)
    ours = torch.cuda.mem_get_info, torch.cuda._lazy_init
    assert not set(real) & set(ours)
    assert pickle.loads(pickle.dumps(ours)) == ours
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("from torch.cuda import mem_get_info\ndef free():\n    return mem_get_info()[0]", names)
    sent = cloudpickle.loads(cloudpickle.dumps(names["free"]))
    assert sent.__globals__["mem_get_info"] is ours[0]


def test_what_is_held_and_what_of_it_is_used(notebook: Notebook, cuda: FakeCuda) -> None:
    """By torch's own count; before CUDA is up it is not asked."""
    assert notebook.gpu.memory.used() == {}
    cuda.use(3 * GiB)
    cuda.free_some(GiB)
    assert [*notebook.gpu.memory.used().values()] == [2 * GiB]
    assert [*notebook.gpu.memory.held().values()] == [3 * GiB]


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


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("warm", [True, False])
def test_exports_are_watched(new_session: New, broker: ScriptedBroker, *, warm: bool) -> None:
    """Where tensors may be set aside: what leaves torch is seen from its import on, until the session is closed. Else nothing is hooked."""
    notebook = Notebook(new_session(), broker, structs.replace(GPU, warm=warm))
    gpu = notebook.session.gpu
    assert gpu is not None
    (adapter,) = gpu.adapters.active
    assert isinstance(adapter, Torch)
    given, other = torch.ones(3), torch.ones(3)
    given.__dlpack__()
    assert adapter.exports.all_seen is warm
    assert adapter.exports.has(given.untyped_storage()) is warm
    assert not adapter.exports.has(other.untyped_storage())
    notebook.session.close()
    assert not adapter.exports.all_seen
