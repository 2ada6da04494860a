"""The broker's process as it is, on two devices: the host's CPU, and a GPU that lies in files.

`python -P broker.py [options of a broker]`, or `unlock PID START ...`. What `tests/faults/parking_broker.py` replaces is replaced:
the driver and NVML, lengths of waits. On top: what broke after an event, and what was logged as an error, is also
written beside the GPU, where no fault reaches; and the wall clock is stepped by a file.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.soak.gpu import COMMAND, ERRORS, Sized, place_worker
from gpushare_kernel.broker import logs
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.errors import InvariantBroken
from gpushare_kernel.core.values import MiB
from gpushare_kernel.devices.base import Device, Intents
from gpushare_kernel.devices.host import HostDevice
from tests.faults import parking_broker as base

HOST_CAPACITY = 4096 * MiB
OPTIONS = ("--compute", "1", "--turn", "0.2", "--idle-exit", "120")


class Checked(base.Checked):
    """A scheduler that checks itself, and says at once where a rule is broken."""

    def handle(self, event: ev.Event) -> list[do.Instruction]:
        try:
            return super().handle(event)
        except InvariantBroken:
            _note(f"after {type(event).__name__}", traceback.format_exc())
            raise


def devices(_wanted: str, intents: Intents, **how: object) -> list[Device]:
    """Return the scripted GPU, and the CPU."""
    gpus = base_devices("cuda", intents, capacity=None)
    held = how["held"]
    assert isinstance(held, int)
    return [*gpus, HostDevice(intents, capacity=HOST_CAPACITY, compute=1.0, held=held)]


def _note(message: str, trace: str) -> None:
    with (base.PLACE / ERRORS).open("a") as file:
        file.write(json.dumps({"level": "error", "message": message, "traceback": trace}) + "\n")


def main() -> int:
    """Be that broker."""
    set_up, clock = logs.set_up, time.time
    stepped = base.PLACE / "clock"

    def also(*of: object, **how: object) -> None:
        set_up(*of, **how)  # type: ignore[arg-type]
        handler = logging.FileHandler(base.PLACE / ERRORS, delay=True)
        handler.setLevel(logging.ERROR)
        handler.setFormatter(logs.JsonFormatter())
        logging.getLogger().addHandler(handler)

    def now() -> float:
        try:
            return clock() + float(stepped.read_text())
        except (OSError, ValueError):
            return clock()

    logs.set_up = also
    time.time = now
    sys.argv[1:1] = OPTIONS
    return base.main()


base_devices = base.devices
base.COMMAND = COMMAND
base.WORKER = place_worker(base.PLACE)
base.FileNvml = Sized
base.devices = devices
base.Checked = Checked

if __name__ == "__main__":
    sys.exit(base.unlock(sys.argv[2:]) if sys.argv[1:2] == ["unlock"] else main())
