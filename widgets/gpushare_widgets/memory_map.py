"""The memory of a device as pieces to scale: contexts, what each keeps, lanes, free, and what lies beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpushare_kernel.client.shown import DeviceView, LaneView, SessionView, format_size, texts
from gpushare_widgets.parties import CROWD, Party, clean

Segment = dict[str, Any]
_MOST_LANES, _MOST_IN_CROWD = 32, 12


def device(
    view: DeviceView, here: Sequence[SessionView], drawn: Mapping[str, Party], *, devices: int = 1
) -> dict[str, Any]:
    """Return what is said of one of `devices`; `here` are the sessions on it."""
    noun = texts.memory_noun(view.kind)
    jobs = {job: drawn[one.id] for one in here for job in one.jobs}
    most = _MOST_IN_CROWD if len(drawn) > CROWD else _MOST_LANES
    segments = [
        *_contexts(view, noun),
        *_kept(view, here, drawn, noun),
        *_lanes(view, jobs, noun, most // devices),
        *_free(view, noun),
        *_beside(view, here, drawn, noun),
    ]
    told: dict[str, Any] = {
        "id": view.id,
        "name": clean(view.name),
        "kind": view.kind,
        "noun": noun,
        "policy": view.policy,
        "total": view.total,
        "capacity": view.capacity,
        "free": view.free,
        "segments": segments,
    }
    if view.limits and not view.lost:
        told["limits"] = clean(view.limits, 300)
    if view.lost:
        told["lost"] = clean(f"It does not answer: {view.lost}", 300)
    return told


def _segment(
    kind: str,
    size: int,
    label: str,
    title: str,
    *,
    party: Party | None = None,
    fill: int | None = None,
) -> Segment:
    return {
        "kind": kind,
        "size": size,
        "fill": fill,
        "label": label,
        "own": party is not None and party.own,
        "user": None if party is None else party.user or None,
        "session": None if party is None else party.key,
        "title": title,
    }


def _contexts(view: DeviceView, noun: str) -> list[Segment]:
    if view.reserve <= 0:
        return []
    title = f"Contexts take {format_size(view.reserve)} of {noun}: what using the device costs."
    return [_segment("context", view.reserve, "contexts", title)]


def _kept(
    view: DeviceView, here: Sequence[SessionView], drawn: Mapping[str, Party], noun: str
) -> list[Segment]:
    """What each keeps; what those keep whose sizes are not for us to see is one piece."""
    sizes: dict[Party, int] = {}
    for one in here:
        if one.p:
            sizes[drawn[one.id]] = sizes.get(drawn[one.id], 0) + one.p
    ordered = sorted(sizes.items(), key=lambda item: (not item[0].own, item[0].user, -item[1]))
    out = [
        _segment(
            "persistent",
            size,
            party.label,
            f"{_whose(party)} keeps {format_size(size)} of {noun}.",
            party=party,
        )
        for party, size in ordered
    ]
    rest = view.persistent - sum(sizes.values())
    if rest > 0:
        hidden = {drawn[one.id] for one in here if one.p is None and not one.own}
        whose = hidden.pop() if len(hidden) == 1 else Party("@others", "others", own=False, user="")
        title = f"{_whose(whose)} {'keep' if whose.label == 'others' else 'keeps'} {format_size(rest)} of {noun}."
        out.append(_segment("persistent", rest, whose.label, title, party=whose))
    return out


def _lanes(view: DeviceView, jobs: Mapping[str, Party], noun: str, most: int) -> list[Segment]:
    """Return each lane; those whose size is not for us to see are one, as large as what is left for them."""
    granted = view.capacity - view.persistent - view.reserve - view.free
    seen = [lane for lane in view.lanes if lane.size]
    hidden = len(view.lanes) - len(seen)
    apart, merged = seen, list[LaneView]()
    if len(seen) > most:
        seen.sort(key=lambda lane: not _own(lane, jobs))
        apart, merged = seen[:most], seen[most:]
    out = [_lane(lane, jobs, noun) for lane in apart]
    if merged:
        size = sum(lane.size for lane in merged)
        out.append(_many("more", len(merged), size, noun))
    left = granted - sum(lane.size for lane in seen)
    if hidden and left > 0:
        out.append(_many("of others", hidden, left, noun))
    return out


def _lane(lane: LaneView, jobs: Mapping[str, Party], noun: str) -> Segment:
    occupant = None if lane.occupant is None else jobs.get(lane.occupant)
    fill = None if lane.used is None else min(max(0, lane.used), lane.size)
    size = f"{format_size(lane.size)} of {noun}"
    who = "nobody" if lane.occupant is None else "somebody" if occupant is None else occupant.label
    parts = [f"Lane {lane.id}: {size} for what runs; {who} uses it now"]
    if fill is not None:
        parts.append(f", {format_size(fill)} of it in use")
    if len(lane.members) > 1:
        parts.append(f"; {len(lane.members)} share it in turn")
    label = "free lane" if lane.occupant is None else who
    segment = _segment("lane", lane.size, label, "".join(parts) + ".", party=occupant, fill=fill)
    segment["own"] = _own(lane, jobs)
    return segment


def _many(which: str, count: int, size: int, noun: str) -> Segment:
    lanes = f"{count} lane{'s' * (count != 1)} {which}"
    return _segment("lane", size, lanes, f"{lanes}: {format_size(size)} of {noun} for what runs.")


def _own(lane: LaneView, jobs: Mapping[str, Party]) -> bool:
    return any(job in jobs and jobs[job].own for job in lane.members)


def _free(view: DeviceView, noun: str) -> list[Segment]:
    if view.free <= 0:
        return []
    return [_segment("free", view.free, "free", f"{format_size(view.free)} of {noun} is free.")]


def _beside(
    view: DeviceView, here: Sequence[SessionView], drawn: Mapping[str, Party], noun: str
) -> list[Segment]:
    """What displays and programs outside gpushare hold; what is parked lies in the host's memory, not on the device."""
    out = []
    if view.desktop > 0:
        title = texts.desktop_text(view.desktop, noun)
        out.append(_segment("desktop", view.desktop, "desktop", title))
    if view.foreign > 0:
        title = texts.foreign_text(view.foreign, noun)
        out.append(_segment("foreign", view.foreign, "not shared", title))
    parked: dict[Party, int] = {}
    for one in here:
        size = one.parked
        if size:
            parked[drawn[one.id]] = parked.get(drawn[one.id], 0) + size
    for party, size in parked.items():
        title = (
            f"{_whose(party)} has {format_size(size)} parked: kept beside the device, not on it."
        )
        out.append(_segment("parked", size, party.label, title, party=party))
    return out


def _whose(party: Party) -> str:
    if party.label == "others":
        return "Others"
    return f"Your own {party.label}" if party.own and party.key[0] != "@" else party.label
