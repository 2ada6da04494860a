"""Memory traffic on one core, while a layer is measured on others: caches and memory are shared, whatever is pinned where.

Run as `python -m gpushare_kernel.realtime.traffic CORE PARENT`; `beside` starts one on each core.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

_BYTES = 32 * 1024 * 1024
"""More than a core's part of any last-level cache."""


def main() -> None:
    """Copy memory to and fro until our parent is gone."""
    core, parent = int(sys.argv[1]), int(sys.argv[2])
    os.sched_setaffinity(0, [core])
    there, back = memoryview(bytearray(_BYTES)), memoryview(bytearray(_BYTES))
    print(flush=True)  # noqa: T201  the one word: traffic flows
    while os.getppid() == parent:
        there[:] = back
        back[:] = there


@contextlib.contextmanager
def beside(cores: Sequence[int]) -> Iterator[None]:
    """Have memory traffic on each of `cores` while the block runs."""
    with contextlib.ExitStack() as stack:
        for core in cores:
            process = subprocess.Popen(  # noqa: S603  ourselves
                [sys.executable, "-m", "gpushare_kernel.realtime.traffic", str(core), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None  # noqa: S101  for the type checker
            process.stdout.readline()
        yield


if __name__ == "__main__":
    main()
