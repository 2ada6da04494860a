"""Somebody who looks elsewhere while a cell waits: the cell's line, the tab's title, the browser's notification, in JupyterLab."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.faults.host import Host, session_of
from tests.widgets.browser.lab import PATIENCE, Lab, Notebook, chromium

CELLS = (
    "%gpushare notify on --after 0.2",
    "%%gpulane 700MiB\nimport pathlib, time\nimport gpushare_kernel as gpushare\nflag = pathlib.Path('flag')\n"
    "print('in')\nfor n in gpushare.current_lane().steps([0, 1, 2]):\n    while n == 2 and not flag.exists(): time.sleep(0.02)",
    "%gpushare notify off",
)
AWAY = """
window.away = true;
document.hasFocus = () => !window.away;
window.notified = [];
window.Notification = class {
    static permission = "default";
    static async requestPermission() { return Notification.permission = "granted"; }
    constructor(title, options) { window.notified.push([title, options.body]); }
};
"""
"""Nobody looks at this tab; and a browser whose user allows what is asked."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for this file."""
    with chromium() as made:
        yield made


@pytest.fixture
def away(lab: Lab, browser: Browser) -> Iterator[Notebook]:
    """A notebook in a tab that nobody looks at."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.add_init_script(AWAY)
    yield Notebook(lab, page, "notify.ipynb", CELLS)
    page.close()


def test_who_waited_is_told(away: Notebook, host: Host, flag: Path) -> None:
    """Start and end are in the title until somebody looks, and in a notification once that was allowed by a click."""
    page = away.page
    gate = flag.with_name("gate")
    gate.unlink(missing_ok=True)
    away.run(0)
    row = page.locator(".gs-notify")
    expect(row).to_contain_text("waited longer than 0.2 s", timeout=PATIENCE)
    expect(row).to_have_attribute("data-leave", "default")
    row.get_by_role("button", name="Allow notifications").click()
    expect(row).to_have_attribute("data-leave", "granted")
    expect(row.locator("button")).to_be_hidden()
    title = page.title()

    other = host.notebook("other.ipynb")
    outputs = other.outputs(
        other.start(f"%%gpulane 700MiB\nimport pathlib, time\nwhile not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.02)")
    )  # fmt: skip
    host.until(lambda seen: bool(session_of(seen, other).doing))
    away.started(1)
    line = page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea-output")
    expect(line).to_contain_text("Waiting for memory: needs", timeout=PATIENCE)
    host.until(lambda seen: seen.queue and seen.queue[0].waited > 0.5)
    assert page.title() == title
    gate.touch()
    list(outputs)
    expect(page).to_have_title(re.compile(r"^● Started, waited .* · "), timeout=PATIENCE)
    expect(line.first).to_contain_text(re.compile(r"Running.* step 2 of 3"), timeout=PATIENCE)
    flag.touch()
    expect(page).to_have_title(re.compile(r"^● Done, ran .* · "), timeout=PATIENCE)
    told = page.evaluate("window.notified")
    assert [name for name, _ in told] == ["notify.ipynb"] * 2
    assert [body.partition(",")[0] for _, body in told] == ["Started", "Done"]
    # The line is the first of the cell's outputs, before what it printed, and one.
    expect(line).to_have_count(2)
    expect(line.first).to_contain_text(re.compile(r"^used .*; next time: %%gpulane"))
    expect(line.nth(1)).to_have_text("in")

    page.evaluate("window.away = false; window.dispatchEvent(new Event('focus'))")
    expect(page).to_have_title(title)
    other.close()
    flag.unlink()
    away.run(2)
    expect(row).to_have_count(0, timeout=PATIENCE)


def test_who_is_there_is_not_told(away: Notebook, host: Host, flag: Path) -> None:
    """The title of a tab that is looked at stays, and so it does after a cell that did not wait."""
    page = away.page
    away.run(0)
    expect(page.locator(".gs-notify")).to_be_visible(timeout=PATIENCE)
    title = page.title()
    flag.touch()
    away.run(1)
    away.is_over(1)
    assert page.title() == title
    assert page.evaluate("window.notified") == []
