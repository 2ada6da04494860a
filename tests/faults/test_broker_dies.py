"""Broker, guardian or both are killed with kernels paused (I4)."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.broker.ledger import Ledger
from gpushare_kernel.core.values import MiB, ProcessKey
from gpushare_kernel.wire.messages import SetPolicy, Stop
from tests.faults.conftest import Measured
from tests.faults.host import Host, kill, session_of, stopped, took
from tests.faults.notebook import Notebook
from tests.procs import eventually

TURNS = ("--compute", "1", "--turn", "2", "--capacity", "1GiB")
"""One core and long turns: of two that burn, one runs and one stands still."""


LITTLE = 16 << 10
"""Bytes of a file: the table of whom a broker pauses is larger, its log is not."""
CONTENDED = ("--compute", "1.0", "--turn", "8.0", "--capacity", "1GiB")


def one_paused(*notebooks: Notebook) -> tuple[Notebook, Notebook]:
    """Wait until exactly one of two stands still; return (paused, running)."""
    eventually(lambda: sum(stopped(n.pid) for n in notebooks) == 1, 60)
    first, second = notebooks
    return (first, second) if stopped(first.pid) else (second, first)


def test_broker_killed(host: Host, measured: Measured) -> None:
    """All run within a second, a new broker comes, sessions and jobs are confirmed, accounts are kept."""
    broker = host.start(*TURNS)
    guardian = host.guardian_of(broker)
    one, two = host.notebook("one.ipynb"), host.notebook("two.ipynb")
    first = one.burn("%%gpulane -p 100MiB -e 50MiB\n")
    second = two.burn("%%gpulane -p 200MiB -e 60MiB\n")
    paused, _ = one_paused(one, two)
    used = {n.session: session_of(host.snapshot(), n).device_time for n in (one, two)}
    before = host.snapshot().users[0].device_time
    kill(broker)
    seconds = took(lambda: not stopped(paused.pid), 5)
    measured("all run again", seconds)
    assert host.broker != broker
    eventually(lambda: not procfs.alive(guardian))
    assert procfs.alive(host.guardian_of(host.broker))
    back = host.until(
        lambda seen: seen if all(session_of(seen, n).state == "busy" for n in (one, two)) else None
    )
    assert (session_of(back, one).p, session_of(back, two).p) == (100 * MiB, 200 * MiB)
    assert sum(lane.size for lane in back.devices[0].lanes) == 110 * MiB
    assert all(session_of(back, n).jobs for n in (one, two))
    assert back.users[0].device_time >= before - 1.5
    for session in back.sessions:
        assert session.device_time >= used[session.id] - 1.5
    one_paused(one, two)  # and turns go on
    for notebook, outputs in ((one, first), (two, second)):
        notebook.interrupt()
        lines = list(outputs)
        assert any("KeyboardInterrupt" in line for line in lines)
        assert any(line.startswith("used ") for line in lines)


@pytest.fixture
def contended(host: Host) -> tuple[Notebook, Notebook]:
    """Two notebooks whose plain cells want the same core for long turns: (paused, running)."""
    host.start(*CONTENDED)
    one, two = host.notebook("one.ipynb"), host.notebook("two.ipynb")
    one.burn()
    two.burn()
    return one_paused(one, two)


def test_guardian_killed(
    host: Host, contended: tuple[Notebook, Notebook], measured: Measured
) -> None:
    """Everybody is resumed before anything else, a new guardian comes, then turns go on; the broker stays."""
    paused, running = contended
    broker = host.broker
    guardian = host.guardian_of(broker)
    kill(guardian)
    measured("all run again", took(lambda: not stopped(paused.pid), 5))
    fresh = host.guardian_of(broker)
    assert fresh != guardian
    assert host.broker == broker
    one_paused(paused, running)
    kill(broker)  # and the new one guards
    eventually(lambda: not stopped(paused.pid) and not stopped(running.pid), 5)
    assert host.broker != broker


def test_the_ledger_is_lost_with_the_broker(host: Host) -> None:
    """A notebook says itself which session it is: it shares again, with its id, its cell and its memory, and is not restarted."""
    broker = host.start(*TURNS)
    host.guardian_of(broker)
    one = host.notebook("one.ipynb")
    one.run("kept = b'x' * (100 << 20)")
    outputs = one.burn("%%gpulane -p 150MiB -e 50MiB\n")
    host.until(lambda seen: session_of(seen, one).state == "busy")
    for path in host.places.ledger.parent.glob("ledger.sqlite*"):
        path.unlink()
    kill(broker)
    back = host.until(lambda seen: seen if session_of(seen, one).state == "busy" else None)
    assert host.broker != broker
    (session,) = back.sessions
    assert (session.id, session.name) == (one.session, "one.ipynb")
    assert sum(lane.size for lane in back.devices[0].lanes) == 50 * MiB
    host.until(lambda seen: session_of(seen, one).p >= 100 * MiB)
    one.interrupt()
    assert any("KeyboardInterrupt" in line for line in outputs)
    one.restart()
    assert one.run("1 + 1") == ["2"]
    host.until(lambda seen: session_of(seen, one).state == "idle")


def test_broker_stopped(
    host: Host, contended: tuple[Notebook, Notebook], measured: Measured
) -> None:
    """It is not dead: all run meanwhile, and once it goes on, so do turns. Nothing is lost."""
    paused, running = contended
    broker = host.broker
    host.guardian_of(broker)
    procfs.send(broker, signal.SIGSTOP)
    seconds = took(lambda: not stopped(paused.pid) and not stopped(running.pid), 20)
    measured("all run", seconds)
    assert seconds < 3, "its guardian looks twice a second, and twice"
    procfs.send(broker, signal.SIGCONT)
    one_paused(paused, running)
    assert host.broker == broker
    assert len(host.snapshot().sessions) == 2


def kill_both(host: Host) -> ProcessKey:
    """Kill guardian and broker so that neither sees the other's end."""
    broker = host.broker
    guardian = host.guardian_of(broker)
    procfs.send(guardian, signal.SIGSTOP)
    eventually(lambda: stopped(guardian.pid))
    kill(broker)
    kill(guardian)
    return broker


def by_poll(host: Host, paused: Notebook, looker: Notebook) -> None:
    """Jupyter asks every few seconds whether its kernels live."""
    eventually(lambda: looker.manager.is_alive() and not stopped(paused.pid), 25)


def by_client_call(host: Host, paused: Notebook, looker: Notebook) -> None:
    """Another notebook asks for something."""
    looker.start("%gpushare status")


def by_broker_start(host: Host, paused: Notebook, looker: Notebook) -> None:
    """Somebody starts a broker."""
    host.start()


def by_itself(host: Host, paused: Notebook, looker: Notebook) -> None:
    """Nobody asks for anything: a kernel that runs misses its broker."""


@pytest.mark.parametrize("how", [by_poll, by_client_call, by_broker_start, by_itself])
def test_both_killed(
    host: Host,
    contended: tuple[Notebook, Notebook],
    measured: Measured,
    how: Callable[[Host, Notebook, Notebook], None],
) -> None:
    """Whoever looks next resumes everybody within 5 s, and a broker that knows them is back."""
    looker = host.notebook("idle.ipynb")
    one_paused(*contended)
    broker = kill_both(host)
    (paused,) = [each for each in contended if stopped(each.pid)]
    began = time.monotonic()
    how(host, paused, looker)
    eventually(lambda: not stopped(paused.pid), 25)
    measured("all run again", time.monotonic() - began)
    assert host.broker != broker
    host.until(lambda seen: session_of(seen, paused).state not in {"opened", "orphaned", "bare"})
    # Whoever started it: it shares what the one before shared, and takes turns of its length.
    if how is not by_broker_start:  # a person's start says itself what is wanted
        assert (host.snapshot().devices[0].compute, arguments_of(host)) == (1.0, CONTENDED)


def test_no_room_for_a_broker_until_there_is(host: Host) -> None:
    """A limit on files' sizes stands in for a full disk: cells run on meanwhile, and their kernel tries again every few seconds until there is room."""
    host.start(*TURNS)
    notebook = host.notebook()
    pid = notebook.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (LITTLE, hard))  # whom it starts has that, too
    broker = kill_both(host)

    def tries() -> int:
        return sum("there is no room" in line["message"] for line in host.log("critical"))

    pauses = [took(lambda n=n: tries() > n, 30) for n in range(3)]
    assert min(pauses[1:]) > 1, "not without a pause"
    assert "42" in notebook.run("6 * 7")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    host.until(lambda seen: session_of(seen, notebook).state == "idle")
    assert host.broker != broker


@pytest.mark.parametrize("brokers", [1, 2])
def test_both_killed_where_nobody_may_start_one(
    host: Host, contended: tuple[Notebook, Notebook], brokers: int
) -> None:
    """Beside a broker of the system: whoever started a kernel resumes it, also under a broker that followed the one it knew."""
    if brokers == 2:
        known = host.broker
        kill(known)
        host.until(lambda seen: all(session_of(seen, each).state == "busy" for each in contended))
        assert host.broker != known
    one_paused(*contended)
    starters = [each.manager.provisioner._session for each in contended]
    eventually(
        lambda: (
            all(each.manager.is_alive() for each in contended)
            and not any(starter.page_is_stale for starter in starters)
        ),
        25,
    )
    host.places.stopped.touch()
    kill_both(host)
    (paused,) = [each for each in contended if stopped(each.pid)]
    (running,) = [each for each in contended if each is not paused]
    pages = [each.manager.provisioner._session.page for each in (paused, running)]
    assert [page.says_paused() for page in pages] == [True, False]
    eventually(lambda: paused.manager.is_alive() and not stopped(paused.pid), 25)
    host.places.stopped.unlink()  # the next who calls starts one, which takes away the socket of the killed one
    host.until(lambda seen: all(session_of(seen, each).state == "busy" for each in contended))


def arguments_of(host: Host) -> tuple[str, ...]:
    """What the broker that answers was told, as far as these tests tell one something."""
    words = Path(f"/proc/{host.broker.pid}/cmdline").read_text().split("\0")
    told = {word: value for word, value in pairwise(words) if word in CONTENDED}
    return tuple(word for name in CONTENDED[::2] for word in (name, told.get(name, "")))


def test_what_was_chosen_live_outlives_a_crash_and_no_start(host: Host) -> None:
    """A policy that was switched live holds for the broker that the guardian starts, not for one started on purpose."""
    broker = host.start("--capacity", "1GiB", "--policy", "pack")
    notebook = host.notebook()
    host.ask(SetPolicy("srtf"))
    with closing(Ledger(host.places.ledger)) as ledger:  # written by a thread, a moment later
        eventually(lambda: [name for _, name in ledger.load().policies] == ["srtf"])
    kill(broker)
    host.until(lambda seen: session_of(seen, notebook).state not in {"orphaned", "bare"})
    assert host.broker != broker
    assert [device.policy for device in host.snapshot().devices] == ["srtf"]
    again = host.broker
    host.ask(Stop())
    eventually(lambda: not procfs.alive(again))
    host.start("--capacity", "1GiB", "--policy", "pack")
    assert [device.policy for device in host.snapshot().devices] == ["pack"]


def test_stopped_on_purpose_stays_stopped(host: Host) -> None:
    """What its administrator stopped is not started again by notebooks that are open; a new notebook does."""
    host.start("--capacity", "1GiB")
    notebook = host.notebook()
    outputs = notebook.burn()
    broker = host.broker
    host.ask(Stop())
    eventually(lambda: not procfs.alive(broker))
    notebook.interrupt()
    list(outputs)
    assert notebook.manager.is_alive()
    assert any("broker was stopped" in line for line in notebook.run("%gpushare status"))
    assert notebook.manager.is_alive()
    assert not host.places.socket.exists()
    host.notebook("other.ipynb")
    host.until(lambda seen: session_of(seen, notebook).state not in {"opened", "orphaned", "bare"})
