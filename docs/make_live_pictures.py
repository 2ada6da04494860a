"""Make the pictures of docs/live.md: `python docs/make_live_pictures.py [--states]` (Linux, an installed `.[dev]`, Chromium).

`live-light.png` and `live-dark.png` are of a real JupyterLab and real kernels at a real broker of its own; as root one
of the notebooks is another user's. `live/` has every state, drawn of the snapshots in `live_states.py`; `--states` makes these only.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gpushare_widgets
import pytest
from gpushare_widgets.moments import settled
from gpushare_widgets.scene import scene
from PIL import Image
from playwright.sync_api import Browser, Locator, Page
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from docs.live_states import NOTICE, STATES  # noqa: E402 - a checkout's folders are on no path
from gpushare_kernel.app.top_view import view  # noqa: E402
from tests.faults.conftest import made_host  # noqa: E402
from tests.faults.host import Host, session_of  # noqa: E402
from tests.faults.test_realtime import LOOP, PIPE  # noqa: E402
from tests.faults.test_strangers import STRANGER, SYSTEM_PYTHON, user  # noqa: E402
from tests.widgets.browser.lab import PATIENCE, Lab, Notebook, chromium  # noqa: E402
from tests.widgets.snapshots import NOW  # noqa: E402

LOOKS_BACK = 30_000
"""Milliseconds until there are thirty seconds to look back on."""
WORK = "import time\nwhile True: pass"
CELLS = ("%gpushare live", "%%gpulane 1.5GiB\n" + WORK)


def somebody_else(host: Host, stack: ExitStack) -> None:
    """Another user's notebook that uses the device."""
    if os.geteuid() != 0:
        return
    eve = stack.enter_context(user(STRANGER, host))
    (opened,) = eve.says("Open", name="hers.ipynb")
    works = subprocess.Popen([SYSTEM_PYTHON, "-c", WORK], user=STRANGER, group=STRANGER)
    stack.callback(works.wait)
    stack.callback(works.kill)
    eve.says("Bind", pid=works.pid, session=opened["session"], token=opened["token"])


def play(host: Host, stack: ExitStack) -> Callable[[], None]:
    """Have one's own other notebooks hold something, and wait; returns what ends it."""
    explore, train = host.notebook("explore.ipynb"), host.notebook("train.ipynb")
    explore.run("%%gpulane -p 2.5GiB -e 200MiB\nkept = bytearray(10**6)")
    fit = train.start("%%gpulane -p 1GiB -e 5GiB --name fit\n1")
    somebody_else(host, stack)
    host.until(lambda seen: session_of(seen, train).id in {waits.session for waits in seen.queue})

    def end() -> None:
        train.interrupt()
        list(train.outputs(fit))

    return end


def staged(stack: ExitStack) -> tuple[Host, Page, Notebook]:
    """Start a broker, a JupyterLab and a notebook that shows the live view."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    host = stack.enter_context(made_host(folder, patch))
    host.start("--compute", "1", "--turn", "0.5", "--capacity", "8GiB")
    lab = Lab(folder / "lab")
    stack.callback(lab.close)
    browser = stack.enter_context(chromium())
    page = browser.new_page(viewport={"width": 1120, "height": 1500})
    notebook = Notebook(lab, page, "hw1.ipynb", CELLS)
    notebook.run(0)
    notebook.seen()
    return host, page, notebook


def take_deadline() -> None:
    """A pipeline with a deadline beside a notebook that computes."""
    with ExitStack() as stack:
        host, page, notebook = staged(stack)
        camera = host.notebook("camera.ipynb")
        camera.run(PIPE.replace("WORK", "3000"))
        loop = camera.start(LOOP.replace("ROUNDS", "250").replace("WORK", "3000"))
        notebook.run(1)
        page.get_by_text("due within").first.wait_for(timeout=PATIENCE)
        page.wait_for_timeout(LOOKS_BACK)
        keep(notebook.view, HERE / "live-deadline.png")
        list(camera.outputs(loop))


def take() -> None:
    """Set the stage and take both pictures."""
    with ExitStack() as stack:
        host, page, notebook = staged(stack)
        notebook.run(1)
        host.until(lambda seen: [one for one in seen.sessions if one.doing])
        end = play(host, stack)
        page.wait_for_selector(".gs-queue .gs-line", timeout=PATIENCE)
        page.wait_for_timeout(LOOKS_BACK)
        for theme in ("Light", "Dark"):
            shown = theme.lower()
            change = (
                "(theme) => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
            )
            page.evaluate(change, f"JupyterLab {theme}")
            page.wait_for_selector(
                f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached", timeout=PATIENCE
            )
            page.wait_for_timeout(1500)  # its stylesheet comes after its name
            keep(notebook.view, HERE / f"live-{shown}.png")
        end()


# --- every state, without a kernel ---------------------------------------------------------------------------

WIDTH, NARROW, TERMINAL = 680, 320, 96
PAGE = """<!doctype html><meta charset=utf-8><body><style>
    body { margin: 0; background: var(--jp-layout-color1) } #host { padding: 8px }
    body[data-jp-theme-light=true] { --jp-layout-color1: #fff; --jp-layout-color2: #eee; --jp-border-color1: #bdbdbd;
        --jp-border-color2: #e0e0e0; --jp-ui-font-color1: #212121; --jp-ui-font-color2: #616161; --jp-brand-color1: #1976d2;
        --jp-warn-color1: #f57c00 }
    body[data-jp-theme-light=false] { --jp-layout-color1: #111; --jp-layout-color2: #424242; --jp-border-color1: #616161;
        --jp-border-color2: #424242; --jp-ui-font-color1: #fff; --jp-ui-font-color2: #bdbdbd; --jp-brand-color1: #2196f3;
        --jp-warn-color1: #ffb74d }
    </style><style id=css></style><div id=host></div>"""
PLAY = """async ([source, css, first, light]) => {
    document.body.dataset.jpThemeLight = String(light);
    document.getElementById("css").textContent = css;
    const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    let hear;
    const model = { get: () => first, send: () => {}, on: (name, call) => { if (name === "msg:custom") hear = call; }, off: () => {} };
    module.default.render({ model, el: document.getElementById("host") });
    const message = { type: "scene", n: 1, beat: 10, at: first.at, fresh: true, whole: first };
    hear({ type: "json" }, [new DataView(new TextEncoder().encode(JSON.stringify(message)).buffer)]);
}"""


def states() -> None:
    """Take a picture of each state, light and dark."""
    scenes = {name: settled(scene(one, now=NOW), None) for name, one in STATES.items()}
    scenes["away"] = {**scenes["waiting"], "notice": NOTICE}
    with chromium() as browser:
        for shown in ("light", "dark"):
            for name, one in scenes.items():
                draw(browser, one, shown, HERE / f"live/{name}-{shown}.png")
            draw(browser, scenes["waiting"], shown, HERE / f"live/narrow-{shown}.png", NARROW)
        terminal(browser, HERE / "live/top.png")


def draw(browser: Browser, first: dict[str, Any], shown: str, path: Path, width: int = WIDTH) -> None:  # fmt: skip
    """Take a picture of one scene."""
    page = browser.new_page(viewport={"width": width, "height": 1200})
    page.emulate_media(reduced_motion="reduce")
    page.set_content(PAGE)
    home = Path(gpushare_widgets.__file__).parent
    files = [(home / name).read_text("utf-8") for name in ("live.js", "live.css")]
    page.evaluate(PLAY, [*files, first, shown == "light"])
    page.wait_for_selector(".gs-live[data-updates]", timeout=PATIENCE)
    keep(page.locator("#host"), path)
    page.close()


def terminal(browser: Browser, path: Path) -> None:
    """Take a picture of `jupyter gpushare top`."""
    out = Console(record=True, width=TERMINAL, file=io.StringIO())
    out.print(view(scene(STATES["everything"], now=NOW), TERMINAL))
    out.print(Text("q ends it, ↑ ↓ move.", "dim"), end="")
    page: Page = browser.new_page(viewport={"width": 900, "height": 900})
    page.set_content(f"<body style='margin: 0'>{out.export_svg(title='jupyter gpushare top')}")
    keep(page.locator("svg").first, path)
    page.close()


def keep(what: Locator, path: Path) -> None:
    """Write a picture that is small: it has few colours."""
    picture = Image.open(io.BytesIO(what.screenshot())).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    states()
    if "--states" not in sys.argv:
        take()
        take_deadline()
