"""Import hooks, and CuPy and JAX as far as a few lines of them go; the real ones are in test_adapters_gpu.py."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpushare_kernel.client.adapters import Adapters, enabled
from gpushare_kernel.client.session import Session
from gpushare_kernel.core.values import GiB, MiB
from gpushare_kernel.wire import framework_texts
from gpushare_kernel.wire.messages import CellStarted, End, Submit
from tests.client.gpu_notebook import Notebook, cuda
from tests.client.scripted_broker import ScriptedBroker, attached
from tests.client.test_session import in_thread

__all__ = ["cuda"]
New = Callable[[], Session]
FOLDER = Path(__file__).parent / "frameworks"
OURS = ("cupy", "jax", "jax_plugins")


@pytest.fixture(autouse=True)
def fresh_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The frameworks of a few lines can be imported, and none is."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("GPUSHARE_ADAPTERS", "cupy,jax")
    before = {n: m for n, m in sys.modules.items() if n.partition(".")[0] in OURS}
    for name in before:
        del sys.modules[name]
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] in OURS]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def notebook(new_session: New, broker: ScriptedBroker) -> Notebook:
    """A session on a GPU."""
    return Notebook(new_session(), broker, attached("cuda", 78 * GiB, reserve=600 * MiB))


def met(notebook: Notebook) -> list[str]:
    """The frameworks that were met."""
    return [adapter.name for adapter in notebook.gpu.adapters.active]


# --- Meeting frameworks ------------------------------------------------------------------------------------------


def test_a_framework_is_met_when_it_is_imported(notebook: Notebook) -> None:
    """Attaching imports nothing; importing meets."""
    assert not [name for name in OURS if name in sys.modules]
    import_module("cupy")
    assert met(notebook) == ["cupy"]
    import_module("jax")
    assert met(notebook) == ["cupy", "jax"]


def test_what_was_imported_before_is_met_at_once(new_session: New, broker: ScriptedBroker) -> None:
    """A notebook may import before its broker answers."""
    import_module("cupy")
    assert met(Notebook(new_session(), broker)) == ["cupy"]


def test_half_an_import_is_waited_for(new_session: New, broker: ScriptedBroker) -> None:
    """A framework that another thread is just importing is met at the next cell's end, not in the middle."""
    import_module("cupy")
    spec: Any = sys.modules["cupy"].__spec__
    spec._initializing = True
    notebook = Notebook(new_session(), broker)
    assert met(notebook) == []
    spec._initializing = False
    notebook.session.cell_ended(1)
    assert met(notebook) == ["cupy"]


def test_two_threads_meet_a_framework_once(new_session: New, broker: ScriptedBroker) -> None:
    """A cell that ends while the reader thread is looking meets what both saw; the other passes on."""
    import_module("cupy")
    notebook = Notebook(new_session(), broker)
    adapters = notebook.gpu.adapters
    notebook.gpu.adapters.remove()
    adapters._names = ("cupy",)

    class Looking:
        """A spec that has the other thread come first."""

        def __init__(self) -> None:
            self.looks = 0

        @property
        def _initializing(self) -> bool:
            self.looks += 1
            if self.looks == 1:
                in_thread(adapters.meet_late).result(20)
            return False

    sys.modules["cupy"].__spec__ = Looking()  # type: ignore[assignment]
    adapters._late.append("cupy")
    adapters.meet_late()
    assert met(notebook) == ["cupy"]


def test_a_framework_met_while_the_session_closes_is_left(new_session: New, broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Its hooks are taken back by whoever put them there."""
    cupy: Any = import_module("cupy")
    adapter = import_module("gpushare_kernel.client.adapters.cupy")
    session, hook = new_session(), adapter.CuPy.hook

    def close_and_hook(self: Any) -> None:
        self._gpu.adapters.remove()
        hook(self)

    monkeypatch.setattr(adapter.CuPy, "hook", close_and_hook)
    assert met(Notebook(session, broker)) == []
    assert cupy.cuda.get_allocator() == cupy.get_default_memory_pool().malloc


def test_an_import_that_fails_is_met_later(new_session: New, broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Where the import that was under way failed, the next one is met."""
    half = ModuleType("cupy")
    half.__spec__ = ModuleSpec("cupy", None)
    half.__spec__._initializing = True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", half)
    notebook = Notebook(new_session(), broker)
    del sys.modules["cupy"]
    notebook.session.cell_ended(1)
    import_module("cupy")
    assert met(notebook) == ["cupy"]


def test_a_framework_that_cannot_be_met_still_imports(notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A version that we do not understand is one line, and the user's import goes on."""
    (tmp_path / "cupy.py").write_text("__version__ = '99'\nx = 1\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_module("cupy").x == 1
    assert met(notebook) == []
    (line,) = notebook.shown
    assert line.startswith("cupy 99 is shared, but not all of it is seen: AttributeError: ")


@pytest.mark.parametrize(
    ("value", "names"),
    [(None, ("torch", "cupy", "jax")), ("off", ()), ("torch, cupy", ("torch", "cupy")), ("", ())],
)
def test_which_are_met(monkeypatch: pytest.MonkeyPatch, value: str | None, names: tuple[str, ...]) -> None:  # fmt: skip
    """GPUSHARE_ADAPTERS: unset is all, off is none, and a list is what it says."""
    if value is None:
        monkeypatch.delenv("GPUSHARE_ADAPTERS")
    else:
        monkeypatch.setenv("GPUSHARE_ADAPTERS", value)
    assert enabled() == names


def test_hooks_come_with_a_gpu_only(new_session: New, broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """On a host device no framework is looked out for."""
    monkeypatch.setattr(Adapters, "install", lambda _self: pytest.fail("installed"))
    session = new_session()
    session.start()
    broker.accept()
    session.wait_attached(20)


def test_real_torch_is_met_when_imported(broker: ScriptedBroker) -> None:
    """The hook meets the real package, and importing it starts no CUDA."""
    broker.serve(kind="cuda")
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from pathlib import Path\n"
        "from gpushare_kernel.client.session import Session\n"
        f"session = Session('the-token', Path({str(broker.path)!r})); session.start(); session.wait_attached(20)\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "print([a.name for a in session.gpu.adapters.active], torch.cuda.is_initialized(), torch.__spec__.loader.__class__.__name__)\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)  # fmt: skip
    assert (done.stdout, done.returncode) == ("['torch'] False SourceFileLoader\n", 0), done.stderr


# --- CuPy --------------------------------------------------------------------------------------------------------


def test_cupy_first_use_is_held_once(notebook: Notebook) -> None:
    """The first allocation waits for room; the pool is then called directly, as without us."""
    cupy: Any = import_module("cupy")
    pool, peer = cupy.get_default_memory_pool(), notebook.peer
    admitted = in_thread(lambda: (peer.expect(CellStarted), peer.grant(*peer.expect(Submit))))
    notebook.session.cell_started(1)
    kept = cupy.empty(10 * MiB)
    admitted.result(20)
    assert cupy.cuda.get_allocator() == pool.malloc
    kept2 = cupy.empty(20 * MiB)
    del kept, kept2
    notebook.session.cell_ended(1)
    end = peer.expect(End)[1]
    assert (end.persistent, end.peak) == (30 * MiB, 30 * MiB)


def test_cupy_is_capped_and_trimmed(notebook: Notebook) -> None:
    """Above the limit free blocks go back; then the pool has a limit, and None takes it away."""
    cupy: Any = import_module("cupy")
    pool = cupy.get_default_memory_pool()
    cupy.empty(30 * MiB)
    assert pool.calls == []
    notebook.budget(20 * MiB)
    notebook.session.boundary()
    assert pool.calls == ["synchronize", "free_all_blocks", f"set_limit {20 * MiB}"]
    notebook.budget(None)
    notebook.session.boundary()
    assert pool.calls[-1] == "set_limit 0"


def test_a_limit_of_the_users_own_is_kept_to(notebook: Notebook) -> None:
    """CuPy's, as CUPY_GPU_MEMORY_LIMIT or the user set it: the smaller of the two holds, and theirs is there when ours is lifted."""
    cupy: Any = import_module("cupy")
    pool = cupy.get_default_memory_pool()

    def capped(limit: int | None) -> int:
        notebook.budget(limit)
        notebook.session.boundary()
        return int(pool.limit)

    pool.set_limit(size=20 * MiB)
    kept = cupy.empty(MiB)
    assert capped(40 * MiB) == 20 * MiB
    assert capped(10 * MiB) == 10 * MiB
    assert capped(None) == 20 * MiB
    pool.set_limit(size=50 * MiB)
    assert capped(40 * MiB) == 40 * MiB
    assert capped(None) == 50 * MiB
    pool.set_limit(size=0)
    assert capped(40 * MiB) == 40 * MiB
    assert capped(None) == 0
    del kept


def test_what_is_held_and_what_of_it_is_used(notebook: Notebook) -> None:
    """By each framework's own count, once it is there."""
    memory = notebook.gpu.memory
    assert memory.used() == {}
    cupy, jax = import_module("cupy"), import_module("jax")
    kept = cupy.empty(10 * MiB)
    cupy.empty(20 * MiB)
    jax.local_devices()
    assert {adapter.name: size for adapter, size in memory.held().items()} == {"cupy": 30 * MiB, "jax": 8}  # fmt: skip
    assert {adapter.name: size for adapter, size in memory.used().items()} == {"cupy": 10 * MiB, "jax": 5}  # fmt: skip
    del kept


def test_an_allocator_of_the_users_own_stays(new_session: New, broker: ScriptedBroker) -> None:
    """Whoever set an allocator keeps it."""
    cupy: Any = import_module("cupy")
    mine = lambda size: size  # noqa: E731
    cupy.cuda.set_allocator(mine)
    Notebook(new_session(), broker)
    assert cupy.cuda.get_allocator() is mine


# --- JAX ---------------------------------------------------------------------------------------------------------


def test_jax_first_use_is_held(notebook: Notebook) -> None:
    """Making the backends waits for room, once; its numbers are those of its pool."""
    jax: Any = import_module("jax")
    assert notebook.session.memory.now() == 0
    assert not jax._src.xla_bridge.made
    peer = notebook.peer
    admitted = in_thread(lambda: (peer.expect(CellStarted), peer.grant(*peer.expect(Submit))))
    notebook.session.cell_started(1)
    jax.local_devices()
    admitted.result(20)
    assert notebook.session.memory.now() == 8
    jax.local_devices()


def test_what_is_wrapped_is_pickled_by_name(notebook: Notebook) -> None:
    """A function of a notebook that uses it goes to workers as without us."""
    bridge: Any = import_module("jax")._src.xla_bridge
    assert notebook.gpu.adapters.active[0]._wrapped is bridge.backends  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(bridge.backends)) is bridge.backends


def test_jax_peaks(notebook: Notebook) -> None:
    """A peak that rose is this job's; one that did not says nothing, and what is held stands in for it."""
    jax: Any = import_module("jax")
    jax.local_devices()
    memory = notebook.session.memory
    memory.start_peak()
    assert memory.peak() == 8
    jax.stats["peak_pool_bytes"] = 50
    assert memory.peak() == 50


@pytest.mark.parametrize(("platforms", "held"), [("cpu", False), ("cuda,cpu", True), (None, True)])
def test_jax_on_the_cpu_is_not_held(notebook: Notebook, platforms: str | None, held: bool) -> None:
    """JAX_PLATFORMS=cpu uses no GPU: nobody is asked."""
    jax: Any = import_module("jax")
    jax.config.jax_platforms = platforms
    asked: list[bool] = []
    notebook.gpu.first_use = lambda: asked.append(True)  # type: ignore[method-assign]
    jax.local_devices()
    assert bool(asked) is held


def test_jax_without_its_gpu_plugin_is_not_held(notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A JAX that was installed for the CPU has no plugin for a GPU."""
    (tmp_path / "jax_plugins").mkdir()
    (tmp_path / "jax_plugins/__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    jax: Any = import_module("jax")
    notebook.gpu.first_use = lambda: pytest.fail("asked")  # type: ignore[method-assign]
    jax.local_devices()


def test_a_jax_without_that_private_name(notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A later JAX that hides its backends is said once and counted by the driver alone."""
    (tmp_path / "jax.py").write_text("__version__ = '99'\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_module("jax")
    assert notebook.shown == [
        framework_texts.adapter_text("jax", "99", "its first use of the GPU is not seen")
    ]
    assert notebook.session.memory.now() == 0


# --- Together ------------------------------------------------------------------------------------------------------


def test_frameworks_share_one_limit(notebook: Notebook) -> None:
    """What one framework holds is not there for the other; JAX keeps what it was started with."""
    cupy: Any = import_module("cupy")
    jax: Any = import_module("jax")
    jax.local_devices()
    jax.stats["pool_bytes"] = 30 * MiB
    cupy.empty(10 * MiB)
    notebook.budget(100 * MiB)
    notebook.session.boundary()
    assert cupy.get_default_memory_pool().limit == 70 * MiB
    assert notebook.session.memory.now() == 40 * MiB


def test_a_framework_that_cannot_say_counts_as_nothing(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A number that cannot be had must not end a cell."""
    cupy: Any = import_module("cupy")
    cupy.empty(MiB)

    def broken() -> int:
        msg = "no"
        raise RuntimeError(msg)

    monkeypatch.setattr(cupy.get_default_memory_pool(), "total_bytes", broken)
    assert notebook.session.memory.peak() == 0


def test_budget_in_two_threads_is_applied_once(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """While one thread applies it, another passes by."""
    cupy: Any = import_module("cupy")
    cupy.empty(MiB)
    inside, go = threading.Event(), threading.Event()
    caps: list[int] = []

    def slow(size: int) -> None:
        caps.append(size)
        inside.set()
        assert go.wait(20)

    monkeypatch.setattr(cupy.get_default_memory_pool(), "set_limit", slow)
    notebook.budget(5 * MiB)
    first = in_thread(notebook.session.boundary)
    assert inside.wait(20)
    notebook.gpu.apply()
    go.set()
    first.result(20)
    assert caps == [5 * MiB]
