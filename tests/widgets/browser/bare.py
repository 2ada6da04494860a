"""The view on a bare page, fed by a played kernel: a scene first, then whatever is pushed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpushare_widgets
from gpushare_widgets.changes import changes
from gpushare_widgets.feed import BEAT
from gpushare_widgets.moments import settled
from gpushare_widgets.scene import scene
from playwright.sync_api import Page

from gpushare_kernel.wire.snapshot import Snapshot
from tests.widgets.snapshots import NOW

HOME = Path(gpushare_widgets.__file__).parent
ESM, CSS = HOME / "live.js", HOME / "live.css"
_PAGE = """<!doctype html><meta charset=utf-8><style>body { margin: 8px }</style><style id=css></style><div id=host></div>"""
_PLAY = """async ([source, css, first]) => {
    const began = performance.now();
    document.getElementById("css").textContent = css;
    window.live = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    window.said = [];
    const hearers = new Set(), others = {};
    const model = {
        get: () => first, send: (message) => window.said.push(message),
        on: (name, call) => name === "msg:custom" ? hearers.add(call) : others[name] = call,
        off: (name, call) => name === "msg:custom" ? hearers.delete(call) : delete others[name],
    };
    window.trigger = (name) => others[name]();
    window.packed = (message) => new DataView(new TextEncoder().encode(JSON.stringify(message)).buffer);
    window.deliver = (bytes) => { for (const call of [...hearers]) call({ type: "json" }, [bytes]); };
    window.push = (message) => window.deliver(window.packed(message));
    window.leave = window.live.default.render({ model, el: document.getElementById("host") });
    for (let n = 0; n < 2; n += 1) await new Promise(requestAnimationFrame);
    return (performance.now() - began) / 1000;
}"""


def drawn(snapshot: Snapshot, now: float = NOW) -> dict[str, Any]:
    """Return what the feed sends of a snapshot, whole."""
    return settled(scene(snapshot, now=now), None)


def play(page: Page, first: dict[str, Any]) -> float:
    """Show a view that had `first` when it was made; return the seconds until it is painted, its code read."""
    page.set_content(_PAGE)
    took: float = page.evaluate(_PLAY, [ESM.read_text("utf-8"), CSS.read_text("utf-8"), first])
    return took


def message(
    number: int, before: dict[str, Any] | None, after: dict[str, Any], beat: float = BEAT
) -> dict[str, Any]:
    """Return what makes `after` of `before`, as the feed sends it."""
    new = changes(before, after) or {"at": after["at"]}
    return {"type": "scene", "n": number, "beat": beat, **new}


def push(
    page: Page,
    number: int,
    before: dict[str, Any] | None,
    after: dict[str, Any],
    beat: float = BEAT,
) -> None:
    """Send what makes `after` of `before`."""
    page.evaluate("(message) => window.push(message)", message(number, before, after, beat))
