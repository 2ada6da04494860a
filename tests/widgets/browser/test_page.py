"""The browser's part by itself: a bare page, a played kernel, every scene there is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from gpushare_widgets.changes import changes
from gpushare_widgets.feed import SILENT
from playwright.sync_api import Browser, Page, expect

from tests.widgets.browser.bare import CSS, ESM, drawn, play, push
from tests.widgets.snapshots import FULL, HOSTILE, IDLE, crowd, hostile

Show = Callable[..., Page]


@pytest.fixture
def show(browser: Browser) -> Iterator[Show]:
    """Show a scene on a page; what the page complains of fails the test."""
    pages, wrong = [], []

    def shown(
        first: dict[str, Any], width: int = 900, *, stopped: bool = False, **options: Any
    ) -> Page:
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        if stopped:
            page.clock.install(time=0)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: wrong.append(request.url) if "blob:" not in request.url else None)  # fmt: skip
        pages.append(page)
        play(page, first)
        if stopped:
            page.clock.pause_at(3600)
        return page

    yield shown
    for page in pages:
        page.close()
    assert not wrong, wrong


def test_small() -> None:
    """Both files together are at most 60 KB, and ask nobody for anything."""
    assert ESM.stat().st_size + CSS.stat().st_size <= 60 * 1024
    text = ESM.read_text("utf-8") + CSS.read_text("utf-8")
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "http:", "https:", "@import", "url("):  # fmt: skip
        assert word not in text, word


def test_a_crowd(show: Show) -> None:
    """Of 200 notebooks the first are on the screen; the others' are drawn by user."""
    page = show(drawn(crowd(200)))
    assert page.locator(".gs-session").count() == 20


def test_everything(show: Show) -> None:
    """Each section says what it is for, to scale; later steps' too."""
    page = show(drawn(FULL))
    told = drawn(FULL)
    whole = page.locator(".gs-map").first.bounding_box()
    assert whole is not None
    pieces = [s for s in told["devices"][0]["segments"] if s["kind"] != "parked"]
    total = sum(piece["size"] for piece in pieces)
    boxes = [piece.bounding_box() for piece in page.locator(".gs-map").first.locator(".gs-segment").all()]  # fmt: skip
    assert len(boxes) == len(pieces)
    for piece, box in zip(pieces, boxes, strict=True):
        assert box is not None
        assert abs(box["width"] - whole["width"] * piece["size"] / total) <= 1.5, piece["title"]
    for part, text in {
        "devices": "24.0 GiB of 78.0 GiB free",
        "time": "paused",
        "shares": "fair is 25 %",
        "queue": "Waiting for GPU memory",
        "sessions": "old.ipynb",
        "rt": "due within 30 ms · at least 4 ms to spare · 0 missed",
        "bundles": "640 pages, 512 of them shared",
    }.items():
        expect(page.locator(f".gs-part-{part}")).to_contain_text(text)
    page.locator(".gs-segment[data-kind=foreign]").hover()
    expect(page.locator(".gs-detail")).to_contain_text("1.5 GiB")


def test_time_is_to_scale(show: Show) -> None:
    """Every span is where it was, at first and eleven seconds later: the right edge is now, what goes on reaches it."""
    full = drawn(FULL)
    (time,) = full["time"]
    time["rows"][0]["spans"][-1][1] = None  # goes on
    later = {**full, "at": full["at"] + 11}
    page = show(full, reduced_motion="reduce")  # else time moves on where updates are late
    push(page, 1, None, full)
    for number, told in ((1, full), (2, later)):
        if number == 2:
            push(page, number, full, {**later, "queue": []})
        now = told["at"] - time["since"]
        for row in time["rows"]:
            track = page.locator(f".gs-row[data-session='{row['session']}'] .gs-track")
            whole = track.bounding_box()
            assert whole is not None
            boxes = track.locator(".gs-span").evaluate_all("(all) => all.map((one) => [one.getBoundingClientRect().left, one.getBoundingClientRect().right])")  # fmt: skip
            assert len(boxes) == len(row["spans"])
            for (left, right), (began, ended, _) in zip(boxes, row["spans"], strict=True):
                if began is not None:
                    at = whole["x"] + whole["width"] * (1 - (now - began) / time["window"])
                    assert abs(left - at) <= 1
                if ended is None:
                    assert right >= whole["x"] + whole["width"]
                else:
                    at = whole["x"] + whole["width"] * (1 - (now - ended) / time["window"])
                    assert abs(right - at) <= 1.1  # none is thinner than that


def test_sections_with_nothing_to_say(show: Show) -> None:
    """An idle host is its memory, and nothing else."""
    page = show(drawn(IDLE))
    shown = page.evaluate("[...document.querySelectorAll('.gs-part')].filter((p) => !p.hidden).map((p) => p.className)")  # fmt: skip
    assert shown == ["gs-part gs-part-devices"]


@pytest.mark.parametrize("width", [320, 900])
def test_what_administrators_say_is_above_the_rest(show: Show, width: int) -> None:
    """A line each, all of it to be read, as long as it holds; below the rest what one's group allows."""
    full = drawn(FULL)
    page = show(full, width=width)
    lines, account = page.locator(".gs-news .gs-word"), page.locator(".gs-account")
    expect(lines).to_have_text(full["news"])
    expect(account).to_have_text(full["account"])
    tops = page.evaluate("['.gs-news', '.gs-part-devices', '.gs-part-sessions', '.gs-account'].map((one) => document.querySelector(one).getBoundingClientRect().top)")  # fmt: skip
    assert tops == sorted(tops)
    cut = page.evaluate("[...document.querySelectorAll('.gs-word, .gs-account')].filter((one) => one.scrollWidth > one.clientWidth).length")  # fmt: skip
    assert cut == 0
    push(page, 1, None, full)
    less = {**full, "news": full["news"][1:]}
    push(page, 2, full, less)
    expect(lines).to_have_text(less["news"])
    over = {name: told for name, told in less.items() if name not in {"news", "account"}}
    push(page, 3, less, over)
    expect(page.locator(".gs-news")).to_be_hidden()
    expect(account).to_be_hidden()


def test_hostile_names_are_text(show: Show) -> None:
    """Markup is shown as it is written, long names break nothing, and nobody is called."""
    page = show(drawn(hostile()), width=600)
    expect(page.locator(".gs-sessions")).to_contain_text("<script>alert(1)</script>")
    assert page.locator(".gs-live script, .gs-live img, .gs-live a").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 600
    assert page.locator(".gs-session").count() == len(HOSTILE)


@pytest.mark.parametrize("name", ["full", "crowd", "hostile"])
def test_narrow(show: Show, name: str) -> None:
    """320 px are enough: nothing is wider, and every control is on the screen."""
    made = {"full": FULL, "crowd": crowd(200), "hostile": hostile()}[name]
    page = show(drawn(made), width=320)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    for button in page.locator(".gs-actions button").all():
        box = button.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 320


def test_updates_are_what_they_stand_for(show: Show) -> None:
    """Whatever changes: the browser makes of the message what the kernel meant."""
    page = show(drawn(IDLE))
    chance = random.Random(7)

    def entry(key: str, name: str) -> dict[str, Any]:
        return {key: name, "x": chance.randrange(3)}

    def made() -> dict[str, Any]:
        queue = [entry("job", name) for name in chance.sample("abcdef", chance.randrange(1, 6))]
        sessions = [entry("id", name) for name in chance.sample("abc", chance.randrange(1, 4))]
        if chance.random() < 0.1:
            sessions.append(sessions[0])
        out: dict[str, Any] = {"queue": queue, "sessions": sessions, "rt": [chance.randrange(2)]}
        return {"at": chance.random(), **{k: v for k, v in out.items() if chance.random() < 0.8}}

    scenes = [made() for _ in range(400)]
    steps = [(a, changes(a, b) or {"at": b["at"]}, b) for a, b in pairwise(scenes)]  # fmt: skip
    wrong = page.evaluate(
        """(steps) => {
            const flat = (value) => Array.isArray(value) ? value.map(flat) : value && typeof value === "object"
                ? Object.fromEntries(Object.entries(value).sort().map(([k, v]) => [k, flat(v)])) : value;
            const text = (value) => JSON.stringify(flat(value));
            return steps.filter(([a, update, b]) => text(window.live.applied(a, update)) !== text(b));
        }""",
        steps,
    )
    assert not wrong, json.dumps(wrong[0])


def test_a_lost_message_is_asked_for(show: Show) -> None:
    """An update that does not follow on the last one is not drawn; the view asks for everything."""
    full, idle = drawn(FULL), drawn(IDLE)
    page = show(full)
    push(page, 1, None, full)
    page.evaluate("window.said.length = 0")
    push(page, 3, full, idle)
    assert page.locator(".gs-session").count() == 5
    assert [one["type"] for one in page.evaluate("window.said")] == ["hello"]
    push(page, 4, None, idle)
    expect(page.locator(".gs-session")).to_have_count(0)


def test_newer_scene(show: Show) -> None:
    """Of what a newer kernel tells it shows what it knows: other kinds are drawn plainly, other controls are absent."""
    told = drawn(FULL)
    told["weather"] = [{"id": 1}]
    told["devices"][0]["segments"][0]["kind"] = "quantum"
    told["sessions"][0].update(state="dreaming", actions=["release", "teleport"])
    page = show(told)
    expect(page.locator(".gs-session").first).to_contain_text("dreaming")
    expect(page.locator(".gs-session").first.locator("button")).to_have_text(["Release"])


def said(page: Page) -> list[str]:
    """Return what the view has told the kernel since this was called last."""
    told: list[str] = page.evaluate("window.said.splice(0).map((one) => one.type)")
    return told


def test_signs_only_while_a_cell_runs(show: Show) -> None:
    """Every ten seconds it says that it is there; while none runs nothing, for hours, until somebody looks anew."""
    full = drawn(FULL)
    page = show(full, stopped=True)
    push(page, 1, None, full)
    said(page)
    page.clock.run_for(35_000)
    assert said(page) == ["alive"] * 3
    push(page, 2, full, full, SILENT)
    page.clock.run_for(3_600_000)
    assert said(page) == []
    page.locator("button", has_text="Refresh").click()
    assert said(page) == ["look"]
    push(page, 3, full, full, SILENT)
    expect(page.locator(".gs-fresh")).to_have_text("now")
    push(page, 4, full, full)
    expect(page.locator(".gs-fresh")).to_have_text("live")
    page.clock.run_for(11_000)
    assert said(page) == ["alive"]


def test_no_news(show: Show) -> None:
    """A kernel that says nothing while its cell runs is not live: it says for how long, and goes on with the next word."""
    full = drawn(FULL)
    page = show(full, stopped=True)
    push(page, 1, None, full)
    fresh, view = page.locator(".gs-fresh"), page.locator(".gs-live")
    page.clock.run_for(2_500)
    expect(fresh).to_have_text("live")
    page.clock.run_for(17_500)
    expect(fresh).to_have_text("no news for 20 s")
    expect(view).to_contain_class("gs-away")
    push(page, 2, full, full)
    expect(fresh).to_have_text("live")
    expect(view).not_to_contain_class("gs-away")


def test_the_kernel_was_restarted(show: Show) -> None:
    """It says so and what to do, offers no controls, and says nothing to the kernel that is there now."""
    full = drawn(FULL)
    page = show(full, stopped=True)
    push(page, 1, None, full)
    expect(page.locator(".gs-actions button").first).to_be_visible()
    said(page)
    page.evaluate("window.trigger('comm_live_update')")
    expect(page.locator(".gs-notice")).to_have_text(
        "The kernel was restarted: run %gpushare live again."
    )
    expect(page.locator(".gs-live button:visible")).to_have_count(0)
    page.clock.run_for(60_000)
    page.evaluate("window.leave()")
    assert said(page) == []


def test_an_answer_goes(show: Show) -> None:
    """It stays while it is read, and not for ever."""
    full = drawn(FULL)
    page = show(full, stopped=True)
    push(page, 1, None, full)
    page.locator(".gs-actions button").first.click()
    page.evaluate(
        "window.push({type: 'done', call: window.said.at(-1).call, text: 'Released 1.0 GiB.'})"
    )
    page.clock.run_for(10_000)
    expect(page.locator(".gs-answer")).to_have_text("Released 1.0 GiB.")
    expect(page.locator(".gs-answer")).to_be_visible()
    page.clock.run_for(20_000)
    expect(page.locator(".gs-answer")).to_be_hidden()


def test_a_control_that_goes_leaves_the_focus_in_its_row(show: Show) -> None:
    """Released by keyboard a notebook has nothing to release; Tab goes on from there."""
    full = drawn(FULL)
    page = show(full)
    push(page, 1, None, full)
    page.locator(".gs-session button[data-action=release]").first.focus()
    row = page.evaluate("document.activeElement.closest('.gs-session').dataset.session")
    after = {**full, "sessions": [{**entry, "actions": []} for entry in full["sessions"]]}
    push(page, 2, full, after)
    assert page.evaluate("document.activeElement.dataset.session") == row


def test_focus_stays(show: Show) -> None:
    """What has the focus keeps it while everything around it changes."""
    full = drawn(FULL)
    page = show(full)
    push(page, 1, None, full)
    page.locator(".gs-session button").first.focus()
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    rest = {**full, "sessions": list(reversed(full["sessions"])), "queue": full["queue"][1:]}
    push(page, 2, full, rest)
    back = {**rest, "sessions": full["sessions"]}
    push(page, 3, rest, back)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == label


def test_the_queue_is_read_out(show: Show) -> None:
    """Changes of one's own place are said politely; others' are not, and the first scene is not."""
    full = drawn(FULL)
    page = show(full)
    push(page, 1, None, full)
    spoken = page.locator(".gs-spoken")
    expect(spoken).to_have_attribute("aria-live", "polite")
    expect(spoken).to_have_text("")
    others = {**full, "queue": [q if q["own"] else {**q, "place": 7} for q in full["queue"]]}
    push(page, 2, full, others)
    gone = {**others, "queue": [q for q in others["queue"] if not q["own"]]}
    push(page, 3, others, gone)
    expect(spoken).to_have_text("hw2.ipynb: big fit waits no more.")


def test_reduced_motion(show: Show) -> None:
    """Nothing moves by itself for whoever does not want that."""
    page = show(drawn(FULL), reduced_motion="reduce")
    moving = page.evaluate("[...document.querySelectorAll('.gs-live *')].filter((n) => getComputedStyle(n).transitionDuration !== '0s').length")  # fmt: skip
    assert moving == 0


def test_ten_thousand_updates(show: Show) -> None:
    """The page has as many nodes after the last as after the second, and hears nobody once it is left."""
    full = drawn(FULL)
    parts = {name: full[name][1:] for name in ("queue", "sessions", "shares")}
    less = {**full, **parts}
    page = show(full)
    counts = page.evaluate(
        """([full, there, back]) => {
            const nodes = () => document.querySelectorAll("*").length;
            window.push({type: "scene", n: 1, fresh: true, ...full});
            const counts = [];
            for (let n = 2; n <= 10001; n += 1) {
                window.push({type: "scene", n, ...(n % 2 ? back : there)});
                if (n === 3 || n === 10001) counts.push(nodes());
            }
            window.leave();
            return [...counts, document.querySelectorAll(".gs-live").length];
        }""",
        [changes(None, full), changes(full, less), changes(less, full)],
    )
    assert counts[0] == counts[1]
    assert counts[2] == 0
    assert page.evaluate("window.said.at(-1).type") == "bye"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(show: Show, scheme: str) -> None:
    """Without Jupyter's colours the system's are taken; text stands out of its ground by 4.5:1."""
    page = show(drawn(FULL), color_scheme=scheme)
    page.add_style_tag(content=":root { color-scheme: light dark }")
    ratios = page.evaluate(
        """() => {
            const shine = (rgb) => {
                const [r, g, b] = rgb.match(/[\\d.]+/g).slice(0, 3).map((v) => rgb.startsWith("color(") ? Number(v) : v / 255)
                    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const ground = shine(getComputedStyle(document.querySelector(".gs-live")).backgroundColor);
            return [...document.querySelectorAll(".gs-live span, .gs-live p, .gs-live h4")].filter((n) => n.textContent && !n.children.length)
                .map((n) => { const one = shine(getComputedStyle(n).color);
                    return [(Math.max(one, ground) + 0.05) / (Math.min(one, ground) + 0.05), n.className]; });
        }"""
    )
    low = [(round(ratio, 2), name) for ratio, name in ratios if ratio < 4.5]
    assert not low, low


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["full", "crowd", "hostile", "idle"])
def test_axe_finds_nothing_serious(show: Show, name: str, scheme: str) -> None:
    """Nothing that axe-core calls serious or critical, in any scene."""
    made = {"full": FULL, "crowd": crowd(200), "hostile": hostile(), "idle": IDLE}[name]
    page = show(drawn(made), color_scheme=scheme)
    page.add_style_tag(content=":root { color-scheme: light dark }")
    found = Axe().run(page, context=".gs-live")
    serious = [
        one for one in found.response["violations"] if one["impact"] in ("serious", "critical")
    ]
    assert not serious, found.generate_report()
