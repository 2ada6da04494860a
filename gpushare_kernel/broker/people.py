"""Who there is on this host: users and unix groups, as its directory knows them."""

from __future__ import annotations

import grp
import os
import pwd
from difflib import get_close_matches


class People:
    """The host's directory. Its answers may take long: whoever asks keeps them."""

    def has_user(self, name: str) -> bool:
        """Say whether there is such an account."""
        try:
            pwd.getpwnam(name)
        except KeyError:
            return False
        return True

    def has_group(self, name: str) -> bool:
        """Say whether there is such a unix group."""
        try:
            grp.getgrnam(name)
        except KeyError:
            return False
        return True

    def groups_of(self, user: str) -> frozenset[str]:
        """Return the unix groups of an account; none where there is no such account."""
        try:
            found = os.getgrouplist(user, pwd.getpwnam(user).pw_gid)
        except KeyError:
            return frozenset()
        return frozenset(name for gid in found if (name := _group_name(gid)))

    def nearest(self, name: str, *, group: bool) -> str:
        """Return the name of a user or a unix group that may have been meant; empty where none is near."""
        there = [one.gr_name for one in grp.getgrall()] if group else [one.pw_name for one in pwd.getpwall()]  # fmt: skip
        return next(iter(get_close_matches(name, there, 1)), "")


class Anybody(People):
    """Takes every name: for a file that was held against the directory before."""

    def has_user(self, name: str) -> bool:  # noqa: ARG002
        return True

    def has_group(self, name: str) -> bool:  # noqa: ARG002
        return True


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""
