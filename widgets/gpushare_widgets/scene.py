"""The scene: what a snapshot shows, as one compact payload. The browser, the static record and the terminal draw it.

Sizes are bytes, times seconds. Sections with nothing to say are left out; what a newer broker tells beyond this is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace as replaced
from typing import Any

from msgspec.structs import replace

from gpushare_kernel.client.shown import (
    DeviceView,
    PauseReason,
    QueueView,
    SessionView,
    Snapshot,
    Wait,
    WaitReason,
    account_text,
    texts,
    words_of,
)
from gpushare_widgets import memory_map, timeline
from gpushare_widgets.parties import CROWD, NOBODY, Party, clean, longest, parties, user_of

Scene = dict[str, Any]
_MODES = {"co-run": "shared", "exclusive": "in turns"}
_PAUSES = {
    str(PauseReason.OWNER): "by hand",
    str(PauseReason.OVER_GRANT): "over its grant",
    str(PauseReason.REALTIME): "for real-time work",
}
_REASONS = frozenset(WaitReason)
_AT_WORK = ("busy", "paused", "restoring")
_MOST_QUEUED, _MOST_OF_CROWD, _MOST_SHARES, _MOST_FED = 30, 12, 16, 20
_LONGEST_NEWS = 700
"""Characters: an administrator's words have 500 at most."""
_TRACE = 0.1
"""Who ran for less than this part of an equal share, and wants nothing, shares with nobody."""


class Kept:
    """What of a scene is the same until somebody does something else: who is drawn, memory, notebooks. For any thread."""

    def __init__(self) -> None:
        self._of: tuple[object, tuple[Mapping[str, Party], list[Scene], list[Scene]]] | None = None

    def of(self, snapshot: Snapshot) -> tuple[Mapping[str, Party], list[Scene], list[Scene]]:
        """Return them; made anew only where they are others."""
        key = (
            [replace(one, device_time=0.0, demand=None, turns=0) for one in snapshot.sessions],
            [replace(view, turns=()) for view in snapshot.devices],
            {waiter.session for waiter in snapshot.queue},
        )
        last = self._of
        if last is not None and last[0] == key:
            return last[1]
        made = _lasting(snapshot)
        self._of = key, made
        return made


def _lasting(snapshot: Snapshot) -> tuple[Mapping[str, Party], list[Scene], list[Scene]]:
    devices = len(snapshot.devices)
    drawn = parties(snapshot.sessions, devices=devices)
    memory = [
        memory_map.device(
            view,
            [s for s in snapshot.sessions if s.device in ("", view.id)],
            drawn,
            devices=devices,
        )
        for view in snapshot.devices
    ]
    return drawn, memory, _sessions(snapshot, drawn)


def scene(snapshot: Snapshot, *, now: float, kept: Kept | None = None) -> Scene:
    """Return what `snapshot` shows.

    Parameters
    ----------
    snapshot
        What the broker told.
    now
        When it was told, in seconds since the epoch.
    kept
        What is kept from scene to scene by whoever makes many. A section that is as before is the very list that it was.

    Returns
    -------
    dict
        `at`, and of these what has something to say:

        `news`: what everybody is to read first, sentences: of an administrator, and how far a maintenance is.
        `account`: what one's own group allows, a sentence.
        `devices`: `id name kind noun policy total capacity free segments`, and `limits` or `lost`. A segment is
        `kind size fill label own user session title`. Kinds are context, persistent, lane and free, which add up to
        the capacity, then desktop and foreign, which lie on the device too, and parked, which does not.
        `time`: `device window rows`; a row is `session label own user spans`; a span is `[began, ended, kind]` in
        seconds before `at`, so `began` is the larger. Spans of different kinds may overlap: turn is the lowest.
        `shares`: `user own used share fair over`; `used` seconds within the last `over` (None: since the broker
        started); `share` and `fair` are fractions.
        `queue`: `job label own text place eta waited needs`; `place` counts those ahead.
        `sessions`: `id label own user device state mode doing held actions`. An id that begins with `@` stands for several.
        `rt`: `session label own period deadline margin misses`. `bundles`: `name session own pages shared size`.
    """
    devices = len(snapshot.devices)
    drawn, memory, sessions = _lasting(snapshot) if kept is None else kept.of(snapshot)
    spans = {
        view.id: timeline.spans(view, drawn, now, devices=devices) for view in snapshot.devices
    }
    time = [timeline.device(view, spans[view.id]) for view in snapshot.devices]
    sections: Scene = {
        "news": [clean(said, _LONGEST_NEWS) for said in words_of(snapshot)],
        "account": clean(
            " ".join(account_text(one) for one in snapshot.users if one.own), _LONGEST_NEWS
        ),
        "devices": memory,
        "time": [one for one in time if one is not None],
        "shares": _shares(snapshot, [timeline.ran(one) for one in spans.values()]),
        "queue": _queue(snapshot, drawn),
        "sessions": sessions,
        "rt": _fed(snapshot.rt, drawn, _rt),
        "bundles": _fed(getattr(snapshot, "bundles", ()), drawn, _bundle),
    }
    return {"at": now, **{name: told for name, told in sections.items() if told}}


def _shares(snapshot: Snapshot, ran: Iterable[Mapping[str, float]]) -> list[Scene]:
    """Each user's share of what was used, beside a fair one among those who want the device. Alone nobody shares."""
    used: dict[str, float] = {}
    for one in ran:
        for user, seconds in one.items():
            used[user] = used.get(user, 0.0) + seconds
    over = timeline.WINDOW if used else None
    weights: dict[str, float] = {}
    for account in snapshot.users:
        user = user_of(account)
        weights[user] = weights.get(user, 0.0) + account.weight
        if over is None and account.device_time > 0:
            used[user] = used.get(user, 0.0) + account.device_time
    waiting = {waiter.session for waiter in snapshot.queue}
    own = {user_of(s) for s in snapshot.sessions if s.own}
    wants = {user_of(s) for s in snapshot.sessions if s.state in _AT_WORK or s.id in waiting}
    there = {user for user in {*used, *wants} if user}
    # Of who wants nothing and ran for a moment a fair share says nothing.
    trace = _TRACE * sum(used.values()) / max(1, len(there))
    users = sorted(
        {user for user in there if user in wants or used[user] >= trace},
        key=lambda u: (u not in own, -used.get(u, 0.0), u),
    )
    total = sum(used.get(user, 0.0) for user in users)
    whole = sum(weights.get(user, 1.0) for user in users)
    if len(users) < 2 or not total:  # noqa: PLR2004 - one alone shares with nobody
        return []
    rows = [
        {
            "user": user,
            "own": user in own,
            "used": round(used.get(user, 0.0), 2),
            "share": round(used.get(user, 0.0) / total, 4),
            "fair": round(weights.get(user, 1.0) / whole, 4),
            "over": over,
        }
        for user in users
    ]
    kept, rest = rows[:_MOST_SHARES], rows[_MOST_SHARES:]
    if rest:
        sums = {key: round(sum(row[key] for row in rest), 4) for key in ("used", "share", "fair")}  # type: ignore[misc]
        kept.append({"user": f"{len(rest)} more", "own": False, **sums, "over": over})
    return kept


def _queue(snapshot: Snapshot, drawn: Mapping[str, Party]) -> list[Scene]:
    """Who waits, in order; of many one's own and the first, and how many more."""
    devices = {view.id: view for view in snapshot.devices}
    sessions = {one.id: one for one in snapshot.sessions}
    most = _MOST_OF_CROWD if len(sessions) > CROWD else _MOST_QUEUED
    ordered = sorted(snapshot.queue, key=lambda q: q.ahead)
    own = [q for q in ordered if drawn.get(q.session, NOBODY).own][: 2 * most // 3]
    others = [q for q in ordered if not drawn.get(q.session, NOBODY).own][: most - len(own)]
    rows = []
    for waiter in sorted([*own, *others], key=lambda q: q.ahead):
        session, party = sessions.get(waiter.session), drawn.get(waiter.session, NOBODY)
        device = _device(devices, session)
        name = "somebody" if session is None else party.label
        doing = f": {waiter.name}" if waiter.name and waiter.name != name else ""
        wait = _wait(waiter, device, snapshot)
        rows.append(
            {
                "job": waiter.job,
                "label": clean(name + doing, longest(snapshot.sessions)),
                "own": party.own,
                "text": clean(_why(waiter, wait, device, own=party.own), 400),
                "place": waiter.ahead,
                "eta": waiter.eta if waiter.eta is None else round(waiter.eta, 1),
                "waited": round(waiter.waited, 1),
                "needs": waiter.needs,
            }
        )
    more = len(ordered) - len(rows)
    if more:
        rows.append(
            {
                "job": "@more",
                "label": f"{more} more",
                "own": False,
                "text": "Also waiting.",
                "place": len(rows),
                "eta": None,
                "waited": 0.0,
                "needs": 0,
            }
        )
    return rows


def _device(devices: Mapping[str, DeviceView], session: SessionView | None) -> DeviceView | None:
    first = next(iter(devices.values()), None)
    return first if session is None else devices.get(session.device, first)


def _wait(waiter: QueueView, device: DeviceView | None, snapshot: Snapshot) -> Wait | None:
    """Return what the waiting cell's sentence is made of; None where the reason is news to us."""
    if waiter.reason not in _REASONS:
        return None
    free = waiter.free
    if free is None:  # an older broker's
        free = 0 if device is None else device.free
    most = longest(snapshot.sessions)
    today = None if snapshot.broker is None else snapshot.broker.longest_wait_today
    return Wait(
        WaitReason(waiter.reason),
        waiter.needs,
        free,
        waiter.ahead,
        holders=tuple(replaced(one, name=clean(one.name, most)) for one in waiter.holders),
        eta=waiter.eta,
        longest_today=today,
        until=waiter.until,
        exact=waiter.exact,
        cap=waiter.cap,
        group=clean(waiter.group, most),
        note=clean(waiter.note, most),
        over_budget=waiter.over_budget,
    )


def _why(waiter: QueueView, wait: Wait | None, device: DeviceView | None, *, own: bool) -> str:
    """Return the sentence that the waiting cell shows too; of others only the reason."""
    if wait is None:
        return f"Waiting: {waiter.reason}."
    noun = "memory" if device is None else texts.memory_noun(device.kind)
    return texts.wait_text(wait, noun) if own else texts.others_wait_text(wait, noun)


def _sessions(snapshot: Snapshot, drawn: Mapping[str, Party]) -> list[Scene]:
    devices = {view.id: view for view in snapshot.devices}
    waiting = {waiter.session for waiter in snapshot.queue}
    waits_there = {s.device for s in snapshot.sessions if s.own and s.id in waiting}
    rows: dict[str, list[SessionView]] = {}
    for one in snapshot.sessions:
        rows.setdefault(drawn[one.id].key, []).append(one)
    told = []
    for members in rows.values():
        party, first = drawn[members[0].id], members[0]
        several = party.key.startswith("@")
        held = [one.p for one in members if one.p is not None]
        told.append(
            {
                "id": party.key,
                "label": party.label,
                "own": party.own,
                "user": party.user or None,
                "device": first.device if len({one.device for one in members}) == 1 else "",
                "state": _states(members) if several else _state(first, waits=first.id in waiting),
                "mode": None if several else _mode(first),
                "doing": "" if several else _doing(first, longest(snapshot.sessions)),
                "held": sum(held) if held else None,
                "actions": []
                if several
                else _actions(
                    first,
                    _device(devices, first),
                    waiting=first.id in waiting,
                    wanted=first.device in waits_there,
                ),
            }
        )
    return sorted(told, key=lambda row: (not row["own"], row["label"]))


def _state(session: SessionView, *, waits: bool) -> str:
    """Return what a notebook does; one whose only job is in the queue waits."""
    if waits and session.state == "busy" and len(session.jobs) <= 1:
        return "waiting"
    return clean(session.state, 20)


def _mode(session: SessionView) -> str | None:
    """Return how it shares the device, or why it stands still."""
    return _PAUSES.get(session.why_paused or "") or _MODES.get(session.mode or "")


def _doing(session: SessionView, most: int) -> str:
    """Return what its jobs are called, where that is not its own name again."""
    return clean(", ".join(name for name in session.doing if name != session.name), most)


def _states(members: Sequence[SessionView]) -> str:
    busy = sum(one.state in _AT_WORK for one in members)
    return f"{busy} busy" if busy else "idle"


def _actions(
    session: SessionView, device: DeviceView | None, *, waiting: bool, wanted: bool
) -> list[str]:
    """Return what one can do: with one's own notebook what the device can, to an idle one of others ask while one of one's own waits there."""
    if device is None or device.lost:
        return []
    if not session.own:
        return ["ask"] if wanted and session.state == "idle" else []
    can = device.can if device.can is not None else () if device.limits else ("pause",)
    state = session.state
    spare = session.p if session.spare is None else session.spare
    offered = {
        "release": bool(spare) and state in ("idle", "bare"),
        "pause": "pause" in can and state == "busy" and not waiting,
        "resume": "pause" in can and session.why_paused == PauseReason.OWNER,
        "park": "park" in can
        and state == "idle"
        and bool(session.p)
        and not session.why_not_parked,
        "restore": "park" in can and state == "parked",
    }
    return [action for action, there in offered.items() if there]


def _fed(views: Iterable[Any], drawn: Mapping[str, Party], row: Any) -> list[Scene]:
    return [row(view, drawn.get(view.session, NOBODY)) for view in tuple(views)[:_MOST_FED]]


def _rt(view: Any, party: Party) -> Scene:
    return {
        "session": party.key,
        "label": party.label,
        "own": party.own,
        "period": view.period,
        "deadline": view.deadline,
        "margin": view.margin,
        "misses": view.misses,
    }


def _bundle(view: Any, party: Party) -> Scene:
    return {
        "name": clean(view.name),
        "session": party.key,
        "own": party.own,
        "pages": view.pages,
        "shared": view.shared,
        "size": view.size,
    }
