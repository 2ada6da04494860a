"""JupyterLab and Notebook 7 as somebody has them before them: a real server, a real browser, real kernels at a real broker."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nbformat
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.procs import eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 40_000
"""Milliseconds in which something appears."""
APPS = {"lab": "lab/tree/{}?reset", "notebook": "notebooks/{}"}
"""Jupyter's two front ends, and where a notebook is in them: JupyterLab, Notebook 7."""


class Lab:
    """A Jupyter server whose kernels are started by our provisioner; both front ends are on it."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root = root
        settings = root / ".settings/@jupyterlab/apputils-extension"
        settings.mkdir(parents=True)
        quiet = {"fetchNews": "false", "checkForUpdates": False}
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet), "utf-8")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self.url.rpartition(':')[2]}"),
                *("--ServerApp.port_retries=0", "--IdentityProvider.token="),
                *("--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={root}"),
                *("--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"),
                "--JupyterNotebookApp.expose_app_in_browser=True",
                *options,
            ],
            env={
                **os.environ,
                "JUPYTER_CONFIG_DIR": f"{root}/.config",
                "JUPYTERLAB_SETTINGS_DIR": f"{root}/.settings",
                "JUPYTERLAB_WORKSPACES_DIR": f"{root}/.workspaces",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(self._answers, 60)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/api", timeout=60) as answer:
                return bool(json.load(answer)["version"])
        except OSError:
            assert self.process.poll() is None
            return False

    def close(self) -> None:
        """End the server; it ends its kernels."""
        self.process.terminate()
        self.process.wait(30)


class Notebook:
    """A notebook open in the browser, in one of Jupyter's front ends."""

    def __init__(
        self, lab: Lab, page: Page, name: str, cells: Sequence[str], app: str = "lab"
    ) -> None:
        self.page, self.name = page, name
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(made, lab.root / name)
        page.goto(f"{lab.url}/{APPS[app].format(name)}")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=PATIENCE)
        page.wait_for_function(
            "() => window.jupyterapp && [...window.jupyterapp.shell.widgets('main')].some("
            "w => w.sessionContext?.session?.kernel?.status === 'idle')",
            timeout=PATIENCE,
        )

    def run(self, cell: int) -> None:
        """Run a cell; wait for nothing."""
        self.page.evaluate(
            """async (cell) => {
                const app = window.jupyterapp;
                const panel = [...app.shell.widgets("main")].find((w) => w.sessionContext);
                app.shell.activateById(panel.id);
                panel.content.activeCellIndex = cell;
                panel.content.deselectAll();
                app.commands.execute("notebook:run-cell");
            }""",
            cell,
        )

    def started(self, cell: int) -> None:
        """Run a cell that takes a while, and wait until it is sent."""
        self.run(cell)
        self._prompt(cell, r"^\[\*\]:$")

    def still_runs(self, cell: int) -> None:
        """Fail where a cell is over."""
        expect(self.page.locator(".jp-CodeCell .jp-InputPrompt").nth(cell)).to_have_text("[*]:")

    def is_over(self, cell: int) -> None:
        """Wait for a cell's end."""
        self._prompt(cell, r"^\[\d+\]:$")

    def _prompt(self, cell: int, pattern: str) -> None:
        self.page.wait_for_function(
            "([cell, pattern]) => new RegExp(pattern).test("
            "document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')[cell].innerText)",
            arg=[cell, pattern],
            timeout=PATIENCE,
        )

    @property
    def view(self) -> Locator:
        """The live view."""
        return self.page.locator(".gs-live").first

    def seen(self) -> Locator:
        """Wait for the live view and its first scene."""
        self.page.wait_for_selector(".gs-live[data-at] .gs-session", timeout=PATIENCE)
        return self.view

    def updates(self) -> int:
        """Return how many updates the view has drawn."""
        return int(self.view.get_attribute("data-updates") or 0)

    def updated(self, more: int) -> None:
        """Wait until the view has drawn so many more."""
        self.page.wait_for_function(
            "(wanted) => Number(document.querySelector('.gs-live').dataset.updates) >= wanted",
            arg=self.updates() + more,
            timeout=PATIENCE,
        )

    def close(self) -> None:
        """End its kernel and leave the page."""
        self.page.evaluate(
            """async () => {
                const main = [...window.jupyterapp.shell.widgets("main")];
                await main.find((w) => w.sessionContext).sessionContext.shutdown();
            }"""
        )
        self.page.close()


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's browser, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
