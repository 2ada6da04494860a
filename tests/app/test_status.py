"""How a snapshot looks: devices, who is on them, who takes no part, who waits."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gpushare_kernel.app.status import show
from gpushare_kernel.core.values import GiB, MiB
from gpushare_kernel.wire.snapshot import (
    BrokerView,
    DeviceView,
    LaneView,
    QueueView,
    SessionView,
    Snapshot,
)

H100 = DeviceView(
    "GPU-5f3c",
    "cuda",
    "NVIDIA H100 80GB HBM3",
    78 * GiB,
    1300 * MiB,
    20 * GiB,
    (LaneView(1, 6 * GiB, "j1", ("j1", "j2")),),
    free=52 * GiB - 1300 * MiB,
    total=80 * GiB,
    desktop=410 * MiB,
    foreign=5 * GiB,
)
SECOND = DeviceView("GPU-9a01", "cuda", "NVIDIA H100 80GB HBM3", 79 * GiB, 0, 0, (), free=79 * GiB)


def session(name: str | None, device: str = "GPU-5f3c", **more: object) -> SessionView:
    told: dict[str, object] = {"state": "busy", "mode": "co-run", "p": 10 * GiB, "pid": 3_141_592}
    return SessionView(  # type: ignore[arg-type]
        id=f"s{name}", user="ann.lee", name=name, device_time=1234.5, device=device, turns=4821, **(told | more)
    )  # fmt: skip


SEEN = Snapshot(
    1,
    BrokerView(811, "0.1.0", 3900.0, system=True),
    (H100, SECOND),
    (
        session("a rather long name of a notebook on diffusion models.ipynb", jobs=("j1",)),
        session("python train.py (adopted)", mode="exclusive"),
        session(None, p=None, pid=None, jobs=("j2",)),
        session("hw2.ipynb", "GPU-9a01", state="idle", mode=None),
    ),
    (QueueView("j2", "sNone", "memory", 2, None, 6 * GiB, 75.0),),
)


def shown(snapshot: Snapshot, width: int = 80) -> list[str]:
    out = Console(file=io.StringIO(), width=width, highlight=False)
    show(snapshot, out)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 100])
def test_a_gpu_host(width):
    """Each device with its number, its memory and those on it; desktop and others who take no part have rows of their own."""
    lines = shown(SEEN, width)
    assert max(map(len, lines)) <= width
    assert lines[0] == "gpushare 0.1.0, system broker 811, up 1 h 5 min"
    first = lines.index("0  NVIDIA H100 80GB HBM3: shares 78.0 GiB of 80.0 GiB, 50.7 GiB free")
    second = lines.index("1  NVIDIA H100 80GB HBM3: shares 79.0 GiB, 79.0 GiB free")
    assert lines[first + 1] == "kept 20.0 GiB, contexts 1.3 GiB, lanes 6.0 GiB, policy fair"
    assert lines[first + 2].split() == [
        *("notebook", "user", "state", "mode", "keeps", "GPU", "time", "turns", "pid")
    ]
    on_first = "\n".join(lines[first:second])
    assert "hw2.ipynb" not in on_first
    assert [line.split()[0] for line in lines[second + 2 : second + 4]] == ["notebook", "hw2.ipynb"]
    rows = {line.split()[0]: line.split() for line in lines[first:second] if line}
    assert rows["desktop"] == ["desktop", "untouched", "-", "410", "MiB"]
    assert rows["(not"] == ["(not", "shared)", "no", "turns", "-", "5.0", "GiB"]
    assert "3141592" in on_first
    assert "1234.5 s" in on_first
    assert any(line.startswith("(of ann.lee)") and "memory" in line for line in lines[second:])


def test_one_device_has_no_number():
    """And a host's time is device time."""
    host = DeviceView("host", "host", "AMD EPYC (CPU, no GPU)", 8 * GiB, 0, 0, (), free=8 * GiB)
    lines = shown(Snapshot(1, None, (host,), (session("hw.ipynb", "host"),)))
    assert "AMD EPYC (CPU, no GPU): shares 8.0 GiB, 8.0 GiB free" in lines
    assert any("device time" in line for line in lines)
    assert not any("desktop" in line or "not shared" in line for line in lines)
    assert "No kernels." in shown(Snapshot(1, None, (host,)))


def test_what_a_device_cannot_do_is_said():
    """Why nobody can be paused; and, before that, why it does not answer."""
    limits = DeviceView("g", "cuda", "GPU", GiB, 0, 0, (), limits="MPS runs on this machine.")
    assert "MPS runs on this machine." in shown(Snapshot(1, None, (limits,)))
    lost = DeviceView("g", "cuda", "GPU", GiB, 0, 0, (), limits="MPS.", lost="restart the machine.")
    lines = shown(Snapshot(1, None, (lost,)))
    assert "It does not answer: restart the machine." in lines
    assert "MPS." not in lines


def test_a_device_without_kernels_is_one_line():
    """Nobody holds anything of it: there are no numbers to show."""
    out = Console(file=io.StringIO(), width=120)
    show(Snapshot(1, None, devices=(SECOND,)), out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "79.0 GiB free" in text
    assert "No kernels." in text
    assert "kept" not in text
    assert "policy" not in text
