"""Ask a JupyterHub whose a token is. On the broker's loop, in coroutines: a hub that is slow or gone holds up nobody but who asks.

What it said is believed for a while, and for as long as it does not answer. Of a token only its hash is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from gpushare_kernel.core.errors import BadDeclaration, HubAway, NotVouched
from gpushare_kernel.wire.limit_texts import (
    not_a_person_text,
    not_of_a_server_text,
    not_vouched_text,
)

LIMIT = 3.0
"""Seconds for one question, waiting for others included: a kernel's start waits ten for the broker."""
FRESH, WRONG = 300.0, 10.0
"""Seconds for which an answer is not asked for again: a name, and that there is none."""
KEPT, KEPT_WRONG = 4096, 256
"""Tokens whose name, or of which it is kept that they have none; the one used longest ago goes first. Forged ones push out no name."""
_AT_ONCE = 16
_LONGEST = 1024
_LARGEST_ANSWER = 256 * 1024
_FORBIDDEN = frozenset({401, 403})
_NO_API = (
    "Is --hub-api the hub's API? It ends in /hub/api (JUPYTERHUB_API_URL in a server's terminal)."
)


@dataclass(frozen=True, slots=True)
class _Known:
    """A name (or why there is none), and since when that is known."""

    text: str
    at: float


class HubTokens:
    """A hub's tokens.

    Parameters
    ----------
    api
        The hub's REST API, as its servers see it in JUPYTERHUB_API_URL: `http://127.0.0.1:8081/hub/api`.
    limit
        Seconds for one question.
    fresh
        Seconds for which a name is believed without asking again.
    now
        A clock that never goes back.
    """

    def __init__(
        self,
        api: str,
        *,
        limit: float = LIMIT,
        fresh: float = FRESH,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = f"{checked_api(api)}/user"
        self._limit, self._fresh, self._now = limit, fresh, now
        self._names: OrderedDict[str, _Known] = OrderedDict()
        self._refusals: OrderedDict[str, _Known] = OrderedDict()
        self._asking: dict[str, asyncio.Task[str]] = {}
        self._client: AsyncHTTPClient | None = None
        #: What is wrong with the hub; None while all is well.
        self.trouble: str | None = None

    async def name(self, token: str) -> str:
        """Return whose token it is.

        Raises
        ------
        NotVouched
            Where the hub knows no such token, it is a service's, or a visitor's of some server.
        HubAway
            Where the hub does not answer, and has not told before.
        """
        if len(token) > _LONGEST or not token.isascii() or not token.isprintable():
            raise NotVouched(not_vouched_text())
        key = hashlib.sha256(token.encode()).hexdigest()
        known, refused = self._names.get(key), self._refusals.get(key)
        if known is not None and self._now() - known.at < self._fresh:
            self._names.move_to_end(key)
            return known.text
        if refused is not None and self._now() - refused.at < WRONG:
            raise NotVouched(refused.text)
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._ask(token, key))
            asking.add_done_callback(lambda task: self._asked(key, task))
        try:
            return await asyncio.shield(asking)
        except HubAway:
            if known is None:
                raise
            return known.text

    def _asked(self, key: str, task: asyncio.Task[str]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # seen, also where whoever waited has left

    async def _ask(self, token: str, key: str) -> str:
        try:
            user = await self._fetch(token)
        except NotVouched as problem:
            self.trouble = None
            self._names.pop(key, None)
            self._keep(self._refusals, key, str(problem), KEPT_WRONG)
            raise
        except HubAway as problem:
            self.trouble = str(problem)
            raise
        self.trouble = None
        self._keep(self._names, key, user, KEPT)
        return user

    async def _fetch(self, token: str) -> str:
        if self._client is None:
            self._client = SimpleAsyncHTTPClient(
                force_instance=True, max_clients=_AT_ONCE, max_body_size=_LARGEST_ANSWER
            )
        request = HTTPRequest(
            self._url,
            headers={"Authorization": f"token {token}", "Accept": "application/json"},
            connect_timeout=self._limit,
            request_timeout=self._limit,
            follow_redirects=False,
        )
        try:
            # Its own limit begins anew once a request leaves the queue.
            async with asyncio.timeout(self._limit):
                answer = await self._client.fetch(request)
        except TimeoutError:
            self._give_up(f"did not answer within {self._limit:g} s")
        except HTTPClientError as problem:
            if problem.code in _FORBIDDEN:
                raise NotVouched(not_vouched_text()) from None
            if problem.code == 599:  # noqa: PLR2004  tornado's own: no answer came
                self._give_up(f"did not answer within {self._limit:g} s")
            ours = problem.code >= 500  # noqa: PLR2004  the hub's own trouble
            hint = ": its log says more" if ours else f". {_NO_API}"
            self._give_up(f"answered {problem.code} {problem.message}{hint}")
        except (OSError, ValueError) as problem:
            self._give_up(f"cannot be reached: {problem}")
        return self._read(answer.body)

    def _read(self, body: bytes) -> str:
        try:
            user: Any = json.loads(body)
            kind, name = user["kind"], user["name"]
        except (ValueError, KeyError, TypeError):
            self._give_up(f"answered something that is no user. {_NO_API}")
        if kind != "user":
            raise NotVouched(not_a_person_text(str(name)))
        # The hub answers for every token. Each server gets one of whoever opens it in a browser, and could say that it is them: such
        # a token comes of a browser's session (SelfAPIHandler), a server's own does not.
        if "session_id" not in user:
            self._give_up("does not say whose tokens are of browsers: JupyterHub 2.0 and newer do")
        if user["session_id"] is not None:
            raise NotVouched(not_of_a_server_text())
        if not isinstance(name, str) or not name or not name.isprintable():
            self._give_up("answered a name that is none")
        return name

    def _give_up(self, what: str) -> NoReturn:
        msg = f"JupyterHub ({self._url.removesuffix('/user')}) {what.rstrip('.')}."
        raise HubAway(msg) from None

    def _keep(self, what: OrderedDict[str, _Known], key: str, text: str, most: int) -> None:
        what[key] = _Known(text, self._now())
        what.move_to_end(key)
        while len(what) > most:
            what.popitem(last=False)


def checked_api(api: str) -> str:
    """Return a hub's API without a slash at its end.

    Raises
    ------
    BadDeclaration
        Where it is no address of one.
    """
    try:
        parts = urlsplit(api)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        msg = f"a hub's API is an address like http://127.0.0.1:8081/hub/api (JUPYTERHUB_API_URL in a server's terminal), and {api!r} is none."
        raise BadDeclaration(msg)
    return api.rstrip("/")
