"""The real torch, CuPy and JAX on a real GPU, each in a process of its own; the broker is played by the test."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import pytest

from gpushare_kernel.core.values import GiB, MiB
from gpushare_kernel.transport.words import LANE, TURN
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import Budget, End, Submit, Yield
from tests.client.scripted_broker import ScriptedBroker
from tests.procs import Program, eventually

pytestmark = pytest.mark.gpu


def needs(framework: str) -> pytest.MarkDecorator:
    """Skip where the framework is not installed."""
    missing = importlib.util.find_spec(framework) is None
    return pytest.mark.skipif(missing, reason=f"needs {framework}")


SESSION = """
import gc, os, time, warnings
warnings.simplefilter("ignore")
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
from pathlib import Path
from gpushare_kernel.client.session import Session
from gpushare_kernel.client.aftermath import recover
GiB = 2**30
session = Session("the-token", Path({path!r})); session.listen(lambda _: None); session.start(); session.wait_attached(20)
memory, gpu = session.memory, session.gpu
session.cell_started(1)
def told(limit):
    # the budget that the broker sent comes on the reader thread
    until = time.monotonic() + 20
    while gpu.limit != limit:
        assert time.monotonic() < until
        time.sleep(0.01)
def fails(call):
    try:
        call()
    except Exception as problem:
        return problem
    raise AssertionError("there was room")
"""
"""A notebook's kernel, as far as the client goes; `fails` returns an error with its frames, as a notebook keeps it."""

Start = Callable[[str], Program]


@pytest.fixture
def start(broker: ScriptedBroker) -> Iterator[Start]:
    """Start programs that are a notebook of 2 GiB on this machine's GPU."""
    broker.serve(kind="cuda", capacity=70 * GiB, reserve=700 * MiB, limit=2 * GiB)
    started: list[Program] = []

    def start(code: str) -> Program:
        started.append(Program(SESSION.format(path=str(broker.path)) + code, site=True))
        return started[-1].__enter__()

    yield start
    for program in started:
        program.__exit__()


def asked(broker: ScriptedBroker) -> list[Submit]:
    """The jobs that were asked for."""
    return [body for body in broker.seen if isinstance(body, Submit)]


TORCH_MEMORY = """
import torch
say("imported", torch.cuda.is_initialized(), [a.name for a in gpu.adapters.active])
wait()
kept = torch.empty(GiB, dtype=torch.uint8, device="cuda")
say(memory.now(), memory.peak())
free, total = torch.cuda.mem_get_info()
say(free, total)
def forward():
    big = torch.empty(GiB * 3 // 4, dtype=torch.uint8, device="cuda")
    torch.empty(GiB, dtype=torch.uint8, device="cuda")
problem = fails(forward)
print(recover(session, problem), flush=True)
torch.empty(GiB * 3 // 4, dtype=torch.uint8, device="cuda"); say("fits")
wait()
told(None)
session.boundary()
torch.empty(4 * GiB, dtype=torch.uint8, device="cuda"); say("lifted", memory.peak())
memory.trim(); say(memory.now(), memory.ephemeral(), memory.ephemeral())
session.cell_ended(1); say("over"); wait()
"""


@needs("torch")
def test_torch(start: Start, broker: ScriptedBroker) -> None:
    """First use held, cap hard, out of memory mended without a restart, cap lifted, cache given back."""
    program = start(TORCH_MEMORY)
    assert program.said() == ["imported", "False", "['torch']"]
    assert asked(broker) == []
    program.tell()
    now, peak = map(int, program.said())
    assert now == peak == GiB
    assert [body.plain for body in asked(broker)] == [True]
    free, total = map(int, program.said())
    assert (free, total) == (GiB, 2 * GiB + 700 * MiB)
    line = " ".join(program.said())
    # 1 GiB kept, 0.75 in the frames, 1 more asked for.
    assert line == (
        "GPU memory: this notebook may use 2.0 GiB and needed about 2.8. 768 MiB came back. "
        "Put this on the first line and run again: %%gpulane 3.5GiB"
    )
    assert program.said() == ["fits"]
    (peer,) = broker._peers
    peer.notice(Budget(None))
    program.tell()
    lifted, peak = program.said()
    assert lifted == "lifted"
    assert int(peak) >= 5 * GiB
    # The most that was in use above it, told once.
    assert program.said() == [str(GiB), str(4 * GiB), "0"]
    assert program.said() == ["over"]
    eventually(lambda: [body for body in broker.seen if isinstance(body, End)])


TORCH_LOOPS = """
import torch
model = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(50)]).cuda()
optimizer = torch.optim.Adam(model.parameters())
x = torch.randn(8, 64, device="cuda")
def train(n):
    for _ in range(n):
        optimizer.zero_grad(); model(x).sum().backward(); optimizer.step()
train(20); say("trained"); wait()
with torch.no_grad():
    for _ in range(28): model(x)
say("inferred"); wait()
"""


@needs("torch")
def test_torch_boundaries(start: Start, broker: ScriptedBroker) -> None:
    """Steps and, after the first few, forward passes reach the broker's tally."""
    program = start(TORCH_LOOPS)
    assert program.said() == ["trained"]
    (peer,) = broker._peers
    assert peer.tally.read() == 21
    program.tell()
    assert program.said() == ["inferred"]
    assert peer.tally.read() == 41


TORCH_CAPTURE = """
import torch
from gpushare_kernel.client.lanes import Lane, new_job_id
from gpushare_kernel.wire.messages import Submit
lane = Lane(session, Submit(job=new_job_id(), name="loop", size=2 * GiB, cooperative=True)).__enter__()
model = torch.nn.Linear(64, 64).cuda()
x = torch.randn(8, 64, device="cuda")
aside = torch.cuda.Stream()
aside.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(aside), torch.no_grad():
    for _ in range(3): model(x)
torch.cuda.current_stream().wait_stream(aside)
graph = torch.cuda.CUDAGraph()
say("ready"); wait()
with torch.cuda.graph(graph), torch.no_grad():
    y = model(x)
say("captured"); wait()
graph.replay(); torch.cuda.synchronize()
with torch.no_grad():
    say(torch.allclose(y, model(x)))
wait()
lane.close()
"""


@needs("torch")
@pytest.mark.parametrize("word", [TURN, LANE])
def test_a_capture_is_not_disturbed(start: Start, broker: ScriptedBroker, word: int) -> None:
    """A boundary inside a CUDA graph's capture asks nothing of the device, whatever the broker wants; the next one yields."""
    program = start(TORCH_CAPTURE)
    assert program.said() == ["ready"]
    (peer,) = broker._peers
    peer.page.set(1, word)
    program.tell()
    assert program.said() == ["captured"]
    assert not [body for body in broker.seen if isinstance(body, Yield)]
    program.tell()
    assert program.said() == ["True"]
    (asked,) = [body for body in broker.seen if isinstance(body, Yield)]
    assert asked.trimmed is (word == LANE)
    peer.page.set(1, 0)
    program.tell()
    eventually(lambda: [body for body in broker.seen if isinstance(body, End)])


TORCH_ASSERT = """
import torch
index = torch.tensor([99], device="cuda")
def wrong():
    torch.zeros(4, device="cuda")[index]
    torch.cuda.synchronize()
print(recover(session, fails(wrong)), flush=True)
session.boundary(); session.cell_ended(1); say("lives")
"""


@needs("torch")
def test_a_broken_context(start: Start) -> None:
    """After a device-side assert the session says so, and asks its context nothing more."""
    program = start(TORCH_ASSERT)
    assert " ".join(program.said()) == texts.BROKEN_SESSION
    assert program.said() == ["lives"]


CUPY = """
import cupy
say("imported", [a.name for a in gpu.adapters.active], gpu.memory.in_use())
wait()
kept = cupy.empty(GiB, dtype=cupy.uint8)
say(memory.now())
def forward():
    big = cupy.empty(GiB * 3 // 4, dtype=cupy.uint8)
    cupy.empty(GiB, dtype=cupy.uint8)
print(recover(session, fails(forward)), flush=True)
cupy.empty(GiB * 3 // 4, dtype=cupy.uint8); say("fits")
wait()
told(None)
session.boundary()
cupy.empty(4 * GiB, dtype=cupy.uint8); say("lifted", memory.now())
memory.trim(); say(memory.now())
"""


@needs("cupy")
def test_cupy(start: Start, broker: ScriptedBroker) -> None:
    """The same for CuPy, by its default pool."""
    program = start(CUPY)
    assert program.said() == ["imported", "['cupy']", "[]"]
    assert asked(broker) == []
    program.tell()
    assert int(program.said()[0]) == GiB
    assert [body.plain for body in asked(broker)] == [True]
    line = " ".join(program.said())
    assert line.startswith("GPU memory: this notebook may use 2.0 GiB and needed about 2.8. 768 MiB came back.")  # fmt: skip
    assert program.said() == ["fits"]
    (peer,) = broker._peers
    peer.notice(Budget(None))
    program.tell()
    lifted, held = program.said()
    assert lifted == "lifted"
    assert int(held) >= 5 * GiB
    assert int(program.said()[0]) == GiB


JAX = """
import jax, jax.numpy as jnp
say("imported", [a.name for a in gpu.adapters.active], gpu.memory.in_use())
wait()
kept = jnp.zeros(GiB, dtype=jnp.uint8).block_until_ready()
say(memory.now(), memory.peak())
problem = fails(lambda: jnp.zeros((200, GiB), dtype=jnp.uint8).block_until_ready())
print(recover(session, problem), flush=True)
"""


@needs("jax")
def test_jax(start: Start, broker: ScriptedBroker) -> None:
    """Its backends wait for room; its numbers are read; out of memory is recognised (200 GiB fit nowhere)."""
    program = start(JAX)
    assert program.said() == ["imported", "['jax']", "[]"]
    assert asked(broker) == []
    program.tell()
    now, peak = map(int, program.said())
    assert GiB <= now <= peak
    assert [body.plain for body in asked(broker)] == [True]
    line = " ".join(program.said())
    assert line.startswith("GPU memory: this notebook may use 2.0 GiB and needed about 20")
    assert line.endswith("That is more than there is: run again with a smaller batch.")


HOLDERS = """
from gpushare_kernel.client.arrays import Arrays
from gpushare_kernel.client.holders import Kind, find, roots
{make}
names = {{"kept": [kept], "view": {view}}}
begin = [root for root in roots(names) if root.kind is Kind.NAME]
found = find(begin, Arrays(device=True), opaque=[names])
say(*(part for h in found.holders for part in (h.label, h.size, [name for name, _ in h.also])), sum(memory.used().values()))
"""


@pytest.mark.parametrize(
    ("make", "view"),
    [
        pytest.param("import torch; kept = torch.ones(GiB, dtype=torch.uint8, device='cuda')", "kept[1:9]", marks=needs("torch")),
        pytest.param("import cupy; kept = cupy.ones(GiB, dtype=cupy.uint8)", "kept[1:9]", marks=needs("cupy")),
        pytest.param("import jax, jax.numpy as jnp; kept = jnp.ones(GiB, dtype=jnp.uint8).block_until_ready()", "kept", marks=needs("jax")),
    ],
)  # fmt: skip
def test_who_holds_what(start: Start, make: str, view: str) -> None:
    """A piece of GPU memory counts once, is told with whoever is nearest, and is what the framework says is in use."""
    label, size, also, used = start(HOLDERS.format(make=make, view=view)).said()
    assert (label, also) == ("view", "['kept']")
    assert GiB <= int(size) <= int(used) < GiB + 64 * MiB
