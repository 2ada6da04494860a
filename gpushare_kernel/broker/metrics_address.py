"""Where metrics are offered: an address of this host's own, or a socket in a folder; others only where that is said."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from gpushare_kernel.core.errors import BadDeclaration, BrokerUnavailable
from gpushare_kernel.transport.places import check_socket_path

_UNIX, _OPEN = "unix:", "open:"
_BACKLOG = 16


@dataclass(frozen=True, slots=True)
class Address:
    """Where metrics are offered: `path`, or `host` and `port` (0: any). `inside`: only who is on this host comes in."""

    text: str
    path: Path | None = None
    host: str = ""
    port: int = 0
    inside: bool = True


def parse_address(text: str) -> Address:
    """Return what `text` names: `127.0.0.1:9469`, `[::1]:9469`, `unix:/run/gpushare/metrics.sock`, `open:0.0.0.0:9469`.

    Raises
    ------
    BadDeclaration
        Where it is no address, or one that others than this host's users can reach and that is not said.
    """
    if text.startswith(_UNIX):
        path = Path(text.removeprefix(_UNIX))
        if not path.is_absolute():
            msg = f"{text} has no whole path. Write for example unix:/run/gpushare/metrics.sock"
            raise BadDeclaration(msg)
        return Address(text, path)
    host, colon, port = text.removeprefix(_OPEN).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or int(port) > 65535:  # noqa: PLR2004  a port's largest
        msg = f"{text} is no address. Write for example 127.0.0.1:9469 or unix:/run/gpushare/metrics.sock"
        raise BadDeclaration(msg)
    try:
        number = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        msg = f"{host or 'no host'} in {text} is no number of a host. Write for example 127.0.0.1:{port}"
        raise BadDeclaration(msg) from None
    if not number.is_loopback and not text.startswith(_OPEN):
        msg = (
            f"{host} can be reached from other machines, and metrics say who uses the device, unencrypted and to everybody. "
            f"Write 127.0.0.1:{port} and let your Prometheus come through ssh or a proxy; where the network may know it: {_OPEN}{text}"
        )
        raise BadDeclaration(msg)
    return Address(text, host=str(number), port=int(port), inside=number.is_loopback)


def offered_at(address: Address) -> socket.socket:
    """Return a socket that listens at `address`.

    Raises
    ------
    BrokerUnavailable
        Where that cannot be, with why.
    """
    if address.path is not None:
        return _listening_at(address.path)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.listen(_BACKLOG)
    except OSError as problem:
        sock.close()
        raise _unusable(address.text, problem) from None
    return sock


def _listening_at(path: Path) -> socket.socket:
    check_socket_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        sock.bind(str(path))
        # Before it listens. In a folder that hands its group down, that group may come in: Prometheus' own, say.
        shared = path.parent.stat().st_mode & stat.S_ISGID
        path.chmod(0o660 if shared else 0o600)
        sock.listen(_BACKLOG)
    except OSError as problem:
        sock.close()
        raise _unusable(f"{_UNIX}{path}", problem) from None  # noqa: EM102  a name, no message
    return sock


def _clear(path: Path) -> None:
    """Remove the socket of a broker that is gone; anything else there is not ours."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    ours = stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if not ours or probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "something else is there")
    path.unlink()


def _unusable(text: str, problem: OSError) -> BrokerUnavailable:
    why = problem.strerror or str(problem)
    return BrokerUnavailable(f"--metrics {text}: {why}. Name another address, or leave it out.")
