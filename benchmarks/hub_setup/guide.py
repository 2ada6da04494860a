"""A machine that nothing is left on: this one, with what is written kept in memory and thrown away, in namespaces of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CLONE = "/root/gpushare"
_PATIENCE = 1200.0
_MACHINE = """\
set -eu
scene=$1
mount -t tmpfs -o size=8g,mode=755 tmpfs "$scene"
mkdir "$scene/up" "$scene/work" "$scene/root"
mount -t overlay overlay -o lowerdir=/,upperdir="$scene/up",workdir="$scene/work" "$scene/root"
mount -t proc proc "$scene/root/proc"
mount --rbind /dev "$scene/root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$scene/root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$scene/root/run"
mkdir "$scene/root/run/lock"
rm -rf "$scene/root/etc/gpushare" "$scene/root/etc/jupyterhub" "$scene/root/opt/jupyterhub" "$scene/root/var/lib/gpushare"
mkdir -p "$scene/root$2"
(cd "$3" && tar --null -T "$4" -cf -) | tar -C "$scene/root$2" -xf -
exec chroot "$scene/root" /usr/bin/python3 "$2/benchmarks/hub_setup/inside.py" "$2"
"""


def missing() -> Sequence[str]:
    """Return what is missing here to run the guide."""
    tools = [tool for tool in ("unshare", "chroot", "mount", "tar", "git", "useradd") if shutil.which(tool) is None]  # fmt: skip
    if os.geteuid() != 0:
        return ["root", *tools]
    return tools or ([] if _overlays() else ["overlay mounts"])


def run() -> list[dict[str, Any]]:
    """Run the guide on a clean machine; return its steps with their seconds, status and output, in order, up to one that failed."""
    with tempfile.TemporaryDirectory(prefix="gpushare-guide-") as folder:
        listed = subprocess.run(
            [
                "git",
                "-C",
                str(ROOT),
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ],
            check=True,
            capture_output=True,
        ).stdout
        files = Path(folder, "files")
        files.write_bytes(b"\0".join(name for name in listed.split(b"\0") if name and (ROOT / os.fsdecode(name)).exists()))  # fmt: skip
        scene = Path(folder, "scene")
        scene.mkdir()
        done = subprocess.run(
            [*_namespaces(), "/bin/bash", "-c", _MACHINE, "guide", str(scene), CLONE, str(ROOT), str(files)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=_PATIENCE,
        )  # fmt: skip
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    if not steps:
        problem = f"the machine for the guide could not be made (status {done.returncode})"
        raise RuntimeError(problem)
    return steps


def _namespaces() -> list[str]:
    """Mounts and processes of its own: whatever it starts ends with it."""
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child"]


def _overlays() -> bool:
    with tempfile.TemporaryDirectory(prefix="gpushare-guide-") as folder:
        script = 'mount -t tmpfs tmpfs "$1" && mkdir "$1/u" "$1/w" "$1/r" && mount -t overlay overlay -o lowerdir=/,upperdir="$1/u",workdir="$1/w" "$1/r"'
        done = subprocess.run([*_namespaces(), "/bin/sh", "-c", script, "probe", folder], check=False, capture_output=True)  # fmt: skip
    return done.returncode == 0


if __name__ == "__main__":
    for one in run():
        sys.stdout.write(f"{one['seconds']:6.1f} s  {one['status']}  {one['step'].splitlines()[0]}\n{one['output']}\n")  # fmt: skip
