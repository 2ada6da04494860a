"""`Notify`: the tab's title, and a notification of the browser's, when a cell that waited for long starts or ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

_HERE = Path(__file__).parent


class Notify(anywidget.AnyWidget):
    """One row that says what it does, with a button: browsers ask for leave only where somebody clicked.

    Examples
    --------
    >>> Notify(after="30 s")  # %gpushare notify on does the same
    """

    _esm = _HERE / "notify.js"
    _css = _HERE / "notify.css"
    _after = traitlets.Unicode().tag(sync=True)

    def __init__(self, after: str) -> None:
        super().__init__(_after=after)

    def tell(self, text: str, notebook: str) -> None:
        """Say `text` of a notebook to whoever looks elsewhere."""
        if self.comm is not None:
            self.send({"type": "notify", "text": text, "notebook": notebook})

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Called by IPython: the widget, and a sentence for whoever cannot show it."""
        found = super()._repr_mimebundle_(**kwargs)
        data, metadata = ({}, {}) if found is None else found
        text = "Notifications of gpushare: on while this notebook's kernel ran."
        return {**data, "text/plain": text}, metadata
