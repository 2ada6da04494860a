"""What feeds the live views of this process: one daemon thread, a line of its own to the broker, and few words.

It asks for a snapshot four times a second while a cell of this kernel runs, and sends what changed. While none runs it
asks and sends only where a front end wants to know: a server takes every message of a comm for activity, and a kernel
that seems active is never culled. Without a sign of a view for a while the thread ends; the next sign starts another.
Nothing of the session is touched, neither its connection nor its locks: a turn is not slowed by somebody who looks on.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpushare_kernel import BrokerUnavailable, GpushareError
from gpushare_kernel.client.line import Line, line_from_here
from gpushare_kernel.client.shown import Snapshot, parking_texts, texts
from gpushare_widgets.changes import Scene, changes
from gpushare_widgets.moments import settled
from gpushare_widgets.running import Running

EVERY, SELDOM = 0.25, 0.3
"""Seconds between two looks while a cell runs; the second where looks are dear."""
LATE = 0.6
"""Part of the pace by which the look after a late one comes sooner, at most."""
PART = 0.006
"""What looking may take of a core before it looks less often."""
NEWS = 1.5
"""Seconds after which a view hears that nothing is new, while a cell runs: silence is a kernel that cannot speak."""
SETTLES = 0.5
"""Seconds after a cell's end at which the broker has taken it in: then its end is shown, once."""
GONE = 30.0
"""Seconds without a sign after which a view is gone, while a cell runs. While none does it is silent, and stays."""
BEAT, SILENT = GONE / 3, 0.0
"""Seconds between two signs of a view while a cell runs; what a view is told while none does: to give no sign."""
PATIENCE = 2.0
"""Seconds in which a broker answers, or is away."""
_PAUSES = (0.25, 0.5, 1.0, 2.0)
"""Seconds between attempts to find a broker that is away."""
_DOES = ("release", "pause", "resume", "park", "restore", "ask")
"""The controls that a broker has a request for."""
_STRAYS = 1.0
"""Seconds by which the broker's clock and ours may part."""
_FRONT_ENDS = 50
"""Front ends of one view that are told apart; more are not believed."""
_LONGEST_ID = 64


class View(Protocol):
    """What shows scenes somewhere."""

    def push(self, message: dict[str, Any]) -> None:
        """Send a message to every front end that shows this view. Fails where nobody listens any more."""


@dataclass(slots=True)
class _Shown:
    """What one view has, and who looks at it."""

    view: View
    sent: Scene | None = None
    number: int = 0
    eager: bool = True
    #: The last sign of each front end that shows it.
    signs: dict[str, float] = field(default_factory=dict)
    #: How often it was told to give one, and when; and when it was last sent something.
    beat: float = BEAT
    told: float = -math.inf
    sent_at: float = -math.inf

    def lasts(self, front: str, sign: float) -> float:
        """Return until when a front end is taken to be there, after its last sign. Who made the view is no front end."""
        if not front:
            return sign + GONE
        return math.inf if self.beat == SILENT else max(sign, self.told) + GONE


@dataclass(frozen=True, slots=True)
class _Wish:
    """A control that somebody used in a front end."""

    view: View
    action: str
    session: str
    call: str


class Feed:
    """Feeds every view of this process.

    Parameters
    ----------
    make
        Makes a scene of a snapshot and the time.
    open_line
        Opens a line to the broker.
    running
        Makes what says whether a cell runs; called with what to call when that changes.
    """

    def __init__(
        self,
        make: Callable[[Snapshot, float], Scene],
        open_line: Callable[[], Line] = lambda: line_from_here(PATIENCE),
        running: Callable[[Callable[[], None]], object] = Running,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._open_line = open_line
        self._clock = clock
        self._lock = threading.Lock()  # ours: nobody who holds it waits for anything
        self._wake = threading.Event()
        self._shown: dict[int, _Shown] = {}
        self._wishes: deque[_Wish] = deque(maxlen=_FRONT_ENDS)
        self._running = running(self._cell_changed)
        self._thread: threading.Thread | None = None
        self._line: Line | None = None
        #: What was seen last, as it was made, and as it was sent.
        self._made: Scene = {}
        self._scene: Scene | None = None
        #: What the time is when the broker's clock is at 0.
        self._zero = float("-inf")
        self._failures = 0
        #: Seconds of a core that a look takes, of late.
        self._cost = 0.0
        #: When to look next, at the latest. None: as the pace says, from the last look.
        self._at: float | None = None
        self._looked = float("-inf")
        #: From when the pace counts: a look that came late (the kernel was paused) does not put off the next.
        self._from = float("-inf")

    # --- any thread -----------------------------------------------------------------------------------------

    def first(self) -> Scene:
        """Return the scene of now, as it was made; says so where the broker is away."""
        try:
            with self._open_line() as line:
                return self._make(line.snapshot(), time.time())
        except GpushareError as problem:
            return {"at": time.time(), "notice": _sentence(problem)}

    def show(self, view: View, scene: Scene | None = None) -> None:
        """Feed a view from now on; it has `scene` already."""
        with self._lock:
            shown = _Shown(view, scene, eager=scene is None)
            shown.signs[""] = self._clock()  # whoever made it is about to show it
            self._shown[id(view)] = shown
        self._start()

    def drop(self, view: View) -> None:
        """Feed a view no longer."""
        with self._lock:
            self._shown.pop(id(view), None)
        self._wake.set()

    def hear(self, view: View, message: object) -> None:
        """Take in what a front end says. It comes from a browser: nothing of it is believed."""
        if not isinstance(message, dict):
            return
        kind, front = message.get("type"), _word(message.get("view"))
        with self._lock:
            shown = self._shown.get(id(view))
            if shown is None or front is None:
                return
            if kind == "bye":
                shown.signs.pop("", None)
                shown.signs.pop(front, None)
            elif front in shown.signs or len(shown.signs) < _FRONT_ENDS:
                shown.signs[front] = self._clock()
            if kind == "hello":
                shown.sent, shown.eager = None, True
            elif kind == "look":
                shown.eager = True
            elif kind == "do":
                words = [_word(message.get(name)) for name in ("action", "session", "call")]
                if None not in words:
                    self._wishes.append(_Wish(view, *map(str, words)))
        if kind in ("hello", "look", "do", "alive"):
            self._start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Stop for good: no view is left."""
        with self._lock:
            self._shown.clear()
            thread = self._thread
        self._wake.set()
        if thread is not None:
            thread.join(PATIENCE)
        if not self.alive:
            self._hang_up()
        if isinstance(self._running, Running):
            self._running.close()

    def _cell_changed(self) -> None:
        if not self._running:
            self._at = self._clock() + SETTLES
        self._wake.set()

    def _start(self) -> None:
        with self._lock:
            if self._shown and not self.alive:
                self._thread = threading.Thread(target=self._run, name="gpushare-view", daemon=True)
                self._thread.start()
        self._wake.set()

    # --- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (pause := self._turn()) is not None:
            self._wake.wait(None if pause == math.inf else pause)
            self._wake.clear()

    def _turn(self) -> float | None:
        """Do what is due; return for how long nothing is, None where nobody looks any more."""
        with self._lock:
            self._forget_who_is_gone()
            if not self._shown or not any(shown.signs for shown in self._shown.values()):
                self._hang_up()
                self._thread = None  # from here on a sign starts another
                return None
            wishes = [self._wishes.popleft() for _ in range(len(self._wishes))]
            eager = any(shown.eager for shown in self._shown.values())
        for wish in wishes:
            self._grant(wish)
        if eager or wishes or self._clock() >= self._due():
            self._look()
        left = self._due() - self._clock()
        return max(0.0, min(left, self._until_gone()))

    def _due(self) -> float:
        at = math.inf if self._at is None else self._at
        return min(self._from + self._pace(), at) if self._running else at

    def _pace(self) -> float:
        if self._failures:
            return _PAUSES[min(self._failures, len(_PAUSES)) - 1]
        return min(max(EVERY, self._cost / PART), SELDOM)

    def _until_gone(self) -> float:
        with self._lock:
            gone = [
                shown.lasts(front, sign)
                for shown in self._shown.values()
                for front, sign in shown.signs.items()
            ]
        return max(gone, default=0.0) - self._clock()

    def _forget_who_is_gone(self) -> None:
        now = self._clock()
        for shown in self._shown.values():
            shown.signs = {
                front: sign for front, sign in shown.signs.items() if shown.lasts(front, sign) > now
            }

    def _look(self) -> None:
        """Ask, and tell every view what is new to it."""
        pace = self._pace()
        self._looked, began = self._clock(), time.thread_time()
        self._from = max(self._from + pace, self._looked - LATE * pace)
        if self._at is not None and self._looked >= self._at:
            self._at = None
        beat = (
            BEAT if self._running else SILENT
        )  # before it is seen: after a cell's end comes one look
        scene = self._see()
        with self._lock:
            told = [shown for shown in self._shown.values() if shown.signs]
        for shown in told:
            with self._lock:
                before, wanted = shown.sent, shown.eager
                shown.sent, shown.eager = scene, False
            new = changes(before, scene)
            late = beat != SILENT and self._looked - shown.sent_at >= NEWS
            if new is None and not wanted and not late and beat == shown.beat:
                continue
            if beat != shown.beat:
                shown.beat, shown.told = beat, self._looked
            shown.number, shown.sent_at = shown.number + 1, self._looked
            new = {"at": scene.get("at")} if new is None else new
            self._push(shown.view, {"type": "scene", "n": shown.number, "beat": beat, **new})
        self._cost += (time.thread_time() - began - self._cost) / 8

    def _see(self) -> Scene:
        try:
            snapshot = self._snapshot()
            made = self._make(snapshot, self._time_of(snapshot))
            scene = offered(made, self._scene, self._made)
        except GpushareError as problem:
            self._failures += 1
            return {**(self._scene or {"at": time.time()}), "notice": _sentence(problem)}
        except Exception as problem:  # noqa: BLE001 - a notebook user never sees our traceback
            self._failures += 1
            notice = f"This view cannot be drawn ({type(problem).__name__}: {problem}). Please report it."
            return {**(self._scene or {"at": time.time()}), "notice": notice}
        self._failures = 0
        self._made, self._scene = made, scene
        return scene

    def _time_of(self, snapshot: Snapshot) -> float:
        """Return when a snapshot was made. By the broker's clock, where it is told: answers do not all take the same time."""
        now = time.time()
        if snapshot.at is None:
            return now
        if (
            abs(now - snapshot.at - self._zero) > _STRAYS
        ):  # it started anew, the machine slept, or its time was set
            self._zero = round(now - snapshot.at, 4)
        return snapshot.at + self._zero

    def _snapshot(self) -> Snapshot:
        """Ask on the line we have; it may be of a broker that is no more, then on a new one."""
        if self._line is not None:
            try:
                return self._line.snapshot()
            except BrokerUnavailable:
                self._hang_up()
        self._line = self._open_line()
        try:
            return self._line.snapshot()
        except BrokerUnavailable:
            self._hang_up()
            raise

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
        self._line = None

    def _grant(self, wish: _Wish) -> None:
        """Do what a control asks for, where the session is the user's own and can be asked for it now."""
        try:
            text = self._do(wish)
        except GpushareError as problem:
            text = _sentence(problem)
        self._push(wish.view, {"type": "done", "call": wish.call, "text": text})

    def _do(self, wish: _Wish) -> str:
        snapshot = self._snapshot()
        scene = offered(self._make(snapshot, time.time()))
        entry = next((one for one in scene.get("sessions", ()) if one["id"] == wish.session), None)
        session = next((one for one in snapshot.sessions if one.id == wish.session), None)
        if entry is None or session is None:
            return "This notebook is not there any more."
        if not session.own and wish.action != "ask":
            return "This notebook is not yours: only its owner can do that."
        if wish.action not in entry["actions"] or self._line is None:
            return f"This notebook cannot be asked to {wish.action} now."
        kinds = {device.id: device.kind for device in snapshot.devices}
        return _done(self._line, wish, texts.memory_noun(kinds.get(session.device, "")))

    def _push(self, view: View, message: dict[str, Any]) -> None:
        try:
            view.push(message)
        except Exception:  # noqa: BLE001 - its comm was closed in this moment, or the kernel ends
            self.drop(view)


def _done(line: Line, wish: _Wish, noun: str) -> str:
    """Ask the broker for what a control says; return what came of it."""
    if wish.action == "pause":
        return texts.paused_text(line.pause(wish.session))
    if wish.action == "resume":
        return texts.resumed_text(line.resume(wish.session))
    if wish.action == "park":
        return parking_texts.parked_text(line.park(wish.session))
    if wish.action == "restore":
        return parking_texts.unparked_text(line.unpark(wish.session))
    if wish.action == "ask":
        return texts.asked_text(line.ask_holder(wish.session))
    return texts.released_text(line.release(wish.session), noun)


def offered(scene: Scene, before: Scene | None = None, made: Scene | None = None) -> Scene:
    """Return the scene as it is sent: short, with the controls that can be carried out here, and with moments that stay.

    `before` is what was sent last, of the scene `made`: what is the same list in both is sent as it was.
    """
    told = settled(scene, before)
    was = {} if before is None or made is None else made
    same = {name for name in scene if name in was and scene[name] is was[name]}
    if before is not None:
        told |= {name: before[name] for name in same}
    kinds = {device["id"]: device["kind"] for device in told.get("devices", ())}
    if "devices" in told.keys() - same:
        told["devices"] = [
            {**device, "segments": [_known(segment) for segment in device["segments"]]}
            for device in told["devices"]
        ]
    if "sessions" in told.keys() - same:
        told["sessions"] = [
            {**entry, "actions": [one for one in entry["actions"] if _can(one, entry, kinds)]}
            for entry in told["sessions"]
        ]
    return told


def _known(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if value is not None}


def _can(action: str, entry: Mapping[str, Any], kinds: Mapping[str, str]) -> bool:
    """Whether a control can be carried out. On a CPU a pause would stop this process, and nobody here could resume it."""
    if action == "pause" and kinds.get(entry["device"]) == "host":
        return bool(entry["id"] != os.environ.get("GPUSHARE_SESSION"))
    return action in _DOES


def _sentence(problem: GpushareError) -> str:
    text = str(problem)
    return text[:1].upper() + text[1:]


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) <= _LONGEST_ID else None


def _after_fork() -> None:
    """A child has neither the thread nor the comms; the lock may be held by a thread that is not there."""
    global _feed  # noqa: PLW0603 - a process has one
    _feed = None


os.register_at_fork(after_in_child=_after_fork)
_feed: Feed | None = None


def feed() -> Feed:
    """Return this process's feed."""
    from gpushare_widgets.scene import Kept, scene  # noqa: PLC0415

    global _feed  # noqa: PLW0603 - a process has one
    if _feed is None:
        kept = Kept()
        _feed = Feed(lambda snapshot, now: scene(snapshot, now=now, kept=kept))
    return _feed
