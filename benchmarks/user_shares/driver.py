"""Holds one user's kernels, as that user, in the folder it is called with. Lines of JSON come in, lines of JSON go out.

    {"start": [provisioner, number]}   -> {"pids": [...]}
    {"begin": [code of each kernel]}   -> {}
    {"finish": seconds}                -> {}

Kernels end with stdin.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import environment, jupyter_folders
from benchmarks.kernels import Kernel


def main() -> None:
    """Answer until stdin ends."""
    home = Path(sys.argv[1])  # the account has none
    variables = {"HOME": str(home), **jupyter_folders(home)}
    with environment(variables), contextlib.ExitStack() as ends:
        kernels: list[Kernel] = []
        for line in sys.stdin:
            ((order, given),) = json.loads(line).items()
            answer = {}
            if order == "start":
                provisioner, number = given
                for _ in range(number):
                    kernels.append(Kernel(provisioner).start())
                    ends.callback(kernels[-1].close)
                answer = {"pids": [kernel.pid for kernel in kernels], "uid": os.getuid()}
            elif order == "begin":
                for kernel, code in zip(kernels, given, strict=True):
                    kernel.begin(code)
            else:
                for kernel in kernels:
                    kernel.finish(timeout=given)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
