"""What a session used of the CPU and of memory, and what others took."""

from __future__ import annotations

import os

from gpushare_kernel import procfs
from gpushare_kernel.devices.base import Target
from gpushare_kernel.devices.host import HostDevice
from gpushare_kernel.devices.machine import Machine
from tests.devices.records import Record
from tests.procs import Program


def used(device: HostDevice, target: Target) -> float:
    usage = device.usage(target)
    assert usage is not None
    return usage.device_time


def test_usage_never_falls_when_children_end(host: HostDevice) -> None:
    """The kernel's children burn CPU, end, are waited for: the sum keeps growing and loses nothing."""
    code = """
say('up'); wait()
for _ in range(3):
    child = subprocess.Popen([sys.executable, '-S', '-c', 'import time\\nwhile time.process_time() < 0.1: pass'])
    say('started'); child.wait()
say('done'); wait()
"""
    with Program(code) as program:
        target = Target(program.key)
        program.said()
        seen = [used(host, target)]
        program.tell()
        while program.said() != ["done"]:
            seen += [used(host, target) for _ in range(20)]
        seen.append(used(host, target))
        assert seen == sorted(seen)
        own = procfs.cpu_seconds(program.pid)
        assert own is not None
        assert seen[-1] >= own + 0.27, "three children of 100 ms, in 10 ms ticks"
        assert seen[-1] <= own + procfs.reaped_seconds(program.pid) + 0.05


def test_wanted_grows_over_device_time_where_cores_are_short(host: HostDevice) -> None:
    """Two spinners on one core want twice what they get."""
    cpu = min(os.sched_getaffinity(0))
    code = f"os.sched_setaffinity(0, {{{cpu}}}); say('up'); spin(0.2); say('spun'); wait()"
    with Program(code) as one, Program(code) as two:
        for program in (one, two, one, two):
            program.said()
        usages = [host.usage(Target(program.key)) for program in (one, two)]
        unmet = [usage.wanted - usage.device_time for usage in usages if usage is not None]
        assert len(unmet) == 2
        assert min(unmet) >= 0
        assert sum(unmet) > 0.05


def test_memory_is_the_tree_s_and_read_only_when_asked_for(host: HostDevice) -> None:
    """A child's 64 MiB are its session's."""
    code = """
say('up'); wait()
p = subprocess.Popen([sys.executable, '-S', '-c', "b = b'x' * 2**26; print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
p.stdout.readline(); say('grown'); wait()
"""
    with Program(code) as program:
        target = Target(program.key)
        program.said()
        before = host.usage(target, memory=True)
        program.tell()
        program.said()
        after = host.usage(target, memory=True)
        lean = host.usage(target)
        assert before is not None
        assert before.memory is not None
        assert after is not None
        assert after.memory is not None
        assert 2**26 <= after.memory - before.memory < 2**27
        assert lean is not None
        assert lean.memory is None


class Scales(Machine):
    """A machine whose available bytes the test sets."""

    bytes = 10_000

    def available(self) -> int:
        """Return what the test says."""
        return self.bytes


def test_foreign_is_what_others_took_since_the_start(record: Record) -> None:
    """Use that is ours is not foreign, and what others give back is never negative."""
    machine = Scales()
    device = HostDevice(record, machine=machine)
    assert device.inventory.capacity == 10_000
    machine.bytes = 4_000
    assert device.foreign(managed=1_000) == 5_000
    assert device.foreign(managed=7_000) == 0
    machine.bytes = 20_000
    assert device.foreign(managed=0) == 0


def test_what_was_not_offered_is_for_others_first(record: Record) -> None:
    """With a capacity below what is available, foreign use counts only where it cuts into it."""
    machine = Scales()
    device = HostDevice(record, capacity=6_000, machine=machine)
    machine.bytes = 6_000
    assert device.foreign(managed=0) == 0
    machine.bytes = 5_000
    assert device.foreign(managed=0) == 1_000


def test_memory_of_sessions_taken_over_is_capacity_not_foreign(record: Record) -> None:
    """After a broker restart the kernels' memory is in use already, and it is theirs."""
    machine = Scales()
    device = HostDevice(record, held=3_000, machine=machine)
    assert device.inventory.capacity == 13_000
    assert device.foreign(managed=3_000) == 0
    machine.bytes = 9_500
    assert device.foreign(managed=3_000) == 500
