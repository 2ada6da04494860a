"""The kernel provisioner `gpushare-distributed`: gateway_provisioners' kernels on several hosts, each where it starts soonest.

What is the engine's stays so: kernelspecs of `jupyter ssh-spec install`, its launchers on the hosts, how they call back, its
GP_ variables. Ours is which host a kernel goes to, that it becomes a session of that host's broker, and that a host that is
cut off is not a kernel that died. Hosts are asked in threads (`hosts.py`): nothing here blocks a server's loop.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traitlets import List, Unicode

try:
    from gateway_provisioners.config_mixin import ssh_port
    from gateway_provisioners.distributed import DistributedProvisioner, kernel_log_dir
except ModuleNotFoundError as problem:
    _MISSING = f"the provisioner gpushare-distributed needs {problem.name}. In a clone of gpushare: pip install '.[gateway]'"
    raise ModuleNotFoundError(_MISSING, name=problem.name) from None

from gpushare_kernel.core.errors import BadSize, HostAway, NoHost
from gpushare_kernel.core.sizes import parse_size
from gpushare_kernel.hub.hosts import Host, Hosts, hosts
from gpushare_kernel.hub.placement import Wish
from gpushare_kernel.hub.report import Launch, Pid
from gpushare_kernel.hub.ssh import Login
from gpushare_kernel.provisioner import check_options, off_loop

NEEDS = "KERNEL_GPU_MEMORY"
"""In a kernel's environment: what it is known to need (`6GiB`), for its placement only."""
PINNED = "KERNEL_REMOTE_HOST"
"""Likewise: the host it has to be on, as the engine has it."""
_CALLED_BACK_EVERY = 0.05
_ENDINGS = frozenset({signal.SIGKILL, signal.SIGTERM})


class GpuShareDistributedProvisioner(DistributedProvisioner):
    """Starts a kernel on one of several hosts: where its first work on the device starts soonest."""

    driver = Unicode(
        "",
        config=True,
        help="The oldest NVIDIA driver that these kernels work with (580): hosts with an older one, or none, are passed over.",
    )
    needs = Unicode(
        "",
        config=True,
        help=f"GPU memory that a kernel is known to need (6GiB), for its placement; {NEEDS} in its environment goes before.",
    )
    remote_python = Unicode(
        "",
        config=True,
        help="The Python on the hosts that has gpushare-kernel; by default the kernelspec's, argv[0].",
    )
    pass_environment = List(
        Unicode(),
        default_value=[
            "JPY_SESSION_NAME",
            "GPUSHARE_DEVICE",
            "JUPYTERHUB_USER",
            "JUPYTERHUB_API_TOKEN",
            "JUPYTERHUB_API_URL",
        ],
        config=True,
        help="What of this server's environment a kernel gets there, beside the kernelspec's own and KERNEL_*.",
    )

    _host: Host | None = None
    _process: Pid | None = None
    _stopping = False
    _given_up = False

    def __init__(self, **options: Any) -> None:
        """Take the kernelspec's `config` among `options`; what it misspells starts no kernel."""
        check_options(type(self), options)
        super().__init__(**options)

    # --- Starting ---------------------------------------------------------------------------------

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Start the kernel where it starts soonest; where that fails, on the next host.

        Raises
        ------
        NoHost
            Where none can, with each one's reason.
        """
        env: dict[str, str] = kwargs.get("env") or {}
        pool = self._pool()
        wish = self._wish(env, pool)
        before, self._host, self._process = self._host, None, None
        self._stopping = self._given_up = False
        tried: dict[str, str] = {}
        await off_loop(pool.look)
        while True:
            found = pool.order(wish, tried)
            if not found.hosts:
                raise NoHost(self._none(tried, found.passed))
            # Restarted, it stays: what its notebook wrote on that host's disks is there.
            stays = before is not None and before.name in found.hosts
            host = before if before is not None and stays else pool[found.hosts[0]]
            try:
                await self._start_on(host, cmd, env, str(kwargs.get("cwd") or ""), wish.needs)
            except HostAway as problem:
                tried[host.name] = str(problem)
                host.suspect(str(problem))
                self.log.warning(
                    "gpushare: kernel %s did not start on %s: %s",
                    self.kernel_id,
                    host.name,
                    problem,
                )
            else:
                return dict(self.connection_info)

    async def _start_on(
        self, host: Host, cmd: list[str], env: Mapping[str, str], cwd: str, needs: int
    ) -> None:
        self.kernel_log = str(Path(kernel_log_dir) / f"kernel-{self.kernel_id}.log")
        launch = Launch(tuple(cmd), self._remote_environment(env), self.kernel_log, cwd)
        with host.coming(self.kernel_id, needs):
            process = await off_loop(host.launch, self.kernel_id, launch)
            self.assigned_host, self.pid = host.name, process[0]
            self.ip = self.assigned_ip = host.address
            self.log_kernel_launch(cmd)
            self._host, self._process = host, process
            try:
                await self._called_back(host, process)
            except BaseException:
                self._host = self._process = None
                host.forget(self.kernel_id)
                host.end(process)
                raise

    async def _called_back(self, host: Host, process: Pid) -> None:
        """Wait for the connection info that the engine's launcher sends, or for the process's end."""
        until = time.monotonic() + self.launch_timeout
        while True:
            if await self.receive_connection_info():
                if self.pid == process[0]:
                    return
                # One that was started elsewhere before, and was late.
                self.pid = process[0]
                self.response_manager.register_event(self.kernel_id)
            if host.is_gone(process):
                said = (await off_loop(host.signal, process, 0)).said
                msg = f"it ended at once: {said or 'no word'} (log: {host.name}:{self.kernel_log})"
                raise HostAway(msg)
            if time.monotonic() > until:
                msg = (
                    f"it started, and did not call back within {self.launch_timeout} s. Can {host.name} reach "
                    f"{self.response_address}? (GP_RESPONSE_IP; log: {host.name}:{self.kernel_log})"
                )
                raise HostAway(msg)
            host.ask_now()
            await asyncio.sleep(_CALLED_BACK_EVERY)

    def _pool(self) -> Hosts:
        login = Login(self.remote_user, self.remote_pwd, ssh_port, self.use_gss)
        python = self.remote_python or self.kernel_spec.argv[0]
        return hosts(self.remote_hosts, login, python, self.log)

    def _wish(self, env: Mapping[str, str], pool: Hosts) -> Wish:
        pinned = env.get(PINNED, "")
        if pinned and pinned not in pool:
            msg = f"{PINNED} is {pinned}, and kernels may go to {', '.join(self.remote_hosts)}. Name one of them, or leave it out."
            raise NoHost(msg)
        text = env.get(NEEDS) or self.needs
        try:
            needs = parse_size(text) if text else 0
        except BadSize as problem:
            msg = f"{NEEDS}: {problem}"
            raise BadSize(msg) from None
        return Wish(needs, self.driver, pinned, self.kernel_id)

    def _remote_environment(self, env: Mapping[str, str]) -> dict[str, str]:
        passed = {*self.kernel_spec.env, *self.pass_environment, "GP_IMPERSONATION_ENABLED"}
        return {
            name: value
            for name, value in env.items()
            if name in passed or name.startswith("KERNEL_")
        }

    def _none(self, tried: Mapping[str, str], passed: tuple[tuple[str, str], ...]) -> str:
        each = "; ".join(f"{name}: {why}" for name, why in (*tried.items(), *passed))
        return f"no host can start this kernel. {each}"

    # --- Signals and the end ----------------------------------------------------------------------

    async def poll(self) -> int | None:
        """Return None while the kernel runs; also while its host is cut off: then nobody knows, and it is not started anew."""
        host, process = self._host, self._process
        if host is None or process is None:
            return 0
        if host.is_gone(process):
            # The engine's listener outlives a kernel that was killed; asked for its parent it notices, and ends.
            await self._send_signal_via_listener(0)
            return 0
        if self._stopping:
            host.ask_now()
        return 0 if self._given_up else None

    async def send_signal(self, signum: int) -> None:
        """Signal the kernel's process group over ssh; a paused kernel runs again first, or it would not notice."""
        host, process = self._host, self._process
        if signum == 0 or host is None or process is None:
            return
        self._stopping |= signum in _ENDINGS
        try:
            await off_loop(host.signal, process, signum)
        except HostAway as problem:
            if signum not in _ENDINGS:
                self.log.warning("gpushare: not signalled, %s: %s", host.name, problem)
                return
            self._give_up(host, process, problem)

    async def shutdown_requested(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002  jupyter_client's signature
        """A shutdown message was sent; a paused kernel could not read it."""
        host, process = self._host, self._process
        if host is None or process is None:
            return
        self._stopping = True
        try:
            await off_loop(host.signal, process, 0)
        except HostAway as problem:
            self._give_up(host, process, problem)
            return
        await super().shutdown_requested(restart)

    async def cleanup(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002  jupyter_client's signature
        """The kernel is gone: for good, or to come again with `restart`. Idempotent."""
        if self._host is not None:
            self._host.forget(self.kernel_id)
        self._process = None
        if not restart:
            self._host = None
        await super().cleanup(restart)

    def _give_up(self, host: Host, process: Pid, problem: HostAway) -> None:
        self._given_up = True
        host.end(process)
        self.log.warning(
            "gpushare: kernel %s on %s ends once that host answers again (%s)",
            self.kernel_id,
            host.name,
            problem,
        )

    # --- Handing the kernel over to another server process ------------------------------------------------

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return what another server process needs to take this kernel over."""
        info: dict[str, Any] = await super().get_provisioner_info()
        return {**info, "gpushare": {"process": self._process}}

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Take a kernel over."""
        await super().load_provisioner_info(provisioner_info)
        process = provisioner_info.get("gpushare", {}).get("process")
        pool = self._pool()
        if process and self.assigned_host in pool:
            self._process = (int(process[0]), int(process[1]))
            self._host = pool[self.assigned_host]
            self._host.keep(self.kernel_id, self._process)
