"""Which kernels keep JUPYTER_DEFAULT_PROVISIONER_NAME."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpushare_kernel import interpreters
from gpushare_kernel.interpreters import STARTUP_FILE, has_package


@pytest.fixture
def environment(tmp_path):
    """Somebody else's environment: a prefix with a program that is no Python."""
    program = tmp_path / "bin" / "xpython"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("command", ["python", "python3", sys.executable])
def test_our_own_interpreter_is_known_without_a_look(command, monkeypatch):
    """No subprocess at a kernel's start: these run where we run."""
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a subprocess was started"))
    assert has_package(command)


def test_a_startup_file_in_its_prefix_settles_it(environment, tmp_path):
    """Any program (xeus-python, say) of an environment into which our wheel was installed."""
    assert not has_package(str(environment))
    startup = tmp_path / STARTUP_FILE
    startup.parent.mkdir(parents=True)
    startup.touch()
    assert has_package(str(environment))


@pytest.mark.parametrize(("finds", "expected"), [(0, True), (1, False)])
def test_another_python_is_asked_once(tmp_path, monkeypatch, finds, expected):
    """A Python that has us in another way (a .pth file, say) is asked, and its answer kept."""
    program = tmp_path / "bin" / "python3.12"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/log\nexit {finds}\n")
    program.chmod(0o755)
    interpreters._can_import.cache_clear()
    assert [has_package(str(program)) for _ in range(3)] == [expected] * 3
    assert Path(tmp_path / "log").read_text() == "asked\n"


def test_a_program_is_looked_up_on_the_kernels_path(environment, tmp_path):
    """PATH is the kernel's, not ours."""
    startup = tmp_path / STARTUP_FILE
    startup.parent.mkdir(parents=True)
    startup.touch()
    assert has_package("xpython", str(environment.parent))
    assert not has_package("xpython", "/nonexistent")


def test_the_question_to_another_python_is_answered_by_a_real_one():
    """The code it is asked with runs, here by our own interpreter from another folder."""
    done = subprocess.run([sys.executable, "-c", interpreters._FIND], cwd="/", check=False)
    assert done.returncode == 0
