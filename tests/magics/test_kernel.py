"""The extension in real kernels, loaded by the startup file; the test plays the broker."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpushare_kernel.core.values import GiB, Holder, Wait, WaitReason
from gpushare_kernel.transport.words import TURN
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import (
    Announce,
    Cancel,
    CellEnded,
    CellStarted,
    End,
    Failure,
    Ok,
    Slowed,
    Submit,
    Waiting,
    Yield,
)
from tests.client.scripted_broker import ScriptedBroker, attached, report
from tests.magics.conftest import STARTUP, Kernel, text_of

New = Callable[[dict[str, str]], Kernel]
WAIT = Wait(
    WaitReason.MEMORY,
    needs=6 * GiB,
    free=2 * GiB,
    ahead=2,
    holders=(Holder("hw2.ipynb", 4 * GiB, 2400.0, own=True),),
)
LINE = (
    "Waiting for memory: needs 6.0 GiB, 2.0 free. Your own hw2.ipynb holds 4.0 GiB, idle 40 min: "
    "%gpushare release hw2. 2 ahead of you. Interrupt gives up your place."
)


def test_namespace_is_untouched(broker: ScriptedBroker, kernel: Kernel, new_kernel: New) -> None:
    """With our extension loaded `dir()` is what it is without, and no heavy module came in."""
    plain = new_kernel({"JPY_SESSION_NAME": "/home/ann/hw1.ipynb"})
    look = "print(sorted(dir()), __doc__)"
    assert kernel.run(look) == plain.run(look)
    heavy = "import sys; print(*sorted({'ipywidgets', 'anywidget', 'jupyter_client.manager', 'rich', 'torch'} & set(sys.modules)))"
    assert kernel.run(heavy) == plain.run(heavy)
    assert kernel.run("'gpushare_magics' in sys.modules") == ["True"]
    assert plain.run("'gpushare_magics' in sys.modules") == ["False"]


def test_whole_life_of_a_cell(broker: ScriptedBroker, kernel: Kernel) -> None:
    """A cell waits with one line that is replaced, runs with await, and ends with a line to paste."""
    peer = broker.accept()
    message = kernel.start("%%gpulane 6GiB\nimport asyncio\nawait asyncio.sleep(0)\n'done'")
    number, asked = peer.expect(Submit)
    peer.notice(Waiting(asked.job, WAIT))
    outputs = kernel.outputs(message)
    seen = []
    for out in outputs:
        seen.append(out)
        if text_of(out) == [LINE]:
            break
    peer.grant(number, asked)
    number, end = peer.expect(End)
    assert end.job == asked.job
    peer.reply(number, report(asked.job))
    seen += list(outputs)
    shown = [out for out in seen if out["msg_type"] in ("display_data", "update_display_data")]
    lines = [text_of(out)[0] for out in shown]
    assert lines[0] == LINE
    assert lines[1].startswith("Waited ")
    assert lines[2] == "used 5.2 GiB; next time: %%gpulane 6GiB"
    ids = [out["content"]["transient"].get("display_id") for out in shown]
    assert ids[0] == ids[1]
    assert ids[2] == ids[0]
    assert shown[1]["msg_type"] == "update_display_data"
    results = [text_of(out) for out in seen if out["msg_type"] == "execute_result"]
    assert results == [["'done'"]]


def test_waiting_line_is_calm(broker: ScriptedBroker, kernel: Kernel) -> None:
    """However fast the broker talks, the line changes once a second, and the last word is shown."""
    peer = broker.accept()
    message = kernel.start("%%gpulane 6GiB\nNone")
    number, asked = peer.expect(Submit)
    for ahead in range(50, 0, -1):
        peer.notice(Waiting(asked.job, Wait(WaitReason.MEMORY, GiB, 0, ahead)))
    began, lines = time.monotonic(), []
    for out in kernel.outputs(message):
        lines += text_of(out) if out["msg_type"].endswith("display_data") else []
        if lines and " 1 ahead of you" in lines[-1]:
            assert time.monotonic() - began < 20
            peer.grant(number, asked)
            number, _ = peer.expect(End)
            peer.reply(number, report(asked.job))
    waiting = [line for line in lines if line.startswith("Waiting")]
    assert len(waiting) == 2


@pytest.mark.parametrize("body", ["print('ran')", "import asyncio\nawait asyncio.sleep(0)\nprint('ran')"])  # fmt: skip
def test_interrupt_while_queued(broker: ScriptedBroker, kernel: Kernel, body: str) -> None:
    """The interrupt button leaves the queue with one line, in a cell with await too; the kernel lives on."""
    peer = broker.accept()
    message = kernel.start(f"%%gpulane 6GiB\n{body}")
    number, asked = peer.expect(Submit)
    peer.notice(Waiting(asked.job, WAIT))
    shown: list[str] = []
    for out in kernel.outputs(message):
        shown += text_of(out)
        if shown[-1:] == [LINE]:
            kernel.manager.interrupt_kernel()
            shown.append("interrupted")
    peer.expect(Cancel)
    peer.reply(number, Failure("Cancelled", "left the queue"))
    assert shown[-1] == f"gpushare: {texts.LEFT_QUEUE}"
    assert "ran" not in shown
    assert not [line for line in shown if "Error in callback" in line or "Traceback" in line]
    assert kernel.run("6 * 7") == ["42"]
    assert [type(m) for m in (peer.expect(CellStarted)[1], peer.expect(CellEnded)[1])] == [CellStarted, CellEnded]  # fmt: skip


BLOCK = """import gpushare_kernel as gpushare
print('before')
with gpushare.lane(size='6GiB') as lane:
    print('in')
    for _ in lane.steps(range(3)):
        print('round')
"""


def test_interrupted_block_shows_the_users_line(broker: ScriptedBroker, kernel: Kernel) -> None:
    """Interrupting `with gpushare.lane(...)` in the queue points at the user's line, says so, and shows no frame of ours."""
    peer = broker.accept()
    message = kernel.start(BLOCK)
    peer.expect(CellStarted)
    number, asked = peer.expect(Submit)
    peer.notice(Waiting(asked.job, WAIT))
    shown: list[str] = []
    for out in kernel.outputs(message):
        shown += text_of(out)
        if shown[-1:] == [LINE]:
            kernel.manager.interrupt_kernel()
            shown.append("interrupted")
    peer.expect(Cancel)
    peer.reply(number, Failure("Cancelled", "left the queue"))
    assert "in" not in shown
    assert any("3 with gpushare.lane" in line for line in shown), shown
    assert shown[-1] == f"KeyboardInterrupt: {texts.LEFT_QUEUE}"
    assert not [line for line in shown if "gpushare_kernel/" in line or "skipping" in line]


def test_interrupted_step_shows_the_users_line(broker: ScriptedBroker, kernel: Kernel) -> None:
    """So does an interrupt while a boundary waits for its turn."""
    peer = broker.accept()
    message = kernel.start(BLOCK)
    peer.expect(CellStarted)
    number, asked = peer.expect(Submit)
    peer.page.set(1, TURN)
    peer.grant(number, asked)
    shown: list[str] = []
    for out in kernel.outputs(message):
        shown += text_of(out)
        if shown[-1:] == ["round"]:
            peer.expect(Yield)
            kernel.manager.interrupt_kernel()
            number, _ = peer.expect(End)
            peer.reply(number, report(asked.job))
    assert any("5     for _ in lane.steps" in line for line in shown)
    assert shown[-1].startswith("KeyboardInterrupt")
    assert not [line for line in shown if "gpushare_kernel/" in line or "skipping" in line]


def test_error_of_ours_shows_the_users_line(broker: ScriptedBroker, kernel: Kernel) -> None:
    """An error that is not the user's has its message below the line that met it."""
    peer = broker.accept()
    message = kernel.start(BLOCK)
    peer.expect(CellStarted)
    number, _ = peer.expect(Submit)
    peer.reply(number, Failure("InternalError", "a bug"))
    shown = [line for out in kernel.outputs(message) for line in text_of(out)]
    assert any("3 with gpushare.lane" in line for line in shown), shown
    assert shown[-1] == "InternalError: a bug"
    assert not [line for line in shown if "gpushare_kernel/" in line or "skipping" in line]


def test_wait_over(broker: ScriptedBroker, kernel: Kernel) -> None:
    """`--wait` ends in an error of one line, and the cell has not run."""
    peer = broker.accept()
    message = kernel.start("%%gpulane 6GiB --wait 0.2\nprint('ran')")
    number, asked = peer.expect(Submit)
    peer.notice(Waiting(asked.job, WAIT))
    cancel, _ = peer.expect(Cancel)
    peer.reply(cancel, Ok())
    peer.reply(number, Failure("Cancelled", "left the queue"))
    outputs = list(kernel.outputs(message))
    (error,) = [out["content"] for out in outputs if out["msg_type"] == "error"]
    assert error["ename"] == "WaitEnded"
    assert error["traceback"] == [
        "gpushare: still no memory after 0.2 s, as long as --wait says; the cell has not run. "
        "It needs 6.0 GiB, 2.0 free. Run it again later, or without --wait."
    ]
    assert not [out for out in outputs if text_of(out) == ["ran"]]


def test_interrupt_while_running(broker: ScriptedBroker, kernel: Kernel) -> None:
    """Interrupting the body is the user's own interrupt, with a traceback of their line, and the job ends."""
    peer = broker.accept()
    message = kernel.start("%%gpulane 6GiB\nimport time\nprint('in')\ntime.sleep(60)")
    number, asked = peer.expect(Submit)
    peer.grant(number, asked)
    shown: list[str] = []
    for out in kernel.outputs(message):
        shown += text_of(out)
        if shown[-1:] == ["in"]:
            kernel.manager.interrupt_kernel()
            shown.append("interrupted")
            number, _ = peer.expect(End)
            peer.reply(number, report(asked.job))
    assert any("KeyboardInterrupt" in line for line in shown)
    assert any("4 time.sleep(60)" in line for line in shown)
    assert not any("gpushare_kernel" in line for line in shown)


def test_slowed_line_is_one_line(broker: ScriptedBroker, kernel: Kernel) -> None:
    """A plain cell that is slowed has one line that changes."""
    peer = broker.accept()
    message = kernel.start("import time; print('in', flush=True); time.sleep(1.5)")
    peer.expect(CellStarted)
    kinds: list[str] = []
    for out in kernel.outputs(message):
        if text_of(out) == ["in"]:
            peer.notice(Slowed(people=3, fraction=0.25))
            peer.notice(Slowed(people=2, fraction=0.33))
        elif out["msg_type"].endswith("display_data"):
            kinds.append(out["msg_type"] + ": " + text_of(out)[0])
    assert kinds == [
        "display_data: Shared with 3 people: about 1/4 speed",
        "update_display_data: Shared with 2 people: about 1/3 speed",
    ]


def test_programs_started_in_a_kernel(broker: ScriptedBroker, kernel: Kernel) -> None:
    """An IPython started in a cell is no kernel of ours: nothing is loaded there. A script may have lanes."""
    broker.serve()
    shown = kernel.run(
        "import subprocess, sys\n"
        "code = \"print(get_ipython().find_cell_magic('gpulane'))\"\n"
        "print(subprocess.run([sys.executable, '-m', 'IPython', '-c', code], capture_output=True, text=True).stdout)\n"
        "lane = \"import gpushare_kernel as g\\nwith g.lane('1MiB'): pass\\nprint('fine')\"\n"
        "print(subprocess.run([sys.executable, '-c', lane], capture_output=True, text=True))"
    )
    assert shown[0] == "None"
    assert "stdout='fine\\n', stderr=''" in shown[-1]


def test_forked_kernel_ends_nothing(broker: ScriptedBroker, kernel: Kernel) -> None:
    """A fork in a declared cell does not end the job twice."""
    broker.serve()
    kernel.run(
        "%%gpulane 1GiB\n"
        "import os, warnings; warnings.simplefilter('ignore')\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0)\n"
        "print(os.waitpid(pid, 0)[1])"
    )
    kernel.run("None")
    assert len([m for m in broker.seen if isinstance(m, End)]) == 1


def test_kernel_without_its_broker_runs(kernel_environment: dict[str, str], new_kernel: New, tmp_path: object) -> None:  # fmt: skip
    """A socket nobody listens at does not keep a kernel from starting, nor plain cells from running."""
    kernel = new_kernel({**kernel_environment, "GPUSHARE_SOCKET": f"{tmp_path}/nowhere.sock"})
    assert kernel.run("6 * 7") == ["42"]
    assert kernel.run("%gpushare doctor")[-1].startswith(
        "broker        no gpushare broker answers at"
    )


def test_broken_installation_is_one_line(tmp_path: Path) -> None:
    """Where our package fails to load a kernel starts all the same, and one line is said."""
    (tmp_path / "gpushare_magics.py").write_text("raise RuntimeError('half installed')", "utf-8")
    done = subprocess.run(
        [sys.executable, str(STARTUP)],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "GPUSHARE_TOKEN": "the-token"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "gpushare: this kernel is shared, but without %%gpulane: half installed\n"


def test_gpu_is_named_one(broker: ScriptedBroker, kernel: Kernel) -> None:
    """On a CUDA device the line says GPU memory."""
    peer = broker.accept(attached("cuda", 80 * GiB))
    message = kernel.start("%%gpulane 50%\nNone")
    number, asked = peer.expect(Submit)
    assert asked.size == 40 * GiB
    peer.notice(Waiting(asked.job, WAIT))
    first = next(out for out in kernel.outputs(message) if out["msg_type"] == "display_data")
    assert text_of(first)[0].startswith("Waiting for GPU memory: needs 6.0 GiB")
    peer.grant(number, asked)
    number, _ = peer.expect(End)
    peer.reply(number, report(asked.job))


def test_subshell_cells_are_told_apart(broker: ScriptedBroker, kernel: Kernel) -> None:
    """A cell in a subshell has its own lane while the main shell's cell waits for its own."""
    peer = broker.accept()
    client = kernel.client
    message = client.session.msg("create_subshell_request")
    client.control_channel.send(message)
    subshell = client.get_control_msg(timeout=30)["content"]["subshell_id"]
    main = kernel.start("%%gpulane 1GiB --name main\nprint('main runs')")
    number, asked = peer.expect(Submit)
    code = {"code": "%%gpulane 1GiB --name sub\nprint('sub runs')", "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}  # fmt: skip
    request = client.session.msg("execute_request", code)
    request["header"]["subshell_id"] = subshell
    client.shell_channel.send(request)
    other, beside = peer.expect(Submit)
    assert (asked.name, beside.name) == ("main", "sub")
    peer.grant(other, beside, slot=2)
    end, over = peer.expect(End)
    assert over.job == beside.job
    peer.reply(end, report(over.job))
    peer.grant(number, asked)
    end, over = peer.expect(End)
    assert over.job == asked.job
    peer.reply(end, report(over.job))
    assert "main runs" in [line for out in kernel.outputs(main) for line in text_of(out)]


OPENS = """
import numpy as np
from gpushare_kernel.realtime import Pipeline
with Pipeline([np.negative, np.abs], np.arange(4.0), period="1s", deadline="900ms", name="net") as pipe:
    print("open")
"""


def test_a_pipeline_that_opens_says_so_in_one_line_that_goes(new_kernel: Callable[[dict[str, str]], Kernel], tmp_path: Path) -> None:  # fmt: skip
    """At once, in place; afterwards nothing of it is left but what the cell printed."""
    kernel = new_kernel({"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_RUNTIME_DIR": str(tmp_path)})  # fmt: skip
    kernel.run("%load_ext gpushare_magics")
    said = [out for out in kernel.outputs(kernel.start(OPENS)) if "data" in out["content"] and out["msg_type"] != "execute_result"]  # fmt: skip
    texts = [out["content"]["data"]["text/plain"] for out in said]
    assert [text.split(" ")[0] for text in texts] == ["Measuring", "Proving", "Loading", ""]
    assert [out["msg_type"] for out in said] == ["display_data", *["update_display_data"] * 3]
    assert len({out["content"]["transient"]["display_id"] for out in said}) == 1


def test_what_is_to_be_kept_is_shown_with_the_next_cell(
    broker: ScriptedBroker, kernel: Kernel
) -> None:
    """An announcement comes while nobody looks; in a cell that runs it is shown at once."""
    peer = broker.accept()
    kernel.run("1 + 1")
    peer.notice(Announce("asks for 13 MiB", keep=True, about="evict"))
    peer.notice(Announce("asks for 14 MiB", keep=True, about="evict"))
    for text in ("away on Monday", "and on Tuesday"):
        peer.notice(Announce(text, keep=True))
    seen: list[str] = []
    while "and on Tuesday" not in "".join(seen):  # the reader's thread may not have heard them yet
        seen += kernel.run("None")
    assert "\n".join(seen).splitlines()[-3:] == [
        "asks for 14 MiB",
        "away on Monday",
        "and on Tuesday",
    ]
    assert not any("13 MiB" in one and "14 MiB" in one for one in seen)
    assert kernel.run("None") == []
    message = kernel.start("%%gpulane 6GiB\nNone")
    while not isinstance(asked := (frame := peer.next()).body, Submit):  # type: ignore[union-attr]
        pass  # its cells before
    number = frame.id  # type: ignore[union-attr]
    peer.notice(Announce("now", keep=True))
    outputs, shown = kernel.outputs(message), []
    for out in outputs:
        shown += text_of(out)
        if "now" in shown:
            break
    peer.grant(number, asked)
    number, _ = peer.expect(End)
    peer.reply(number, report(asked.job))
    assert [*outputs]
