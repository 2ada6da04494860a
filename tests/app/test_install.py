"""install, uninstall, and the kernels they make."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.connect import write_connection_file
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from gpushare_kernel.app import kernelspecs
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.errors import BadDeclaration
from tests.app.conftest import PATIENCE

PRINT_SESSION = "import os; print(os.environ.get('GPUSHARE_SESSION'))"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def own_spec(kernels: Path, **metadata) -> Path:
    """Write somebody's own python3 kernelspec."""
    path = kernels / "python3" / "kernel.json"
    path.parent.mkdir(parents=True)
    spec = {"argv": ["/opt/python", "-m", "ipykernel", "-f", "{connection_file}"]}
    path.write_text(json.dumps({**spec, "display_name": "Mine", "metadata": metadata}))
    return path


def run_cell(client, code: str) -> str:
    printed = []
    reply = client.execute_interactive(
        code,
        timeout=PATIENCE,
        output_hook=lambda message: printed.append(message["content"].get("text", "")),
    )
    assert reply["content"]["status"] == "ok"
    return "".join(printed).strip()


def test_install_and_back_leaves_nothing(tmp_path):
    """Where nothing was, nothing is afterwards; both are idempotent."""
    first = kernelspecs.install(tmp_path)
    once = everything(tmp_path)
    assert kernelspecs.install(tmp_path) == first
    assert everything(tmp_path) == once
    assert len(kernelspecs.uninstall(tmp_path)) == 2
    assert everything(tmp_path) == {}
    assert kernelspecs.uninstall(tmp_path) == []


def test_what_was_there_is_kept_and_comes_back(tmp_path):
    """Its argv and metadata stay in use, plus our stanza; uninstall restores its bytes, after two installs too."""
    path = own_spec(tmp_path, debugger=False)
    before = path.read_bytes()
    kernelspecs.install(tmp_path)
    kernelspecs.install(tmp_path)
    spec = json.loads(path.read_text())
    assert (spec["argv"][0], spec["display_name"]) == ("/opt/python", "Mine")
    assert spec["metadata"]["debugger"] is False
    assert spec["metadata"]["kernel_provisioner"]["provisioner_name"] == "gpushare"
    kernelspecs.uninstall(tmp_path)
    assert path.read_bytes() == before
    assert not list(tmp_path.rglob("*before-gpushare"))


def test_a_newer_kernelspec_over_ours_stays(tmp_path):
    """Reinstalling ipykernel replaces ours; uninstall then leaves that one alone."""
    path = own_spec(tmp_path)
    kernelspecs.install(tmp_path)
    path.write_text('{"argv": ["newer"]}')
    kernelspecs.uninstall(tmp_path)
    assert path.read_text() == '{"argv": ["newer"]}'
    assert not list(tmp_path.rglob("*before-gpushare"))


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ('{"metadata": {"kernel_provisioner": {"provisioner_name": "remote"}}}', "remote"),
        ("[1]", "list"),
        ("{", "no kernelspec"),
    ],
)
def test_what_is_not_understood_is_left_alone(tmp_path, found, says):
    """Another provisioner's kernelspec, or none at all: refused, with the path, and not a byte changed."""
    path = own_spec(tmp_path)
    path.write_text(found)
    with pytest.raises(BadDeclaration, match=says) as refusal:
        kernelspecs.install(tmp_path)
    assert str(path) in str(refusal.value)
    assert everything(tmp_path) == {str(path): found.encode()}


def test_install_needs_a_place(gpushare, tmp_path):
    """No place, or two: one line, and nothing is written."""
    for words in ([], ["--user", "--sys-prefix"]):
        done = gpushare("install", *words)
        assert done.returncode == 1
        assert done.stderr.startswith("gpushare: install needs one place.")
    assert not (tmp_path / "data").exists()


def test_install_for_the_user_and_back(gpushare, tmp_path):
    """It prints what it did, says where Jupyter prefers another place, and uninstall finds it without being told."""
    done = gpushare("install", "--user", JUPYTER_PREFER_ENV_PATH="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(tmp_path / "data" / "kernels" / "python3" / "kernel.json") in done.stdout
    assert "prefers" not in done.stdout
    other = gpushare("install", "--user", JUPYTER_PREFER_ENV_PATH="1")
    used = Path(sys.prefix) / "share" / "jupyter" / "kernels" / "python3"
    assert other.returncode == 1
    assert other.stdout.splitlines()[-1] == (
        f"Kernels do NOT share yet: Jupyter here prefers {used}. Run: jupyter gpushare uninstall --user; jupyter gpushare install --sys-prefix"
    )
    assert "new kernels share" not in other.stdout
    assert str(tmp_path) in gpushare("uninstall").stdout
    assert everything(tmp_path / "data") == {}
    assert gpushare("uninstall", "--user").stdout == "Nothing of ours is installed there.\n"


def manager_of(kernel_name: str, kernels: Path) -> KernelManager:
    specs = KernelSpecManager(kernel_dirs=[str(kernels)])
    return KernelManager(kernel_name=kernel_name, kernel_spec_manager=specs)


@pytest.mark.parametrize("name", [kernelspecs.NATIVE, kernelspecs.LAUNCHED])
def test_installed_kernels_share_without_a_variable(broker, tmp_path, name):
    """Both kernelspecs make one session each, of the kernel's own process, whatever provisioner is the default."""
    kernelspecs.install(tmp_path / "kernels")
    manager = manager_of(name, tmp_path / "kernels")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=PATIENCE)
        printed = run_cell(client, PRINT_SESSION)
        with Line(broker) as line:
            (session,) = line.snapshot().sessions
        assert (session.id, session.pid) == (printed, manager.provisioner.pid)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def launched(kernels: Path, **env: str):
    """Start the launcher's kernel as an editor does: argv, and nothing of jupyter_client's managers."""
    spec = json.loads((kernels / kernelspecs.LAUNCHED / "kernel.json").read_text())
    path, _ = write_connection_file(str(kernels / "connection.json"))
    argv = [word.replace("{connection_file}", path) for word in spec["argv"]]
    process = subprocess.Popen(
        argv,
        env={**os.environ, **env},
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    client = BlockingKernelClient()
    client.load_connection_file(path)
    client.start_channels()
    return process, client


def until_ready(process, client):
    """Wait for a launched kernel. A client without a manager calls one dead that has not answered its first beats yet."""
    ends = time.monotonic() + PATIENCE
    while True:
        try:
            return client.wait_for_ready(timeout=PATIENCE)
        except RuntimeError:
            if process.poll() is not None or time.monotonic() > ends:
                raise


def test_the_launcher_shares_for_editors_that_know_no_provisioners(broker, tmp_path):
    """The session is bound to the kernel's process, which is the launcher's; an outer session's variables mean nothing."""
    kernelspecs.install(tmp_path)
    process, client = launched(tmp_path, GPUSHARE_SESSION="outer", GPUSHARE_TOKEN="outer")
    try:
        until_ready(process, client)
        printed = run_cell(client, PRINT_SESSION)
        with Line(broker) as line:
            (session,) = line.snapshot().sessions
        assert (session.id, session.pid, session.name) == (printed, process.pid, "gpushare")
        client.shutdown()
        process.communicate(timeout=PATIENCE)
    finally:
        client.stop_channels()
        process.kill()
        process.communicate()


def test_the_launcher_starts_a_bare_kernel_where_no_broker_can_be(where, tmp_path):
    """One line on stderr, and the kernel works."""
    kernelspecs.install(tmp_path)
    where.runtime.symlink_to(tmp_path)  # no folder of ours: refused
    process, client = launched(tmp_path)
    try:
        until_ready(process, client)
        assert run_cell(client, PRINT_SESSION) == "None"
        client.shutdown()
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        client.stop_channels()
        process.kill()
        process.communicate()
        where.runtime.unlink()
    assert "gpushare: this kernel shares nothing: " in said.splitlines()[0]


def test_the_launched_argv_is_of_this_interpreter(tmp_path):
    """Editors search no PATH for us."""
    kernelspecs.install(tmp_path)
    spec = json.loads((tmp_path / "gpushare" / "kernel.json").read_text())
    assert spec["argv"][0] == sys.executable
