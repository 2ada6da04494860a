"""Everything that starts kernels, against a real broker, with our provisioner by the one environment variable."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import jupyter_kernel_test
import nbformat
import pytest
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import KernelProvisionerFactory

from gpushare_kernel import procfs
from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.client.line import Line
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.transport.places import places

PATIENCE = 90
PRINT_SESSION = "import os; print('session', os.environ['GPUSHARE_SESSION'])"


@pytest.fixture(scope="module", autouse=True)
def real_broker(tmp_path_factory):
    """A broker for the module, and the variable that makes every client use us."""
    folder = tmp_path_factory.mktemp("b")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GPUSHARE_TOKEN", "GPUSHARE_SESSION", "GPUSHARE_SOCKET"):
            patch.delenv(name, raising=False)
        patch.setenv("GPUSHARE_RUNTIME_DIR", str(folder / "run"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "jupyter"))
        patch.setenv("JUPYTER_CONFIG_DIR", str(folder / "config"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "gpushare")
        KernelProvisionerFactory.clear_instance()
        ensure_broker(places(), PATIENCE)
        yield places()
        stop_broker(places(), PATIENCE)
        KernelProvisionerFactory.clear_instance()


def sessions() -> list:
    with Line(places()) as line:
        return list(line.snapshot().sessions)


class TestConformance(jupyter_kernel_test.KernelTests, jupyter_kernel_test.IopubWelcomeTests):
    """The kernel protocol's own tests: sharing changes nothing a client can see."""

    kernel_name = "python3"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = ({"text": "zi", "matches": {"zip"}},)
    complete_code_samples = ("1", "print('hello')", "%%gpulane 64MiB\n1 + 1\n")
    incomplete_code_samples = ("def f():", "'''")
    invalid_code_samples = ("import = 7q",)
    code_page_something = "zip?"
    code_generate_error = "raise ValueError()"
    code_execute_result = ({"code": "1+2+3", "result": "6"},)
    code_display_data = (
        {
            "code": "from IPython.display import HTML, display; display(HTML('<b>t</b>'))",
            "mime": "text/html",
        },
    )
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "zip"

    def test_it_is_a_session(self):
        """What is tested here is a shared kernel."""
        self.flush_channels()
        _, output = self.execute_helper(code=PRINT_SESSION)
        assert output[0]["content"]["text"].split()[1] in {session.id for session in sessions()}


def notebook(path: Path, *cells: str) -> Path:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return path


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", []))


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_nbconvert_and_nbclient_share(tmp_path):
    """`jupyter nbconvert --execute` runs its notebook in a session."""
    path = notebook(tmp_path / "n.ipynb", PRINT_SESSION)
    run(
        sys.executable,
        "-m",
        "nbconvert",
        "--execute",
        "--inplace",
        "--to",
        "notebook",
        path,
        cwd=tmp_path,
    )
    assert re.fullmatch(r"session \S+\n", printed(path))


def test_papermill_in_a_papermill_notebook_shares_in_a_session_of_its_own(tmp_path):
    """The variable reaches nested kernels, the outer session's token does not."""
    inner = notebook(tmp_path / "inner.ipynb", PRINT_SESSION)
    code = (
        "import papermill\n"
        f"papermill.execute_notebook({str(inner)!r}, 'inner-out.ipynb', progress_bar=False)"
    )
    outer = notebook(tmp_path / "outer.ipynb", PRINT_SESSION, code)
    run(sys.executable, "-m", "papermill", "--no-progress-bar", outer, "out.ipynb", cwd=tmp_path)
    (one,), (other,) = (
        re.findall(r"session (\S+)", printed(tmp_path / name))
        for name in ("out.ipynb", "inner-out.ipynb")
    )
    assert one != other


def test_jupyter_run_shares(tmp_path):
    """`jupyter run script.py` is a session, too."""
    script = tmp_path / "script.py"
    script.write_text(PRINT_SESSION)
    assert re.search(
        r"session \S+", run(sys.executable, "-m", "jupyter_client.runapp", script, cwd=tmp_path)
    )


@pytest.fixture
def server(tmp_path):
    """A Jupyter server; what comes is how to ask it: method, path, body."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    options = (
        *("--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"),
        *("--ServerApp.port_retries=0", "--IdentityProvider.token=secret"),
        f"--ServerApp.root_dir={tmp_path}",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyter_server", *options],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )

    def ask(method: str, path: str, body: object = None) -> dict:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "token secret"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            text = reply.read()
        return json.loads(text) if text else {}

    try:
        assert any("is running at" in line for line in process.stderr)
        _until_it_listens(process, port)
        yield ask
        process.terminate()
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()


def _until_it_listens(process: subprocess.Popen[str], port: int) -> None:
    """The server says that it runs before it listens, and then nothing."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def test_jupyter_server_names_sessions_after_notebooks(server):
    """POST /api/sessions, as Lab does; DELETE ends the session at the broker."""
    body = {
        "path": "hw2.ipynb",
        "type": "notebook",
        "name": "hw2.ipynb",
        "kernel": {"name": "python3"},
    }
    made = server("POST", "api/sessions", body)
    assert [session.name for session in sessions()] == ["hw2.ipynb"]
    server("DELETE", f"api/sessions/{made['id']}")
    assert sessions() == []


def test_a_restart_keeps_the_session_and_a_kill_ends_it(tmp_path):
    """The broker knows the kernel's new process by its old session; with the manager gone, by nothing."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(stderr=subprocess.DEVNULL)
    (before,) = sessions()
    manager.restart_kernel(now=True)
    (after,) = sessions()
    assert (after.id, after.pid) == (before.id, manager.provisioner.pid)
    assert after.pid != before.pid
    assert procfs.process_key(before.pid) is None
    manager.shutdown_kernel(now=True)
    assert sessions() == []
    assert os.environ.get("GPUSHARE_SESSION") is None
