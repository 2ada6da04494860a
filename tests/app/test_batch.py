"""`jupyter gpushare run SIZE` holds one grant for all kernels below it: real kernels, a device that is full otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from gpushare_kernel.client.line import Line
from gpushare_kernel.kernel_session import GRANT, SESSION, TOKEN, granted
from gpushare_kernel.transport.places import Places
from tests.app.conftest import PATIENCE
from tests.app.test_run import running, sessions
from tests.procs import eventually

HOLDS = ["--", sys.executable, "-c", "print('ready', flush=True); input()"]
CELL = "%%gpulane 120MiB\nprint('graded')"
BATCH = """
import sys
import nbformat
from nbclient import NotebookClient
for name in sys.argv[1:]:
    notebook = nbformat.read(name, 4)
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    nbformat.write(notebook, name)
    print("done", flush=True)
input()
"""


@pytest.fixture
def notebooks(tmp_path: Path) -> list[Path]:
    """Two notebooks with one cell that declares memory each."""
    found = []
    for number in range(2):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
        found.append(tmp_path / f"{number}.ipynb")
        nbformat.write(notebook, found[-1])
    return found


@pytest.fixture(autouse=True)
def _shared_kernels(where: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels start as shared ones, as on a hub."""
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "gpushare")


def output(path: Path) -> str:
    (cell,) = nbformat.read(path, 4).cells
    return "".join(out.get("text", "") for out in cell.outputs)


def test_kernels_below_it_are_part_of_it_and_wait_for_nothing(
    broker: Places, notebooks: list[Path]
) -> None:
    """The rest of the device is taken; each kernel has its cell's memory from what the command holds."""
    with running("800MiB", "--name", "hog", *HOLDS) as hog:
        assert hog.stdout.readline() == "ready\n"
        names = [str(path) for path in notebooks]
        with running(
            "128MiB", "--name", "grade", "--", sys.executable, "-c", BATCH, *names
        ) as batch:
            for _ in names:
                assert batch.stdout.readline() == "done\n"
                assert sorted(one.name for one in sessions(broker)) == ["grade", "hog"]
            with Line(broker) as line:
                assert line.snapshot().queue == ()
            batch.communicate("\n", timeout=PATIENCE)
        hog.communicate("\n", timeout=PATIENCE)
    assert [output(path).splitlines()[0] for path in notebooks] == ["graded"] * 2
    eventually(lambda: sessions(broker) == ())


def test_without_a_size_each_kernel_is_on_its_own(broker: Places, notebooks: list[Path]) -> None:
    """Nothing is held for them: they take turns and wait like everybody else."""
    command = ["--", sys.executable, "-c", BATCH.replace("    print(", "    input(); print("), str(notebooks[0])]  # fmt: skip
    with running("--name", "grade", *command) as batch:
        eventually(lambda: len(sessions(broker)) == 2)
        batch.communicate("\n\n", timeout=PATIENCE)
    assert output(notebooks[0]).startswith("graded")


def test_a_wait_that_ends_says_so_on_a_line_of_its_own(gpushare, broker: Places) -> None:
    """What a batch looks for in its log; the status is not the command's."""
    with running("800MiB", *HOLDS) as hog:
        assert hog.stdout.readline() == "ready\n"
        done = gpushare("run", "--wait=1", "512MiB", "--", "touch", "never")
        first, second = done.stderr.splitlines()[-2:]
        assert (done.returncode, first) == (75, "GPUSHARE: did not run, waited 1 s")
        assert "the command has not run" in second
        assert not Path("never").exists()
        hog.communicate("\n", timeout=PATIENCE)


def test_who_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the command itself, not below a kernel that has a session of its own in between."""
    env = {GRANT: "s1", SESSION: "s1", TOKEN: "t", "HOME": "/"}
    assert granted(env) == {GRANT: "s1", SESSION: "s1", TOKEN: "t"}
    assert granted({**env, SESSION: "s2"}) == {}
    assert granted({SESSION: "s1", TOKEN: "t"}) == {}


def test_a_kernel_that_a_launcher_starts_is_part_of_it_too(broker: Places, tmp_path: Path) -> None:
    """For clients that know no provisioners."""
    code = "import os, sys; os.execve = lambda *a: print(a[2]['GPUSHARE_SESSION'] == os.environ['GPUSHARE_SESSION']); sys.argv = ['x']; from gpushare_kernel.app.launcher import main; main()"
    done = subprocess.run(
        [sys.executable, "-m", "gpushare_kernel.app.main", "run", "64MiB", "--", sys.executable, "-c", code],
        env=dict(os.environ), capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.stdout == "True\n", done.stderr
