"""Whoever takes part in a park or a restore is killed in the middle: nothing is lost, nobody stays paused, the next broker knows.

On the GPU of `scripted_gpu`: a move hangs in the driver for as long as the test wants, and a restore without room would lose its process.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.values import GiB
from gpushare_kernel.devices.base import Hold
from tests.faults.conftest import Measured
from tests.faults.host import LIMIT, kill, session_of
from tests.faults.notebook import Notebook
from tests.faults.parking_house import House, made_house
from tests.faults.scripted_gpu import CONTEXT, TOTAL
from tests.procs import Program, eventually


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, Notebook, Notebook]]:
    """Two notebooks for all tests; brokers come and go."""
    with made_house(tmp_path_factory.mktemp("house")) as house:
        yield house, house.notebook("one.ipynb"), house.notebook("two.ipynb")


@pytest.fixture
def house(made: tuple[House, Notebook, Notebook]) -> Iterator[House]:
    """The house, with nothing on its GPU before and after."""
    yield made[0]
    made[0].emptied(*made[1:])


@pytest.fixture
def one(made: tuple[House, Notebook, Notebook]) -> Notebook:
    """The notebook that is parked."""
    return made[1]


@pytest.fixture
def two(made: tuple[House, Notebook, Notebook]) -> Notebook:
    """Another one, which has a context."""
    made[0].run(made[2], "scripted.put('y', 64, 7)")
    return made[2]


def moving(house: House, notebook: Notebook, what: str) -> None:
    """Wait until the driver is at it."""
    eventually(lambda: house.gpu.log(what, notebook.pid) and house.on_record(Hold.MOVER))


def calls(house: House, notebook: Notebook) -> float:
    """Return how long a call of its to the GPU takes now (seconds)."""
    began = time.monotonic()
    house.run(notebook, "scripted.get('y')")
    return time.monotonic() - began


def started_again(house: House, notebook: Notebook) -> None:
    """Restart a kernel, of which nothing is left on the GPU or with the driver."""
    notebook.restart(now=True)
    house.is_state(notebook, "idle")
    house.run(notebook, "import scripted, time\nfrom gpushare_kernel.client import api")
    assert house.run(notebook, "api._session.gpu.away") == ["False"], (
        "its frameworks are asked again"
    )
    assert house.view(notebook).parked is None
    assert house.on_record(Hold.PARK) == set()


# ---------------------------------------------------------------- the kernel


@pytest.mark.parametrize("when", ["parking", "parked", "restoring"])
def test_a_kernel_killed(house: House, one: Notebook, two: Notebook, when: str) -> None:
    """Its memory is free, nobody waits for it, and its notebook begins anew like any other."""
    dead = one.key
    house.run(one, "scripted.put('x', 3072, 42)")
    if when == "parking":
        house.host.until(lambda seen: session_of(seen, one).p)
        with house.gpu.slow_moves(one.pid):
            one.run("%gpushare park")
            moving(house, one, "checkpoint")
            kill(dead)
    else:
        house.park(one)
        with house.gpu.slow_moves(one.pid):
            if when == "restoring":
                one.run("%gpushare unpark")
                moving(house, one, "restore")
            kill(dead)
    assert calls(house, two) < 1, "nobody is held for one that is gone"
    started_again(house, one)
    house.run(one, "scripted.put('x', 3072, 43)")
    house.park(one)
    assert house.run(one, "scripted.get('x')") == ["43"]


def test_a_kernel_restarted_while_parked(house: House, one: Notebook, two: Notebook) -> None:
    """By its button: nothing waits for memory that is nobody's any more."""
    house.parked(one)
    started_again(house, one)
    assert house.run(one, "scripted.put('x', 3072, 43); scripted.get('x')")[-1] == "43"


# ---------------------------------------------------------------- the broker


@pytest.mark.parametrize("when", ["parking", "parked", "restoring"])
@pytest.mark.parametrize("who", ["broker", "both"])
def test_a_broker_killed(  # noqa: PLR0917
    house: House, one: Notebook, two: Notebook, when: str, who: str, measured: Measured
) -> None:
    """The next one knows what is parked, charges nothing for it and brings it back when it is wanted; nobody else stays held."""
    house.run(one, "scripted.put('x', 3072, 42)")
    before = house.host.broker
    guardian = house.host.guardian_of(before)
    house.host.until(lambda seen: session_of(seen, one).p)
    restored = house.gpu.log("restore", one.pid)
    with house.gpu.slow_moves(one.pid):
        one.run("%gpushare park")
        moving(house, one, "checkpoint")
        if when == "parking":
            fall(house, two, who, measured)
    if when != "parking":
        house.is_state(one, "parked")
        with house.gpu.slow_moves(one.pid):
            if when == "restoring":
                one.run("%gpushare unpark")
                moving(house, one, "restore")
                eventually(lambda: house.gpu.state(two.pid) == "locked")
            fall(house, two, who, measured)
    eventually(lambda: not procfs.alive(guardian), 10)
    house.host.until(lambda seen: seen.broker.pid != before.pid)
    if when == "restoring":
        # Its worker ends what it began, there was room: it runs.
        eventually(lambda: house.runs(one), 10)
        house.is_state(one, "idle")
    else:
        seen = house.is_state(one, "parked")
        assert seen.parked == 3 * GiB + CONTEXT
        assert not seen.p
        assert house.gpu.log("restore", one.pid) == restored, "nobody asked for it"
        # There is room, so a cell that begins has its memory on the way; it waits for none of it.
        assert house.run(one, "6 * 7") == ["42"]
    assert "42" in house.run(one, "scripted.get('x')")
    assert calls(house, two) < 1


def fall(house: House, two: Notebook, who: str, measured: Measured) -> None:
    """Kill the broker (and its guardian); whoever is not parked runs again in time."""
    broker = house.host.broker
    began = time.monotonic()
    if who == "broker":
        kill(broker)
        limit = 1.0
    else:
        house.kill_both()
        limit = 5.0
    eventually(lambda: two.manager.is_alive() and house.runs(two), 15)
    seconds = time.monotonic() - began
    measured("who is not parked runs again", seconds)
    ensure_broker(house.host.places, LIMIT)
    assert seconds < limit


def test_a_broker_that_comes_back_restores_nothing_without_room(
    house: House, one: Notebook
) -> None:
    """K1 holds for the next broker, too: somebody else has the memory; what was parked comes when they are gone."""
    house.parked(one)
    with Program("wait()") as other:
        house.gpu.set(f"held.{other.pid}", TOTAL - GiB)
        before = house.host.broker
        kill(before)
        house.host.until(lambda seen: seen.broker.pid != before.pid)
        calling = one.outputs(one.start("print(scripted.get('x'))"))
        one.read_until(calling, "set aside")
        assert house.gpu.state(one.pid) == "checkpointed"
    assert "42" in list(calling)


@pytest.mark.parametrize("waits", [False, True])
def test_a_ledger_lost_while_somebody_is_parked(house: House, one: Notebook, two: Notebook, *, waits: bool) -> None:  # fmt: skip
    """Its own process says which session it is, and it is that again, parked; a call that waits in the driver has its memory."""
    house.parked(
        one, 5
    )  # no room for it twice: nobody brings it back who does not know whose it is
    house.host.forgiven.append("the ledger .* cannot be used")
    broker = house.host.broker
    guardian = house.host.guardian_of(broker)
    for each in (broker, guardian) if waits else (guardian,):
        procfs.send(each, signal.SIGSTOP)
    if waits:
        outputs = one.outputs(one.start("scripted.get('x')"))
    kill(broker)
    house.host.places.ledger.write_bytes(b"nothing of a database " * 100)
    procfs.send(guardian, signal.SIGCONT)
    if waits:
        assert "42" in list(outputs)
    else:
        seen = house.is_state(one, "parked")
        assert (seen.parked, seen.p) == (5 * GiB + CONTEXT, 0)
        assert house.run(one, "1 + 1")[-1] == "2"
        assert "42" in house.run(one, "scripted.get('x')")
    assert house.host.broker != broker
    assert house.run(two, "scripted.get('y')")[-1] == "7"


def test_a_guardian_killed_while_somebody_is_parked(house: House, one: Notebook) -> None:
    """The broker starts another, and nothing else changes."""
    house.parked(one)
    before = house.host.guardian_of(house.host.broker)
    kill(before)
    assert house.host.guardian_of(house.host.broker) != before
    assert house.view(one).state == "parked"
    assert "42" in house.run(one, "scripted.get('x')")


def test_a_broker_that_is_stopped_while_somebody_is_parked(house: House, one: Notebook) -> None:
    """It stays parked, is usable on the CPU, and its memory comes back with the next broker."""
    house.parked(one)
    stop_broker(house.host.places, LIMIT)
    assert house.gpu.state(one.pid) == "checkpointed"
    assert house.run(one, "1 + 1")[-1] == "2"
    ensure_broker(house.host.places, LIMIT)
    seen = house.is_state(one, "parked")
    assert (seen.parked, seen.p) == (3 * GiB + CONTEXT, 0)
    assert "42" in house.run(one, "scripted.get('x')")
