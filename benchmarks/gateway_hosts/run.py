"""A host is cut off from a gateway, and comes back; its sshd is killed, and comes back. See README.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, NotMeasured, Options, main, progress
from benchmarks.gateway_hosts.bed import Bed, Gateway, bed, missing
from gpushare_kernel import procfs

QUESTION = "A host is cut off from the gateway, and back: when do kernels avoid it, when are they there again, and what of those that run there?"
_LIMIT = 60.0
_TRIED = "did not start on"
_BESIDE = 3
_WORKS = "import threading, time\nn = [0]\ndef work():\n    while True:\n        n[0] += 1\n        time.sleep(0.05)\nthreading.Thread(target=work, daemon=True).start()"
_TIMES = ("cut_avoided", "cut_back", "sshd_avoided", "sshd_back", "start", "start_with_one_away", "start_while_unnoticed")  # fmt: skip


class Rounds:
    """What was measured, and a kernel that has to live through it."""

    def __init__(self, hosts: Bed, gateway: Gateway) -> None:
        self.times: dict[str, list[float]] = {name: [] for name in _TIMES}
        self.lost: list[float] = []
        self.paused: list[float] = []
        self._gateway = gateway
        self._kernel = gateway.start()
        gateway.run(self._kernel["kernel"], _WORKS)
        self._here = next(one for one in hosts.hosts if one.address == self._kernel["host"])
        there = next(one for one in hosts.hosts if one is not self._here)
        for _ in range(_BESIDE):  # so that the next ones would go to where it is
            gateway.start(KERNEL_REMOTE_HOST=there.address)

    def cut(self) -> None:
        """Its cable is out until kernels avoid it."""
        self._start("start")
        self._until(lambda: not self._away())
        self._gone("cut", self._here.cut, self._here.mend)

    def unnoticed(self) -> None:
        """A kernel is sent there the moment it is cut, before anybody can know."""
        tried = self._gateway.log().count(_TRIED)
        self._here.cut()
        try:
            self._start("start_while_unnoticed")
            if self._gateway.log().count(_TRIED) == tried:
                self.times[
                    "start_while_unnoticed"
                ].pop()  # it had been noticed, or the other one was better
        finally:
            self._here.mend()
        self._until(lambda: not self._away())
        self._lives()

    def sshd(self) -> None:
        """Its sshd is killed, with its connections."""
        self._gone("sshd", self._here.kill_sshd, self._here.start_sshd)

    def _gone(self, what: str, go: Callable[[], None], come: Callable[[], None]) -> None:
        began = time.monotonic()
        go()
        try:
            self.times[f"{what}_avoided"].append(self._until(self._away, began))
            self._start("start_with_one_away")
        finally:
            come()
            began = time.monotonic()
        self.times[f"{what}_back"].append(self._until(lambda: not self._away(), began))
        self._lives()

    def _start(self, what: str) -> None:
        began = time.monotonic()
        kernel = self._gateway.start()
        if "error" in kernel:
            raise NotMeasured(kernel["error"])
        self.times[what].append(time.monotonic() - began)
        self._gateway.ask("shutdown", kernel=kernel["kernel"])

    def _lives(self) -> None:
        """Count it as lost where it is not the process that it was, or does not work; as paused where it stands still."""
        kernel = self._kernel["kernel"]
        known = self._gateway.ask("alive", kernel=kernel)
        worked = int(self._gateway.run(kernel, "print(n[0])"))
        self._until(lambda: int(self._gateway.run(kernel, "print(n[0])")) > worked)
        same = known["alive"] and known["pid"] == self._kernel["pid"]
        self.lost.append(0.0 if same else 1.0)
        states = {session.state for session in self._here.snapshot().sessions}
        still = procfs.state(self._kernel["pid"]) == "T"
        self.paused.append(float(still or bool(states & {"paused", "orphaned"})))

    def _away(self) -> bool:
        return bool(self._gateway.ask("states")["hosts"][self._here.address]["away"])

    def _until(self, what: Callable[[], bool], began: float | None = None) -> float:
        """Ask twenty times a second; returns the seconds since `began`."""
        start = time.monotonic() if began is None else began
        while not what():
            if time.monotonic() - start > _LIMIT:
                msg = f"it took longer than {_LIMIT:g} s"
                raise NotMeasured(msg)
            time.sleep(0.05)
        return time.monotonic() - start


def measure(options: Options) -> Sequence[Figure]:
    """Each of the three in every round."""
    why = missing()
    if why:
        raise NotMeasured(why)
    count = 2 if options.quick else 20
    with bed() as hosts, hosts.gateway() as gateway:
        rounds = Rounds(hosts, gateway)
        for n in range(count):
            for one in (rounds.cut, rounds.sshd, rounds.unnoticed):
                one()
            progress(
                f"round {n + 1} of {count}: "
                + ", ".join(
                    f"{what} {taken[-1]:.2f} s" for what, taken in rounds.times.items() if taken
                )
            )
    limits = {name: 10.0 for name in _TIMES if name.endswith(("avoided", "back"))}
    return (
        *(
            Figure(name, "s", taken, at_most=limits.get(name), worst=name in limits)
            for name, taken in rounds.times.items()
            if taken
        ),
        Figure("kernels_lost", "", rounds.lost, at_most=0.0, worst=True),
        Figure("kernels_paused", "", rounds.paused, at_most=0.0, worst=True),
    )


if __name__ == "__main__":
    sys.exit(main("gateway_hosts", QUESTION, measure))
