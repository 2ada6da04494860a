"""Lanes as notebooks and scripts use them: boundaries, nesting, running without a broker."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import gpushare_kernel as gpushare
from gpushare_kernel.client import api
from gpushare_kernel.client.lanes import Lane
from gpushare_kernel.core.errors import BadDeclaration, BadSize, Refused
from gpushare_kernel.core.values import GiB, MiB
from gpushare_kernel.transport.places import places, prepare
from gpushare_kernel.transport.words import LANE, TURN
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import (
    End,
    Failure,
    Granted,
    Soon,
    Submit,
    Yield,
)
from tests.client.scripted_broker import Peer, ScriptedBroker, report


def in_thread(call: Callable[[], object]) -> Future[object]:
    """Run a blocking call beside the test, which plays the broker meanwhile."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return future


class Entered:
    """A lane entered in a thread of its own, driven step by step."""

    def __init__(self, broker: ScriptedBroker, **options: object) -> None:
        self._pool = ThreadPoolExecutor(1)
        entering = self.do(lambda: gpushare.lane(**(options or {"size": "6GiB"})).__enter__())  # type: ignore[arg-type]
        self.peer: Peer = broker.accept()
        number, self.submit = self.peer.expect(Submit)
        self.peer.grant(number, self.submit, slot=2)
        self.lane = entering.result(20)

    def do(self, call: Callable[[], object]) -> Future[Lane]:
        """Run a call in the lane's thread."""
        return self._pool.submit(call)  # type: ignore[arg-type]

    def leave(self) -> End:
        """Leave the lane and answer its end."""
        leaving = self.do(self.lane.close)
        number, end = self.peer.expect(End)
        self.peer.reply(number, report(self.submit.job))
        leaving.result(20)
        self._pool.shutdown()
        return end


@pytest.fixture
def entered(environment: ScriptedBroker) -> Iterator[Entered]:
    """A lane of 6 GiB in slot 2."""
    inside = Entered(environment)
    yield inside
    if inside.lane.open:
        inside.leave()
    inside._pool.shutdown()


def test_declaration_goes_out_as_given(environment: ScriptedBroker) -> None:
    """Sizes may be text or bytes; the name is the notebook's; a lane is cooperative."""
    inside = Entered(environment, persistent="2GiB", ephemeral=GiB, weight=2)
    asked = inside.submit
    assert (asked.persistent, asked.ephemeral, asked.size) == (2 * GiB, GiB, None)
    assert (asked.name, asked.weight, asked.cooperative) == ("hw1.ipynb", 2.0, True)
    inside.leave()


def test_percent_is_of_the_device(environment: ScriptedBroker) -> None:
    """25% of 8 GiB are 2 GiB."""
    inside = Entered(environment, size="25%")
    assert inside.submit.size == 2 * GiB
    inside.leave()


def test_one_part_alone(environment: ScriptedBroker) -> None:
    """A part that is not named is not needed."""
    inside = Entered(environment, persistent="1GiB")
    assert (inside.submit.persistent, inside.submit.ephemeral) == (GiB, 0)
    inside.leave()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"size": "2"}, BadSize, "has no unit"),
        ({"size": "1,5GB"}, BadSize, "Write 1.5GB"),
        ({"size": -5}, BadSize, "is negative"),
        ({"size": 0}, BadSize, "is zero"),
        ({"size": 2**60}, BadSize, "smaller unit"),
        ({"size": 1.5}, BadDeclaration, "number of bytes"),
        ({"size": True}, BadDeclaration, "number of bytes"),
        ({"size": "1GiB", "persistent": "1GiB"}, BadDeclaration, "exclude each other"),
        ({"weight": 0}, BadDeclaration, "between 0.01 and 100, and 0 is not"),
        ({"weight": 1000}, BadDeclaration, "between 0.01 and 100, and 1000 is not"),
        ({"weight": float("nan")}, BadDeclaration, "nan is not"),
        ({"weight": float("inf")}, BadDeclaration, "inf is not"),
        ({"wait": -1}, BadDeclaration, "0 seconds or more"),
        ({"wait": float("nan")}, BadDeclaration, "not nan"),
    ],
)
def test_nonsense_is_refused_before_anybody_is_asked(
    options: dict[str, object], error: type[Exception], words: str
) -> None:
    """A declaration that makes no sense is refused where it is written."""
    with pytest.raises(error, match=words):
        gpushare.lane(**options)  # type: ignore[arg-type]


def test_quiet_boundary_says_nothing(entered: Entered) -> None:
    """While the word is 0 a boundary is counted, and that is all."""
    for _ in range(1000):
        entered.lane.step()
    assert entered.lane.boundaries == 1000
    assert entered.leave().boundaries == 1000


def test_turn_passes_at_a_boundary(entered: Entered) -> None:
    """With TURN set the job yields untrimmed, and goes on when granted, in the slot it is given."""
    entered.lane.step()
    entered.peer.page.set(2, TURN)
    stepping = entered.do(entered.lane.step)
    number, asked = entered.peer.expect(Yield)
    assert (asked.job, asked.trimmed, asked.boundaries) == (entered.submit.job, False, 2)
    assert asked.interval > 0
    assert not stepping.done()
    entered.peer.page.set(2, 0)
    entered.peer.notice(Soon())  # wakes the waiter, and is no grant
    assert not stepping.done()
    entered.peer.reply(number, Granted(asked.job, 1, 4, 0.1, 3 * GiB, 3 * GiB))
    stepping.result(20)
    entered.peer.page.set(2, TURN)  # somebody else's word by now
    entered.do(entered.lane.step).result(20)


def test_lane_is_given_back_trimmed(entered: Entered) -> None:
    """With LANE set unreachable objects are collected before the job says that it is empty."""

    class Node:
        pass

    node = Node()
    node.itself = node  # type: ignore[attr-defined]
    gone = weakref.ref(node)
    gc.disable()
    try:
        del node
        entered.peer.page.set(2, LANE | TURN)
        stepping = entered.do(entered.lane.step)
        number, asked = entered.peer.expect(Yield)
        assert asked.trimmed
        assert gone() is None
    finally:
        gc.enable()
    entered.peer.page.set(2, 0)
    entered.peer.reply(number, Granted(asked.job, 1, 2, 0.1, 0, 0))
    stepping.result(20)


def test_broker_gone_at_a_boundary(entered: Entered) -> None:
    """A job that waits at a boundary runs on when its broker dies, and later boundaries do not wait."""
    api._session.listen(lambda _: None)  # type: ignore[union-attr]
    entered.peer.page.set(2, TURN)
    stepping = entered.do(entered.lane.step)
    entered.peer.expect(Yield)
    entered.peer._sock.shutdown(2)
    stepping.result(20)
    entered.do(entered.lane.step).result(20)
    entered.do(entered.lane.close).result(20)


def test_interrupted_boundary_still_waits(environment: ScriptedBroker) -> None:
    """Code that swallows the interrupt at a boundary waits at its next one: the turn is not its own."""
    peers: list[Peer] = []
    yields: list[int] = []
    second = threading.Event()

    def play() -> None:
        peer = environment.accept()
        peers.append(peer)
        number, asked = peer.expect(Submit)
        peer.page.set(1, TURN)
        peer.grant(number, asked)
        yields.append(peer.expect(Yield)[0])
        os.kill(os.getpid(), signal.SIGINT)
        second.wait(20)
        peer.page.set(1, 0)
        peer.reply(yields[0], Granted(asked.job, 1, 1, 0.1, 0, 0))
        number, end = peer.expect(End)
        peer.reply(number, report(end.job))

    playing = in_thread(play)
    with gpushare.lane(size="1GiB") as lane:
        with pytest.raises(KeyboardInterrupt):
            lane.step()
        second.set()
        lane.step()
        lane.step()
    playing.result(20)
    assert lane.report is not None


def test_steps_keeps_the_length(entered: Entered) -> None:
    """A loop over `steps` meets a boundary after each round; len() works where it did before."""
    assert len(entered.lane.steps([1, 2, 3])) == 3  # type: ignore[arg-type]
    assert not hasattr(entered.lane.steps(iter([])), "__len__")
    assert list(entered.lane.steps("abc")) == ["a", "b", "c"]
    assert entered.lane.boundaries == 3
    for _ in entered.lane.steps(range(5)):
        break
    assert entered.lane.boundaries == 3


def test_a_round_with_steps_inside_is_no_further_step(entered: Entered) -> None:
    """Three epochs of ten batches are thirty steps; what waits for an epoch's end is met there all the same."""
    lane, met = entered.lane, []
    for _ in lane.steps(range(3)):
        for _ in lane.steps(range(10)):
            pass
        met.append(lane.boundaries)
    assert met == [10, 20, 30]
    rounds = iter(lane.steps("ab"))
    entered.do(lambda: next(rounds)).result(20)
    entered.do(lane.step).result(20)
    entered.peer.page.set(2, TURN)
    over = entered.do(lambda: next(rounds))
    number, asked = entered.peer.expect(Yield)
    assert asked.boundaries == 31
    entered.peer.page.set(2, 0)
    entered.peer.reply(number, Granted(asked.job, 1, 2, 0.1, 3 * GiB, 3 * GiB))
    assert over.result(20) == "b"
    assert entered.leave().boundaries == 31


def test_inner_lane_must_fit(entered: Entered) -> None:
    """A lane inside a lane is checked here, with the numbers, and no message is sent."""

    def inside() -> str:
        with gpushare.lane(size="5GiB") as inner:
            inner.step()
            assert gpushare.current_lane() is inner
        with pytest.raises(BadDeclaration) as refused:
            gpushare.lane(size="7GiB").__enter__()
        with pytest.raises(BadDeclaration, match=r"4\.0 GiB to keep.*3\.0 GiB"):
            gpushare.lane(persistent="4GiB", ephemeral="1GiB").__enter__()
        assert gpushare.current_lane() is entered.lane
        return str(refused.value)

    said = entered.do(inside).result(20)
    assert "asks for 7.0 GiB in all, where 'hw1.ipynb' around it has 6.0 GiB" in said  # type: ignore[operator]
    assert entered.leave().boundaries == 1
    assert [type(m) for m in entered.peer.seen] == [Submit, End]


def test_inner_boundary_leaves_the_memory_around_it(entered: Entered) -> None:
    """LANE is for the outer boundary; TURN passes at an inner one."""

    def inside() -> None:
        with gpushare.lane(size="1GiB") as inner:
            entered.peer.page.set(2, LANE)
            inner.step()
            entered.peer.page.set(2, LANE | TURN)
            inner.step()

    running = entered.do(inside)
    number, asked = entered.peer.expect(Yield)
    assert (asked.trimmed, asked.boundaries) == (False, 2)
    entered.peer.page.set(2, 0)
    entered.peer.reply(number, Granted(asked.job, 1, 2, 0.1, 0, 0))
    running.result(20)


def test_lane_is_of_its_thread(entered: Entered) -> None:
    """Another thread is in no lane, and after the end nobody is."""
    assert gpushare.current_lane() is None
    assert entered.do(gpushare.current_lane).result(20) is entered.lane
    end = entered.do(entered.lane.close)
    number, _ = entered.peer.expect(End)
    entered.peer.reply(number, report(entered.submit.job))
    end.result(20)
    assert entered.do(gpushare.current_lane).result(20) is None
    assert entered.lane.report == report(entered.submit.job)
    with pytest.raises(BadDeclaration, match="entered once"):
        entered.lane.__enter__()


def test_refused_lane_is_not_entered(environment: ScriptedBroker) -> None:
    """Where the broker refuses, the block does not run and no lane is left open."""

    def attempt() -> None:
        with gpushare.lane(size="6GiB"):
            pytest.fail("the block ran")

    running = in_thread(attempt)
    peer = environment.accept()
    number, _ = peer.expect(Submit)
    peer.reply(number, Failure("Refused", "never"))
    with pytest.raises(Refused):
        running.result(20)


def test_unknown_token_runs_unshared(
    environment: ScriptedBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    """A session that is no more does not keep code from running; it is said."""

    def attempt() -> bool:
        with gpushare.lane(size="6GiB") as lane:
            lane.step()
        return lane.shared

    running = in_thread(attempt)
    environment.accept(Failure("BadToken", "no such session."))
    assert running.result(20) is False
    assert capsys.readouterr().err == (
        "gpushare: no such session. The code runs as it is, and nothing is shared.\n"
    )


def test_without_a_token_nothing_is_shared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outside a gpushare kernel a lane is a block that counts its boundaries, and that is said once."""
    monkeypatch.setattr(api, "_told", False)
    monkeypatch.delenv("GPUSHARE_TOKEN", raising=False)
    monkeypatch.setattr(api, "_session", None)
    with gpushare.lane("50%", "512MiB") as lane:
        assert gpushare.current_lane() is lane
        for _ in lane.steps(range(4)):
            assert not lane.shared
    assert (lane.boundaries, lane.report, lane.ephemeral) == (4, None, 512 * MiB)
    gpushare.lane("1GiB")
    assert capsys.readouterr().err == f"gpushare: {texts.NO_BROKER}\n"


def test_a_program_without_a_session_beside_a_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broker answers and knows nothing of this program: it is said how to start it."""
    monkeypatch.setattr(api, "_told", False)
    monkeypatch.delenv("GPUSHARE_TOKEN", raising=False)
    monkeypatch.setattr(api, "_session", None)
    monkeypatch.setenv("GPUSHARE_RUNTIME_DIR", str(tmp_path / "run"))
    prepare(places())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(places().socket))
        listening.listen()
        gpushare.lane("1GiB")
    assert capsys.readouterr().err == f"gpushare: {texts.NO_SESSION}\n"


def test_public_names() -> None:
    """Everything `gpushare` promises is there, and nothing else is invented."""
    for name in gpushare.__all__:
        assert getattr(gpushare, name)
        assert name in dir(gpushare)
    with pytest.raises(AttributeError, match="no attribute 'lanes_'"):
        gpushare.lanes_  # noqa: B018
