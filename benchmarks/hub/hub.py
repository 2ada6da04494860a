"""A real JupyterHub with a real broker beside it: its servers, their kernels, and what they say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from gpushare_kernel import procfs
from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.client.line import Line
from gpushare_kernel.client.start import COMMAND, ensure_broker
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.hub.snippet import snippet
from gpushare_kernel.interpreters import STARTUP_FILE
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire.snapshot import Snapshot

PATIENCE = 90.0
_CONFIG = """\
c.JupyterHub.bind_url = "http://127.0.0.1:{port}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{hub_port}"
c.ConfigurableHTTPProxy.command = [{proxy!r}]
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{proxy_port}"
c.ConfigurableHTTPProxy.auth_token = {secret!r}
c.ConfigurableHTTPProxy.should_start = False
c.JupyterHub.cleanup_servers = False
c.JupyterHub.db_url = "sqlite:///{folder}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{folder}/cookie"
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = {secret!r}
c.Authenticator.allowed_users = {names!r}
c.JupyterHub.spawner_class = {spawner!r}
c.Spawner.cmd = [{singleuser!r}]
c.Spawner.environment = {environment!r}
c.Spawner.start_timeout = 90
c.Spawner.http_timeout = 90
c.SimpleLocalProcessSpawner.home_dir_template = "{folder}/home/{{username}}"
c.JupyterHub.services = [{{"name": "tester", "api_token": {secret!r}}}]
c.JupyterHub.load_roles = [
    {{"name": "tester", "services": ["tester"], "scopes": ["admin:users", "admin:servers", "access:servers", "list:users", "tokens"]}}
]
{more}
load_subconfig({snippet!r})
"""
REAL, SHARED = "localprocess", "simple"
"""Spawners: each server as its user; all as whoever runs the hub."""


class NotOk(Exception):
    """An answer that is none: its status and its text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:2000]}")
        self.status, self.text = status, text


@dataclass
class Hub:
    """A hub and a broker that are started and ended by hand.

    Parameters
    ----------
    environment
        The Python environment of hub, servers and kernels.
    names
        Who may have servers.
    spawner
        `REAL` or `SHARED`.
    account
        Who runs the hub; root where it is empty.
    broker
        Further arguments of the broker.
    more
        Further lines of the hub's configuration.
    by_hub
        Whether the broker asks the hub who somebody is.
    """

    environment: Path
    names: tuple[str, ...]
    spawner: str = REAL
    account: str = ""
    broker: tuple[str, ...] = ("--device", "host", "--capacity", "2GiB")
    more: str = ""
    by_hub: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="gpushare-hub-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.secret = secrets.token_hex(16)
        self._ends = contextlib.ExitStack()
        self._ends.callback(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self._set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def _set_up(self) -> None:
        self.port, self.hub_port, self.proxy_port = free_ports(3)
        self.api = f"http://127.0.0.1:{self.hub_port}/hub/api"
        runtime = self.folder / "run"
        runtime.mkdir(mode=0o755)
        home = self.folder / "home"
        home.mkdir(mode=0o777)
        home.chmod(0o777)
        for name in self.names if self.spawner == SHARED else ():
            (home / name).mkdir(mode=0o777)
            (home / name).chmod(0o777)
        work = self.folder / "hub"
        work.mkdir()
        if self.account:
            shutil.chown(work, self.account)
        self.places = Places(runtime, system=True, named=True)
        (self.folder / "snippet.py").write_text(snippet(self.environment / STARTUP_FILE))
        self.config = self.folder / "jupyterhub_config.py"
        self.write_config()
        self._ends.callback(self.stop_broker)
        self.start_broker()
        self._ends.callback(self._end_servers)
        self.proxy = self._daemon("configurable-http-proxy", *self._proxy_arguments())
        self.hub = self.start_hub()

    def write_config(self) -> None:
        """Write the hub's configuration."""
        text = _CONFIG.format(
            port=self.port,
            hub_port=self.hub_port,
            proxy_port=self.proxy_port,
            proxy=str(self.environment / "bin/configurable-http-proxy"),
            folder=self.folder / "hub",
            secret=self.secret,
            names=set(self.names),
            spawner=self.spawner,
            singleuser=str(self.environment / "bin/jupyterhub-singleuser"),
            environment={
                "GPUSHARE_RUNTIME_DIR": str(self.places.runtime),
                "JUPYTERHUB_SINGLEUSER_APP": "jupyter_server.serverapp.ServerApp",
                "PATH": f"{self.environment}/bin:/usr/bin:/bin",
                **self.variables,
            },
            more=self.more,
            snippet=str(self.folder / "snippet.py"),
        ).replace(f"{self.folder}/hub/home", f"{self.folder}/home")
        self.config.write_text(text)

    # --- its processes ----------------------------------------------------------------------------------

    def start_broker(self) -> None:
        """Start the broker; wait until it answers."""
        hub = ("--hub-api", self.api) if self.by_hub else ()
        with variables(GPUSHARE_RUNTIME_DIR=str(self.places.runtime)):
            ensure_broker(self.places, PATIENCE, (*self.broker, *hub), command=COMMAND)

    def stop_broker(self) -> None:
        """Have it end, where it is there."""
        with contextlib.suppress(BrokerUnavailable):
            stop_broker(self.places, PATIENCE)

    def start_hub(self) -> subprocess.Popen[bytes]:
        """Start the hub; wait until it answers through the proxy."""
        hub = self.hub = self._daemon("jupyterhub", "-f", str(self.config))
        until(lambda: self._answers(hub), "the hub does not answer", self.log)
        return hub

    def start_proxy(self) -> subprocess.Popen[bytes]:
        """Start the proxy anew; the hub tells it its routes at its next look."""
        self.proxy = self._daemon("configurable-http-proxy", *self._proxy_arguments())
        return self.proxy

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the hub or the proxy, without a word; what it has started lives on."""
        process.kill()
        process.wait()

    def _proxy_arguments(self) -> list[str]:
        return [
            *("--ip", "127.0.0.1", "--port", str(self.port)),
            *("--api-ip", "127.0.0.1", "--api-port", str(self.proxy_port)),
            *("--default-target", f"http://127.0.0.1:{self.hub_port}"),
            *("--error-target", f"http://127.0.0.1:{self.hub_port}/hub/error"),
        ]

    def _daemon(self, program: str, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
        command = [str(self.environment / "bin" / program), *arguments]
        account = pwd.getpwnam(self.account or "root")
        with (self.folder / f"{program}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder / "hub",
                user=account.pw_uid,
                group=account.pw_gid,
                extra_groups=[],
                env={
                    "PATH": f"{self.environment}/bin:/usr/bin:/bin:/usr/sbin:/sbin",
                    "HOME": str(self.folder / "hub"),
                    "LANG": "C.UTF-8",
                    "CONFIGPROXY_AUTH_TOKEN": self.secret,
                    "GPUSHARE_RUNTIME_DIR": str(self.places.runtime),
                    **more,
                },
            )
        self._ends.callback(end, process)
        return process

    def _answers(self, hub: subprocess.Popen[bytes]) -> bool:
        if hub.poll() is not None:
            problem = f"the hub has ended ({hub.returncode}): {self.log()}"
            raise RuntimeError(problem)
        with contextlib.suppress(NotOk, OSError):
            return "version" in self.ask("GET", "/hub/api/")
        return False

    def _end_servers(self) -> None:
        """End the servers that outlive their hub, and their kernels."""
        for name in self.names:
            for pid in self.server_pids(name):
                for key in procfs.tree(pid):
                    procfs.send(key, signal.SIGKILL)

    def server_pids(self, name: str) -> list[int]:
        """Return the processes of somebody's server."""
        return _servers(name, str(self.places.runtime))

    def log(self) -> str:
        """Return the end of what hub and proxy wrote."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-6000:]}"
            for path in self.folder.glob("*.log")
        )

    # --- what is asked of them ----------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: Any = None, token: str = "") -> Any:
        """Return the answer of hub or server, as JSON where it is some.

        Raises
        ------
        NotOk
            Where it is no success.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=data if data is not None or method == "GET" else b"",
            method=method,
            headers={"Authorization": f"token {token or self.secret}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                text = answer.read()
        except urllib.error.HTTPError as problem:
            with problem:
                raise NotOk(problem.code, problem.read().decode(errors="replace")) from None
        return json.loads(text) if text else None

    def start_server(self, name: str) -> None:
        """Start somebody's server and wait until it is ready."""
        with contextlib.suppress(NotOk):
            self.ask("POST", f"/hub/api/users/{name}")
        self.ask("POST", f"/hub/api/users/{name}/server")
        until(lambda: self.is_ready(name), f"{name}'s server does not start", self.log)

    def is_ready(self, name: str) -> bool:
        """Whether somebody's server runs, as its hub sees it."""
        return bool(self.ask("GET", f"/hub/api/users/{name}").get("server"))

    def has_ended(self, name: str) -> bool:
        """Whether somebody has no server, and none that is about to end."""
        user = self.ask("GET", f"/hub/api/users/{name}")
        return not user.get("server") and not user.get("pending")

    def kernel(self, name: str, notebook: str = "hw.ipynb", kind: str = "python3") -> HubKernel:
        """Start a notebook's kernel in somebody's server."""
        wanted = {"path": notebook, "name": notebook, "type": "notebook", "kernel": {"name": kind}}
        made = self.ask("POST", f"/user/{name}/api/sessions", wanted)
        return HubKernel(self, name, made["kernel"]["id"])

    def token_of(self, name: str) -> str:
        """Return the token that somebody's server was started with."""
        for pid in self.server_pids(name):
            token = procfs.environ(pid, "JUPYTERHUB_API_TOKEN")
            if token:
                return token
        problem = f"{name} has no server"
        raise LookupError(problem)

    def snapshot(self, token: str = "") -> Snapshot:
        """Return what goes on; as the broker's owner, or whoever a hub's token names."""
        with variables(JUPYTERHUB_API_TOKEN=token or None), Line(self.places, PATIENCE) as line:
            return line.snapshot()


@dataclass
class HubKernel:
    """A kernel in somebody's server, reached as a browser does."""

    hub: Hub
    name: str
    id: str

    def run(self, code: str) -> str:
        """Run a cell and return what it printed; RuntimeError with what went wrong in it."""
        return asyncio.run(asyncio.wait_for(self._run(code), PATIENCE))

    async def _run(self, code: str) -> str:
        address = f"ws://127.0.0.1:{self.hub.port}/user/{self.name}/api/kernels/{self.id}/channels"
        request = HTTPRequest(
            address,
            headers={"Authorization": f"token {self.hub.secret}"},
            connect_timeout=PATIENCE,
            request_timeout=PATIENCE,
        )
        line = await websocket_connect(request)
        number, said, failed, left = secrets.token_hex(8), "", "", {"execute_reply", "idle"}
        header = {"msg_id": number, "msg_type": "execute_request", "username": "", "session": number, "version": "5.3", "date": ""}  # fmt: skip
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        await line.write_message(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell", "buffers": []}))  # fmt: skip
        try:
            while left:  # they come over two channels, in any order
                text = await line.read_message()
                if text is None:
                    problem = f"the line to {self.name}'s kernel ended"
                    raise RuntimeError(problem)
                message = json.loads(text)
                if message["parent_header"].get("msg_id") != number:
                    continue
                if message["msg_type"] == "stream":
                    said += message["content"]["text"]
                elif message["msg_type"] == "execute_result":
                    said += message["content"]["data"]["text/plain"]
                elif message["msg_type"] == "error":
                    failed = "\n".join(message["content"]["traceback"])
                elif message["msg_type"] == "execute_reply":
                    left.discard("execute_reply")
                elif message["msg_type"] == "status":
                    left.discard(message["content"]["execution_state"])
        finally:
            line.close()
            while await line.read_message() is not None:
                pass  # until the other side has closed it, too
        if failed:
            raise RuntimeError(failed)
        return said

    def session(self) -> str:
        """Return its session at the broker, as it knows it."""
        return self.run("import os; print(os.environ.get('GPUSHARE_SESSION', ''))").strip()

    def pid(self) -> int:
        """Return its process."""
        return int(self.run("import os; print(os.getpid())"))


def _servers(name: str, runtime: str) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        pid = int(folder.name)
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            ours = procfs.environ(pid, "GPUSHARE_RUNTIME_DIR") == runtime
            if ours and b"jupyterhub-singleuser" in command and procfs.environ(pid, "JUPYTERHUB_USER") == name:  # fmt: skip
                found.append(pid)
    return found


def free_ports(number: int) -> list[int]:
    """Return ports that nobody has now."""
    with contextlib.ExitStack() as ends:
        socks = [ends.enter_context(socket.socket()) for _ in range(number)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]


def until(condition: Callable[[], object], what: str, log: Callable[[], str] = str) -> None:
    """Wait until something holds that no event tells; RuntimeError with the log where it does not come to it."""
    pace, end_ = threading.Event(), time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end_:
            problem = f"{what} within {PATIENCE:g} s. {log()}"
            raise RuntimeError(problem)
        pace.wait(0.1)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all below it."""
    below = procfs.tree(process.pid) if process.poll() is None else []
    for key in below:
        procfs.send(key, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def variables(**wanted: str | None) -> Iterator[None]:
    """Have these in our environment while the block runs; None is not there."""
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(wanted: Mapping[str, str | None]) -> None:
    for name, value in wanted.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
