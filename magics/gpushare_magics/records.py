"""What IPython shows of the things that users print: HTML and text that stay. Named only; loaded when one is shown."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_LIST = ("gpushare_kernel.client.lanes", "Reports")
_SHOWN = (
    ("gpushare_kernel.wire.snapshot", "Snapshot"),
    ("gpushare_kernel.wire.messages", "Report"),
    _LIST,
    ("gpushare_kernel.client.lanes", "Lane"),
    ("gpushare_kernel.client.session", "Session"),
)


def register(shell: InteractiveShell) -> None:
    """Have `shell` show our things by their records."""
    bundles, texts = _formatters(shell)
    for module, name in _SHOWN:
        bundles.for_type_by_name(module, name, _bundle)
    texts.for_type_by_name(*_LIST, _text)


def unregister(shell: InteractiveShell) -> None:
    """Undo `register`."""
    bundles, texts = _formatters(shell)
    for formatter, (module, name) in [*((bundles, one) for one in _SHOWN), (texts, _LIST)]:
        with contextlib.suppress(KeyError):
            formatter.pop(f"{module}.{name}")


def _formatters(shell: InteractiveShell) -> tuple[Any, Any]:
    display: Any = shell.display_formatter
    return display.mimebundle_formatter, display.formatters["text/plain"]


def _text(shown: object, printer: Any, cycle: bool) -> None:  # noqa: FBT001  IPython's signature
    """Print a list's record: IPython prints whatever is a list by itself otherwise."""
    bundle = None if cycle else _bundle(shown)
    printer.text(repr(shown) if bundle is None else bundle["text/plain"])


def _bundle(shown: object, include: object = None, exclude: object = None) -> dict[str, str] | None:
    """Return the record; where it cannot be made IPython shows what it would show without us."""
    del include, exclude
    with contextlib.suppress(Exception):
        from gpushare_widgets import static  # noqa: PLC0415 - only where something is shown

        return static.bundle(shown)
    return None
