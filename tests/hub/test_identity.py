"""Whose a hub's token is: asked of a real socket, believed for a while, and never waited for longer than said."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from gpushare_kernel.core.errors import BadDeclaration, HubAway, NotVouched
from gpushare_kernel.hub import identity
from gpushare_kernel.hub.identity import HubTokens
from tests.hub.played_hub import PlayedHub

PATIENCE = 20.0


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hub() -> Iterator[PlayedHub]:
    """A hub that knows ann."""
    with PlayedHub() as played:
        played.knows("t-ann", "ann")
        yield played


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


async def refused(tokens: HubTokens, token: str, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        await tokens.name(token)
    return str(caught.value)


def test_a_name_is_asked_for_once_and_again_after_a_while(hub: PlayedHub) -> None:
    """Its address, its cache, and its end: a name that has changed, or a token that was revoked, is noticed."""
    clock = Clock()

    async def work() -> None:
        tokens = HubTokens(hub.api + "/", now=clock)
        assert [await tokens.name("t-ann") for _ in range(3)] == ["ann"] * 3
        assert hub.asked == ["/hub/api/user"]
        clock.now += identity.FRESH
        del hub.users["t-ann"]
        assert "does not know the token" in await refused(tokens, "t-ann", NotVouched)
        assert len(hub.asked) == 2

    run(work())


def test_many_who_ask_at_once_are_one_question(hub: PlayedHub) -> None:
    """Thirty kernels of a sweep start together: the hub is asked once; one that leaves takes nobody's answer with it."""

    async def work() -> None:
        tokens = HubTokens(hub.api)
        hub.gate.clear()
        asking = [asyncio.create_task(tokens.name("t-ann")) for _ in range(30)]
        await asyncio.to_thread(hub.asks.acquire)
        asking[0].cancel()
        hub.gate.set()
        names = await asyncio.gather(*asking, return_exceptions=True)
        assert names[1:] == ["ann"] * 29
        assert len(hub.asked) == 1

    run(work())


def test_forged_tokens_are_refused_and_push_out_no_name(hub: PlayedHub) -> None:
    """Each is asked for once in ten seconds; what is no token at all is not asked for."""

    async def work() -> None:
        tokens = HubTokens(hub.api)
        assert await tokens.name("t-ann") == "ann"
        for number in range(identity.KEPT_WRONG + 20):
            await refused(tokens, f"forged-{number}", NotVouched)
        before = len(hub.asked)
        await refused(tokens, f"forged-{number}", NotVouched)
        for odd in ("x" * 5000, "line\nbreak", "naïve", "\0"):
            await refused(tokens, odd, NotVouched)
        assert await tokens.name("t-ann") == "ann"
        assert len(hub.asked) == before
        assert len(tokens._refusals) <= identity.KEPT_WRONG

    run(work())


def test_a_service_is_nobody(hub: PlayedHub) -> None:
    """A culler's token starts no notebooks."""
    hub.knows("t-cull", "idle-culler", kind="service")

    async def work() -> None:
        assert "service of the hub" in await refused(HubTokens(hub.api), "t-cull", NotVouched)

    run(work())


@pytest.mark.parametrize("session", ["5a2f", ""])
def test_whoever_opened_a_server_is_not_who_it_says_it_is(hub: PlayedHub, session: str) -> None:
    """The token of an administrator's visit is theirs to the hub, and everybody's whose server they looked at."""
    hub.knows("t-visit", "admin", session=session)

    async def work() -> None:
        text = await refused(HubTokens(hub.api), "t-visit", NotVouched)
        assert "somebody's browser, and not of their server" in text

    run(work())


def test_a_hub_that_cannot_tell_such_tokens_vouches_for_nobody(hub: PlayedHub) -> None:
    """One before 2.0."""
    hub.body = b'{"kind": "user", "name": "ann"}'

    async def work() -> None:
        assert "2.0 and newer do" in await refused(HubTokens(hub.api), "t-ann", HubAway)

    run(work())


def test_a_hub_that_is_gone_is_believed_on_and_tells_nothing_new(hub: PlayedHub) -> None:
    """Who was known stays known, however long it takes; who is new reads why."""
    clock = Clock()

    async def work() -> None:
        tokens = HubTokens(hub.api, now=clock)
        assert await tokens.name("t-ann") == "ann"
        assert tokens.trouble is None
        await asyncio.to_thread(hub.stop)
        clock.now += 100 * identity.FRESH
        assert await tokens.name("t-ann") == "ann"
        text = await refused(tokens, "t-bob", HubAway)
        assert hub.api in text
        assert tokens.trouble == text

    run(work())


def test_a_hub_that_answers_nonsense_is_away(hub: PlayedHub) -> None:
    """An error, a page, and what is no user: each says what came; and when it is well again, all is."""

    async def work() -> None:
        tokens = HubTokens(hub.api)
        hub.status = 502
        assert "502" in await refused(tokens, "t-ann", HubAway)
        hub.status = 200
        for body in (
            b"<html>",
            b"[]",
            b'{"kind": "user"}',
            b'{"kind": "user", "name": "a\\nb", "session_id": null}',
        ):
            hub.body = body
            assert "answered" in await refused(tokens, "t-ann", HubAway)
        hub.body = b" " * (identity._LARGEST_ANSWER + 1)
        await refused(tokens, "t-ann", HubAway)
        hub.body = None
        assert await tokens.name("t-ann") == "ann"
        assert tokens.trouble is None

    run(work())


def test_an_address_that_is_no_hubs_api_is_said_to_be_none(hub: PlayedHub) -> None:
    """A page, a redirect to one: that is no outage, and waiting helps nobody. An error of the hub's own is one."""
    hint = "Is --hub-api the hub's API? It ends in /hub/api (JUPYTERHUB_API_URL in a server's terminal)."  # fmt: skip

    async def work() -> None:
        for status in (302, 404, 405):
            hub.status = status
            text = await refused(HubTokens(hub.api), "t-ann", HubAway)
            assert f"answered {status} " in text
            assert text.endswith(hint)
        hub.status, hub.body = 200, b"<html>"
        assert (await refused(HubTokens(hub.api), "t-ann", HubAway)).endswith(hint)
        hub.status, hub.body = 500, None
        text = await refused(HubTokens(hub.api), "t-ann", HubAway)
        assert text == f"JupyterHub ({hub.api}) answered 500 Internal Server Error: its log says more."  # fmt: skip

    run(work())


def test_a_slow_hub_holds_up_nobody_else(hub: PlayedHub) -> None:
    """The loop goes on, and whoever asks is told after the limit."""

    async def work() -> None:
        tokens = HubTokens(hub.api, limit=0.3)
        hub.gate.clear()
        asking = asyncio.create_task(tokens.name("t-ann"))
        turns = 0
        while not asking.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns > 50
        with pytest.raises(HubAway, match=r"did not answer within 0\.3 s"):
            await asking

    run(work())


@pytest.mark.parametrize("api", ["", "127.0.0.1:8081", "ftp://hub/api", "http://", "http://[::1"])
def test_what_is_no_address_is_refused(api: str) -> None:
    """With what one looks like."""
    with pytest.raises(BadDeclaration, match="hub/api"):
        HubTokens(api)
