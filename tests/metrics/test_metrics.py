"""A real broker with real notebooks, scraped: what is counted, who can read it, and what becomes of it when something dies."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

from gpushare_kernel import procfs
from gpushare_kernel.broker.aliases import initials
from gpushare_kernel.broker.families import COUNTER, FAMILIES
from gpushare_kernel.broker.metrics import MOST_AT_ONCE
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.core.values import UserId
from tests.faults.host import LIMIT, Host, kill
from tests.faults.notebook import BURN
from tests.metrics.scrape import families, offered, read, samples, until, value
from tests.procs import eventually, key_of

ROOM = ("--compute", "1", "--turn", "0.1", "--capacity", "1GiB")
HOLD = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.02)"
DOCS = Path(__file__).parents[2] / "docs/admin/metrics.md"


def exporter_of(host: Host) -> int:
    """Return the process that offers metrics, once it is there."""
    found: list[int] = []

    def there() -> bool:
        for pid in procfs.children(host.broker.pid):
            with contextlib.suppress(OSError):
                if b"gpushare_kernel.broker.metrics" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return bool(found)

    eventually(there, LIMIT)
    return found[-1]


def test_what_happens_is_counted(host: Host, tmp_path: Path) -> None:
    """Memory, states, waits, refusals, pauses and device time, while and after they happen; nobody's notebook is named."""
    host.start(*ROOM, "--metrics", "127.0.0.1:0")
    where = offered(host)
    gate = tmp_path / "gate"
    one, two = host.notebook("secret1.ipynb"), host.notebook("secret2.ipynb")
    assert (
        value(
            until(where, lambda seen: value(seen, "gpushare_sessions", state="idle") == 2),
            "gpushare_users",
        )
        == 1
    )

    held = one.start(f"%%gpulane -p 700MiB -e 10MiB\n{HOLD.format(str(gate))}")
    until(where, lambda seen: value(seen, "gpushare_memory_bytes", use="kept") >= 700 * 2**20)
    waited = two.start("%%gpulane 600MiB\n1")
    seen = until(where, lambda seen: value(seen, "gpushare_waiting_jobs") == 1)
    assert value(seen, "gpushare_waiting_jobs", **{"class": "declared"}) == 1
    assert value(seen, "gpushare_oldest_wait_seconds") > 0
    assert sum(v for _, v in seen["gpushare_memory_bytes"]) == value(
        seen, "gpushare_memory_capacity_bytes"
    )
    gate.touch()
    list(one.outputs(held))
    one.run("%gpushare release")
    list(two.outputs(waited))
    seen = until(where, lambda seen: value(seen, "gpushare_waiting_jobs") == 0)
    until(
        where, lambda seen: value(seen, "gpushare_wait_seconds_count", **{"class": "declared"}) == 2
    )
    assert value(seen, "gpushare_wait_seconds_sum", **{"class": "declared"}) > 0

    assert "can never" in two.run("%%gpulane 5GiB\n1") or True
    assert (
        value(
            until(where, lambda seen: seen.get("gpushare_refusals_total")),
            "gpushare_refusals_total",
            reason="Refused",
        )
        == 1
    )

    burning = [notebook.start(BURN) for notebook in (one, two)]
    until(where, lambda seen: value(seen, "gpushare_pauses_total", reason="turn-ended") > 4)
    seen = until(where, lambda seen: value(seen, "gpushare_drain_seconds_count") > 4)
    assert value(seen, "gpushare_pause_results_total", status="paused") > 4
    until(where, lambda seen: value(seen, "gpushare_user_device_seconds_total") > 0.5)
    until(where, lambda seen: value(seen, "gpushare_broker_loop_lag_seconds_count") > 4)
    one.manager.interrupt_kernel()
    two.manager.interrupt_kernel()
    for notebook, message in zip((one, two), burning, strict=True):
        list(notebook.outputs(message))

    text = read(where)
    for hidden in (
        "secret",
        one.session,
        two.session,
        one.session[1:],
        str(one.pid),
        str(host.places.runtime),
    ):
        assert not re.search(rf"(?<![0-9.]){re.escape(hidden)}(?![0-9.])", text), hidden
    assert value(samples(text), "gpushare_broker_event_failures_total") == 0
    user = UserId(pwd.getpwuid(os.geteuid()).pw_name)
    for name in ("gpushare_user_device_seconds_total", "gpushare_user_memory_bytes"):
        assert {labels["user"] for labels, _ in samples(text)[name]} == {initials(user), "other"}


def test_all_that_is_offered_is_documented_and_all_that_is_documented_is_offered(
    host: Host,
) -> None:
    """A real scrape, the list in the code and the table in the docs have the same metrics, with the same labels and words."""
    host.start(*ROOM, "--metrics", "127.0.0.1:0")
    seen = read(offered(host))
    rows = re.findall(
        r"^\| `(gpushare_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", DOCS.read_text(), re.MULTILINE
    )
    assert families(seen) == {name for name, *_ in rows}
    told = {name: (kind, re.findall(r"`(\w+)`", labels), says) for name, kind, labels, says in rows}
    for name, family in FAMILIES.items():
        full = f"{name}_total" if family.kind == COUNTER else name
        assert told[full] == (family.kind, [*family.labels], family.help)
    for name, found in samples(seen).items():
        base = re.sub("_(bucket|count|sum)$", "", name) if told.get(name) is None else name
        for labels, _ in found:
            assert set(labels) - {"le"} == set(told[base][1]), name


def test_prometheus_own_format_is_spoken(host: Host) -> None:
    """Prometheus asks for OpenMetrics, whose parser is stricter: the same metrics in it."""
    host.start(*ROOM, "--metrics", "127.0.0.1:0")
    plain = families(read(offered(host)))
    request = urllib.request.Request(
        offered(host), headers={"Accept": "application/openmetrics-text;version=1.0.0;q=0.75,*/*"}
    )
    with urllib.request.urlopen(request, timeout=LIMIT) as answer:
        assert "openmetrics" in answer.headers["Content-Type"]
        parsed = [*openmetrics(answer.read().decode())]
    assert {f"{one.name}_total" if one.type == "counter" else one.name for one in parsed} == plain


def test_who_speaks_with_everybody_is_not_root(host: Host) -> None:
    """Where the broker is root, that process is nobody, and all metrics are there still."""
    host.start(*ROOM, "--metrics", "127.0.0.1:0")
    seen = until(offered(host), lambda _: True)
    uids = next(
        line.split()[1:]
        for line in Path(f"/proc/{exporter_of(host)}/status").read_text().splitlines()
        if line.startswith("Uid:")
    )
    wanted = os.geteuid() or 65534
    assert set(uids) == {str(wanted)}
    assert (
        3
        < value(seen, "gpushare_broker_descriptors")
        < value(seen, "gpushare_broker_descriptors_limit")
    )
    assert value(seen, "gpushare_broker_process_cpu_seconds_total") > 0


def test_another_process_offers_them_where_one_dies(host: Host) -> None:
    """The broker goes on and starts another; the address is the same."""
    broker = host.start(*ROOM, "--metrics", "127.0.0.1:0")
    where, first = offered(host), exporter_of(host)
    before = until(where, lambda _: True)
    kill(key_of(first))
    after = until(where, lambda _: True)
    assert exporter_of(host) != first
    assert host.broker == broker
    name = "gpushare_broker_start_time_seconds"
    assert value(after, name) == value(before, name)


def test_a_broker_that_stands_still_is_said_and_answers_when_it_goes_on(host: Host) -> None:
    """503, once it has not answered for a while; then what is so now, not what was."""
    broker = host.start(*ROOM, "--metrics", "127.0.0.1:0")
    where = offered(host)
    until(where, lambda _: True)
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        eventually(lambda: not answers(where), LIMIT)
        assert not answers(where)
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    host.notebook("hw1.ipynb")
    until(where, lambda seen: value(seen, "gpushare_users") == 1)
    exporter_of(host)


def answers(where: str) -> bool:
    """Whether metrics are told; where not, that is said."""
    try:
        read(where)
    except urllib.error.HTTPError as problem:
        problem.close()
        if problem.code != 503:
            raise
        return False
    return True


def test_a_broker_that_is_started_again_offers_them_at_the_same_address(host: Host) -> None:
    """Killed, it is started by its guardian with the same options, says that it was, and leaves no process behind."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    broker = host.start(*ROOM, "--metrics", f"127.0.0.1:{port}")
    where, offers = f"http://127.0.0.1:{port}/metrics", key_of(exporter_of(host))
    seen = until(where, lambda _: True)
    assert value(seen, "gpushare_broker_started_again") == 0
    kill(broker)
    until(where, lambda seen: value(seen, "gpushare_broker_started_again") == 1)
    eventually(lambda: not procfs.alive(offers), LIMIT)


def test_a_broker_that_cannot_have_its_address_again_goes_on_without(host: Host) -> None:
    """Metrics are no reason to leave kernels without a broker; its log says so."""
    host.forgiven.append("no metrics are offered")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        host.start(*ROOM, "--again", "--metrics", f"127.0.0.1:{port}")
        assert not host.log("error"), "it is there before it gives the address up"
        assert host.snapshot().broker is not None
        eventually(lambda: any("in use" in line["message"] for line in host.log("error")), LIMIT)
    assert host.snapshot().broker is not None


def test_a_service_without_the_folder_for_them_goes_on_and_has_them_once_it_is_there(
    host: Host, tmp_path: Path
) -> None:
    """A folder in /run is gone after a reboot: that costs nobody the broker. Its log and status say so, and for how long."""
    host.forgiven.append("no metrics are offered")
    folder = tmp_path / "metrics"
    host.start(*ROOM, "--service", "--metrics", f"unix:{folder}/m.sock")
    eventually(lambda: host.log("error"), LIMIT)
    said = f"--metrics unix:{folder}/m.sock: No such file or directory."
    assert said in host.log("error")[0]["message"]
    seen = host.snapshot().broker
    assert seen is not None
    assert f"No metrics are offered: {said}" in (seen.trouble or "")
    folder.mkdir()
    host.until(lambda seen: seen.broker is not None and seen.broker.trouble is None)
    until(str(folder / "m.sock"), lambda _: True)
    assert len(host.log("error")) == 1


def test_a_socket_is_for_its_owner_and_has_names(host: Host, tmp_path: Path) -> None:
    """0600, or 0660 in a folder that hands its group down; people have their names there; a dead broker's is replaced."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    path = Path(host.places.runtime).parent / "m.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    host.start(*ROOM, "--metrics", f"unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    host.notebook("hw1.ipynb")
    seen = until(str(path), lambda seen: value(seen, "gpushare_users") == 1)
    assert {labels["user"] for labels, _ in seen["gpushare_user_memory_bytes"]} == {user, "other"}
    host.close()
    assert not path.exists()


def test_in_a_folder_with_a_group_that_may_come_in(host: Host) -> None:
    """A folder that hands its group down says who else reads."""
    folder = Path(host.places.runtime).parent / "m"
    folder.mkdir()
    folder.chmod(0o2750)
    host.start(
        *ROOM,
        "--metrics",
        f"unix:{folder}/m.sock",
        "--metrics-names",
        "initials",
        "--metrics-users",
        "0",
    )
    assert stat.S_IMODE((folder / "m.sock").stat().st_mode) == 0o660
    host.notebook("hw1.ipynb")
    seen = until(f"{folder}/m.sock", lambda seen: value(seen, "gpushare_users") == 1)
    assert {labels["user"] for labels, _ in seen["gpushare_user_memory_bytes"]} == {"other"}


def test_who_says_nothing_takes_the_place_of_nobody_for_long(host: Host) -> None:
    """So many peers at a time; the next is hung up on, and is answered once those that said nothing are gone."""
    host.start(*ROOM, "--metrics", "127.0.0.1:0")
    where = offered(host)
    until(where, lambda _: True)
    address = where.split("/")[2].split(":")
    mute = [socket.create_connection((address[0], int(address[1]))) for _ in range(MOST_AT_ONCE)]
    try:
        with socket.create_connection((address[0], int(address[1])), timeout=LIMIT) as late:
            assert late.recv(1) == b""
        assert host.snapshot().broker is not None
        until(where, lambda _: True)
    finally:
        for sock in mute:
            sock.close()


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("0.0.0.0:9469", "can be reached from other machines"),
        ("192.0.2.7:9469", "open:192.0.2.7:9469"),
        ("[::]:9469", "can be reached from other machines"),
        ("gpu-host:9469", "gpu-host in gpu-host:9469 is no number of a host"),
        ("9469", "is no address"),
        ("127.0.0.1:", "is no address"),
        ("127.0.0.1:70000", "is no address"),
        ("unix:metrics.sock", "has no whole path"),
    ],
)
def test_bad_addresses_are_refused_with_the_reason(host: Host, where: str, says: str) -> None:
    """Nothing is started, and the next step is in the message."""
    command = [sys.executable, "-P", "-m", "gpushare_kernel.broker", "--metrics", where]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert refused.returncode == 2
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not host.places.socket.exists()


def test_an_address_that_is_taken_is_said(host: Host) -> None:
    """A first start does not go on without what was asked of it."""
    host.forgiven.append("the broker could not start")
    path = Path(host.places.runtime).parent / "taken"
    path.write_text("a file of somebody's")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for where in (f"127.0.0.1:{taken.getsockname()[1]}", f"unix:{path}"):
            with pytest.raises(BrokerUnavailable, match="Name another address, or leave it out"):
                host.start("--metrics", where)
    assert path.read_text() == "a file of somebody's"


def test_without_prometheus_client_it_says_what_to_install(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is started."""
    host.forgiven.append("the broker could not start")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'prometheus_client' else find(name, *a)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        BrokerUnavailable, match=re.escape("In a clone of gpushare: pip install '.[metrics]'")
    ):
        host.start("--metrics", "127.0.0.1:0")
