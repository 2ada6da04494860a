"""The broker's process as it is, on a GPU that lies in files: `python -P parking_broker.py [options of a broker]`.

After every event the scheduler's rules are checked; where one is broken the event has failed, and the log says so. With
`unlock PID START ...` it is what a notebook server runs where broker and guardian are both gone.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpushare_kernel.broker import daemon, hardware, left_over
from gpushare_kernel.broker.intents import IntentTable, resume_all
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core import parking
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.validate import validate
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices import sampler, scale
from gpushare_kernel.devices.base import Device, Intents
from gpushare_kernel.devices.cuda import CudaDevice
from gpushare_kernel.devices.parkable import Refusal, no_host_room
from gpushare_kernel.devices.unlocking import Unlockers
from gpushare_kernel.devices.verdict import Probe, Verdict
from tests.faults.scripted_gpu import COMMAND, FileNvml

PLACE = Path(os.environ["GPUSHARE_RUNTIME_DIR"]).parent / "gpu"
GRACE = 1.5
"""Seconds that a new broker waits for kernels to confirm what they hold: their clients try again within that, when one comes soon."""
WORKER = [sys.executable, str(PLACE / "worker.py"), str(PLACE)]


class Checked(Scheduler):
    """A scheduler that checks itself."""

    def handle(self, event: ev.Event) -> list[do.Instruction]:
        out = super().handle(event)
        validate(self)
        return out


def devices(_wanted: str, intents: Intents, *, capacity: int | None, **_: object) -> list[Device]:
    """Return the scripted GPU."""
    probe = Probe(Verdict.FULL)
    return [
        CudaDevice(intents, nvml=FileNvml(PLACE), worker=WORKER, probe=probe, capacity=capacity)
    ]


def resume(table: IntentTable) -> list[ProcessKey]:
    """Let those run whom a broker before left locked."""
    unlockers = Unlockers(WORKER, spare=0)
    try:
        return resume_all(table, unlockers)
    finally:
        unlockers.close()


def host_room(sizes: dict[ProcessKey, int]) -> Refusal | None:
    """Look at the machine that the test has laid out, if it has."""
    machine = PLACE / "machine"
    return no_host_room(sizes, machine if machine.exists() else Path("/"))


def main() -> int:
    """Be that broker."""
    again, config = daemon._command, daemon.config_of
    chosen = PLACE / "residency"
    residency = float(chosen.read_text()) if chosen.exists() else 10.0
    jobs = sys.modules["gpushare_kernel.broker.jobs"]
    replaced = {
        (daemon, "find_devices"): devices,
        (daemon, "lock_worker"): lambda _: WORKER,
        (left_over, "resume_all"): resume,
        (daemon, "_command"): lambda given: [*COMMAND, *again(given)[4:]],
        (jobs, "Scheduler"): Checked,
        (scale, "no_host_room"): host_room,
        (daemon, "config_of"): lambda *of, **how: replace(
            config(*of, **how), orphan_grace=GRACE, residency=residency
        ),
        (sampler, "_LIST_EVERY"): 0.2,
        (sampler, "_LIST_RARELY"): 0.2,
        # Moves of a scripted driver take no time, so nobody has to be idle for long.
        (hardware, "PARK_COST"): 0.02,
        (hardware, "PARK_SPEED"): 1e12,
        (hardware, "RESTORE_SPEED"): 1e12,
        (parking, "REST"): 0.2,
    }
    for (module, name), value in replaced.items():
        assert hasattr(module, name)
        setattr(module, name, value)
    return daemon.main(["--parking", "cold", *sys.argv[1:]])


def unlock(words: list[str]) -> int:
    """Unlock processes, as `gpushare_kernel.devices.unlocking` does."""
    numbers = list(map(int, words))
    keys = [ProcessKey(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
    unlockers = Unlockers(WORKER, spare=1)
    done = unlockers.unlock(keys, within=30.0)
    unlockers.close()
    return 0 if len(done) == len(keys) else 1


if __name__ == "__main__":
    sys.exit(unlock(sys.argv[2:]) if sys.argv[1:2] == ["unlock"] else main())
