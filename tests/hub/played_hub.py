"""A hub's REST API as far as identity goes, at a real socket: it answers what the test says, as fast as the test says."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class PlayedHub:
    """Answers `GET /hub/api/user` by token. `gate`: while it is not set, nobody is answered."""

    def __init__(self) -> None:
        self.users: dict[str, Any] = {}
        self.status = 200
        self.body: bytes | None = None
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        #: Set whenever somebody asks.
        self.asks = threading.Semaphore(0)
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                token = self.headers["Authorization"].removeprefix("token ")
                hub.asked.append(self.path)
                hub.asks.release()
                hub.gate.wait(30)
                known = hub.users.get(token)
                status = hub.status if hub.status != 200 or known is not None else 403
                body = hub.body or json.dumps(known or {"status": status}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.api = f"http://127.0.0.1:{self._server.server_port}/hub/api"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def knows(self, token: str, name: str, kind: str = "user", session: str | None = None) -> None:
        """From now on this token is this name's; of a browser's `session`, where it is one of a visitor's."""
        self.users[token] = {"kind": kind, "name": name, "admin": False, "session_id": session}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Be gone: connections are refused from here on."""
        self.gate.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(20)
            self._server.server_close()
