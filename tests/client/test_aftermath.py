"""What is recognised as out of memory or as broken, what comes back, and what is said."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

from gpushare_kernel.client import aftermath, ptracer
from gpushare_kernel.client.aftermath import Broken, OutOfMemory, recognise, recover
from gpushare_kernel.client.session import Session
from gpushare_kernel.core.values import GiB, MiB
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import GetSnapshot, SnapshotReply
from gpushare_kernel.wire.snapshot import DeviceView, LaneView, SessionView, Snapshot
from tests.client.fake_cuda import FakeCuda, torch
from tests.client.gpu_notebook import Notebook, cuda
from tests.client.scripted_broker import ScriptedBroker, attached
from tests.client.test_frameworks import FOLDER, OURS
from tests.client.test_session import in_thread

__all__ = ["cuda"]
New = Callable[[], Session]

TORCH = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.19 GiB of which 70.31 GiB is free. "
    "Process 1 has 5.90 GiB memory in use. 6.00 GiB allowed; Of the allocated memory 5.40 GiB is allocated by PyTorch, "
    "and 10.00 MiB is reserved by PyTorch but unallocated."
)
CUPY = "Out of memory allocating 3,000,000,000 bytes (allocated so far: 1,000,000,000 bytes, limit set to: 2,000,000,000 bytes)."  # fmt: skip
JAX = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 16000000000 bytes."


def error(name: str, module: str, text: str, base: type = RuntimeError) -> Any:
    """Return an error as a framework raises it."""
    return type(name, (base,), {"__module__": module})(text)


def gib(number: float) -> int:
    return int(number * GiB)


@pytest.mark.parametrize(
    ("problem", "meaning"),
    [
        (torch.OutOfMemoryError(TORCH), OutOfMemory("torch", 2 * GiB, gib(5.4))),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), OutOfMemory("torch", 0, 0)),
        (error("OutOfMemoryError", "cupy.cuda.memory", CUPY, MemoryError), OutOfMemory("cupy", 3 * 10**9, 10**9)),
        (error("XlaRuntimeError", "jaxlib.xla_extension", JAX), OutOfMemory("jax", 16 * 10**9, 0)),
        (error("JaxRuntimeError", "jax.errors", JAX.replace("16000000000 bytes", "14.90GiB")), OutOfMemory("jax", gib(14.9), 0)),
        (error("AcceleratorError", "torch", "CUDA error: out of memory"), OutOfMemory("torch", 0, 0)),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemory("torch", 0, 0)),
        (error("CUDARuntimeError", "cupy_backends.cuda.api.runtime", "cudaErrorMemoryAllocation: out of memory"), OutOfMemory("cupy", 0, 0)),
    ],
)  # fmt: skip
def test_out_of_memory_is_recognised(problem: BaseException, meaning: OutOfMemory) -> None:
    """Each framework's own error, with the numbers in its text."""
    assert recognise(problem) == meaning


@pytest.mark.parametrize(
    "problem",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        error("AcceleratorError", "torch", "CUDA error: an illegal memory access was encountered"),
        error("CUDARuntimeError", "cupy_backends.cuda.api.runtime", "cudaErrorIllegalAddress: an illegal memory access was encountered"),
        error("JaxRuntimeError", "jax.errors", "INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"),
        RuntimeError("CUDA error: unspecified launch failure"),
    ],
)  # fmt: skip
def test_a_broken_context_is_recognised(problem: BaseException) -> None:
    """What no CUDA call survives."""
    assert isinstance(recognise(problem), Broken)


@pytest.mark.parametrize(
    "problem",
    [
        ValueError("CUDA out of memory"),
        RuntimeError("CUDA error: invalid device ordinal"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        RuntimeError("misaligned address in my own parser"),
        error("JaxRuntimeError", "jax.errors", "INVALID_ARGUMENT: shapes"),
        MemoryError("the host's"),
        ZeroDivisionError("division by zero"),
        KeyboardInterrupt(),
    ],
)
def test_anything_else_is_not_ours(problem: BaseException) -> None:
    """Errors that leave the GPU as it is get no line."""
    assert recognise(problem) is None


def test_causes_count() -> None:
    """A library that wraps the error in its own still ran out of memory."""
    wrapped = ValueError("training failed")
    wrapped.__cause__ = torch.OutOfMemoryError(TORCH)
    assert isinstance(recognise(wrapped), OutOfMemory)


@pytest.mark.parametrize("length", [1, 2])
def test_causes_in_a_circle_end(length: int) -> None:
    """`raise e from e` is its own cause: looked at once, and what is wrapped in a circle is still found."""
    errors: list[BaseException] = [ValueError(str(n)) for n in range(length)]
    for one, cause in zip(errors, errors[1:] + errors[:1], strict=True):
        one.__cause__ = cause
    assert recognise(errors[0]) is None
    found = torch.OutOfMemoryError(TORCH)
    found.__cause__ = errors[0]
    errors[-1].__cause__ = found
    assert isinstance(recognise(errors[0]), OutOfMemory)


class Mute(RuntimeError):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise LookupError


def test_an_error_that_cannot_be_read() -> None:
    """It is none of ours, and what it was caused by is still looked at."""
    problem = Mute()
    assert recognise(problem) is None
    problem.__cause__ = torch.OutOfMemoryError(TORCH)
    assert isinstance(recognise(problem), OutOfMemory)


@pytest.fixture
def notebook(cuda: FakeCuda, new_session: New, broker: ScriptedBroker) -> Notebook:
    """A notebook that may use 6 GiB."""
    return Notebook(new_session(), broker, attached("cuda", 78 * GiB, limit=6 * GiB))


class Tensor:
    """Memory that comes back when nobody holds it."""

    def __init__(self, cuda: FakeCuda, size: int) -> None:
        cuda.use(size)
        weakref.finalize(self, cuda.free_some, size)


def fail(cuda: FakeCuda) -> BaseException:
    """Run out of memory with 5.1 GiB in the frames of the error; returns it as a notebook keeps it."""

    def forward() -> None:
        activations = Tensor(cuda, gib(5.1))
        raise torch.OutOfMemoryError(TORCH) from ValueError(str(activations))

    with pytest.raises(torch.OutOfMemoryError) as caught:
        forward()
    shown = caught.value.__traceback__.tb_next  # type: ignore[union-attr]
    assert shown is not None
    assert "activations" in shown.tb_frame.f_locals  # as whoever shows a traceback looks at it
    return caught.value


def test_memory_in_the_frames_comes_back(notebook: Notebook, cuda: FakeCuda) -> None:
    """After the line is shown the memory is the device's again although the notebook keeps the error."""
    kept = fail(cuda)
    line = recover(notebook.session, kept)
    assert line == (
        "GPU memory: this notebook may use 6.0 GiB and needed about 7.4. 5.1 GiB came back. "
        "Put this on the first line and run again: %%gpulane 9GiB"
    )
    assert (cuda.in_use, cuda.cached) == (0, 0)
    assert kept.__traceback__ is not None


@pytest.mark.parametrize("way", ["environment", "argument"])
def test_frames_are_kept_for_debugging(notebook: Notebook, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, way: str) -> None:  # fmt: skip
    """%debug sees the frames where the user asked for that; the memory is still taken."""
    if way == "environment":
        monkeypatch.setenv(aftermath.KEEP_FRAMES, "1")
    kept = fail(cuda)
    line = recover(notebook.session, kept, keep_frames=way == "argument")
    assert line is not None
    assert "came back" not in line
    assert cuda.in_use == gib(5.1)
    frame = kept.__traceback__.tb_next.tb_frame  # type: ignore[union-attr]
    assert "activations" in frame.f_locals


def test_frames_of_causes_and_groups(cuda: FakeCuda) -> None:
    """An error raised while another was handled, and errors in a group, hold memory too."""
    inner = fail(cuda)
    outer = ExceptionGroup("several", [ValueError("one"), inner])  # type: ignore[list-item]
    outer.__context__ = outer
    aftermath.clear_frames(outer)
    assert cuda.in_use == 0


def test_more_than_there_is(notebook: Notebook, cuda: FakeCuda) -> None:
    """Where no size would do, none is proposed."""
    cuda.use(GiB)
    line = recover(notebook.session, torch.OutOfMemoryError(TORCH.replace("2.00 GiB", "90.00 GiB")))
    assert line is not None
    assert line.endswith("That is more than there is: run again with a smaller batch.")


@pytest.mark.parametrize(
    ("reserve", "asked", "size"),
    [
        (0, 71, "78GiB"),  # 76.4 and 15 % would be 88
        (gib(0.5), 71.5, "77GiB"),
        (gib(0.5), 72, "79360MiB"),  # 77.4 of 77.5
        (gib(0.5), 72.7, ""),
    ],
)
def test_no_size_is_proposed_that_can_never_fit(notebook: Notebook, reserve: int, asked: float, size: str) -> None:  # fmt: skip
    """Of the device a context takes its part: what is left is the most that can be declared."""
    notebook.gpu.reserve = reserve
    line = recover(notebook.session, torch.OutOfMemoryError(TORCH.replace("2.00 GiB", f"{asked} GiB")))  # fmt: skip
    assert line is not None
    assert line.endswith(f"again: %%gpulane {size}" if size else "again with a smaller batch.")


def others(name: str, p: int | None, *, own: bool) -> SessionView:
    """A session that another one's notebook, or ours, is."""
    return SessionView(name, "ann", None, None, "busy", None, p, 0.0, own=own, jobs=(f"job-{name}",))  # fmt: skip


def test_a_full_device_names_the_others(cuda: FakeCuda, new_session: New, broker: ScriptedBroker) -> None:  # fmt: skip
    """Where no cap of ours was in the way, others hold the memory: all but what the broker counts for this notebook."""
    notebook = Notebook(new_session(), broker, attached("cuda", 78 * GiB, reserve=gib(0.5)))
    cuda.use(gib(5.4))
    lanes = (LaneView(1, gib(2.9), "job-s1", ("job-s1",)), LaneView(2, GiB, "job-s2", ("job-s2",)))
    device = DeviceView("cuda0", "cuda", "GPU", 78 * GiB, 0, 0, lanes, free=gib(0.6))
    sessions = others("s1", 4 * GiB, own=True), others("s2", 69 * GiB, own=True)

    def answer() -> None:
        number, _ = notebook.peer.expect(GetSnapshot)
        view = Snapshot(1, None, devices=(device,), sessions=sessions)
        notebook.peer.reply(number, SnapshotReply(view))

    answered = in_thread(answer)
    line = recover(notebook.session, torch.OutOfMemoryError(TORCH))
    answered.result(20)
    assert line == (
        "GPU memory: this notebook needed about 7.4 GiB, and there is no room for that now. Others hold 70.0 GiB. "
        "Put this on the first line and run again: %%gpulane 9GiB"
    )


ASSERT = "CUDA error: device-side assert triggered"


def test_a_broken_session_is_left_alone(notebook: Notebook, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A lost context says so again when it is asked; that is said, and no call is made into it any more, whatever fails later."""
    cuda.use(GiB)
    cuda.calls.clear()
    asked: list[object] = []

    def lost(device: object = None) -> None:
        asked.append(device)
        raise RuntimeError(ASSERT)

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    for _ in range(2):
        assert recover(notebook.session, RuntimeError(ASSERT)) == texts.BROKEN_SESSION
        assert notebook.gpu.broken
    notebook.budget(MiB)
    notebook.session.cell_ended(1)
    assert (cuda.calls, asked) == ([], [0])


@pytest.mark.parametrize("up", [True, False])
def test_a_workers_error_is_not_our_own(notebook: Notebook, cuda: FakeCuda, *, up: bool) -> None:
    """What a DataLoader's worker ran into is raised again here; our context answers, or there is none: nothing is said, nothing is given up."""
    if up:
        cuda.use(GiB)
        cuda.calls.clear()
    problem = RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\n{ASSERT}")
    assert recover(notebook.session, problem) is None
    assert not notebook.gpu.broken
    assert cuda.calls == (["synchronize"] if up else [])
    cuda.use(GiB)
    assert notebook.gpu.memory.now() == (2 if up else 1) * GiB


def test_another_failure_of_the_question_says_nothing(notebook: Notebook, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Waiting for the device may fail for other reasons (a graph is being captured): the context is not lost for that."""
    cuda.use(GiB)

    def capturing(_device: object = None) -> None:
        msg = "CUDA error: operation not permitted when stream is capturing"
        raise RuntimeError(msg)

    monkeypatch.setattr(torch.cuda, "synchronize", capturing)
    assert recover(notebook.session, RuntimeError(ASSERT)) is None
    assert not notebook.gpu.broken


@pytest.fixture
def jax(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The JAX of a few lines, in use."""
    monkeypatch.syspath_prepend(str(FOLDER))
    module: Any = import_module("jax")
    module.local_devices()
    yield module
    for name in [n for n in sys.modules if n.partition(".")[0] in OURS]:
        del sys.modules[name]


def test_jax_is_told_to_restart(notebook: Notebook, jax: Any) -> None:
    """Its limit is fixed: the line names what is remembered for the next start."""
    jax.stats.update(peak_pool_bytes=gib(2), bytes_limit=6 * GiB)
    line = recover(notebook.session, error("JaxRuntimeError", "jax.errors", JAX))
    assert line == (
        "GPU memory: this notebook may use 6.0 GiB and needed about 16.9. JAX takes its limit when the kernel starts. "
        "Run this, then restart the kernel: %gpushare memory 20GiB"
    )


def test_jax_alone_is_believed(notebook: Notebook, jax: Any) -> None:
    """It has no call that waits for its device: its error is all there is to go by."""
    assert notebook.gpu.memory.in_use()
    problem = error(
        "JaxRuntimeError",
        "jax.errors",
        "INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered",
    )
    assert recover(notebook.session, problem) == texts.BROKEN_SESSION
    assert notebook.gpu.broken


def test_workers_are_let_in_where_yama_asks(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only with ptrace_scope 1 is anybody named as a tracer: 0 needs none, 2 and 3 permit none."""
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(ptracer, "_prctl", lambda option, who, *_: calls.append((option, who.value)) or 0)  # fmt: skip
    scope = tmp_path / "ptrace_scope"
    assert not ptracer.let_workers_in(scope)
    for value in "023":
        scope.write_text(f"{value}\n")
        assert not ptracer.let_workers_in(scope)
    assert calls == []
    scope.write_text("1\n")
    assert ptracer.let_workers_in(scope)
    assert calls == [(0x59616D61, 2**64 - 1)]
