"""What others send, or leave behind: two brokers, stale sockets, broken frames, deaf clients, other users."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpushare_kernel.client.start import COMMAND
from gpushare_kernel.core.values import TiB
from gpushare_kernel.transport.places import prepare
from gpushare_kernel.wire.messages import TO_BROKER_LIMIT
from tests.faults import wire
from tests.faults.host import Host, kill, session_of
from tests.faults.wire import Peer

SYSTEM_PYTHON = "/usr/bin/python3"
STRANGER = 65534


# --- brokers and sockets ----------------------------------------------------------------------------------


def test_two_brokers(host: Host) -> None:
    """A second broker in the same folder refuses with a clear error, and the first does not notice."""
    broker = host.start("--capacity", "1GiB")
    notebook = host.notebook()
    second = subprocess.run([*COMMAND], capture_output=True, text=True, check=False, timeout=60)
    assert second.returncode == 1
    assert f"a gpushare broker already runs in {host.places.runtime}: one per host" in second.stderr
    assert "Traceback" not in second.stderr
    assert host.broker == broker
    assert "42" in notebook.run("%%gpulane 10MiB\n6 * 7")


@pytest.mark.parametrize("what", ["dead socket", "file", "killed broker"])
def test_stale_socket(host: Host, what: str) -> None:
    """What a former broker (or somebody) left at the socket's path does not keep a new one from starting."""
    prepare(host.places)
    if what == "dead socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(host.places.socket))
    elif what == "file":
        host.places.socket.write_text("no socket", "utf-8")
    else:
        broker = host.start()
        kill(host.guardian_of(broker))
        kill(broker)
        assert host.places.socket.exists()
    assert "42" in host.notebook().run("%%gpulane 10MiB\n6 * 7")


# --- frames -------------------------------------------------------------------------------------------------

HELLO = wire.pack({"versions": [1], "agent": "x", "body": {"type": "Observe"}})
BROKEN = {
    "too long": struct.pack("<I", TO_BROKER_LIMIT + 1),
    "longest": struct.pack("<I", 2**32 - 1) + b"x",
    "empty": struct.pack("<I", 0),
    "garbage": struct.pack("<I", 4) + b"\xc1\xff\x00\x01",
    "another shape": struct.pack("<I", 5) + wire.pack([1]),
    "deep": struct.pack("<I", 60000) + b"\x91" * 60000,
    "no such version": wire.pack({"versions": [99], "agent": "x", "body": {"type": "Observe"}}),
    "no such body": wire.pack({"versions": [1], "agent": "x", "body": {"type": "Obey"}}),
}


@pytest.fixture
def served(host: Host) -> Iterator[Host]:
    """A host whose notebook goes on working, whatever comes in."""
    broker = host.start("--capacity", "1GiB")
    notebook = host.notebook()
    yield host
    assert host.broker == broker
    assert "42" in notebook.run("%%gpulane 10MiB\n6 * 7")


def test_broken_frames(served: Host) -> None:
    """Frames that are too long, broken or half written end their own connection, with a reason where one can be read."""
    for name, raw in BROKEN.items():
        data = raw if name not in ("no such version", "no such body") else _framed(raw)
        with Peer(str(served.places.socket)) as peer:  # as its hello ...
            peer.sock.sendall(data)
            answer = peer.receive()
            assert answer["body"]["type"] == "Failure", name
            assert peer.receive() is None, name
        with Peer(str(served.places.socket)) as peer:  # ... and later
            assert peer.hello("Observe")["type"] == "Ok"
            peer.sock.sendall(data)
            answer = peer.receive()
            assert (answer[:2], answer[2]["type"]) == ([1, 0], "Failure"), name
            assert peer.receive() is None, name
    for cut in (1, 3, 4, len(HELLO)):
        with Peer(str(served.places.socket)) as peer:
            peer.sock.sendall(_framed(HELLO)[:cut])
    with Peer(str(served.places.socket)) as peer:
        assert peer.hello("Observe")["type"] == "Ok"
        peer.sock.sendall(_framed(wire.pack([0, 1, {"type": "GetSnapshot"}]))[:-3])


def test_who_never_reads(served: Host) -> None:
    """A client that asks and never reads is cut off; meanwhile everybody else is answered."""
    question = _framed(wire.pack([0, 1, {"type": "GetSnapshot"}])) * 200
    with Peer(str(served.places.socket)) as deaf:
        assert deaf.hello("Observe")["type"] == "Ok"
        deaf.sock.settimeout(0.2)
        cut = False
        for _ in range(200):
            try:
                deaf.sock.sendall(question)
            except TimeoutError:
                pass  # the broker takes no more for now
            except (BrokenPipeError, ConnectionResetError):
                cut = True
                break
            assert served.snapshot().sessions
        assert cut


def _framed(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


# --- sizes ---------------------------------------------------------------------------------------------------


def test_sizes_that_make_no_sense(served: Host) -> None:
    """What can never fit, and what is no size, is refused in one line with the numbers; the cell does not run."""
    notebook = served.notebooks[0]
    for declared, told in {
        "-p 700MiB -e 400MiB": (
            "1.1 GiB",
            "700 MiB to keep, 400 MiB while it runs",
            "1.0 GiB in all",
        ),
        "5GiB": ("5.0 GiB", "1.0 GiB in all"),
        "-5GiB": ("5GiB",),
        "nanGiB": ("nan",),
        "0MiB": ("zero",),
        "999999999TiB": ("999999999TiB",),
        "2": ("no unit",),
        "6GiB -p 1GiB": ("-p",),
        "1GiB --weight nan": ("weight",),
        "1GiB --wait nan": ("wait",),
    }.items():
        lines = notebook.run(f"%%gpulane {declared}\nprint('ran')")
        assert lines[0].startswith("gpushare: "), (declared, lines)
        assert len(lines) == 1, (declared, lines)
        assert all(part in lines[0] for part in told), (declared, lines)
    assert not served.snapshot().queue


# --- strangers --------------------------------------------------------------------------------------------------


class User:
    """A process of some user that sends what the test says."""

    def __init__(self, uid: int, path: Path) -> None:
        folder = Path(tempfile.mkdtemp(prefix="gpu", dir="/tmp"))
        self.folder = folder
        folder.chmod(0o755)
        script = shutil.copy(wire.__file__, folder)
        Path(script).chmod(0o644)
        self.process = subprocess.Popen(
            [SYSTEM_PYTHON, "-I", "-S", script, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=uid,
            group=uid,
            extra_groups=[],
            cwd="/",
        )

    def says(
        self, hello: str, *requests: tuple[str, dict[str, Any]], pid: int | None = None, **body: Any
    ) -> Any:
        """Send one hello and then requests; return the answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([(hello, body, pid), *requests]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line
        return json.loads(line)

    def refused(self, *words: Any, **body: Any) -> str:
        """Return the code of the failure that the last answer is."""
        answer = self.says(*words, **body)[-1]
        assert answer["type"] == "Failure", answer
        assert answer["message"].endswith(".")
        return str(answer["code"])

    def close(self) -> None:
        """End it."""
        self.process.communicate(timeout=20)
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def user(uid: int, host: Host) -> Iterator[User]:
    """A process of `uid`."""
    made = User(uid, host.places.socket)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root and real uids")
def test_strangers_are_kept_out(served: Host) -> None:
    """A token is worth nothing in another user's hands, and requests act on one's own sessions only."""
    ours = served.notebooks[0]
    name = ours.run("%gpushare status")
    assert any("hw1.ipynb" in line for line in name)
    with user(STRANGER, served) as mallory:
        stolen = {"session": ours.session, "token": ours.token}
        assert mallory.refused("Attach", token=ours.token) == "BadToken"
        assert mallory.refused("Attach", token="guess") == "BadToken"
        assert mallory.refused("Exempt", seconds=1.0, **stolen) == "BadToken"
        assert mallory.refused("Restart", **stolen) == "BadToken"
        assert mallory.refused("Bind", pid=mallory.process.pid, **stolen) == "BadToken"
        mallory.says("Close", **stolen)  # answered as one that came twice
        assert session_of(served.snapshot(), ours).state == "idle"
        for request in (
            ("Stop", {}),
            ("SetPolicy", {"policy": "fifo"}),
            ("SetWeight", {"weight": 9.0}),
            ("Release", {"notebook": "hw1.ipynb"}),
            ("Release", {"notebook": ours.session}),
            ("Submit", {"job": "j", "name": "n", "size": 2**20}),
        ):
            assert mallory.refused("Observe", request) == "NotYours", request


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root and real uids")
def test_strangers_see_initials(served: Host) -> None:
    """A stranger's own session works, and of others one sees initials: no names, pids, sizes."""
    ours = served.notebooks[0]
    with user(STRANGER, served) as eve:
        (opened,) = eve.says("Open", name="evil.ipynb")
        mine = {"session": opened["session"], "token": opened["token"]}
        assert eve.refused("Bind", pid=ours.pid, **mine) == "NotYours"
        (bound,) = eve.says("Bind", pid=eve.process.pid, **mine)
        assert bound["type"] == "Ok"
        attached, reply = eve.says("Attach", ("GetSnapshot", {}), token=opened["token"])
        assert attached["type"] == "Attached"
        shown = {s["id"]: s for s in reply["snapshot"]["sessions"]}
        own, other = shown[opened["session"]], shown[ours.session]
        assert (own["name"], own["pid"], own["own"]) == ("evil.ipynb", eve.process.pid, True)
        assert (other["user"], other["name"], other["pid"], other["p"]) == ("r", None, None, None)
        text = repr(reply)
        assert "root" not in text
        assert "hw1" not in text
        theirs = served.snapshot()
        assert {s.user for s in theirs.sessions} == {"root", "nobody"}  # root administers: sees all
        for wrong in (
            {"size": -1},
            {"size": 2**50},
            {"persistent": 2**62, "ephemeral": 1},
            {"size": 2**63},
            {"size": 1.5},
            {"size": 2**20, "weight": float("nan")},
            {"size": 2**20, "weight": -1.0},
            {"size": 2**20, "ephemeral": 1},
            {"size": 2 * TiB},
        ):
            job = {"job": f"j{wrong}", "name": "n", **wrong}
            answer = eve.says("Attach", ("Submit", job), token=opened["token"])[-1]
            assert answer is None or answer["type"] == "Failure", (wrong, answer)
    served.until(lambda seen: [s.id for s in seen.sessions] == [ours.session])
