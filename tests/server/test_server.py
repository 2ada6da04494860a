"""The server's extension: a real Jupyter server, a real broker, real kernels; no browser."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import websocket

from gpushare_kernel.app.ending import stop_broker
from tests.faults.host import LIMIT, Host
from tests.server.visitor import Visitor, told

ROOM = ("--compute", "1", "--turn", "0.1", "--capacity", "1GiB")
HOLD = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.02)"


def test_the_snapshot_comes_without_a_kernel(host: Host, visitor: Visitor) -> None:
    """All that status --json has, for this server's user, whose own notebooks have names."""
    host.start(*ROOM)
    status, said = visitor.ask("gpushare/snapshot")
    assert (status, said["schema"], said["sessions"]) == (200, 1, [])
    assert said["devices"][0]["capacity"] == 2**30
    host.notebook("hw1.ipynb")
    assert [one["name"] for one in visitor.ask("gpushare/snapshot")[1]["sessions"]] == ["hw1.ipynb"]


def test_looking_on_is_no_activity(host: Host, visitor: Visitor) -> None:
    """A page that shows the bar, and whoever reads snapshots, keep no server from being culled; a request of work is seen."""
    host.start(*ROOM)
    visitor.ask("api/contents", {"type": "file"})
    before = visitor.ask("api/status")[1]["last_activity"]
    told(visitor.watch(), lambda _: True)
    assert visitor.ask("gpushare/snapshot")[0] == 200
    assert visitor.ask("api/status")[1]["last_activity"] == before
    visitor.ask("api/contents", {"type": "file"})
    assert visitor.ask("api/status")[1]["last_activity"] > before


def test_nobody_without_a_token_sees_any_of_it(host: Host, visitor: Visitor) -> None:
    """Neither way."""
    host.start(*ROOM)
    assert visitor.ask("gpushare/snapshot", token="")[0] == 403
    assert visitor.ask("gpushare/snapshot", token="guess")[0] == 403
    for token in ("", "guess"):
        with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
            visitor.watch(token=token)


def test_without_a_broker_it_says_so_and_starts_none(host: Host, visitor: Visitor) -> None:
    """Plainly, both ways; a page is told when there is one, and when it is gone again."""
    status, said = visitor.ask("gpushare/snapshot")
    assert status == 503
    assert "no gpushare broker" in said["message"]
    page = visitor.watch()
    away = told(page, lambda _: True)
    assert away["device"]["text"] == "not shared: no broker"
    assert away["device"]["state"] == "away"
    assert not host.places.socket.exists()
    host.start(*ROOM)
    there = told(page, lambda said: said["device"]["state"] != "away")
    assert there["device"]["text"] == "CPU, memory 0 of 1 GiB in use"
    stop_broker(host.places, LIMIT)


def test_a_page_is_told_what_becomes_of_a_notebook(
    host: Host, visitor: Visitor, tmp_path: Path
) -> None:
    """A kernel of this server, by its id: idle, waiting with its place and why, running, idle; another's is none of the page's."""
    host.start(*ROOM)
    gate, end = tmp_path / "gate", tmp_path / "end"
    other = host.notebook("other.ipynb")
    held = other.start(f"%%gpulane 700MiB\n{HOLD.format(str(gate))}")
    host.until(lambda seen: any(one.doing for one in seen.sessions))
    page = visitor.watch()
    assert told(page, lambda _: True)["kernels"] == {}
    status, kernel = visitor.ask("api/kernels", {"name": "python3"})
    assert status == 201
    mine = kernel["id"]
    first = told(page, lambda said: said["kernels"].get(mine, {}).get("text", "").endswith("idle"))
    assert set(first["kernels"]) == {mine}

    channels = websocket.create_connection(
        f"ws://127.0.0.1:{visitor.port}/api/kernels/{mine}/channels?session_id=test",
        header=[f"Authorization: token {visitor.token}"],
        timeout=LIMIT,
    )
    visitor._sockets.append(channels)
    channels.send(execute(f"%%gpulane 600MiB\n{HOLD.format(str(end))}"))
    waiting = told(page, lambda said: said["kernels"][mine]["state"] == "waiting")["kernels"][mine]
    assert waiting["text"].startswith("CPU, memory ")
    assert "of 600 MiB · waiting, next" in waiting["text"]
    assert "Waiting for memory: needs 600 MiB" in waiting["title"]
    assert "Your own other.ipynb holds 700 MiB and is running." in waiting["title"]
    gate.touch()
    busy = told(page, lambda said: said["kernels"][mine]["state"] == "busy")["kernels"][mine]
    assert busy["text"].endswith("of 600 MiB · running")
    end.touch()
    told(page, lambda said: said["kernels"][mine]["state"] == "idle")
    list(other.outputs(held))


def execute(code: str) -> str:
    """A cell, as a page sends it."""
    import json

    header = {"msg_id": "1", "msg_type": "execute_request", "username": "", "session": "test", "date": "", "version": "5.3"}  # fmt: skip
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False, "stop_on_error": False}  # fmt: skip
    return json.dumps({"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content, "buffers": []})  # fmt: skip


def test_a_broker_that_stands_still_holds_up_nobody(host: Host, visitor: Visitor) -> None:
    """The server answers everything else meanwhile, and who asked is answered when the broker goes on."""
    broker = host.start(*ROOM)
    page = visitor.watch()
    told(page, lambda _: True)
    answers: list[tuple[int, object]] = []
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        asking = [
            threading.Thread(target=lambda: answers.append(visitor.ask("gpushare/snapshot")))
            for _ in range(20)
        ]
        for one in asking:
            one.start()
        for _ in range(5):
            assert visitor.ask("api/status")[0] == 200
        assert not answers
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    for one in asking:
        one.join(LIMIT)
    assert [status for status, _ in answers] == [200] * 20
