"""Who visits a Jupyter server: its pages' requests, without a browser."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import websocket

PATIENCE = 40


class Visitor:
    """Comes with a token."""

    def __init__(self, port: int, token: str) -> None:
        self.port, self.token = port, token
        self._sockets: list[websocket.WebSocket] = []

    def ask(self, path: str, body: Any = None, *, token: str | None = None) -> tuple[int, Any]:
        """Return the status and what is said at `path`: GET, or POST with a body."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self.token if token is None else token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as problem:
            with problem:
                return problem.code, json.loads(problem.read() or b"null")

    def is_let_in(self) -> bool:
        """Whether the server is there."""
        try:
            return self.ask("api/status")[0] == 200
        except OSError:
            return False

    def watch(self, *, token: str | None = None) -> websocket.WebSocket:
        """Open what a page's status bar opens."""
        given = self.token if token is None else token
        made = websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/gpushare/bar",
            header=[f"Authorization: token {given}"],
            timeout=PATIENCE,
        )
        self._sockets.append(made)
        return made

    def close(self) -> None:
        """Leave."""
        for one in self._sockets:
            one.close()


def told(page: websocket.WebSocket, holds: Callable[[Any], Any]) -> Any:
    """Return the first of what a page is told of which something holds."""
    while True:
        said = json.loads(page.recv())
        if holds(said):
            return said
