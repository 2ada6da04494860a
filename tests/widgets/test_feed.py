"""The feed: when it looks, what it sends, whom it believes, and that it neither grows nor costs."""

from __future__ import annotations

import gc
import json
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from gpushare_widgets.changes import changes
from gpushare_widgets.feed import BEAT, NEWS, SILENT, Feed, offered
from gpushare_widgets.scene import Kept, scene
from msgspec.structs import replace

from gpushare_kernel import BrokerUnavailable
from gpushare_kernel.client import api
from gpushare_kernel.client.line import Line
from gpushare_kernel.wire.messages import AskedNow, PausedNow, ReleasedNow, ResumedNow
from gpushare_kernel.wire.snapshot import Snapshot
from tests.faults.conftest import host
from tests.faults.host import Host, kill
from tests.procs import eventually
from tests.widgets.snapshots import FULL, IDLE, NOW, TURNS, Turn, crowd

__all__ = ["host"]

STILL = replace(FULL, devices=(replace(FULL.devices[0], turns=()),))
"""Everything but turns: these are told by their age, which the tests' clock knows nothing of."""


class Tape(Line):
    """A line on which a test says what comes."""

    def __init__(self) -> None:
        self.now: Snapshot = STILL
        self.away = False
        self.released: list[str] = []
        self.did: list[tuple[str, str]] = []
        self.asked = 0

    def snapshot(self) -> Snapshot:
        self.asked += 1
        if self.away:
            msg = "the gpushare broker closed the connection."
            raise BrokerUnavailable(msg)
        return self.now

    def release(self, session: str) -> ReleasedNow:
        self.released.append(session)
        return ReleasedNow(2**30, ("hw2.ipynb",))

    def pause(self, session: str) -> PausedNow:
        self.did.append(("pause", session))
        return PausedNow(("hw2.ipynb",), 600.0)

    def resume(self, session: str) -> ResumedNow:
        self.did.append(("resume", session))
        return ResumedNow(("hw2.ipynb",))

    def ask_holder(self, session: str) -> AskedNow:
        self.did.append(("ask", session))
        return AskedNow(0.0)

    def close(self) -> None:
        """Nothing to hang up."""


class Screen:
    """A view that remembers what it is sent."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.closed = False

    def push(self, message: dict[str, Any]) -> None:
        if self.closed:
            msg = "comm is closed"
            raise RuntimeError(msg)
        self.got.append(message)

    def take(self) -> list[dict[str, Any]]:
        got, self.got = self.got, []
        return got


class Steps(Feed):
    """A feed whose thread is the test, and whose clock is a number."""

    def __init__(self, *, running: bool = True) -> None:
        self.time, self.tape, self.runs = 1000.0, Tape(), running
        super().__init__(
            lambda snapshot, now: scene(snapshot, now=now),
            lambda: self.tape,
            lambda _changed: _Asks(self),
            lambda: self.time,
        )

    def _start(self) -> None:
        """The test is the thread."""

    def cell(self, *, runs: bool) -> None:
        """A cell begins or ends."""
        self.runs = runs
        self._cell_changed()

    def go(self, seconds: float) -> bool:
        """Let time pass, turn by turn; False once the thread has ended."""
        until = self.time + seconds
        while True:
            pause = self._turn()
            if pause is None:
                return False
            if self.time + pause >= until:
                self.time = until
                return True
            self.time += max(pause, 1e-6)


class _Asks:
    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def __bool__(self) -> bool:
        return self._steps.runs


def watched(steps: Steps, front: str = "a") -> Screen:
    """Show a view in one front end, and let it have its first scene."""
    screen = Screen()
    steps.show(screen)
    steps.hear(screen, {"type": "hello", "view": front})
    assert steps.go(0.01)
    first = screen.take()
    assert [one["type"] for one in first] == ["scene"]
    assert first[0]["fresh"]
    return screen


def waited(seconds: float) -> Snapshot:
    """Return the full snapshot with who waits first having waited so long."""
    first, *rest = STILL.queue
    return replace(STILL, queue=(replace(first, waited=seconds), *rest))


def older(seconds: float, *more: Turn, turns: tuple[Turn, ...] = TURNS) -> Snapshot:
    """Return the full snapshot so long after, by the broker's clock, with all its turns that are within the window still."""
    aged = [
        replace(t, began=round(t.began + seconds, 4), ended=round(t.ended + seconds, 4))
        for t in turns
    ]
    kept = (*(t for t in aged if t.ended < 30), *more)
    return replace(
        FULL, devices=(replace(FULL.devices[0], turns=kept),), at=round(500 + seconds, 4)
    )


# --- when ---------------------------------------------------------------------------------------------------


def test_four_looks_a_second_and_only_what_changed() -> None:
    """While a cell runs it looks four times a second; where nothing changed it says that now and then, else the entry that did."""
    steps = Steps()
    screen = watched(steps)
    asked = steps.tape.asked
    assert steps.go(10)
    assert steps.tape.asked - asked in (40, 41)
    said = screen.take()
    assert 10 / (NEWS + 0.25) <= len(said) <= 10 / NEWS
    assert all(set(one) == {"type", "n", "beat", "at"} for one in said)
    steps.tape.now = waited(90.0)
    assert steps.go(0.3)
    (new,) = screen.take()
    assert set(new) == {"type", "n", "beat", "at", "parts"}
    (entry,) = new["parts"]["queue"]["items"]
    assert entry["job"] == "j2"
    assert "order" not in new["parts"]["queue"]


def test_idle_sends_nothing() -> None:
    """While no cell runs it neither asks nor sends, whatever changes, and wants no sign of the view."""
    steps = Steps(running=False)
    screen = Screen()
    steps.show(screen)
    steps.hear(screen, {"type": "hello", "view": "a"})
    assert steps.go(0.01)
    assert [one["beat"] for one in screen.take()] == [SILENT]
    asked = steps.tape.asked
    for second in range(600):
        steps.tape.now = waited(100.0 + second)
        assert steps.go(1)
    assert screen.take() == []
    assert steps.tape.asked == asked


def test_who_asks_is_answered() -> None:
    """Refresh, and a view that becomes visible: how fresh it is is news where nothing else is."""
    steps = Steps(running=False)
    screen = watched(steps)
    assert steps.go(100)
    steps.hear(screen, {"type": "look", "view": "a"})
    assert steps.go(0.01)
    assert [set(one) for one in screen.take()] == [{"type", "n", "beat", "at"}]
    assert steps.go(100)
    assert screen.take() == []


def test_the_pace_is_told_when_it_changes() -> None:
    """A cell's beginning and its end are told though nothing else happened, and once."""
    steps = Steps(running=False)
    screen = watched(steps)
    steps.cell(runs=True)
    assert steps.go(0.3)
    assert [one["beat"] for one in screen.take()] == [BEAT]
    steps.cell(runs=False)
    assert steps.go(10)
    assert [one["beat"] for one in screen.take()] == [SILENT]


def test_a_cell_that_ended_while_nobody_looked() -> None:
    """The thread had ended: who signs then, as it was told while the cell ran, is told not to."""
    steps = Steps()
    screen = watched(steps)
    assert not steps.go(31)
    steps.cell(runs=False)
    screen.take()
    steps.hear(screen, {"type": "alive", "view": "a"})
    assert steps.go(1)
    assert [one["beat"] for one in screen.take()] == [SILENT]


def test_the_end_of_a_cell_is_shown_once() -> None:
    """Half a second after it, when the broker knows; then silence."""
    steps = Steps()
    screen = watched(steps)
    steps.cell(runs=False)
    steps.tape.now = IDLE
    assert steps.go(0.4)
    assert screen.take() == []
    assert steps.go(0.2)
    assert len(screen.take()) == 1
    for n in range(50):
        steps.tape.now = (IDLE, STILL)[n % 2]
        assert steps.go(1)
    assert screen.take() == []


def test_it_stops_without_a_sign_of_a_view() -> None:
    """Thirty seconds without a sign while a cell runs: a view signs thrice in that time."""
    steps = Steps()
    screen = watched(steps)
    assert steps.go(29)
    steps.hear(screen, {"type": "alive", "view": "a"})
    assert steps.go(29)
    assert not steps.go(2)
    assert not steps.alive


def test_it_stops_for_a_view_that_nobody_shows() -> None:
    """Made and not displayed, as where a notebook is run by a program: thirty seconds, whether a cell runs or not."""
    steps = Steps(running=False)
    steps.show(Screen())
    assert steps.go(29)
    assert not steps.go(2)


def test_a_cell_that_begins_after_a_while_is_shown() -> None:
    """A view that was told to give no sign has thirty seconds from the cell's beginning."""
    steps = Steps(running=False)
    screen = watched(steps)
    assert steps.go(1000)
    steps.cell(runs=True)
    for second in range(29):
        steps.tape.now = waited(90.0 + second)
        assert steps.go(1)
        assert screen.take()
    assert not steps.go(2)


def test_it_stops_when_the_last_view_says_so() -> None:
    """Two front ends show it: only when the second has gone it stops; whoever comes back has everything anew."""
    steps = Steps()
    screen = watched(steps)
    steps.hear(screen, {"type": "alive", "view": "b"})
    steps.hear(screen, {"type": "bye", "view": "a"})
    assert steps.go(1)
    steps.hear(screen, {"type": "bye", "view": "b"})
    assert not steps.go(1)
    steps.hear(screen, {"type": "hello", "view": "b"})
    assert steps.go(0.1)
    assert [one.get("fresh") for one in screen.take()] == [True]


def test_a_broker_that_goes_and_comes() -> None:
    """Both are said once; what was seen last stays; meanwhile it asks less and less often."""
    steps = Steps()
    screen = watched(steps)
    steps.tape.away = True
    asked = steps.tape.asked
    assert steps.go(20)
    said, *silence = screen.take()
    assert said["whole"] == {"notice": "The gpushare broker closed the connection."}
    assert "gone" not in said
    assert all(set(one) == {"type", "n", "beat", "at"} for one in silence)
    assert steps.tape.asked - asked < 20
    steps.tape.away = False
    assert steps.go(3)
    assert [one["gone"] for one in screen.take() if "gone" in one] == [["notice"]]


# --- what ---------------------------------------------------------------------------------------------------


def test_spans_that_only_grow_older_are_no_news() -> None:
    """A span is a moment by the broker's clock, whatever an answer took; one that ended, or began, is news."""
    steps = Steps()
    steps.tape.now = older(0.0)
    screen = watched(steps)
    steps.tape.now = older(0.013)  # less than it takes for one to leave the window
    assert steps.go(0.3)
    assert screen.take() == []
    steps.tape.now = older(0.02, Turn("s2", 0.01, 0.0, "turn"))
    assert steps.go(0.3)
    (new,) = screen.take()
    assert list(new["parts"]) == ["time"]
    row = next(r for r in new["parts"]["time"]["items"][0]["rows"] if r["session"] == "s2")
    assert row["spans"][0][1:] == [None, "turn"]


def test_many_spans_that_only_grow_older_are_no_news() -> None:
    """Gathered to coarser pieces they are the same pieces, too, until a whole one leaves the window: not at these times."""
    steps = Steps()
    steps._make = lambda snapshot, _now: scene(snapshot, now=NOW + (snapshot.at or 0.0))
    many = tuple(
        Turn(f"s{1 + 2 * (n % 2)}", 29.9 - n * 0.04, 29.88 - n * 0.04, ("turn", "drain")[n % 3 == 0])
        for n in range(700)
    )  # fmt: skip
    steps.tape.now = older(0.1, turns=many)
    screen = watched(steps)
    for looks in range(3):
        steps.tape.now = older(0.1 + 0.03 * looks, turns=many)
        assert steps.go(0.3)
    assert screen.take() == []


def test_what_is_as_before_is_not_made_again() -> None:
    """Memory and notebooks are made anew only where somebody did something: account and clock go on meanwhile."""
    steps, made = Steps(), list[Any]()
    kept = Kept()

    def make(snapshot: Snapshot, now: float) -> Any:
        made.append(scene(snapshot, now=now, kept=kept))
        return made[-1]

    steps._make = make
    steps.tape.now = STILL
    watched(steps)
    worked = tuple(replace(one, device_time=one.device_time + 1, turns=9) for one in STILL.sessions)
    steps.tape.now = replace(STILL, sessions=worked)
    before = steps._scene
    assert steps.go(0.3)
    assert before is not None
    assert steps._scene is not None
    for section in ("devices", "sessions"):
        assert made[-1][section] is made[0][section]
        assert steps._scene[section] is before[section]
    first, *rest = worked
    steps.tape.now = replace(STILL, sessions=(replace(first, state="idle"), *rest))
    assert steps.go(0.3)
    assert steps._scene["sessions"] != before["sessions"]


def test_a_crowd_fits() -> None:
    """200 notebooks of which everything changed, and at first sight: at most 30 KB."""
    steps = Steps()
    steps.tape.now = crowd(200)
    screen = Screen()
    steps.show(screen)
    assert steps.go(0.01)
    steps.tape.now = crowd(200, own=7, users=31)
    assert steps.go(0.3)
    first, second = (len(json.dumps(one, ensure_ascii=False).encode()) for one in screen.take())
    assert first <= 30_000, first
    assert second <= 30_000, second


def test_changes_name_order_only_where_it_is_new() -> None:
    """An entry that leaves changes the order; two with the same key make a section whole."""
    before = {"at": 1, "queue": [{"job": "a"}, {"job": "b"}], "rt": [1]}
    assert changes(before, {**before, "at": 2}) is None
    assert changes(before, {"at": 2, "queue": [{"job": "b"}]}) == {
        "at": 2,
        "parts": {"queue": {"items": [], "order": ["b"]}},
        "gone": ["rt"],
    }
    twice = {**before, "queue": [{"job": "a"}, {"job": "a", "x": 1}]}
    assert changes(before, twice) == {"at": 1, "whole": {"queue": twice["queue"]}}


# --- whom ---------------------------------------------------------------------------------------------------


def wish(action: str, session: str) -> dict[str, str]:
    """Return what a front end says when a control is used."""
    return {"type": "do", "view": "a", "action": action, "session": session, "call": "c1"}


@pytest.mark.parametrize(
    ("action", "session", "answer", "released"),
    [
        ("release", "s2", "Released 1.0 GiB of GPU memory: hw2.ipynb.", ["s2"]),
        ("release", "s3", "This notebook is not yours: only its owner can do that.", []),
        ("release", "nobody", "This notebook is not there any more.", []),
        ("pause", "s2", "This notebook cannot be asked to pause now.", []),
        ("__init__", "s2", "This notebook cannot be asked to __init__ now.", []),
    ],
)
def test_controls(action: str, session: str, answer: str, released: list[str]) -> None:
    """One's own, and what can be done: checked here, whatever the browser shows."""
    steps = Steps()
    screen = watched(steps)
    steps.hear(screen, wish(action, session))
    assert steps.go(0.01)
    done = [one for one in screen.take() if one["type"] == "done"]
    assert done == [{"type": "done", "call": "c1", "text": answer}]
    assert steps.tape.released == released


@pytest.mark.parametrize(
    ("action", "session", "answer"),
    [
        ("pause", "s1", "Paused hw2.ipynb for 10 min at most"),
        ("resume", "s2", "hw2.ipynb runs again"),
        ("ask", "s4", "Asked: its user reads how many wait"),
        ("ask", "s1", "This notebook cannot be asked to ask now."),
        ("pause", "s4", "This notebook is not yours"),
    ],
)
def test_what_the_broker_is_asked_for(action: str, session: str, answer: str) -> None:
    """Each control is one request, and its answer is a sentence."""
    steps = Steps()
    by_hand = [replace(s, why_paused="by-its-owner") if s.id == "s2" else s for s in STILL.sessions]
    steps.tape.now = replace(STILL, sessions=tuple(by_hand))
    screen = watched(steps)
    steps.hear(screen, wish(action, session))
    assert steps.go(0.01)
    (done,) = [one for one in screen.take() if one["type"] == "done"]
    assert done["text"].startswith(answer)
    refused = answer.startswith("This")
    assert steps.tape.did == ([] if refused else [(action, session)])


def test_only_what_the_broker_has_a_request_for_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """To others' notebooks only asking; nothing that could not be carried out, and no pause that would stop this very process."""
    told = offered(Steps().first())["sessions"]
    controls = {entry["id"]: entry["actions"] for entry in told}
    assert controls == {
        "s1": ["pause"],
        "s2": ["release", "park"],
        "s3": [],
        "s4": ["ask"],
        "s5": ["restore"],
    }
    monkeypatch.setenv("GPUSHARE_SESSION", "s1")
    for kind, actions in {"cuda": ["pause"], "host": []}.items():
        steps = Steps()
        steps.tape.now = replace(STILL, devices=(replace(STILL.devices[0], kind=kind),))
        first = offered(steps.first())["sessions"]
        assert next(entry["actions"] for entry in first if entry["id"] == "s1") == actions, kind


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        "do",
        {},
        {"type": "hello"},
        {"type": "hello", "view": 3},
        {"type": "hello", "view": "x" * 10_000},
        {"type": ["do"], "view": "a"},
        {"type": "do", "view": "a"},
        {"type": "do", "view": "a", "action": "release", "session": {}, "call": "c"},
        {"type": "do", "view": "a", "action": "release", "session": "s2", "call": "c" * 10_000},
    ],
)
def test_nonsense_is_passed_over(said: object) -> None:
    """What no front end of ours says changes nothing."""
    steps = Steps()
    screen = watched(steps)
    steps.hear(screen, said)
    assert steps.go(1)
    assert screen.take() == []
    assert steps.tape.released == []


def test_front_ends_without_number_are_not_kept() -> None:
    """A page that says every time it is another one does not make us grow."""
    steps = Steps()
    screen = watched(steps)
    for n in range(10_000):
        steps.hear(screen, {"type": "alive", "view": f"v{n}"})
        steps.hear(screen, wish("release", f"s{n}"))
    assert len(steps._shown[id(screen)].signs) <= 50
    assert len(steps._wishes) <= 50


def test_a_comm_that_closes_mid_update() -> None:
    """It is dropped in that moment, and the other view has what it is to have."""
    steps = Steps()
    first, second = watched(steps), Screen()
    steps.show(second)
    assert steps.go(0.01)
    second.take()
    first.closed = True
    steps.tape.now = waited(90.0)
    assert steps.go(0.5)
    assert len(second.take()) == 1
    assert list(steps._shown) == [id(second)]


def test_a_scene_that_cannot_be_drawn_is_said() -> None:
    """A fault of ours is a line in the view, with no traceback, and the feed goes on."""
    steps = Steps()
    screen = watched(steps)
    make = steps._make
    steps._make = lambda _snapshot, _now: 1 // 0
    assert steps.go(0.5)
    (said,) = screen.take()
    assert "ZeroDivisionError" in said["whole"]["notice"]
    steps._make = make
    assert steps.go(3)
    assert [one["gone"] for one in screen.take() if "gone" in one] == [["notice"]]


def test_a_look_that_comes_late_does_not_put_off_the_next() -> None:
    """A kernel that is paused now and then still shows as much a second; two looks are never at once."""
    steps = Steps()
    watched(steps)
    assert steps.go(2)
    (usual,) = {round(steps._pace(), 3)}
    steps.time = steps._from + usual  # on time
    assert steps._turn() == pytest.approx(usual)
    steps.time += usual + 0.1  # it stood still for a tenth
    assert steps._turn() == pytest.approx(usual - 0.1)
    steps.time += 10  # and for long
    assert steps._turn() == pytest.approx(0.4 * usual)


def test_ten_thousand_updates_do_not_grow() -> None:
    """What is kept after the last is what was kept after the hundredth."""
    steps = Steps()
    screen = watched(steps)
    sizes = []
    tracemalloc.start()
    try:
        for n in range(10_000):
            steps.tape.now = (IDLE, STILL)[n % 2]
            if n % 50 == 0:
                steps.hear(screen, {"type": "alive", "view": "a"})
            assert steps.go(0.3)
            assert len(screen.take()) == 1
            if n in (100, 9_999):
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 100_000, sizes


# --- at a real broker -------------------------------------------------------------------------------------------


def real() -> Feed:
    """Return a feed at the host's broker, of a process whose cell runs for ever."""
    return Feed(lambda snapshot, now: scene(snapshot, now=now), running=lambda _changed: True)


def until(screen: Screen, holds: Callable[[dict[str, Any]], object]) -> None:
    """Wait for a message of which something holds."""
    eventually(lambda: any(holds(one) for one in list(screen.got)))


def test_real_broker_restarts(host: Host) -> None:
    """A thread of its own shows what is there, says when the broker is killed, and shows the next one."""
    before = host.start("--capacity", "1GiB")
    feed, screen = real(), Screen()
    assert feed.first()["devices"][0]["capacity"] == 2**30
    feed.show(screen)
    until(screen, lambda one: one.get("fresh"))
    threads = [one for one in threading.enumerate() if one.name == "gpushare-view"]
    assert [one.daemon for one in threads] == [True]
    guardian = host.guardian_of(before)
    kill(guardian)
    kill(before)
    until(screen, lambda one: "notice" in one.get("whole", {}))
    assert "no gpushare broker runs" in feed.first()["notice"].lower()
    host.start("--capacity", "2GiB")
    until(screen, lambda one: "notice" in one.get("gone", ()))
    assert api._session is None  # the session is not what is asked
    feed.close()
    eventually(lambda: not threads[0].is_alive())
    assert not feed.alive


def test_a_notebook_comes_and_goes(host: Host) -> None:
    """What happens at the broker is sent, by entry."""
    host.start("--capacity", "1GiB")
    feed, screen = real(), Screen()
    feed.show(screen)
    until(screen, lambda one: one.get("fresh"))
    notebook = host.notebook("hw1.ipynb")
    sessions = [
        entry
        for one in screen.got
        for entry in (
            one.get("whole", {}).get("sessions", [])
            + one.get("parts", {}).get("sessions", {}).get("items", [])
        )
    ]
    eventually(
        lambda: "sessions" in json.dumps(screen.got) and "hw1.ipynb" in json.dumps(screen.got)
    )
    assert all(entry["actions"] in ([], ["release"]) for entry in sessions)
    notebook.close()
    until(screen, lambda one: "sessions" in one.get("gone", ()))
    feed.close()
