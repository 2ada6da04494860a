"""Which device a new session goes to: the one it names, else where it fits best and least is going on."""

from __future__ import annotations

from collections.abc import Sequence

from gpushare_kernel.broker.engine import Engine
from gpushare_kernel.core.errors import UserError
from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.core.values import device_called


def choose(engines: Sequence[Engine], wanted: str, needs: int) -> Engine:
    """Return the engine for a session.

    Parameters
    ----------
    engines
        Those there are, in the devices' own order.
    wanted
        A device's id, the beginning of one (at least 4 characters), or its number in that order; empty for any.
    needs
        Bytes it is known to need; 0 where nothing is known.

    Raises
    ------
    UserError
        Where no device is called so, with those there are.
    """
    if wanted:
        return named(engines, wanted)
    usable = [engine for engine in engines if not engine.scheduler.lost] or [*engines]
    fitting = [engine for engine in usable if _free(engine) >= needs]
    # Those it fits: first where the fewest work, then the smallest hole. None fits: where most will be free.
    if fitting and needs:
        return min(fitting, key=lambda engine: (_busy(engine), _free(engine)))
    return min(usable, key=lambda engine: (_busy(engine), _open(engine), -_free(engine)))


def named(engines: Sequence[Engine], wanted: str) -> Engine:
    """Return the engine of the device that is called `wanted`, as in `choose`."""
    number = device_called(wanted, [engine.device.inventory.id for engine in engines])
    if number is not None:
        return engines[number]
    there = ", ".join(
        f"{n} ({engine.device.inventory.name}, {engine.device.inventory.id}, {format_size(_free(engine))} free)"
        for n, engine in enumerate(engines)
    )
    msg = f"no device is called {wanted[:60]!r}. There is: {there}."
    raise UserError(msg)


def _free(engine: Engine) -> int:
    return max(0, engine.scheduler.book.table.free)


def _busy(engine: Engine) -> int:
    return sum(bool(session.jobs) for session in engine.scheduler.sessions.values())


def _open(engine: Engine) -> int:
    return len(engine.scheduler.sessions)
