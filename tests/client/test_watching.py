"""What a lane that runs is seen to do: its loops, and its memory as its boundaries say it; torch is real, its CUDA side played."""

from __future__ import annotations

import threading

import pytest
from msgspec.structs import replace

from gpushare_kernel.client.job import Loop
from gpushare_kernel.client.lanes import Lane
from gpushare_kernel.client.watching import Watch
from gpushare_kernel.core.values import GiB
from gpushare_kernel.wire.messages import Submit
from tests.client.fake_cuda import FakeCuda
from tests.client.gpu_notebook import Notebook, cuda, notebook
from tests.client.test_session import in_thread, submit

__all__ = ["cuda", "notebook"]


def entered(notebook: Notebook, **declared: int) -> Lane:
    """Enter a lane with these sizes."""
    lane = Lane(notebook.session, replace(submit(), **{"size": None, **declared}))

    def admit() -> None:
        number, asked = notebook.peer.expect(Submit)
        notebook.peer.grant(number, asked)

    admitted = in_thread(admit)
    lane.__enter__()
    admitted.result(20)
    return lane


@pytest.mark.parametrize(
    ("declared", "line"),
    [
        ({"persistent": 4 * GiB, "ephemeral": 2 * GiB}, "kept 2.0 of 4.0 GiB · iteration 1.0 of 2.0 GiB"),
        ({"size": 6 * GiB}, "holds 3.0 of 6.0 GiB"),
    ],
)  # fmt: skip
def test_memory_is_what_a_boundary_said(
    notebook: Notebook, cuda: FakeCuda, declared: dict[str, int], line: str
) -> None:
    """Nothing is claimed before the first boundary; frameworks are asked at one, on the user's thread, and only when somebody looks."""
    lane = entered(notebook, **declared)
    watch = Watch(lane, notebook.session)
    cuda.use(3 * GiB)
    cuda.free_some(GiB)
    cuda.threads.clear()
    assert in_thread(watch.text).result(20) == "Running"
    assert cuda.threads == []
    lane.step()
    asked = len(cuda.threads)
    assert set(cuda.threads) <= {threading.get_ident()}
    watch._measured = float("-inf")
    assert in_thread(watch.text).result(20) == f"Running · {line}"
    lane.step()
    lane.step()
    assert len(cuda.threads) - asked <= asked
    notebook.leave(lane)


def test_loops_inside_each_other(notebook: Notebook) -> None:
    """Each counts its own rounds; one that is left early is gone."""
    lane = entered(notebook, size=GiB)
    watch = Watch(lane, notebook.session)
    seen: list[list[tuple[int, int | None]]] = []
    for _ in lane.steps("ab"):
        for n in lane.steps(iter(range(9))):
            seen.append([rounds(loop) for loop in lane.loops])
            if n == 1:
                break
    assert seen == [
        [(0, 2), (0, None)],
        [(0, 2), (1, None)],
        [(1, 2), (0, None)],
        [(1, 2), (1, None)],
    ]
    assert lane.loops == ()
    assert watch.part is None
    for _ in lane.steps("abcd"):
        part = watch.part
    assert part == 0.75
    notebook.leave(lane)


def rounds(loop: Loop) -> tuple[int, int | None]:
    return loop.done, loop.total


class Unsure(list[int]):
    """Has a length and does not know it, as a loader of torch over a stream."""

    def __len__(self) -> int:
        msg = "no length"
        raise TypeError(msg)


def test_a_length_that_is_not_known(notebook: Notebook) -> None:
    """The loop runs, and counts."""
    lane = entered(notebook, size=GiB)
    assert [lane.loops[0].total for _ in lane.steps(Unsure([1]))] == [None]
    notebook.leave(lane)
