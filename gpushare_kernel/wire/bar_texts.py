"""The one line of a status bar: what the notebook in front holds, and for what it waits. Beside it, when one points at it, the whole."""

from __future__ import annotations

from typing import NamedTuple

from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.core.values import Presence, Wait, WaitReason
from gpushare_kernel.wire.snapshot import DeviceView, QueueView, SessionView, Snapshot
from gpushare_kernel.wire.texts import format_duration, free_text, memory_noun, wait_text

_WORTH_RELEASING = 256 * 2**20
_CRUMB = 100
"""Less than this part of what it stands beside is shown as nothing."""
_STATES: dict[str, str] = {
    Presence.OPENED: "starting",
    Presence.ORPHANED: "waiting for the broker",
    Presence.BARE: "idle",
    "paused": "paused",
    "idle": "idle",
    "restoring": "memory on its way back",
}


class Bar(NamedTuple):
    """`text` stands in the bar; `title` is the whole. `state` is one of waiting, busy, paused, idle, parked, away."""

    text: str
    title: str
    state: str


def bar_of_notebook(snapshot: Snapshot, session: str) -> Bar | None:
    """Return what to say of a notebook by its session's id; None where there is none that is for the caller to see."""
    mine = next((one for one in snapshot.sessions if one.id == session), None)
    if mine is None:
        return None
    device = next((one for one in snapshot.devices if one.id == mine.device), None)
    if device is None:
        return None
    waits = next((one for one in snapshot.queue if one.session == session), None)
    state = "waiting" if waits is not None else _state(mine)
    parts = [_memory(mine, waits, device), _doing(mine, waits)]
    title = [_about(mine, device), *_why(mine, waits, device), _about_device(device)]
    return Bar(" · ".join(filter(None, parts)), "\n".join(filter(None, title)), state)


def bar_of_device(snapshot: Snapshot) -> Bar:
    """Return what to say where no notebook that shares is in front: how full the devices are."""
    texts, titles = [], []
    for number, device in enumerate(snapshot.devices):
        name = device_noun(device) + (f" {number}:" if len(snapshot.devices) > 1 else "")
        held = device.capacity - device.free
        texts.append(f"{name}{_middle(device)}{_of(held, device.capacity)} in use")
        titles.append(_about_device(device))
    return Bar(" · ".join(texts), "\n".join(titles), "idle")


def away(why: str) -> Bar:
    """Return what to say where no broker answers."""
    return Bar("not shared: no broker", why, "away")


def device_noun(device: DeviceView) -> str:
    """Return what a device is called where there is little room; nothing passes for a GPU that is none."""
    return {"cuda": "GPU", "host": "CPU"}.get(device.kind, "Device")


def _memory(mine: SessionView, waits: QueueView | None, device: DeviceView) -> str:
    noun = f"{device_noun(device)}{_middle(device)}"
    holds = mine.p if mine.holds is None else mine.holds
    if holds is None:
        return device_noun(device)
    if mine.parked is not None:
        return f"{noun}{_size(mine.parked)} set aside"
    granted = max(mine.granted or 0, 0 if waits is None else _beside(mine.p or 0, waits.needs))
    return f"{noun}{_of(holds, granted)}" if granted > holds else f"{noun}{_size(holds)}"


def _beside(keeps: int, needs: int) -> int:
    """Return both together; crumbs of what an interpreter keeps make no 601 MiB of 600."""
    return needs + (keeps if keeps * _CRUMB >= needs else 0)


def _middle(device: DeviceView) -> str:
    """A CPU has no memory of its own: say that it is memory."""
    return " " if device.kind == "cuda" else ", memory "


def _doing(mine: SessionView, waits: QueueView | None) -> str:
    if waits is not None:
        return _waiting(waits)
    if mine.state == "parked":
        return ""
    if mine.state == "busy":
        return "running, shared with others" if mine.mode in {"co-run", "exclusive"} else "running"
    return _STATES.get(mine.state, mine.state)


def _waiting(waits: QueueView) -> str:
    eta = "" if waits.eta is None or waits.eta < 1 else f", {'' if waits.exact else 'about '}{format_duration(waits.eta)} to go"  # fmt: skip
    if waits.reason == WaitReason.TURN:
        return f"waiting for a turn{eta}"
    if waits.reason == WaitReason.RESTORE:
        return f"memory on its way back{eta}"
    if waits.reason == WaitReason.GRACE:
        return "waiting for the broker"
    return f"waiting, {f'{waits.ahead} ahead' if waits.ahead else 'next'}{eta}"


def _why(mine: SessionView, waits: QueueView | None, device: DeviceView) -> list[str]:
    noun = memory_noun(device.kind)
    if waits is not None and waits.free is not None:
        wait = Wait(WaitReason(waits.reason), waits.needs, waits.free, waits.ahead, waits.holders, waits.eta, until=waits.until, exact=waits.exact, lost=device.lost or "", cap=waits.cap, group=waits.group, note=waits.note)  # fmt: skip
        return [wait_text(wait, noun)]
    if mine.parked is not None:
        return [
            f"Its {noun} ({format_size(mine.parked)}) is set aside, with all that is in it; its next cell has it back."
        ]
    if mine.state in {"idle", "bare"} and (mine.spare or 0) >= _WORTH_RELEASING:
        return [f"%gpushare release in it gives up to {format_size(mine.spare or 0)} back."]
    return []


def _about(mine: SessionView, device: DeviceView) -> str:
    holds = mine.p if mine.holds is None else mine.holds
    name = mine.name or "This notebook"
    if holds is None:
        return name
    granted = mine.granted or 0
    may = f", and may take {format_size(granted)} in all now" if granted > holds else ""
    return f"{name} holds {format_size(holds)} of {memory_noun(device.kind)}{may}."


def _about_device(device: DeviceView) -> str:
    if device.lost:
        return device.lost
    free = f"{free_text(device.free, device.capacity)} of {format_size(device.capacity)}"
    return f"{device.name}: {free} of {memory_noun(device.kind)} free."


def _state(mine: SessionView) -> str:
    return mine.state if mine.state in {"busy", "paused", "parked"} else "idle"


def _of(part: int, whole: int) -> str:
    """`2.1 of 6 GiB`."""
    return f"{_short(free_text(part, whole)) if part * _CRUMB >= whole else '0'} of {_size(whole)}"


def _size(size: int) -> str:
    return _short(format_size(size))


def _short(text: str) -> str:
    number, _, unit = text.partition(" ")
    return f"{number.removesuffix('.0')} {unit}".strip()
