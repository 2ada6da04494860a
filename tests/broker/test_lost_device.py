"""A device that falls off the bus, whose driver was replaced, or of which NVML says nothing: nobody stands still, nobody is let in, everybody reads why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from gpushare_kernel.broker.housekeeping import Housekeeping
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import GiB, MiB, SessionId
from gpushare_kernel.devices.base import Target
from gpushare_kernel.devices.model import ModelDevice
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire import texts
from tests.broker.house import Caller, House
from tests.broker.test_desk import end, submit
from tests.procs import key_of


def why_of(how: str) -> str:
    """What the model GPU says of itself when that has happened to it."""
    model = ModelDevice()
    setattr(model, how, True)
    assert model.lost is not None
    return model.lost


@pytest.fixture(params=["fallen", "mismatched", "nvml_gone"])
def why(request: pytest.FixtureRequest) -> str:
    """Each way to lose it, in words."""
    return why_of(request.param)


@pytest.fixture
def tidy(house: House) -> Iterator[Callable[[], None]]:
    """One look of housekeeping at the device, and one at who waits."""
    fd = os.open(house.path.parent / "broker.lock", os.O_RDWR | os.O_CREAT, 0o600)
    places = Places(house.path.parent, system=False, named=True)
    keeper = Housekeeping(house.broker, house.listener, places, 0.0, lock=fd)
    yield lambda: house.do(keeper._tidy)
    os.close(fd)


def last_wait(caller: Caller) -> str:
    """What a waiter reads now."""
    waits = [one for one in caller.notices if isinstance(one, msg.Waiting)]
    return texts.wait_text(waits[-1].wait)


def heard(caller: Caller) -> None:
    """Take in what the broker has said by now: notices come before the reply to what is asked last."""
    caller.ask(msg.GetSnapshot())


def test_who_waits_reads_what_happened_and_what_to_do(
    house: House, tidy: Callable[[], None], why: str
) -> None:
    """Who waited before, and who comes after; then it answers again, and they go on by themselves."""
    holder, early, late = (house.notebook(f"{name}.ipynb") for name in ("holder", "early", "late"))
    holder.ask(submit("h", persistent=0, ephemeral=7 * GiB))
    first = early.send(submit("e", persistent=0, ephemeral=3 * GiB))
    heard(early)
    assert "needs 3.0 GiB" in last_wait(early)
    house.device.lost = why
    tidy()
    second = late.send(submit("l", persistent=0, ephemeral=64 * MiB))
    heard(late)
    tidy()
    for waiter in (early, late):
        heard(waiter)
        said = last_wait(waiter)
        assert said.startswith(f"Waiting for the GPU to answer again: {why}")
        assert "Restart the machine" in said
        assert "ahead" not in said
        assert "holder" not in said
    heard(holder)
    assert [one.text for one in holder.notices if isinstance(one, msg.Announce)] == [why]
    holder.ask(end("h"))
    heard(early)
    assert not early.replies, "room alone lets nobody in"
    house.device.lost = None
    tidy()
    assert isinstance(early.reply(first), msg.Granted)
    assert isinstance(late.reply(second), msg.Granted)


def test_who_stands_still_runs_again_and_is_not_paused_any_more(
    house: House, tidy: Callable[[], None], why: str
) -> None:
    """And the broker stays: what cannot be measured ends no pass of its housekeeping."""
    callers = [house.notebook(f"{n}.ipynb") for n in range(2)]
    for number, caller in enumerate(callers):
        caller.tell(msg.CellStarted(number))
    house.device.busy = True
    house.saw(lambda: "pause" in [what for what, _ in house.device.calls])
    house.device.lost = why

    def gone(managed: int) -> int:
        raise DeviceError(why)

    house.device.foreign = gone  # type: ignore[method-assign]
    tidy()
    core = house.broker.scheduler
    house.saw(lambda: all(one.stopped is None and not one.pausing for one in core.sessions.values()))  # fmt: skip
    before = sum(what == "pause" for what, _ in house.device.calls)
    for _ in range(3):
        tidy()
    assert sum(what == "pause" for what, _ in house.device.calls) == before
    assert not house.broker.stopping.is_set()
    assert {SessionId(c.opened.session) for c in callers} == {*core.sessions}  # type: ignore[attr-defined]


def test_a_lost_model_gpu_measures_nothing_and_fails_nobody() -> None:
    """What the tests above take for granted of it."""
    model = ModelDevice()
    target = Target(key_of(os.getpid()))
    model.fallen = True
    assert model.usage(target) is None
    with pytest.raises(DeviceError, match="Restart the machine"):
        model.foreign(0)
