"""Two users of this machine for a while, and a Python environment that they can read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.common import progress
from benchmarks.drivers import DriverProcess

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = Path("/var/tmp")
_PYTHON = "/usr/bin/python3"
_NEEDED = ("common.py", "kernels.py", "workload.py", "user_shares/driver.py")


def installed() -> Path:
    """Return the Python of an environment with our wheel in it that everybody can read; made once for each wheel."""
    with tempfile.TemporaryDirectory() as folder:
        build = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "-w",
            folder,
            str(ROOT),
        ]
        subprocess.run(build, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        name = hashlib.sha256(wheel.read_bytes()).hexdigest()[:16]
        place = ENVIRONMENTS / f"gpushare-bench-{name}"
        python = place / "bin" / "python"
        if (place / "complete").exists():
            return python
        for former in ENVIRONMENTS.glob("gpushare-bench-*"):
            shutil.rmtree(former, ignore_errors=True)
        progress(f"making an environment that other users can read: {place}")
        subprocess.run([_PYTHON, "-m", "venv", str(place)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(wheel)], check=True)
        place.chmod(0o755)
        (place / "complete").touch()
    return python


@contextlib.contextmanager
def users(number: int) -> Iterator[list[str]]:
    """Have `number` users of the system while the block runs."""
    names = [f"gpushare-bench-{n + 1}" for n in range(number)]
    with contextlib.ExitStack() as ends:
        for name in names:
            try:
                pwd.getpwnam(name)
            except KeyError:
                create = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin"]
                subprocess.run([*create, name], check=True)
            ends.callback(subprocess.run, ["userdel", name], check=False)
        yield names


class Driver(DriverProcess):
    """One user's driver process, and the kernels it holds."""

    def __init__(self, user: str, python: Path, folder: Path, homes: Path) -> None:
        self.home = homes / user
        self.home.mkdir(mode=0o700)
        account = pwd.getpwnam(user)
        os.chown(self.home, account.pw_uid, account.pw_gid)
        variables = {
            "PATH": f"{python.parent}:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "GPUSHARE_RUNTIME_DIR": os.environ["GPUSHARE_RUNTIME_DIR"],
        }
        process = subprocess.Popen(
            [
                str(shutil.which("runuser")),
                "-u",
                user,
                "--",
                str(python),
                str(folder / "benchmarks/user_shares/driver.py"),
                str(self.home),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
            cwd="/",
        )
        super().__init__(process, account.pw_uid)

    def start(self, provisioner: str, number: int) -> list[RemoteKernel]:
        """Start kernels; they are workers of `window`, together."""
        self.order(start=[provisioner, number])
        batch: list[str] = []
        return [RemoteKernel(self, pid, batch, number) for pid in self.started()]


class RemoteKernel:
    """A kernel of a driver. All of a driver's kernels get their cells in one order, and are waited for together."""

    def __init__(self, driver: Driver, pid: int, batch: list[str], number: int) -> None:
        self.pid = pid
        self._driver, self._batch, self._number = driver, batch, number

    def begin(self, code: str, value: str = "None") -> None:  # noqa: ARG002  nothing comes back
        """Send a cell, with the last of its driver's kernels."""
        self._batch.append(code)
        if len(self._batch) == self._number:
            self._driver.order(begin=self._batch)
            self._driver.answer()

    def finish(self, timeout: float | None = None) -> None:
        """Wait for all of the driver's kernels, with the first of them."""
        if self._batch:
            self._batch.clear()
            self._driver.order(finish=timeout)
            self._driver.answer()


def laid_out(folder: Path) -> None:
    """Copy what drivers run to where every user can read it."""
    for name in _NEEDED:
        target = folder / "benchmarks" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "benchmarks" / name, target)


def may_run() -> Sequence[str]:
    """Return what is missing here for real users."""
    tools = [tool for tool in ("useradd", "userdel", "runuser") if shutil.which(tool) is None]
    return [*(["root"] if os.geteuid() else []), *tools]
