"""The warm tier of a kernel and its broker: asked, it sets its tensors aside; a cell that waits asks for them; told, it puts them back.

The broker is played, the kernel is real, and its tensors are the host's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from gpushare_kernel.core.values import GiB
from gpushare_kernel.wire import parking_texts
from gpushare_kernel.wire.messages import (
    CameBack,
    CellEnded,
    CellStarted,
    PutBack,
    SetAside,
    WentAside,
)
from tests.client.scripted_broker import ScriptedBroker
from tests.magics.conftest import Kernel, text_of
from tests.magics.test_gpu_cells import play_gpu
from tests.procs import eventually

SETUP = """
import warnings; warnings.simplefilter("ignore")
get_ipython().extension_manager.load_extension("gpushare_magics")
from gpushare_kernel.client import api, arena
api._session.wait_attached(20);
from gpushare_magics import extension
from gpushare_magics.lines import UpdatingLine
from gpushare_kernel.client.warm.exports import Exports
from gpushare_kernel.client.warm.warm import Warm
from tests.client.warm.host_memory import Buffer, Copies, torch
exports = Exports(torch); exports.hook()
shell, here = get_ipython(), extension.active()
warm = Warm(torch, exports, kernel=shell.kernel, running=lambda: here.cells.running, line=lambda: UpdatingLine(here.output).put,
            namespace=lambda: shell.user_ns, settle=lambda: None, trim=lambda: None, devices=("cpu",), verify=True)
arena.take = lambda session, size: Buffer(size)
api._session.mover = lambda: (warm, Copies("cpu"))
api._session.memory.recent = lambda: 123
x = torch.arange(1000.0)
"""
_Kind = TypeVar("_Kind")


@pytest.fixture
def notebook(
    broker: ScriptedBroker,
    kernel_environment: dict[str, str],
    new_kernel: Callable[[dict[str, str]], Kernel],
) -> Kernel:
    """A kernel whose tensors may be set aside; the test plays the broker."""
    broker.serve(play_gpu, kind="cuda", capacity=80 * GiB)
    made = new_kernel(kernel_environment | {"GPUSHARE_ADAPTERS": "off"})
    assert made.run(SETUP) == []
    return made


def told(broker: ScriptedBroker, kind: type[_Kind]) -> list[_Kind]:
    """Return what the kernel said of this kind."""
    return [one for one in broker.seen if isinstance(one, kind)]


def answer(broker: ScriptedBroker, notice: SetAside | PutBack) -> WentAside | CameBack:
    """Ask, and return the answer; asked anew where a cell's end was still in the way."""
    kind = WentAside if isinstance(notice, SetAside) else CameBack
    broker._peers[-1].notice(notice)
    eventually(lambda: any(one.ticket == notice.ticket for one in told(broker, kind)))
    return next(one for one in told(broker, kind) if one.ticket == notice.ticket)


def set_aside(broker: ScriptedBroker) -> WentAside:
    """Ask until nothing of the cell before is in the way."""
    for ticket in range(1, 100):
        went = answer(broker, SetAside(ticket))
        assert isinstance(went, WentAside)
        if went.size:
            return went
    pytest.fail(went.why)


def test_a_cell_that_waits_asks_and_goes_on_with_the_same_bytes(broker: ScriptedBroker, notebook: Kernel) -> None:  # fmt: skip
    """It says so in its output, and what it asked for is over when it has it."""
    went = set_aside(broker)
    assert went.size >= 4000
    cells = len(told(broker, CellStarted))
    message = notebook.start("print(float(x.sum()))")
    eventually(lambda: len(told(broker, CellStarted)) > cells)
    asked = told(broker, CellStarted)[cells].cell
    assert asked < 0
    assert answer(broker, PutBack(1000)) == CameBack(1000, copied=0.5)
    shown = [line for out in notebook.outputs(message) for line in text_of(out)]
    assert shown[0] == parking_texts.held_text(went.size)
    assert shown[-2:] == [parking_texts.MEMORY_BACK, "499500.0"]
    eventually(lambda: any(one.cell == asked for one in told(broker, CellEnded)))
    (over,) = [one for one in told(broker, CellEnded) if one.cell == asked]
    assert over.persistent == 123, "what it holds, which is all back: not nothing"


def test_who_is_not_quiet_says_why(broker: ScriptedBroker, notebook: Kernel) -> None:
    """Nothing has changed."""
    notebook.run("import threading; halt = threading.Event(); threading.Thread(target=halt.wait, name='mine').start()")  # fmt: skip
    went = answer(broker, SetAside(1))
    assert isinstance(went, WentAside)
    assert went.size == 0
    assert "mine" in went.why or "cell" in went.why or "runs" in went.why
    assert notebook.run("halt.set(); float(x.sum())")[-1] == "499500.0"


def test_who_cannot_even_begin_says_so_at_once(broker: ScriptedBroker, notebook: Kernel) -> None:
    """Somebody waits for the answer: no driver for the copies, say."""
    notebook.run("from gpushare_kernel.core.errors import DeviceError\ndef none(): raise DeviceError('there is no driver here')\napi._session.mover = none")  # fmt: skip
    assert answer(broker, SetAside(1)) == WentAside(1, 0, "DeviceError: there is no driver here")


def test_it_is_told_to_a_broker_that_comes_back(broker: ScriptedBroker, notebook: Kernel) -> None:
    """Which knows nothing of it."""
    went = set_aside(broker)
    before = len(broker._peers)
    broker._peers[-1].close()
    eventually(lambda: len(broker._peers) > before)
    assert broker._peers[-1].attach.aside == went.size
    assert answer(broker, PutBack(1000)) == CameBack(1000, copied=0.5)
    assert notebook.run("float(x.sum())")[-1] == "499500.0"


def test_a_broker_that_comes_back_hears_who_waits_at_the_gate(broker: ScriptedBroker, notebook: Kernel) -> None:  # fmt: skip
    """The one before was told, and this one would never bring it back."""
    set_aside(broker)
    message = notebook.start("print(float(x.sum()))")
    eventually(lambda: any(one.cell < 0 for one in told(broker, CellStarted)))
    (asked,) = [one for one in told(broker, CellStarted) if one.cell < 0]
    before = len(broker._peers)
    broker._peers[-1].close()
    eventually(lambda: len(broker._peers) > before)
    eventually(lambda: told(broker, CellStarted).count(asked) == 2)
    answer(broker, PutBack(1000))
    shown = [line for out in notebook.outputs(message) for line in text_of(out)]
    assert shown[-1] == "499500.0"
    assert any(parking_texts.BROKER_AWAY_HELD in line for line in shown)


def test_who_is_interrupted_at_the_gate_asks_for_nothing_any_more(broker: ScriptedBroker, notebook: Kernel) -> None:  # fmt: skip
    """Others would be parked for it. It has not run, and the next cell asks anew."""
    set_aside(broker)
    message = notebook.start("print(float(x.sum()))")
    eventually(lambda: any(one.cell < 0 for one in told(broker, CellStarted)))
    notebook.manager.interrupt_kernel()
    assert [*notebook.outputs(message)]
    (asked,) = [one.cell for one in told(broker, CellStarted) if one.cell < 0]
    eventually(lambda: any(one.cell == asked for one in told(broker, CellEnded)))
    message = notebook.start("print(float(x.sum()))")
    eventually(lambda: len({one.cell for one in told(broker, CellStarted) if one.cell < 0}) == 2)
    answer(broker, PutBack(1000))
    assert [line for out in notebook.outputs(message) for line in text_of(out)][-1] == "499500.0"


def test_a_second_ask_says_what_is_aside_all_the_same(broker: ScriptedBroker, notebook: Kernel) -> None:  # fmt: skip
    """Not nothing: whoever asks would forget what has to come back."""
    went = set_aside(broker)
    again = answer(broker, SetAside(500))
    assert isinstance(again, WentAside)
    assert again.size == went.size
    answer(broker, PutBack(1000))
    assert notebook.run("float(x.sum())")[-1] == "499500.0"


def test_nothing_to_put_back_is_no_error(broker: ScriptedBroker, notebook: Kernel) -> None:
    """A broker that asks twice, or the wrong one."""
    assert answer(broker, PutBack(7)) == CameBack(7)
    assert notebook.run("float(x.sum())")[-1] == "499500.0"
