"""Who is drawn: a session, or in a crowd all sessions of one user; and names that cannot break a screen."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpushare_kernel.client.shown import SessionView, label

CROWD = 100
"""Sessions above which those of others are drawn by user, and of everything only the first."""
_MOST_OWN, _MOST_USERS, _FEWEST_USERS = 20, 16, 4
_LONGEST = 60
_JOINER = "\u200d"
_MOST_MARKS = 2
_RESTING = ("idle", "bare", "opened")


@dataclass(frozen=True, slots=True)
class Party:
    """One line of the scene; `key` begins with `@` where it stands for several sessions."""

    key: str
    label: str
    own: bool
    user: str


NOBODY = Party("@", "ended", own=False, user="")
"""Whose session is gone."""


def clean(text: str, most: int = _LONGEST) -> str:
    """Return `text` as one short line: nothing in it turns the writing around, breaks the line or piles up marks."""
    if text.isascii() and text.isprintable() and len(text) <= most:
        return text
    out: list[str] = []
    marks = 0
    for c in text[: 4 * most]:
        marks = marks + 1 if unicodedata.category(c) in ("Mn", "Me") else 0
        if marks <= _MOST_MARKS:
            out.append(c if c.isprintable() or c == _JOINER else "?")
    return "".join(out[: most - 1]) + "…" if len(out) > most else "".join(out)


def parties(sessions: Iterable[SessionView], *, devices: int = 1) -> Mapping[str, Party]:
    """Return who each session is drawn as, by its id; on many devices a crowd has fewer lines on each."""
    known = tuple(sessions)
    if len(known) <= CROWD:
        return {one.id: _alone(one) for one in known}
    own = sorted((s for s in known if s.own), key=lambda s: (s.state in _RESTING, -(s.p or 0)))
    others = [s for s in known if not s.own]
    users = Counter(clean(s.user) for s in others)
    named = {
        user for user, _ in users.most_common(max(_FEWEST_USERS, _MOST_USERS // max(1, devices)))
    }
    rest = sum(count for user, count in users.items() if user not in named)
    drawn = {s.id: _alone(s) for s in own[:_MOST_OWN]}
    more = len(own) - len(drawn)
    for one in own[_MOST_OWN:]:
        drawn[one.id] = Party("@own", f"{more} more of yours", own=True, user=clean(one.user))
    for one in others:
        user = clean(one.user)
        if user in named:
            text = f"{user}: {users[user]} notebook{'s' * (users[user] != 1)}"
            drawn[one.id] = Party(f"@{user}", text, own=False, user=user)
        else:
            drawn[one.id] = Party("@others", f"{rest} notebooks of others", own=False, user="")
    return drawn


def _alone(session: SessionView) -> Party:
    return Party(session.id, clean(label(session)), session.own, clean(session.user))
