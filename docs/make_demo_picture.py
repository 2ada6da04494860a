"""Make docs/demo.svg from a real run of the demo: `python docs/make_demo_picture.py` (Linux, an installed gpushare).

The picture shows a moment at which a notebook waited for memory, and what the demo printed at its end.
"""

from __future__ import annotations

import io
import os
import pty
import re
import struct
import sys
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

from rich.console import Console
from rich.text import Text

COLUMNS, LINES = 100, 50
_MOVES = re.compile(r"\x1b\[[0-9;?]*[ABCDGHJKhl]|\r")
_PANEL = re.compile(r"╭─ gpushare demo.*?╯", re.DOTALL)


def record(command: list[str]) -> str:
    """Return what `command` writes to a terminal of our size."""
    written = bytearray()
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execvp(command[0], command)
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    try:
        while data := os.read(terminal, 65536):
            written += data
    except OSError:
        pass  # the terminal's other end is closed: the command is over
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        sys.exit(written.decode(errors="replace"))
    return written.decode(errors="replace")


def picture(recorded: str) -> str:
    """Return the SVG of a recorded run."""
    plain = _MOVES.sub("", recorded)
    panels = [*_PANEL.finditer(plain)]
    waiting = [match for match in panels if "waits" in match[0] and "needs" in match[0]]
    out = Console(record=True, width=COLUMNS, file=io.StringIO())
    out.print(Text("$ make demo", "bold"))
    out.print(Text.from_ansi(waiting[len(waiting) // 2][0].rstrip()))
    out.print(Text.from_ansi(plain[panels[-1].end() :].rstrip()))
    return out.export_svg(title="make demo")


if __name__ == "__main__":
    demo = Path(sys.executable).with_name("jupyter")
    svg = picture(record([str(demo), "gpushare", "demo"]))
    Path(__file__).with_name("demo.svg").write_text(svg, encoding="utf-8")
