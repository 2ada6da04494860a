"""Runs the guide's blocks, word for word, on the machine it finds itself on, and says of each how long it took: lines of JSON.

The system's Python runs this: nothing of ours is installed when it begins.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

GUIDE, SECTION = "docs/admin/jupyterhub.md", "## A plain JupyterHub"
BACK, BACK_SECTION = "docs/admin/one-host.md", "## And back"
NOTHING_LEFT = """
test ! -e /etc/gpushare
test ! -e /etc/systemd/system/gpushare.service
! grep -r gpushare /etc/jupyterhub
/opt/jupyterhub/bin/pip uninstall --quiet --yes gpushare-kernel
/opt/jupyterhub/bin/python -c '
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel()
reply = client.execute_interactive("pass", timeout=60)
client.stop_channels()
manager.shutdown_kernel(now=True)
print(reply["content"]["status"])'
"""
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, section: str = SECTION) -> list[str]:
    """Return what a section of the guide has people type, block by block."""
    _, _, rest = text.partition(f"\n{section}\n")
    return _BLOCK.findall(re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0])


def main() -> int:
    """Run them in the clone; then see whether two users share."""
    clone = Path(sys.argv[1])
    bin_ = Path("/usr/local/sbin/systemctl")
    bin_.write_bytes((clone / "benchmarks/hub_setup/systemctl.py").read_bytes())
    bin_.chmod(0o755)
    shell = ("/bin/bash", "-euo", "pipefail", "-c")
    steps = [(*shell, one) for one in blocks((clone / GUIDE).read_text())]
    steps.append(("/opt/jupyterhub/bin/python", str(clone / "benchmarks/hub_setup/share.py")))
    steps += [(*shell, one) for one in blocks((clone / BACK).read_text(), BACK_SECTION)]
    steps.append((*shell, NOTHING_LEFT))
    for words in steps:
        began = time.monotonic()
        done = subprocess.run(
            words,
            cwd=clone,
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
                "LANG": "C.UTF-8",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        said = {
            "step": words[-1],
            "seconds": time.monotonic() - began,
            "status": done.returncode,
            "output": (done.stdout + done.stderr)[-8000:],
        }
        print(json.dumps(said), flush=True)
        if done.returncode:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
