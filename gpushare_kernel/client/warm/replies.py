"""Answers to messages that are not handled now, as the messaging protocol has them."""

from __future__ import annotations

from typing import Any

from gpushare_kernel.wire import parking_texts

EMPTY = ("complete_request", "inspect_request", "is_complete_request", "debug_request")
"""What is answered at once, with nothing."""


def empty(kernel: Any, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
    """Answer what a front end asks by itself while its user types: nothing is known."""
    content = parent["content"]
    kind = parent["header"]["msg_type"]
    at = content.get("cursor_pos", 0)
    answer: dict[str, Any] = {
        "complete_request": {
            "status": "ok",
            "matches": [],
            "cursor_start": at,
            "cursor_end": at,
            "metadata": {},
        },
        "inspect_request": {"status": "ok", "found": False, "data": {}, "metadata": {}},
        "is_complete_request": {"status": "unknown"},
        "debug_request": {
            "type": "response",
            "request_seq": content.get("seq", 0),
            "success": False,
            "command": content.get("command", ""),
            "message": parking_texts.HELD,
        },
    }[kind]
    _send(kernel, stream, ident, parent, answer)


def aborted(kernel: Any, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
    """Say of a silent execution that it has not run: nobody sees it wait."""
    _send(kernel, stream, ident, parent, {"status": "aborted"})


def done(kernel: Any, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
    """Say that it is done."""
    answer = {"status": "ok", "execution_count": kernel.execution_count, "payload": [], "user_expressions": {}}  # fmt: skip
    _send(kernel, stream, ident, parent, answer)


def interrupted(kernel: Any, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
    """Say that the cell has not run, as its user did not want to wait."""
    failed(kernel, stream, ident, parent, parking_texts.HELD_INTERRUPTED, name="KeyboardInterrupt")


def failed(
    kernel: Any, stream: Any, ident: Any, parent: dict[str, Any], text: str, *, name: str = "Error"
) -> None:
    """Say that it failed, in the cell's output and to whoever sent it; what is queued behind it does not run either."""
    error = {"ename": name, "evalue": text, "traceback": [f"gpushare: {text}"]}
    kernel.session.send(
        kernel.iopub_socket, "error", error, parent=parent, ident=kernel._topic("error")
    )
    answer = {"status": "error", **error, "execution_count": kernel.execution_count, "payload": [], "user_expressions": {}}  # fmt: skip
    _send(kernel, stream, ident, parent, answer)
    if parent["content"].get("stop_on_error", True):
        subshell = parent["header"].get("subshell_id")
        kernel._abort_queues(*([] if subshell is None else [subshell]))


def _send(kernel: Any, stream: Any, ident: Any, parent: dict[str, Any], answer: dict[str, Any]) -> None:  # fmt: skip
    kind = parent["header"]["msg_type"].removesuffix("_request") + "_reply"
    kernel.session.send(stream, kind, answer, parent, ident=ident)
