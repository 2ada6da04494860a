"""`jupyter gpushare hosts`: what a gateway sees of its hosts, which of them are of no use and why, and where a kernel would go."""

from __future__ import annotations

import getpass
import logging
import os
import re
import sys
from collections.abc import Sequence

from rich.table import Table
from traitlets import Unicode

from gpushare_kernel.app import words
from gpushare_kernel.app.base import Command, console, say
from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.core.sizes import format_size, parse_size
from gpushare_kernel.hub.placement import DeviceState, HostState, Order, Wish, order

_ERRNO = re.compile(r"\[Errno -?\d+\] ")
_HOW = "Write: jupyter gpushare hosts HOST ... [--python=/path/on/them/python]"


class HostsApp(Command):
    """Asks hosts, once."""

    name = "jupyter-gpushare-hosts"
    description = """Ask hosts as a gateway does, over ssh: jupyter gpushare hosts HOST ...

    Says what each shares, why one cannot be used, and where a kernel would go. GP_REMOTE_USER and GP_SSH_PORT count, as in the
    gateway. Exit status 1 where a host cannot be used."""
    python = Unicode(
        sys.executable,
        config=True,
        help="The Python on the hosts that has gpushare-kernel; by default the path of this one.",
    )
    needs = Unicode("", config=True, help="What the kernel is known to need: 6GiB.")
    driver = Unicode("", config=True, help="The oldest NVIDIA driver that it works with: 580.")
    aliases = {  # noqa: RUF012  traitlets reads it from the class
        **Command.aliases,
        **{name: f"HostsApp.{name}" for name in ("python", "needs", "driver")},
    }

    _names: Sequence[str] = ()

    def parse_command_line(self, argv: Sequence[str] | None = None) -> None:
        """Read our words; those that stand for themselves are hosts."""
        self._names, rest = words.positionals(
            list(argv or ()), options=self.aliases, flags=self.flags
        )
        if not self._names and not any(word in words.EVERYWHERE for word in rest):
            msg = f"which hosts? {_HOW}"
            raise BadDeclaration(msg)
        super().parse_command_line(rest)

    def start(self) -> None:
        """Ask all at once, and print."""
        wish = Wish(parse_size(self.needs) if self.needs else 0, self.driver)
        states = asked(self._names, self.python)
        found = order(states, wish)
        passed = dict(found.passed)
        if len(passed) < len(states):
            console().print(table([one for one in states if one.name not in passed]))
        for line in problems(found):
            say(line)
        say(verdict(found))
        self.exit(1 if found.passed else 0)


def asked(names: Sequence[str], python: str) -> list[HostState]:
    """Return what each host says of itself, within a few seconds.

    Raises
    ------
    BadDeclaration
        Where what asks over ssh is not installed.
    """
    try:
        from gpushare_kernel.hub.hosts import Hosts  # noqa: PLC0415  its ssh is an extra
        from gpushare_kernel.hub.ssh import SSH_PORT, Login  # noqa: PLC0415
    except ModuleNotFoundError as problem:
        msg = f"hosts are asked over ssh, and {problem.name} is not installed. In a clone of gpushare: pip install '.[gateway]'"
        raise BadDeclaration(msg) from None
    port = os.environ.get("GP_SSH_PORT", str(SSH_PORT))
    if not port.isdecimal():
        msg = f"GP_SSH_PORT is the number of a port, and {port!r} is none."
        raise BadDeclaration(msg)
    login = Login(
        os.environ.get("GP_REMOTE_USER") or getpass.getuser(),
        os.environ.get("GP_REMOTE_PWD"),
        int(port),
    )
    quiet = logging.getLogger("gpushare-hosts")  # what it would log is what we print
    quiet.propagate = False
    quiet.addHandler(logging.NullHandler())
    pool = Hosts(names, login, python, log=quiet)
    try:
        pool.look()
        return pool.states()
    finally:
        pool.close()


def problems(found: Order) -> list[str]:
    """Return what keeps hosts from being used, each problem once with the hosts that have it: `a, b: why`."""
    hosts: dict[str, list[str]] = {}
    for name, why in found.passed:
        hosts.setdefault(_ERRNO.sub("", why), []).append(name)
    return [f"{', '.join(names)}: {why}" for why, names in hosts.items()]


def table(states: Sequence[HostState]) -> Table:
    """Return a row for each device of the hosts that can be used."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("host", "shares", "free", "working", "kernels", "driver"):
        shown.add_column(name, justify="left" if name in {"host", "shares", "driver"} else "right")
    for state in states:
        for device in state.devices:
            shown.add_row(state.name, *_cells(device), state.driver)
        if not state.devices:
            shown.add_row(
                state.name, "no broker yet: the first kernel starts it", "", "", "", state.driver
            )
    return shown


def verdict(found: Order) -> str:
    """Return the last line."""
    if not found.hosts:
        return "No kernel can start."
    return f"A kernel would go to {found.hosts[0]}."


def _cells(device: DeviceState) -> tuple[str, ...]:
    whole = f"{device.kind}, {format_size(device.capacity)}"
    return whole, format_size(device.free), str(device.wanting), str(device.sessions)
