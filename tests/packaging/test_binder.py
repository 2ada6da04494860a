"""Binder: repo2docker reads our files, and what they do works in an environment that has nothing (without Docker)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_the_steps_work_in_a_clean_environment(checkout: Path, tmp_path: Path) -> None:
    """What is built and started there shares the CPU, says that it is one, and every new kernel takes part."""
    environment = tmp_path / "env"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    inside = {
        "PATH": f"{environment / 'bin'}:/usr/bin:/bin",
        "VIRTUAL_ENV": str(environment),
        "HOME": str(tmp_path),
        "PYTHONPATH": "",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "GPUSHARE_RUNTIME_DIR": str(tmp_path / "run"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    python = environment / "bin/python"
    wanted = checkout / "binder/requirements.txt"
    run(python, "-m", "pip", "install", "--quiet", "-r", wanted, cwd=checkout, **inside)
    built = run(checkout / "binder/postBuild", cwd=checkout, **inside)
    assert "notebooks share the device" in built
    try:
        said = run(checkout / "binder/start", python, "-c", KERNEL, cwd=tmp_path, **inside)
    finally:
        run("jupyter", "gpushare", "stop", cwd=tmp_path, **inside)
    assert "The broker (pid" in said
    assert "(CPU, no GPU)" in said
    assert "of memory" in said
