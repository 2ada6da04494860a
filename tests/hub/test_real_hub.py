"""Two users of a real JupyterHub, each with an account or both under one: who they are to the broker, and what outlives the hub."""

from __future__ import annotations

import http.cookiejar
import json
import os
import pwd
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from benchmarks.hub.hub import PATIENCE, Hub, HubKernel, NotOk, until
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.wire.snapshot import SessionView
from tests.hub.conftest import needs_hub

pytestmark = [pytest.mark.root, needs_hub]

ASK_ALL = """
from gpushare_kernel.client.line import line_from_here
from gpushare_kernel.core.errors import GpushareError
with line_from_here() as line:
    for what in ("release", "pause", "resume", "park", "unpark"):
        for notebook in ({session!r}, {name!r}):
            try:
                print(what, getattr(line, what)(notebook))
            except GpushareError as problem:
                print(what, type(problem).__name__, problem)
"""
COUNT = """
import threading
def count(path, stop):
    n = 0
    while not stop.is_set():
        for _ in range(20000):
            n += 1
        with open(path, "w") as out:
            out.write(str(n))
stop = threading.Event()
threading.Thread(target=count, args=({path!r}, stop)).start()
"""


def session_of(hub: Hub, kernel: HubKernel) -> SessionView:
    """The session of a kernel, as the broker's owner sees it."""
    wanted = kernel.session()
    (found,) = [one for one in hub.snapshot().sessions if one.id == wanted]
    return found


@pytest.fixture(params=["by_uid", "by_token"])
def hub(request: pytest.FixtureRequest) -> Hub:
    """Either."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Hub)
    return found


@pytest.fixture
def notebooks(hub: Hub) -> Iterator[list[HubKernel]]:
    """A notebook of each of the two; shut down afterwards."""
    pair = [hub.kernel(name, f"{name}.ipynb") for name in hub.names[:2]]
    yield pair
    for one in pair:
        hub.ask("DELETE", f"/user/{one.name}/api/kernels/{one.id}")


def test_each_is_who_they_are(hub: Hub, notebooks: list[HubKernel]) -> None:
    """An account for each; none of them is the hub's. The client is attached: no bare sessions."""
    for kernel in notebooks:
        seen = session_of(hub, kernel)
        assert (seen.user, seen.name) == (kernel.name, f"{kernel.name}.ipynb")
        assert seen.state == "idle"
    assert {user.name for user in hub.snapshot().users} == set(hub.names[:2])


def test_neither_sees_or_touches_the_other(hub: Hub, notebooks: list[HubKernel]) -> None:
    """From a kernel, as a terminal of the same server would: by name and by id; not a name of the other's is seen."""
    ann, bob = notebooks
    said = ann.run(ASK_ALL.format(session=bob.session(), name="bob.ipynb" if bob.name == "bob" else f"{bob.name}.ipynb"))  # fmt: skip
    lines = said.strip().splitlines()
    assert len(lines) == 10
    for line in lines:
        assert " NotYours " in line, line
        assert f"Yours: {ann.name}.ipynb" in line
    seen = ann.run("from gpushare_kernel.client.line import line_from_here\nprint(line_from_here().snapshot())")  # fmt: skip
    assert f"{ann.name}.ipynb" in seen
    assert f"{bob.name}" not in seen
    assert session_of(hub, bob).state == "idle"


def test_a_token_says_who_a_terminal_is(by_token: Hub) -> None:
    """Its server's token is ann; without one the uid is nobody that has notebooks; a forged one is refused."""
    kernel = by_token.kernel("ann", "mine.ipynb")
    assert session_of(by_token, kernel).user == "ann"
    mine = said(by_token, by_token.token_of("ann"), "status")
    assert mine["you"] == "ann"
    assert [one["name"] for one in mine["sessions"] if one["own"]] == ["mine.ipynb"]
    nobody = said(by_token, "", "status")
    assert nobody["you"] == "gpxhub"
    assert [one["name"] for one in nobody["sessions"]] == [None]
    assert "does not know the token" in said(by_token, "forged-0123456789", "status")["refused"]
    by_token.ask("DELETE", f"/user/ann/api/kernels/{kernel.id}")


def test_a_visitors_token_is_not_a_servers(by_token: Hub) -> None:
    """The real hub knows whose it is, and so does every server that was opened in a browser: the broker refuses it."""
    visit = visitors_token(by_token, "ann")
    assert by_token.ask("GET", "/hub/api/user", token=visit)["name"] == "ann"
    assert "somebody's browser" in said(by_token, visit, "status")["refused"]


def visitors_token(hub: Hub, name: str) -> str:
    """The token that somebody's server gets of them when they open it, got as it does (OAuth)."""
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar), _NoRedirect())
    here, form = f"http://127.0.0.1:{hub.port}", {"username": name, "password": hub.secret}
    browser.open(f"{here}/hub/login", timeout=PATIENCE).close()
    form["_xsrf"] = next(one.value or "" for one in jar if one.name == "_xsrf")
    with pytest.raises(urllib.error.HTTPError) as done:
        browser.open(f"{here}/hub/login", urlencode(form).encode(), timeout=PATIENCE)
    done.value.close()
    client = {"client_id": f"jupyterhub-user-{name}", "redirect_uri": f"/user/{name}/oauth_callback"}  # fmt: skip
    ask = urlencode({**client, "response_type": "code"})
    with pytest.raises(urllib.error.HTTPError) as sent:
        browser.open(f"{here}/hub/api/oauth2/authorize?{ask}", timeout=PATIENCE)
    sent.value.close()
    (code,) = parse_qs(urlsplit(sent.value.headers["Location"]).query)["code"]
    given = {**client, "client_secret": hub.token_of(name), "grant_type": "authorization_code", "code": code}  # fmt: skip
    with urllib.request.urlopen(f"{here}/hub/api/oauth2/token", urlencode(given).encode(), timeout=PATIENCE) as answer:  # fmt: skip
        return str(json.load(answer)["access_token"])


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Shows where a browser is sent, as an error."""

    def redirect_request(self, *_: object) -> None:
        """Go nowhere."""


def test_a_revoked_token_starts_nothing_and_says_why(by_token: Hub) -> None:
    """What the notebook's user reads is the hub's refusal, and what to do; nobody gets a session for it."""
    by_token.start_server("eve")
    by_token.ask("GET", "/user/eve/api/status")  # whose answer the server remembers
    for token in by_token.ask("GET", "/hub/api/users/eve/tokens")["api_tokens"]:
        by_token.ask("DELETE", f"/hub/api/users/eve/tokens/{token['id']}")
    before = {one.id for one in by_token.snapshot().sessions}
    with pytest.raises(NotOk) as caught:
        by_token.kernel("eve")
    assert "JupyterHub does not know the token" in caught.value.text
    assert "Restart your server" in caught.value.text
    assert {one.id for one in by_token.snapshot().sessions} == before


def test_hub_and_proxy_are_killed_and_come_back(
    hub: Hub, notebooks: list[HubKernel], tmp_path: Path
) -> None:
    """Kernels that take turns go on without them; who was known starts notebooks meanwhile; afterwards all is as before."""
    counts = [hub.folder / "home" / f"{one.name}.count" for one in notebooks]
    for kernel, path in zip(notebooks, counts, strict=True):
        kernel.run("kept = 'still here'\n" + COUNT.format(path=str(path)))
    until(lambda: all(map(_number, counts)), "they do not count")
    hub.kill(hub.hub)
    go_on(counts)
    late = hub.kernel(hub.names[0], "late.ipynb")
    assert session_of(hub, late).user == hub.names[0]
    hub.kill(hub.proxy)
    go_on(counts)
    hub.start_proxy()
    hub.start_hub()
    for name in hub.names[:2]:
        until(lambda name=name: hub.is_ready(name), f"{name}'s server is forgotten", hub.log)  # type: ignore[misc]
    for kernel in notebooks:
        until(lambda kernel=kernel: _reached(kernel), "no route to it", hub.log)  # type: ignore[misc]
        assert kernel.run("stop.set(); print(kept)") == "still here\n"
        assert session_of(hub, kernel).user == kernel.name
    until(lambda: not stopped(hub), f"processes stand still: {stopped(hub)}")
    after = hub.kernel(hub.names[1], "after.ipynb")
    assert session_of(hub, after).user == hub.names[1]
    for kernel in (late, after):
        hub.ask("DELETE", f"/user/{kernel.name}/api/kernels/{kernel.id}")


def test_a_killed_broker_is_followed_by_one_that_asks_the_same_hub(
    by_token: Hub,
) -> None:
    """Whose the notebooks are is in the ledger, and whoever comes is asked for as before."""
    notebooks = [by_token.kernel(name, f"{name}.ipynb") for name in ("ann", "bob")]
    with Line(by_token.places, PATIENCE) as line:
        former = line.pid
    os.kill(former, signal.SIGKILL)
    until(lambda: _another(by_token, former), "no broker follows", by_token.log)
    for kernel in notebooks:
        until(
            lambda kernel=kernel: session_of(by_token, kernel).state == "idle",  # type: ignore[misc]
            f"{kernel.name}'s notebook does not come back",
        )
        assert session_of(by_token, kernel).user == kernel.name
    late = by_token.kernel("bob", "late.ipynb")
    assert session_of(by_token, late).user == "bob"
    for kernel in (*notebooks, late):
        by_token.ask("DELETE", f"/user/{kernel.name}/api/kernels/{kernel.id}")


def _another(hub: Hub, former: int) -> bool:
    try:
        with Line(hub.places, PATIENCE) as line:
            return line.pid != former
    except BrokerUnavailable:
        return False


def test_doctor_says_who_one_is(by_token: Hub) -> None:
    """In a terminal of ann's server."""
    found = said(by_token, by_token.token_of("ann"), "doctor", JUPYTERHUB_USER="ann")
    assert "To the broker you are ann." in [one["text"] for one in found["checks"]]


def said(hub: Hub, token: str, command: str, **env: str) -> dict[str, Any]:
    """What `jupyter gpushare COMMAND --json` says in a terminal with this token, as the hub's account."""
    account = pwd.getpwnam(hub.account)
    done = subprocess.run(
        [hub.environment / "bin/jupyter-gpushare", command, "--json"],
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        cwd="/",
        env={
            "GPUSHARE_RUNTIME_DIR": str(hub.places.runtime),
            "HOME": str(hub.folder / "hub"),
            "JUPYTERHUB_API_TOKEN": token,
            **env,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"refused": done.stderr}
    return found


def go_on(counts: list[Path]) -> None:
    """Fail where somebody does not count on."""
    before = [_number(path) for path in counts]
    until(
        lambda: all(_number(path) > old for path, old in zip(counts, before, strict=True)),
        "somebody stands still",
    )


def stopped(hub: Hub) -> list[int]:
    """Processes of this broker's sessions that are stopped."""
    pids = [one.pid for one in hub.snapshot().sessions if one.pid is not None]
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"]  # fmt: skip


def _number(path: Path) -> int:
    try:
        return int(path.read_text() or 0)
    except OSError:
        return 0


def _reached(kernel: HubKernel) -> bool:
    try:
        return bool(kernel.hub.ask("GET", f"/user/{kernel.name}/api/kernels/{kernel.id}"))
    except (NotOk, OSError):
        return False


def test_the_scene_is_what_it_says(by_uid: Hub, by_token: Hub) -> None:
    """Two uids in the one, one in the other: else nothing above would say anything."""
    uids = {Path(f"/proc/{by_uid.server_pids(name)[0]}").stat().st_uid for name in by_uid.names}
    assert uids == {pwd.getpwnam(name).pw_uid for name in by_uid.names}
    shared = {
        Path(f"/proc/{by_token.server_pids(name)[0]}").stat().st_uid for name in ("ann", "bob")
    }
    assert shared == {pwd.getpwnam("gpxhub").pw_uid}
