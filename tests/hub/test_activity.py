"""The hub is told who works or is parked: of snapshots, of a hub that answers anything, and beside a real culler."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.hub import environment
from benchmarks.hub.hub import Hub, until
from gpushare_kernel.core.values import SessionId
from gpushare_kernel.hub.activity import KEEP, Watch, tell
from gpushare_kernel.wire.snapshot import SCHEMA, SessionView, Snapshot
from tests.hub.conftest import needs_hub

SILENT = """
import threading
stop = threading.Event()
def work():
    while not stop.is_set():
        sum(range(10**5))
"""

_LONG = "aelie9sohjeequ9iemeipuimuoshahz4aitugiuteeg4ohioh5yuiha6aei7te5z"


def snapshot(**states: str) -> Snapshot:
    """A session of each account, in this state."""
    found = [
        SessionView(SessionId(user), user, None, None, state, None, None, 0.0)
        for user, state in states.items()
    ]
    return Snapshot(SCHEMA, None, sessions=tuple(found))


def test_who_works_or_is_parked_is_active() -> None:
    """Idle and bare ones are not: them a culler may end."""
    states = {"ann": "busy", "bob": "idle", "cid": "parked", "dan": "bare", "eve": "restoring", "fay": "paused"}  # fmt: skip
    assert Watch().active(snapshot(**states), 0.0) == {
        (name, "") for name in ("ann", "cid", "eve", "fay")
    }


def test_a_parked_notebook_counts_for_so_long_and_again_when_parked_anew() -> None:
    """A server that nobody comes back to is ended in the end."""
    watch = Watch(keep=10.0)
    assert watch.active(snapshot(ann="parked"), 100.0) == {("ann", "")}
    assert watch.active(snapshot(ann="parked"), 109.9) == {("ann", "")}
    assert watch.active(snapshot(ann="parked"), 110.0) == set()
    assert watch.active(snapshot(ann="idle"), 111.0) == set()
    assert watch.active(snapshot(ann="parked"), 112.0) == {("ann", "")}
    assert Watch()._keep == KEEP


@pytest.fixture
def posts() -> Iterator[tuple[str, dict[str, int], list[tuple[str, str, dict[str, object]]]]]:
    """A hub's API that keeps what is posted, and answers with a status by path."""
    kept: list[tuple[str, str, dict[str, object]]] = []
    statuses: dict[str, int] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.append((self.path, self.headers["Authorization"], json.loads(body)))
            self.send_response(statuses.get(self.path, 200))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hub/api", statuses, kept
        server.shutdown()
        thread.join()


def test_accounts_are_told_by_their_names_at_the_hub(posts) -> None:
    """TLJH's accounts by both; who is nobody there is no trouble; what is one is said."""
    api, statuses, kept = posts
    statuses["/hub/api/users/jupyter-ann/activity"] = 404
    statuses["/hub/api/users/bob/activity"] = 400
    statuses["/hub/api/users/a%2Fb/activity"] = 403
    failed = tell(
        api, "secret", {(name, "") for name in ("jupyter-ann", "bob", "root (hub)", "a/b")}
    )
    assert [path.split("/")[4] for path, _, _ in kept] == ["a%2Fb", "ann", "bob", "jupyter-ann", "root"]  # fmt: skip
    assert {token for _, token, _ in kept} == {"token secret"}
    body = kept[0][2]
    assert body["servers"] == {"": {"last_activity": body["last_activity"]}}
    assert failed == ["a/b: the hub answered 403 Forbidden"]


@contextlib.contextmanager
def kernel_with(**env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that was told this."""
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as kernel:  # fmt: skip
        kernel.stdout.readline()
        yield kernel
        kernel.communicate()


@pytest.mark.parametrize(
    ("account", "told", "name"),
    [
        # The two pairs that TLJH's own tests have (test_normalize.py): 26 characters are shortened already.
        ("jupyter-aelie9sohjeequ9iem-4b726", _LONG, _LONG),
        ("jupyter-abcdefghijklmnopqr-e375e", "abcdefghijklmnopqr", "abcdefghijklmnopqr"),
        ("jupyter-ann", "ann", "ann"),
        # Anybody may write another's name into a process of theirs.
        ("jupyter-bob", _LONG, "jupyter-bob"),
        ("bob", "ann", "bob"),
        ("ann", "", "ann"),
    ],
)  # fmt: skip
def test_a_name_that_tljh_shortened_is_told_whole(account: str, told: str, name: str) -> None:
    """An account of 32 characters is nobody's name at the hub; what the process was told is, where it makes that account."""
    with kernel_with(JUPYTERHUB_USER=told) as kernel:
        busy = SessionView(SessionId("s"), account, None, kernel.pid, "busy", None, None, 0.0)
        assert Watch().active(Snapshot(SCHEMA, None, sessions=(busy,)), 0.0) == {(name, "")}


def test_named_servers_are_told_by_their_names(posts) -> None:
    """As the notebook's process was told by the hub; one that has ended is in no other's way."""
    api, statuses, kept = posts
    with kernel_with(JUPYTERHUB_SERVER_NAME="big gpu") as kernel:
        named = SessionView("s", "ann", None, kernel.pid, "busy", None, None, 0.0)
        gone = SessionView("t", "ann", None, None, "busy", None, None, 0.0)
        active = Watch().active(Snapshot(SCHEMA, None, sessions=(named, gone)), 0.0)
    assert active == {("ann", "big gpu"), ("ann", "")}
    statuses["/hub/api/users/ann/activity"] = 400
    assert tell(api, "secret", active) == []
    assert [[*body["servers"]] for _, _, body in kept] == [[""], ["big gpu"]]


def test_a_hub_that_is_gone_is_said_once_and_not_waited_for(posts) -> None:
    """One line, however many accounts."""
    (said,) = tell("http://127.0.0.1:1/hub/api", "secret", {("ann", ""), ("bob", "")})
    assert said.startswith("the hub cannot be reached")


def test_it_says_that_it_is_a_service() -> None:
    """Run by hand."""
    done = subprocess.run(
        [sys.executable, "-m", "gpushare_kernel.hub.activity"], capture_output=True, text=True, env={"PATH": "/usr/bin"}, check=False
    )  # fmt: skip
    assert done.returncode == 2
    assert "this is a service of JupyterHub" in done.stderr
    assert "docs/admin/culling.md" in done.stderr


@pytest.mark.root
@needs_hub
def test_a_culler_leaves_who_works_alone_and_ends_who_is_idle(hub_environment: Path) -> None:
    """A real jupyterhub-idle-culler, with 15 s for its 10 min: a cell that computes in silence outlives two idle servers, and its own end ends it."""
    more = f"""
c.JupyterHub.services += [
    {{"name": "cull", "command": ["{hub_environment}/bin/jupyterhub-idle-culler", "--timeout=15", "--cull-every=1"]}},
    {{"name": "gpushare", "command": ["{hub_environment}/bin/python", "-m", "gpushare_kernel.hub.activity", "--every=1s"],
      "environment": {{"GPUSHARE_RUNTIME_DIR": c.Spawner.environment["GPUSHARE_RUNTIME_DIR"]}}}},
]
c.JupyterHub.load_roles += [
    {{"name": "cull", "services": ["cull"], "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"]}},
    {{"name": "gpushare", "services": ["gpushare"], "scopes": ["users:activity"]}},
]
"""
    with (
        environment.people("gpxann", "gpxbob"),
        Hub(hub_environment, ("gpxann", "gpxbob"), more=more) as hub,
    ):
        ann, bob = hub.names
        hub.start_server(ann)
        kernel = hub.kernel(ann)
        kernel.run(SILENT)
        cell = threading.Thread(target=kernel.run, args=("try:\n    work()\nexcept KeyboardInterrupt:\n    pass",))  # fmt: skip
        cell.start()
        for _ in range(2):
            hub.start_server(bob)
            until(lambda: hub.has_ended(bob), "an idle server is not culled", hub.log)
            assert hub.is_ready(ann), hub.log()
        hub.ask("POST", f"/user/{ann}/api/kernels/{kernel.id}/interrupt")
        cell.join()
        until(lambda: hub.has_ended(ann), "the service keeps an idle server", hub.log)
