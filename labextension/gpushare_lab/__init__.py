"""A prebuilt JupyterLab extension: an item that says what the notebook in front holds of the GPU, and for what it waits."""

from __future__ import annotations

__version__ = "0.1.0"


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "gpushare-lab"}]
