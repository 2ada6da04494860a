"""What people read where a framework is not seen from inside, or not all of it."""

from __future__ import annotations


def adapter_text(framework: str, version: str, what: str) -> str:
    """Return the line about a part of a framework that cannot be seen here."""
    return f"{framework} {version} is shared, but not all of it is seen: {what}."


def unadapted_text(why: str) -> str:
    """Return the line of a notebook whose frameworks cannot be adapted at all."""
    return f"This notebook is shared, but its frameworks are not seen from inside ({why}). jupyter gpushare doctor says more."


def uncapped_text(why: str) -> str:
    """Return the line about a limit that a framework did not take."""
    return f"This notebook's limit of GPU memory could not be set ({why}): the broker watches it from outside."
