"""The Jupyter Server extension: what is shared, without a kernel. `GET /gpushare/snapshot`, and `/gpushare/bar` (a WebSocket) for status bars.

Enabled for every server of an environment by `etc/jupyter/jupyter_server_config.d/gpushare.json`. It asks the broker as the
server's own user, who sees what that user may see (I9).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized, ws_authenticated
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from jupyter_server.utils import url_path_join
from tornado import web
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.hub.bar_feed import BarFeed

RESOURCE = "gpushare"
_FEED = "gpushare_bar_feed"


class SnapshotHandler(APIHandler):
    """What `jupyter gpushare status --json` prints. 503 with `message` where no broker answers."""

    auth_resource = RESOURCE
    _track_activity = False  # who looks on does not keep a server from being culled

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer one."""
        try:
            snapshot = await self.settings[_FEED].snapshot()
        except (GpushareError, OSError) as problem:
            self.set_status(503)
            self.finish(msgspec.json.encode({"message": str(problem)}))
            return
        self.finish(msgspec.json.encode(snapshot))


class BarHandler(WebSocketMixin, WebSocketHandler, JupyterHandler):
    """One page: it is told what its status bar says whenever that changes, and says nothing."""

    auth_resource = RESOURCE

    @ws_authenticated
    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Let in whoever may read."""
        allowed = self.authorizer.is_authorized(self, self.current_user, "read", RESOURCE)
        if not await ensure_async(allowed):
            raise web.HTTPError(403)
        await super().get(*args, **kwargs)

    def set_default_headers(self) -> None:
        """A WebSocket has none."""

    def open(self, *args: Any, **kwargs: Any) -> None:
        """A page is there."""
        super().open(*args, **kwargs)
        self.settings[_FEED].show(self._hear)

    def on_message(self, message: str | bytes) -> None:
        """Nothing it could say is of interest."""

    def on_close(self) -> None:
        """It is closed."""
        self.settings[_FEED].drop(self._hear)
        super().on_close()

    def _hear(self, message: str) -> None:
        try:
            self.write_message(message)
        except WebSocketClosedError:
            self.settings[_FEED].drop(self._hear)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": __name__}]


def _load_jupyter_server_extension(server: Any) -> None:
    """Called by Jupyter Server as it starts. Asks nothing of anybody yet."""
    server.web_app.settings[_FEED] = BarFeed(lambda: sessions(server.kernel_manager))
    base = server.web_app.settings["base_url"]
    server.web_app.add_handlers(
        ".*$",
        [
            (url_path_join(base, "gpushare", "snapshot"), SnapshotHandler),
            (url_path_join(base, "gpushare", "bar"), BarHandler),
        ],
    )


def sessions(kernels: Any) -> Mapping[str, str]:
    """Return the session of each of a server's kernels that our provisioner started."""
    found = {}
    for kernel_id in kernels.list_kernel_ids():
        try:
            provisioner = kernels.get_kernel(kernel_id).provisioner
        except (KeyError, AttributeError):  # it has just ended; or it runs elsewhere
            continue
        session = getattr(provisioner, "gpushare_session", None)
        if session:
            found[kernel_id] = str(session)
    return found
