"""A node's process: pinned to its cores before anything else, it then works for its kernel until that ends.

Started by `node.py` as `python -m gpushare_kernel.realtime.node_main`, never forked: a kernel has threads, and CUDA.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
from typing import Any


def main() -> None:
    """Be a node."""
    given = _arguments()
    os.sched_setaffinity(
        0, given.cores
    )  # first: whatever starts threads from here on has them there
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the notebook's cell's
    for fd in (given.control, given.inbox, *given.onward, given.page, given.kernel):
        os.set_inheritable(fd, False)  # noqa: FBT003  what a layer starts has no part in this
    from gpushare_kernel.realtime import orders  # noqa: PLC0415  after the cores

    control = socket.socket(fileno=given.control)
    hello, _ = orders.to_node(control)
    if not isinstance(hello, orders.Hello):
        return
    sys.path[:] = hello.path
    with _inference(hello, threads=len(given.cores)):
        _work(given, hello, control)


def _work(given: argparse.Namespace, hello: Any, control: socket.socket) -> None:
    from gpushare_kernel.realtime import orders  # noqa: PLC0415  after the cores
    from gpushare_kernel.realtime.load_page import LoadPage  # noqa: PLC0415
    from gpushare_kernel.realtime.runner import Ends, Runner  # noqa: PLC0415

    inbox = socket.socket(fileno=given.inbox)
    onward = {
        node: socket.socket(fileno=fd) for node, fd in enumerate(given.onward, hello.index + 1)
    }
    page = LoadPage(given.page, given.nodes)
    runner = Runner(hello, Ends(control, inbox, onward, page, given.kernel))
    with contextlib.suppress(BrokenPipeError):
        orders.send(control, orders.Up(os.getpid()))
    runner.run()


@contextlib.contextmanager
def _inference(hello: Any, *, threads: int) -> Any:
    """Have torch ready where the kernel has it: nothing is differentiated, and a layer has the node's threads."""
    if not hello.torch:
        yield
        return
    with contextlib.suppress(
        ImportError
    ):  # before torch: that binds this thread, and new ones would be where it is
        import numpy as np  # noqa: F401, PLC0415
    import torch  # noqa: PLC0415  a second, and not for nothing

    torch.set_num_threads(threads)
    if hello.device != "cpu":
        torch.zeros(1, device=hello.device)  # the context: no job waits for it
    with torch.inference_mode():
        yield


def _arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",") if word]

    parser = argparse.ArgumentParser()
    parser.add_argument("--cores", type=numbers, required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--inbox", type=int, required=True)
    parser.add_argument("--onward", type=numbers, default=[])
    parser.add_argument("--page", type=int, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--kernel", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(
        0
    )  # a GPU's libraries may take seconds to leave, and everything of ours goes with the process
