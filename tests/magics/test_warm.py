"""The warm tier in a real kernel, for tensors on the CPU: what runs, what waits, and what is answered empty (W5, W10 to W13)."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.magics.conftest import LIMIT, Kernel, text_of
from tests.procs import eventually

HELD = "Your GPU memory is set aside (4.2 GiB, nothing lost). Waiting, 2 ahead."
BACK = "Your GPU memory is back."
SETUP = """
import warnings; warnings.simplefilter("ignore")
%load_ext gpushare_magics
from tests.magics.warm_in_kernel import Remote, torch
remote = Remote(get_ipython(), {path!r})
import asyncio, threading, signal
x = torch.arange(1000.0)
"""


class WarmKernel(Kernel):
    """A kernel, and the line by which the test says what is to be done while it is idle."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {})
        self._replies: dict[str, dict[str, Any]] = {}
        path = str(folder / "line")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()
            listening.settimeout(LIMIT)
            shown = self.run(SETUP.format(path=path))
            assert shown == [], shown
            self._line = listening.accept()[0]
        self._line.settimeout(LIMIT)
        self._answers = self._line.makefile("r")

    def do(self, command: str) -> dict[str, Any]:
        """Have something done on the main thread, in no cell."""
        self._line.sendall(json.dumps(command).encode() + b"\n")
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return what it says next."""
        answer: dict[str, Any] = json.loads(self._answers.readline())
        return answer

    def has_subshells(self) -> bool:
        """Say whether this ipykernel has subshells."""
        info = self.reply(self.ask("kernel_info_request", {}))["content"]
        return "kernel subshells" in info.get("supported_features", ())

    def out(self) -> dict[str, Any]:
        """Set aside; fails where that does not come about."""
        answer = self.do("out")
        assert answer.get("bytes"), answer
        return answer

    def why(self) -> str:
        """Return why it is not quiet."""
        return str(self.do("why")["why"])

    def ask(self, kind: str, content: dict[str, Any], channel: str = "shell", **header: Any) -> str:
        """Send any message."""
        message = self.client.session.msg(kind, content)
        message["header"].update(header)
        getattr(self.client, f"{channel}_channel").send(message)
        return str(message["header"]["msg_id"])

    def reply(self, message: str, channel: str = "shell") -> dict[str, Any]:
        """Return the reply to a message; others that come first are kept."""
        while message not in self._replies:
            got: dict[str, Any] = getattr(self.client, f"get_{channel}_msg")(timeout=LIMIT)
            self._replies[got["parent_header"].get("msg_id", "")] = got
        return self._replies.pop(message)

    def until_held(self, *messages: str) -> None:
        """Wait until these messages wait at the gate."""
        left = set(messages)
        while left:
            out = self.client.get_iopub_msg(LIMIT)
            if text_of(out) == [HELD]:
                left.discard(out["parent_header"].get("msg_id"))

    def close(self) -> None:
        """End it."""
        self._answers.close()
        self._line.close()
        super().close()


@pytest.fixture(scope="module")
def _kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmKernel]:
    made = WarmKernel(tmp_path_factory.mktemp("warm"))
    yield made
    made.close()


@pytest.fixture
def kernel(_kernel: WarmKernel) -> Iterator[WarmKernel]:
    """One kernel for all tests, quiet and with its memory there before and after each."""
    assert _kernel.why() == ""
    yield _kernel
    _kernel.do("back")
    assert _kernel.why() == ""


def test_out_and_back(kernel: WarmKernel) -> None:
    """It is set aside between two cells, and nothing is lost; a second time in both directions does nothing."""
    kernel.run("y = x[10:20]; z = torch.nn.Parameter(torch.ones(3))")
    out = kernel.out()
    assert out["bytes"] >= 4000
    assert out["away"] == out["bytes"]
    assert kernel.do("out")["bytes"] == 0
    assert kernel.do("back") == {**out, "away": 0}
    assert kernel.do("back")["bytes"] == 0
    assert kernel.run("print(x.sum().item(), y.sum().item(), z.sum().item())") == ["499500.0 145.0 3.0"]  # fmt: skip


def test_a_cell_waits_and_goes_on(kernel: WarmKernel) -> None:
    """It waits before its first line, says so in one line, and runs as written once the memory is back."""
    kernel.out()
    message = kernel.start("print(int(x.sum()))\nx[1]")
    outputs = kernel.outputs(message)
    first = next(outputs)
    while text_of(first) != [HELD]:
        first = next(outputs)
    assert kernel.do("look")["held"] == 1
    kernel.do("back")
    shown = [(out["msg_type"], text_of(out)) for out in outputs]
    assert ("update_display_data", [BACK]) in shown
    assert ("stream", ["499500"]) in shown
    assert ("execute_result", ["tensor(1.)"]) in shown
    assert kernel.reply(message)["content"]["status"] == "ok"


def test_cells_keep_their_order(kernel: WarmKernel) -> None:
    """Three cells that were sent meanwhile run one after the other, as they were sent."""
    kernel.run("order = []")
    kernel.out()
    sent = [kernel.start(f"order.append({n})") for n in range(3)]
    kernel.until_held(sent[0])
    kernel.do("back")
    for message in sent:
        assert kernel.reply(message)["content"]["status"] == "ok"
    assert kernel.run("order") == ["[0, 1, 2]"]


@pytest.mark.parametrize("body", ["print('ran')", "await asyncio.sleep(0); print('ran')"])
def test_interrupt(kernel: WarmKernel, body: str) -> None:
    """The interrupt button ends the waiting, again and again; the cell has not run, the kernel and the memory are as they were."""
    kernel.out()
    for _ in range(2):
        message = kernel.start(body)
        kernel.until_held(message)
        kernel.manager.interrupt_kernel()
        reply = kernel.reply(message)["content"]
        assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
        assert kernel.do("look")["away"] >= 4000
        assert kernel.do("look")["held"] == 0
    kernel.do("back")
    assert kernel.run("int(x.sum())") == ["499500"]
    # An interrupt works as ever afterwards.
    message = kernel.start("print('here', flush=True)\nwhile True: pass")
    for out in kernel.outputs(message):
        if text_of(out) == ["here"]:
            kernel.manager.interrupt_kernel()
    assert kernel.reply(message)["content"]["ename"] == "KeyboardInterrupt"


EMPTY = [
    ("complete_request", {"code": "x.", "cursor_pos": 2}, {"status": "ok", "matches": []}),
    ("inspect_request", {"code": "x", "cursor_pos": 1}, {"status": "ok", "found": False}),
    ("is_complete_request", {"code": "x"}, {"status": "unknown"}),
    ("execute_request", {"code": "touched.append(x.sum())", "silent": True, "user_expressions": {"a": "x.sum()"}}, {"status": "aborted"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "content", "expected"), EMPTY, ids=[kind for kind, _, _ in EMPTY])
def test_answered_empty(kernel: WarmKernel, kind: str, content: Any, expected: Any) -> None:
    """Completion, inspection and silent executions are answered at once; nothing of them looks at a value, then or later."""
    kernel.run("touched = []")
    full = kernel.reply(kernel.ask(kind, content))["content"]
    assert {key: full[key] for key in expected} != expected
    kernel.run("touched.clear()")
    kernel.out()
    took = []
    for _ in range(3):
        began = time.monotonic()
        answer = kernel.reply(kernel.ask(kind, content))["content"]
        took.append(time.monotonic() - began)
        assert {key: answer[key] for key in expected} == expected
    assert min(took) < 0.2
    kernel.do("back")
    assert kernel.run("touched") == ["[]"]
    assert kernel.reply(kernel.ask(kind, content))["content"].keys() == full.keys()


def test_control_channel(kernel: WarmKernel) -> None:
    """The control channel stays free: it runs no code, and says what it always says of the kernel."""
    kernel.run("touched = []")
    kernel.out()
    message = kernel.ask("execute_request", {"code": "touched.append(1)"}, "control")
    assert kernel.reply(message, "control")["content"]["status"] == "aborted"
    message = kernel.ask("debug_request", {"type": "request", "command": "evaluate", "seq": 3}, "control")  # fmt: skip
    assert kernel.reply(message, "control")["content"]["success"] is False
    message = kernel.ask("kernel_info_request", {}, "control")
    assert kernel.reply(message, "control")["content"]["status"] == "ok"
    kernel.do("back")
    assert kernel.run("touched") == ["[]"]


def test_widget_callback(kernel: WarmKernel) -> None:
    """A message of a widget waits, and its callback then finds the tensor."""
    kernel.run(
        "seen = []\ndef opened(comm, _message):\n    comm.on_msg(lambda m: seen.append(float(x.sum())))\n"
        "get_ipython().kernel.comm_manager.register_target('t', opened)"
    )
    kernel.ask("comm_open", {"comm_id": "c1", "target_name": "t", "data": {}})
    kernel.run("None")
    kernel.out()
    message = kernel.ask("comm_msg", {"comm_id": "c1", "data": {}})
    kernel.until_held(message)
    kernel.do("back")
    assert kernel.run("seen") == ["[499500.0]"]


def test_interrupt_leaves_a_widget_waiting(kernel: WarmKernel) -> None:
    """An interrupt ends cells; a widget's message is not lost, and the kernel lives."""
    kernel.run(
        "seen = []\ndef opened(comm, _message):\n    seen.append(float(x.sum()))\n"
        "get_ipython().kernel.comm_manager.register_target('t2', opened)"
    )
    kernel.out()
    message = kernel.ask("comm_open", {"comm_id": "c2", "target_name": "t2", "data": {}})
    kernel.until_held(message)
    kernel.manager.interrupt_kernel()
    assert kernel.do("look")["held"] == 1
    kernel.do("back")
    assert kernel.run("seen") == ["[499500.0]"]


def test_subshell(kernel: WarmKernel) -> None:
    """A cell in a subshell waits as one in the main shell does, with others of another subshell; an idle subshell is quiet."""
    if not kernel.has_subshells():
        pytest.skip("ipykernel 6 has no subshells")
    created = [kernel.reply(kernel.ask("create_subshell_request", {}, "control"), "control")["content"]["subshell_id"] for _ in range(2)]  # fmt: skip
    kernel.run("seen = []")
    for subshell in created:
        kernel.reply(kernel.ask("execute_request", {"code": "seen.append(0)"}, subshell_id=subshell))  # fmt: skip
    # The lock of a subshell is held a moment longer than its reply takes.
    eventually(lambda: kernel.do("out").get("bytes"))
    sent = [kernel.ask("execute_request", {"code": "seen.append(int(x.sum()))"}, subshell_id=one) for one in created]  # fmt: skip
    kernel.until_held(*sent)
    assert kernel.do("look")["held"] == 2
    kernel.do("back")
    for message in sent:
        assert kernel.reply(message)["content"]["status"] == "ok"
    assert kernel.run("seen") == ["[0, 0, 499500, 499500]"]
    # One that runs is not quiet, whatever it does.
    kernel.run("there, go = threading.Event(), threading.Event()")
    message = kernel.ask("execute_request", {"code": "there.set(); go.wait(60)"}, subshell_id=created[0])  # fmt: skip
    assert kernel.run("there.wait(60)") == ["True"]
    assert kernel.why() == "a cell, or a widget's callback, runs"
    assert "stays on the device" in kernel.do("out")["error"]
    kernel.run("go.set()")
    assert kernel.reply(message)["content"]["status"] == "ok"
    for subshell in created:
        kernel.reply(kernel.ask("delete_subshell_request", {"subshell_id": subshell}, "control"), "control")  # fmt: skip


def test_who_comes_while_it_is_copied_waits(kernel: WarmKernel) -> None:
    """The gate is shut before the look (W10): a cell of a subshell that comes in the middle waits until all is back."""
    if not kernel.has_subshells():
        pytest.skip("ipykernel 6 has no subshells")
    created = kernel.reply(kernel.ask("create_subshell_request", {}, "control"), "control")["content"]["subshell_id"]  # fmt: skip
    kernel.run("seen = []")
    assert kernel.do("out_while_somebody_comes") == {"copying": True}
    message = kernel.ask("execute_request", {"code": "seen.append(int(x.sum()))"}, subshell_id=created)  # fmt: skip
    assert kernel.answer()["bytes"] >= 4000
    assert kernel.do("look")["held"] == 1
    kernel.do("back")
    assert kernel.reply(message)["content"]["status"] == "ok"
    assert kernel.run("seen") == ["[499500]"]
    kernel.reply(kernel.ask("delete_subshell_request", {"subshell_id": created}, "control"), "control")  # fmt: skip


NOISE = {
    "task": ("t = asyncio.get_running_loop().create_task(asyncio.sleep(600))", "t.cancel()", "asyncio task"),
    "timer": ("t = asyncio.get_running_loop().call_later(600, print)", "t.cancel()", "a timer or a callback"),
    "tornado's timer": ("from tornado.ioloop import PeriodicCallback\nt = PeriodicCallback(lambda: x.sum(), 600000); t.start()", "t.stop()", "a timer or a callback"),
    "reader": ("import os; r, w = os.pipe(); asyncio.get_running_loop().add_reader(r, print)", "asyncio.get_running_loop().remove_reader(r)", "something is connected"),
    "zmq": ("import zmq; from zmq.eventloop.zmqstream import ZMQStream\ns = zmq.Context.instance().socket(zmq.PULL); p = s.bind_to_random_port('tcp://127.0.0.1')\nst = ZMQStream(s, get_ipython().kernel.io_loop); st.on_recv(lambda m: x.sum())", "st.close()", "something is connected"),
    "server": ("server = await asyncio.start_server(lambda r, w: None, '127.0.0.1', 0)", "server.close()", "something is connected"),
    "thread": ("e = threading.Event(); th = threading.Thread(target=e.wait, name='mine'); th.start()", "e.set(); th.join()", "the thread mine lives"),
    "raw thread": ("import _thread; e = threading.Event(); done = threading.Event()\ndef raw(): e.wait(); done.set()\n_thread.start_new_thread(raw, ())", "e.set(); done.wait()\nwhile len(__import__('sys')._current_frames()) > threading.active_count(): pass", "not started by Python's threading"),
    "pool": ("from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1); pool.submit(int).result()", "pool.shutdown()", "the thread ThreadPoolExecutor"),
    "thread timer": ("tt = threading.Timer(600, print); tt.start()", "tt.cancel(); tt.join()", "the thread"),
    "system timer": ("signal.setitimer(signal.ITIMER_REAL, 600)", "signal.setitimer(signal.ITIMER_REAL, 0)", "a timer of the system"),
    "signal": ("signal.signal(signal.SIGUSR1, lambda *_: x.sum())", "signal.signal(signal.SIGUSR1, signal.SIG_DFL)", "a handler of signal 10"),
    "asyncio's signal": ("asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, print)", "asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR2)", "signal"),
    "profile": ("threading.setprofile(lambda *_: None)", "threading.setprofile(None)", "a profiler of Python"),
    "torch's profiler": ("from torch.autograd.profiler import profile\np = profile(use_cpu=True); _ = p.__enter__()", "_ = p.__exit__(None, None, None)", "torch's profiler"),
    "mode": ("from torch.utils._python_dispatch import TorchDispatchMode\nclass M(TorchDispatchMode):\n    def __torch_dispatch__(self, f, t, a=(), k=None): return f(*a, **(k or {}))\nm = M(); _ = m.__enter__()", "_ = m.__exit__(None, None, None)", "a mode of torch"),
    "workers": ("it = iter(torch.utils.data.DataLoader(range(100), num_workers=1))\n_ = next(it)", "it._shutdown_workers(); del it", "the thread QueueFeederThread"),
    "processes": ("import multiprocessing, time; p = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,)); p.start()", "p.kill(); p.join()", "processes of multiprocessing"),
    "window system": ("get_ipython().kernel._trait_values['eventloop'] = print", "get_ipython().kernel._trait_values['eventloop'] = None", "window system"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOISE)
def test_not_quiet(kernel: WarmKernel, name: str) -> None:
    """Whatever of the user's could run by itself speaks against it, and is named; once it is over, it is quiet again."""
    begin, end, expected = NOISE[name]
    shown = kernel.run(begin)
    try:
        why = kernel.why()
        refused = kernel.do("out")
    finally:
        ended = kernel.run(end)
    assert expected in why, (why, shown)
    assert refused == {"error": f"the memory stays on the device: {why}."}
    assert not any("Error" in line for line in ended), ended
    assert kernel.run("int(x.sum())") == ["499500"]


def test_finalisers_wait(kernel: WarmKernel) -> None:
    """Garbage is collected before, and none while memory is away: a finaliser would read it."""
    kernel.run(
        "import gc\nclass Circle:\n    def __init__(self): self.me, self.t = self, torch.ones(5)\n"
        "    def __del__(self): sums.append(float(self.t.sum()))\nsums = []\nfor _ in range(3): Circle()"
    )
    kernel.out()
    assert not kernel.do("look")["collects"]
    kernel.do("back")
    assert kernel.run("print(sums, gc.isenabled())") == ["[5.0, 5.0, 5.0] True"]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_rescue(kernel: WarmKernel, tmp_path: Path, suffix: str) -> None:
    """While it is away, `%gpushare rescue` saves it by name without touching the device; what has no name is saved too."""
    kernel.run(
        "model = torch.nn.Linear(3, 2); opt = torch.optim.Adam(model.parameters()); model(torch.ones(1, 3)).sum().backward(); opt.step()\n"
        "view = x[10:20]; box = {'a': [torch.full((2,), 7.0)]}\ndef hidden(): pass\nhidden.t = torch.full((77,), 5.0)"
    )
    kernel.out()
    file = tmp_path / f"saved.{suffix}"
    shown = kernel.run(f"%gpushare rescue {file}")
    assert "are saved in" in shown[0]
    assert kernel.do("look")["away"] > 0
    again = kernel.run(f"%gpushare rescue {file}")
    assert "exists already" in again[0]
    kernel.do("back")
    load = f"torch.load({str(file)!r})" if suffix == "pt" else f"__import__('safetensors.torch').torch.load_file({str(file)!r})"  # fmt: skip
    kernel.run(f"got = {load}")
    checks = (
        "torch.equal(got['x'], x)", "torch.equal(got['view'], view)", "torch.equal(got['model.weight'], model.weight)",
        "torch.equal(got['opt.state.0.exp_avg'], opt.state[model.weight]['exp_avg'])", "got['box.a.0'].tolist() == [7.0, 7.0]",
        "any(k.startswith('unnamed') and len(t) == 308 and torch.equal(t.clone().view(torch.float32), hidden.t) for k, t in got.items())",
    )  # fmt: skip
    assert kernel.run(f"print({', '.join(checks)})") == [" ".join(["True"] * len(checks))]
    if suffix == "pt":
        assert kernel.run("got['view'].untyped_storage().data_ptr() == got['x'].untyped_storage().data_ptr()") == ["True"]  # fmt: skip
    kernel.run("del model, opt, view, box, hidden, got")


@pytest.mark.parametrize("away", [True, False])
def test_ends_while_it_is_away(tmp_path: Path, *, away: bool) -> None:
    """A kernel whose memory is away, and a cell of which waits, is shut down as fast as any (W14).

    What the user has it do at its end, it does only where the memory is there: a good file is not overwritten by a broken one.
    """
    saved = tmp_path / "checkpoint.pt"
    kernel = WarmKernel(tmp_path)
    try:
        kernel.run(f"import atexit; _ = atexit.register(lambda: torch.save(x, {str(saved)!r}))")
        kernel.out()
        kernel.until_held(kernel.start("x.sum()"))
        if not away:
            kernel.do("back")
        began = time.monotonic()
        kernel.manager.shutdown_kernel()
        assert time.monotonic() - began < 5  # else it was killed
        assert not kernel.manager.is_alive()
        assert saved.exists() == (not away)
    finally:
        kernel.close()
