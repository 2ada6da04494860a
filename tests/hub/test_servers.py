"""Which servers run here, and whether their kernels share: of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpushare_kernel.hub import servers
from gpushare_kernel.hub.servers import Server

WAITS = "import sys; print('ready', flush=True); sys.stdin.read()"
Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program of a given name, with variables."""
    running: list[subprocess.Popen[bytes]] = []

    def starting(name: str, *words: str, **env: str) -> int:
        script = tmp_path / name
        script.write_text(WAITS)
        process = subprocess.Popen(
            [sys.executable, "-S", str(script), *words],
            env={"PATH": os.environ["PATH"], **env},
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process.pid

    yield starting
    for process in running:
        process.communicate()


def those(*pids: int) -> list[Server]:
    return [one for one in servers.servers() if one.pid in pids]


def test_servers_are_told_by_program_and_environment(start: Start) -> None:
    """Who has the variable, who has not, and what is no server."""
    ann = start("jupyterhub-singleuser", "--port=1", JUPYTERHUB_USER="ann")
    bob = start("jupyter-lab", USER="bob", JUPYTER_DEFAULT_PROVISIONER_NAME="gpushare")
    eve = start("jupyter-labhub", JUPYTERHUB_USER="eve", JUPYTER_DEFAULT_PROVISIONER_NAME="other")
    tool = start("jupyter-nbconvert", USER="tom")
    found = those(ann, bob, eve, tool)
    assert found == [
        Server(ann, "ann", shares=False),
        Server(bob, "bob", shares=True),
        Server(eve, "eve", shares=False),
    ]
    assert servers.without_text(found) == "2 servers run without it until restarted: ann, eve."
    assert servers.without_text(found[:1]) == "1 server runs without it until restarted: ann."
    assert servers.without_text(found[1:2]) == ""


def test_one_whose_environment_is_not_ours_to_read_is_not_accused() -> None:
    """Another user's, seen by somebody who is not root."""
    assert servers.without_text([Server(1, "ann", shares=None)]) == ""


@pytest.mark.parametrize("words", [("-f", "hub.py"), ("--config=hub.py",), ("--config", "hub.py"), ()])  # fmt: skip
def test_a_running_hub_says_where_its_configuration_is(start: Start, tmp_path: Path, words: tuple[str, ...]) -> None:  # fmt: skip
    """Named from where it was started, or the usual name there."""
    path = tmp_path / ("hub.py" if words else "jupyterhub_config.py")
    path.touch()
    start("jupyterhub", *words)
    assert path in servers.hub_configs()
