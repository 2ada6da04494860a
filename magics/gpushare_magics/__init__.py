"""`%%gpulane` and `%gpushare` for IPython.

A kernel started by gpushare loads this by itself; elsewhere `%load_ext gpushare_magics` does. Every
kernel start imports this module: what is not needed then is imported by those who need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = [
    "autoload",
    "begin",
    "dry_run",
    "enter",
    "load_ipython_extension",
    "unload_ipython_extension",
]


def autoload() -> None:
    """Load the extension where this process is a kernel of ours; a program started in it is not."""
    from IPython.core.getipython import get_ipython  # noqa: PLC0415

    from gpushare_kernel.client import roots  # noqa: PLC0415

    shell = get_ipython()
    if shell is None or not hasattr(shell, "kernel") or shell.extension_manager is None:
        return
    if roots.claim():
        shell.extension_manager.load_extension(__name__)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Called by IPython for `%load_ext gpushare_magics`."""
    from gpushare_magics import extension  # noqa: PLC0415

    extension.load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Called by IPython for `%unload_ext gpushare_magics`."""
    from gpushare_magics import extension  # noqa: PLC0415

    extension.unload(shell)


def begin() -> None:
    """Begin the running plain cell on a GPU. Stands before its first statement."""
    from gpushare_kernel.client import display  # noqa: PLC0415
    from gpushare_magics import extension  # noqa: PLC0415

    try:
        extension.active().cells.begin()
    except KeyboardInterrupt as interrupt:
        raise display.without_our_frames(interrupt) from None


def enter(arguments: str) -> None:
    """Enter the lane that the first line of the running cell declares. The end of the cell leaves it."""
    from gpushare_magics import extension  # noqa: PLC0415

    extension.active().enter(arguments)


def dry_run(arguments: str) -> None:
    """Say what the cell would do now, instead of running it."""
    from gpushare_magics import extension  # noqa: PLC0415

    extension.active().dry_run(arguments)
