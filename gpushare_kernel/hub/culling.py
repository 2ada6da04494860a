"""What cullers and memory limits do to parked notebooks, in one sentence each, with the command that changes it."""

from __future__ import annotations

from collections.abc import Iterator

from gpushare_kernel.hub.settings import Culler, Settings

PARKED_FOR = 43200
"""Seconds for which a parked notebook should be left alone: half a day, a night after an afternoon."""
_MINUTE, _HOUR = 60, 3600


def sentences(settings: Settings) -> Iterator[str]:
    """Yield what somebody who turns parking on has to know."""
    for culler in settings.cullers:
        if culler.always or culler.seconds is None or 0 < culler.seconds < PARKED_FOR:
            yield _culled(culler)
    for limit in settings.limits:
        yield (
            f"A server may have {limit.size} of the host's memory ({limit.source}): what is parked of its notebooks counts "
            "towards it, and where it does not fit nothing is parked."
        )
    for what in settings.unread:
        yield f"This was not read, so nobody knows what it does to parked notebooks: {what}"


def _culled(culler: Culler) -> str:
    said = f"{culler.what} after {'a time that was not read' if culler.seconds is None else duration(culler.seconds)} ({culler.source})"
    if culler.seconds is None and not culler.always:
        return f"{said}: where it is less than {duration(PARKED_FOR)}, parked notebooks die with them. {_mend(culler)}"
    return f"{said}: parked notebooks die with them. {_mend(culler)}"


def _mend(culler: Culler) -> str:
    if culler.tljh:
        return f"Run: sudo tljh-config set services.cull.timeout {PARKED_FOR}; sudo tljh-config reload hub"
    if culler.always:
        return "Leave --max-age out there."
    if culler.what.startswith("JupyterHub"):
        return f"Write there: --timeout={PARKED_FOR}; idle notebooks give their GPU memory back long before."
    trait = culler.source.partition(" in ")[0].partition("=")[0].lstrip("-")
    return f"Set {trait} to 0 or {PARKED_FOR} there."


def duration(seconds: float) -> str:
    """Return it in the unit that people would use."""
    for size, unit in ((_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
