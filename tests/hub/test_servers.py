"""Which servers run here, and whether their kernels share: of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpushare_kernel.hub import servers
from gpushare_kernel.hub.servers import Server
from tests.hub.test_containers import may_unshare

WAITS = "import sys; print('ready', flush=True); sys.stdin.read()"
NOBODY = 65534
PYTHON = "/usr/bin/python3"
"""One that everybody may run."""
Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program of a given name, with variables."""
    running: list[subprocess.Popen[bytes]] = []

    def starting(name: str, *words: str, folder: Path = tmp_path, user: int | None = None, **env: str) -> int:  # fmt: skip
        script = folder / name
        script.write_text(WAITS)
        process = subprocess.Popen(
            [sys.executable if user is None else PYTHON, "-S", str(script), *words],
            env={"PATH": os.environ["PATH"], **env},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            user=user,
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process.pid

    yield starting
    for process in running:
        process.communicate()


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that everybody may look into."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


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


def test_a_name_that_no_terminal_should_show_is_none(start: Start) -> None:
    """Root's terminal would do what a user wrote into their environment."""
    pid = start("jupyter-lab", JUPYTERHUB_USER="\x1b]0;ann\x07", USER="ann\nbob")
    assert [one.name for one in those(pid)] == [f"pid {pid}"]


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


def test_what_is_no_configuration_is_not_read(start: Start, tmp_path: Path) -> None:
    """A file that would fill root's memory, and one whose name its terminal would act on."""
    with (tmp_path / "large.py").open("w") as large:
        large.truncate(2**40)
    (tmp_path / "a\x1b[2J.py").touch()
    for name in ("large.py", "a\x1b[2J.py"):
        start("jupyterhub", "-f", name)
    assert not [path for path in servers.hub_configs() if path.parent == tmp_path]


def test_what_is_only_called_like_a_hub_is_none(start: Start, tmp_path: Path) -> None:
    """No interpreter's: a sudo that waits for its password is root's process, and its words are whoever's. No script's name: an argument."""
    path = tmp_path / "hub.py"
    path.touch()
    (tmp_path / "jupyterhub").write_text("echo ready; read line\n")
    process = subprocess.Popen(["sh", "jupyterhub", "-f", "hub.py"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        start("other", "jupyterhub", "-f", "hub.py")
        assert path not in servers.hub_configs()
        process.communicate(b"\n")


@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0 or not Path(PYTHON).exists(),
    reason=f"needs root, to be somebody else, and {PYTHON}",
)
def test_a_hub_of_somebody_elses_names_files_of_theirs_only(start: Start, open_path: Path) -> None:
    """Anybody can run a script called jupyterhub with -f and a file of root's."""
    roots, theirs = open_path / "sudoers", open_path / "hub.py"
    for path in (roots, theirs):
        path.touch()
    os.chown(theirs, NOBODY, NOBODY)
    start("jupyterhub", "-f", str(roots), folder=open_path, user=NOBODY)
    start("jupyterhub", "-f", str(theirs), folder=open_path, user=NOBODY)
    found = servers.hub_configs()
    assert theirs in found
    assert roots not in found


@pytest.mark.root
@pytest.mark.skipif(not may_unshare() or not Path(PYTHON).exists(), reason=f"needs root, namespaces and {PYTHON}")  # fmt: skip
def test_a_hub_in_a_container_names_no_file_of_the_hosts(open_path: Path) -> None:
    """Its root is root to us, and its /etc is another one: a root folder of its own, with the host's programs in it."""
    root, path = open_path / "root", open_path / "hub.py"
    root.mkdir()
    path.touch()
    (open_path / "jupyterhub").write_text(WAITS)
    script = (
        f"mount -t tmpfs none {root} && for d in usr lib lib64 tmp; do mkdir {root}/$d && mount --rbind /$d {root}/$d || exit 1; done; "
        f"exec chroot {root} {PYTHON} -S {open_path}/jupyterhub -f {path}"
    )
    process = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert path not in servers.hub_configs()
        process.communicate()
