"""The kernel's end of one node: its process, and the socket to it.

`start` makes a whole row of them: each can hand jobs to every later one without the kernel. A node ends with its kernel:
it holds a pidfd of it, and the socket's end says the same where nobody else holds that.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.realtime import orders
from gpushare_kernel.realtime.load_page import LoadPage
from gpushare_kernel.realtime.model import NodeType

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PATIENCE = 5.0
"""Seconds that a node which was told to stop has, before it is killed: it may be in the middle of a layer."""


class NodeDied(GpushareError):
    """A node's process ended although nobody told it to."""


@dataclass(slots=True)
class Node:
    """One node that runs."""

    index: int
    type: NodeType
    cores: Sequence[int]
    process: subprocess.Popen[bytes]
    control: socket.socket
    pidfd: int = field(init=False)

    def __post_init__(self) -> None:
        self.pidfd = os.pidfd_open(self.process.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def tell(self, order: orders.Order, fds: Sequence[int] = ()) -> None:
        """Send an order.

        Raises
        ------
        NodeDied
            Where nobody is there any more.
        """
        try:
            orders.send(self.control, order, fds)
        except (BrokenPipeError, ConnectionResetError):
            raise NodeDied(self.obituary()) from None

    def obituary(self) -> str:
        """Return what is known of its death, and what to do."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_PATIENCE)
        code = self.process.returncode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with status {code}"
        return (
            f"node {self.index} ({self.type}, process {self.pid}) ended {how} while it was needed. "
            "Jobs on the nodes are lost; open the pipelines again."
        )

    def stop(self) -> None:
        """End it, and let go of everything. A layer that hangs is not waited for."""
        with contextlib.suppress(OSError):
            orders.send(self.control, orders.Stop())
        self.control.close()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.pidfd)


def start(
    types: Sequence[NodeType],
    cores: Sequence[Sequence[int]],
    page: LoadPage,
    mode: str,
) -> list[Node]:
    """Start nodes in pipeline order. They say `Up` on their sockets when they are ready.

    Nothing is left where one cannot be started.
    """
    inboxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in types]
    kernel = os.pidfd_open(os.getpid())
    nodes: list[Node] = []
    gpus = count()
    try:
        for index, kind in enumerate(types):
            words = {
                "--cores": _listed(cores[index]),
                "--inbox": inboxes[index][0].fileno(),
                "--onward": _listed(writer.fileno() for _, writer in inboxes[index + 1 :]),
                "--page": page.fd,
                "--nodes": page.nodes,
                "--kernel": kernel,
            }
            passed = [pair[0 if at == index else 1].fileno() for at, pair in enumerate(inboxes) if at >= index]  # fmt: skip
            environment = _environment(cores[index], next(gpus) if kind.gpus else None)
            process, control = _start(words, [*passed, page.fd, kernel], environment)
            nodes.append(Node(index, kind, cores[index], process, control))
            nodes[-1].tell(_hello(index, kind, cores[index], mode))
    except BaseException:
        stop(nodes)
        raise
    finally:
        os.close(kernel)
        for pair in inboxes:
            for end in pair:
                end.close()
    return nodes


def stop(nodes: Sequence[Node]) -> None:
    """End nodes: all are told before any is waited for."""
    for node in nodes:
        with contextlib.suppress(OSError):
            orders.send(node.control, orders.Stop())
    for node in nodes:
        node.stop()


def _hello(index: int, kind: NodeType, cores: Sequence[int], mode: str) -> orders.Hello:
    return orders.Hello(
        index=index,
        path=list(sys.path),
        torch="torch" in sys.modules,
        device="cuda" if kind.gpus else "cpu",
        cores=list(cores),
        mode=mode,
    )


def _start(
    words: Mapping[str, object], passed: Sequence[int], environment: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a process with a socket to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    given = {**words, "--control": theirs.fileno()}
    try:
        process = subprocess.Popen(  # noqa: S603  ourselves
            [sys.executable, "-m", "gpushare_kernel.realtime.node_main", *(f"{name}={value}" for name, value in given.items())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), *passed),
            env=environment,
            start_new_session=True,  # an interrupt of the notebook is not for it
        )  # fmt: skip
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _environment(cores: Sequence[int], gpu: int | None) -> dict[str, str]:
    """Return a node's environment: its libraries have as many threads as it has cores, each on its own, and see its GPU or none."""
    ours = {**os.environ, **dict.fromkeys(_THREADS, str(len(cores)))}
    seen = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    if gpu is not None:
        return {**ours, "CUDA_VISIBLE_DEVICES": seen[gpu] if gpu < len(seen) else str(gpu)}
    if len(cores) > 1:
        ours |= {"OMP_PROC_BIND": "true", "OMP_PLACES": ",".join(f"{{{core}}}" for core in cores)}
    return {**ours, "CUDA_VISIBLE_DEVICES": ""}
