"""One broker, one Jupyter server and one browser for the tests of the live view: starting them takes longer than the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.faults.conftest import made_host
from tests.faults.host import Host
from tests.widgets.browser.lab import APPS, CHROMIUM, Lab, Notebook, chromium

BROKER = ("--compute", "1", "--turn", "0.1", "--capacity", "1GiB")
SCREEN = {"width": 1280, "height": 1400}
SLEEPS = (
    "import pathlib, time\nflag = pathlib.Path('flag')\nwhile not flag.exists(): time.sleep(0.02)"
)
CELLS = (
    "%gpushare live",
    SLEEPS,
    "while not flag.exists(): pass",
    "%%gpulane 700MiB\nwhile not flag.exists(): time.sleep(0.02)",
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose kernels share one core and 1 GiB."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt install chromium")
    with (
        pytest.MonkeyPatch.context() as patch,
        made_host(tmp_path_factory.mktemp("host"), patch) as made,
    ):
        made.start(*BROKER)
        yield made


@pytest.fixture(scope="module")
def lab(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A Jupyter server on that host."""
    made = Lab(tmp_path_factory.mktemp("lab"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt install chromium")
    with chromium() as made:
        yield made


@pytest.fixture(scope="module", params=[*APPS])
def app(request: pytest.FixtureRequest) -> str:
    """Each of Jupyter's front ends; `only_lab` where one is enough."""
    return str(request.param)


@pytest.fixture(scope="module")
def notebook(lab: Lab, browser: Browser, app: str) -> Iterator[Notebook]:
    """A notebook with the live view in it, before somebody."""
    opened = Notebook(lab, browser.new_page(viewport=SCREEN), "hw1.ipynb", CELLS, app)
    opened.run(0)
    opened.seen()
    yield opened
    opened.close()


@pytest.fixture
def flag(lab: Lab) -> Iterator[Path]:
    """What ends the cells that wait for it, once it is there."""
    path = lab.root / "flag"
    path.unlink(missing_ok=True)
    yield path
    path.touch()
