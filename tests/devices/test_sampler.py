"""The sampler: what is read when, by a clock of the test's own; and once by its own thread."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import MiB
from gpushare_kernel.devices import sampler as sampler_module
from gpushare_kernel.devices.base import NVML_WINDOW
from gpushare_kernel.devices.sampler import LATENCY, Activity, Sampler
from tests.devices.gpu import FakeNvml
from tests.procs import Program, eventually


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The sampler's clock."""
    clock = Clock()
    monkeypatch.setattr(sampler_module, "monotonic", clock)
    return clock


@pytest.fixture
def nvml() -> FakeNvml:
    """A GPU."""
    return FakeNvml()


@pytest.fixture
def sampler(clock: Clock, nvml: FakeNvml) -> Iterator[Sampler]:
    """A sampler without a thread."""
    sampler = Sampler(nvml)
    yield sampler
    sampler.close()
    assert nvml.closed


def run(sampler: Sampler, clock: Clock, nvml: FakeNvml, seconds: float, what: str) -> int:
    """Let time pass, as the thread would; return how often something was read."""
    nvml.calls.clear()
    end = clock.now + seconds
    while (due := clock.now + sampler.step(clock.now)) <= end:
        clock.now = max(due, clock.now + 0.001)
    clock.now = end
    return nvml.calls.count(what)


def test_processes_are_read_rarely_where_nothing_changes(
    sampler: Sampler, clock: Clock, nvml: FakeNvml
) -> None:
    """From once a second to once in five; a change makes it often again."""
    run(sampler, clock, nvml, 30, "processes")
    assert run(sampler, clock, nvml, 20, "processes") == 4
    nvml.free -= 1
    run(sampler, clock, nvml, 5, "processes")
    assert run(sampler, clock, nvml, 5, "processes") > 1


def test_utilization_is_read_only_while_somebody_asks(
    sampler: Sampler, clock: Clock, nvml: FakeNvml
) -> None:
    """Some times a window, until nobody has asked for three seconds; an old value is none."""
    assert run(sampler, clock, nvml, 5, "utilization") == 0
    assert sampler.utilization() is None
    assert 95 <= run(sampler, clock, nvml, 10, "utilization") <= 101
    assert sampler.utilization() is None
    run(sampler, clock, nvml, 0.1, "utilization")
    busy = sampler.utilization()
    assert busy is not None
    assert busy.part == 0.5
    assert clock.now - 2 * NVML_WINDOW - 0.1 <= busy.since < busy.at <= clock.now


def test_a_value_that_changes_dates_its_window(
    sampler: Sampler, clock: Clock, nvml: FakeNvml
) -> None:
    """It was closed between two readings, or a little earlier: it began a window before that at the earliest."""
    sampler.utilization()
    run(sampler, clock, nvml, 0.1, "utilization")
    before = sampler.utilization()
    nvml.busy = 0.9
    run(sampler, clock, nvml, 0.031, "utilization")
    after = sampler.utilization()
    assert before is not None
    assert after is not None
    assert (before.part, after.part) == (0.5, 0.9)
    assert before.at - LATENCY - NVML_WINDOW - 1e-6 <= after.since <= after.at - NVML_WINDOW


def test_who_was_at_work_is_read_only_while_somebody_asks(
    sampler: Sampler, clock: Clock, nvml: FakeNvml
) -> None:
    """Every 0.4 s; each reading has a number."""
    assert sampler.want_activity() is None
    nvml.held = {os.getpid(): MiB}
    sampler.look()
    nvml.seen = [(os.getpid(), 100)]
    assert run(sampler, clock, nvml, 10, "process_utilization") == 8
    activity = sampler.want_activity()
    assert activity is not None
    assert (activity.reading, activity.stamps) == (7, {os.getpid(): 100})


def test_who_is_named_but_does_nothing_is_not_at_work(
    sampler: Sampler, clock: Clock, nvml: FakeNvml
) -> None:
    """Where nobody works, NVML names whoever worked last on and on (seen on an H200)."""
    sampler.want_activity()
    nvml.seen, nvml.part = [(7, 100)], 0.0
    run(sampler, clock, nvml, 1, "process_utilization")
    assert sampler.activity is not None
    assert sampler.activity.stamps == {}
    nvml.part = 0.5  # of what was told of already, nothing is told again
    sampler.want_activity()
    run(sampler, clock, nvml, 1, "process_utilization")
    assert sampler.activity.stamps == {}


def test_what_a_move_does_is_nobody_s_work(sampler: Sampler, nvml: FakeNvml) -> None:
    """A restore's work is given to whoever worked last (seen on an H200), and told of late; what comes after it counts again."""
    me, second = os.getpid(), 10**6
    nvml.held = {me: MiB}
    sampler.look()

    def reading(at: float) -> Activity:
        nvml.seen.append((me, int(at * second)))
        sampler._active(0.0)
        assert sampler.activity is not None
        return sampler.activity

    with sampler.moving():
        during = time.time() + 1e-3
        seen = reading(during)
    assert (seen.blurred, seen.stamps) == (True, {})
    seen = reading(during + 2e-3)  # told of when it is over
    assert (seen.blurred, seen.stamps) == (True, {})
    after = time.time() + 2
    seen = reading(after)
    assert (seen.blurred, seen.stamps) == (False, {me: int(after * second)})


def test_a_clock_that_is_set_back_hides_nobody_s_work(
    sampler: Sampler, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVML's stamps are of the wall clock: those after the step are before the last that was told of."""
    me, now = os.getpid(), 10**6
    nvml.held = {me: MiB}
    sampler.look()
    for at in (1000, 500):
        monkeypatch.setattr(sampler_module, "time", lambda at=at: float(at))
        nvml.seen = [(me, at * now)]
        sampler._active(0.0)
        assert sampler._told == at * now


def test_a_process_is_read_with_its_line_of_parents(sampler: Sampler, nvml: FakeNvml) -> None:
    """Whose it is can be told without a walk; one that has ended is left out."""
    with Program("p = subprocess.Popen(['sleep', '1000']); say(p.pid); wait()") as program:
        (child,) = program.said_pids()
        nvml.held = {child: 3 * MiB, 2**22 + 9: 1}
        sampler.look()
        (user,) = sampler.now.users
        assert (user.size, user.name, user.uid) == (3 * MiB, "sleep", os.getuid())
        assert {child, program.pid, os.getpid()} <= user.line
        assert user.below(program.pid, ())
        assert not user.below(program.pid, {child})
        assert not user.below(child + 1, ())


def test_failures_are_said_once_and_tried_again_rarer(
    sampler: Sampler, clock: Clock, nvml: FakeNvml, caplog: pytest.LogCaptureFixture
) -> None:
    """L10: nothing is known; after a few failures the device is given up; when NVML is back, so is everything."""
    nvml.gone()
    sampler.look()
    assert (sampler.sample, sampler.lost) == (None, None)
    with pytest.raises(DeviceError, match="NVML is gone"):
        _ = sampler.now
    assert run(sampler, clock, nvml, 120, "reopen") < 10
    assert sampler.lost == "NVML is gone"
    assert caplog.text.count("NVML is gone") == 1
    nvml.failure = None
    run(sampler, clock, nvml, 31, "reopen")
    assert (sampler.failure, sampler.lost) == (None, None)
    assert sampler.now.memory.total == 1000 * MiB


@pytest.mark.parametrize("problem", [OSError(23, "Too many open files in system"), MemoryError()])
def test_a_process_that_cannot_be_looked_up_is_a_failure_like_any_other(
    sampler: Sampler,
    clock: Clock,
    nvml: FakeNvml,
    problem: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread lives, says that nothing is known, and knows again."""
    with monkeypatch.context() as patched:
        patched.setattr(nvml, "processes", lambda: (_ for _ in ()).throw(problem))
        sampler.look()
    assert (sampler.sample, sampler.lost) == (None, None)
    assert sampler.failure == (str(problem) or "MemoryError")
    run(sampler, clock, nvml, 31, "reopen")
    assert sampler.failure is None
    assert sampler.now.memory.total == 1000 * MiB


def test_a_lost_gpu_is_lost_at_once(sampler: Sampler, nvml: FakeNvml) -> None:
    """No second look is needed."""
    nvml.gone(lost=True)
    sampler.look()
    assert sampler.lost == "the GPU is lost"


def test_a_hint_has_an_old_list_read_at_once(
    sampler: Sampler, clock: Clock, nvml: FakeNvml
) -> None:
    """A new one is good enough; where NVML is gone nobody hurries it."""
    run(sampler, clock, nvml, 30, "processes")
    run(sampler, clock, nvml, sampler.step(clock.now), "processes")
    sampler.hurry(older_than=1.0)
    assert sampler.step(clock.now) > 0.5
    clock.now += 1.5
    sampler.hurry(older_than=1.0)
    nvml.calls.clear()
    sampler.step(clock.now)
    assert "processes" in nvml.calls
    nvml.gone()
    sampler.look()
    nvml.calls.clear()
    sampler.hurry(older_than=0.0)
    sampler.step(clock.now)
    assert nvml.calls == []


def test_without_a_first_reading_there_is_no_sampler() -> None:
    """The broker does not start on a GPU that nobody can read."""
    nvml = FakeNvml()
    nvml.gone()
    with pytest.raises(DeviceError, match="NVML is gone"):
        Sampler(nvml)


def test_the_thread_reads_what_is_asked_for_and_ends() -> None:
    """The real clock: a first value comes soon, and after `close` nothing is read any more."""
    nvml = FakeNvml()
    sampler = Sampler(nvml)
    sampler.start()
    eventually(lambda: (busy := sampler.utilization()) is not None and busy.part == 0.5)
    eventually(lambda: sampler.want_activity() is not None)
    sampler.close()
    assert nvml.closed
    assert not sampler._thread.is_alive()
