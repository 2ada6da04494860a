"""Budgets: when they are applied, what goes back, and what torch says is free."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from gpushare_kernel.client.lanes import Lane
from gpushare_kernel.core.values import GiB, MiB
from gpushare_kernel.wire import framework_texts
from gpushare_kernel.wire.messages import Budget, End, Release, ReleasedNow, Submit, Trim
from tests.client.fake_cuda import FakeCuda, torch
from tests.client.gpu_notebook import (
    New,
    Notebook,
    cuda,
    infer,
    notebook,
)
from tests.client.scripted_broker import ScriptedBroker, attached, report
from tests.client.test_session import in_thread, submit

__all__ = ["cuda", "notebook"]


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


def test_a_limit_of_the_users_own_is_kept_to(notebook: Notebook, cuda: FakeCuda) -> None:
    """The smaller of the two holds, whichever came first, and what the user set last is there when ours is lifted."""

    def capped(limit: int | None) -> float | None:
        notebook.budget(limit)
        infer(1)
        return cuda.cap

    cuda.use(GiB)
    torch.cuda.set_per_process_memory_fraction(0.25)
    assert capped(40 * GiB) == 20.0
    assert capped(10 * GiB + 1) == 10.0
    assert capped(None) == 20.0
    assert capped(30 * GiB) == 20.0
    torch.cuda.set_per_process_memory_fraction(0.75)
    assert capped(31 * GiB) == 31.0
    assert capped(70 * GiB) == 60.0
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert capped(70 * GiB) == 70.0
    assert capped(None) == 80.0


def test_a_torch_that_does_not_tell_its_limit_is_capped(notebook: Notebook, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Older ones cannot be asked what the user set: ours is set and lifted."""
    monkeypatch.delattr(torch.cuda, "get_per_process_memory_fraction")
    cuda.use(GiB)
    for limit, cap in ((40 * GiB, 40.0), (None, 80.0)):
        notebook.budget(limit)
        infer(1)
        assert cuda.cap == cap


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
    assert notebook.shown.count(framework_texts.uncapped_text("RuntimeError: pluggable")) == 1


def test_a_cap_that_is_interrupted_is_due_still(notebook: Notebook, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Else a cap that was to be lifted would stay until the broker says something else."""
    cuda.use(GiB)
    notebook.budget(2 * GiB)
    infer(1)
    notebook.budget(None)
    with monkeypatch.context() as once:

        def interrupted(_fraction: float, _device: object) -> None:
            once.undo()
            raise KeyboardInterrupt

        once.setattr(torch.cuda, "set_per_process_memory_fraction", interrupted)
        with pytest.raises(KeyboardInterrupt):
            notebook.session.boundary()
    assert cuda.cap == 2.0
    notebook.session.cell_started(1)
    notebook.session.cell_ended(1)
    assert cuda.cap == 80.0


def test_mem_get_info(notebook: Notebook, cuda: FakeCuda) -> None:
    """Libraries that size themselves see what this notebook may take: real numbers until it is capped."""
    assert torch.cuda.mem_get_info() == (70 * GiB, 80 * GiB)
    cuda.use(2 * GiB)
    notebook.budget(6 * GiB)
    assert torch.cuda.mem_get_info() == (4 * GiB, 6 * GiB + 600 * MiB)
    assert torch.cuda.memory.mem_get_info(0) == (4 * GiB, 6 * GiB + 600 * MiB)
    cuda.free = GiB
    assert torch.cuda.mem_get_info()[0] == GiB


def test_a_trim_waits_for_the_main_thread(notebook: Notebook, cuda: FakeCuda) -> None:
    """What somebody waits for goes back while the kernel is idle, once, on the notebook's own thread."""
    cuda.use(3 * GiB)
    cuda.free_some(2 * GiB)
    cuda.calls.clear()
    later: list[Callable[[], None]] = []
    notebook.session.when_idle = later.append
    notebook.hear(Trim())
    assert (len(later), cuda.calls) == (1, [])
    later[0]()
    later[0]()
    assert cuda.calls == ["synchronize", "empty_cache"]
    assert (cuda.in_use, cuda.cached) == (GiB, 0)
    assert set(cuda.threads) == {threading.get_ident()}


def test_a_trim_is_not_for_a_running_cell(notebook: Notebook, cuda: FakeCuda) -> None:
    """No boundary empties a pool that is in use: it is done when the cell is over."""
    cuda.use(3 * GiB)
    cuda.free_some(2 * GiB)
    notebook.session.cell_started(1)
    cuda.calls.clear()
    notebook.hear(Trim())
    infer(1)
    assert "empty_cache" not in cuda.calls
    notebook.session.cell_ended(1)
    assert cuda.calls.count("empty_cache") == 1


def test_a_program_trims_at_its_boundary(notebook: Notebook, cuda: FakeCuda) -> None:
    """Where no front end says when it is idle and no cell runs, a loop gives back between two rounds, once."""
    cuda.use(3 * GiB)
    cuda.free_some(2 * GiB)
    cuda.calls.clear()
    notebook.hear(Trim())
    assert cuda.calls == []
    infer(2)
    assert cuda.calls.count("empty_cache") == 1
    assert (cuda.in_use, cuda.cached) == (GiB, 0)


def test_a_capture_is_not_disturbed(notebook: Notebook, cuda: FakeCuda) -> None:
    """What is due waits until the CUDA graph is captured: to trim in it would spoil it."""
    cuda.use(3 * GiB)
    cuda.free_some(2 * GiB)
    cuda.calls.clear()
    notebook.budget(2 * GiB)
    notebook.hear(Trim())
    cuda.capturing = True
    infer(1)
    assert cuda.calls == []
    cuda.capturing = False
    infer(1)
    assert cuda.calls.count("empty_cache") == 2
    assert (cuda.cap, cuda.cached) == (2.0, 0)


def test_a_notebook_with_a_front_end_trims_at_no_boundary(notebook: Notebook, cuda: FakeCuda) -> None:  # fmt: skip
    """A declared cell is no plain one, and is not emptied in its middle either: the front end says when."""
    cuda.use(3 * GiB)
    cuda.free_some(2 * GiB)
    cuda.calls.clear()
    later: list[Callable[[], None]] = []
    notebook.session.when_idle = later.append
    notebook.hear(Trim())
    infer(1)
    assert (len(later), cuda.calls) == (1, [])


def test_release_of_its_own_trims_first(notebook: Notebook, cuda: FakeCuda) -> None:
    """The broker is asked after the pools are empty, and told how much that was; another notebook's are not ours."""
    cuda.use(3 * GiB)
    cuda.free_some(2 * GiB)

    def answer(expected: Release, cached: int) -> None:
        number, asked = notebook.peer.expect(Release)
        assert (asked, cuda.cached) == (expected, cached)
        notebook.peer.reply(number, ReleasedNow(0, ()))

    for name, expected, cached in (
        ("hw2", Release("hw2"), 2 * GiB),
        (None, Release(None, 2 * GiB), 0),
    ):
        answered = in_thread(lambda e=expected, c=cached: answer(e, c))  # type: ignore[misc]
        notebook.session.release(name)
        answered.result(20)
    assert cuda.in_use == GiB


def test_a_grant_caps_before_the_first_line_and_its_end_uncaps(
    notebook: Notebook, cuda: FakeCuda
) -> None:
    """The broker says what a job may hold right before it may run: no boundary is needed to hear of it."""
    cuda.use(GiB)
    notebook.budget(2 * GiB)
    infer(1)
    assert cuda.cap == 2.0

    def admit() -> None:
        number, asked = notebook.peer.expect(Submit)
        notebook.peer.notice(Budget(6 * GiB))
        notebook.peer.grant(number, asked)

    lane = Lane(notebook.session, submit())
    admitted = in_thread(admit)
    with lane:
        admitted.result(20)
        assert cuda.cap == 6.0

        def answer() -> None:
            number, end = notebook.peer.expect(End)
            notebook.peer.notice(Budget(None))
            notebook.peer.reply(number, report(end.job))

        ended = in_thread(answer)
    ended.result(20)
    assert cuda.cap == 80.0


def test_a_job_smaller_than_what_is_kept_unused_has_that_given_back_first(
    notebook: Notebook, cuda: FakeCuda
) -> None:
    """Else the broker would refuse it: the notebook would hold more already than it is to hold in all."""
    cuda.use(9 * GiB)
    cuda.free_some(8 * GiB)

    def admit() -> Submit:
        number, asked = notebook.peer.expect(Submit)
        notebook.peer.grant(number, asked)
        return asked

    lane = Lane(notebook.session, submit())
    admitted = in_thread(admit)
    lane.__enter__()
    assert admitted.result(20).held == GiB  # type: ignore[attr-defined]
    assert cuda.cached == 0
    notebook.leave(lane)
