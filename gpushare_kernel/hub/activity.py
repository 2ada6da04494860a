"""A service of the hub: tells it whose notebooks work on the device, or are parked, so that its culler leaves them alone.

    python -m gpushare_kernel.hub.activity [--keep 12h] [--every 60]

jupyterhub-idle-culler ends servers by their last activity, and knows no GPU. A cell that computes in silence, and a notebook whose
memory is set aside for its owner, are no activity to it. The hub takes activity from services (`POST /users/NAME/activity`), so
it is told there. It can only be told that somebody is active: to have idle GPUs end servers sooner, it would have to ask.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from gpushare_kernel.client.line import Line
from gpushare_kernel.core.errors import BadTime, GpushareError
from gpushare_kernel.core.sizes import parse_time
from gpushare_kernel.procfs import environ
from gpushare_kernel.transport.places import places
from gpushare_kernel.wire.snapshot import SessionView, Snapshot

KEEP = 43200.0
"""Seconds for which a parked notebook keeps its server."""
_EVERY = 60.0
_WORKS = frozenset({"busy", "paused"})
_PARKED = frozenset({"parked", "restoring"})
_ACCOUNTS = "jupyter-"
"""What TLJH puts before a hub's name to make an account of it."""
_LONG = 26
"""Characters of an account that TLJH leaves as it is are fewer."""
_HUB = " (hub)"
_USER_NAME, _SERVER_NAME = "JUPYTERHUB_USER", "JUPYTERHUB_SERVER_NAME"
_TIMEOUT = 10.0
_NOT_FOUND = 404


class Watch:
    """Since when whose notebooks have been parked.

    Parameters
    ----------
    keep
        Seconds for which a parked one counts.
    """

    def __init__(self, keep: float = KEEP) -> None:
        self._keep = keep
        self._since: dict[str, float] = {}

    def active(self, snapshot: Snapshot, now: float) -> set[tuple[str, str]]:
        """Return who is to count as active: names at the hub or accounts, each with the name of a server (empty: the default one). `now` is a clock that never goes back."""
        parked = {one.id for one in snapshot.sessions if one.state in _PARKED}
        self._since = {one: self._since.get(one, now) for one in parked}
        return {(_user(one), _server(one)) for one in snapshot.sessions if self._counts(one, now)}

    def _counts(self, one: SessionView, now: float) -> bool:
        if one.state in _WORKS:
            return True
        since = self._since.get(one.id)
        return since is not None and now - since < self._keep


def _user(one: SessionView) -> str:
    """Return who its user is at the hub, where TLJH shortened that to make an account of it; else the account.

    The process was told, but by its environment, where anybody writes what they like: it is believed where it makes that account.
    """
    told = (one.pid and environ(one.pid, _USER_NAME)) or ""
    return told if told and one.user == _tljhs_account(told) else one.user


def _tljhs_account(name: str) -> str:
    """Return the account that TLJH makes of a hub's name (its `generate_system_username`)."""
    account = f"{_ACCOUNTS}{name}"
    if len(account) < _LONG:
        return account
    return f"{account[:_LONG]}-{hashlib.sha256(account.encode()).hexdigest()[:5]}"


def _server(one: SessionView) -> str:
    """Return which of its user's servers a notebook belongs to, as its process was told; empty: the default one."""
    return (one.pid and environ(one.pid, _SERVER_NAME)) or ""


def tell(api: str, token: str, active: Collection[tuple[str, str]]) -> list[str]:
    """Tell the hub that these accounts' servers are active now; return what it did not take, in words."""
    failed = []
    stamp = datetime.now(UTC).isoformat()
    told = {(name, server) for account, server in active for name in _names(account)}
    for name, server in sorted(
        told
    ):  # one at a time: of several the hub takes none where one has ended
        body = {"last_activity": stamp, "servers": {server: {"last_activity": stamp}}}
        request = urllib.request.Request(  # noqa: S310 - the hub's own address, which it gives its services
            f"{api}/users/{quote(name, safe='')}/activity",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"token {token}", "Content-Type": "application/json"},
        )
        try:
            urllib.request.urlopen(request, timeout=_TIMEOUT).close()  # noqa: S310
        except urllib.error.HTTPError as problem:
            with problem:
                # 404: an account of the machine that is nobody's at the hub. 400: whose server has ended.
                if problem.code not in {400, _NOT_FOUND}:
                    failed.append(f"{name}: the hub answered {problem.code} {problem.reason}")
        except OSError as problem:
            return [f"the hub cannot be reached: {problem}"]
    return failed


def _names(account: str) -> Iterator[str]:
    """Yield what an account may be called at the hub."""
    name = account.removesuffix(_HUB)
    yield name
    if name.startswith(_ACCOUNTS):
        yield name.removeprefix(_ACCOUNTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Tell the hub, until it ends us."""
    parser = argparse.ArgumentParser(prog="python -m gpushare_kernel.hub.activity")
    parser.add_argument("--keep", type=_seconds, default=KEEP, metavar="TIME", help="for how long a parked notebook keeps its server (12h)")  # fmt: skip
    parser.add_argument("--every", type=_seconds, default=_EVERY, metavar="TIME", help="how often the hub is told (60s)")  # fmt: skip
    given = parser.parse_args(arguments)
    api, token = os.environ.get("JUPYTERHUB_API_URL", ""), os.environ.get("JUPYTERHUB_API_TOKEN", "")  # fmt: skip
    if not api or not token:
        parser.error("this is a service of JupyterHub, which gives it JUPYTERHUB_API_URL and JUPYTERHUB_API_TOKEN: docs/admin/culling.md")  # fmt: skip
    if os.geteuid() != 0 and not places().named:
        parser.error("only root sees whose notebooks are whose: run the hub as root, or give its culler a longer timeout")  # fmt: skip
    watch, said, pace = Watch(given.keep), "", threading.Event()
    while True:
        try:
            with Line(places(), hub_token="") as line:
                failed = tell(api, token, watch.active(line.snapshot(), time.monotonic()))
        except (GpushareError, OSError) as problem:
            failed = [str(problem)]
        text = "; ".join(failed)
        if text and text != said:
            sys.stderr.write(f"gpushare: {text}\n")
        said = text
        pace.wait(given.every)


def _seconds(text: str) -> float:
    try:
        return parse_time(text)
    except BadTime as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


if __name__ == "__main__":
    sys.exit(main())
