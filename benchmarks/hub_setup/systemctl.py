#!/usr/bin/python3
"""As much of systemctl as the admin guide uses, for a machine without systemd: daemon-reload, enable, start, stop, restart.

It reads the units that the guide and `install` write, makes their folders, and starts what they start: with NOTIFY_SOCKET where they
say Type=notify, and then it waits, as systemd does.
"""

from __future__ import annotations

import configparser
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

UNITS, STATE = Path("/etc/systemd/system"), Path("/run/systemctl")
FOLDERS = {"RuntimeDirectory": "/run", "StateDirectory": "/var/lib", "LogsDirectory": "/var/log"}
PATIENCE = 90.0


def main(words: list[str]) -> int:
    """Do what was asked of each unit."""
    verb, *rest = words
    names = [word for word in rest if not word.startswith("-")]
    if verb == "daemon-reload":
        return 0
    for name in names:
        path = UNITS / name
        if not path.is_file():
            sys.stderr.write(f"Unit {name} could not be found.\n")
            return 5
        if verb in {"stop", "restart"} or (verb == "disable" and "--now" in rest):
            stop(name)
        if verb in {"start", "restart"} or (verb == "enable" and "--now" in rest):
            start(name, read(path))
    return 0


def read(path: Path) -> configparser.SectionProxy:
    """Return a unit's [Service]."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser["Service"]


def start(name: str, unit: configparser.SectionProxy) -> None:
    """Start it in the background; wait until it is ready where it says so."""
    STATE.mkdir(exist_ok=True)
    for kind, above in FOLDERS.items():
        if kind in unit:
            folder = Path(above) / unit[kind]
            folder.mkdir(exist_ok=True)
            folder.chmod(int(unit.get(f"{kind}Mode", "0755"), 8))
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    address = STATE / f"{name}.notify"
    address.unlink(missing_ok=True)
    heard.bind(str(address))
    heard.settimeout(PATIENCE)
    variable, _, value = unit.get("Environment", "LANG=C.UTF-8").partition("=")
    words = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(unit["ExecStart"])]
    with (STATE / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=unit.get("WorkingDirectory", "/"),
            start_new_session=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", variable: value, "NOTIFY_SOCKET": str(address)},
        )  # fmt: skip
    (STATE / name).write_text(str(process.pid))
    while unit.get("Type") == "notify" and b"READY=1" not in heard.recv(4096):
        pass


def stop(name: str) -> None:
    """Have it end, as KillMode=process does."""
    note = STATE / name
    if not note.exists():
        return
    pid = int(note.read_text())
    note.unlink()
    try:
        os.kill(pid, signal.SIGTERM)
        for _ in range(200):
            # Its parent is whoever nobody reaps for: ended is ended.
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
            time.sleep(0.1)
    except (ProcessLookupError, FileNotFoundError):
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
