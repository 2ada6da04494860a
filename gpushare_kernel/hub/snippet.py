"""What a hub's configuration says so that its servers' kernels share, and how that is put in and taken out again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpushare_kernel.hub.servers import OURS, VARIABLE
from gpushare_kernel.hub.settings import TLJH

PLACE = Path("/etc/gpushare/jupyterhub.py")
"""What hubs load, apart from TLJH, which has a folder for such files."""
_BEGIN = "# >>> gpushare: jupyter gpushare uninstall takes these lines out"
_END = "# <<< gpushare"
_BLOCK = re.compile(rf"\n?{re.escape(_BEGIN)}\n.*?{re.escape(_END)}\n", re.DOTALL)

_SNIPPET = '''\
# Written by: jupyter gpushare install --hub. Taken back by: jupyter gpushare uninstall.
import os


def _gpushare_provisioner(_spawner):
    """Looked up whenever a server starts: where the package is gone, kernels start as they do without it."""
    return "{ours}" if os.path.exists({startup!r}) else "local-provisioner"


c.Spawner.environment.update({{"{variable}": _gpushare_provisioner}})
'''
_SHELLS = (
    "etc/environment",
    "etc/security/pam_env.conf",
    "etc/bash.bashrc",
    "etc/profile",
)
_FOLDERS = ("etc/profile.d", "etc/systemd/system", "etc/jupyterhub", "etc/default")
_OWN = (".bashrc", ".bash_profile", ".profile", ".zshrc", ".zprofile", ".config/fish/config.fish")
_LARGEST = 2**20


def snippet(startup: Path) -> str:
    """Return what a hub loads; `startup` is the file of ours by which it is known that the servers' environment has us."""
    return _SNIPPET.format(ours=OURS, variable=VARIABLE, startup=str(startup))


def place_in_tljh(tljh: Path = TLJH) -> Path | None:
    """Return where TLJH takes such a file; None where there is no TLJH."""
    config = tljh / "config"
    return config / "jupyterhub_config.d" / "gpushare.py" if config.is_dir() else None


def with_block(text: str, place: Path = PLACE) -> str:
    """Return a hub's configuration with what loads the snippet at its end, once."""
    before = without_block(text)
    gap = "" if not before or before.endswith("\n") else "\n"
    return f'{before}{gap}\n{_BEGIN}\nload_subconfig("{place}")\n{_END}\n'


def without_block(text: str) -> str:
    """Return it without."""
    return _BLOCK.sub("", text)


def left_over(root: Path, homes: Sequence[Path], hubs: Sequence[Path]) -> Iterator[str]:
    """Yield where something still has kernels started by us, as `FILE line N`: without the package that would stop every kernel."""
    files = [root / name for name in _SHELLS]
    for name in _FOLDERS:
        files += sorted(path for path in (root / name).rglob("*") if path.is_file())
    files += [home / name for home in homes for name in _OWN]
    files += [home / ".jupyter" / name for home in homes for name in ("jupyter_server_config.py", "jupyter_server_config.json", "jupyter_config.json")]  # fmt: skip
    for path in dict.fromkeys([*files, *hubs]):
        try:
            readable = path.is_file() and path.stat().st_size < _LARGEST
            text = path.read_text(encoding="utf-8", errors="replace") if readable else ""
        except OSError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if _sets(line):
                yield f"{path} line {number}"


def _sets(line: str) -> bool:
    if line.lstrip().startswith(("#", "//")):
        return False
    return (VARIABLE in line or "default_provisioner_name" in line) and OURS in line
