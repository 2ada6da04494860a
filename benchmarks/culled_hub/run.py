"""Three hubs with TLJH's culler, a minute in a second: without a recipe of ours, with each of two. Whose parked notebook is there after 30 minutes? See README.md."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, progress
from benchmarks.hub import environment
from benchmarks.hub.hub import PATIENCE, Hub, HubKernel, until, variables
from gpushare_kernel.client.start import ensure_broker
from tests.faults.scripted_gpu import COMMAND, ScriptedGpu

QUESTION = "A parked notebook on a hub that ends idle servers after 10 min: is it there after 30?"
MINUTE = 1.0
"""Seconds that stand for one: of the culler, of its recipe, and of the hub's and the servers' reports of activity."""
OUTLIVES = 30.0
TIMEOUT, KEEP, REPORTS = 10.0, 720.0, 5.0
"""Minutes: TLJH's `services.cull.timeout`, what the recipes make of it (12 h), and how often activity is reported (300 s)."""
NAMES = ("gpxcleo", "gpxdora")
CONTROL, LONGER, SERVICE = "control", "timeout", "service"
SIDE = ("tests/faults/kernel_side/scripted.py", "tests/client/frameworks/cupy.py")
TOKEN = secrets.token_hex(16)
"""The cullers'."""
_LOOK = 0.2
_CULLER = """
c.JupyterHub.last_activity_interval = {reports}
c.JupyterHub.services += [{{"name": "cull", "api_token": {token!r}}}]
c.JupyterHub.load_roles += [{{"name": "cull", "services": ["cull"], "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"]}}]
"""
_SERVICE = """
c.JupyterHub.services += [
    {{"name": "gpushare", "command": ["{place}/bin/python", "-m", "gpushare_kernel.hub.activity", "--keep", "{keep}s", "--every", "{every}s"],
      "environment": {{"GPUSHARE_RUNTIME_DIR": c.Spawner.environment["GPUSHARE_RUNTIME_DIR"]}}}},
]
c.JupyterHub.load_roles += [{{"name": "gpushare", "services": ["gpushare"], "scopes": ["users:activity"]}}]
"""


class NotDone(Exception):
    """What was to be measured did not come about."""


def _seconds(minutes: float) -> int:
    """Return what stands for so many minutes: whole seconds, as the culler takes them."""
    return round(minutes * MINUTE)


class CullingHub(Hub):
    """A hub whose notebooks share the scripted GPU, and are culled."""

    def start_broker(self) -> None:
        """Start the broker on a GPU that lies in files; every user's kernels write there."""
        ScriptedGpu(self.folder / "gpu")
        (self.folder / "gpu").chmod(0o777)
        with variables(GPUSHARE_RUNTIME_DIR=str(self.places.runtime)):
            ensure_broker(self.places, PATIENCE, self.broker, command=COMMAND)

    def write_config(self) -> None:
        """Have its servers' kernels see that GPU."""
        side = self.folder / "side"
        side.mkdir()
        for name in SIDE:
            shutil.copy(environment.ROOT / name, side)
        self.variables = {
            "PYTHONPATH": str(side),
            "SCRIPTED_GPU": str(self.folder / "gpu"),
            "SCRIPTED_BROKER": "/bin/false",
            "GPUSHARE_ADAPTERS": "cupy",
            "JUPYTERHUB_ACTIVITY_INTERVAL": str(_seconds(REPORTS)),
        }
        super().write_config()

    def start_culler(self, timeout: int) -> None:
        """Have a culler from now on: earlier it would end servers that are still being made ready."""
        options = (f"--url={self.api}", f"--timeout={timeout}", f"--cull-every={_seconds(1)}")
        self._daemon("jupyterhub-idle-culler", *options, JUPYTERHUB_API_TOKEN=TOKEN)


@dataclass
class Lived:
    """What became of a hub's servers, in minutes: when each was culled (None: it was not), and whether the parked one had its state."""

    parked: float | None = None
    idle: float | None = None
    seen: float = 0.0
    kept: bool = False


def measure(options: Options) -> Sequence[Figure]:
    """Let three hubs live at the same time, and look at their servers."""
    del options  # nothing is to be had in a shorter time
    missing = environment.missing()
    if missing:
        msg = f"this benchmark makes users and acts for them: it needs {', '.join(missing)}"
        raise SystemExit(msg)
    place = environment.installed()
    with contextlib.ExitStack() as ends:
        ends.enter_context(environment.people(*NAMES))
        hubs = {arm: ends.enter_context(_hub(place, arm)) for arm in (CONTROL, LONGER, SERVICE)}
        with ThreadPoolExecutor(len(hubs)) as pool:
            lives = dict(zip(hubs, pool.map(_live, hubs, hubs.values()), strict=True))
    control = lives[CONTROL].parked
    if control is None:
        problem = f"without a recipe it was not culled within {OUTLIVES:g} min either: what outlives that says nothing"
        raise NotDone(problem)
    neighbour = lives[SERVICE].idle
    return [
        *(Figure(f"lives_with_{arm}", "min", [lives[arm].seen], at_least=OUTLIVES) for arm in (LONGER, SERVICE)),
        *(Figure(f"state_kept_with_{arm}", "", [float(lives[arm].kept)], at_least=1.0) for arm in (LONGER, SERVICE)),
        Figure("culled_without", "min", [control], at_most=OUTLIVES),
        Figure("idle_culled_beside_service", "min", [OUTLIVES + 1 if neighbour is None else neighbour], at_most=OUTLIVES),
    ]  # fmt: skip


def _hub(place: Path, arm: str) -> CullingHub:
    """Return a hub, with what an administrator has written for it."""
    words = {"place": place, "token": TOKEN, "every": _seconds(1), "keep": _seconds(KEEP), "reports": _seconds(REPORTS)}  # fmt: skip
    more = _CULLER + (_SERVICE if arm == SERVICE else "")
    return CullingHub(place, NAMES, broker=(), more=more.format(**words))


def _live(arm: str, hub: CullingHub) -> Lived:
    """Have a notebook parked as its neighbour needs the memory, leave both alone, and see who is there after 30 minutes."""
    parked, idle = NAMES
    for name in NAMES:
        hub.start_server(name)
    kernel, other = hub.kernel(parked), hub.kernel(idle)
    for one in (kernel, other):
        one.run("import scripted")
    pid = int(kernel.run("import os; word = 'kept'; scripted.put('x', 3072, 41); print(os.getpid())"))  # fmt: skip
    other.run("%%gpulane 6GiB\nscripted.put('y', 5120, 7)")
    if _state(hub, pid) != "parked":
        problem = f"{arm}: it is not parked, but {_state(hub, pid)}. {hub.log()}"
        raise NotDone(problem)
    hub.start_culler(_seconds(KEEP if arm == LONGER else TIMEOUT))
    began, pace, lived = time.monotonic(), threading.Event(), Lived()
    progress(f"{arm}: parked, and left alone")
    while lived.seen < OUTLIVES and lived.parked is None:
        pace.wait(_LOOK)  # nobody tells us when a server ends
        now = (time.monotonic() - began) / MINUTE
        gone, idle_gone = hub.has_ended(parked), hub.has_ended(idle)
        lived.idle = now if idle_gone and lived.idle is None else lived.idle
        lived.parked, lived.seen = now if gone else None, lived.seen if gone else now
    progress(
        f"{arm}: {'culled' if lived.parked else 'there'} after {lived.parked or lived.seen:.1f} min"
    )
    if lived.parked is not None:
        until(
            lambda: _state(hub, pid) == "gone",
            "its server has ended, and its kernel lives",
            hub.log,
        )
    else:
        lived.kept = _state(hub, pid) == "parked" and _has_its_state(kernel, pid)
    return lived


def _state(hub: Hub, pid: int) -> str:
    return next((one.state for one in hub.snapshot().sessions if one.pid == pid), "gone")


def _has_its_state(kernel: HubKernel, pid: int) -> bool:
    """Whether it is the same process, with what it had in Python and on the GPU, which it gets back for that."""
    return kernel.run("print(os.getpid(), word, scripted.add('x', 1))").split()[:3] == [str(pid), "kept", "42"]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main("culled_hub", QUESTION, measure))
