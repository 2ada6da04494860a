"""Cells on a GPU: how a plain one begins, is held and ends, and what a failed one says last."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import pytest
from gpushare_magics import holding
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

from gpushare_kernel.client import aftermath, api
from gpushare_kernel.core.values import GiB, Wait, WaitReason
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import (
    Attached,
    Budget,
    Cancel,
    CellEnded,
    CellStarted,
    End,
    Failure,
    Ok,
    Release,
    SetNeeds,
    Submit,
    ToBroker,
    Trim,
    Waiting,
)
from tests.client.scripted_broker import Peer, ScriptedBroker, attached, report
from tests.client.test_frameworks import FOLDER, OURS
from tests.magics.conftest import Kernel, text_of
from tests.magics.test_shell import Capture, play, said, settle

Run = Callable[..., ExecutionResult]
ROOM = Wait(WaitReason.MEMORY, needs=GiB, free=2**28, ahead=2)


def play_gpu(peer: Peer, frame: ToBroker) -> None:
    """Admit all, and remember what a notebook needs."""
    if isinstance(frame.body, SetNeeds):
        peer.reply(frame.id, Ok())
    else:
        play(peer, frame)


@pytest.fixture
def gpu(
    monkeypatch: pytest.MonkeyPatch, broker: ScriptedBroker, kernel_environment: dict[str, str]
) -> ScriptedBroker:
    """A session on a GPU, and a broker that admits all."""
    for name, value in kernel_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GPUSHARE_ADAPTERS", "cupy,jax")
    broker.serve(play_gpu, kind="cuda", capacity=80 * GiB, limit=6 * GiB)
    return broker


@pytest.fixture
def run(gpu: ScriptedBroker, shell: InteractiveShell) -> Run:
    """Run cells in a shell of ours."""
    shell.run_line_magic("load_ext", "gpushare_magics")
    assert api._session is not None
    api._session.wait_attached(20)
    return shell.run_cell


@pytest.fixture
def cupy(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The CuPy of a few lines, imported by the notebook."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield import_module("cupy")
    for name in [n for n in sys.modules if n.partition(".")[0] in OURS]:
        del sys.modules[name]


# --- Plain cells ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "result"),
    [
        ("40 + 2", 42),
        ("x = 41\nx + 1", 42),
        ("import asyncio\nawait asyncio.sleep(0)\n42", 42),
        ("from __future__ import annotations\n42", 42),
        ("'''a docstring'''\n42", 42),
        ("%time 42", 42),
        ("if True:\n    None", None),
    ],
)
def test_a_plain_cell_is_as_it_was(
    run: Run, gpu: ScriptedBroker, cell: str, result: object
) -> None:
    """Our statement in front changes neither the result nor what is told."""
    ran = run(cell)
    assert (ran.success, ran.result) == (True, result)
    assert said(gpu) == ["CellStarted", "CellEnded"]


def test_line_numbers_stay(run: Run, gpu: ScriptedBroker, capsys: Capture) -> None:
    """An error points at the user's own line, without a frame of ours."""
    run("# above\n\ndef f():\n    return 1/0\nf()")
    shown = capsys.readouterr().out
    assert "line 4, in f()" in shown
    assert "line 5" in shown
    assert "gpushare" not in shown


def test_timeit_times_the_users_code_only(run: Run, gpu: ScriptedBroker, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:  # fmt: skip
    """`%timeit` hands in trees of its own: nothing of ours is in them."""
    import gpushare_magics

    begun: list[int] = []
    monkeypatch.setattr(gpushare_magics, "begin", lambda: begun.append(1))
    assert run("%timeit -n 50 -r 2 pass").success
    assert len(begun) == 1


@pytest.mark.parametrize("cell", ["x =", "%%gpulane 1GiB\nx =", "   ", "# nothing"])
def test_what_never_begins_never_ends(
    run: Run, gpu: ScriptedBroker, capsys: Capture, cell: str
) -> None:
    """A cell that is no Python, or empty, is none to the broker."""
    run(cell)
    assert said(gpu) == []
    run("1")
    assert said(gpu) == ["CellStarted", "CellEnded"]


def test_nested_cells_are_one(run: Run, gpu: ScriptedBroker) -> None:
    """A cell that runs cells begins once."""
    run("get_ipython().run_cell('y = 1'); get_ipython().run_cell('z = 2')")
    assert said(gpu) == ["CellStarted", "CellEnded"]


def test_interrupt_in_our_statement_stops_the_cell(run: Run, gpu: ScriptedBroker, shell: InteractiveShell, capsys: Capture) -> None:  # fmt: skip
    """Giving memory back may take a while: an interrupt there is the cell's."""
    assert api._session is not None
    assert api._session.gpu is not None

    gpu_side = api._session.gpu

    def interrupted() -> None:
        del gpu_side.cell_event
        raise KeyboardInterrupt

    gpu_side.cell_event = interrupted  # type: ignore[method-assign]
    result = run("ran = True")
    assert isinstance(result.error_in_exec, KeyboardInterrupt)
    assert "ran" not in shell.user_ns
    shown = capsys.readouterr().out
    assert "gpushare_magics" not in shown
    assert "cells.py" not in shown


def test_budget_is_applied_when_a_cell_begins(run: Run, gpu: ScriptedBroker, cupy: Any) -> None:
    """A budget that came between two cells holds for the second."""
    run("import cupy; kept = cupy.empty(1000)")
    pool = cupy.get_default_memory_pool()
    assert pool.limit == 6 * GiB
    (peer,) = gpu._peers
    peer.notice(Budget(2 * GiB))
    settle()
    run("limit = cupy.get_default_memory_pool().limit")
    assert InteractiveShell.instance().user_ns["limit"] == 2 * GiB


def test_first_use_in_a_cell(run: Run, gpu: ScriptedBroker, cupy: Any) -> None:
    """The first cell that uses the GPU is a job while it runs, later ones are seen by the broker."""
    run("import cupy; kept = cupy.empty(1000)")
    run("more = cupy.empty(1000)")
    assert said(gpu) == ["CellStarted", "Submit", "End", "CellEnded", "CellStarted", "CellEnded"]
    (asked,) = [m for m in gpu.seen if isinstance(m, Submit)]
    assert asked.plain
    assert asked.name == "hw1.ipynb"


@pytest.mark.parametrize("cell", ["somebody_wants()", "%%gpulane 1GiB\nsomebody_wants()"])
def test_an_interrupt_as_memory_is_given_back(run: Run, gpu: ScriptedBroker, cupy: Any, capsys: Capture, cell: str) -> None:  # fmt: skip
    """The cell is over: nothing of the user's is stopped, nothing is shown, and the broker does not take it for running."""
    run("import cupy; kept = cupy.empty(1000)")
    (peer,) = gpu._peers
    runtime = cupy.cuda.runtime
    original = runtime.deviceSynchronize
    interrupts: list[int] = []

    def interrupted() -> None:
        runtime.deviceSynchronize = original
        interrupts.append(1)
        raise KeyboardInterrupt

    def somebody_wants() -> None:
        peer.notice(Trim())
        settle()
        runtime.deviceSynchronize = interrupted

    InteractiveShell.instance().user_ns["somebody_wants"] = somebody_wants
    before = len(said(gpu))
    capsys.readouterr()
    try:
        assert run(cell).success
    finally:
        runtime.deviceSynchronize = original
    over = ["Submit", "End"] if "lane" in cell else ["CellStarted", "CellEnded"]
    assert (said(gpu)[before:], interrupts) == (over, [1])
    out, err = capsys.readouterr()
    assert "Error in callback" not in out + err
    assert "Traceback" not in out + err


# --- Declared cells -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switch", "cell", "cooperative"),
    [
        ("torch", "import torch\n1", True),
        ("torch", "1", False),
        ("off", "import torch\n1", False),
        ("off", "import gpushare_kernel as gpushare\ngpushare.step()", True),
        ("off", "import gpushare_kernel\ngpushare_kernel.current_lane().step()", True),
    ],
)
def test_who_meets_boundaries(  # noqa: PLR0917 - fixtures and cases
    gpu: ScriptedBroker, shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, switch: str, cell: str, cooperative: bool
) -> None:  # fmt: skip
    """A declared cell is cooperative where its framework, or its own text, meets boundaries."""
    monkeypatch.setenv("GPUSHARE_ADAPTERS", switch)
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it takes seconds, and fails here
    shell.run_line_magic("load_ext", "gpushare_magics")
    shell.run_cell(f"%%gpulane 1GiB\n{cell}")
    settle()
    (asked,) = [m for m in gpu.seen if isinstance(m, Submit)]
    assert asked.cooperative is cooperative


# --- Failed cells ------------------------------------------------------------------------------------------------

TOO_MUCH = "import cupy\ndef f():\n    big = cupy.empty(5 * 2**30)\n    cupy.empty(2 * 2**30)\nf()"


@pytest.mark.parametrize("magic", ["", "%%gpulane 6GiB\n"])
def test_out_of_memory_is_the_last_line(run: Run, gpu: ScriptedBroker, cupy: Any, capsys: Capture, magic: str) -> None:  # fmt: skip
    """The framework's error, then ours as the last line; what the error kept is back before the job ends."""
    run(magic + TOO_MUCH)
    shown = capsys.readouterr().out.splitlines()
    assert any("OutOfMemoryError: Out of memory allocating 2,147,483,648 bytes" in line for line in shown)  # fmt: skip
    assert shown[-1] == (
        "GPU memory: this notebook may use 6.0 GiB and needed about 7.0. 5.0 GiB came back. "
        "Put this on the first line and run again: %%gpulane 9GiB"
    )
    assert not [line for line in shown if line.startswith("used")]
    settle()
    (end,) = [m for m in gpu.seen if isinstance(m, End)]
    assert end.persistent == 0
    assert run("cupy.empty(5 * 2**30)").success


def test_debug_keeps_the_frames(run: Run, gpu: ScriptedBroker, cupy: Any, capsys: Capture) -> None:
    """After `%gpushare debug on` a failed cell can be looked into, and its memory stays taken."""
    run("%gpushare debug on")
    assert capsys.readouterr().out == f"{texts.FRAMES_KEPT}\n"
    run(TOO_MUCH)
    assert cupy.get_default_memory_pool().used == 5 * GiB
    run("%gpushare debug off")
    assert capsys.readouterr().out.splitlines()[-1] == texts.FRAMES_CLEARED
    run(TOO_MUCH)
    assert cupy.get_default_memory_pool().used == 0
    assert not run("%gpushare debug").success


def test_a_broken_session_says_so(run: Run, gpu: ScriptedBroker, capsys: Capture) -> None:
    """After an illegal access nothing works in this kernel: one line says what to do."""
    run("raise RuntimeError('CUDA error: an illegal memory access was encountered')")
    assert capsys.readouterr().out.splitlines()[-1] == texts.BROKEN_SESSION


def test_other_errors_get_no_line(run: Run, gpu: ScriptedBroker, capsys: Capture) -> None:
    """An ordinary error is the user's alone."""
    run("1/0")
    assert capsys.readouterr().out.splitlines()[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    "body",
    [
        "error = ValueError('round')\nraise error from error",
        "class Mute(RuntimeError):\n    def __str__(self):\n        raise LookupError\nraise Mute",
    ],
)
def test_odd_errors_leave_the_lane(run: Run, gpu: ScriptedBroker, capsys: Capture, body: str) -> None:  # fmt: skip
    """An error that is its own cause, or cannot be read, ends its cell like any other: the lane is left."""
    assert not run(f"%%gpulane 1GiB\n{body}").success
    assert said(gpu) == ["Submit", "End"]
    assert run("1 + 1").success


@pytest.mark.parametrize("problem", [ZeroDivisionError, KeyboardInterrupt])
def test_a_failed_recovery_leaves_the_lane(run: Run, gpu: ScriptedBroker, capsys: Capture, monkeypatch: pytest.MonkeyPatch, problem: type[BaseException]) -> None:  # fmt: skip
    """Whatever goes wrong or is interrupted while memory is given back, the lane is left."""

    def fails(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr(aftermath, "recover", fails)
    run("%%gpulane 1GiB\n1/0")
    assert said(gpu) == ["Submit", "End"]
    assert not api.current_lane()


def test_off_is_silent_and_gives_back(
    run: Run, gpu: ScriptedBroker, cupy: Any, capsys: Capture
) -> None:
    """After `%gpushare off` memory still comes back, without a word."""
    run("%gpushare off")
    run(TOO_MUCH)
    assert "GPU memory:" not in capsys.readouterr().out
    assert cupy.get_default_memory_pool().used == 0


# --- %gpushare release, %gpushare memory ------------------------------------------------------------------------------------------------


def test_release_gives_the_pool_back(run: Run, gpu: ScriptedBroker, cupy: Any) -> None:
    """`del`, then `%gpushare release`: the pool is empty before the broker is asked."""
    run("import cupy; kept = cupy.empty(1000); gone = cupy.empty(5000); del gone")
    run("%gpushare release")
    assert [m for m in gpu.seen if isinstance(m, Release)] == [Release(None, 5000)]
    assert cupy.get_default_memory_pool().total_bytes() == 1000


@pytest.mark.parametrize("command", ["memory 20GiB", "release"])
def test_commands_wait_until_the_broker_has_answered(
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    broker: ScriptedBroker,
    kernel_environment: dict[str, str],
    shell: InteractiveShell,
) -> None:
    """A kernel that has just started does not know yet that it has a GPU: it asks before it says that it has none."""
    for name, value in kernel_environment.items():
        monkeypatch.setenv(name, value)
    shell.run_line_magic("load_ext", "gpushare_magics")
    session = api._session
    assert session is not None
    original = session.wait_attached

    def answer_now(timeout: float = 20) -> Attached:
        monkeypatch.setattr(session, "wait_attached", original)
        broker.serve(play_gpu, kind="cuda", capacity=80 * GiB)
        return original(timeout)

    monkeypatch.setattr(session, "wait_attached", answer_now)
    assert shell.run_cell(f"%gpushare {command}").success
    asked = [m for m in broker.seen if isinstance(m, SetNeeds | Release)]
    assert asked == [SetNeeds(20 * GiB) if "memory" in command else Release(None, 0)]


def test_memory_for_the_next_start(run: Run, gpu: ScriptedBroker, capsys: Capture) -> None:
    """A size is remembered by the broker; `default` forgets it; nonsense says what to write."""
    run("%gpushare memory 20GiB")
    assert capsys.readouterr().out == f"{texts.restart_memory_text(20 * GiB)}\n"
    run("%gpushare memory 50%")
    run("%gpushare memory default")
    assert capsys.readouterr().out.splitlines()[-1] == texts.RESTART_DEFAULT
    assert [m.needs for m in gpu.seen if isinstance(m, SetNeeds)] == [20 * GiB, 40 * GiB, 0]
    assert not run("%gpushare memory 20").success
    assert "has no unit" in capsys.readouterr().out


def test_what_holds_gpu_memory(
    run: Run, cupy: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By variable, with what pins it; the rest has no name, or is unused; the pool is asked, CUDA is not."""
    monkeypatch.setattr(holding, "find", partial(holding.find, seconds=60.0))  # on a busy machine
    run("import cupy; MiB = 2**20; model = [cupy.empty(2048 * MiB)]; part = model[0].view()")
    run("lost = cupy.empty(3072 * MiB); hidden = lost._data.mem; del lost")
    run("gone = cupy.empty(512 * MiB); del gone")
    run("def too_much():\n    batch = cupy.empty(256 * MiB)\n    raise ValueError\ntoo_much()")
    cupy.get_default_memory_pool().calls.clear()
    capsys.readouterr()
    run("%gpushare memory")
    assert capsys.readouterr().out.splitlines() == [
        "GPU memory of this notebook: 5.5 GiB, its context apart",
        "part 2.0 GiB (also model) · traceback of cell 1 256 MiB [free] · no name 3.0 · unused 256 MiB [%gpushare release]",
        "[free]: %gpushare memory --free lets go of it.",
    ]
    calls = cupy.get_default_memory_pool().calls
    assert [call for call in calls if not call.startswith("set_limit")] == [], (
        "nothing was freed, nobody waited"
    )
    run("%gpushare memory --free")
    assert capsys.readouterr().out == (
        "512 MiB of GPU memory came back. The frames of the last error are cleared: %debug finds no variables in them.\n"
    )
    run("%gpushare memory")
    assert capsys.readouterr().out.splitlines()[1:] == ["part 2.0 GiB (also model) · no name 3.0"]


def test_a_broken_gpu_is_not_asked(run: Run, cupy: Any, capsys: Capture) -> None:
    """One sentence says what to do."""
    run("import cupy; x = cupy.empty(2**30)")
    session = api._session
    assert session is not None
    assert session.gpu is not None
    session.gpu.broken = True
    run("%gpushare memory")
    assert capsys.readouterr().out == f"{texts.BROKEN_SESSION}\n"


# --- In real kernels ---------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_kernel(
    kernel_environment: dict[str, str],
    new_kernel: Callable[[dict[str, str]], Kernel],
    broker: ScriptedBroker,
) -> tuple[Kernel, Peer]:
    """A real kernel on a GPU, with the CuPy of a few lines, and its connection."""
    kernel = new_kernel({**kernel_environment, "GPUSHARE_ADAPTERS": "cupy"})
    peer = broker.accept(attached("cuda", 80 * GiB))
    # The first cell may begin before the kernel is attached, and is then none to the broker.
    assert kernel.run("from gpushare_kernel.client import api; _ = api.get_session().wait_attached(20)") == []  # fmt: skip
    assert kernel.run(f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import cupy") == []
    while peer.next().body != CellEnded(2, 0):  # type: ignore[union-attr]
        pass
    return kernel, peer


@pytest.mark.parametrize("before", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
def test_interrupt_at_the_first_use(gpu_kernel: tuple[Kernel, Peer], before: str) -> None:
    """The interrupt button ends the cell in the queue with one line; nothing was allocated, and the kernel lives on."""
    kernel, peer = gpu_kernel
    message = kernel.start(f"{before}print('before')\ncupy.empty(10)\nprint('after')")
    peer.expect(CellStarted)
    number, asked = peer.expect(Submit)
    peer.notice(Waiting(asked.job, ROOM))
    shown: list[str] = []
    for out in kernel.outputs(message):
        shown += text_of(out)
        if shown and shown[-1].startswith("Waiting for GPU memory: this notebook's first use"):
            kernel.manager.interrupt_kernel()
            shown.append("interrupted")
    peer.expect(Cancel)
    peer.reply(number, Failure("Cancelled", "left the queue"))
    peer.expect(CellEnded)
    assert shown[0] == "before"
    assert shown[-1] == f"gpushare: {texts.LEFT_FIRST_USE}"
    assert "after" not in shown
    assert not [line for line in shown if "Traceback" in line]
    assert kernel.run("cupy.get_default_memory_pool().used") == ["0"]


def test_out_of_memory_in_a_real_kernel(gpu_kernel: tuple[Kernel, Peer]) -> None:
    """Front ends get the error first and our line last; the same cell works with less, without a restart."""
    kernel, peer = gpu_kernel

    def oblige() -> None:
        while (frame := peer.next()) is not None:
            if isinstance(frame.body, Submit):
                peer.grant(frame.id, frame.body)
            elif isinstance(frame.body, End):
                peer.reply(frame.id, report(frame.body.job))

    threading.Thread(target=oblige, daemon=True).start()
    peer.notice(Budget(6 * GiB))
    outputs = list(kernel.outputs(kernel.start(TOO_MUCH)))
    kinds = [out["msg_type"] for out in outputs]
    assert kinds.index("error") < len(kinds) - 1
    assert text_of(outputs[-1])[0].startswith("GPU memory: this notebook may use 6.0 GiB and needed about 7.0. 5.0 GiB came back.")  # fmt: skip
    assert kernel.run(TOO_MUCH.replace("5 *", "3 *") + "\nprint('fits')") == ["fits"]


def test_an_idle_kernel_applies_its_budget(gpu_kernel: tuple[Kernel, Peer]) -> None:
    """Between cells the limit is set on the kernel's main thread, at once."""
    kernel, peer = gpu_kernel
    admitted = threading.Thread(target=lambda: (peer.expect(CellStarted), peer.grant(*peer.expect(Submit))))  # fmt: skip
    admitted.start()
    kernel.run(
        "import threading\nkept = cupy.empty(10); pool = cupy.get_default_memory_pool(); seen = []; done = threading.Event()\n"
        "pool.set_limit = lambda size: (seen.append((size, threading.current_thread() is threading.main_thread())), done.set())"
    )
    admitted.join(20)
    peer.notice(Budget(2 * GiB))
    # A cell blocks the main thread, so this waits for the budget only if it has not come before.
    for _ in range(200):
        if kernel.run("import asyncio\nawait asyncio.sleep(0.01)\ndone.is_set()") == ["True"]:
            break
    assert kernel.run("seen[0]") == [f"({2 * GiB}, True)"]


def test_modules_of_a_gpu_kernel(gpu_kernel: tuple[Kernel, Peer]) -> None:
    """Being on a GPU imports no framework by itself."""
    kernel, _ = gpu_kernel
    assert kernel.run("print(*sorted({'torch', 'jax', 'numpy', 'tensorflow'} & set(sys.modules)))") == [""]  # fmt: skip
