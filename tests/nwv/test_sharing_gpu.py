"""Pages of a real GPU with a holder: mapped by two processes, unmapped for a checkpoint by the driver, mapped again (I5)."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpushare_kernel.core.values import GiB
from gpushare_kernel.devices import answers
from gpushare_kernel.devices.answers import ProcessState
from gpushare_kernel.devices.cuda_worker import CudaDriver
from gpushare_kernel.nwv import vmm
from tests.broker.house import House

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="needs cuda-bindings"),
]

KERNEL = """
import os, sys
sys.stdin.readline()
import torch
os.environ["GPUSHARE_TOKEN"], os.environ["GPUSHARE_SOCKET"] = sys.stdin.readline().split()
from gpushare_kernel.nwv.bundle import Bundle
from tests.nwv.bundles import made, nets
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
one = made(nets(2), bits=8)
if sys.argv[1] == "share":
    bundle = Bundle(one.packed, one.modules, device="cuda", mode=sys.argv[2])
    bundle.share("eyes")
else:
    bundle = Bundle.shared("eyes", one.modules, device="cuda", mode=sys.argv[2])
x = torch.ones(2, 1, 8, 8, device="cuda")
with torch.no_grad(): expected = {name: model.cuda()(x) for name, model in one.plain.items()}
graph = bundle["net1"].graphed(x)
def run():
    right = all(torch.equal(bundle[name](x), expected[name]) for name in ("net0", "net1", "net0"))
    return right and torch.allclose(graph(x), expected["net1"])
def refused():
    try: bundle["net0"](x)
    except Exception as problem: return "is unmapped" in str(problem)
does = {"run": run, "unmap": bundle.unmap, "remap": bundle.remap, "refused": refused}
print(bundle._stored()._mapping.address, flush=True)
for line in sys.stdin: print(does[line.strip()](), bundle._stored()._mapping.address, flush=True)
"""

WRITES = """
import os, sys, torch
from gpushare_kernel.nwv import vmm
handle, fd = vmm.created(4096)
mapping = vmm.Mapping(4096)
mapping.map(fd, write=True)
memory = torch.as_tensor(mapping, device="cuda")
memory.fill_(7); torch.cuda.synchronize()
mapping.read_only()
assert int(memory.sum()) == 7 * 4096
print("filled", flush=True)
memory.fill_(8); torch.cuda.synchronize()
print("written", flush=True)
"""


class Kernel:
    """A kernel process that shares, or maps, the bundle `eyes`."""

    def __init__(self, house: House, how: str, mode: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", KERNEL, how, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])})  # fmt: skip
        opened = house.open(f"{how}.ipynb")
        house.bind(opened, self.process.pid)
        self._say(f"\n{opened.token} {house.path}\n")
        self.address = self._heard()

    def does(self, what: str) -> str:
        """Have it do something; return what it says of it. Its pages are at one address all the time."""
        self._say(f"{what}\n")
        said, address = self._heard().split()
        assert address == self.address
        return said

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait(20)
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]

    def _say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def _heard(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A broker whose device is taken for a GPU: its holders take memory of the real one."""
    with House(tmp_path, capacity=GiB) as made:
        made.device.inventory = dataclasses.replace(made.device.inventory, kind="cuda")
        yield made


@pytest.mark.parametrize("mode", ["switch", "layers"])
def test_a_kernel_that_unmaps_is_checkpointed_and_goes_on(house: House, mode: str) -> None:
    """B12, I5: lock, checkpoint, restore and unlock from outside, between unmap and remap; another kernel reads on meanwhile."""
    from cuda.bindings import driver

    ours, kernels = CudaDriver(), []
    assert ours.init() == answers.SUCCESS
    try:
        first = Kernel(house, "share", mode)
        kernels.append(first)
        second = Kernel(house, "map", mode)
        kernels.append(second)
        pid = first.process.pid
        assert first.does("run") == second.does("run") == "True"
        for _ in range(2):
            assert first.does("unmap") == "None"
            assert first.does("refused") == "True"
            assert ours.lock(pid, 10_000) == answers.SUCCESS
            assert driver.cuCheckpointProcessCheckpoint(pid, None)[0].name == answers.SUCCESS
            assert ours.state(pid) is ProcessState.CHECKPOINTED
            assert second.does("run") == "True"
            assert driver.cuCheckpointProcessRestore(pid, None)[0].name == answers.SUCCESS
            assert ours.unlock(pid) == answers.SUCCESS
            assert first.does("remap") == "None"
            assert first.does("run") == "True"
        first.end()
        assert second.does("run") == "True"  # the holder has them still
    finally:
        for kernel in kernels:
            kernel.end()
    house.saw(lambda: house.broker.bundles._held == {})


def test_what_the_last_one_lets_go_is_free() -> None:
    """B11: a holder keeps memory as long as its line stands; whoever maps it, longer."""
    import socket

    torch.zeros(1, device="cuda")
    from gpushare_kernel.transport import fds as descriptors

    size = 256 * 2**20
    before = torch.cuda.mem_get_info()[0]
    ours, theirs = socket.socketpair()
    holder = subprocess.Popen([sys.executable, "-P", "-m", "gpushare_kernel.nwv.holder"], stdin=theirs)  # fmt: skip
    theirs.close()
    got: list[int] = []
    ours.send(f"take {size}\n".encode())
    assert descriptors.receive(ours, 200, got).decode().strip() == "ok"
    assert before - torch.cuda.mem_get_info()[0] >= size
    mapping = vmm.Mapping(size)
    mapping.map(got.pop(), write=True)
    memory = torch.as_tensor(mapping, device="cuda")
    memory.fill_(3)
    torch.cuda.synchronize()
    ours.close()
    assert holder.wait(20) == 0
    assert before - torch.cuda.mem_get_info()[0] >= size
    assert int(memory[:1000].sum()) == 3000
    del memory
    mapping.close()
    assert before - torch.cuda.mem_get_info()[0] < size


def test_nobody_writes_to_what_is_filled() -> None:
    """B9: a stray write to mapped pages is an error of the device, in a process of its own here."""
    done = subprocess.run([sys.executable, "-c", WRITES], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])})  # fmt: skip
    assert done.returncode != 0
    assert done.stdout.split() == ["filled"], done.stderr
