"""A Python environment that every user of the machine can read, with a JupyterHub and our wheel in it; and people for a while."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = Path("/var/tmp")
PYTHON = "/usr/bin/python3"
NEEDED = ("jupyterhub>=5", "jupyter_server>=2.14", "configurable-http-proxy>=0.4", "jupyterhub-idle-culler>=1.4")  # fmt: skip
_PATIENCE = 900.0


def missing() -> Sequence[str]:
    """Return what is missing here for a hub with real users."""
    tools = [tool for tool in ("useradd", "userdel", "runuser") if shutil.which(tool) is None]
    python = subprocess.run(
        [PYTHON, "-c", "import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 11))"],
        check=False,
        capture_output=True,
    ).returncode if Path(PYTHON).exists() else 1  # fmt: skip
    return [
        *(["root"] if os.geteuid() else []),
        *tools,
        *([f"{PYTHON} 3.11 or newer with venv"] if python else []),
    ]


def wheel(folder: Path) -> Path:
    """Build our wheel into `folder` and return it."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (made,) = folder.glob("gpushare_kernel-*.whl")
    return made


def installed() -> Path:
    """Return the folder of such an environment: one for this checkout, made anew where what it depends on changes, with our wheel as it is now."""
    mine = hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]
    with (
        (ENVIRONMENTS / f"gpushare-hub-{mine}.lock").open("w") as lock,
        tempfile.TemporaryDirectory() as folder,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        ours = wheel(Path(folder))
        place = ENVIRONMENTS / f"gpushare-hub-{mine}-{_dependencies()}"
        holds = place / "holds"
        digest = hashlib.sha256(ours.read_bytes()).hexdigest()
        if not holds.exists():
            for former in ENVIRONMENTS.glob(f"gpushare-hub-{mine}-*/"):
                shutil.rmtree(former, ignore_errors=True)
            make(place, [str(ours), *NEEDED])
        elif holds.read_text() != digest:
            install(place, ["--no-deps", "--force-reinstall", str(ours)])
        holds.write_text(digest)
        return place


def _dependencies() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return hashlib.sha256(repr((project["dependencies"], NEEDED)).encode()).hexdigest()[:8]


def make(place: Path, packages: Sequence[str]) -> None:
    """Make an environment at `place` that everybody can read, with `packages`."""
    subprocess.run([PYTHON, "-m", "venv", str(place)], check=True, timeout=_PATIENCE)
    install(place, packages)
    place.chmod(0o755)


def install(place: Path, packages: Sequence[str]) -> None:
    """Install `packages` (and pip's options) there."""
    pip = [str(place / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--quiet", *packages], check=False, capture_output=True, text=True, timeout=_PATIENCE)  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)


@contextlib.contextmanager
def people(*names: str) -> Iterator[None]:
    """Have accounts of these names, with homes, while the block runs."""
    with contextlib.ExitStack() as ends:
        for name in names:
            try:
                pwd.getpwnam(name)
            except KeyError:
                subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", name], check=True)  # fmt: skip
            ends.callback(subprocess.run, ["userdel", "--force", "--remove", name], check=False, capture_output=True)  # fmt: skip
        yield
