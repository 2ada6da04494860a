"""The status bar's item in JupyterLab, and Notebook 7's: the built wheel, a real browser, a real server, real kernels, a real broker."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, expect

from gpushare_kernel.app.ending import stop_broker
from tests.faults.host import LIMIT, Host
from tests.faults.notebook import Notebook as Kernel
from tests.labextension.conftest import BROKER, NAME
from tests.widgets.browser.lab import PATIENCE, Lab, Notebook

SCREEN = {"width": 1280, "height": 800}
HOME = {"lab": "lab?reset", "notebook": "tree"}
HOLD = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.02)"


@pytest.fixture(scope="module")
def gate(lab: Lab) -> Path:
    """What ends the cells that wait for it."""
    return lab.root / "gate"


@pytest.fixture(scope="module")
def notebook(lab: Lab, browser: Browser, app: str, gate: Path) -> Iterator[Notebook]:
    """A notebook before somebody, with nothing of ours in it but a declared cell."""
    cells = (f"%%gpulane 700MiB\n{HOLD.format(str(gate))}",)
    opened = Notebook(lab, browser.new_page(viewport=SCREEN), "hw1.ipynb", cells, app)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def other(host: Host) -> Iterator[Kernel]:
    """Another notebook of the same user, without a browser."""
    made = host.notebook("other.ipynb")
    yield made
    made.close()


def item(notebook: Notebook) -> Locator:
    """The item."""
    return notebook.page.locator(".gpushare-bar")


def text(notebook: Notebook) -> Locator:
    """Its line."""
    return item(notebook).locator(".gpushare-bar-text")


def test_the_wheel_is_an_extension_of_lab_4_without_any_code_of_others(wheel: Path) -> None:
    """What is in it, and no more than that: no map, no sources, no dependency packed in."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        at = next(
            name for name in names if name.endswith("labextensions/gpushare-lab/package.json")
        )
        package = json.loads(archive.read(at))
        size = sum(one.file_size for one in archive.infolist())
    assert package["name"] == NAME
    assert package["jupyterlab"]["extension"] is True
    assert package["jupyterlab"]["_build"]["load"].startswith("static/remoteEntry")
    assert any(name.endswith("gpushare-lab/install.json") for name in names)
    assert not [name for name in names if name.endswith((".ts", ".map"))]
    assert size < 200_000


def test_it_says_what_the_notebook_in_front_does(
    notebook: Notebook, host: Host, other: Kernel, gate: Path, app: str
) -> None:
    """Idle; waiting, with its place and why; running; idle: while no cell could say any of it. It is where people look."""
    gate.unlink(missing_ok=True)
    let_go = gate.with_name("let-go")
    let_go.unlink(missing_ok=True)
    expect(text(notebook)).to_have_text(
        re.compile(r"^CPU, memory \d+ \wi?B · idle$"), timeout=PATIENCE
    )
    place = {"lab": "#jp-main-statusbar", "notebook": "#menu-panel-wrapper"}[app]
    expect(notebook.page.locator(place).locator(".gpushare-bar")).to_be_visible()

    held = other.start(f"%%gpulane 600MiB\n{HOLD.format(str(let_go))}")
    host.until(lambda seen: any(one.doing for one in seen.sessions))
    notebook.started(0)
    expect(text(notebook)).to_have_text(
        re.compile(r"^CPU, memory 0 of (699|700) MiB · waiting, next$"), timeout=PATIENCE
    )
    expect(item(notebook)).to_have_attribute("data-state", "waiting")
    item(notebook).locator("button").focus()
    notebook.page.keyboard.press("Enter")
    whole = notebook.page.locator(".gpushare-bar-help")
    expect(whole).to_be_visible()
    expect(whole).to_contain_text(re.compile("Waiting for memory: needs (699|700) MiB"))
    expect(whole).to_contain_text("Your own other.ipynb holds")
    box = whole.bounding_box()
    assert box is not None
    assert min(box["x"], box["y"]) >= 0
    assert box["x"] + box["width"] <= SCREEN["width"]
    assert box["y"] + box["height"] <= SCREEN["height"]
    notebook.page.keyboard.press("Escape")
    expect(whole).to_be_hidden()

    let_go.touch()
    list(other.outputs(held))
    expect(text(notebook)).to_have_text(
        re.compile("^CPU, memory 0 of (699|700) MiB · running$"), timeout=PATIENCE
    )
    notebook.still_runs(0)
    gate.touch()
    notebook.is_over(0)
    expect(text(notebook)).to_have_text(re.compile("· idle$"), timeout=PATIENCE)


def test_a_page_in_the_background_is_not_fed(notebook: Notebook) -> None:
    """Its connection is closed, and there is one again when it comes to the front."""
    page = notebook.page
    page.evaluate(
        """() => {
            window.hungUp = 0;
            const close = WebSocket.prototype.close;
            WebSocket.prototype.close = function (...args) {
                window.hungUp += this.url.includes("gpushare/bar");
                return close.apply(this, args);
            };
            Object.defineProperty(document, "hidden", { configurable: true, get: () => window.away });
            window.away = true;
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    assert page.evaluate("window.hungUp") == 1
    with page.expect_websocket(lambda one: "gpushare/bar" in one.url, timeout=PATIENCE) as back:
        page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    assert not back.value.is_closed()


def test_a_broker_that_goes_and_comes_is_said(notebook: Notebook, host: Host) -> None:
    """Without reloading anything."""
    stop_broker(host.places, LIMIT)
    expect(text(notebook)).to_have_text("not shared: no broker", timeout=PATIENCE)
    host.start(*BROKER)
    expect(text(notebook)).to_have_text(
        re.compile("^CPU, memory .*(idle|in use)$"), timeout=PATIENCE
    )


def test_what_an_administrator_says_is_there(lab: Lab, browser: Browser, app: str) -> None:
    """Before everything else, and whole where one opens it; also where no notebook is open."""
    said = "The machine restarts at 18:00. Save what you need."
    bar = {"text": "GPU 2.1 GiB · idle", "title": "hw1.ipynb holds 2.1 GiB.", "state": "idle"}
    page = browser.new_page(viewport=SCREEN)
    page.route_web_socket(
        re.compile("gpushare/bar"),
        lambda socket: socket.send(
            json.dumps({"kernels": {}, "device": bar, "announcement": said})
        ),
    )
    page.goto(f"{lab.url}/{HOME[app]}")
    shown = page.locator(".gpushare-bar")
    expect(shown.locator(".gpushare-bar-said")).to_have_text(said, timeout=PATIENCE)
    expect(shown.locator(".gpushare-bar-text")).to_have_text("GPU 2.1 GiB · idle")
    expect(shown.locator("button")).to_have_attribute(
        "title", f"{said}\n\nhw1.ipynb holds 2.1 GiB."
    )
    page.close()
