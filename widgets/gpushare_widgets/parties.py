"""Who is drawn: a session, or in a crowd all sessions of one user; and names that cannot break a screen."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gpushare_kernel.client.shown import SessionView, UserView, label

CROWD = 100
"""Sessions above which those of others are drawn by user, and of everything only the first."""
_MOST_OWN, _MOST_USERS, _FEWEST_USERS = 16, 16, 4
_LONGEST, _LONGEST_IN_CROWD, _LONGEST_USER = 60, 24, 24
_CUT = "…"
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
    """Return `text` as one short line: nothing in it turns the writing around, breaks the line or piles up marks.

    It has at most `most` characters, and no more than twice as many bytes.
    """
    if text.isascii() and text.isprintable() and len(text) <= most:
        return text
    return _cleaned(text[: 4 * most], most)


@lru_cache(maxsize=1024)
def _cleaned(text: str, most: int) -> str:
    """Names come again with every scene."""
    out: list[str] = []
    marks = 0
    for c in text:
        marks = marks + 1 if unicodedata.category(c) in ("Mn", "Me") else 0
        if marks <= _MOST_MARKS:
            out.append(c if c.isprintable() or c == _JOINER else "?")
    whole = "".join(out)
    if len(whole) <= most and len(whole.encode()) <= 2 * most:
        return whole
    room = (whole[: most - 1]).encode()[: 2 * most - len(_CUT.encode())]
    return room.decode(errors="ignore") + _CUT


def parties(sessions: Sequence[SessionView], *, devices: int = 1) -> Mapping[str, Party]:
    """Return who each session is drawn as, by its id; on many devices a crowd has fewer lines on each."""
    most = longest(sessions)
    if len(sessions) <= CROWD:
        return {one.id: _alone(one, most) for one in sessions}
    own = sorted((s for s in sessions if s.own), key=lambda s: (s.state in _RESTING, -(s.p or 0)))
    others = [s for s in sessions if not s.own]
    users = Counter(user_of(s) for s in others)
    named = {
        user for user, _ in users.most_common(max(_FEWEST_USERS, _MOST_USERS // max(1, devices)))
    }
    rest = sum(count for user, count in users.items() if user not in named)
    drawn = {s.id: _alone(s, most) for s in own[:_MOST_OWN]}
    more = len(own) - len(drawn)
    for one in own[_MOST_OWN:]:
        drawn[one.id] = Party("@own", f"{more} more of yours", own=True, user=user_of(one))
    for one in others:
        user = user_of(one)
        if user in named:
            text = f"{user}: {users[user]} notebook{'s' * (users[user] != 1)}"
            drawn[one.id] = Party(f"@{user}", text, own=False, user=user)
        else:
            drawn[one.id] = Party("@others", f"{rest} notebooks of others", own=False, user="")
    return drawn


def longest(sessions: Sequence[SessionView]) -> int:
    """Return how many characters a name may have among so many."""
    return _LONGEST if len(sessions) <= CROWD else _LONGEST_IN_CROWD


def user_of(one: SessionView | UserView) -> str:
    """Return the user of a session or an account, as we write it."""
    return clean(one.name if isinstance(one, UserView) else one.user, _LONGEST_USER)


def _alone(session: SessionView, most: int) -> Party:
    return Party(session.id, clean(label(session), most), session.own, user_of(session))
