"""The systemd unit of the system broker. docs/admin/one-host.md says why each line is there."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

NAME = "gpushare.service"
PLACE = Path("/etc/systemd/system") / NAME
_SERVICE = "--service"

_UNIT = """\
# Written by: jupyter gpushare install --hub. Taken back by: jupyter gpushare uninstall.
# Why each line is there: docs/admin/one-host.md
[Unit]
Description=gpushare broker: shares this host's GPU between notebooks
Wants=nss-user-lookup.target
After=nvidia-persistenced.service nss-user-lookup.target
Before=jupyterhub.service
StartLimitIntervalSec=60
StartLimitBurst=6

[Service]
Type=notify
NotifyAccess=main
ExecStart={start}
ExecReload=/bin/kill -HUP $MAINPID
ExecStopPost={undo}
Restart=on-failure
RestartSec=100ms
TimeoutStartSec=60
TimeoutStopSec=20
KillMode=process
OOMPolicy=continue
OOMScoreAdjust=-500
RuntimeDirectory=gpushare
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=yes
StateDirectory=gpushare
StateDirectoryMode=0750
LogsDirectory=gpushare
LogsDirectoryMode=0750
LimitNOFILE=524288
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""


def unit(python: str, arguments: Sequence[str]) -> str:
    """Return the unit of a broker with these arguments, run by this interpreter."""
    start = [python, "-P", "-m", "gpushare_kernel.broker", _SERVICE, *arguments]
    undo = [python, "-P", "-m", "gpushare_kernel.broker.service"]
    return _UNIT.format(start=_line(start), undo=_line(undo))


def arguments_of(text: str) -> list[str]:
    """Return the arguments of the broker that a unit starts; none where it is no such unit."""
    for line in text.splitlines():
        name, _, command = line.partition("=")
        if name == "ExecStart":
            try:
                words = shlex.split(command.replace("$$", "$").replace("%%", "%"))
            except ValueError:
                return []
            return words[words.index(_SERVICE) + 1 :] if _SERVICE in words else []
    return []


def _line(words: Sequence[str]) -> str:
    """Return a command as systemd reads it: quoted, and without its specifiers and variables."""
    return " ".join(shlex.quote(word).replace("%", "%%").replace("$", "$$") for word in words)
