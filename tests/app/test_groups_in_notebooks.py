"""Groups, budgets and a word to everybody, as a notebook sees them: a real broker, kernels through the provisioner."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jupyter_client.provisioning import KernelProvisionerFactory

from gpushare_kernel.client.line import Line
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.errors import UserError
from gpushare_kernel.transport.places import Places
from tests.app.conftest import PATIENCE
from tests.magics.conftest import Kernel, text_of
from tests.procs import eventually

ME = getpass.getuser()
Start = Callable[[], Kernel]


@pytest.fixture
def start(where: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start shared kernels, on a host whose members of `students` may have two, and 512 MiB."""
    path = tmp_path / "gpushare.toml"
    path.write_text(f'[groups.students]\nusers = ["{ME}"]\nmemory = "512MiB"\nkernels = 2\nbudget_per_week = "10min"\n')  # fmt: skip
    ensure_broker(where, PATIENCE, ["--capacity", "1GiB", "--config", str(path)])
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "gpushare")
    KernelProvisionerFactory.clear_instance()
    kernels: list[Kernel] = []

    def one() -> Kernel:
        folder = tmp_path / f"kernel{len(kernels)}"
        folder.mkdir(exist_ok=True)
        kernels.append(Kernel(folder, {"JPY_SESSION_NAME": f"hw{len(kernels)}.ipynb"}))
        return kernels[-1]

    yield one
    for kernel in kernels:
        kernel.close()
    KernelProvisionerFactory.clear_instance()


def test_a_class_of_one(start: Start, where: Places, tmp_path: Path, gpushare) -> None:
    """The third kernel is refused by name, a cell beyond the cap waits for its own user's, and status says what is left."""
    first, second = start(), start()
    with pytest.raises(
        UserError, match=r"may have 2 kernels open, and yours are hw0\.ipynb, hw1\.ipynb"
    ):
        start()
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    runs = first.start(f"%%gpulane 250MiB\nopen({str(gate)!r}).read()\nprint('first')")
    eventually(lambda: snapshot(where).devices[0].lanes)
    waits = second.start("%%gpulane 250MiB\nprint('second')")
    shown: list[str] = []
    outputs = second.outputs(waits)
    for out in outputs:
        shown += text_of(out)
        if any(line.startswith("Waiting for") for line in shown):
            break
    assert "Waiting for memory: needs 250 MiB" in shown[-1]
    assert " left of your own. " in shown[-1]
    assert "Each of the group students may hold 512 MiB of this device. Your own hw0.ipynb holds 2" in shown[-1]  # fmt: skip
    gate.write_text("go")
    assert "second" in [line for out in outputs for line in text_of(out)]
    assert "first" in [line for out in first.outputs(runs) for line in text_of(out)]
    said = "\n".join(second.run("%gpushare status"))
    assert f"{ME} (students): 512 MiB of each device at most, 2 kernels at most," in said
    assert "of 10 min device time left this week, anew in" in said


def test_a_word_and_a_maintenance_reach_a_notebook(start: Start, where: Places, gpushare) -> None:
    """With its next cell; what it declares waits for the end, and its state is there as before."""
    kernel = start()
    kernel.run("kept = 41")
    gpushare("announce", "away on Monday")
    assert kernel.run("None") == ["From your administrator: away on Monday"]
    for _ in range(2):
        gpushare("evict", ME)
    (asked,) = kernel.run("None")
    assert asked.startswith("Your administrator asks for the ")
    gpushare("drain", "--no-wait", "new driver")
    assert "nothing new begins on the device. Nothing is lost." in kernel.run("None")[0]
    assert kernel.run("kept")[-1] == "41"
    waits = kernel.start("%%gpulane 64MiB\nprint(kept + 1)")
    eventually(lambda: [one.reason for one in snapshot(where).queue] == ["maintenance"])
    gpushare("drain", "--end")
    lines = [line for out in kernel.outputs(waits) for line in text_of(out)]
    assert "42" in lines
    assert any("Waiting for the end of a maintenance (new driver)" in line for line in lines)


def snapshot(where: Places):
    with Line(where) as line:
        return line.snapshot()
