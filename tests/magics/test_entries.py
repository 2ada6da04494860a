"""A notebook whose GPU memory is set aside: what runs user code beside cells asks for it too, and no framework is asked for anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gpushare_kernel.core.values import GiB
from gpushare_kernel.transport.words import AWAY
from gpushare_kernel.wire.messages import CellEnded, CellStarted
from tests.client.scripted_broker import ScriptedBroker
from tests.client.test_frameworks import FOLDER
from tests.magics.conftest import LIMIT, Kernel
from tests.magics.test_gpu_cells import play_gpu

COMM = """
seen = []
def opened(comm, message):
    comm.on_msg(lambda message: seen.append(message["content"]["data"]["at"]))
get_ipython().kernel.comm_manager.register_target("test", opened)
"""


@pytest.fixture
def notebook(
    broker: ScriptedBroker,
    kernel_environment: dict[str, str],
    new_kernel: Callable[[dict[str, str]], Kernel],
) -> Kernel:
    """A kernel on a GPU; the test plays the broker."""
    broker.serve(play_gpu, kind="cuda", capacity=80 * GiB, limit=6 * GiB)
    made = new_kernel(kernel_environment | {"GPUSHARE_ADAPTERS": "cupy"})
    made.run("%load_ext gpushare_magics\nfrom gpushare_kernel.client import api\napi._session.wait_attached(20);")  # fmt: skip
    return made


def set_aside(broker: ScriptedBroker, *, away: bool = True) -> None:
    """Say in the session's word that its memory is not there."""
    broker._peers[-1].page.set(0, AWAY if away else 0)


def asked(broker: ScriptedBroker, kernel: Kernel) -> list[int]:
    """Return the numbers of what asked beside cells, each of which has ended."""
    kernel.run("api._session.snapshot();")  # answered once the broker has read what was said before
    began = [one.cell for one in broker.seen if isinstance(one, CellStarted) and one.cell < 0]
    ended = [one.cell for one in broker.seen if isinstance(one, CellEnded) and one.cell < 0]
    assert began[: len(ended)] == ended
    return began


def test_a_widgets_callback_asks_and_lapses(broker: ScriptedBroker, notebook: Kernel) -> None:
    """Only while it is set aside."""
    notebook.run(COMM)
    send(notebook, "comm_open", {"target_name": "test", "data": {}})
    send(notebook, "comm_msg", {"data": {"at": 1}})
    assert asked(broker, notebook) == []
    set_aside(broker)
    send(notebook, "comm_msg", {"data": {"at": 2}})
    assert len(asked(broker, notebook)) == 1, "the callback's; the cell that looks has asked itself"
    assert notebook.run("seen")[-1] == "[1, 2]"


def test_a_silent_execution_asks_too(broker: ScriptedBroker, notebook: Kernel) -> None:
    """A variable inspector's, which no cell event tells of."""
    set_aside(broker)
    before = len(asked(broker, notebook))
    notebook.client.execute("x = 1", silent=True, reply=True, timeout=LIMIT)
    assert len(asked(broker, notebook)) == before + 1


def test_a_callback_that_lasts_says_so_before_anything_is_set_aside(broker: ScriptedBroker, notebook: Kernel) -> None:  # fmt: skip
    """Else its notebook would pass for idle, and what is set aside in the middle of it would be asked for by nobody."""
    notebook.run("import time" + COMM.replace("seen.append", "time.sleep(0.3) or seen.append"))
    send(notebook, "comm_open", {"target_name": "test", "data": {}})
    send(notebook, "comm_msg", {"data": {"at": 1}})
    assert len(asked(broker, notebook)) == 1


def test_an_interrupt_at_its_end_is_an_end(broker: ScriptedBroker, notebook: Kernel) -> None:
    """A callback that was told of is over, though what it left could not be looked at."""
    notebook.run(
        "import time\nmemory = api._session.memory\nnow = memory.now\n"
        "def interrupted():\n    memory.now = now\n    raise KeyboardInterrupt\n"
        + COMM.replace("seen.append", "time.sleep(0.3) or setattr(memory, 'now', interrupted) or seen.append")
    )  # fmt: skip
    send(notebook, "comm_open", {"target_name": "test", "data": {}})
    send(notebook, "comm_msg", {"data": {"at": 1}})
    began = asked(broker, notebook)
    assert len(began) == 1
    assert [one.cell for one in broker.seen if isinstance(one, CellEnded) and one.cell < 0] == began
    assert notebook.run("memory.now == now, seen") == ["(True, [1])"]


def test_completion_asks_for_nothing(broker: ScriptedBroker, notebook: Kernel) -> None:
    """It runs nobody's code that needs a GPU; who parks and completes a word waits for nothing."""
    set_aside(broker)
    notebook.client.complete("impo", reply=True, timeout=LIMIT)
    notebook.client.inspect("print", reply=True, timeout=LIMIT)
    set_aside(broker, away=False)
    assert asked(broker, notebook) == []


def test_no_framework_is_asked_for_anything_meanwhile(broker: ScriptedBroker, notebook: Kernel) -> None:  # fmt: skip
    """Whatever the driver is asked waits for the memory: a cell that needs none of it would wait too. What was due is done afterwards."""
    notebook.run(f"import sys; sys.path.insert(0, {str(FOLDER)!r})\nimport cupy\nx = cupy.cuda.get_allocator()(100)\npool = cupy.get_default_memory_pool()\npool.calls.clear()")  # fmt: skip
    notebook.run("pass")
    assert any("set_limit" in one for one in notebook.run("pool.calls")), "a cap is set anew at each cell"  # fmt: skip
    notebook.run("pool.calls.clear()")
    set_aside(broker)
    notebook.run("pool.calls.clear()")
    assert notebook.run("api._session.memory.now(), api._session.give_back()")[-1] == "(0, 0)"
    assert notebook.run("pool.calls")[-1] == "[]"
    set_aside(broker, away=False)
    notebook.run("pass")
    assert "set_limit" in notebook.run("pool.calls")[-1]


def send(kernel: Kernel, kind: str, content: dict[str, Any]) -> None:
    """Send a comm message, as a widget's page does."""
    message = kernel.client.session.msg(kind, {"comm_id": "c1", **content})
    kernel.client.shell_channel.send(message)
