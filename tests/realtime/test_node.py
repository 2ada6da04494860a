"""Jobs on real node processes: right answers, who goes first at each layer's end, and what happens when something dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import Refused
from gpushare_kernel.realtime.chain import BadModel
from gpushare_kernel.realtime.model import NodeType, Stage
from gpushare_kernel.realtime.node import NodeDied
from gpushare_kernel.realtime.nodes import REHEARSALS, Nodes
from gpushare_kernel.realtime.payload import ShapeChanged
from gpushare_kernel.realtime.pipeline import Pipeline
from gpushare_kernel.realtime.placement import Fixed
from gpushare_kernel.realtime.queues import Mode
from tests.procs import Program, eventually, key_of
from tests.realtime.pieces import ONE, Gate, Layers, Note, X, notes, opened, profile_of, stages


def test_answers_are_the_models(tmp_path: Path) -> None:
    """P3: over two nodes, whatever the cut, with torch; many jobs at once come back in order."""
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4), torch.nn.Softmax(1)
    ).eval()
    inputs = [torch.randn(2, 8) for _ in range(20)]
    for cut in (stages(0, 3), stages(2, 3), stages(3), stages(-1, 3)):
        nodes = Nodes(Fixed((ONE, ONE), {"net": cut}))
        profile = profile_of(model, inputs[0])
        with Pipeline(model, inputs[0], name="net", class_="BE", nodes=nodes, profile=profile) as pipe:  # fmt: skip
            assert nodes.types == (ONE, ONE)
            found = [future.result() for future in [pipe.submit(x) for x in inputs]]
        with torch.inference_mode():
            for x, y in zip(inputs, found, strict=True):
                torch.testing.assert_close(y, model(x))


def test_nodes_work_at_the_same_time(tmp_path: Path) -> None:
    """P4: while one job is on the second node, the next one is on the first."""
    first, second = Gate(tmp_path, "first"), Gate(tmp_path, "second")
    nodes = Nodes(Fixed((ONE, ONE), {"a": stages(0, 1), "b": stages(0, 1)}))
    with opened(nodes, "a", [first, second], [first, second], class_="BE") as pipe:
        one = pipe.submit(X)
        first.pass_one()
        second.entered()
        two = pipe.submit(X)
        first.entered()  # both are inside a layer now
        first.open()
        second.open()
        second.pass_one()
        np.testing.assert_array_equal(one.result(), X)
        np.testing.assert_array_equal(two.result(), X)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (Mode.LAYER, "high1 high2 low1 low2 equal1 be1"),
        (Mode.STAGE, "low1 low2 high1 high2 equal1 be1"),
    ],
)
def test_who_goes_first_at_a_layers_end(tmp_path: Path, mode: Mode, expected: str) -> None:
    """P1, P2: a weightier deadline waits for the layer (or the stage) that runs, equals for all that came before, best effort for all."""
    log, gate = tmp_path / "log", Gate(tmp_path, "gate")
    nodes = Nodes(Fixed((ONE,)), mode)
    low = opened(nodes, "low", [gate, Note(log, "low1"), Note(log, "low2")], [gate])
    others = [
        opened(nodes, "be", [Note(log, "be1")], class_="BE"),
        opened(nodes, "equal", [Note(log, "equal1")]),
        opened(nodes, "high", [Note(log, "high1"), Note(log, "high2")], weight=2),
    ]
    log.unlink()  # what the rehearsals wrote
    futures = [low.submit(X)]
    gate.entered()
    futures += [pipe.submit(X) for pipe in others]  # their messages lie in the node's socket now
    gate.open()
    for future in futures:
        future.result()
    for pipe in (low, *others):
        pipe.close()
    assert notes(log) == expected.split()


@pytest.mark.parametrize("mode", list(Mode))
def test_best_effort_makes_room_within_its_stage(tmp_path: Path, mode: Mode) -> None:
    """P2: in both modes, and it goes on where it was."""
    log, gate = tmp_path / "log", Gate(tmp_path, "gate")
    nodes = Nodes(Fixed((ONE,)), mode)
    be = opened(nodes, "be", [gate, Note(log, "be1")], [gate], class_="BE")
    rt = opened(nodes, "rt", [Note(log, "rt1")])
    log.unlink()
    one = be.submit(X)
    gate.entered()
    two = rt.submit(X)
    gate.open()
    two.result()
    one.result()
    for pipe in (be, rt):
        pipe.close()
    assert notes(log) == ["rt1", "be1"]
    assert be.report().moved == 0


def test_best_effort_moves_on_to_a_node_without_deadlines(tmp_path: Path) -> None:
    """P5: its node is wanted by a deadline at the end of its layer, the next one is free: it ends there."""
    gate, held = Gate(tmp_path, "gate"), Gate(tmp_path, "held")
    nodes = Nodes(Fixed((ONE, ONE), {"be": stages(1), "rt": stages(0)}))
    be = opened(nodes, "be", [gate, Note(tmp_path / "log", "be")], [gate], class_="BE")
    rt = opened(nodes, "rt", [held], [held])
    (tmp_path / "log").unlink()
    one = be.submit(X)
    gate.entered()
    two = rt.submit(X)
    gate.open()
    held.entered()  # the deadline has node 0, and does not let go
    np.testing.assert_array_equal(one.result(), X)
    held.open()
    two.result()
    for pipe in (be, rt):
        pipe.close()
    assert be.report().moved == 1
    assert rt.report().moved == 0


def test_best_effort_that_waits_goes_to_an_idle_node(tmp_path: Path) -> None:
    """P5: also before it has begun."""
    gate, last = Gate(tmp_path, "gate"), Gate(tmp_path, "last")
    nodes = Nodes(Fixed((ONE, ONE), {"rt": stages(2), "be": stages(0)}))
    rt = opened(nodes, "rt", [gate, Note(tmp_path / "log", "rt"), last], [gate, last])
    be = opened(nodes, "be", [Note(tmp_path / "log", "be")], class_="BE")
    one = rt.submit(X)
    gate.entered()
    two = be.submit(X)
    gate.open()
    np.testing.assert_array_equal(two.result(), X)  # while the deadline still has node 0
    last.pass_one()
    one.result()
    for pipe in (rt, be):
        pipe.close()
    assert be.report().moved == 1


def test_a_layers_error_reaches_who_waits_for_it_and_nobody_else(tmp_path: Path) -> None:
    """P7: with the layer's name; the pipeline lives on, and an error that cannot be carried says the same."""

    class Local(Exception):
        def __reduce__(self) -> Any:
            raise TypeError

    def choosy(x: Any) -> Any:
        if x[0] == 1:
            msg = "one"
            raise ValueError(msg)
        if x[0] == 2:
            msg = "two"
            raise Local(msg)
        if x[0] == 3:
            raise SystemExit(3)
        if x[0] == 4:
            return x[:2]
        return x

    nodes = Nodes(Fixed((ONE, ONE), {"net": stages(0, 1)}))
    layers: Layers = [lambda x: x, choosy]
    profile = profile_of(layers, X)
    with Pipeline(layers, X, name="net", class_="BE", nodes=nodes, profile=profile) as pipe:
        futures = [pipe.submit(np.full(4, float(n))) for n in range(6)]
        with pytest.raises(ValueError, match="one") as problem:
            futures[1].result()
        assert "in layer 1 (choosy) of net, on node 1" in problem.value.__notes__[0]
        with pytest.raises(RuntimeError, match="Local: two"):
            futures[2].result()
        with pytest.raises(SystemExit):
            futures[3].result()
        with pytest.raises(
            ShapeChanged, match=r"layer 1 \(choosy\) of net must be array 4 <f8.*not array 2 <f8"
        ):
            futures[4].result()  # fmt: skip
        assert futures[5].result()[0] == 5
    assert (pipe.report().done, pipe.report().failed) == (2, 4)


def test_a_node_that_is_killed_leaves_nobody_waiting(tmp_path: Path) -> None:
    """P8: who waits is told which one died and what to do; a pipeline that is opened afterwards works."""
    gate = Gate(tmp_path, "gate")
    nodes = Nodes(Fixed((ONE, ONE), {"net": stages(0, 1)}))
    pipe = opened(nodes, "net", [lambda x: x, gate], [gate])
    future = pipe.submit(X)
    gate.entered()
    os.kill(nodes.row[1].pid, signal.SIGKILL)
    with pytest.raises(
        NodeDied, match=r"node 1 \(c1, process \d+\) ended by signal 9.*open the pipelines again"
    ):
        future.result()  # fmt: skip
    with pytest.raises(NodeDied):
        pipe.submit(X)
    pipe.close()
    with opened(nodes, "net", [lambda x: x, lambda x: x + 1]) as again:
        np.testing.assert_array_equal(again(X), X + 1)


def test_nodes_end_with_their_kernel(tmp_path: Path) -> None:
    """P8: also one that is killed, and whose child still holds all it had; also in the middle of a layer that hangs."""
    hangs = tmp_path / "hangs"
    code = """
    import numpy as np
    from gpushare_kernel.realtime.nodes import Nodes
    from gpushare_kernel.realtime.pipeline import Pipeline
    from gpushare_kernel.realtime.placement import Fixed
    from gpushare_kernel.realtime.model import NodeType
    from gpushare_kernel.realtime.payload import form_of
    from gpushare_kernel.realtime.profile import Costs, Profile
    x = np.zeros(2)
    nodes = Nodes(Fixed((NodeType(1), NodeType(1))))
    profile = Profile('m', '', ['layer'], [form_of(x)] * 2, {'c1': Costs([60.0], [0.0], [0.0], 1)})
    def layer(x):
        if x[0]:
            import pathlib, time
            pathlib.Path(HANGS).touch()
            time.sleep(600)
        return x
    pipe = Pipeline([layer], x, name='m', class_='BE', nodes=nodes, profile=profile)
    pipe.submit(x + 1)
    child = os.fork()
    if not child:
        time.sleep(600)
        os._exit(0)
    say(child, *(node.pid for node in nodes.row))
    wait()
    """
    with Program(textwrap.dedent(code.replace("HANGS", repr(str(hangs)))), site=True) as kernel:
        child, *pids = kernel.said_pids()
        keys = [key_of(pid) for pid in pids]
        eventually(hangs.exists)
        os.kill(kernel.pid, signal.SIGKILL)
        eventually(lambda: not any(map(procfs.alive, keys)))
        os.kill(child, signal.SIGKILL)


def test_an_interrupt_is_not_for_nodes(tmp_path: Path) -> None:
    """A terminal sends it to the whole group; a layer that starts a process passes nothing on."""
    nodes = Nodes(Fixed((ONE,)))
    layers: Layers = [lambda x: np.array([float(os.getpgid(0)), os.getpid(), _open_sockets(), 0.0])]
    with Pipeline(layers, X, name="n", class_="BE", nodes=nodes, profile=profile_of(layers, X, [X])) as pipe:  # fmt: skip
        group, pid, inherited, _ = pipe(X)
        os.kill(int(pid), signal.SIGINT)
        assert pipe(X)[1] == pid
    assert group == pid
    assert inherited == 0


def _open_sockets() -> int:
    """Return how many descriptors of ours a child of the node has."""
    done = subprocess.run([sys.executable, "-c", "import os; print(sum(os.readlink(f'/proc/self/fd/{n}').startswith(('socket:', '/memfd:gpushare', 'anon_inode:[pidfd]')) for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')))"], capture_output=True, text=True, check=True)  # fmt: skip
    return int(done.stdout)


def test_a_node_has_its_cores_and_threads() -> None:
    """Set before torch is there."""
    layers: Layers = [_placed]
    everywhere = len(os.sched_getaffinity(0))
    for cores in {1, everywhere}:
        kind = NodeType(cores)
        nodes = Nodes(Fixed((kind,)))
        profile = profile_of(layers, X, [X], types=(kind,))
        with Pipeline(layers, X, name="n", class_="BE", nodes=nodes, profile=profile) as pipe:
            affinity, threads, variable, inference = pipe(X)
        # OpenMP has bound the thread to a core of its own; what a piece starts when it is loaded has all of the node's.
        assert (affinity, threads, variable) == (1, cores, cores)
        assert inference


class _Bound:
    """A piece that says how many cores it was loaded on, and how many have a thread that is on no other."""

    def __init__(self, loaded: int = 0) -> None:
        self.loaded = loaded

    def __reduce__(self) -> Any:
        return _loaded, ()

    def __call__(self, value: Any) -> Any:
        torch.rand(300, 300) @ torch.rand(300, 300)
        threads = [int(one.name) for one in Path("/proc/self/task").iterdir()]
        alone = {core for one in map(os.sched_getaffinity, threads) if len(one) == 1 for core in one}  # fmt: skip
        return np.array([self.loaded, len(alone), len(os.sched_getaffinity(0)), 0.0])


def _loaded() -> Any:
    return _Bound(len(os.sched_getaffinity(0)))


def test_each_thread_of_a_node_has_a_core_of_its_own() -> None:
    """Two of them on one core while the other is idle: a layer took three times as long now and then, and lost its class."""
    cores = len(os.sched_getaffinity(0))
    kind = NodeType(cores)
    layers: Layers = [_Bound()]
    profile = profile_of(layers, X, [X], types=(kind,))
    with Pipeline(layers, X, name="n", class_="BE", nodes=Nodes(Fixed((kind,))), profile=profile) as pipe:  # fmt: skip
        loaded, alone, mine, _ = pipe(X)
    assert (loaded, alone, mine) == (cores, cores, 1)


def _placed(_: Any) -> Any:
    return np.array(
        [
            len(os.sched_getaffinity(0)),
            torch.get_num_threads(),
            float(os.environ["OMP_NUM_THREADS"]),
            torch.is_inference_mode_enabled(),
        ],
        dtype=float,
    )


def test_what_cannot_be_sent_or_loaded_is_refused(tmp_path: Path) -> None:
    """With the layer, and nothing stays open."""
    nodes = Nodes(Fixed((ONE,)))
    with (tmp_path / "file").open("w") as file:
        layers: Layers = [lambda x: x, lambda x: file and x]
        with pytest.raises(BadModel, match=r"layer 1 \(layer 1\) must run in a process of its own"):
            opened(nodes, "net", layers)
    with pytest.raises(BadModel, match="cannot be loaded in a node's process: ModuleNotFoundError"):
        opened(nodes, "net", [_Unloadable()])


class _Unloadable:
    def __reduce__(self) -> Any:
        return __import__, ("no_such_module_anywhere",)

    def __call__(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ([Stage(0, 0, 0)], "layers 0 to 1 once each"),
        ([Stage(1, 0, 0), Stage(0, 1, 1)], "in pipeline order"),
        ([Stage(0, 0, 1), Stage(1, 1, 1)], "once each"),
        ([Stage(2, 0, 1)], "on nodes 0 to 1"),
    ],
)
def test_stages_that_are_no_way_are_refused(spans: list[Stage], says: str) -> None:
    """Before any process is started."""
    nodes = Nodes(Fixed((ONE, ONE), {"net": spans}))
    with pytest.raises(Refused, match=says):
        opened(nodes, "net", [abs, abs])


def test_more_cores_than_there_are_is_refused() -> None:
    """With both numbers."""
    nodes = Nodes(Fixed((NodeType(512),)))
    layers: Layers = [abs]
    with pytest.raises(Refused, match="need 512 cores, and"):
        Pipeline(layers, X, class_="BE", nodes=nodes, profile=profile_of(layers, X, types=(NodeType(512),)))  # fmt: skip


def test_closing_in_haste_cancels(tmp_path: Path) -> None:
    """A block that ends by an error waits for nobody; a layer in progress is not waited for."""
    gate = Gate(tmp_path, "gate")
    nodes = Nodes(Fixed((ONE,)))
    other = opened(nodes, "other", [abs], class_="BE")
    pipe = opened(nodes, "net", [gate], [gate], class_="BE")
    future = pipe.submit(X)
    gate.entered()
    with pytest.raises(KeyboardInterrupt), pipe:
        raise KeyboardInterrupt
    with pytest.raises(CancelledError, match="pipeline net was closed"):
        future.result()
    gate.open()
    np.testing.assert_array_equal(other(X), X)  # the node is as it was
    other.close()


def test_new_nodes_take_over_what_is_there(tmp_path: Path) -> None:
    """Where a newcomer changes the nodes, jobs are let end first, and the others work on where they are placed then."""

    class Growing(Fixed):
        def admit(self, task: Any, others: Any) -> Any:
            self.nodes = (ONE,) * (1 + len(others))
            return super().admit(task, others)

    gate = Gate(tmp_path, "gate")
    nodes = Nodes(Growing((ONE,)))
    one = opened(nodes, "one", [gate], [gate], class_="BE")
    future = one.submit(X)
    gate.entered()
    before = nodes.row[0].pid
    again = gate.pass_all(2 * REHEARSALS)  # of `one` on the new nodes, once the job is let go

    two_opened: list[Pipeline] = []
    opening = threading.Thread(target=lambda: two_opened.append(opened(nodes, "two", [abs])))
    opening.start()
    gate.open()
    np.testing.assert_array_equal(future.result(), X)
    opening.join()
    again.join()
    (two,) = two_opened
    assert len(nodes.row) == 2
    assert nodes.row[0].pid != before
    late = one.submit(X)
    gate.pass_one()
    np.testing.assert_array_equal(late.result(), X)
    np.testing.assert_array_equal(two(X), X)
    one.close()
    two.close()
