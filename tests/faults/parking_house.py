"""A real broker and real kernels on a GPU that lies in files: who is parked, and what its cells do meanwhile."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel import kernel_session, procfs
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices.base import Hold
from gpushare_kernel.wire.snapshot import SessionView
from tests.client.test_frameworks import FOLDER
from tests.faults.conftest import made_host
from tests.faults.host import LIMIT, Host, kill, session_of, stopped
from tests.faults.notebook import Notebook
from tests.faults.scripted_gpu import COMMAND, ScriptedGpu
from tests.procs import eventually

KERNEL_SIDE = Path(__file__).parent / "kernel_side"


class House:
    """The host, the GPU, and a few words of both."""

    def __init__(self, host: Host, gpu: ScriptedGpu, patch: pytest.MonkeyPatch) -> None:
        self.host, self.gpu = host, gpu
        assert ensure_broker.__kwdefaults__ is not None
        patch.setitem(ensure_broker.__kwdefaults__, "command", COMMAND)
        patch.setattr(kernel_session, "_NVIDIA", Path("/dev/null"))
        patch.setattr(kernel_session, "_UNLOCKING", (*COMMAND, "unlock"))

    def notebook(self, name: str) -> Notebook:
        """Start a kernel that has the scripted GPU."""
        notebook = self.host.notebook(
            name,
            PYTHONPATH=f"{KERNEL_SIDE}:{FOLDER}",
            SCRIPTED_GPU=str(self.gpu.place),
            SCRIPTED_BROKER=" ".join(COMMAND),
            GPUSHARE_ADAPTERS="cupy",
        )
        notebook.run("import scripted, time")
        return notebook

    def view(self, notebook: Notebook) -> SessionView:
        """What everybody may see of it."""
        return session_of(self.host.snapshot(), notebook)

    def is_state(self, notebook: Notebook, *states: str, seconds: float = 20) -> SessionView:
        """Wait until the broker says so."""
        return self.host.until(
            lambda seen: one if (one := session_of(seen, notebook)).state in states else None,
            seconds,
        )

    def run(self, notebook: Notebook, code: str) -> list[str]:
        """Run a cell that must not fail; return its outputs."""
        lines = notebook.run(code)
        assert not any("Traceback" in line for line in lines), lines
        return lines

    def emptied(self, *notebooks: Notebook) -> None:
        """Have nothing on the GPU, nothing scripted, and everybody idle."""
        self.gpu.unset("rogue")
        self.gpu.set("go", "")
        shutil.rmtree(self.gpu.place / "machine", ignore_errors=True)
        for notebook in notebooks:
            if self.view(notebook).state not in {"idle", "parked"}:
                notebook.interrupt()
            self.run(notebook, "scripted.clear()")
            self.host.until(lambda seen, its=notebook: _is_empty(session_of(seen, its)))  # type: ignore[misc]
        self.gpu.unset("go")

    def parked(self, notebook: Notebook, size: int = 3) -> Notebook:
        """Give it `size` GiB with a value in it, and have that set aside."""
        self.run(notebook, f"scripted.put('x', {size * 1024}, 42)")
        self.park(notebook)
        return notebook

    def park(self, notebook: Notebook) -> None:
        """Have it set aside by hand."""
        self.host.until(lambda seen: session_of(seen, notebook).p)  # a sample may be a second old
        said = notebook.run("%gpushare park")
        assert any("is set aside" in line for line in said), (said, self.view(notebook))
        self.is_state(notebook, "parked")
        assert self.gpu.state(notebook.pid) == "checkpointed"

    def runs(self, notebook: Notebook) -> bool:
        """Whether its GPU is its own."""
        return self.gpu.state(notebook.pid) == "running"

    def on_record(self, hold: Hold) -> set[ProcessKey]:
        """Who stands in the broker's table of intents."""
        table = IntentTable.open_existing(self.host.places.intents)
        assert table is not None
        with contextlib.closing(table):
            return set(table.held(hold))

    def kill_both(self) -> None:
        """Kill guardian and broker so that neither sees the other's end."""
        broker = self.host.broker
        guardian = self.host.guardian_of(broker)
        procfs.send(guardian, signal.SIGSTOP)
        eventually(lambda: stopped(guardian.pid))
        kill(broker)
        kill(guardian)


def _is_empty(session: SessionView) -> bool:
    return session.state == "idle" and not session.p


@contextlib.contextmanager
def made_house(folder: Path, residency: float = 10.0) -> Iterator[House]:
    """Make one, with its broker, for as long as somebody wants it; who has its memory keeps it for so many seconds at least."""
    with pytest.MonkeyPatch.context() as patch, made_host(folder, patch) as host:
        gpu = ScriptedGpu(host.places.runtime.parent / "gpu")
        gpu.set("residency", residency)
        house = House(host, gpu, patch)
        ensure_broker(host.places, LIMIT)
        yield house
