"""Parking from end to end: a real broker, guardian and kernels, on a GPU whose driver and NVML lie in files.

The broker checks the scheduler's rules after every event; one that is broken is an error in its log, which fails the test's host.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from gpushare_widgets.scene import scene

from gpushare_kernel.core.values import GiB, MiB
from tests.faults.host import session_of
from tests.faults.notebook import Notebook
from tests.faults.parking_house import House, made_house
from tests.faults.scripted_gpu import CONTEXT, TOTAL
from tests.procs import eventually

LARGE = "%%gpulane 6GiB\nscripted.put('y', 5120, 7)\nprint('WORKS', flush=True)\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, Notebook, Notebook]]:
    """One broker and two notebooks for all tests: none of them ends any."""
    with made_house(tmp_path_factory.mktemp("house")) as house:
        yield house, house.notebook("one.ipynb"), house.notebook("two.ipynb")


@pytest.fixture
def house(made: tuple[House, Notebook, Notebook]) -> Iterator[House]:
    """The house, with nothing on its GPU before and after."""
    yield made[0]
    made[0].emptied(*made[1:])


@pytest.fixture
def one(made: tuple[House, Notebook, Notebook]) -> Notebook:
    """A notebook."""
    return made[1]


@pytest.fixture
def two(made: tuple[House, Notebook, Notebook]) -> Notebook:
    """Another one of the same user."""
    return made[2]


def gpushare(house: House, *words: str) -> str:
    """Run a command line."""
    command = [sys.executable, "-m", "gpushare_kernel.app.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ}, check=False)  # fmt: skip
    return done.stdout + done.stderr


def at_work(house: House, notebook: Notebook) -> Iterator[str]:
    """Have a declared cell hold 6 GiB until the test says go; return its outputs."""
    outputs = notebook.outputs(notebook.start(LARGE + "scripted.wait_for('go')"))
    notebook.read_until(outputs, "WORKS")
    return outputs


def test_an_idle_notebook_makes_room_and_has_its_memory_back(
    house: House, one: Notebook, two: Notebook
) -> None:
    """Its CPU side runs meanwhile, its GPU call waits and says so, and its value is what it was."""
    house.run(one, "scripted.put('x', 3072, 42)")
    working = at_work(house, two)
    assert house.gpu.state(one.pid) == "checkpointed"
    assert house.view(one).parked == 3 * GiB + CONTEXT
    began = time.monotonic()
    assert one.run("1 + 1") == ["2"]
    assert time.monotonic() - began < 1, "who parks and calculates waits for nothing"
    assert house.gpu.state(one.pid) == "checkpointed", (
        "a cell that needs no GPU brings nothing back"
    )
    calling = one.outputs(one.start("print(scripted.add('x', 1))"))
    told = one.read_until(calling, "set aside")
    assert "(3.5 GiB, nothing lost)" in told
    assert "two.ipynb" in told
    house.gpu.set("go", "")
    list(working)
    rest = list(calling)
    assert {"43", "Your GPU memory is back."} <= set(rest), rest
    assert house.runs(one)
    assert house.gpu.log("restore", one.pid) == 1


def test_an_interrupt_of_who_waits_for_its_memory(
    house: House, one: Notebook, two: Notebook
) -> None:
    """It comes first in the queue, and its cell sees the interrupt when it is back (Q9)."""
    house.parked(one)
    working = at_work(house, two)
    calling = one.outputs(one.start("scripted.add('x', 1); print('not reached')"))
    one.read_until(calling, "set aside")
    one.interrupt()
    house.gpu.set("go", "")
    list(working)
    lines = list(calling)
    assert any("KeyboardInterrupt" in line for line in lines), lines
    assert "not reached" not in lines
    assert house.run(one, "scripted.get('x')") == ["42"]


def test_by_hand(house: House, one: Notebook) -> None:
    """In the notebook and from a terminal; `status --json` and the live view know."""
    house.run(one, "scripted.put('x', 3072, 42)")
    house.park(one)
    seen = json.loads(gpushare(house, "status", "--json"))
    (view,) = [each for each in seen["sessions"] if each["id"] == one.session]
    assert (view["state"], view["parked"]) == ("parked", 3 * GiB + CONTEXT)
    assert "is put back now" in gpushare(house, "unpark", "one")
    house.is_state(one, "idle")
    assert "3.5 GiB of GPU memory is set aside" in gpushare(house, "park", "one.ipynb")
    house.is_state(one, "parked")
    assert "is put back now" in one.run("%gpushare unpark")[-1]
    house.is_state(one, "idle")
    assert house.run(one, "scripted.get('x')") == ["42"]
    assert "Nothing to put back" in gpushare(house, "unpark", "one")


def test_the_live_view_shows_who_is_parked_and_who_comes_back(house: House, one: Notebook) -> None:
    """As a picture: no bytes on the device, then on their way."""
    house.parked(one)
    shown = repr(scene(house.host.snapshot(), now=0.0))
    assert "parked" in shown
    with house.gpu.slow_moves(one.pid):
        gpushare(house, "unpark", "one")
        house.is_state(one, "restoring")
        shown = repr(scene(house.host.snapshot(), now=0.0))
        assert "restoring" in shown or "coming back" in shown
    house.is_state(one, "idle")


def test_a_rogue_takes_the_room_before_the_restore(house: House, one: Notebook) -> None:
    """I5: it is looked before it begins: not now, again and again, and nothing is lost."""
    house.parked(one)
    house.gpu.set("rogue", TOTAL - GiB)
    calling = one.outputs(one.start("print(scripted.get('x'))"))
    eventually(lambda: _not_now(house) >= 2, 20)
    assert house.gpu.state(one.pid) == "checkpointed"
    house.gpu.unset("rogue")
    assert "42" in list(calling)
    assert house.gpu.log("restore", one.pid) == house.gpu.log("checkpoint", one.pid)


def _not_now(house: House) -> int:
    return sum(
        "not-now" in line["message"] or "not now" in line["message"] for line in house.host.log()
    )


def test_two_that_want_each_others_memory_in_turn(
    house: House, one: Notebook, two: Notebook
) -> None:
    """Twenty rounds: neither waits for ever, nothing is lost, and in the end nobody is charged for more than there is."""
    for notebook in (one, two):
        house.run(notebook, "%%gpulane 6GiB\nscripted.put('x', 5120, 0)")
    for number in range(20):
        notebook = (one, two)[number % 2]
        lines = notebook.run("print(scripted.add('x', 1))")
        assert str(number // 2 + 1) in lines, (number, lines)
    seen = house.host.snapshot()
    (device,) = seen.devices
    states = sorted(session_of(seen, notebook).state for notebook in (one, two))
    assert states == ["idle", "parked"]
    assert device.persistent <= 5 * GiB + MiB
    assert device.free >= 0


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"proc/meminfo": "MemAvailable: 2097152 kB\n"}, "leave 2.0 GiB"),
        ({"proc/self/mountinfo": "30 1 0:2 / /sys/fs/cgroup rw - cgroup2 none rw\n", "proc/{pid}/cgroup": "0::/hw\n", "sys/fs/cgroup/hw/memory.max": str(4 * GiB), "sys/fs/cgroup/hw/memory.current": str(GiB)}, "leave 3.0 GiB"),
        ({"proc/{pid}/status": "VmSize: 1048576 kB\n", "proc/{pid}/limits": f"Max address space {3 * GiB} {3 * GiB} bytes\n"}, "RLIMIT_AS, ulimit) that leaves 2.0 GiB"),
    ],
    ids=["machine", "control-group", "ulimit"],
)  # fmt: skip
def test_a_host_that_is_short_of_memory(house: House, one: Notebook, files: dict[str, str], why: str) -> None:  # fmt: skip
    """K10: it keeps its GPU memory, runs on, and it is said why."""
    house.run(one, "scripted.put('x', 3072, 42)")
    for name, text in files.items():
        file = house.gpu.place / "machine" / name.format(pid=one.pid)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    before = len(house.host.log())
    gpushare(house, "park", "one")
    told = lambda: [line["why"] for line in house.host.log()[before:] if why in line.get("why", "")]  # noqa: E731
    eventually(told, 10)
    eventually(lambda: house.runs(one))
    assert house.run(one, "scripted.get('x')") == ["42"]
    assert house.view(one).parked is None
