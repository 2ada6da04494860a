"""The documentation builds without a warning, what is made of the code is in it, and links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from gpushare_kernel.app.main import GpuShareApp

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 110
VARIABLE = re.compile(r"\bGPUSHARE_[A-Z]+(?:_[A-Z]+)*\b")
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


FROM_AN_INDEX = re.compile(r"(pip|pipx|uv)\s+(install|add)[^\n`]*gpushare[-_](kernel|lab)")


def test_nobody_is_told_to_install_us_from_an_index() -> None:
    """We are in none: whoever has that name there is somebody else."""
    places = [
        REPOSITORY / "README.md",
        REPOSITORY / "binder",
        REPOSITORY / "labextension/README.md",
    ]
    places += [REPOSITORY / name for name in ("docs", "examples", "gpushare_kernel", "magics", "widgets")]  # fmt: skip
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*"))]  # fmt: skip
    texts = [file for file in files if file.suffix in {".md", ".py", ".js", ".ipynb", ".yaml", ".txt", ""} and file.is_file()]  # fmt: skip
    assert len(texts) > 300
    assert [
        str(file)
        for file in texts
        if FROM_AN_INDEX.search(file.read_text("utf-8", errors="replace"))
    ] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does: whatever Sphinx complains of is an error."""
    folder = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-E", "-d", str(folder / "doctrees")]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(REPOSITORY / "docs"), str(folder / "html")],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "html"


def text(page: Path) -> str:
    """Return what one reads on a page."""
    return unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_the_reference_has_what_the_code_has(site: Path) -> None:
    """Every command, with its options as one types them; the magics; the API by its public name; reasons for waiting."""
    commands = text(site / "reference/commands.html")
    for name in GpuShareApp.subcommands:
        assert f"jupyter gpushare {name}" in commands
    assert "--idle-exit=..." in commands
    assert "%%gpulane [SIZE] [-p SIZE] [-e SIZE]" in text(site / "reference/magics.html")
    assert "gpushare_kernel.lane(persistent=None, ephemeral=None" in text(site / "reference/api.html")  # fmt: skip
    messages = text(site / "reference/messages.html")
    assert "Waiting for GPU memory: needs 6.0 GiB, 2.0 free. Your own hw2.ipynb holds" in messages
    assert "c.GpuShareProvisioner.on_missing_broker" in text(site / "reference/configuration.html")
    for page in site.rglob("*.html"):
        assert "<!-- generated" not in page.read_text(encoding="utf-8"), page


def test_every_variable_of_the_environment_is_told() -> None:
    """The one table by hand has what the code reads, and nothing else."""
    code = [REPOSITORY / name for name in ("gpushare_kernel", "magics", "widgets", "etc")]
    used = {
        variable
        for folder in code
        for path in folder.rglob("*.py")
        for variable in VARIABLE.findall(path.read_text(encoding="utf-8"))
    }
    page = REPOSITORY / "docs/reference/configuration.md"
    assert set(VARIABLE.findall(page.read_text(encoding="utf-8"))) == used


@pytest.mark.parametrize(
    "name",
    ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "binder/README.md"],
)
def test_links_lead_to_files_that_are_there(name: str) -> None:
    """Of pages that are not in the site, or not only; the others' are Sphinx's to check."""
    page = REPOSITORY / name
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        assert link.startswith("https://") or (page.parent / link).exists(), link
