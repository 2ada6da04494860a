"""The feed of status bars by itself: when it asks, and when it does not. A real broker at a real socket."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel.hub import bar_feed
from gpushare_kernel.hub.bar_feed import BarFeed
from tests.broker.house import House
from tests.procs import eventually


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A broker."""
    with House(tmp_path) as made:
        monkeypatch.setenv("GPUSHARE_SOCKET", str(made.path))
        monkeypatch.setattr(bar_feed, "TICK", 0.01)
        yield made


class Page:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[str] = asyncio.Queue()

    def __call__(self, message: str) -> None:
        self.told.put_nowait(message)

    async def next(self) -> dict:
        """Return the next of it."""
        return json.loads(await asyncio.wait_for(self.told.get(), 20))


def test_nothing_is_asked_while_no_page_is_open(house: House) -> None:
    """Before the first and after the last; and the broker has no line of ours then."""

    async def scene() -> None:
        feed, page = BarFeed(dict), Page()
        assert feed.asked == 0
        feed.show(page)
        await page.next()
        feed.drop(page)
        asked = feed.asked
        await asyncio.sleep(0.1)
        assert feed.asked == asked == 1
        assert not [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]

    asyncio.run(scene())
    house.saw(lambda: not house.broker.observers)


def test_several_pages_are_told_by_one_question(house: House) -> None:
    """Who comes later is told at once what is known."""

    async def scene() -> None:
        feed, pages = BarFeed(dict), [Page() for _ in range(3)]
        for page in pages:
            feed.show(page)
        said = [await page.next() for page in pages]
        late = Page()
        feed.show(late)
        assert [await late.next()] * 3 == said
        assert feed.asked == 1
        for page in [*pages, late]:
            feed.drop(page)
        await asyncio.sleep(0)

    asyncio.run(scene())


def test_without_a_notebook_no_line_stays_open(house: House) -> None:
    """A user's broker that nobody needs goes after a while, also where pages are open; with a notebook there is one line."""

    async def scene() -> None:
        kernels: dict[str, str] = {}
        feed, page = BarFeed(lambda: kernels), Page()
        feed.show(page)
        assert (await page.next())["kernels"] == {}
        await asyncio.to_thread(house.saw, lambda: not house.broker.observers)
        notebook = await asyncio.to_thread(house.notebook, "hw1.ipynb")
        kernels = {"k1": notebook.opened.session}  # a new one is asked about at once
        bar = (await page.next())["kernels"]["k1"]
        assert bar["text"].startswith("Device, memory ")
        await asyncio.to_thread(house.saw, lambda: len(house.broker.observers) == 1)
        feed.drop(page)
        await asyncio.sleep(0)

    asyncio.run(scene())
    house.saw(lambda: not house.broker.observers)


def test_a_page_that_goes_while_the_broker_is_asked_leaves_no_line(house: House) -> None:
    """The line that is made meanwhile is ended, too; another page then has one of its own."""

    async def scene() -> None:
        feed, page = BarFeed(lambda: {"k1": "s1"}), Page()
        held, on = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            on.wait(20)

        stuck = asyncio.create_task(
            asyncio.to_thread(house.do, hold)
        )  # the broker's loop stands still
        await asyncio.to_thread(held.wait, 20)
        feed.show(page)
        await asyncio.to_thread(eventually, lambda: feed.asked, 20)
        feed.drop(page)
        await asyncio.sleep(0)
        on.set()
        await stuck
        again = Page()
        feed.show(again)
        await again.next()
        feed.drop(again)
        await asyncio.sleep(0)

    asyncio.run(scene())
    house.saw(lambda: not house.broker.observers)


def test_the_same_is_not_told_twice(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is asked again and again."""
    monkeypatch.setattr(bar_feed, "EVERY", dict.fromkeys(bar_feed.EVERY, 0.0))
    monkeypatch.setattr(bar_feed, "RARELY", 0.0)

    async def scene() -> None:
        feed, page = BarFeed(dict), Page()
        feed.show(page)
        await page.next()
        await asyncio.to_thread(eventually, lambda: feed.asked >= 5, 20)
        assert page.told.empty()
        feed.drop(page)
        await asyncio.sleep(0)

    asyncio.run(scene())


def test_who_asks_for_the_whole_at_the_same_time_shares_an_answer(house: House) -> None:
    """Twenty at once are one question, and a later one is another."""

    async def scene() -> None:
        feed = BarFeed(dict)
        found = await asyncio.gather(*(feed.snapshot() for _ in range(20)))
        assert len({id(one) for one in found}) == 1
        assert await feed.snapshot() is not found[0]

    asyncio.run(scene())
