"""The live view in JupyterLab and in Notebook 7 while a cell runs, at a real broker, beside notebooks that work."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from benchmarks.common import Figure, progress
from benchmarks.live_view.cells import FEED, SENDER
from benchmarks.live_view.main_thread import busy_seconds, watched
from tests.faults.conftest import made_host
from tests.faults.host import Host, session_of
from tests.faults.notebook import Notebook as Kernel
from tests.procs import eventually
from tests.widgets.browser.lab import APPS, Lab, Notebook, chromium

ROOT = Path(__file__).resolve().parents[2]
KEPT = 200 * 2**20
"""Bytes that the notebook keeps on which Release is clicked."""
LOOKS_BACK = 30.0
"""Seconds until there are as many turns in the picture as there ever are."""
CELLS = (
    f"import sys\nsys.path[:0] = [{str(ROOT)!r}]\nfrom benchmarks.live_view import cells",
    "%gpushare live",
    "cells.sleeps('gate', 'told')",
    "cells.works('gate', 'told')",
)
SLEEPS, WORKS = 2, 3

_UPDATES = """(seconds) => new Promise((done) => {
    const view = document.querySelector(".gs-live"), times = [performance.now()];
    const watch = new MutationObserver(() => times.push(performance.now()));
    watch.observe(view, { attributes: true, attributeFilter: ["data-updates"] });
    setTimeout(() => {
        watch.disconnect();
        done([...times, performance.now()].map((t) => (t - times[0]) / 1000));
    }, seconds * 1000);
})"""
"""When updates were drawn; the window's two ends are there too, as a gap may reach over them."""
_CLICK = """() => new Promise((done) => {
    const answer = document.querySelector(".gs-answer");
    let began;
    const click = () => {
        const row = [...document.querySelectorAll(".gs-session")].find((one) => one.innerText.includes("other.ipynb"));
        const button = row.querySelector("button[data-action=release]");
        if (!button) return requestAnimationFrame(click);
        answer.textContent = "";
        watch.observe(answer, { attributes: true, childList: true, characterData: true, subtree: true });
        began = performance.now();
        button.click();
    };
    const watch = new MutationObserver(() => {
        if (!answer.textContent || answer.hidden) return;
        watch.disconnect();
        requestAnimationFrame(() => done([(performance.now() - began) / 1000, answer.textContent]));
    });
    click();
})"""


def measure(*, quick: bool) -> Sequence[Figure]:
    """Measure both front ends, one after the other, with the same neighbours."""
    windows, seconds, clicks = (1, 5.0, 5) if quick else (3, 10.0, 10)
    seen: dict[str, list[float]] = defaultdict(list)
    with _stage() as (host, lab, screen):
        one, two, other = (host.notebook(f"{name}.ipynb") for name in ("one", "two", "other"))
        for app in APPS:
            with _opened(lab, screen(), app) as notebook, _works(one):
                with _works(two):  # one alone has the device, and nothing changes
                    if not quick:
                        notebook.page.wait_for_timeout(1000 * LOOKS_BACK)
                    for _ in range(windows):
                        _keep(seen, f"{app}_sleep", _window(lab, notebook, SLEEPS, seconds))
                for _ in range(windows):
                    _keep(seen, f"{app}_busy", _window(lab, notebook, WORKS, seconds))
                with _running(lab, notebook, WORKS):
                    for _ in range(clicks):
                        _keep(seen, app, {"click": _click(host, other, notebook)})
        grown = _grown(host, *((100, 1_000) if quick else (10_000, 20_000)))
    return [
        *(figure for app in APPS for figure in _figures(app, seen)),
        *_kernel_side(seen),
        Figure("kernel_memory_growth", "KB", [grown["private"] / 1000], at_most=1000.0),
        Figure("kernel_blocks_growth", "blocks", [grown["blocks"]], at_most=1000.0),
    ]


def _keep(seen: dict[str, list[float]], name: str, values: dict[str, float]) -> None:
    for what, value in values.items():
        seen[f"{name}_{what}"].append(value)
    progress(f"{name}: " + ", ".join(f"{what} {value:.2f}" for what, value in values.items()))


@contextmanager
def _works(kernel: Kernel) -> Iterator[None]:
    """Have a neighbour want a core meanwhile."""
    outputs = kernel.burn()
    yield
    kernel.interrupt()
    list(outputs)


@contextmanager
def _stage() -> Iterator[Any]:
    """A host of one core, a Jupyter server on it, and whatever opens another page."""
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # the host's log; ours is the result
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        host = stack.enter_context(
            made_host(folder, stack.enter_context(pytest.MonkeyPatch.context()))
        )
        host.start("--compute", "1", "--turn", "0.1", "--capacity", "1GiB")
        lab = Lab(folder / "lab")
        stack.callback(lab.close)
        browser = stack.enter_context(chromium())
        yield host, lab, lambda: browser.new_page(viewport={"width": 1280, "height": 1400})


@contextmanager
def _opened(lab: Lab, page: Page, app: str) -> Iterator[Notebook]:
    """A notebook that shows the live view."""
    notebook = Notebook(lab, page, "hw1.ipynb", CELLS, app)
    for cell in range(2):
        notebook.run(cell)
    notebook.seen()
    yield notebook
    notebook.close()


@contextmanager
def _running(lab: Lab, notebook: Notebook, cell: int) -> Iterator[dict[str, float]]:
    """Have a cell run meanwhile; what it saw is there afterwards."""
    gate, told, found = lab.root / "gate", lab.root / "told", {}
    for path in (gate, told):
        path.unlink(missing_ok=True)
    notebook.started(cell)
    notebook.updated(4)
    yield found
    gate.touch()
    eventually(told.exists, 60)
    found.update(json.loads(told.read_text("ascii")))
    notebook.is_over(cell)


def _window(lab: Lab, notebook: Notebook, cell: int, seconds: float) -> dict[str, float]:
    """Return what was seen while a cell ran."""
    with _running(lab, notebook, cell) as found:
        cdp = watched(notebook.page)
        before = busy_seconds(cdp)
        times = notebook.page.evaluate(_UPDATES, seconds)
        load = 100 * (busy_seconds(cdp) - before) / times[-1]
        cdp.detach()
    gap = max(after - before for before, after in pairwise(times))
    return {
        "updates": (len(times) - 2) / times[-1],
        "gap": gap,
        "pause": found["longest"],
        "gap_beyond_pause": max(0.0, gap - found["longest"]),
        "feed": found[FEED],
        "sender": found[SENDER],
        "page": load,
    }


def _click(host: Host, other: Kernel, notebook: Notebook) -> float:
    """Have the other notebook keep something, click Release; return the seconds until the answer is on the screen."""
    other.run("%%gpulane -p 200MiB -e 10MiB\n1")
    host.until(
        lambda seen: (
            (session_of(seen, other).p or 0) >= KEPT and session_of(seen, other).state == "idle"
        ),
        60,
    )
    took, text = notebook.page.evaluate(_CLICK)
    assert text.startswith("Released"), text
    return float(took)


def _grown(host: Host, first: int, last: int) -> dict[str, float]:
    """Return how much larger a kernel is after the last update than after the first."""
    kernel = host.notebook("many.ipynb")
    *_, told = kernel.run(f"{CELLS[0]}\ncells.many({first}, {last})")
    kernel.close()
    grown: dict[str, float] = json.loads(told)
    return grown


def _figures(app: str, seen: dict[str, list[float]]) -> Iterator[Figure]:
    for cell in ("sleep", "busy"):
        name = f"{app}_{cell}"
        yield Figure(f"{name}_updates", "1/s", seen[f"{name}_updates"], at_least=3.0, worst=True)
        yield Figure(
            f"{name}_gap_beyond_pause",
            "s",
            seen[f"{name}_gap_beyond_pause"],
            at_most=0.7,
            worst=True,
        )
        yield Figure(f"{name}_gap", "s", seen[f"{name}_gap"])
        yield Figure(f"{name}_pause", "s", seen[f"{name}_pause"])
        yield Figure(f"{name}_page", "% of a core", seen[f"{name}_page"])
    yield Figure(f"{app}_click", "s", seen[f"{app}_click"], at_most=0.5, worst=True)


def _kernel_side(seen: dict[str, list[float]]) -> list[Figure]:
    """The threads of both front ends' kernels."""
    made = []
    for cell in ("sleep", "busy"):
        feed, sender = (
            [value for app in APPS for value in seen[f"{app}_{cell}_{part}"]]
            for part in ("feed", "sender")
        )
        both = [a + b for a, b in zip(feed, sender, strict=True)]
        made += [
            Figure(f"kernel_{cell}", "% of a core", both, at_most=1.0),
            Figure(f"kernel_{cell}_feed", "% of a core", feed),
            Figure(f"kernel_{cell}_sender", "% of a core", sender),
        ]
    return made
