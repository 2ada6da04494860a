"""The soak's first minute: every kind of fault once, at a few notebooks, in the order of one seed (`make soak` is an hour at 50)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.soak.script import Fault

RUN = Path(__file__).resolve().parents[2] / "benchmarks" / "soak" / "run.py"
SCARCE = {
    Fault.SLOW_READER,
    Fault.HALF_FRAMES,
    Fault.DISK_FULL,
    Fault.DISK_READ_ONLY,
    Fault.LEDGER_CORRUPT,
    Fault.CLOCK_STEPPED,
    Fault.DESCRIPTORS,
    Fault.MEMORY,
    Fault.FORKS,
}
"""What is done to folders, peers and limits; the others are done to processes."""


@pytest.mark.parametrize(
    "kinds", [sorted(set(Fault) - SCARCE), sorted(SCARCE)], ids=["processes", "scarce"]
)
def test_nothing_is_lost_and_nobody_stays_paused(kinds: list[Fault]) -> None:
    """The rules hold live and at the end, whatever falls; what is timed has room for a busy machine."""
    only = [word for kind in kinds for word in ("--only", kind)]
    command = [sys.executable, str(RUN), "--json", "--seed", "1", "--sessions", "5"]
    done = subprocess.run(
        [*command, "--minutes", "1.5", "--steps", str(len(kinds)), *only],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stderr)  # the script, to be had again with the same seed
    found = json.loads(done.stdout)
    for what in ("lost", "leaked", "invariants", "errors", "stuck"):
        assert found[what] == [], what
    assert found["medians"]["longest_pause_without_broker"] < 5
    assert found["medians"]["longest_pause_without_both"] < 15
    assert found["medians"]["cells"] > 0
    happened = {*found["faults"], *found["missed"]}
    assert happened >= set(kinds)
