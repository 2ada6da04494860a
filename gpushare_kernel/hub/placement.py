"""Where a kernel starts soonest: what hosts said of themselves goes in, their order comes out. Pure, so a replay uses it too.

A kernel itself starts anywhere at once; what may wait is its first work on the device. So hosts are ranked by what their
brokers know: room for what it needs, how many want the device now, how many may want it again, how much is free.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import inf
from zlib import crc32

from gpushare_kernel.core.errors import BadSettings
from gpushare_kernel.core.sizes import format_size

GPU, CPU = "cuda", "host"
"""Kinds of devices, as the snapshot calls them."""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What a broker said of a device; sizes in bytes.

    `wanting` is how many sessions have work for it now (they run, wait for a turn or for memory), `waiting` those of them
    that wait for memory, and `wait` the seconds until the last of these starts (None: nobody knows). `sessions` is
    everybody who is on it.
    """

    kind: str
    capacity: int
    free: int
    wanting: int = 0
    waiting: int = 0
    sessions: int = 0
    wait: float | None = 0.0


@dataclass(frozen=True, slots=True)
class HostState:
    """A host as it was last heard of.

    `away` is why it cannot be used (empty: it can). `coming` are kernels that were sent there and that its broker had not
    counted yet, each by the bytes it is known to need. Without `devices` nobody has started a broker there yet, and the first kernel does.
    """

    name: str
    devices: tuple[DeviceState, ...] = ()
    coming: tuple[int, ...] = ()
    driver: str = ""
    away: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a kernel wants of its host.

    `needs` in bytes (0: nothing is known), `driver` the oldest NVIDIA driver it works with (empty: any). `host` is where it has
    to be (empty: anywhere), `salt` tells hosts apart that are as good as each other, so that not everybody takes the same one.
    """

    needs: int = 0
    driver: str = ""
    host: str = ""
    salt: str = ""

    def __post_init__(self) -> None:
        """Refuse a driver that is no version: every host would have a newer one."""
        if self.driver and not version(self.driver):
            msg = f"driver is {self.driver!r}, which is no version. Write the oldest that will do: 580, or 580.65.06."
            raise BadSettings(msg)


@dataclass(frozen=True, slots=True)
class Order:
    """Hosts, the one where the kernel starts soonest first; and of each other one why it was passed over."""

    hosts: tuple[str, ...]
    passed: tuple[tuple[str, str], ...] = ()

    def why(self) -> str:
        """Return why none of the others was taken, in one line."""
        return "; ".join(f"{name}: {reason}" for name, reason in self.passed)


def order(hosts: Sequence[HostState], wish: Wish, tried: Collection[str] = ()) -> Order:
    """Return where a kernel may go, best first. Hosts that were `tried` in vain are in neither part.

    Where any host shares a GPU, those that share only their CPU are passed over: being idle, a host that lost its driver would draw every kernel.
    """
    gpus = any(not host.away and _has(host, GPU) for host in hosts)
    ranked: list[tuple[Rank, HostState]] = []
    passed: list[tuple[str, str]] = []
    for host in hosts:
        if host.name in tried or (wish.host and host.name != wish.host):
            continue
        why = _unfit(host, wish, gpus=gpus)
        if why:
            passed.append((host.name, why))
        else:
            ranked.append((rank(host, wish, GPU if gpus else ""), host))
    ranked.sort(key=lambda one: (one[0], _drawn(one[1].name, wish.salt), one[1].name))
    return Order(tuple(host.name for _, host in ranked), tuple(passed))


Rank = tuple[bool, float, int, int, float]


def rank(host: HostState, wish: Wish, kind: str = "") -> Rank:
    """Return how late a kernel would start there: the least is the soonest. `kind` leaves out other devices."""
    devices = [one for one in host.devices if kind in ("", one.kind)]
    if not devices:
        # Nobody is there, and how much room there is nobody knows.
        return (False, 0.0, len(host.coming), 0, inf)
    for needs in host.coming:  # each of them goes where the broker there will put it
        at = min(range(len(devices)), key=lambda n: _rank(devices[n], needs))
        one = devices[at]
        devices[at] = replace(
            one,
            wanting=one.wanting + 1,
            sessions=one.sessions + 1,
            free=max(0, one.free - needs),
        )
    return min(_rank(one, wish.needs) for one in devices)


def _rank(device: DeviceState, needs: int) -> Rank:
    """As a broker ranks its own devices: first where it fits, then where the fewest work; of those the smallest hole, or the most free."""
    late = device.free < needs
    wait = 0.0 if not late else inf if device.wait is None else device.wait
    room = float(device.free if needs and not late else -device.free)
    return (late, wait, device.wanting, device.sessions, room)


def _unfit(host: HostState, wish: Wish, *, gpus: bool) -> str:
    """Return why the kernel cannot go there; empty where it can."""
    if host.away:
        return host.away
    if wish.driver and host.driver and version(host.driver) < version(wish.driver):
        return f"its NVIDIA driver is {host.driver}, and this kernel needs {wish.driver} or newer. Update it, or take the host out of remote_hosts"
    if wish.driver and not host.driver:
        return f"it has no NVIDIA driver, and this kernel needs {wish.driver} or newer. Install it, or take the host out of remote_hosts"
    if gpus and not _has(host, GPU) and (host.devices or not host.driver):
        return "it shares only its CPU, and other hosts share GPUs. On that host: jupyter gpushare doctor"
    devices = [one for one in host.devices if not gpus or one.kind == GPU]
    most = max((one.capacity for one in devices), default=wish.needs)
    if most < wish.needs:
        return f"the kernel needs {format_size(wish.needs)}, and the most that one of its devices shares is {format_size(most)}"
    return ""


def version(text: str) -> tuple[int, ...]:
    """Return a version's numbers, to compare: `580.65.06` is (580, 65, 6). What is no number ends it."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _has(host: HostState, kind: str) -> bool:
    return any(one.kind == kind for one in host.devices)


def _drawn(name: str, salt: str) -> int:
    return crc32(f"{salt} {name}".encode())
