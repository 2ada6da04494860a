"""The browser's part by itself: what drawing costs, how soon it is there, and whether a page grows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from gpushare_widgets.changes import changes
from gpushare_widgets.feed import offered
from gpushare_widgets.scene import scene
from msgspec.json import encode
from msgspec.structs import replace
from playwright.sync_api import Browser, Page

from benchmarks.common import Figure, progress
from benchmarks.live_view.main_thread import busy_seconds, metric, watched
from gpushare_kernel.wire.snapshot import Snapshot
from tests.widgets.browser.bare import CSS, ESM, drawn, message, play
from tests.widgets.browser.lab import chromium
from tests.widgets.snapshots import FULL, NOW, Turn, crowd

PACE = 0.25
TURN = 0.102
"""Seconds of a turn and its hand-over."""
WINDOW = 30.0
SCREEN = {"width": 1280, "height": 1400}

_PACK = "(text) => { window.waiting = JSON.parse(text).map(window.packed); }"
_FED = """(pace) => new Promise((done) => {
    const clock = setInterval(() => {
        window.deliver(window.waiting.shift());
        if (window.waiting.length) return;
        clearInterval(clock);
        setTimeout(done, 1000 * pace);
    }, 1000 * pace);
})"""
_PREPARED = """([full, there, back]) => {
    window.push({ type: "scene", n: 1, fresh: true, ...full });
    let n = 1;
    window.more = async (updates) => {
        for (const last = n + updates; n < last;) {
            n += 1;
            window.push({ type: "scene", n, ...(n % 2 ? back : there) });
            if (n % 100 === 0) await new Promise((done) => setTimeout(done));
        }
    };
}"""


def measure(*, quick: bool) -> Iterator[Figure]:
    """Measure all of it."""
    with chromium() as browser:
        for count in (20, 60):
            load = _load(browser, count, windows=1 if quick else 3, seconds=5.0 if quick else 20.0)
            progress(f"{count} sessions: {load[-1]:.2f} % of the page's main thread")
            yield Figure(f"main_thread_{count}", "% of a core", load, at_most=5.0)
        paints = [1000 * _first_paint(browser) for _ in range(3 if quick else 10)]
        yield Figure("first_paint", "ms", paints, at_most=300.0)
        nodes, heap = _growth(browser, *((100, 1_000) if quick else (1_000, 10_000)))
        yield Figure("page_nodes_growth", "nodes", [nodes], at_most=0.0)
        yield Figure("page_heap_growth", "KB", [heap / 1000], at_most=100.0)
    yield Figure("esm_and_css", "KiB", [(ESM.stat().st_size + CSS.stat().st_size) / 1024], at_most=60.0)  # fmt: skip
    yield from _messages()


def _working(count: int, passed: float) -> Snapshot:
    """Return a class that takes turns, so many seconds on: as much changes as can."""
    made = crowd(count)
    busy = [one.id for one in made.sessions if one.state == "busy"]
    latest = int(passed / TURN)
    turns = tuple(
        Turn(busy[n % len(busy)], passed - n * TURN, max(0.0, passed - (n + 1) * TURN), "turn")
        for n in range(latest - int(WINDOW / TURN), latest + 1)
    )
    return replace(
        made,
        devices=(replace(made.devices[0], turns=turns),),
        sessions=tuple(replace(one, name=f"hw{n}.ipynb") for n, one in enumerate(made.sessions)),
        queue=tuple(replace(one, waited=60.0 + passed) for one in made.queue),
    )


def _messages_of(count: int, number: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the scene at first, and what the feed sends after it."""
    first = before = offered(scene(_working(count, 0.0), now=NOW))
    told = []
    for n in range(1, number + 1):
        after = offered(scene(_working(count, n * PACE), now=NOW + n * PACE), before)
        told.append(message(n + 1, before, after))
        before = after
    return first, told


def _load(browser: Browser, count: int, *, windows: int, seconds: float) -> list[float]:
    """Return how much of a core the main thread of a page takes that is fed four times a second."""
    updates = int(seconds / PACE)
    first, told = _messages_of(count, windows * updates)
    page = browser.new_page(viewport=SCREEN)
    play(page, first)
    _feed(page, [message(1, None, first)])
    loads = [_feed(page, told[n * updates : (n + 1) * updates]) for n in range(windows)]
    drawn_ = page.locator(".gs-live").get_attribute("data-updates")
    assert drawn_ == str(1 + len(told)), drawn_
    page.close()
    return loads


def _feed(page: Page, messages: Sequence[dict[str, Any]]) -> float:
    """Send messages, four a second; return what the main thread does of it, in percent of a core."""
    cdp = watched(page)
    page.evaluate(_PACK, encode(messages).decode())
    before, began = busy_seconds(cdp), time.monotonic()
    page.evaluate(_FED, PACE)
    load = 100 * (busy_seconds(cdp) - before) / (time.monotonic() - began)
    cdp.detach()
    return load


def _first_paint(browser: Browser) -> float:
    page = browser.new_page(viewport=SCREEN)
    took = play(page, drawn(crowd(200)))
    page.close()
    return took


def _growth(browser: Browser, first: int, last: int) -> tuple[float, float]:
    """Return how many nodes and bytes a page has more after the last update than after the first."""
    full = drawn(FULL)
    less = {**full, **{name: full[name][1:] for name in ("queue", "sessions", "shares")}}
    page = browser.new_page(viewport=SCREEN)
    play(page, full)
    cdp = watched(page)
    page.evaluate(_PREPARED, [changes(None, full), changes(full, less), changes(less, full)])
    sizes = []
    for updates in (first, last - first):
        page.evaluate("(updates) => window.more(updates)", updates)
        for _ in range(2):
            cdp.send("HeapProfiler.collectGarbage")
        sizes.append([metric(cdp, name) for name in ("Nodes", "JSHeapUsedSize")])
    page.close()
    return sizes[1][0] - sizes[0][0], sizes[1][1] - sizes[0][1]


def _messages() -> Sequence[Figure]:
    """What is sent of 200 notebooks: at first, where everything changed, and a quarter of a second later."""
    now, later = (offered(scene(one, now=NOW)) for one in (crowd(200), crowd(200, own=7, users=31)))
    _, told = _messages_of(200, 20)
    return (
        Figure("first_message_200", "KB", [_size(message(1, None, now))], at_most=30.0),
        Figure("everything_new_200", "KB", [_size(message(2, now, later))], at_most=30.0),
        Figure("update_200", "KB", [_size(one) for one in told], at_most=30.0, worst=True),
    )


def _size(one: dict[str, Any]) -> float:
    return len(encode(one)) / 1000
