"""A light kernel: started by our provisioner like any other, with our client in it and no IPython, so that 50 fit on two cores.

It listens at SOAK_SOCKET and answers each line of JSON (`[code, expression]`) with one (`[true, value]` or `[false, kind, text]`). An
interrupt ends the code that runs, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from gpushare_kernel.client import api, roots


def main() -> None:
    """Serve one notebook after the other, until killed."""
    names: dict[str, Any] = {}
    numbers = count(1)
    place = Path(os.environ["SOAK_SOCKET"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    roots.claim()  # as our magics do: it is the kernel's own process, and can say which session it is
    api.get_session()
    with socket.socket(socket.AF_UNIX) as door:
        place.unlink(missing_ok=True)
        door.bind(str(place))
        door.listen()
        while True:
            sock, _ = door.accept()
            with sock, sock.makefile("rw", encoding="utf-8") as lines:
                for line in lines:
                    with _told(next(numbers)):
                        answer = _answer(*json.loads(line), names)
                    lines.write(json.dumps(answer) + "\n")
                    lines.flush()


@contextlib.contextmanager
def _told(number: int) -> Iterator[None]:
    """Tell the broker of a cell, as our magics do."""
    session = api.get_session()
    assert session is not None
    session.cell_started(number)
    try:
        yield
    finally:
        session.cell_ended(number)


def _answer(code: str, value: str, names: dict[str, Any]) -> list[Any]:
    try:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            exec(code, names)  # a cell
            found = eval(value, names)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except BaseException as error:  # noqa: BLE001 - as a kernel does
        traceback.print_exc(file=sys.stderr)
        return [False, type(error).__name__, str(error)]
    return [True, found]


if __name__ == "__main__":
    main()
