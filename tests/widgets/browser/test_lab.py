"""The live view in JupyterLab and in Notebook 7: a real browser, a real server, real kernels, a real broker."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from gpushare_kernel.app.ending import stop_broker
from tests.faults.host import LIMIT, Host, session_of
from tests.faults.notebook import Notebook as Kernel
from tests.faults.test_strangers import STRANGER, user
from tests.widgets.browser.conftest import BROKER, SCREEN, SLEEPS
from tests.widgets.browser.lab import PATIENCE, Lab, Notebook

only_lab = pytest.mark.parametrize("app", ["lab"], indirect=True, scope="module")
HOLD = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.02)"


@pytest.fixture(scope="module")
def other(host: Host) -> Iterator[Kernel]:
    """Another notebook of the same user, without a browser."""
    made = host.notebook("other.ipynb")
    yield made
    made.close()


@pytest.fixture
def held(host: Host, lab: Lab, other: Kernel) -> Iterator[Callable[[], None]]:
    """The other notebook holds most of the memory, until this is called."""
    gate = lab.root / "gate"
    gate.unlink(missing_ok=True)
    outputs = other.outputs(other.start(f"%%gpulane 700MiB\n{HOLD.format(str(gate))}"))
    host.until(lambda seen: bool(session_of(seen, other).doing))

    def let_go() -> None:
        gate.touch()
        list(outputs)

    yield let_go
    gate.touch()


def test_it_appears(notebook: Notebook) -> None:
    """The magic shows the device, the notebook and its state; what has nothing to say is not there."""
    view = notebook.view
    expect(view.locator(".gs-map .gs-segment[data-kind=free]")).to_be_visible()
    expect(view.locator(".gs-session-label", has_text="hw1.ipynb")).to_be_visible()
    expect(view.locator(".gs-part-queue")).to_be_hidden()
    expect(view.locator(".gs-part-rt")).to_be_hidden()
    expect(view.locator(".gs-notice")).to_be_hidden()


def test_a_waiting_cell_is_seen(notebook: Notebook, held: Callable[[], None], flag: Path) -> None:
    """It waits, says why, and is seen running once there is room; both while cells run."""
    notebook.started(1)
    flag.touch()
    notebook.is_over(1)  # `time` and `flag` are there now
    flag.unlink()
    notebook.started(3)
    row = notebook.view.locator(".gs-queue .gs-line")
    expect(row).to_contain_text("Waiting for memory", timeout=PATIENCE)
    expect(row).to_contain_text("hw1.ipynb")
    mine = notebook.view.locator(".gs-session", has_text="hw1.ipynb")
    expect(mine).to_have_attribute("data-state", "waiting")
    held()
    expect(notebook.view.locator(".gs-part-queue")).to_be_hidden(timeout=PATIENCE)
    expect(mine).to_have_attribute("data-state", "busy", timeout=PATIENCE)
    expect(notebook.view.locator(".gs-segment[data-kind=lane].gs-own")).to_be_visible()
    flag.touch()
    notebook.is_over(3)
    expect(mine).to_have_attribute("data-state", "idle", timeout=PATIENCE)


@pytest.mark.parametrize("cell", [1, 2], ids=["time.sleep", "busy Python"])
def test_updates_come_while_a_cell_runs(
    notebook: Notebook, host: Host, held: Callable[[], None], flag: Path, cell: int
) -> None:
    """Updates are drawn one after the other while something changes, whatever the cell does."""
    waits = host.notebook("waits.ipynb")
    waited = waits.start("%%gpulane 700MiB\n1")  # what waits grows older with each update
    host.until(lambda seen: len(seen.queue) == 1)
    notebook.started(cell)
    expect(notebook.view.locator(".gs-queue .gs-line")).to_have_count(1, timeout=PATIENCE)
    notebook.updated(12)
    notebook.still_runs(cell)
    held()
    list(waits.outputs(waited))
    waits.close()
    flag.touch()
    notebook.is_over(cell)


def test_a_click_is_handled_while_a_cell_runs(
    notebook: Notebook, host: Host, other: Kernel, flag: Path
) -> None:
    """Release of another notebook of one's own: done, and said, before the cell is over."""
    other.run("%%gpulane -p 200MiB -e 10MiB\n1")
    host.until(lambda seen: (session_of(seen, other).p or 0) >= 200 * 2**20)
    notebook.started(2)
    row = notebook.view.locator(".gs-session", has_text="other.ipynb")
    row.locator("button[data-action=release]").click(timeout=PATIENCE)
    expect(notebook.view.locator(".gs-answer")).to_contain_text("Released", timeout=PATIENCE)
    host.until(lambda seen: (session_of(seen, other).p or 0) < 200 * 2**20)
    notebook.still_runs(2)
    flag.touch()
    notebook.is_over(2)


def test_keyboard_only(notebook: Notebook, host: Host, other: Kernel) -> None:
    """Tab enters the map once, arrows walk through it and say numbers; Tab goes on to the controls, Enter uses one."""
    other.run("%%gpulane -p 200MiB -e 10MiB\n1")
    host.until(lambda seen: (session_of(seen, other).p or 0) >= 200 * 2**20)
    notebook.run(0)  # idle views look once a minute: this shows it anew
    page, view = notebook.page, notebook.view
    row = view.locator(".gs-session", has_text="other.ipynb")
    expect(row.locator("button[data-action=release]")).to_be_visible(timeout=PATIENCE)
    page.evaluate("document.querySelector('.gs-live .gs-segment[tabindex=\"0\"]').focus()")
    texts = set()
    pieces = view.locator(".gs-map").first.locator(".gs-segment").count()
    for _ in range(pieces):
        expect(view.locator(".gs-detail").first).not_to_be_empty()
        texts.add(view.locator(".gs-detail").first.inner_text())
        page.keyboard.press("ArrowRight")
    assert len(texts) == pieces > 1
    for _ in range(10):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
        if focused == "Release other.ipynb":
            break
    assert focused == "Release other.ipynb"
    page.keyboard.press("Enter")
    expect(view.locator(".gs-answer")).to_contain_text("other.ipynb")
    host.until(lambda seen: (session_of(seen, other).p or 0) < 200 * 2**20)


def test_dark(notebook: Notebook) -> None:
    """It takes the colours of the theme, and stays readable."""
    page = notebook.page
    page.evaluate(
        "window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
    )
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached", timeout=PATIENCE)
    page.wait_for_function(
        """() => {
            const light = (name) => {
                const got = getComputedStyle(document.querySelector(".gs-live"))[name].match(/[\\d.]+/g).map(Number);
                return got.slice(0, 3).reduce((sum, each) => sum + each, 0) / 3;
            };
            return light("backgroundColor") < 80 && light("color") > 180;
        }""",
        timeout=PATIENCE,
    )
    page.evaluate(
        "window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})"
    )
    page.wait_for_selector("body[data-jp-theme-light=true]", state="attached", timeout=PATIENCE)


@only_lab
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root and real uids")
def test_others_have_no_controls(notebook: Notebook, host: Host, other: Kernel) -> None:
    """A stranger's notebook is shown, and nothing can be done to it; not by a made-up click either."""
    with user(STRANGER, host) as eve:
        (opened,) = eve.says("Open", name="hers.ipynb")
        mine = {"session": opened["session"], "token": opened["token"]}
        eve.says("Bind", pid=eve.process.pid, **mine)
        host.until(lambda seen: opened["session"] in {one.id for one in seen.sessions})
        other.run("%%gpulane -p 200MiB -e 10MiB\n1")
        host.until(lambda seen: (session_of(seen, other).p or 0) >= 200 * 2**20)
        notebook.run(0)
        row = notebook.view.locator(f".gs-session[data-session='{opened['session']}']")
        expect(row).to_be_visible(timeout=PATIENCE)
        expect(row.locator("button")).to_have_count(0)
        expect(row).not_to_have_attribute("data-own", "true")
        expect(notebook.view.locator(".gs-session[data-own=true] button")).not_to_have_count(0)
        notebook.page.evaluate(
            """(session) => {
                const own = document.querySelector(".gs-session[data-own=true] button[data-action]");
                own.closest(".gs-session").dataset.session = session;
                own.click();
            }""",
            opened["session"],
        )
        expect(notebook.view.locator(".gs-answer")).to_contain_text("not yours")
        eve.says("Close", **mine)


def test_two_views_and_a_broker_restart(lab: Lab, browser: Browser, host: Host, flag: Path) -> None:
    """Two views of one notebook are both fed; both say that the broker is away, and go on with the next one."""
    two = Notebook(
        lab,
        browser.new_page(viewport=SCREEN),
        "two.ipynb",
        ("%gpushare live", "%gpushare live", SLEEPS),
    )
    two.run(0)
    two.run(1)
    views = [two.page.locator(".gs-live").nth(n) for n in range(2)]
    two.started(2)
    late = host.notebook("late.ipynb")
    for view in views:
        expect(view.locator(".gs-session", has_text="late.ipynb")).to_be_visible(timeout=PATIENCE)
    stop_broker(host.places, LIMIT)
    for view in views:
        expect(view.locator(".gs-notice")).to_be_visible(timeout=PATIENCE)
        expect(view.locator(".gs-session", has_text="late.ipynb")).to_be_visible()
    host.start(*BROKER)
    for view in views:
        expect(view.locator(".gs-notice")).to_be_hidden(timeout=PATIENCE)
        expect(view.locator(".gs-session", has_text="late.ipynb")).to_be_visible(timeout=PATIENCE)
    late.close()
    for view in views:
        expect(view.locator(".gs-session", has_text="late.ipynb")).to_have_count(
            0, timeout=PATIENCE
        )
    two.still_runs(2)
    flag.touch()
    two.is_over(2)
    two.close()


def test_nobody_is_kept_awake_and_a_restart_is_said(lab: Lab, browser: Browser) -> None:
    """A view on the screen and its kernel exchange nothing for ten minutes; after a restart it says what to do."""
    page = browser.new_page(viewport=SCREEN)
    page.clock.install()
    quiet = Notebook(lab, page, "quiet.ipynb", ("%gpushare live", "1"))
    quiet.run(0)
    quiet.seen()
    quiet.run(1)
    quiet.is_over(1)
    fresh = quiet.view.locator(".gs-fresh")
    expect(fresh).to_have_text(re.compile("^(now|.* ago; .*)$"), timeout=PATIENCE)
    page.evaluate(
        """() => {
            const panel = [...window.jupyterapp.shell.widgets("main")].find((w) => w.sessionContext);
            window.kernel = panel.sessionContext.session.kernel;
            window.exchanged = [];
            window.kernel.anyMessage.connect((_, { msg, direction }) => {
                if (msg.header.msg_type.startsWith("comm")) window.exchanged.push([direction, msg.content]);
            });
        }"""
    )
    page.clock.fast_forward(600_000)
    expect(fresh).to_have_text("10 min ago; live while a cell runs", timeout=PATIENCE)
    assert page.evaluate("window.exchanged") == []
    page.evaluate("window.kernel.restart()")
    expect(quiet.view.locator(".gs-notice")).to_contain_text(
        "run %gpushare live again", timeout=PATIENCE
    )
    expect(quiet.view.locator("button:visible")).to_have_count(0)
    quiet.close()
