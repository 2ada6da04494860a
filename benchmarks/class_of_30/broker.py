"""The broker's process as it is, on the GPU of `gpu.py`: `python -P broker.py [options of a broker]`.

Its driver and NVML lie in files, and the scheduler checks its rules after every event. All else is as anywhere: what it takes parks to
cost, how long somebody is idle before, how often NVML is read.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.class_of_30.gpu import COMMAND, Meter, worker
from gpushare_kernel.broker import daemon, left_over
from tests.faults import parking_broker as base


def main() -> int:
    """Be that broker."""
    again = daemon._command
    base.FileNvml, base.WORKER = Meter, worker(base.PLACE)
    jobs = sys.modules["gpushare_kernel.broker.jobs"]
    for module, name, value in (
        (daemon, "find_devices", base.devices),
        (daemon, "lock_worker", lambda _: base.WORKER),
        (daemon, "_command", lambda given: [*COMMAND, *again(given)[4:]]),
        (left_over, "resume_all", base.resume),
        (jobs, "Scheduler", base.Checked),
    ):
        assert hasattr(module, name)
        setattr(module, name, value)
    return daemon.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(base.unlock(sys.argv[2:]) if sys.argv[1:2] == ["unlock"] else main())
