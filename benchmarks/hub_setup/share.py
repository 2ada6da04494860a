"""After the guide: ann and bob start their servers, each runs a cell that fills the machine, and the broker says what each got."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.hub.hub import Hub, HubKernel, NotOk, until
from gpushare_kernel.client.line import Line
from gpushare_kernel.transport.places import places

NAMES = ("ann", "bob")
SECONDS = 15.0
WORK = """
import hashlib, threading, time
until = time.monotonic() + {seconds}
def work():
    while time.monotonic() < until:
        hashlib.sha256(bytes(2**20))
threads = [threading.Thread(target=work) for _ in range(__import__("os").cpu_count())]
for one in threads: one.start()
for one in threads: one.join()
"""


@dataclass
class Guided(Hub):
    """The guide's hub, as somebody with this token uses it."""

    secret: str = ""
    port: int = 8000

    def log(self) -> str:
        """What hub and broker have written."""
        return "\n".join(path.read_text(errors="replace")[-4000:] for path in Path("/run/systemctl").glob("*.log"))  # fmt: skip


def main() -> None:
    """Print what the broker saw, as JSON."""
    kernels = []
    for name in NAMES:
        made = subprocess.run(
            ["/opt/jupyterhub/bin/jupyterhub", "token", "-f", "/etc/jupyterhub/jupyterhub_config.py", name],
            cwd="/var/lib/jupyterhub", capture_output=True, text=True, check=True,
        )  # fmt: skip
        hub = Guided(Path("/opt/jupyterhub"), NAMES, secret=made.stdout.split()[-1])
        until(lambda hub=hub: _answers(hub), "the hub does not answer", hub.log)
        hub.ask("POST", f"/hub/api/users/{name}/server")
        until(lambda hub=hub, name=name: hub.is_ready(name), f"{name} has no server", hub.log)
        kernels.append(hub.kernel(name, f"{name}.ipynb"))
    cells = [threading.Thread(target=_work, args=(one,)) for one in kernels]
    for cell in cells:
        cell.start()
    for cell in cells:
        cell.join()
    with Line(places()) as line:
        snapshot = line.snapshot()
    sessions = [(one.user, one.name, one.state, one.device_time) for one in snapshot.sessions]
    used = {user: seconds for user, _, _, seconds in sessions}
    if sorted(used) != [*NAMES]:
        msg = f"two users are to share, and there are {sessions}"
        raise SystemExit(msg)
    print(json.dumps({"sessions": sessions, "share_of_ann": 100 * used["ann"] / sum(used.values())}))  # fmt: skip


def _answers(hub: Hub) -> bool:
    try:
        return "version" in hub.ask("GET", "/hub/api/")
    except (NotOk, OSError):
        return False


def _work(kernel: HubKernel) -> None:
    kernel.run(WORK.format(seconds=SECONDS))


if __name__ == "__main__":
    main()
