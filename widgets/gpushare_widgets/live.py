"""`LiveView`: what is shared, drawn while it happens. The widget itself; what feeds it is `feed`."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from msgspec.json import encode

from gpushare_widgets.feed import Feed, feed, offered
from gpushare_widgets.static import Record, of_scene

_HERE = Path(__file__).parent


class LiveView(anywidget.AnyWidget):
    """Memory, time, shares, the queue and notebooks, live, with controls for one's own.

    It is fed while it is seen: four times a second while a cell of this kernel runs, and on Refresh.
    Showing it twice, or several of them, costs one thread.

    Examples
    --------
    >>> LiveView()  # in a notebook; %gpushare live does the same
    """

    _esm = _HERE / "live.js"
    _css = _HERE / "live.css"
    _first = traitlets.Dict().tag(sync=True)

    def __init__(self, source: Feed | None = None) -> None:
        self._feed = feed() if source is None else source
        first = self._feed.first()
        #: What stays where there is no kernel, or no widgets: other programs read the notebook, too.
        notice = first.get("notice")
        self._record = (
            Record(f"<p>{escape(notice)}</p>", notice) if notice else of_scene(dict(first))
        )
        super().__init__(_first=offered(first))
        hear_at_once(self)
        self.on_msg(self._hear)
        self._feed.show(self)

    def push(self, message: dict[str, Any]) -> None:
        """Send a message to every front end that shows this view.

        As bytes: ipykernel walks through whatever else it sends, item by item, in Python.
        """
        if self.comm is None:
            msg = "the view is closed"
            raise RuntimeError(msg)
        self.send({"type": "json"}, buffers=[encode(message)])

    def close(self) -> None:
        """Take the view away, wherever it is shown."""
        self._feed.drop(self)
        super().close()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Called by IPython: the widget, and for whoever cannot show it what there was to see at first."""
        found = super()._repr_mimebundle_(**kwargs)
        data, metadata = ({}, {}) if found is None else found
        return {**data, **self._record._repr_mimebundle_()}, metadata

    def _hear(self, _widget: object, message: object, _buffers: object) -> None:
        self._feed.hear(self, message)


def hear_at_once(view: anywidget.AnyWidget) -> None:
    """Have what a front end says handled while a cell runs.

    ipykernel 7.4 hands a comm's messages to the thread that last wrote to it; that is the main one where the view was
    made there, and they would wait for the cell (`BaseComm._reply_subshell_for`). Without it they go where the front
    end sent them: to a subshell. Older and newer kernels have no such attribute.
    """
    if hasattr(view.comm, "_reply_subshell_for"):
        view.comm._reply_subshell_for = None
