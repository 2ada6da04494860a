"""`jupyter gpushare top`: the scene in a terminal, as it changes, until somebody ends it."""

from __future__ import annotations

import io
import os
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pexpect
import pytest
from gpushare_widgets.scene import scene
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.app.top import AWAY, watch
from gpushare_kernel.app.top_view import Window, view
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.errors import BrokerUnavailable
from tests.widgets.snapshots import EMPTY, FULL, IDLE, NOW, crowd, hostile

PATIENCE = 60
ALTERNATE, NORMAL = "\x1b[?1049h", "\x1b[?1049l"


def terminal(width: int = 100, height: int = 60) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False)  # fmt: skip


def lines(snapshot, width: int = 100, height: int = 200, top: int = 0) -> list[str]:
    out = terminal(width, height)
    with out.capture() as caught:
        out.print(Window(view(scene(snapshot, now=NOW), width), top, Text("q ends it.")), end="")
    return [line.rstrip() for line in caught.get().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("snapshot", [FULL, hostile(), crowd(120)], ids=["full", "hostile", "crowd"])  # fmt: skip
def test_it_fits_its_terminal(snapshot, width):
    """Names give way; signs, sizes and sentences do not."""
    shown = lines(snapshot, width, height=40)
    assert len(shown) == 40
    assert max(map(cell_len, shown)) <= width
    assert shown[-1].startswith("q ends it.")
    assert "more lines below" in shown[-1]


def test_the_words_are_those_of_the_live_view():
    """The device, the memory by sign, who ran when, shares, and the sentence of the cell that waits."""
    shown = lines(FULL, 120)
    text = " ".join(" ".join(shown).split())
    for told in (
        "NVIDIA H100 80GB HBM3 (GPU-5f3c): shares 78.0 GiB of its 80.0 GiB of GPU memory, 24.0 GiB free, policy fair",
        "B train.ipynb kept 14.0 GiB", "E train.ipynb for what runs 12.0 GiB 9.0 GiB", "14.0 s 3.0 s",
        "The last 30 s", "Shares in the last 30 s", "Interrupt gives up your place.", "hw2.ipynb you idle 4.0 GiB",
    ):  # fmt: skip
        assert told in text, told
    bar = next(line for line in shown if line.startswith("["))
    assert len(bar) == 120
    assert bar.count("B") > 3 * bar.count("C") > 0
    assert "A  contexts" in "\n".join(lines(FULL, 60))


def test_what_administrators_say_comes_first():
    """A word to everybody, and a maintenance; at the end what one's group allows."""
    shown = [line for line in lines(FULL, 140) if line]
    assert shown[0] == "From your administrator: GPU 1 is away on Monday, 9 to 11"
    assert "(new driver, back at 16:00): nothing new begins." in shown[1]
    assert shown[-2].startswith("ann (students): 40.0 GiB of each device at most")


def test_little_is_short():
    """An idle host is a line, above that of the keys; no device is said."""
    device, keys = [line for line in lines(IDLE, 120) if line]
    assert device.startswith("AMD EPYC (CPU, no GPU) (host)")
    assert keys == "q ends it."
    assert lines(EMPTY)[0] == "Nothing is shared here."


def test_one_can_move_in_what_is_longer():
    """Not beyond its ends."""
    whole = lines(FULL, 100)
    assert lines(FULL, 100, height=10, top=3)[:9] == whole[3:12]
    end = lines(FULL, 100, height=10, top=10_000)
    assert [line for line in end[:-1] if line][-1] == [line for line in whole[:-1] if line][-1]
    assert "below" not in end[-1]
    assert lines(FULL, 100, height=10, top=-5)[0] == whole[0]


class Script:
    """Keys in order; each goes with a look at the screen as it is then."""

    def __init__(self, out: Console, *keys: str | None) -> None:
        self._out = out
        self._keys = list(keys)
        self.screens: list[str] = []

    def pressed(self, seconds: float) -> str | None:
        assert seconds >= 0
        self.screens.append(self._out.file.getvalue())  # type: ignore[attr-defined]
        self._out.file.truncate(0)
        return self._keys.pop(0)


def test_it_looks_again_until_q():
    """What comes is shown; where the broker is away what was stays, with a word; q ends it and the screen is as before."""
    out = terminal()
    told = iter([FULL, None, IDLE])

    def look():
        snapshot = next(told)
        if snapshot is None:
            msg = "no broker answers"
            raise BrokerUnavailable(msg)
        return scene(snapshot, now=NOW)

    keys = Script(out, None, "", "down", None, None, "quit")
    watch(look, keys, out, 1.0, scene(IDLE, now=NOW))
    first, full, same, moved, away, back = keys.screens
    assert "AMD EPYC" in first
    assert ALTERNATE in first
    assert "NVIDIA H100" in full
    assert "NVIDIA H100" in same
    assert "more lines below" not in moved
    assert AWAY[:40] in away
    assert "train.ipynb" in away
    assert "AMD EPYC" in back
    assert AWAY[:40] not in back
    assert NORMAL in out.file.getvalue()  # type: ignore[attr-defined]


@contextmanager
def top(*words: str) -> Iterator[pexpect.spawn]:
    """`top` in a terminal of its own."""
    screen = pexpect.spawn(
        sys.executable,
        ["-m", "gpushare_kernel.app.main", "top", *words],
        env={**os.environ, "TERM": "xterm-256color"},
        dimensions=(40, 100),
        timeout=PATIENCE,
    )
    try:
        yield screen
    finally:
        screen.close(force=True)


@pytest.mark.parametrize("end", ["q", "\x03", signal.SIGTERM])
def test_a_real_terminal_is_left_as_it_was(broker, end):
    """By q, Ctrl+C or a signal: the screen and the settings are those from before, and it ended well."""
    with top("--interval=0.2") as screen:
        before = termios.tcgetattr(screen.child_fd)
        screen.expect_exact(ALTERNATE)
        screen.expect_exact("1.0 GiB of memory")
        assert termios.tcgetattr(screen.child_fd) != before
        screen.expect_exact("1.0 GiB of memory")  # again, unasked
        if isinstance(end, signal.Signals):
            screen.kill(end)
        else:
            screen.send(end)
        screen.expect_exact(NORMAL)
        screen.expect_exact(pexpect.EOF)
        assert b"Traceback" not in screen.before
        assert termios.tcgetattr(screen.child_fd) == before
        screen.close()
        assert screen.exitstatus == 0


def test_it_outlives_the_broker(broker):
    """It says that it is away, and shows the next one."""
    with top("--interval=0.2") as screen:
        screen.expect_exact("1.0 GiB of memory")
        stop_broker(broker, PATIENCE)
        screen.expect_exact("is away")
        ensure_broker(broker, PATIENCE, ["--capacity", "2GiB"])
        screen.expect_exact("2.0 GiB of memory")
        screen.send("q")
        screen.expect_exact(pexpect.EOF)
        screen.close()
        assert screen.exitstatus == 0


def test_where_the_output_is_no_terminal_it_is_shown_once(gpushare, broker):
    """As text, without signs for a terminal."""
    done = gpushare("top", FORCE_COLOR="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1.0 GiB of memory" in done.stdout
    assert "As of 20" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_terminal_that_can_do_nothing_is_none(broker):
    """It is shown once there, too."""
    screen = pexpect.spawn(
        sys.executable,
        ["-m", "gpushare_kernel.app.main", "top"],
        env={**os.environ, "TERM": "dumb"},
        timeout=PATIENCE,
    )
    screen.expect_exact("As of 20")
    screen.expect_exact(pexpect.EOF)
    screen.close()
    assert screen.exitstatus == 0


def test_without_a_broker_it_starts_none(gpushare, where):
    """Exit status 3, as `status`."""
    done = gpushare("top")
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("interval", "says"),
    [
        *(
            (word, "--interval is a number of seconds from 0.1 to 3600")
            for word in ("0", "-1", "nan", "1e9")
        ),
        ("soon", "--interval takes a number, and 'soon' is none. Write for example --interval=1."),
    ],
)
def test_an_interval_that_is_none_is_refused(gpushare, broker, interval, says):
    """In one line, with what it may be."""
    done = gpushare("top", f"--interval={interval}")
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
