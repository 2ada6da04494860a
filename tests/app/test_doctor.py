"""doctor: the verdict, its reasons, and how they look."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from gpushare_kernel.app.checks import Check, Finding, examine, fitting
from gpushare_kernel.app.doctor import as_json, failures, show, verdict_line
from gpushare_kernel.core.values import GiB, MiB
from gpushare_kernel.devices.verdict import Probe, Verdict
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire.snapshot import DeviceView

WELL = Check(Finding.WELL, "provisioner", "It is registered.")
FAILED = Check(Finding.FAILED, "kernels", "Nothing makes kernels share here.")
OLD = Probe(Verdict.COOPERATIVE, "The driver is too old.", "sudo apt install newer", {"lock": "no"})


def test_a_damaged_ledger_that_was_kept_aside_is_named(where):
    """By its name, once, and not its log; where there is none nothing is said."""
    assert not [check for check in examine(where, Probe(Verdict.CPU)) if check.name == "ledger"]
    where.ledger.parent.mkdir(parents=True, exist_ok=True)
    for name in ("corrupt-1", "corrupt-2", "corrupt-1-wal"):
        where.ledger.with_name(f"{where.ledger.name}.{name}").touch()
    (check,) = [one for one in examine(where, Probe(Verdict.CPU)) if one.name == "ledger"]
    assert check.finding is Finding.NOTE
    assert "ledger.sqlite.corrupt-1, ledger.sqlite.corrupt-2 in" in check.text


HERE = Places(Path("/nowhere"), system=False)


def gpu(**more) -> DeviceView:
    """A GPU of 16 GiB."""
    return DeviceView("G", "cuda", "NVIDIA T4", 16 * GiB, 0, 0, (), **more)


def test_where_idle_notebooks_keep_their_memory_it_says_how_many_fit():
    """By what a context takes, and how that is changed; a GPU that cannot be paused parks nobody, so nothing changes it."""
    (check,) = fitting(gpu(context=614 * MiB, can=("pause",)), HERE)
    assert check.finding is Finding.NOTE
    assert check.text == (
        "Idle notebooks keep their memory of NVIDIA T4: each takes 614 MiB of 16.0 GiB before it holds anything, so at most "
        "26 fit, and the next one waits until one of them ends or restarts. To have idle ones set aside for who waits: "
        "jupyter gpushare stop; jupyter gpushare start --parking cold."
    )
    (check,) = fitting(gpu(context=614 * MiB, can=()), HERE)
    assert check.text.endswith("until one of them ends or restarts.")


def test_where_nobody_keeps_a_place_nothing_is_said_of_room():
    """Idle ones are parked; a CPU has no contexts; an older broker does not say."""
    for device in (gpu(context=MiB, can=("pause", "park")), gpu(can=("pause",)), gpu(context=MiB)):
        assert not [*fitting(device, HERE)]


# --- the report ------------------------------------------------------------------------------------------


def test_the_first_line_is_the_verdict():
    """With what people lose and one command; where something else fails, that."""
    assert verdict_line(OLD, [WELL]) == (
        "COOPERATIVE ONLY: The driver is too old. Notebooks take turns where they meet steps; code that meets none "
        "is never paused, and may take more than its share. Run: sudo apt install newer"
    )
    assert verdict_line(Probe(Verdict.FULL), [WELL, FAILED]) == (
        "FULL, but not all is well: Nothing makes kernels share here."
    )


def test_a_gpu_that_is_only_watched_fails_and_one_that_cooperates_does_not(where):
    """The exit status follows; the GPU's own reason does not take the verdict's place."""
    watched = Probe(Verdict.WATCH, "MIG is on.", "sudo nvidia-smi -mig 0", {"MIG": "on"})
    for gpu, finding in ((watched, Finding.FAILED), (OLD, Finding.NOTE)):
        checks = [check for check in examine(where, gpu) if check.name == "GPU"]
        assert [check.finding for check in checks] == [finding]
        assert f"Run: {gpu.command}" in checks[0].text
        assert verdict_line(gpu, checks) == gpu.sentence


def test_facts_that_are_not_as_they_should_be_stand_out(where):
    """In a fixed order, before the broker."""
    facts = {"MIG": "off", "pending upgrade": "restart", "lock": "works", "driver": "1", "checkpoint": "no"}  # fmt: skip
    checks = list(examine(where, Probe(Verdict.FULL, facts=facts)))[:5]
    assert [(check.name, check.finding.value[0]) for check in checks] == [
        ("driver", "ok"),
        ("lock", "ok"),
        ("checkpoint", "note"),
        ("MIG", "ok"),
        ("pending upgrade", "note"),
    ]


@pytest.mark.parametrize("width", [80, 100])
def test_a_terminal_gets_columns(width):
    """Long texts wrap beneath themselves, nothing is cut, and no line is longer than the terminal."""
    long = Check(
        Finding.NOTE, "pending upgrade", "the driver that runs is " + "older " * 20 + "end"
    )
    out = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    show(Probe(Verdict.FULL), [WELL, long], out)
    lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert lines[1].rstrip() == "ok    provisioner      It is registered."
    assert lines[2].startswith("note  pending upgrade  the driver that runs")
    assert lines[3].startswith(" " * 23 + "older")
    assert lines[-1].rstrip().endswith("end")


def test_a_pipe_gets_a_line_each():
    """So that grep finds what it looks for."""
    out = Console(file=io.StringIO(), width=40)
    show(Probe(Verdict.FULL), [WELL, Check(Finding.NOTE, "log", "x" * 90)], out)
    assert out.file.getvalue().splitlines()[1:] == [  # type: ignore[attr-defined]
        "ok    provisioner  It is registered.",
        "note  log          " + "x" * 90,
    ]


def test_json_has_the_same():
    """Verdict, one command, and every check."""
    found = json.loads(as_json(OLD, [WELL, FAILED]))
    assert found["verdict"] == "COOPERATIVE ONLY"
    assert (found["why"], found["command"], found["well"]) == (OLD.why, OLD.command, False)
    assert found["checks"][1] == {
        "finding": "fail",
        "name": "kernels",
        "text": "Nothing makes kernels share here.",
    }
    assert failures([WELL]) == []


def test_doctor_json(gpushare, broker):
    """The command prints it, and its exit status is that of the report."""
    done = gpushare("doctor", "--json", JUPYTER_DEFAULT_PROVISIONER_NAME="gpushare")
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["well"] else 1)
    assert {"broker", "device", "provisioner", "kernels"} <= {
        one["name"] for one in found["checks"]
    }


def test_where_no_broker_could_be_started_doctor_fails(gpushare, where):
    """As `start` would, and in its words; nothing is made."""
    done = gpushare("doctor", GPUSHARE_RUNTIME_DIR="/proc/nowhere")
    why = "the broker's folder /proc/nowhere cannot be made: no folder can be made in /proc."
    assert done.returncode == 1
    assert "but not all is well: No broker runs at /proc/nowhere/broker.sock" in done.stdout
    assert why in done.stdout.splitlines()[0]
    assert why in gpushare("start", GPUSHARE_RUNTIME_DIR="/proc/nowhere").stderr
    assert "the first kernel starts one" in gpushare("doctor").stdout
    assert not where.runtime.exists()
