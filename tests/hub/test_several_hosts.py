"""Two hosts, as network namespaces with a real sshd and a broker each, and kernels that a real engine starts on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gateway_hosts.bed import PORT, Bed, Gateway, Host, bed, missing
from gpushare_kernel import procfs
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.errors import HostAway
from gpushare_kernel.hub.hosts import Hosts, Pace
from gpushare_kernel.hub.placement import Wish
from gpushare_kernel.hub.report import FORMAT
from gpushare_kernel.hub.ssh import Asked, Login
from gpushare_kernel.kernel_session import KernelSession, open_session
from tests.procs import eventually

WHY_NOT = missing()
pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
LIMIT = 60.0
SPINS = "import threading\ngo, n = True, [0]\ndef spin():\n    while go: n[0] += 1\nthreading.Thread(target=spin, daemon=True).start()"


@pytest.fixture(scope="module")
def several() -> Iterator[Bed]:
    """Two hosts."""
    with bed() as made:
        yield made


@pytest.fixture
def gateway(several: Bed) -> Iterator[Gateway]:
    """A gateway to them; its kernels end with the test."""
    with several.gateway() as made:
        yield made
    for host in several.hosts:
        eventually(lambda host=host: not host.snapshot().sessions, LIMIT)


def of(several: Bed, answer: dict[str, Any]) -> tuple[Host, Host]:
    """The host that a kernel is on, and the other one."""
    assert "error" not in answer, answer
    here = [host for host in several.hosts if host.address == answer["host"]]
    there = [host for host in several.hosts if host.address != answer["host"]]
    return here[0], there[0]


def away(gateway: Gateway, host: Host) -> str:
    """Why the gateway sends no kernels to a host; empty where it does."""
    return str(gateway.ask("states")["hosts"][host.address]["away"])


def until(what: Callable[[], object]) -> None:
    """Wait for something that needs a few rounds of asking."""
    eventually(what, LIMIT)


def test_kernels_go_where_the_fewest_are_and_are_sessions_there(several, gateway):
    """Each host's broker has its own, with the process that the gateway knows; their variables are theirs."""
    kernels = [gateway.start(JPY_SESSION_NAME=f"hw{n}.ipynb") for n in range(4)]
    for host in several.hosts:
        here = [one for one in kernels if one["host"] == host.address]
        assert len(here) == 2
        assert {s.pid for s in host.snapshot().sessions} == {one["pid"] for one in here}
    names = {s.name for host in several.hosts for s in host.snapshot().sessions}
    assert names == {f"hw{n}.ipynb" for n in range(4)}
    for n, one in enumerate(kernels):
        assert gateway.run(one["kernel"], f"x = {n}; print(x)").strip() == str(n)
    # The client in the kernel is the usual one.
    lane = "import gpushare_kernel as gpushare\nwith gpushare.lane(persistent='8MiB'): print('granted')"
    assert "granted" in gateway.run(kernels[0]["kernel"], lane)


def test_kernels_that_are_started_at_once_spread(several, gateway):
    """Whoever is on the way counts, before any broker has counted it."""
    went = gateway.ask("many", count=6)["hosts"]
    assert sorted(went.count(host.address) for host in several.hosts) == [3, 3]


def test_what_others_start_there_counts(several, gateway):
    """A count of one's own kernels, as the engine has it, knows nothing of other servers'; the brokers do."""
    first, second = several.hosts
    theirs: list[KernelSession] = [
        open_session(first.places, f"n{n}", kernel_id="", language="python", weight=1.0)
        for n in range(3)
    ]
    for one in theirs:
        one.bind(os.getpid())
    try:
        went = [gateway.start()["host"] for _ in range(3)]
        assert went == [second.address] * 3
    finally:
        for one in theirs:
            one.close()


def test_a_host_cut_off_keeps_its_kernels_and_gets_no_new_ones_until_it_is_back(several, gateway):
    """Its kernel works on meanwhile, is not taken for dead, and answers as before."""
    kernel = gateway.start()
    here, there = of(several, kernel)
    gateway.run(kernel["kernel"], SPINS + "\nx = 41")
    before = procfs.cpu_seconds(kernel["pid"])
    here.cut()
    try:
        until(lambda: away(gateway, here))
        assert gateway.start()["host"] == there.address
        assert gateway.start()["host"] == there.address
        assert gateway.ask("alive", kernel=kernel["kernel"])["alive"]
        assert procfs.alive(procfs.process_key(kernel["pid"]))  # type: ignore[arg-type]
        worked = procfs.cpu_seconds(kernel["pid"])
        assert worked is not None
        assert before is not None
        assert worked > before
    finally:
        here.mend()
    until(lambda: not away(gateway, here))
    assert gateway.run(kernel["kernel"], "print(x + 1)").strip() == "42"
    gateway.run(kernel["kernel"], "go = False")
    until(lambda: gateway.start()["host"] == here.address)
    said = gateway.log()
    assert f"no kernels go to {here.address}: it has not answered for 3 s" in said
    assert f"{here.address} is back" in said


@pytest.mark.leaves("another sshd, for the tests after it")
def test_sshd_killed_and_back(several, gateway):
    """Kernels know nothing of it: they work, they take turns, and nobody stays paused; then the host is used again."""
    kernels = [gateway.start() for _ in range(4)]
    here, _ = of(several, kernels[0])
    two = [one for one in kernels if one["host"] == here.address]
    for one in two:
        gateway.run(one["kernel"], SPINS)
    here.kill_sshd()
    try:
        until(lambda: away(gateway, here))
        for one in two:
            began = int(gateway.run(one["kernel"], "print(n[0])"))
            until(
                lambda one=one, began=began: int(gateway.run(one["kernel"], "print(n[0])")) > began
            )
            assert gateway.ask("alive", kernel=one["kernel"])["alive"]
    finally:
        here.start_sshd()
    until(lambda: not away(gateway, here))
    assert {s.pid for s in here.snapshot().sessions} == {one["pid"] for one in two}
    assert not [s for s in here.snapshot().sessions if s.state in {"paused", "orphaned"}]
    gateway.ask("shutdown", kernel=two[0]["kernel"])
    until(lambda: [s.pid for s in here.snapshot().sessions] == [two[1]["pid"]])
    assert int(gateway.run(two[1]["kernel"], "print(n[0])"))


def test_a_paused_kernel_is_interrupted(several, gateway, tmp_path):
    """It runs on first, or it would not notice."""
    begun = tmp_path / "begun"
    kernel = gateway.start()
    here, _ = of(several, kernel)
    gateway.ask(
        "send",
        kernel=kernel["kernel"],
        code=f"open({str(begun)!r}, 'w').close()\ntry:\n    while True: sum(range(1000))\nexcept KeyboardInterrupt: done = 'interrupted'",
    )
    [session] = here.snapshot().sessions
    until(lambda: begun.exists() and here.snapshot().sessions[0].mode)
    with Line(here.places) as line:
        line.pause(session.id)
    until(lambda: procfs.state(kernel["pid"]) == "T")
    gateway.ask("interrupt", kernel=kernel["kernel"])
    assert gateway.run(kernel["kernel"], "print(done)").strip() == "interrupted"


def test_a_restart_stays_on_its_host_while_that_answers(several, gateway):
    """As a new session of its broker; with the host away, it starts elsewhere, and what was left there ends later."""
    gateway.start()
    kernel = gateway.start()
    here, there = of(several, kernel)
    gateway.run(kernel["kernel"], "x = 1")
    again = gateway.ask("restart", kernel=kernel["kernel"])
    assert again["host"] == here.address
    assert again["pid"] != kernel["pid"]
    until(lambda: [s.pid for s in here.snapshot().sessions] == [again["pid"]])
    here.cut()
    try:
        until(lambda: away(gateway, here))
        moved = gateway.ask("restart", kernel=kernel["kernel"])
        assert moved.get("host") == there.address, moved
        assert gateway.run(kernel["kernel"], "print('x' in dir())").strip() == "False"
        assert procfs.exists(again["pid"])
    finally:
        here.mend()
    until(lambda: not here.snapshot().sessions)


def test_a_kernel_that_dies_is_told(several, gateway):
    """Its host says so; a server then starts it anew."""
    kernel = gateway.start()
    os.kill(kernel["pid"], signal.SIGKILL)
    until(lambda: not gateway.ask("alive", kernel=kernel["kernel"])["alive"])


def test_a_host_where_kernels_end_at_once_is_passed_over_with_why(several):
    """No host of that name, and one whose Python cannot start the kernel: the next one is taken, each with a line."""
    with several.gateway("nonesuch.invalid") as gateway:
        answer = gateway.start()
        assert answer["host"] in {host.address for host in several.hosts}
        assert (
            "no host of that name is known"
            in gateway.ask("states")["hosts"]["nonesuch.invalid"]["away"]
        )
        refused = gateway.start(KERNEL_REMOTE_HOST="elsewhere")
        assert "KERNEL_REMOTE_HOST is elsewhere, and kernels may go to" in refused["error"]
        pinned = gateway.start(KERNEL_REMOTE_HOST="nonesuch.invalid")
        assert pinned["error"].startswith(
            "NoHost: no host can start this kernel. nonesuch.invalid: no host of that name"
        )
        vast = gateway.start(KERNEL_GPU_MEMORY="500GiB")
        assert (
            "the kernel needs 500.0 GiB, and the most that one of its devices shares is 2.0 GiB"
            in vast["error"]
        )
        assert (
            "KERNEL_GPU_MEMORY: 'lots' is not a size"
            in gateway.start(KERNEL_GPU_MEMORY="lots")["error"]
        )


@pytest.fixture
def login(several: Bed, monkeypatch: pytest.MonkeyPatch) -> Login:
    """How the hosts are reached from this process."""
    monkeypatch.setenv("HOME", str(several.folder / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return Login(user="root", port=PORT)


def script(folder: Path, text: str) -> str:
    """A program that is somebody's Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("python", "says"),
    [
        ("/nowhere/python", "there is no /nowhere/python, with which kernels start"),
        ("echo \"No module named 'gpushare_kernel'\" >&2; exit 1", "has no gpushare that this gateway can ask"),
        (f"echo '{{\"gpushare\": {FORMAT + 1}, \"version\": \"9.9\"}}'; cat", f"it runs gpushare 9.9, which reports in format {FORMAT + 1}"),
        ("echo 'unknown option -P' >&2; exit 2", "there ended with 2: unknown option -P"),
        ("yes welcome", "its login says too much before a command begins"),
    ],
)  # fmt: skip
def test_a_host_without_our_gpushare_says_what_to_do(several, login, tmp_path, python, says):
    """Each a line, and not tried again at once."""
    program = python if python.startswith("/") else script(tmp_path, python)
    with pytest.raises(HostAway) as problem:
        Asked(several.hosts[0].address, login, (program, "-P"), 5.0, 10.0)
    assert says in str(problem.value)
    assert problem.value.lasting


def test_a_login_that_talks_is_read_past(several, login, tmp_path):
    """A greeting is found behind a few lines of a shell's start-up file."""
    program = script(
        tmp_path, f'echo Welcome!; echo; echo \'{{"gpushare": {FORMAT}, "version": "1"}}\'; cat'
    )
    asked = Asked(several.hosts[0].address, login, (program,), 5.0, 10.0)
    assert asked.ask(b"an echo", 5.0) == b"an echo"
    asked.close()


def test_who_is_not_let_in_or_not_known_is_told_what_to_type(several, login, tmp_path, monkeypatch):
    """The key of the host, and ours."""
    address = several.hosts[0].address
    (tmp_path / "none").touch()
    with pytest.raises(HostAway, match=f"its ssh key is not known here.*: ssh -p {PORT} {address}"):
        Asked(
            address, Login("root", None, PORT, known_hosts=tmp_path / "none"), ("true",), 5.0, 10.0
        )
    known = several.folder / "home/.ssh/known_hosts"
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        HostAway, match=f"ssh does not let root in: .* ssh -p {PORT} root@{address}"
    ):
        Asked(address, Login("root", None, PORT, known_hosts=known), ("true",), 5.0, 10.0)


def test_another_driver_is_passed_over():
    """What /sys says there is compared with what these kernels need."""
    with bed(("580.65.06", "535.183.01")) as two, two.gateway(driver="570") as gateway:
        went = {gateway.start()["host"] for _ in range(2)}
        assert went == {two.hosts[0].address}
        drivers = {one["driver"] for one in gateway.ask("states")["hosts"].values()}
        assert drivers == {"580.65.06", "535.183.01"}
        pinned = gateway.start(KERNEL_REMOTE_HOST=two.hosts[1].address)
        assert (
            "its NVIDIA driver is 535.183.01, and this kernel needs 570 or newer" in pinned["error"]
        )


def test_idle_for_long_nothing_is_connected(several, login):
    """After some minutes without a start, and at once again when there is one."""
    pace = Pace(every=0.1, linger=5.0)
    hosts = Hosts([several.hosts[0].address], login, sys.executable, pace=pace)
    try:
        hosts.look()
        [state] = hosts.states()
        assert not state.away
        until(lambda: hosts.states()[0].away == "it has not answered yet")
        hosts.look()
        assert hosts.order(Wish()).hosts == (several.hosts[0].address,)
    finally:
        hosts.close()


def test_hosts_says_what_a_gateway_sees(several):
    """A row for each, why one cannot be used, and where a kernel would go."""
    first, second = (host.address for host in several.hosts)
    env = {**os.environ, "HOME": str(several.folder / "home"), "GP_SSH_PORT": str(PORT), "GP_REMOTE_USER": "root", "COLUMNS": "200"}  # fmt: skip
    env.pop("SSH_AUTH_SOCK", None)
    command = [sys.executable, "-m", "gpushare_kernel.app.main", "hosts"]
    done = subprocess.run([*command, first, second], capture_output=True, text=True, env=env, check=False)  # fmt: skip
    assert done.returncode == 0, done
    assert done.stdout.count("host, 2.0 GiB") == 2
    assert done.stdout.rstrip().rpartition("A kernel would go to ")[2] in {
        f"{first}.",
        f"{second}.",
    }
    some = [*command, first, "nonesuch.invalid", "--needs=1GiB"]
    done = subprocess.run(some, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1
    assert "no host of that name is known" in done.stdout
    assert done.stdout.rstrip().endswith(f"A kernel would go to {first}.")
    nobody = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert "gpushare: which hosts? Write: jupyter gpushare hosts HOST ..." in nobody.stderr
