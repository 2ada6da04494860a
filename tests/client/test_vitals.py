"""Why a kernel ended that nobody had asked to: what is counted while it lives, and what is said of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpushare_kernel.client.vitals import Vitals
from gpushare_kernel.wire.end_texts import ended_text


class Machine:
    """A machine's /proc and cgroups, in a folder."""

    def __init__(self, folder: Path, cgroup: str, counter: str) -> None:
        self.proc, self.groups = folder / "proc", folder / "cgroup"
        (self.proc / "7").mkdir(parents=True)
        (self.proc / "7" / "cgroup").write_text(cgroup)
        self.counter = self.groups / counter
        self.counter.parent.mkdir(parents=True)
        self.kills(0, 0)

    def kills(self, here: int, anywhere: int) -> None:
        self.counter.write_text(f"oom_kill_disable 0\noom_kill {here}\noom_group_kill 0\n")
        (self.proc / "vmstat").write_text(f"nr_free_pages 1\noom_kill {anywhere}\n")

    def vitals(self) -> Vitals:
        return Vitals.of(7, proc=self.proc, groups=self.groups)


@pytest.mark.parametrize(
    ("cgroup", "counter"),
    [
        ("0::/user/ann\n", "user/ann/memory.events"),
        ("5:devices:/\n4:memory:/user/ann\n0::/\n", "memory/user/ann/memory.oom_control"),
        ("4:cpu,memory:/user/ann\n", "memory/user/ann/memory.oom_control"),
    ],
)
def test_a_memory_limit_is_told_from_a_full_machine_and_from_a_person(
    tmp_path: Path, cgroup: str, counter: str
) -> None:
    """By what the kernel of the operating system has counted since; whichever cgroups there are."""
    machine = Machine(tmp_path, cgroup, counter)
    machine.kills(3, 5)
    vitals = machine.vitals()
    assert "by somebody" in vitals.ended(-9, proc=machine.proc)
    machine.kills(3, 6)
    assert "this machine ran out of memory" in vitals.ended(-9, proc=machine.proc)
    machine.kills(4, 6)
    said = vitals.ended(-9, proc=machine.proc)
    assert "the memory limit of its cgroup /user/ann was reached" in said
    assert "exit status 9" in vitals.ended(9, proc=machine.proc)


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    """No /proc, no cgroup: a signal is a signal."""
    vitals = Vitals.of(7, proc=tmp_path, groups=tmp_path)
    assert "by somebody" in vitals.ended(-9, proc=tmp_path)


def test_this_process_has_vitals() -> None:
    """On a real machine: reading them fails on none."""
    assert Vitals.of(os.getpid()).ended(-11).startswith("The kernel before this one crashed (SIGSEGV)")  # fmt: skip


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (3, "ended with exit status 3"),
        (-9, "was killed (SIGKILL) by somebody, or by a program that watches over memory"),
        (-11, "crashed (SIGSEGV)"),
        (-6, "crashed (SIGABRT)"),
        (-15, "was ended by signal SIGTERM, which somebody sent"),
        (-99, "was ended by signal 99, which somebody sent"),
    ],
)
def test_each_end_in_words(code: int, how: str) -> None:
    """What happened, that it was not us, and what to do."""
    assert ended_text(code) == (
        f"The kernel before this one {how}. "
        "It was not ended by gpushare. Its variables are gone: run your cells again."
    )
