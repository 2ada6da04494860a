"""Notebooks on a real GPU: a broker is killed with one of them paused, and turns go on under the next one."""

from __future__ import annotations

import importlib.util
import mmap
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices.base import Hold
from tests.faults.conftest import Measured
from tests.faults.host import LIMIT, Host, kill
from tests.faults.notebook import Notebook
from tests.procs import eventually

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch"),
]

CELL = """
import mmap, os, struct, torch
shared = mmap.mmap(os.open({path!r}, os.O_RDWR), 8)
a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
b = torch.empty_like(a)
print("burning", flush=True)
count = 0
while True:
    for _ in range(4): torch.matmul(a, a, out=b)
    torch.cuda.synchronize(); count += 1; shared[:8] = struct.pack("<Q", count)
"""


class Worker:
    """A notebook whose cell multiplies matrices and counts."""

    def __init__(self, host: Host, name: str, folder: Path) -> None:
        self.path = folder / name
        self.path.write_bytes(bytes(8))
        with self.path.open("rb") as file:
            self._shared = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
        self.notebook: Notebook = host.notebook(f"{name}.ipynb")
        self._outputs = self.notebook.outputs(self.notebook.start(CELL.format(path=str(self.path))))
        self.notebook.read_until(self._outputs, "burning")

    def count(self) -> int:
        return int(struct.unpack("<Q", self._shared[:8])[0])

    def goes_on(self, seconds: float = 60) -> None:
        before = self.count()
        eventually(lambda: self.count() > before + 20, seconds)


@pytest.fixture
def two(host: Host, tmp_path: Path) -> Iterator[list[Worker]]:
    """Two that saturate the GPU: they take turns."""
    host.start("--device", "0")
    workers = [Worker(host, name, tmp_path) for name in ("one", "two")]
    for worker in workers:
        worker.goes_on()
    yield workers
    for worker in workers:
        if not worker.notebook.closed:
            worker.notebook.interrupt()


def locked(host: Host) -> set[ProcessKey]:
    """Who is on record as locked, or about to be."""
    table = IntentTable.open_existing(host.places.intents)
    if table is None:
        return set()
    held = set(table.held(Hold.LOCK))
    table.close()
    return held


def test_a_broker_killed_in_the_middle_of_a_turn(
    host: Host, two: list[Worker], measured: Measured
) -> None:
    """I4: both run within a second, another broker comes, and turns go on under it."""
    eventually(lambda: locked(host), 60)
    broker = host.broker
    kill(broker)
    began = time.monotonic()
    for worker in two:
        before = worker.count()
        eventually(lambda: worker.count() > before + 3, 10)  # noqa: B023
    measured("both run again, broker killed", time.monotonic() - began)
    assert host.broker != broker
    eventually(lambda: locked(host), 60)
    for worker in two:
        worker.goes_on()


def test_a_kernel_killed_while_it_is_locked(host: Host, two: list[Worker]) -> None:
    """The other one has the GPU; nothing of the dead one stays on record."""
    eventually(lambda: locked(host), 60)
    victim, other = two
    dead = victim.notebook.key
    eventually(lambda: dead in locked(host), 60)
    kill(dead)
    other.goes_on()
    eventually(lambda: not procfs.alive(dead) and dead not in locked(host), 60)
    victim.notebook.close()


def test_every_kernel_runs_when_its_broker_leaves(host: Host, two: list[Worker]) -> None:
    """L3: a stop is no pause: both count on, and nobody is on record."""
    eventually(lambda: locked(host), 60)
    broker = host.broker
    stop_broker(host.places, LIMIT)
    eventually(lambda: not procfs.alive(broker), 20)
    for worker in two:
        worker.goes_on()
