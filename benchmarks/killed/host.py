"""One host of this benchmark: a broker, its guardian, kernels of which all but one stand still, and whoever polls them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import ORPHANED, PATIENCE, Stage
from gpushare_kernel import procfs
from gpushare_kernel.client.line import Line
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.kernel_session import LOOK_EVERY, KernelSession, open_session

KERNELS = 3
COMPUTE, TURN = "0.2", "0.5"
ARGUMENTS = ("--idle-exit", str(ORPHANED), "--device", "host", "--compute", COMPUTE, "--turn", TURN)
LIMIT = 60.0
_PACE = 0.001


@dataclass
class Host:
    """What lives in one runtime folder."""

    stage: Stage
    sessions: list[KernelSession] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)

    # --- who is there ---------------------------------------------------------------------------------------

    def broker(self) -> ProcessKey:
        """The broker that answers, once one does."""
        found: list[ProcessKey] = []

        def answers() -> bool:
            with contextlib.suppress(GpushareError), Line(self.stage.places) as line:
                key = procfs.process_key(line.pid)
                found.extend([key] if key else [])
            return bool(found)

        wait_for(answers, "a broker that answers", 0.01)
        return found[0]

    def guardian(self, broker: ProcessKey) -> ProcessKey:
        """Its guardian, once it watches: it ignores SIGTERM from then on."""
        found: list[ProcessKey] = []

        def there() -> bool:
            for pid in procfs.children(broker.pid):
                key = procfs.process_key(pid)
                if key is not None and _watches(pid):
                    found.append(key)
            return bool(found)

        wait_for(there, "a guardian", 0.01)
        return found[0]

    def stopped(self) -> int:
        """How many kernels stand still; fails where one is gone."""
        states = [procfs.state(pid) for pid in self.pids]
        if None in states or "Z" in states:
            msg = f"a kernel died: {states}"
            raise AssertionError(msg)
        return sum(state in {"T", "t"} for state in states)

    def check(self) -> None:
        """No session was lost, and all are at work."""
        with Line(self.stage.places) as line:
            seen = {one.id: one.state for one in line.snapshot().sessions}
        if set(seen) != {session.session for session in self.sessions}:
            msg = f"{len(self.sessions)} sessions were there, and the broker tells of {seen}"
            raise AssertionError(msg)

    def add(self, session: KernelSession, burners: subprocess.Popen[str]) -> None:
        """Have a session whose process is at work."""
        self.sessions.append(session)
        burners.stdin.write(json.dumps(session.environment()) + "\n")
        burners.stdin.flush()
        self.pids.append(int(burners.stdout.readline()))
        session.bind(self.pids[-1])
        if burners.stdout.readline().strip() != "at work":
            msg = f"the process of {session.session} could not attach"
            raise AssertionError(msg)

    def end(self, burners: subprocess.Popen[str]) -> None:
        """End the processes: those that stand still do not see the end of a pipe."""
        burners.stdin.close()
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        burners.wait()
        for session in self.sessions:
            if session.page is not None:
                session.page.close()

    # --- one trial --------------------------------------------------------------------------------------------

    def kill_broker(self) -> float:
        """Return the seconds from its SIGKILL until nobody stands still; the guardian starts the next one."""
        broker = self.broker()
        self.guardian(broker)
        return self._after(lambda: self.kill(broker))

    def kill_guardian(self) -> float:
        """The same of its guardian; the broker starts another."""
        guardian = self.guardian(self.broker())
        return self._after(lambda: self.kill(guardian))

    def kill_both(self, *, polled: bool) -> float:
        """The same of both, so that neither sees the other's end. `polled`: a Jupyter server looks at its kernels.

        -1 where there is none, and not one kernel ran at that moment, which could have missed its broker: nobody is left to
        resume them then but a person, whom we play.
        """
        broker = self.broker()
        guardian = self.guardian(broker)

        def kill() -> None:
            procfs.send(guardian, signal.SIGSTOP)
            wait_for(lambda: procfs.state(guardian.pid) == "T", "the guardian to stop")
            self.kill(broker)
            self.kill(guardian)

        return self._after(kill, polled=polled, alone=not polled)

    def contended(self) -> None:
        """Wait until kernels stand still in each other's turns."""
        wait_for(lambda: self.stopped() == KERNELS - 1, "somebody to stand still", 0.005)

    def kill(self, key: ProcessKey) -> None:
        """Kill -9 this very process, and wait for its end."""
        pidfd = os.pidfd_open(key.pid)
        try:
            procfs.send(key, signal.SIGKILL)
            select.select([pidfd], [], [])
        finally:
            os.close(pidfd)

    def _after(self, kill: object, *, polled: bool = False, alone: bool = False) -> float:
        """Kill while somebody stands still; return how long somebody did after that."""
        time.sleep(random.random() * float(TURN))  # anywhere in a turn
        self.contended()
        assert callable(kill)
        began = time.monotonic()
        kill()
        if alone and self.stopped() == KERNELS:
            for session, pid in zip(self.sessions, self.pids, strict=True):
                session.resume(pid)
            self._revive()
            return -1.0
        looks = [began + random.random() * LOOK_EVERY for _ in self.sessions]
        wait_for(lambda: self._look(looks, polled=polled) and not self.stopped(), "all to run")
        return time.monotonic() - began

    def _look(self, looks: list[float], *, polled: bool) -> bool:
        """Do for each kernel what its provisioner's `poll` does, when it is due."""
        now = time.monotonic()
        for n, session in enumerate(self.sessions if polled else ()):
            if now >= looks[n]:
                looks[n] = now + LOOK_EVERY
                if session.broker_is_gone():
                    session.resume(self.pids[n])
                    threading.Thread(target=self._revive, daemon=True).start()
        return True

    def _revive(self) -> None:
        with contextlib.suppress(GpushareError):
            ensure_broker(self.stage.places, PATIENCE, ARGUMENTS)


@contextlib.contextmanager
def hosted(stage: Stage) -> Iterator[Host]:
    """Have a host with kernels at work."""
    host = Host(stage)
    program = Path(__file__).with_name("burners.py")
    with (
        stage.broker(*ARGUMENTS),
        subprocess.Popen(
            [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as burners,
    ):
        try:
            for n in range(KERNELS):
                name = f"burn-{n}.ipynb"
                host.add(
                    open_session(stage.places, name, kernel_id="", language="python", weight=1.0),
                    burners,
                )
            yield host
        finally:
            host.end(burners)


def wait_for(condition: object, what: str, pace: float = _PACE) -> None:
    """Look until `condition` holds: no event tells that a process of somebody else has been resumed."""
    assert callable(condition)
    deadline = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > deadline:
            msg = f"waited {LIMIT:g} s for {what}"
            raise AssertionError(msg)
        time.sleep(pace)


def _watches(pid: int) -> bool:
    try:
        proc = Path(f"/proc/{pid}")
        named = b"gpushare_kernel.broker.guardian" in (proc / "cmdline").read_bytes()
        status = (proc / "status").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    mask = next(line for line in status if line.startswith("SigIgn:"))
    return named and bool(int(mask.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
