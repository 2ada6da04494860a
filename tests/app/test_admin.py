"""Groups, maintenance, announcements and their commands: real brokers, real commands, a real file."""

from __future__ import annotations

import getpass
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.app.admin import AuditApp
from gpushare_kernel.app.checks import Finding, examine
from gpushare_kernel.broker import audit
from gpushare_kernel.client.line import Line
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.errors import BrokerUnavailable, NotYours
from gpushare_kernel.devices.verdict import Probe, Verdict
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire.snapshot import Snapshot
from tests.app.conftest import PATIENCE
from tests.app.test_run import running
from tests.procs import eventually

ME = getpass.getuser()
HOLDS = ["--", sys.executable, "-c", "print('ready', flush=True); input()"]
BURNS = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the administrator's file."""

    def write(text: str) -> Path:
        path = tmp_path / "gpushare.toml"
        path.write_text(text)
        path.chmod(0o644)
        return path

    return write


@pytest.fixture
def followed(where: Places, write: Write) -> Places:
    """A broker of 1 GiB that follows a file: I may hold 256 MiB, and have ten device minutes a day."""
    text = f'[groups.students]\nusers = ["{ME}"]\nmemory = "256MiB"\nbudget_per_day = "10min"\n'
    ensure_broker(where, PATIENCE, ["--capacity", "1GiB", "--config", str(write(text))])
    return where


def snapshot(where: Places) -> Snapshot:
    with Line(where) as line:
        return line.snapshot()


def mine(where: Places):
    return next((user for user in snapshot(where).users if user.own), None)


def waits(where: Places) -> list[str]:
    return [one.reason for one in snapshot(where).queue]


def test_a_cap_holds_a_command_up_and_says_so(gpushare, followed: Places) -> None:
    """The second holds what is left of the group's cap, not of the device; it goes on when the first has ended."""
    with running("200MiB", "--name", "first", *HOLDS) as first:
        assert first.stdout.readline() == "ready\n"
        with running("100MiB", *HOLDS) as second:
            eventually(lambda: waits(followed) == ["cap"])
            seen = gpushare("status").stdout
            assert "students): 256 MiB of each device at most" in seen
            first.communicate("\n", timeout=PATIENCE)
            assert second.stdout.readline() == "ready\n"
            _, said = second.communicate("\n", timeout=PATIENCE)
            assert "Each of the group students may hold 256 MiB of this device." in said
    refused = gpushare("run", "512MiB", "--", "true")
    assert refused.returncode == 125
    assert "each of the group students may hold 256 MiB of this device in all" in refused.stderr


def test_status_and_doctor_say_the_limits_that_hold(
    gpushare, followed: Places, write: Write
) -> None:
    """What may be set aside among them."""
    write(f'[groups.students]\nusers = ["{ME}"]\nparked_memory = "300MiB"\nkernels = 3\n')
    gpushare("reload")
    with running("1MiB", *HOLDS) as held:
        assert held.stdout.readline() == "ready\n"
        said = f"{ME} (students): 300 MiB set aside at most, 3 kernels at most."
        assert said in gpushare("status").stdout
        assert f"limits       {said}" in gpushare("doctor").stdout


def test_a_file_is_read_again_by_command_and_by_signal(
    gpushare, followed: Places, write: Write
) -> None:
    """What is wrong with it is said, in the status until it is mended, and what was read before holds."""
    write('[groups.students]\nusers = ["' + ME + '"]\nmemory = "300MiB"\n')
    with running("1MiB", *HOLDS) as held:
        assert held.stdout.readline() == "ready\n"
        done = gpushare("reload")
        assert done.stdout.endswith("gpushare.toml holds now: 1 group.\n"), done.stderr
        assert mine(followed).memory == 300 * 2**20
        path = write("[groups.students]\nmemroy = 3\n")
        failed = gpushare("reload")
        assert failed.returncode == 1
        wrong = f"{path}, line 2: [groups.students] has no key 'memroy'. Did you mean 'memory'?"
        assert failed.stderr == f"gpushare: {wrong} What was read before still holds.\n"
        assert mine(followed).memory == 300 * 2**20
        assert "memroy" in " ".join(gpushare("status").stdout.split())
        (check,) = [one for one in examine(followed, Probe(Verdict.CPU)) if "memroy" in one.text]
        assert (check.finding, check.name) == (Finding.NOTE, "broker")
        write('[groups.students]\nusers = ["' + ME + '"]\nmemory = "400MiB"\n')
        with Line(followed) as line:
            os.kill(line.pid, signal.SIGHUP)
        eventually(lambda: mine(followed).memory == 400 * 2**20)
        assert snapshot(followed).broker.trouble is None


def test_a_wrong_file_is_refused_at_the_start_with_its_line(
    gpushare, where: Places, write: Write
) -> None:
    """And nothing runs then."""
    path = write("\n[groups.students]\nusers = ['nobody-by-that-name']\n")
    done = gpushare("start", "--config", str(path))
    assert done.returncode != 0
    assert (
        f"{path}, line 3: groups.students.users: there is no user 'nobody-by-that-name' on this host."
        in done.stderr
    )
    with pytest.raises(BrokerUnavailable), Line(where):
        pass


def test_a_broker_that_is_killed_while_the_file_is_wrong_comes_back(
    followed: Places, write: Write
) -> None:
    """With what was read last: a typing error must not leave a host without a broker."""
    with running("1MiB", *HOLDS) as held:
        assert held.stdout.readline() == "ready\n"
        write("[groups\n")
        with Line(followed) as line:
            pid = line.pid
        os.kill(pid, signal.SIGKILL)

        def is_back() -> bool:
            try:
                with Line(followed) as line:
                    return line.pid != pid
            except BrokerUnavailable:
                return False

        eventually(is_back)
        eventually(lambda: mine(followed) is not None and mine(followed).memory == 256 * 2**20)


def test_a_budget_is_shown_and_kept_over_a_restart(
    gpushare, followed: Places, tmp_path: Path
) -> None:
    """Device seconds of this day count on; who has used them up yields, and is not refused."""
    # The last second before an end is in no sample.
    done = gpushare("run", "--", sys.executable, "-c", BURNS.format(4))
    assert done.returncode == 0
    eventually(lambda: mine(followed).budgets[0].used >= 1.5, seen=lambda: mine(followed))
    used = mine(followed).budgets[0].used
    assert re.search(
        r"students\): .*1?\d min of 10 min device time left this day, anew in",
        " ".join(gpushare("status").stdout.split()),
    )
    assert gpushare("stop").returncode == 0
    path = tmp_path / "gpushare.toml"
    path.write_text(f'[groups.students]\nusers = ["{ME}"]\nbudget_per_day = "1s"\n')
    ensure_broker(followed, PATIENCE, ["--config", str(path)])
    again = mine(followed).budgets[0]
    assert (again.limit, again.used >= used) == (1.0, True)
    done = gpushare("run", "--", sys.executable, "-c", "print('ran')")
    assert done.stdout == "ran\n"
    assert "A budget is used up: cells run when nobody else wants the device." in " ".join(
        gpushare("status").stdout.split()
    )


def test_a_maintenance_by_command(gpushare, broker: Places) -> None:
    """It says what still runs and when nothing does; who waits meanwhile goes on at its end, and all of it is written down."""
    with running("100MiB", "--name", "train", *HOLDS) as train:
        assert train.stdout.readline() == "ready\n"
        drain = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gpushare_kernel.app.main",
                "drain",
                "new driver, back at 16:00",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        first = drain.stdout.readline()
        assert re.fullmatch(
            r"Maintenance since \d\d:\d\d \(new driver, back at 16:00\): nothing new begins\. Still running: train\.\n",
            first,
        )
        with running("100MiB", *HOLDS) as later:
            eventually(lambda: waits(broker) == ["maintenance"])
            train.communicate("\n", timeout=PATIENCE)
            rest, _ = drain.communicate(timeout=PATIENCE)
            assert "Nothing runs on the device." in rest
            assert drain.returncode == 0
            assert "Maintenance since" in gpushare("status").stdout
            watched = gpushare("drain").stdout
            assert re.match(r"Maintenance since \d\d:\d\d \(new driver, back at 16:00\): ", watched)
            assert snapshot(broker).maintenance.note == "new driver, back at 16:00"
            assert gpushare("drain", "--end").stdout == "Notebooks are let in again.\n"
            assert later.stdout.readline() == "ready\n"
            _, said = later.communicate("\n", timeout=PATIENCE)
            assert "Waiting for the end of a maintenance (new driver, back at 16:00)" in said
            assert re.search(r"gpushare: Waited \S+ s for the end of a maintenance\.\n", said)
    audit = gpushare("audit").stdout.splitlines()
    assert [line.split("  ", 2)[1:] for line in audit] == [
        [f"{ME} (uid {os.geteuid()})", "drain  new driver, back at 16:00"],
        [f"{ME} (uid {os.geteuid()})", "drain  new driver, back at 16:00"],
        [f"{ME} (uid {os.geteuid()})", "drain --end"],
    ]
    assert gpushare("drain", "--end").stdout == "There was no maintenance.\n"


def test_an_announcement_by_command(gpushare, broker: Places) -> None:
    """In every status and in what runs; without a broker the log of acts is read from its file."""
    with running("1MiB", *HOLDS) as held:
        assert held.stdout.readline() == "ready\n"
        said = gpushare("announce", "GPU 1 is away", "on Monday")
        assert said.stdout == "1 notebook read it with the next output.\n", said.stderr
        assert "From your administrator: GPU 1 is away on Monday" in gpushare("status").stdout
        assert (
            json.loads(gpushare("status", "--json").stdout)["announcement"]["text"]
            == "GPU 1 is away on Monday"
        )
        _, errors = held.communicate("\n", timeout=PATIENCE)
        assert "From your administrator: GPU 1 is away on Monday" in errors
    assert gpushare("announce", "--clear").stdout == "Taken back.\n"
    assert snapshot(broker).announcement is None
    gpushare("stop")
    assert [line.split("  ", 2)[2] for line in gpushare("audit").stdout.splitlines()] == [
        "announce  GPU 1 is away on Monday",
        "announce  (taken back)",
        "stop",
    ]


def test_what_was_done_is_for_the_brokers_owner_where_no_broker_can_be_asked(
    where: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Path, _most: int) -> tuple[()]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(audit, "entries", closed)
    with pytest.raises(NotYours) as problem:
        AuditApp().start()
    assert str(problem.value) == f"{where.audit} is its broker's owner's to read, and no broker runs that could tell an administrator. Run it as root, or start the broker first."  # fmt: skip


def test_evict_by_command(gpushare, broker: Places) -> None:
    """On a device that cannot set memory aside its user is asked, and everything runs on."""
    with running("100MiB", "--name", "train", *HOLDS) as train:
        assert train.stdout.readline() == "ready\n"
        done = gpushare("evict", ME)
        assert f"{ME}: train holds" in done.stdout
        assert "cannot be set aside" in done.stdout
        assert "gpushare ends no process." in done.stdout
        assert procfs.process_key(train.pid) is not None
        _, errors = train.communicate("\n", timeout=PATIENCE)
        assert train.returncode == 0
        assert "Your administrator asks for the" in errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evict",), "say which notebook or user, and 0 were named: jupyter gpushare evict hw2."),
        (("announce",), "write what everybody is to read, or --clear"),
        (
            ("reload",),
            "this broker has no configuration. Start it with one: jupyter gpushare start --config FILE",
        ),
        (("evict", "nobody"), "No notebook is open."),
        (
            ("audit", "--last=0"),
            "--last must be 1 or more, not 0. Leave it out for the latest 100.",
        ),
        (("audit", "--lst=3"), "no option --lst. Did you mean --last?"),
        (("drain", "--ned"), "no option --ned. Did you mean --end?"),
    ],
)
def test_mistakes_are_one_line(gpushare, broker: Places, words, said) -> None:
    done = gpushare(*words)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
