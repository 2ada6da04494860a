"""Who comes in: every hello, and everybody who may not."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gpushare_kernel import kernel_session
from gpushare_kernel.broker.kernels import Kernel
from gpushare_kernel.core.errors import (
    BadFrame,
    BadToken,
    Busy,
    NotYours,
    UserError,
    VersionMismatch,
)
from gpushare_kernel.core.values import GiB, JobId, Presence, SessionId
from gpushare_kernel.transport.allowance import HANDSHAKES
from gpushare_kernel.transport.channel import connect
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.codec import decode_welcome
from tests.broker.house import House, raw
from tests.procs import Program

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
NOBODY = 65534


def test_a_kernels_way_in(house: House) -> None:
    """Open, bind, attach: a session, its process, its client, each with the session's page."""
    opened = house.open("hw1.ipynb", weight=2.0)
    session = house.broker.scheduler.sessions[opened.session]
    assert (session.presence, session.weight) == (Presence.OPENED, 2.0)
    house.bind(opened)
    assert house.kernel(opened).key is not None
    client = house.attach(opened)
    assert isinstance(client.body, msg.Attached)
    assert (client.body.session, client.body.device, client.body.kind) == (
        opened.session,
        "played0",
        "model",
    )
    assert client.view is not None
    assert client.view.read(0) == 0
    house.saw(lambda: session.presence is Presence.ATTACHED)
    assert opened.token not in repr(house.kernel(opened)), "the broker keeps a token's hash only"


def test_a_client_that_is_faster_than_its_provisioner_waits_for_the_bind(house: House) -> None:
    """The kernel starts before its pidfd comes."""
    opened = house.open()
    bodies = []
    thread = threading.Thread(target=lambda: bodies.append(house.attach(opened).body))
    thread.start()
    house.saw(lambda: house.listener.handshakes == 1)
    house.bind(opened)
    thread.join(20)
    assert isinstance(bodies[0], msg.Attached)


def test_a_notebook_that_opens_while_many_of_its_user_come_in_waits_for_a_place(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told to try again in a moment, which its starter does by itself; after its time it says so."""
    silent = [connect(house.path, 30) for _ in range(HANDSHAKES)]
    house.saw(lambda: house.listener.handshakes == HANDSHAKES)
    places, turned_away = Places(house.path.parent, system=False, named=True), threading.Event()
    monkeypatch.setattr(kernel_session, "EXCHANGE_TIMEOUT", 0.3)
    with pytest.raises(Busy, match="Try again in a moment"):
        opened(places)
    assert house.listener.turned_away > 1
    asked = kernel_session._asked

    def seen(*of: Any) -> Any:
        try:
            return asked(*of)
        except Busy:
            turned_away.set()
            raise

    monkeypatch.setattr(kernel_session, "_asked", seen)
    monkeypatch.setattr(kernel_session, "EXCHANGE_TIMEOUT", 20.0)
    with ThreadPoolExecutor(1) as pool:
        comes = pool.submit(opened, places)
        assert turned_away.wait(20)
        for each in silent:
            each.close()
        comes.result(20).close()
    assert not house.broker.scheduler.sessions


def opened(places: Places) -> kernel_session.KernelSession:
    """Open a session as a provisioner does."""
    return kernel_session.open_session(places, "hw1.ipynb", kernel_id="", language="python", weight=1.0)  # fmt: skip


@pytest.mark.parametrize("kind", ["restart", "bind", "close", "exempt", "attach"])
def test_a_token_that_is_nobodys_opens_nothing(house: House, kind: str) -> None:
    """Wrong, of another session, or of the session's former kernel. A goodbye may come twice, and is fine."""
    mine, other = house.open(), house.open()
    for session, token in (
        (mine.session, "wrong"),
        (mine.session, ""),
        (mine.session, other.token),
        (SessionId("s000"), mine.token),
    ):
        body = {
            "restart": msg.Restart(session, token),
            "bind": msg.Bind(session, token),
            "close": msg.Close(session, token),
            "exempt": msg.Exempt(session, token, 1.0),
            "attach": msg.Attach(token if token in ("", "wrong") else "other"),
        }[kind]
        if kind == "close":
            house.call(body)
        else:
            with pytest.raises(BadToken):
                house.call(body)
    assert set(house.broker.scheduler.sessions) == {mine.session, other.session}


def test_a_restart_makes_the_old_token_worth_nothing(house: House) -> None:
    """The session stays, its process and token are new ones."""
    client = house.notebook()
    opened: msg.Opened = client.opened  # type: ignore[attr-defined]
    again = house.call(msg.Restart(opened.session, opened.token)).body
    assert isinstance(again, msg.Opened)
    assert again.session == opened.session
    assert again.token != opened.token
    with pytest.raises(BadToken):
        house.attach(opened)
    house.bind(again)
    assert isinstance(house.attach(again).body, msg.Attached)


def test_who_is_not_below_the_sessions_process_is_not_its_client(house: House) -> None:
    """A token that leaked to another process is no way in; the pid is the kernel's word, not the message's."""
    opened = house.open()
    with Program("say('up'); wait()") as kernel:
        kernel.said()
        house.bind(opened, kernel.pid)
        for opener in (kernel.key, None):  # whoever opened it, it was not we
            house.kernel(opened).opener = opener
            with pytest.raises(BadToken, match=f"belongs to process {kernel.pid} and its children"):
                house.attach(opened)


def test_whoever_opened_a_session_may_attach_for_it(house: House) -> None:
    """The starter of a command holds its memory from outside: the session is one without a client, at once."""
    opened = house.open()
    with Program("say('up'); wait()") as command:
        command.said()
        house.bind(opened, command.pid)
        starter = house.attach(opened)
        session = house.broker.scheduler.sessions[SessionId(opened.session)]
        assert house.do(lambda: session.presence) is Presence.BARE
        job = msg.Submit(JobId("j"), "train", persistent=GiB, ephemeral=0)
        assert isinstance(starter.ask(job), msg.Granted)
        assert house.do(lambda: session.declared) == GiB


def test_a_bind_needs_a_pidfd_of_a_living_process(house: House) -> None:
    """No descriptor, one of another kind, or of a process that has ended: refused, and the session can still be bound."""
    opened = house.open()
    bind = msg.Bind(opened.session, opened.token)
    with pytest.raises(BadFrame, match="none came"):
        house.call(bind)
    with open(os.devnull) as null, pytest.raises(BadFrame, match="another kind of descriptor"):  # noqa: PTH123
        house.call(bind, [null.fileno()])
    with Program("") as gone:
        fd = os.pidfd_open(gone.pid)
    with pytest.raises(BadFrame, match="has ended"):
        house.call(bind, [fd])
    os.close(fd)
    house.bind(opened)


def test_a_bound_session_keeps_its_process(house: House) -> None:
    """Whoever has the token cannot put another process in its place; the loop watches the first one on."""
    opened = house.open()
    with Program("say('up'); wait()") as first:
        first.said()
        house.bind(opened, first.pid)
        with pytest.raises(NotYours, match="Restart the session first"):
            house.bind(opened)
        kernel = house.kernel(opened)
        assert kernel.key == first.key
    house.saw(lambda: kernel.key is None)


def test_versions_are_agreed_or_refused_with_both_sides_named(house: House) -> None:
    """The newest both speak; none: who speaks what, and what to do."""
    assert house.call(msg.Observe(), versions=(99, *msg.SPOKEN)).welcome.version == msg.VERSION
    for versions in ((0,), (), (99, 98)):
        with pytest.raises(VersionMismatch, match=r"pip install \. in a newer clone"):
            house.call(msg.Observe(), versions=versions)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("\x1b[31mred\n\r\x00", "?[31mred???"),
        ("\u202egnp.evil", "?gnp.evil"),
        ("", "notebook"),
        ("x" * 500, "x" * 200),
        ("schön 漢字.ipynb", "schön 漢字.ipynb"),
    ],
)
def test_a_hostile_name_breaks_no_screen(house: House, name: str, seen: str) -> None:
    """Control characters and right-to-left tricks become question marks, length is bounded."""
    assert house.kernel(house.open(name)).name == seen


def test_an_endless_name_is_refused(house: House) -> None:
    """With the numbers."""
    with pytest.raises(UserError, match="may have 200 characters, and this one has 900"):
        house.open("x" * 900)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e9])
def test_a_weight_that_means_nothing_is_refused(house: House, weight: float) -> None:
    """Before a session is made."""
    with pytest.raises(UserError, match="a weight must be"):
        house.open("x", weight=weight)
    assert len(house.broker.registry) == 0


def test_what_is_not_a_hello_is_answered_with_why(house: House) -> None:
    """Rubbish and frames that are too long: a failure, and the broker goes on."""
    for data in (b"\x05\0\0\0hello", b"\xff\xff\xff\xff", b"\x01\0\0\0\xc0"):
        body = decode_welcome(raw(house.path, data)).body
        assert isinstance(body, msg.Failure)
        assert body.code in {"BadFrame", "FrameTooLong"}
    connect(house.path, 5).close()
    assert isinstance(house.call(msg.Observe()).body, msg.Ok)


def test_descriptors_that_nobody_asked_for_are_closed(house: House) -> None:
    """Whatever comes beside a hello that needs nothing does not stay open here."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with open(os.devnull) as null:  # noqa: PTH123
            house.call(msg.Observe(), [null.fileno()]).close()
    house.saw(lambda: not house.broker.observers)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_an_exempt_session_is_resumed_before_the_answer(house: House) -> None:
    """Whoever is about to signal a kernel is answered when it runs; it is not paused meanwhile, a minute at most."""
    client = house.notebook()
    opened: msg.Opened = client.opened  # type: ignore[attr-defined]
    house.call(msg.Exempt(opened.session, opened.token, -5.0))
    session = house.broker.scheduler.sessions[opened.session]
    assert session.exempt_until <= house.broker.engine.now
    house.call(msg.Exempt(opened.session, opened.token, 1e9))
    assert 0 < session.exempt_until - house.broker.engine.now <= 60.0


def test_a_closed_session_is_gone_for_its_client_too(house: House) -> None:
    """What still hangs on the line is told so, instead of waiting for ever."""
    client = house.notebook()
    opened: msg.Opened = client.opened  # type: ignore[attr-defined]
    house.call(msg.Close(opened.session, opened.token))
    answer = client.ask(msg.Submit(JobId("j"), "cell", size=1))
    assert isinstance(answer, msg.Failure)
    assert answer.code == "NotYours"
    assert "session has ended" in answer.message


@as_root
def test_another_users_token_and_process_are_refused(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I9: a token works for its own uid only, and a session is bound to a process of its own user only."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    opened = house.open()
    (attach,) = house.as_user(NOBODY, msg.Attach(opened.token))
    (closing,) = house.as_user(NOBODY, msg.Close(opened.session, opened.token))
    assert attach.code == "BadToken"
    assert isinstance(closing, msg.Ok), "a goodbye that changes nothing"
    assert opened.session in house.broker.scheduler.sessions
    owners: list[tuple[int, bool]] = []  # looked at while it is there: its opener ends at once
    usual = house.broker.opened

    def opened_now(kernel: Kernel, **more: Any) -> None:
        usual(kernel, **more)
        session = house.broker.scheduler.sessions[kernel.id]
        owners.append((kernel.uid, session.user.id == kernel.user))

    monkeypatch.setattr(house.broker, "opened", opened_now)
    house.as_user(NOBODY, msg.Open("x"))
    assert owners == [(NOBODY, True)]


@pytest.mark.parametrize("kind", [msg.Exempt, msg.Close, msg.Restart])
def test_a_kernel_does_not_free_itself_from_turns(house: House, kind: type) -> None:
    """What ends or exempts a session comes from whoever started it, not from inside the kernel."""
    client = house.notebook()
    opened: msg.Opened = client.opened  # type: ignore[attr-defined]
    house.kernel(opened).opener = None  # somebody else started it
    more = (5.0,) if kind is msg.Exempt else ()
    with pytest.raises(NotYours, match="whoever started this kernel"):
        house.call(kind(opened.session, opened.token, *more))
    assert house.broker.scheduler.sessions[opened.session].exempt_until == 0.0


def test_a_deadline_of_an_earlier_start_does_not_close_a_session(house: House) -> None:
    """60 s after its open a session may just be between a restart and its bind."""
    opened = house.notebook().opened  # type: ignore[attr-defined]
    kernel = house.kernel(opened)
    awaited = kernel.awaited
    reply = house.call(msg.Restart(opened.session, opened.token)).body
    assert isinstance(reply, msg.Opened)
    house.do(lambda: house.broker._still_opened(kernel.id, awaited))
    assert house.kernel(reply) is kernel
    house.do(lambda: house.broker._still_opened(kernel.id, kernel.awaited))
    assert house.broker.registry.get(kernel.id) is None
