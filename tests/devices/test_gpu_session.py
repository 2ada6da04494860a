"""A session of several GPU processes: locked together or not at all; children, survivors, and what NVML says of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import MiB, PauseStatus, ProcessKey
from gpushare_kernel.devices.base import Hold, Target
from tests.devices.gpu import Gpu
from tests.procs import Program, eventually, key_of

PARENT = """
children = [subprocess.Popen(['sleep', '1000']) for _ in range(2)]
say(*[child.pid for child in children]); wait()
"""


class Family(Program):
    """A process with two children."""

    def __init__(self) -> None:
        super().__init__(PARENT)
        self.children = [key_of(pid) for pid in self.said_pids()]
        self.target = Target(self.key)
        self.all = [self.key, *self.children]


@pytest.fixture
def family() -> Iterator[Family]:
    """A session of three processes."""
    with Family() as family:
        yield family


# ---------------------------------------------------------------- together or not at all


def test_all_that_have_a_context_are_locked_and_unlocked_together(gpu: Gpu, family: Family) -> None:
    """L4: each with a worker of its own."""
    gpu.holds(*family.all)
    assert gpu.pause(family.target).status is PauseStatus.PAUSED
    assert {gpu.state(key) for key in family.all} == {"locked"}
    assert set(gpu.record.keys) == set(gpu.device.paused(family.target)) == set(family.all)
    assert len({gpu.worker_of(key) for key in family.all}) == 3
    assert gpu.resume(family.target) is PauseStatus.NOTHING
    assert {gpu.state(key) for key in family.all} == {"running"}
    assert gpu.record.keys == []


def test_they_are_locked_side_by_side(gpu: Gpu, family: Family) -> None:
    """L4: two that wait for each other would never drain one after the other: all are asked before one has answered."""
    gpu.holds(*family.all)
    gpu.shut("gate")
    assert gpu.pause(family.target, limit=0.3).status is PauseStatus.BUSY
    assert sorted(line.split()[1] for line in gpu.log()) == sorted(str(k.pid) for k in family.all)
    gpu.opened("gate")
    eventually(lambda: not any(gpu.busy_with(key) for key in family.all))
    assert {gpu.state(key) for key in family.all} == {"running"}
    gpu.device.usage(family.target)
    assert gpu.record.keys == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("CUDA_ERROR_NOT_READY", PauseStatus.BUSY),
        ("CUDA_ERROR_NOT_SUPPORTED", PauseStatus.UNSUPPORTED),
        ("CUDA_ERROR_OPERATING_SYSTEM", PauseStatus.FORBIDDEN),
    ],
)
def test_one_that_cannot_be_locked_frees_all(
    gpu: Gpu, family: Family, answer: str, status: PauseStatus
) -> None:
    """L4: it still drains, is profiled, or is somebody else's: nobody waits for a locked sibling."""
    gpu.holds(*family.all)
    gpu.set(f"answer.{family.children[1].pid}", answer)
    assert gpu.pause(family.target).status is status
    assert {gpu.state(key) for key in family.all} == {"running"}
    assert gpu.record.keys == []
    assert not gpu.device.paused(family.target)


@pytest.mark.parametrize("answer", ["CUDA_ERROR_NOT_INITIALIZED", "CUDA_ERROR_ASSERT"])
def test_one_that_has_nothing_to_lock_keeps_nobody_from_it(
    gpu: Gpu, family: Family, answer: str
) -> None:
    """L4: without a context, or with a lost one, it does no work."""
    gpu.holds(*family.all)
    gpu.set(f"answer.{family.pid}", answer)
    assert gpu.pause(family.target).status is PauseStatus.PAUSED
    assert set(gpu.device.paused(family.target)) == set(family.children)
    assert gpu.resume(family.target) is PauseStatus.NOTHING


def test_without_a_context_there_is_nothing_to_pause(gpu: Gpu, family: Family) -> None:
    """The root is asked, since the driver knows before NVML says so; its children are not."""
    gpu.set("answer", "CUDA_ERROR_NOT_INITIALIZED")
    assert gpu.pause(family.target).status is PauseStatus.NOTHING
    assert [line.split()[1] for line in gpu.log()] == [str(family.pid)]


def test_a_stopped_child_does_not_keep_the_session_from_pausing(gpu: Gpu, family: Family) -> None:
    """L5: it submits no more; continued while the session is paused, it is locked at the next look."""
    gpu.holds(*family.all)
    child = family.children[0]
    os.kill(child.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(child.pid) == "T")
    assert gpu.pause(family.target).status is PauseStatus.PAUSED
    assert gpu.state(child) == "running"
    os.kill(child.pid, signal.SIGCONT)
    eventually(lambda: procfs.state(child.pid) == "S")
    assert gpu.still(family.target)
    assert gpu.state(child) == "locked"
    assert gpu.resume(family.target) is PauseStatus.NOTHING


def test_a_child_that_appears_while_its_session_is_paused_is_locked_at_the_next_look(
    gpu: Gpu, family: Family
) -> None:
    """L7: it is no cheat."""
    gpu.holds(family.key)
    gpu.pause(family.target)
    gpu.holds(*family.all)
    assert gpu.still(family.target)
    assert {gpu.state(key) for key in family.all} == {"locked"}
    assert gpu.resume(family.target) is PauseStatus.NOTHING
    assert gpu.record.keys == []


def test_sub_trees_that_are_sessions_are_left_out(gpu: Gpu, family: Family) -> None:
    """Neither locked nor counted."""
    gpu.holds(*family.all)
    first, second = family.children
    target = Target(family.key, frozenset({first.pid}))
    assert gpu.pause(target).status is PauseStatus.PAUSED
    assert set(gpu.device.paused(target)) == {family.key, second}
    usage = gpu.device.usage(target, memory=True)
    assert usage is not None
    assert usage.contexts == 2
    gpu.resume(target)


def test_who_draws_a_screen_is_never_locked(gpu: Gpu, family: Family) -> None:
    """L8: also where it is below a notebook."""
    gpu.nvml.displays = {family.children[0].pid}
    gpu.holds(*family.all)
    assert gpu.pause(family.target).status is PauseStatus.PAUSED
    assert set(gpu.device.paused(family.target)) == {family.key, family.children[1]}
    gpu.resume(family.target)


# ---------------------------------------------------------------- ends


def test_children_that_outlive_a_killed_root_run_again_and_are_named(
    gpu: Gpu, family: Family
) -> None:
    """L3: they belong to init then, and are found by having been seen."""
    gpu.holds(*family.all)
    gpu.pause(family.target)
    family.process.kill()
    family.process.wait()
    assert set(gpu.device.paused(family.target)) == set(family.children)
    assert gpu.resume(family.target) is PauseStatus.GONE
    assert {gpu.state(key) for key in family.children} == {"running"}
    assert gpu.record.keys == []


def test_survivors_are_those_with_a_context(gpu: Gpu, family: Family) -> None:
    """One child of two; asked once."""
    gpu.holds(family.key, family.children[0])
    gpu.device.usage(family.target)
    assert gpu.device.survivors(family.target) == ()
    family.process.kill()
    family.process.wait()
    assert gpu.device.survivors(family.target) == [family.children[0]]
    assert gpu.device.survivors(family.target) == ()


def test_a_child_killed_while_locked_leaves_the_others_locked(gpu: Gpu, family: Family) -> None:
    """And leaves the record."""
    gpu.holds(*family.all)
    gpu.pause(family.target)
    os.kill(family.children[0].pid, signal.SIGKILL)
    eventually(lambda: not procfs.alive(family.children[0]))
    assert gpu.still(family.target)
    assert set(gpu.device.paused(family.target)) == {family.key, family.children[1]}
    assert gpu.resume(family.target) is PauseStatus.NOTHING
    assert gpu.record.keys == []


def test_a_full_record_pauses_nobody(
    gpu: Gpu, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L1: who cannot be put on record is not locked, nor are its siblings, who were locked before."""
    gpu.holds(*family.all)
    real = gpu.record.add

    def add(key: ProcessKey, how: Hold = Hold.SIGNAL) -> None:
        if key == family.children[1]:
            msg = "the table is full"
            raise DeviceError(msg)
        real(key, how)

    monkeypatch.setattr(gpu.record, "add", add)
    with pytest.raises(DeviceError, match="full"):
        gpu.pause(family.target)
    eventually(lambda: {gpu.state(key) for key in family.all} == {"running"})
    eventually(lambda: gpu.device.usage(family.target) and gpu.record.keys == [])


# ---------------------------------------------------------------- what NVML says


def test_memory_is_the_tree_s_without_its_contexts(gpu: Gpu, family: Family) -> None:
    """A child's context is its session's; what a context takes is not what the session holds."""
    gpu.nvml.held = {family.pid: 700 * MiB, family.children[0].pid: 600 * MiB, os.getpid(): 7}
    gpu.device._sampler.look()
    usage = gpu.device.usage(family.target, memory=True)
    assert usage is not None
    assert (usage.contexts, usage.memory) == (2, 1300 * MiB - 2 * gpu.device.inventory.reserve)
    assert (usage.device_time, usage.wanted) == (0.0, 0.0)
    usage = gpu.device.usage(family.target)
    assert usage is not None
    assert usage.memory is usage.contexts is None


def test_a_measured_context_replaces_the_estimate(gpu: Gpu, family: Family) -> None:
    """The smallest of those that were there at two readings, within reason."""
    first, second, third = family.all
    gpu.nvml.held = {first.pid: 700 * MiB, second.pid: 30 * MiB, third.pid: 5000 * MiB}
    gpu.device._sampler.look()
    gpu.device.usage(family.target, memory=True)
    assert gpu.device.inventory.reserve == 520 * MiB
    gpu.nvml.held = {first.pid: 612 * MiB, second.pid: 30 * MiB, third.pid: 5000 * MiB}
    gpu.device._sampler.look()
    gpu.device.usage(family.target, memory=True)
    assert gpu.device.inventory.reserve == 612 * MiB
    gpu.nvml.held[first.pid] = 800 * MiB
    gpu.device._sampler.look()
    gpu.device.usage(family.target, memory=True)
    assert gpu.device.inventory.reserve == 612 * MiB


def test_where_nvml_is_gone_nobody_measures_and_pauses_go_on(gpu: Gpu, family: Family) -> None:
    """L10: None, no exception; a pause needs the driver only, as long as the device is not given up."""
    gpu.holds(*family.all)
    gpu.device.usage(family.target)
    gpu.nvml.gone()
    gpu.device._sampler.look()
    assert gpu.device.usage(family.target, memory=True) is None
    assert gpu.device.utilization() is None
    assert gpu.device.foreign(0) == 0
    assert gpu.device.strangers([]) == []
    assert gpu.device.lost is None
    assert gpu.pause(family.target).status is PauseStatus.PAUSED
    assert set(gpu.device.paused(family.target)) == set(family.all)
    assert gpu.resume(family.target) is PauseStatus.NOTHING


def test_a_lost_gpu_pauses_nobody_and_resumes_everybody(gpu: Gpu, family: Family) -> None:
    """L10: it says what to do; whoever was paused before is resumed."""
    gpu.holds(*family.all)
    gpu.pause(family.target)
    gpu.nvml.gone(lost=True)
    gpu.device._sampler.look()
    assert gpu.device.lost == "the GPU is lost"
    assert gpu.pause(family.target).status is PauseStatus.UNSUPPORTED
    assert gpu.resume(family.target) is PauseStatus.NOTHING
    assert {gpu.state(key) for key in family.all} == {"running"}


def test_activity_is_work_since_the_last_look(gpu: Gpu, family: Family) -> None:
    """None as long as NVML has not looked again; True where a stamp of its tree is newer; else False."""
    gpu.holds(*family.all)
    sampler, at = gpu.device._sampler, [0.0]

    def active(*seen: tuple[int, int]) -> bool | None:
        gpu.nvml.seen += seen
        at[0] += 10
        sampler._active(at[0])
        usage = gpu.device.usage(family.target, active=True)
        assert usage is not None
        return usage.active

    child = family.children[0].pid
    assert active((child, 100)) is None  # it may be long ago
    assert active((child, 200), (os.getpid(), 250)) is True
    assert active((os.getpid(), 300)) is False
    usage = gpu.device.usage(family.target, active=True)
    assert usage is not None
    assert usage.active is None
    sampler._active(at[0] + 10)
    usage = gpu.device.usage(family.target)
    assert usage is not None
    assert usage.active is None, "nobody asked"


def test_a_session_without_a_context_is_not_at_work(gpu: Gpu, family: Family) -> None:
    """And nobody looks for its work."""
    gpu.device.usage(family.target, active=True)
    usage = gpu.device.usage(family.target, active=True)
    assert usage is not None
    assert usage.active is False
    assert "process_utilization" not in gpu.nvml.calls


def test_strangers_are_in_no_session(gpu: Gpu, family: Family) -> None:
    """With owner, size and name; a display is marked."""
    with Program("say('up'); wait()") as other, Program("say('up'); wait()") as desktop:
        other.said()
        desktop.said()
        gpu.nvml.displays = {desktop.pid}
        gpu.holds(*family.all, other.key, desktop.key)
        found = {stranger.key: stranger for stranger in gpu.device.strangers([family.target])}
        assert set(found) == {other.key, desktop.key}
        assert (found[other.key].size, found[other.key].uid) == (600 * MiB, os.getuid())
        assert found[other.key].name.startswith("python")
        assert (found[other.key].display, found[desktop.key].display) == (False, True)
        assert len(gpu.device.strangers([])) == 5


def test_a_survivor_that_was_seen_is_no_stranger(gpu: Gpu, family: Family) -> None:
    """A child whose parent ended belongs to init, and still to its session."""
    with Program("p = subprocess.Popen(['sh', '-c', 'sleep 1000 >/dev/null & echo $!; read x'], stdin=-1, stdout=-1, text=True)\n"
                 "say(os.getpid(), p.stdout.readline()); wait(); p.communicate('go'); say('ended'); wait()") as program:  # fmt: skip
        _, pid = program.said_pids()
        child, target = key_of(pid), Target(program.key)
        gpu.holds(program.key, child)
        gpu.device.usage(target)
        program.tell()
        assert program.said() == ["ended"]
        gpu.holds(program.key, child)
        assert not procfs.is_descendant(child.pid, program.pid)
        assert gpu.device.strangers([target]) == []
        usage = gpu.device.usage(target, memory=True)
        assert usage is not None
        assert usage.contexts == 2


def test_foreign_is_what_others_took_since_the_start(gpu: Gpu) -> None:
    """Free at the start, less free now, less what is ours."""
    gpu.nvml.free = 500 * MiB
    gpu.device._sampler.look()
    assert gpu.device.foreign(managed=300 * MiB) == 100 * MiB
    assert gpu.device.foreign(managed=500 * MiB) == 0


def held_at_start(place: Path, key: ProcessKey, size: int, **more: int) -> Gpu:
    """Return a GPU whose device was made while `key` held `size` of its 1000 MiB."""
    gpu = Gpu(place)
    gpu.device.close()
    gpu.nvml.held, gpu.nvml.free = {key.pid: size}, 900 * MiB - size
    gpu.device = gpu.make(**more)
    return gpu


def room(gpu: Gpu, managed: int = 0) -> int:
    gpu.device._sampler.look()
    return gpu.device.inventory.capacity - gpu.device.foreign(managed)


def test_what_was_held_at_the_start_is_room_once_its_holder_has_ended(tmp_path: Path) -> None:
    """So much and no more, however the numbers waver: what others give back beside it was never ours."""
    with Program("say('up'); wait()") as program:
        program.said()
        gpu = held_at_start(tmp_path, program.key, 300 * MiB)
        assert room(gpu) == 600 * MiB
        gpu.nvml.free = 700 * MiB  # a part of it: it may take that again
        assert room(gpu) == 600 * MiB
    gpu.nvml.held, gpu.nvml.free = {}, 900 * MiB
    assert room(gpu) == 900 * MiB
    gpu.nvml.free = 990 * MiB
    assert room(gpu) == 900 * MiB
    gpu.nvml.free = 850 * MiB
    assert room(gpu) == 850 * MiB
    gpu.close()


def test_what_an_adopted_one_held_at_the_start_is_charged_to_it_and_not_missing_too(
    tmp_path: Path,
) -> None:
    """As long as it is a stranger its memory is nobody's; in a session it is that session's, and room again at its end."""
    with Program("say('up'); wait()") as program:
        program.said()
        gpu = held_at_start(tmp_path, program.key, 300 * MiB)
        assert room(gpu) == 600 * MiB
        usage = gpu.device.usage(Target(program.key), memory=True)
        assert usage is not None
        assert room(gpu, managed=300 * MiB) == 900 * MiB
    gpu.nvml.held, gpu.nvml.free = {}, 900 * MiB
    assert room(gpu) == 900 * MiB
    gpu.close()


def test_a_capacity_that_was_given_stays_at_that(tmp_path: Path) -> None:
    """More room than the administrator gave is not ours, whoever leaves; less is less."""
    with Program("say('up'); wait()") as program:
        program.said()
        gpu = held_at_start(tmp_path, program.key, 300 * MiB, capacity=500 * MiB)
        assert room(gpu) == 500 * MiB
    gpu.nvml.held, gpu.nvml.free = {}, 900 * MiB
    assert room(gpu) == 500 * MiB
    gpu.nvml.free = 450 * MiB
    assert room(gpu) == 450 * MiB
    gpu.close()


def test_a_reserve_is_started_only_where_there_is_somebody_to_pause(
    gpu: Gpu, family: Family
) -> None:
    """Alone on a GPU nobody is ever paused; of three, two may be at once."""
    gpu.device.usage(family.target)
    gpu.device.usage(family.target)
    assert gpu.record.workers == []
    with Family() as other, Family() as third:
        gpu.device.usage(other.target)
        assert len(gpu.record.workers) == 1
        gpu.device.usage(third.target)
        gpu.device.usage(third.target)
        assert len(gpu.record.workers) == 2
        gpu.holds(family.key)
        assert gpu.pause(family.target).status is PauseStatus.PAUSED
        gpu.device.usage(family.target)
        assert len(gpu.record.workers) == 2, "one is taken, and one is in reserve"
