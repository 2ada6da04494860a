"""Binder: repo2docker reads our files, and what they do works in an environment that has nothing (without Docker)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PATIENCE = 110

# What a person does first: a kernel of the default kind, in which the magic is there and says what is shared.
KERNEL = """if True:
    import subprocess
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel(stderr=subprocess.DEVNULL)
    said = []
    client.execute_interactive("%gpushare status", timeout=60, output_hook=lambda m: said.append(m["content"]))
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    print(said)
"""


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Run a command and return all that it said."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_repo2docker_reads_all_of_it(checkout: Path, tmp_path: Path) -> None:
    """It makes the image's recipe: requirements, then postBuild, and start when the container starts."""
    said = run(
        *(sys.executable, "-m", "repo2docker", "--no-build", "--debug", checkout),
        cwd=tmp_path,
        PYTHONWARNINGS="ignore",
    )
    steps = [
        'pip install --no-cache-dir -r "binder/requirements.txt"',
        "RUN ./binder/postBuild",
        'ENV R2D_ENTRYPOINT="${REPO_DIR}/binder/start"',
    ]
    places = [said.find(step) for step in steps]
    assert -1 not in places, said[-4000:]
    assert places == sorted(places)


class Environment:
    """An environment that has nothing, as an image begins, and a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run(sys.executable, "-m", "venv", folder / "env", cwd=folder)
        self.python = folder / "env/bin/python"
        self._variables = {
            "PATH": f"{self.python.parent}:/usr/bin:/bin",
            "HOME": str(folder),
            "PYTHONPATH": "",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_COMPILE": "1",  # an image has its reasons, and a test has no use for it
            "GPUSHARE_RUNTIME_DIR": str(folder / "run"),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(folder / "jupyter"),
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "IPYTHONDIR": str(folder / "ipython"),
        }

    def run(self, *command: str | Path, cwd: Path | None = None) -> str:
        return run(*command, cwd=cwd or self.folder, **self._variables)


@pytest.fixture(scope="module")
def environment(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One with the requirements."""
    made = Environment(tmp_path_factory.mktemp("binder"))
    wanted = checkout / "binder/requirements.txt"
    made.run(made.python, "-m", "pip", "install", "--quiet", "-r", wanted)
    return made


@pytest.fixture(scope="module")
def built(environment: Environment, checkout: Path) -> str:
    """What postBuild says."""
    return environment.run(checkout / "binder/postBuild", cwd=checkout)


def test_the_requirements_can_be_met(environment: Environment) -> None:
    """In an environment that has nothing."""
    assert environment.run(environment.python, "-c", "import numpy; print('there')") == "there\n"


def test_post_build_installs_what_shares(environment: Environment, built: str) -> None:
    """The package, from the repository and not from an index, and kernelspecs."""
    assert "notebooks share the device" in built
    where = environment.run(
        environment.python, "-c", "import gpushare_kernel as g; print(g.__file__)"
    )
    assert where.startswith(str(environment.folder))


def test_start_has_every_kernel_share_the_cpu(
    environment: Environment, built: str, checkout: Path
) -> None:
    """The broker is there before the server, says that it shares a CPU, and a new kernel takes part."""
    try:
        said = environment.run(checkout / "binder/start", environment.python, "-c", KERNEL)
    finally:
        environment.run("jupyter", "gpushare", "stop")
    assert "The broker (pid" in said
    assert "(CPU, no GPU)" in said
    assert "of memory" in said
