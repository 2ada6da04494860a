"""A gateway in small: jupyter_client's kernel manager over the provisioner of a kernelspec, told what to do line by line.

python gateway.py KERNELSPEC       reads {"do": ..., ...} from its input, and answers each line with one
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.multikernelmanager import AsyncMultiKernelManager

from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.hub import hosts

_REPLY = 60


class Gateway:
    """Its kernels, and a client for each."""

    def __init__(self, spec: str) -> None:
        self._spec = spec
        self._kernels = AsyncMultiKernelManager(log=logging.getLogger("gateway"))
        self._clients: dict[str, AsyncKernelClient] = {}

    async def start(self, env: dict[str, str]) -> dict[str, Any]:
        """Start a kernel; how long that took until it can be connected to."""
        began = time.monotonic()
        kernel = await self._kernels.start_kernel(kernel_name=self._spec, env={**os.environ, **env})
        taken = time.monotonic() - began
        await self._connect(kernel)
        return {"kernel": kernel, "seconds": taken, **self._where(kernel)}

    async def many(self, count: int) -> dict[str, Any]:
        """Start so many at the same time; which hosts they are on."""
        started = await asyncio.gather(*(self.start({}) for _ in range(count)))
        return {"hosts": [one["host"] for one in started]}

    async def run(self, kernel: str, code: str) -> dict[str, Any]:
        """Run code, and return what it prints."""
        said: list[str] = []

        def note(message: dict[str, Any]) -> None:
            content = message["content"]
            said.append(content.get("text", "") or "\n".join(content.get("traceback", ())))

        reply = await self._clients[kernel].execute_interactive(
            code, timeout=_REPLY, output_hook=note
        )
        status = reply["content"]["status"]
        text = "".join(said)
        return {"text": text} if status == "ok" else {"error": text or status}

    async def send(self, kernel: str, code: str) -> dict[str, Any]:
        """Have code run, and wait for nothing."""
        return {"message": self._clients[kernel].execute(code)}

    async def alive(self, kernel: str) -> dict[str, Any]:
        """Say whether a kernel runs, as a server asks every few seconds."""
        return {"alive": await self._kernels.get_kernel(kernel).is_alive(), **self._where(kernel)}

    async def interrupt(self, kernel: str) -> dict[str, Any]:
        """Interrupt it."""
        await self._kernels.interrupt_kernel(kernel)
        return {}

    async def restart(self, kernel: str) -> dict[str, Any]:
        """Start it anew."""
        await self._kernels.restart_kernel(kernel)
        self._clients.pop(kernel).stop_channels()
        await self._connect(kernel)
        return self._where(kernel)

    async def shutdown(self, kernel: str) -> dict[str, Any]:
        """End it; how long that took."""
        self._clients.pop(kernel).stop_channels()
        began = time.monotonic()
        await self._kernels.shutdown_kernel(kernel)
        return {"seconds": time.monotonic() - began}

    async def states(self) -> dict[str, Any]:
        """Say what is known of each host."""
        known = [state for pool in hosts._pools.values() for state in pool.states()]
        return {
            "hosts": {
                one.name: {
                    "away": one.away,
                    "coming": len(one.coming),
                    "driver": one.driver,
                    "sessions": sum(device.sessions for device in one.devices),
                }
                for one in known
            }
        }

    async def close(self) -> None:
        """End everything."""
        for client in self._clients.values():
            client.stop_channels()
        await self._kernels.shutdown_all(now=True)

    def _where(self, kernel: str) -> dict[str, Any]:
        provisioner = self._kernels.get_kernel(kernel).provisioner
        return {"host": provisioner.assigned_host, "pid": provisioner.pid}

    async def _connect(self, kernel: str) -> None:
        client = self._kernels.get_kernel(kernel).client()
        client.start_channels()
        await client.wait_for_ready(timeout=_REPLY)
        self._clients[kernel] = client


async def main(spec: str) -> None:
    """Do what is asked, until there is no more."""
    logging.basicConfig(level=logging.WARNING)
    gateway = Gateway(spec)
    loop = asyncio.get_running_loop()
    try:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            asked = json.loads(line)
            try:
                answer = await getattr(gateway, asked.pop("do"))(**asked)
            except (GpushareError, RuntimeError, TimeoutError) as problem:
                answer = {"error": f"{type(problem).__name__}: {problem}"}
            print(json.dumps(answer), flush=True)
    finally:
        await gateway.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
