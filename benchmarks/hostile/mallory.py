"""A hostile user in the standard library alone: `python3 mallory.py SOCKET`, beside `wire.py`. A line of JSON in, one out: [name, arguments...].

It is what any account of the machine can run: no package of ours, no right of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from frames import REQUESTS, Fuzz
from wire import Peer, pack

BATCH = 40
BY_NAME = ("Release", "PauseNotebook", "ResumeNotebook", "ParkNotebook", "UnparkNotebook")
LAST = 2**40
"""The id of a batch's last request, a plain question: its answer says that all before it was handled."""


class Mallory:
    """What it can be told to do."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.child: subprocess.Popen[bytes] | None = None
        self.mine: dict[str, str] = {}

    # --- a session of its own ------------------------------------------------------------------------------

    def open(self, name: str = "mine.ipynb") -> Any:
        """Open a session for a child process; return its keys."""
        self.child = subprocess.Popen(["/bin/sleep", "1000"])
        with Peer(self.path) as peer:
            opened = peer.hello("Open", name=name)
        self.mine = {"session": opened["session"], "token": opened["token"]}
        pidfd = os.pidfd_open(self.child.pid)
        with Peer(self.path) as peer:
            bound = peer.hello("Bind", [pidfd], **self.mine)
        os.close(pidfd)
        return {**self.mine, "pid": self.child.pid, "bound": bound["type"]}

    def close(self) -> None:
        """End it."""
        if self.child is not None:
            with contextlib.suppress(OSError), Peer(self.path) as peer:
                peer.hello("Close", **self.mine)
            self.child.kill()
            self.child.wait()
            self.child = None

    # --- requests about others -------------------------------------------------------------------------------

    def attack(self, victim: dict[str, Any], requests: int, seed: int) -> Any:
        """Send this many requests that are about another's session; return what came back, counted, and what was leaked."""
        rng, answers, leaks = random.Random(seed), Counter[str](), 0
        hellos, asks = _hostile(victim, self.mine)
        for number in range(requests):
            if number % 2:
                kind, body, pid = rng.choice(hellos)
                fds = [] if pid is None else [os.pidfd_open(pid)]
                with Peer(self.path) as peer:
                    answer = peer.hello(kind, fds, **body)
                for fd in fds:
                    os.close(fd)
            else:
                kind, body = rng.choice(asks)
                attached = bool(self.mine) and rng.random() < 0.7
                with Peer(self.path) as peer:
                    peer.hello(*(["Attach"] if attached else ["Observe"]), **({"token": self.mine["token"]} if attached else {}))  # fmt: skip
                    answer = peer.ask(kind, **body)
            said = answer or {"type": "hung up"}
            answers[f"{kind}: {said.get('code', said['type'])}"] += 1
            sent = json.dumps(body)  # what it said itself it may hear again
            leaks += any(
                each in json.dumps(said) and each not in sent for each in victim["secrets"]
            )
        return {"answers": answers, "leaks": leaks}

    # --- frames that are none -------------------------------------------------------------------------------------

    def fuzz(self, seed: int, frames: int, seconds: float = 1e9) -> Any:
        """Send mutated frames on its own session and as hellos, until the broker has handled `frames`; return how many."""
        fuzz = Fuzz(seed, self.mine)
        handled, lines, end = 0, 0, time.monotonic() + seconds
        while handled < frames and time.monotonic() < end:
            lines += 1
            with contextlib.suppress(OSError), Peer(self.path) as peer:
                if fuzz.rng.random() < 0.05:
                    handled += self._hello(peer, fuzz)
                    continue
                self._greet(peer, fuzz)
                while handled < frames and time.monotonic() < end:
                    done, alive = _batch(peer, fuzz)
                    handled += done
                    if not alive:
                        break
        return {"handled": handled, "connections": lines}

    def _greet(self, peer: Peer, fuzz: Fuzz) -> None:
        if fuzz.rng.random() < 0.8:
            said = peer.hello("Attach", token=self.mine["token"])
        else:
            said = peer.hello("Observe")
        if said is None or said["type"] == "Failure":
            raise ConnectionResetError

    def _hello(self, peer: Peer, fuzz: Fuzz) -> int:
        peer.sock.sendall(fuzz.frame(fuzz.hello()))
        with contextlib.suppress(OSError):
            peer.sock.shutdown(socket.SHUT_WR)
            while peer.sock.recv(65536):
                pass
        return 1

    # --- much of it ------------------------------------------------------------------------------------------------

    def flood(self, seconds: float, rate: float, kinds: list[str]) -> Any:
        """Ask `rate` times a second over several connections; return how many requests were sent and answered, by second."""
        peers = [Peer(self.path) for _ in range(8)]
        for peer in peers:
            peer.hello("Observe")
            peer.sock.settimeout(0)
        frames = [_framed(pack([0, 1, {"type": kind, **REQUESTS[kind]}])) for kind in kinds]
        began, sent, got, short = time.monotonic(), 0, 0, [b""] * len(peers)
        while (now := time.monotonic() - began) < seconds:
            due = int(now * rate) - sent
            if due <= 0:
                time.sleep(0.0005)
            for at, peer in enumerate(peers):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        got += peer.sock.recv(1 << 18).count(b"type")
                if due <= 0:
                    continue
                data = short[at] or frames[(sent + at) % len(frames)] * min(due, 20)
                try:
                    taken = peer.sock.send(data)
                except BlockingIOError:
                    continue
                short[at] = data[taken:]
                sent += min(due, 20) * (not short[at])
                due -= 20
        for peer in peers:
            peer.close()
        return {"sent": sent, "seconds": time.monotonic() - began, "answered": got}

    def burn(self, seconds: float) -> Any:
        """Only burn CPU."""
        end, turns = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            turns += 1
        return turns

    def churn(self, number: int) -> Any:
        """Open and drop sessions, half of them with a goodbye; return what the broker said, counted."""
        said = Counter[str]()
        for n in range(number):
            with Peer(self.path) as peer:
                opened = peer.hello("Open", name=f"{n}.ipynb")
            said[opened.get("code", opened["type"])] += 1
            if n % 2 and opened["type"] == "Opened":
                with Peer(self.path) as peer:
                    peer.hello("Close", session=opened["session"], token=opened["token"])
        return said

    def crowd(self, number: int) -> Any:
        """Hold as many connections as it may; return how many, and what the next one reads."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        held = []
        for _ in range(number):
            peer = Peer(self.path)
            said = peer.hello("Observe")
            if said is None or said["type"] == "Failure":
                peer.close()
                break
            held.append(peer)
        for peer in held:
            peer.close()
        return {"held": len(held), "said": said}

    def descriptors(self, number: int) -> Any:
        """Send a hello in single bytes, four descriptors beside each; return what the broker says."""
        null = os.open(os.devnull, os.O_RDONLY)
        data = struct.pack("<I", number) + bytes(number)
        with Peer(self.path) as peer:
            for byte in data:
                socket.send_fds(peer.sock, [bytes([byte])], [null] * 4)
            answer = peer.receive()
        os.close(null)
        return answer["body"]["code"]

    def nag(self, seconds: float) -> Any:
        """Ask and ask, until the broker has a word to say about it; return the bytes from there on, as text."""
        question, rest, seen = _framed(pack([0, 1, {"type": "GetSnapshot"}])) * 50, b"", b""
        end = time.monotonic() + seconds
        with Peer(self.path) as peer:
            peer.hello("Observe")
            peer.sock.settimeout(0)
            while b"Announce" not in seen and time.monotonic() < end:
                with contextlib.suppress(BlockingIOError):
                    rest = rest or question
                    rest = rest[peer.sock.send(rest) :]
                select.select([peer.sock], [], [], 0.1)
                with contextlib.suppress(BlockingIOError):
                    seen = seen[-1000:] + peer.sock.recv(1 << 18)
        return seen.partition(b"Announce")[2].decode(errors="replace")

    def says(self, hello: str, body: dict[str, Any], requests: list[tuple[str, dict[str, Any]]]) -> Any:  # fmt: skip
        """Say one hello, and ask; return the answers."""
        with Peer(self.path) as peer:
            return [peer.hello(hello, **body), *(peer.ask(kind, **each) for kind, each in requests)]


def _batch(peer: Peer, fuzz: Fuzz) -> tuple[int, bool]:
    """Send some frames and a plain question behind them; return how many were handled, and whether the line stands."""
    frames = [fuzz.frame(fuzz.request(number)) for number in range(1, BATCH + 1)]
    last = _framed(pack([0, LAST, {"type": "GetNeeds"}]))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        peer.sock.sendall(b"".join(frames) + last)
    seen = 0
    while True:
        answer = peer.receive()
        if answer is None:
            return seen, False
        kind, number, _body = answer
        if kind == 1 and number == LAST:
            return BATCH, True
        if kind == 1 and number == 0:
            return seen + 1, False
        if kind == 1 and number <= BATCH:
            seen = max(seen, number)


def _framed(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


def _hostile(victim: dict[str, Any], mine: dict[str, str]) -> tuple[list[Any], list[Any]]:
    """Return hellos (kind, body, pid to pass) and requests (kind, body) that are about another's session."""
    keys = {"session": victim["session"], "token": victim["token"]}
    guessed = {"session": victim["session"], "token": "A" * 32}
    own = os.getpid()
    hellos: list[Any] = [
        (kind, {**each, **more}, pid)
        for each in (keys, guessed, {**keys, "token": mine.get("token", "")})
        for kind, more, pid in (
            ("Exempt", {"seconds": 60.0}, None),
            ("Restart", {}, None),
            ("Close", {}, None),
            ("Bind", {}, own),
            ("Bind", {}, victim["pid"]),
            ("Bind", {}, None),
        )
    ]
    for token in (victim["token"], guessed["token"], ""):
        hellos += [
            ("Attach", {"token": token}, None),
            ("OfferBundle", {"token": token, "name": "x", "size": 4096}, None),
            ("MapBundle", {"token": token, "name": "x"}, None),
            ("LeaseArena", {"token": token, "size": 4096}, None),
        ]
    if mine:
        hellos.append(("Bind", dict(mine), victim["pid"]))
    asks: list[Any] = []
    for name in (victim["session"], victim["name"], victim["job"]):
        asks += [(kind, {"notebook": name}) for kind in BY_NAME]
        asks.append(("AskHolder", {"session": name}))
    for job in (victim["job"], f"{victim['session']}/{victim['job']}", f"../{victim['session']}"):
        asks += [
            ("Cancel", {"job": job}),
            ("Yield", {**REQUESTS["Yield"], "job": job}),
            ("End", {**REQUESTS["End"], "job": job}),
        ]
    asks += [
        ("Stop", {}),
        ("SetPolicy", {"policy": "fifo"}),
        ("GetSnapshot", {}),
        ("BundleFilled", {}),
    ]
    return hellos, asks


def main(path: str) -> None:
    """Answer commands."""
    mallory = Mallory(path)
    try:
        for line in sys.stdin:
            name, *words = json.loads(line)
            print(json.dumps(getattr(mallory, name)(*words)), flush=True)
    finally:
        mallory.close()


if __name__ == "__main__":
    main(sys.argv[1])
