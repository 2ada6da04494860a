"""What `install --hub` and `doctor` say of the hub and the servers of this host."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from jupyter_core.paths import jupyter_config_path

from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.hub import servers, settings

_FILES = tuple(
    f"{name}.{suffix}"
    for name in ("jupyter_server_config", "jupyter_config", "jupyter_notebook_config")
    for suffix in ("py", "json")
)


def hubs_here(root: Path = Path("/")) -> list[Path]:
    """Return the configuration files of hubs: of those that run here, and where they usually are."""
    running = servers.hub_configs() if root == Path("/") else []
    usual = [path for path in settings.PLAIN if (root / path.relative_to("/")).is_file()]
    return list(dict.fromkeys([*running, *usual]))


def look(
    hubs: Sequence[Path], tljh: Path = settings.TLJH, *, here: bool = True
) -> settings.Settings:
    """Return what hubs and servers are configured to do, as far as we may read it; `here`: those that run on this host, too."""
    configs = [Path(folder) / name for folder in jupyter_config_path() for name in _FILES] if here else []  # fmt: skip
    readable = [path for path in hubs if os.access(path, os.R_OK)]
    found = settings.read(readable, tljh, [path for path in configs if os.access(path, os.R_OK)])
    found.limits += _groups() if here else []
    return found


def replaced(found: settings.Settings) -> Iterator[str]:
    """Yield why servers of a hub would not share, however often they are restarted."""
    for name, path in found.replaced:
        yield (
            f"c.{name} in {path} replaces c.Spawner.environment, by which kernels share: those of this spawner's servers do not. "
            f"Write there c.{name}.update(...) in place of c.{name} = ..., then restart the hub and the servers."
        )


def _groups() -> list[settings.Limit]:
    """The least memory that a control group leaves a server which runs here; where none runs, us."""
    host = Machine().installed()
    running = [(one.name, str(one.pid)) for one in servers.servers()] or [("this process", "self")]
    least = min((Machine(process=pid).total(), name) for name, pid in running)
    if least[0] >= host:
        return []
    return [settings.Limit(format_size(least[0]), f"the control group of {least[1]}")]
