"""A command on another host over ssh, asked line by line, with a limit on everything. The only file that knows paramiko."""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from paramiko.hostkeys import InvalidHostKey

from gpushare_kernel.core.errors import BadSettings, HostAway
from gpushare_kernel.hub.report import FORMAT, LONGEST_LINE, BadLine, Greeting, read_greeting

_NOISE = 100
"""Lines that a login shell may say before us."""
_SHOWN = 60
_NOT_FOUND = 127
_NO_KEY = "No authentication methods available"
SSH_PORT = 22
_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Login:
    """How hosts are reached: as gateway_provisioners has it (GP_REMOTE_USER, GP_REMOTE_PWD, GP_SSH_PORT, GP_REMOTE_GSS_SSH)."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    port: int = SSH_PORT
    gss: bool = False
    known_hosts: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what is no port: the system would take another one."""
        if not 0 < self.port <= _LAST_PORT:
            msg = f"GP_SSH_PORT is the number of a port, from 1 to {_LAST_PORT}, and {self.port} is none."
            raise BadSettings(msg)


class Asked:
    """A command that runs on a host. Not for several threads at once."""

    def __init__(
        self, host: str, login: Login, command: Sequence[str], limit: float, patience: float
    ) -> None:
        """Connect, within `limit` seconds; log in, start it and take its greeting, within `patience` each. `HostAway` where that fails."""
        self.host = host
        self._command = command
        self._held = b""
        self._client = _client(login)
        try:
            transport = _connect(self._client, host, login, limit, patience)
            self.address = str(transport.getpeername()[0])
            self._channel = transport.open_session(timeout=patience)
            self._channel.settimeout(patience)
            self._channel.exec_command(shlex.join(command))
            self.greeting = self._greeted(patience)
        except (paramiko.SSHException, OSError, EOFError) as problem:
            self._client.close()
            raise _refused(problem, host, login) from problem
        except BaseException:
            self._client.close()
            raise

    def ask(self, line: bytes, limit: float) -> bytes:
        """Write a line and return the next one. `HostAway` where there is none within `limit` seconds."""
        try:
            self._channel.settimeout(limit)
            self._channel.sendall(line + b"\n")
            return self._line(time.monotonic() + limit)
        except TimeoutError as problem:
            msg = f"it has not answered for {limit:g} s"
            raise HostAway(msg) from problem
        except (paramiko.SSHException, OSError, EOFError) as problem:
            raise HostAway(_lost(self.host)) from problem

    def close(self) -> None:
        """Hang up; the command's input ends with that. Idempotent."""
        self._client.close()

    def _greeted(self, limit: float) -> Greeting:
        until = time.monotonic() + limit
        for _ in range(_NOISE):
            try:
                greeting = read_greeting(self._line(until))
            except BadLine:
                continue
            except TimeoutError as problem:
                msg = f"ssh works, but {self._command[0]} said nothing for {limit:g} s"
                raise HostAway(msg) from problem
            if greeting.gpushare != FORMAT:
                msg = f"it runs gpushare {greeting.version}, which reports in format {greeting.gpushare}, and this gateway reads {FORMAT}. Install the same gpushare on both"
                raise HostAway(msg, lasting=True)
            return greeting
        msg = "its login says too much before a command begins. Have its shell's start-up files print nothing where no terminal is"
        raise HostAway(msg, lasting=True)

    def _line(self, until: float) -> bytes:
        while b"\n" not in self._held:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._channel.settimeout(left)
            data = self._channel.recv(1 << 16)
            if not data:
                raise self._ended()
            self._held += data
            if len(self._held) > LONGEST_LINE:
                msg = f"it sent a line of more than {LONGEST_LINE} bytes"
                raise HostAway(msg, lasting=True)
        line, self._held = self._held.split(b"\n", 1)
        return line

    def _ended(self) -> HostAway:
        """Say why the command ended, from its exit status and its last words."""
        if not self._channel.status_event.wait(1.0) or self._channel.exit_status < 0:
            return HostAway(_lost(self.host))
        words = b""
        while self._channel.recv_stderr_ready():
            words += self._channel.recv_stderr(1 << 16)
        last = words.decode(errors="replace").strip().rpartition("\n")[2]
        python = self._command[0]
        if self._channel.exit_status == _NOT_FOUND:
            why = f"there is no {python}, with which kernels start ({last}). Install Python and gpushare-kernel there, or name the right one in the kernelspec"
        elif "No module named" in last:
            why = f"{python} there has no gpushare that this gateway can ask ({last}). On that host, in a clone of gpushare as new as here: {python} -m pip install ."
        else:
            why = f"{python} there ended with {self._channel.exit_status}: {last or 'no word'}"
        return HostAway(why, lasting=True)


def _client(login: Login) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    known = login.known_hosts or Path("~/.ssh/known_hosts").expanduser()
    for path in (Path("/etc/ssh/ssh_known_hosts"), known):
        if path.is_file():
            try:
                client.load_host_keys(str(path))
            except Exception as problem:  # paramiko lets through what decoding meets, too
                line = problem.line if isinstance(problem, InvalidHostKey) else str(problem)
                msg = f"{path} of this machine has a line that is no key ({line[:_SHOWN].strip()}). Mend it, or take it out"
                raise HostAway(msg, lasting=True) from problem
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    return client


def _connect(
    client: paramiko.SSHClient, host: str, login: Login, limit: float, patience: float
) -> paramiko.Transport:
    """Log in. A host's key may be known by its name or, as gateway_provisioners wants it, by its address."""
    try:
        address = socket.gethostbyname(host)
    except (OSError, UnicodeError) as problem:
        msg = f"no host of that name is known ({getattr(problem, 'strerror', None) or problem}). Mend it in remote_hosts"
        raise HostAway(msg, lasting=True) from problem
    keys = client.get_host_keys()
    named = host if login.port == SSH_PORT else f"[{host}]:{login.port}"
    gss = {"gss_auth": True} if login.gss else {}
    client.connect(
        host if keys.lookup(named) else address,
        port=login.port,
        username=login.user,
        password=login.password,
        timeout=limit,
        banner_timeout=patience,
        auth_timeout=patience,
        **gss,
    )
    transport = client.get_transport()
    if transport is None:
        raise HostAway(_lost(host))
    return transport


def _refused(problem: Exception, host: str, login: Login) -> HostAway:
    """Return why a login failed, with what to do."""
    user = login.user or "this user"
    port = "" if login.port == SSH_PORT else f" -p {login.port}"
    try_it = f"From here, as who runs this server: ssh{port} {login.user + '@' if login.user else ''}{host}"
    if isinstance(problem, TimeoutError):
        return HostAway("it does not answer")
    if isinstance(problem, paramiko.AuthenticationException) or _NO_KEY in str(problem):
        why = f"ssh does not let {user} in: {problem}. {try_it}"
    elif isinstance(problem, paramiko.BadHostKeyException):
        why = f"its ssh key is not the one that is known. If it was installed anew: ssh-keygen -R {host}, then ssh {host}"
    elif "not found in known_hosts" in str(problem):
        why = f"its ssh key is not known here. Once, as who runs this server: ssh{port} {host}"
    else:
        said = " ".join(str(problem).split()) or type(problem).__name__
        return HostAway(f"ssh does not get there: {said.rstrip('.')}. {try_it}")
    return HostAway(why, lasting=True)


def _lost(host: str) -> str:
    return f"the ssh connection to {host} ended"
