"""Make docs/live-light.png and docs/live-dark.png: `python docs/make_live_pictures.py` (Linux, an installed `.[dev]`, Chromium).

A real JupyterLab, real kernels at a real broker of its own, and what a browser shows of them. As root one of the
notebooks is another user's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tests.faults.conftest import made_host  # noqa: E402 - a checkout's tests are on no path
from tests.faults.host import Host, session_of  # noqa: E402
from tests.faults.test_strangers import STRANGER, SYSTEM_PYTHON, user  # noqa: E402
from tests.widgets.browser.lab import PATIENCE, Lab, Notebook, chromium  # noqa: E402

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


def take() -> None:
    """Set the stage and take both pictures."""
    with ExitStack() as stack:
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
            notebook.view.screenshot(path=HERE / f"live-{shown}.png")
        end()


if __name__ == "__main__":
    take()
