"""What is built installs into a fresh environment, and works from any folder."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from gpushare_kernel import __version__
from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.kernel_session import KERNEL_VARIABLES
from gpushare_kernel.transport.places import places

REPOSITORY = Path(__file__).parents[2]
PACKAGES = "gpushare_kernel", "gpushare_magics", "gpushare_widgets"
PATIENCE = 110

# Without the build backend here, pip and build fetch it into an environment of their own.
HAVE_BACKEND = all(importlib.util.find_spec(name) for name in ("hatchling", "editables"))

FACTS = """if True:
    import importlib, json, sys
    from importlib.metadata import entry_points, version
    from pathlib import Path
    group = "jupyter_client.kernel_provisioners"
    (ours,) = {e.value for e in entry_points(group=group) if e.name == "gpushare"}
    packages = {name: importlib.import_module(name).__file__ for name in sys.argv[1:]}
    startup = Path(sys.prefix) / "etc/ipython/startup/00-gpushare.py"
    print(json.dumps([version("gpushare-kernel"), ours, packages, startup.is_file()]))
"""

KERNEL = """if True:
    import subprocess
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel(stderr=subprocess.DEVNULL)
    code = '''
    import gpushare_kernel, os
    assert get_ipython().find_cell_magic("gpulane")
    print(os.environ["GPUSHARE_SESSION"], gpushare_kernel.__file__)
    '''
    said = []
    reply = client.execute_interactive(
        code.replace("\\n    ", "\\n"), timeout=60, output_hook=lambda m: said.append(m["content"])
    )
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    print(reply["content"]["status"], said)
"""


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Run a command elsewhere, in the environment it is told; return what it printed."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**inherited, **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Environment:
    """A virtual environment with our dependencies (those of this one) and nothing of ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        (site,) = folder.glob("lib/python*/site-packages")
        # Read before any editable one. A .pth file adds a path, but not the .pth files in it: an editable gpushare there stays out of it.
        (site / "00-dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, *words: str | Path) -> None:
        pip = (sys.executable, "-m", "pip", "--python", self.python, "install", "--no-deps")
        run(*pip, "--quiet", "--disable-pip-version-check", *words, cwd=self.folder)

    def facts(self) -> list:
        printed = run(self.python, "-c", FACTS, *PACKAGES, cwd=self.folder)
        return json.loads(printed)


def build(source: Path, folder: Path) -> None:
    """Build the sdist, and the wheel from it, as docs/release.md says."""
    isolation = ["--no-isolation"] if HAVE_BACKEND else []
    command = sys.executable, "-m", "build", *isolation, "--outdir", folder, source
    run(*command, cwd=folder, SOURCE_DATE_EPOCH="1767225600")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A wheel, built from the sdist, and that."""
    folder = tmp_path_factory.mktemp("dist")
    build(REPOSITORY, folder)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Environment:
    """An environment with the wheel."""
    environment = Environment(tmp_path_factory.mktemp("wheel") / "env")
    environment.install(*built.glob("*.whl"))
    return environment


def test_the_wheel_holds_the_packages_and_nothing_else(built):
    """Three packages, the startup file and the licence; no tests, no stray top-level names."""
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    stem = f"gpushare_kernel-{__version__}"
    assert {name.split("/")[0] for name in names} == {
        *PACKAGES,
        f"{stem}.data",
        f"{stem}.dist-info",
    }
    assert f"{stem}.data/data/etc/ipython/startup/00-gpushare.py" in names
    for extra in (
        "etc/jupyter/jupyter_server_config.d/gpushare.json",
        "share/gpushare/grafana/gpushare.json",
    ):
        assert f"{stem}.data/data/{extra}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_sdist_holds_what_a_packager_needs(built):
    """Sources, tests, examples and the licence."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "LICENSE", "Makefile", "examples/digits.ipynb"} <= names
    assert "tests/packaging/test_packaging.py" in names
    assert "labextension/src/index.ts" in names
    assert not any("node_modules" in name for name in names)
    assert not any("__pycache__" in name or name.startswith(".venv") for name in names)


def test_two_builds_are_the_same_bytes(built, checkout, tmp_path):
    """Another folder, other times, another umask: wheel and sdist are equal, so somebody else can check a release."""
    for path in checkout.rglob("*"):
        os.utime(path, (10**9, 10**9))
    umask = os.umask(0o077)
    try:
        build(checkout, tmp_path)
    finally:
        os.umask(umask)
    names = sorted(path.name for path in built.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (built / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_the_wheel_works_from_another_folder(installed):
    """Imports come from the environment, the provisioner is registered, the startup file is where IPython looks."""
    version, provisioner, packages, startup = installed.facts()
    assert version == __version__
    assert provisioner == "gpushare_kernel.provisioner:GpuShareProvisioner"
    assert all(Path(path).is_relative_to(installed.folder) for path in packages.values()), packages
    assert startup


def test_the_command_is_a_jupyter_command(installed):
    """`jupyter gpushare --version`, as people type it."""
    path = f"{installed.folder / 'bin'}:{os.environ['PATH']}"
    printed = run(
        installed.python, "-m", "jupyter", "gpushare", "--version", cwd=installed.folder, PATH=path
    )
    assert printed.strip() == __version__


def test_a_kernel_of_the_wheel_loads_the_magic(installed, tmp_path, monkeypatch):
    """Started by our provisioner, a kernel of that environment finds its session and has %%gpulane."""
    for name in KERNEL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPUSHARE_RUNTIME_DIR", str(tmp_path / "run"))
    folders = {name: str(tmp_path / name) for name in ("JUPYTER_DATA_DIR", "IPYTHONDIR")}
    ensure_broker(places(), PATIENCE)
    try:
        printed = run(
            installed.python,
            *("-c", KERNEL),
            cwd=tmp_path,
            JUPYTER_DEFAULT_PROVISIONER_NAME="gpushare",
            **folders,
        )
    finally:
        stop_broker(places(), PATIENCE)
    assert printed.startswith("ok"), printed
    assert str(installed.folder) in printed


def test_an_editable_installation_works_from_another_folder(tmp_path):
    """It uses the sources where they lie, and has the startup file in place, too."""
    environment = Environment(tmp_path / "env")
    isolation = ["--no-build-isolation"] if HAVE_BACKEND else []
    environment.install(*isolation, "--editable", REPOSITORY)
    version, _, packages, startup = environment.facts()
    assert version == __version__
    assert all(Path(path).is_relative_to(REPOSITORY) for path in packages.values()), packages
    assert startup
