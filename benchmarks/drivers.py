"""A user's driver process, to which a benchmark gives orders: a line of JSON each, answered by a line each."""

from __future__ import annotations

import json
import subprocess
from typing import Any, Self


class DriverProcess:
    """Speaks to a driver that runs as `uid`; ends it when the block ends.

    Raises
    ------
    AssertionError
        On an answer, where the driver has ended.
    """

    def __init__(self, process: subprocess.Popen[str], uid: int) -> None:
        self.uid = uid
        self._process = process

    def order(self, **order: Any) -> None:
        """Give an order."""
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Return the answer to the oldest order that has none."""
        line = self._process.stdout.readline()
        if not line:
            msg = f"the driver of uid {self.uid} ended ({self._process.wait()})"
            raise AssertionError(msg)
        return json.loads(line)

    def started(self) -> list[int]:
        """Return the pids of the kernels that it was told to start; they are of its user."""
        answer = self.answer()
        if answer["uid"] != self.uid:
            msg = f"the kernels run as uid {answer['uid']}, not {self.uid}"
            raise AssertionError(msg)
        return list(answer["pids"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
