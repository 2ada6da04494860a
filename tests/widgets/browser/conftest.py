"""One broker, one JupyterLab and one browser for the tests of the live view: starting them takes longer than the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import made_host
from tests.faults.host import Host
from tests.widgets.browser.lab import CHROMIUM, Lab, Notebook, chromium

CELLS = (
    "%gpushare live",
    "import pathlib, time\nflag = pathlib.Path('flag')\nwhile not flag.exists(): time.sleep(0.02)",
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
        made.start("--compute", "1", "--turn", "0.1", "--capacity", "1GiB")
        yield made


@pytest.fixture(scope="module")
def lab(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on that host."""
    made = Lab(tmp_path_factory.mktemp("lab"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def notebook(lab: Lab) -> Iterator[Notebook]:
    """A notebook with the live view in it, before somebody."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        opened = Notebook(lab, page, "hw1.ipynb", CELLS)
        opened.run(0)
        opened.seen()
        yield opened


@pytest.fixture
def flag(lab: Lab) -> Iterator[Path]:
    """What ends the cells that wait for it, once it is there."""
    path = lab.root / "flag"
    path.unlink(missing_ok=True)
    yield path
    path.touch()
