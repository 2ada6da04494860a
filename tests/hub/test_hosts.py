"""What a gateway keeps in mind of its hosts, with the other end of ssh played."""

from __future__ import annotations

import dataclasses
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning import KernelProvisionerFactory

from gpushare_kernel import __version__
from gpushare_kernel.core.errors import BadSettings, HostAway
from gpushare_kernel.core.values import GiB
from gpushare_kernel.hub import hosts as module
from gpushare_kernel.hub.hosts import Host, Hosts, Pace
from gpushare_kernel.hub.placement import GPU, DeviceState, Wish
from gpushare_kernel.hub.report import (
    FORMAT,
    Answer,
    Done,
    Failed,
    Greeting,
    Launch,
    Launched,
    Look,
    Question,
    Seen,
    Signal,
    encode,
    read_question,
)
from gpushare_kernel.hub.ssh import Asked, Login
from tests.procs import eventually

QUICK = Pace(every=0.02, limit=2.0, again=0.02, lasting=0.02, suspect=0.3)
GPUS = (DeviceState(GPU, 16 * GiB, 16 * GiB),)
LAUNCH = Launch(("kernel",), {}, "/tmp/log")


class Played:
    """The hosts there are, and what they answer. `down` are those that are not there."""

    def __init__(self) -> None:
        self.down: dict[str, str] = {}
        self.odd: dict[str, Exception] = {}
        self.seen: dict[str, Seen] = {}
        self.signals: list[tuple[str, Signal]] = []
        self.open = 0
        self.held = threading.Event()
        self.held.set()
        self.slow: threading.Event | None = None
        self.launched: Callable[[str], Answer] = lambda _: Launched((7, 70))

    def __call__(
        self, name: str, login: Login, command: tuple[str, ...], limit: float, patience: float
    ) -> Line:
        """Dial."""
        if self.slow is not None:
            self.slow.wait(30)
        if name in self.down:
            raise HostAway(self.down[name])
        if name in self.odd:
            raise self.odd[name]
        self.open += 1
        return Line(self, name)

    def answer(self, name: str, question: Question) -> Answer:
        """What a host says."""
        if name in self.down:
            raise HostAway(self.down[name])
        if name in self.odd:
            raise self.odd[name]
        if isinstance(question, Look):
            self.held.wait(5)
            return self.seen.get(name, Seen(GPUS))
        if isinstance(question, Launch):
            return self.launched(name)
        self.signals.append((name, question))
        return Done(there=True)


class Line:
    """One connection."""

    address = "192.0.2.1"
    greeting = Greeting(FORMAT, __version__, "580.1")

    def __init__(self, played: Played, name: str) -> None:
        self._played, self._name = played, name

    def ask(self, line: bytes, limit: float) -> bytes:
        """Ask the played host."""
        return encode(self._played.answer(self._name, read_question(line)))

    def close(self) -> None:
        """Hang up."""
        self._played.open -= 1


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    """In place of ssh."""
    made = Played()
    monkeypatch.setattr(module, "Asked", made)
    return made


@pytest.fixture
def pool(played: Played) -> Iterator[Hosts]:
    """Two hosts."""
    made = Hosts(["a", "b"], Login(), "python", pace=QUICK)
    yield made
    made.close()
    assert played.open == 0


def away(pool: Hosts, name: str) -> str:
    """Why a host cannot be used."""
    return {state.name: state.away for state in pool.states()}[name]


def test_a_start_does_not_wait_for_who_is_known_to_be_away(pool, played):
    """After the first look it is known; who comes back is used again."""
    played.down["b"] = "its cable is out"
    pool.look()
    eventually(lambda: away(pool, "b") == "its cable is out")
    found = pool.order(Wish())
    assert found.hosts == ("a",)
    assert found.why() == "b: its cable is out"
    del played.down["b"]
    eventually(lambda: not away(pool, "b"))
    assert set(pool.order(Wish()).hosts) == {"a", "b"}


@pytest.mark.parametrize("met", ["dialled", "asked"])
def test_what_nobody_thought_of_is_a_reason_too(pool, played, met):
    """The host is passed over with the problem's words, is asked again, and is of use once it is mended."""
    if met == "asked":
        pool.look()
    played.odd["b"] = RuntimeError("what is this")
    pool.look()
    eventually(lambda: away(pool, "b") == "it cannot be asked: RuntimeError: what is this")
    eventually(lambda: played.open == 1)
    assert pool.order(Wish()).hosts == ("a",)
    with pytest.raises(HostAway, match="RuntimeError: what is this"):
        pool["b"].launch("k", LAUNCH)
    played.odd.clear()
    pool["b"].ask_now()
    eventually(lambda: not away(pool, "b"))


def test_a_launch_that_meets_what_nobody_thought_of_goes_elsewhere(pool, played):
    """As any other that a host refuses: the next host is tried."""
    pool.look()
    played.launched = lambda _: 1 // 0
    with pytest.raises(HostAway, match="ZeroDivisionError"):
        pool["a"].launch("k", LAUNCH)


@pytest.mark.parametrize(
    ("host", "keys", "says"),
    [
        ("localhost", "localhost ssh-rsa AAAAx\n", "/known_hosts of this machine has a line that is no key (localhost ssh-rsa AAAAx). Mend it"),
        ("localhost", "localhost ssh-rsa AAAAnonsense\n", "/known_hosts of this machine has a line that is no key ('utf-8' codec"),
        ("a..b", "", "no host of that name is known ("),
    ],
)  # fmt: skip
def test_a_bad_line_or_name_says_what_to_mend(tmp_path, host, keys, says):
    """Before anything is connected."""
    known = tmp_path / "known_hosts"
    known.write_text(keys)
    with pytest.raises(HostAway) as refused:
        Asked(host, Login(known_hosts=known), ("python",), 1.0, 1.0)
    assert says in str(refused.value)
    assert refused.value.lasting


def test_where_ssh_does_not_get_the_command_to_try_is_said(tmp_path):
    """As it is to be typed; a port on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(HostAway) as refused:
            Asked("localhost", Login("ann", port=port, known_hosts=tmp_path / "none"), ("python",), 1.0, 1.0)  # fmt: skip
    assert str(refused.value).startswith("ssh does not get there: ")
    assert str(refused.value).endswith(f". From here, as who runs this server: ssh -p {port} ann@localhost")  # fmt: skip
    assert not refused.value.lasting


def test_where_nobody_is_of_use_yet_a_start_waits_for_the_first_who_is(played):
    """A busy host is logged into slowly: that is no reason to start nothing."""
    played.slow = threading.Event()
    pool = Hosts(["a", "b"], Login(), "python", pace=dataclasses.replace(QUICK, limit=0.05))
    looking = threading.Thread(target=pool.look)
    looking.start()
    try:
        looking.join(0.3)
        assert looking.is_alive()
        assert pool.order(Wish()).hosts == ()
        played.slow.set()
        looking.join(30)
        assert not looking.is_alive()
        assert pool.order(Wish()).hosts
    finally:
        played.slow.set()
        looking.join()
        pool.close()


def test_what_keeps_a_host_from_starting_kernels_is_its_reason(pool, played):
    """It answers, and says so itself; the next time it may be well."""
    pool.look()
    played.seen["a"] = Seen((), (), "no broker answers, and only root may start one there")
    eventually(lambda: away(pool, "a").startswith("no broker answers"))
    played.seen["a"] = Seen(GPUS)
    eventually(lambda: not away(pool, "a"))


def fails(host: Host) -> None:
    """A start that counts, and fails."""
    with host.coming("k", GiB):
        assert host.state().coming == (GiB,)
        raise ZeroDivisionError


def test_who_is_on_the_way_counts_until_its_host_has_counted_it(pool, played):
    """One that failed counts no more at once; one that started, from the first report asked for after that."""
    pool.look()
    host = pool["a"]
    with pytest.raises(ZeroDivisionError):
        fails(host)
    assert host.state().coming == ()
    played.held.clear()  # the report that is on its way knows nothing of it
    with host.coming("k", GiB):
        host.ask_now()
    assert host.state().coming == (GiB,)
    played.held.set()
    eventually(lambda: host.state().coming == ())


def test_a_kernel_whose_host_is_away_is_not_gone(pool, played):
    """Only the host itself can say that."""
    pool.look()
    host = pool["a"]
    process = host.launch("k", LAUNCH)
    assert process == (7, 70)
    played.down["a"] = "cut off"
    eventually(host.is_away)
    assert not host.is_gone(process)
    del played.down["a"]
    played.seen["a"] = Seen(GPUS, (process,))
    eventually(lambda: host.is_gone(process))
    host.forget("k")
    assert not host.is_gone(process)


def test_what_nobody_wants_any_more_is_ended_once_its_host_answers(pool, played):
    """Not before, and until it is gone."""
    pool.look()
    host = pool["a"]
    process = host.launch("k", LAUNCH)
    played.down["a"] = "cut off"
    eventually(host.is_away)
    with pytest.raises(HostAway, match="cut off"):
        host.signal(process, 15)
    host.end(process)
    assert played.signals == []
    del played.down["a"]
    eventually(lambda: ("a", Signal(process, 9)) in played.signals)
    played.seen["a"] = Seen(GPUS, (process,))
    eventually(lambda: host._ending == set())


def test_a_host_where_a_kernel_did_not_start_is_passed_over_for_a_while(pool):
    """Then it gets another chance."""
    pool.look()
    pool["a"].suspect("no ipykernel there")
    found = pool.order(Wish())
    assert (found.hosts, found.why()) == (("b",), "a: no ipykernel there")
    eventually(lambda: set(pool.order(Wish()).hosts) == {"a", "b"})


def test_a_launch_that_a_host_refuses_says_why(pool, played):
    """And leaves the connection as it is."""
    pool.look()
    played.launched = lambda _: Failed("[Errno 28] No space left on device")
    with pytest.raises(HostAway, match="No space left on device"):
        pool["a"].launch("k", LAUNCH)
    assert not away(pool, "a")


def test_changes_are_logged_once(pool, played, caplog):
    """That it went, and that it is back."""
    pool.look()
    played.down["a"] = "cut off"
    eventually(pool["a"].is_away)
    del played.down["a"]
    eventually(lambda: not away(pool, "a"))
    said = [record.getMessage() for record in caplog.records]
    assert said.count("gpushare: no kernels go to a: cut off") == 1
    assert said.count("gpushare: a is back") == 1


def test_hosts_are_asked_once_for_all_kernels_of_a_process(played):
    """Whoever asks for the same ones has the same."""
    log = logging.getLogger("test")
    first = module.hosts(["a"], Login(), "python", log)
    assert module.hosts(["a"], Login(), "python", log) is first
    assert module.hosts(["a"], Login("ann"), "python", log) is not first
    for pool in module._pools.values():
        pool.close()
    module._pools.clear()


@pytest.mark.parametrize(
    ("provisioner", "config", "says"),
    [
        ("gpushare", {"wieght": 2.0}, "Did you mean 'weight'?"),
        ("gpushare", {"GPU": "0"}, "There are device, on_missing_broker, weight."),
        ("gpushare-distributed", {"remote_host": ["gpu1"]}, "Did you mean 'remote_hosts'?"),
        ("gpushare-distributed", {"remote_hosts": ["gpu1"], "drivers": "580"}, "Did you mean 'driver'?"),
    ],
)  # fmt: skip
def test_what_a_kernelspec_misspells_starts_no_kernel(provisioner, config, says):
    """A default would hold, and nobody would know."""
    factory = KernelProvisionerFactory()
    spec = KernelSpec(argv=["python"], metadata={"kernel_provisioner": {"provisioner_name": provisioner, "config": config}})  # fmt: skip
    with pytest.raises(BadSettings) as refused:
        factory.create_provisioner_instance("k", spec, None)
    assert says in str(refused.value)
    assert f"the kernelspec's config has {[*config][-1]!r}" in str(refused.value)


def test_what_a_kernelspec_spells_right_counts():
    """Of the engine's options, too."""
    config = {"remote_hosts": ["gpu1"], "driver": "580", "launch_timeout": 7}
    spec = KernelSpec(argv=["python"], metadata={"kernel_provisioner": {"provisioner_name": "gpushare-distributed", "config": config}})  # fmt: skip
    made = KernelProvisionerFactory().create_provisioner_instance("k", spec, None)
    assert (made.remote_hosts, made.driver, made.launch_timeout) == (["gpu1"], "580", 7)


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("gateway_provisioners", "import gpushare_kernel.hub.distributed"),
        ("paramiko", "from gpushare_kernel.app.hosts import asked; asked(['a'], 'python')"),
    ],
)
def test_without_the_extra_it_says_which(missing, code):
    """Both are installed by `gateway` only."""
    block = f"import sys; sys.modules[{missing!r}] = None; {code}"
    done = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    said = done.stderr.rstrip().rpartition("\n")[2]
    assert missing in said
    assert "In a clone of gpushare: pip install '.[gateway]'" in said
