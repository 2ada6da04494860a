"""What one connection may ask for, request by request."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gpushare_kernel.core.events import Suspended
from gpushare_kernel.core.records import User
from gpushare_kernel.core.values import (
    LARGEST_SIZE,
    GiB,
    JobId,
    JobState,
    MiB,
    PauseReason,
    Presence,
    SessionId,
    Usage,
    UserId,
    WaitReason,
)
from gpushare_kernel.devices.base import Capabilities
from gpushare_kernel.transport.words import LANE
from gpushare_kernel.wire import messages as msg
from tests.broker.house import Caller, House

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
NOBODY = 65534


def job_of(client: Caller, name: str) -> JobId:
    return JobId(f"{client.opened.session}/{name}")  # type: ignore[attr-defined]


def session_of(client: Caller) -> SessionId:
    return client.opened.session  # type: ignore[attr-defined,no-any-return]


def submit(name: str, **more: Any) -> msg.Submit:
    return msg.Submit(JobId(name), "cell", **more)


def end(name: str, held: int = 0, peak: int = 0) -> msg.End:
    return msg.End(JobId(name), held, peak, 0)


def refused(answer: msg.Reply, code: str) -> str:
    assert isinstance(answer, msg.Failure)
    assert answer.code == code
    return answer.message


def test_a_job_from_submit_to_report(house: House) -> None:
    """Granted with its lane and word; its end says what it declared, held and used."""
    client = house.notebook()
    granted = client.ask(submit("j", persistent=GiB, ephemeral=2 * GiB))
    assert isinstance(granted, msg.Granted)
    assert (granted.job, granted.persistent, granted.ephemeral) == ("j", GiB, 2 * GiB)
    assert client.view is not None
    assert client.view.read(granted.slot) == 0
    house.device.used = Usage(3.0, 3.0, 0)
    report = client.ask(end("j", held=GiB, peak=GiB + 512 * MiB))
    assert isinstance(report, msg.Report)
    assert (report.persistent_declared, report.ephemeral_declared) == (GiB, 2 * GiB)
    assert (report.persistent_measured, report.ephemeral_measured) == (GiB, 512 * MiB)
    assert report.device_time == pytest.approx(3.0)
    assert house.kernel(client.opened).slot_of == {}  # type: ignore[attr-defined]
    assert house.broker.jobs == {}


def test_who_took_more_than_it_was_granted_grows_at_its_boundary(house: House) -> None:
    """Where there is room at once; else it waits, is told why, and has it when somebody ends. It is still the same job."""
    client, other = house.notebook("a.ipynb"), house.notebook("b.ipynb")
    client.ask(submit("j", persistent=0, ephemeral=GiB, cooperative=True))
    back = client.ask(msg.Yield(JobId("j"), True, 0, 2 * GiB, 1, 0.01, 2 * GiB))
    assert isinstance(back, msg.Granted)
    assert back.ephemeral == 2 * GiB
    other.ask(submit("k", persistent=0, ephemeral=5 * GiB))
    number = client.send(msg.Yield(JobId("j"), True, 0, 6 * GiB, 2, 0.01, 6 * GiB))
    house.saw(lambda: len(house.broker.scheduler.book.queue) == 1)
    other.ask(end("k"))
    back = client.reply(number)
    assert isinstance(back, msg.Granted)
    assert back.ephemeral == 6 * GiB
    waits = [n.wait for n in client.notices if isinstance(n, msg.Waiting)]
    assert [(w.reason, w.needs) for w in waits[:1]] == [(WaitReason.MEMORY, 6 * GiB)]
    report = client.ask(end("j", peak=6 * GiB))
    assert isinstance(report, msg.Report)
    assert report.ephemeral_measured == 6 * GiB


def test_a_declared_time_reaches_the_scheduler(house: House) -> None:
    """It ranks the job; one that makes no sense is refused with the rule."""
    client = house.notebook()
    client.ask(submit("j", persistent=GiB, time=300.0))
    assert house.broker.scheduler.jobs[job_of(client, "j")].time == 300.0
    said = refused(client.ask(submit("k", persistent=GiB, time=-1.0)), "BadTime")
    assert said == "time '-1' must be over 0 seconds. Leave it out, or write one such as 5min."


def test_who_must_wait_is_told_why_and_granted_later(house: House) -> None:
    """One request, one reply: until it comes, notices with the numbers."""
    first, second = house.notebook("first.ipynb"), house.notebook("second.ipynb")
    first.ask(submit("a", persistent=6 * GiB))
    number = second.send(submit("b", persistent=4 * GiB))
    house.saw(lambda: len(house.broker.scheduler.book.queue) == 1)
    first.ask(end("a"))
    first.ask(msg.Release())
    granted = second.reply(number)
    assert isinstance(granted, msg.Granted)
    (waiting,) = [n for n in second.notices if isinstance(n, msg.Waiting)]
    assert waiting.job == "b"
    assert (waiting.wait.reason, waiting.wait.needs, waiting.wait.free) == (
        WaitReason.MEMORY,
        4 * GiB,
        2 * GiB,
    )
    assert [(h.name, h.own) for h in waiting.wait.holders] == [("first.ipynb", True)]


def test_what_never_fits_is_refused_and_its_word_is_free_again(house: House) -> None:
    """Refused, with the numbers."""
    client = house.notebook()
    text = refused(client.ask(submit("j", persistent=9 * GiB)), "Refused")
    assert "9.0 GiB" in text
    assert "8.0 GiB" in text
    assert house.kernel(client.opened).slot_of == {}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "sizes",
    [{"size": -1}, {"persistent": -1}, {"ephemeral": LARGEST_SIZE}, {"size": LARGEST_SIZE}],
)
def test_sizes_out_of_range_are_refused(house: House, sizes: dict[str, int]) -> None:
    """Whatever a client of another version or make sends."""
    text = refused(house.notebook().ask(submit("j", **sizes)), "UserError")
    assert str(next(iter(sizes.values()))) in text


def test_one_size_or_two_parts(house: House) -> None:
    """Not both."""
    refused(house.notebook().ask(submit("j", size=1, ephemeral=1)), "BadDeclaration")


@pytest.mark.parametrize("weight", [0.0, -1.0, 1000.0])
def test_a_weight_out_of_range_is_refused_and_no_job_is_left(house: House, weight: float) -> None:
    """Also where it is the session's."""
    client = house.notebook()
    refused(client.ask(submit("j", size=1, weight=weight)), "BadDeclaration")
    refused(client.ask(msg.SetWeight(weight)), "BadDeclaration")
    assert not house.broker.scheduler.jobs


def test_an_id_is_taken_while_its_job_lives(house: House) -> None:
    """Also by another process of the session; afterwards it is free."""
    client = house.notebook()
    sister = house.attach(client.opened)  # type: ignore[attr-defined]
    client.ask(submit("j", size=MiB))
    refused(client.ask(submit("j", size=MiB)), "BadDeclaration")
    refused(sister.ask(submit("j", size=MiB)), "BadDeclaration")
    client.ask(end("j"))
    assert isinstance(client.ask(submit("j", size=MiB)), msg.Granted)


def test_nobody_ends_or_yields_anothers_job(house: House) -> None:
    """I9, inside a user too: a request acts on jobs of its own connection."""
    client, other = house.notebook(), house.notebook()
    client.ask(submit("j", size=MiB))
    refused(other.ask(end("j")), "NotYours")
    refused(other.ask(msg.Yield(JobId("j"), True, 0, 0, 1, 0.1)), "NotYours")
    assert isinstance(other.ask(msg.Cancel(JobId("j"))), msg.Ok)
    assert job_of(client, "j") in house.broker.scheduler.jobs


def test_leaving_the_queue(house: House) -> None:
    """The submit's own reply says that it was cancelled; a job that runs is not cancelled, unknown ones do not matter."""
    first, second = house.notebook(), house.notebook()
    first.ask(submit("a", persistent=6 * GiB))
    number = second.send(submit("b", persistent=6 * GiB))
    assert isinstance(second.ask(msg.Cancel(JobId("b"))), msg.Ok)
    refused(second.reply(number), "Cancelled")
    assert isinstance(first.ask(msg.Cancel(JobId("a"))), msg.Ok)
    assert isinstance(first.ask(msg.Cancel(JobId("zzz"))), msg.Ok)
    assert set(house.broker.scheduler.jobs) == {job_of(first, "a")}


def test_a_lane_changes_hands_through_the_word(house: House) -> None:
    """The word is set, the occupant yields trimmed, its mate is granted, and it gets the lane back in the end."""
    first, second = house.notebook(), house.notebook()
    granted = first.ask(submit("a", ephemeral=6 * GiB, cooperative=True))
    number = second.send(submit("b", ephemeral=6 * GiB, cooperative=True))
    assert isinstance(granted, msg.Granted)
    view = first.view
    assert view is not None
    house.saw(lambda: view.read(granted.slot) & LANE)
    back = first.send(msg.Yield(JobId("a"), True, 0, 6 * GiB, 7, 0.01))
    assert isinstance(second.reply(number), msg.Granted)
    second.ask(end("b"))
    assert isinstance(first.reply(back), msg.Granted)
    assert view.read(granted.slot) == 0
    report = first.ask(end("a"))
    assert isinstance(report, msg.Report)
    assert report.boundaries == 7


def test_who_yields_unasked_goes_on(house: House) -> None:
    """Nobody wants anything: granted at once."""
    client = house.notebook()
    client.ask(submit("a", ephemeral=GiB, cooperative=True))
    assert isinstance(client.ask(msg.Yield(JobId("a"), False, 0, 0, 1, 0.01)), msg.Granted)


@pytest.mark.parametrize(
    ("version", "reason"), [(1, WaitReason.TURN), (msg.VERSION, WaitReason.MAINTENANCE)]
)
def test_a_dry_run_gives_a_reason_that_the_clients_version_has(
    house: House, version: int, reason: WaitReason
) -> None:
    """Another word would be a broken frame to it."""
    opened = house.notebook().opened  # type: ignore[attr-defined]
    client = house.call(msg.Attach(opened.token), versions=(version,))
    house.do(lambda: house.broker.upkeep.drain("new driver"))
    answer = client.ask(submit("j", ephemeral=GiB, dry_run=True))
    assert isinstance(answer, msg.DryRun)
    assert answer.wait is not None
    assert answer.wait.reason is reason


@pytest.mark.parametrize("held", [-1, LARGEST_SIZE])
def test_impossible_measurements_end_the_connection(house: House, held: int) -> None:
    """That is no mistake of a user but of a client: it is told, and hung up on; its jobs end later, if it stays away."""
    client = house.notebook()
    client.ask(submit("a", ephemeral=GiB))
    client.send(end("a", held=held))
    assert isinstance(client.reply(0), msg.Failure)
    assert client.sock.recv(1) == b""


def test_more_jobs_than_words_are_refused(house: House) -> None:
    """A page has 63 words for jobs."""
    client = house.notebook()
    numbers = [client.send(submit(f"j{n}", ephemeral=0)) for n in range(64)]
    text = refused(client.reply(numbers[-1]), "UserError")
    assert "63" in text


def test_dry_run_says_what_would_happen_and_does_nothing(house: House) -> None:
    """Fits, waits and why, or never: no job, no place, no grant."""
    client, other = house.notebook(), house.notebook("other.ipynb")
    fits = client.ask(submit("j", size=4 * GiB, dry_run=True))
    assert isinstance(fits, msg.DryRun)
    assert (fits.fits, fits.ephemeral, fits.wait) == (True, 4 * GiB, None)
    other.ask(submit("k", persistent=6 * GiB))
    waits = client.ask(submit("j", persistent=4 * GiB, dry_run=True))
    assert isinstance(waits, msg.DryRun)
    assert not waits.fits
    assert waits.wait is not None
    assert waits.wait.holders[0].name == "other.ipynb"
    assert isinstance(client.ask(submit("j", persistent=9 * GiB, dry_run=True)), msg.Failure)
    assert set(house.broker.scheduler.jobs) == {job_of(other, "k")}


def test_release_by_name_and_not_while_it_runs(house: House) -> None:
    """One's own notebooks, with or without the ending; a running cell keeps what it has."""
    client, other = house.notebook("hw1.ipynb"), house.notebook("hw2.ipynb")
    other.ask(submit("k", persistent=3 * GiB))
    assert "is running a cell" in refused(client.ask(msg.Release("hw2")), "BadDeclaration")
    other.ask(end("k"))
    freed = client.ask(msg.Release("hw2"))
    assert freed == msg.ReleasedNow(3 * GiB, ("hw2.ipynb",))
    assert "hw1.ipynb, hw2.ipynb" in refused(client.ask(msg.Release("hw3")), "NotYours")


def test_pause_and_resume_by_hand(house: House) -> None:
    """One's own notebook that runs something, from a command line or another notebook; it keeps what it has, for a time."""
    client, other = house.notebook("hw1.ipynb"), house.notebook("hw2.ipynb")
    assert "runs nothing" in refused(client.ask(msg.PauseNotebook("hw2")), "BadDeclaration")
    other.ask(submit("k", persistent=3 * GiB))
    assert "asks for it" in refused(other.ask(msg.PauseNotebook("hw2.ipynb")), "BadDeclaration")
    assert client.ask(msg.ResumeNotebook("hw2")) == msg.ResumedNow(())
    paused = client.ask(msg.PauseNotebook("hw2"))
    assert isinstance(paused, msg.PausedNow)
    assert paused.names == ("hw2.ipynb",)
    assert 599.0 < paused.seconds <= 600.0
    session = house.broker.scheduler.sessions[session_of(other)]
    assert session.stopped is PauseReason.OWNER
    assert session.charged == 3 * GiB
    again = client.ask(msg.PauseNotebook("hw2"))  # asked once more it lasts no longer
    assert isinstance(again, msg.PausedNow)
    assert again.seconds < 600.0
    line = house.call(msg.Observe())
    told = line.ask(msg.GetSnapshot())
    assert isinstance(told, msg.SnapshotReply)
    (seen,) = [s for s in told.snapshot.sessions if s.name == "hw2.ipynb"]
    assert (seen.state, seen.why_paused) == ("paused", "by-its-owner")
    assert line.ask(msg.ResumeNotebook(session_of(other))) == msg.ResumedNow(("hw2.ipynb",))
    assert session.suspended_until is None
    house.device.capabilities = Capabilities(can_pause=False, can_park=False, why="MPS runs")
    assert "MPS runs" in refused(line.ask(msg.PauseNotebook("hw2")), "BadDeclaration")


def test_who_is_paused_for_its_memory_is_not_said_to_be_paused_by_hand(house: House) -> None:
    """That pause has a bound of its own, and pause by hand would not prolong it."""
    client, other = house.notebook("hw1.ipynb"), house.notebook("hw2.ipynb")
    other.ask(submit("k", persistent=3 * GiB))
    engine, name = house.broker.engine, session_of(other)
    suspended = Suspended(at=engine.now, session=name, until=engine.now + 60.0)
    house.do(lambda: engine.feed(suspended))
    assert "holds more than it may" in refused(
        client.ask(msg.PauseNotebook("hw2")), "BadDeclaration"
    )
    assert client.ask(msg.ResumeNotebook("hw2")) == msg.ResumedNow(())
    assert house.broker.scheduler.sessions[name].suspended_until is not None


def test_a_waiting_notebook_is_not_paused(house: House) -> None:
    """It runs nothing yet; what it waits for would stay with it."""
    client, other = house.notebook("hw1.ipynb"), house.notebook("hw2.ipynb")
    client.ask(submit("j", persistent=6 * GiB))
    other.send(submit("k", persistent=6 * GiB))
    house.saw(lambda: len(house.broker.scheduler.book.queue) == 1)
    assert "runs nothing" in refused(client.ask(msg.PauseNotebook("hw2")), "BadDeclaration")


@as_root
def test_others_pause_nothing(house: House, tmp_path: Path) -> None:
    """I9: a neighbour's notebook is not theirs to stop or to let go on."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    client = house.notebook("secret.ipynb")
    client.ask(submit("j", persistent=GiB))
    name = session_of(client)
    answers = house.as_user(
        NOBODY,
        msg.Observe(),
        msg.PauseNotebook(name),
        msg.ResumeNotebook(name),
        msg.AskHolder(name),
    )
    assert [answer.code for answer in answers[1:]] == ["NotYours", "NotYours", "BadDeclaration"]
    assert "secret" not in repr(answers)
    assert house.broker.scheduler.sessions[name].suspended_until is None


def test_who_waits_asks_an_idle_holder(house: House) -> None:
    """It is told how many wait and gives back what it keeps unused; not twice within ten minutes, not while it runs, and for nobody who does not wait."""
    holder, waiter = house.notebook("holds.ipynb"), house.notebook("waits.ipynb")
    ask = msg.AskHolder(session_of(holder))
    assert "your own" in refused(waiter.ask(ask), "BadDeclaration")
    house.do(lambda: setattr(house.broker.registry.get(session_of(holder)), "uid", NOBODY))
    waiting = house.broker.scheduler.sessions[session_of(waiter)]
    house.do(lambda: setattr(waiting, "user", User(UserId("zoe"))))
    ask = msg.AskHolder(session_of(holder))
    holder.ask(submit("j", persistent=6 * GiB))
    assert "none of your notebooks waits" in refused(waiter.ask(ask), "BadDeclaration")
    waiter.send(submit("w", persistent=6 * GiB))
    house.saw(lambda: len(house.broker.scheduler.book.queue) == 1)
    assert "running a cell" in refused(waiter.ask(ask), "BadDeclaration")
    holder.ask(msg.End(JobId("j"), 6 * GiB, 6 * GiB, 0))
    assert waiter.ask(ask) == msg.AskedNow(0.0)
    holder.ask(msg.SetNeeds(0))
    assert holder.notices[-2] == msg.Trim()
    said = holder.notices[-1]
    assert isinstance(said, msg.Announce)
    assert said.text.startswith("1 person waits; you hold 6.0 GiB idle since ")
    again = waiter.ask(ask)
    assert isinstance(again, msg.AskedNow)
    assert 590 < again.again <= 600
    gone = refused(waiter.ask(msg.AskHolder(SessionId("nobody"))), "NotYours")
    assert "not there any more" in gone


def test_a_plain_cell_is_told_of_by_notices(house: House) -> None:
    """No reply; what is held at its end is charged where it is less than was seen."""
    client = house.notebook()
    session = house.broker.scheduler.sessions[session_of(client)]
    client.tell(msg.CellStarted(1))
    house.saw(lambda: session.cell_open)
    client.tell(msg.CellEnded(1, 5))
    house.saw(lambda: not session.cell_open)


def test_a_session_is_idle_when_all_its_cells_have_ended(house: House) -> None:
    """Subshells run several at once: the end of one ends neither the other nor its job. An end of none known is one, too."""
    client = house.notebook()
    session = house.broker.scheduler.sessions[session_of(client)]
    for cell in (1, 2):
        client.tell(msg.CellStarted(cell))
    client.tell(msg.CellEnded(1, 5))
    client.ask(msg.SetNeeds(0))
    assert session.cell_open
    client.tell(msg.CellEnded(2, 5))
    house.saw(lambda: not session.cell_open)
    client.tell(msg.CellEnded(7, 5))
    client.ask(msg.SetNeeds(0))
    assert not session.cell_open


def test_nobody_has_cells_without_end(house: House) -> None:
    """A client that only begins cells is sent away."""
    client = house.notebook()
    for cell in range(1001):
        client.tell(msg.CellStarted(cell))
    assert isinstance(client.reply(0), msg.Failure)


def test_a_weight_is_the_sessions_own(house: House) -> None:
    """Set by its own client."""
    client = house.notebook()
    assert isinstance(client.ask(msg.SetWeight(3.0)), msg.Ok)
    assert house.broker.scheduler.sessions[session_of(client)].weight == 3.0
    house.ledger.flush()
    assert [row.weight for row in house.ledger.load().sessions] == [3.0], (
        "a broker's restart keeps it"
    )


def test_the_owner_switches_the_policy_and_stops_the_broker(house: House) -> None:
    """An unknown policy is refused with those there are."""
    line = house.call(msg.Observe())
    assert isinstance(line.ask(msg.SetPolicy("fifo")), msg.Ok)
    assert house.broker.scheduler.turns.accounts.policy.name == "fifo"
    (device,) = house.broker.engines.values()
    assert isinstance(line.ask(msg.SetPolicy("SRTF", device.device.inventory.id)), msg.Ok)
    assert house.broker.scheduler.turns.accounts.policy.name == "srtf"
    assert "fair, fifo" in refused(line.ask(msg.SetPolicy("lottery")), "BadDeclaration")
    assert "no device is called 'GPU-9'" in refused(
        line.ask(msg.SetPolicy("fair", "GPU-9")), "UserError"
    )
    assert house.broker.scheduler.turns.accounts.policy.name == "srtf"
    assert isinstance(line.ask(msg.Stop()), msg.Ok)
    house.saw(house.broker.stopping.is_set)


@as_root
def test_others_administer_nothing(house: House, tmp_path: Path) -> None:
    """I9: neither policy nor end of the broker nor a neighbour's memory are theirs."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    house.notebook("secret.ipynb")
    answers = house.as_user(
        NOBODY, msg.Observe(), msg.SetPolicy("fifo"), msg.Stop(), msg.Release("secret")
    )
    assert [answer.code for answer in answers[1:]] == ["NotYours"] * 3
    assert str(NOBODY) in answers[1].message
    assert "secret" not in answers[3].message.replace("'secret'", "")
    assert not house.broker.stopping.is_set()


def test_a_command_line_is_no_notebook(house: House) -> None:
    """What needs a session is refused to an observer; a notice of it ends the connection."""
    line = house.call(msg.Observe())
    for body in (submit("j", size=1), msg.SetWeight(1.0)):
        assert "command line" in refused(line.ask(body), "NotYours")
    line.tell(msg.CellStarted(1))
    assert isinstance(line.reply(0), msg.Failure)


def test_a_broken_line_may_come_back_with_its_jobs(house: House) -> None:
    """Within a few seconds: the same job, the same word, nothing ended; the old line's end changes nothing."""
    client = house.notebook()
    granted = client.ask(submit("j", persistent=GiB, ephemeral=GiB))
    assert isinstance(granted, msg.Granted)
    client.close()
    kernel = house.kernel(client.opened)  # type: ignore[attr-defined]
    house.saw(lambda: not kernel.lines)
    held = msg.HeldJob(JobId("j"), "cell", GiB, GiB, granted.lane, granted.slot, running=True)
    again = house.attach(client.opened, held=(held,))  # type: ignore[attr-defined]
    house.saw(lambda: kernel.lines)
    assert house.broker.scheduler.jobs[job_of(client, "j")].state is JobState.RUNNING
    assert kernel.slot_of == {job_of(client, "j"): granted.slot}
    assert isinstance(again.ask(end("j")), msg.Report)
    assert not house.broker.scheduler.jobs


def test_who_waited_on_a_line_that_broke_asks_again(house: House) -> None:
    """At once, by the same id: the place on the old line is given up, and no job of it is left."""
    holder, client = house.notebook(), house.notebook()
    holder.ask(submit("a", persistent=6 * GiB))
    client.send(submit("b", persistent=6 * GiB))
    house.saw(lambda: house.broker.scheduler.book.queue)
    kernel = house.kernel(client.opened)  # type: ignore[attr-defined]
    client.close()
    house.saw(lambda: not kernel.lines)
    again = house.attach(client.opened)  # type: ignore[attr-defined]
    number = again.send(submit("b", persistent=6 * GiB))
    house.saw(lambda: house.broker.jobs[job_of(client, "b")] in kernel.lines)
    assert len(house.broker.scheduler.book.queue) == 1
    holder.ask(end("a"))
    assert isinstance(again.reply(number), msg.Granted)
    assert isinstance(again.ask(end("b")), msg.Report)
    assert not house.broker.scheduler.jobs


def test_a_client_cannot_claim_more_than_there_is(house: House) -> None:
    """A wrong number of one must not hold up everybody else for ever."""
    client = house.notebook()
    held = msg.HeldJob(JobId("j"), "cell", LARGEST_SIZE - 1, LARGEST_SIZE - 1, 1, 1, running=True)
    house.attach(client.opened, held=(held,))  # type: ignore[attr-defined]
    house.saw(lambda: house.broker.scheduler.jobs)
    table = house.broker.scheduler.book.table
    assert table.used <= table.capacity


def test_a_line_that_breaks_just_before_its_session_ends_is_forgotten(house: House) -> None:
    """Its jobs are given up a little later, when their session is gone already."""
    client = house.notebook()
    opened: msg.Opened = client.opened  # type: ignore[attr-defined]
    client.ask(submit("j", size=MiB))
    kernel = house.kernel(opened)
    (desk,) = kernel.lines
    client.close()
    house.saw(lambda: not kernel.lines)
    house.call(msg.Close(opened.session, opened.token))
    house.do(desk.abandon)  # type: ignore[attr-defined]
    assert house.broker.jobs == {}
    assert not house.broker.scheduler.jobs


def test_the_ends_of_connections_leave_nothing(house: House) -> None:
    """Observers, sisters and clients that go are forgotten; the session stays attached, its process lives."""
    client, line = house.notebook(), house.call(msg.Observe())
    sister = house.attach(client.opened)  # type: ignore[attr-defined]
    kernel = house.kernel(client.opened)  # type: ignore[attr-defined]
    house.saw(lambda: len(kernel.lines) == 2)
    for caller in (sister, line, client):
        caller.close()
    house.saw(lambda: not kernel.lines and not house.broker.observers)
    assert house.broker.scheduler.sessions[session_of(client)].presence is Presence.ATTACHED


def test_a_job_is_shown_by_its_name(house: House) -> None:
    """`--name` is what lists call it, for those who may see."""
    first, second = house.notebook("first.ipynb"), house.notebook("second.ipynb")
    first.ask(msg.Submit(JobId("a"), "zebra", persistent=6 * GiB))
    second.send(msg.Submit(JobId("b"), "lion", persistent=4 * GiB))
    house.saw(lambda: len(house.broker.scheduler.book.queue) == 1)
    reply = first.ask(msg.GetSnapshot())
    assert isinstance(reply, msg.SnapshotReply)
    assert [one.doing for one in reply.snapshot.sessions] == [("zebra",), ("lion",)]
    assert [one.name for one in reply.snapshot.queue] == ["lion"]
    first.ask(end("a"))
    house.saw(lambda: [*house.broker.job_names.values()] == ["lion"])


def test_a_bug_of_ours_is_answered(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An event that fails inside the core leaves nobody waiting for a reply."""
    client = house.notebook()

    def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(house.broker.scheduler, "handle", broken)
    assert "its log has the traceback" in refused(client.ask(submit("j")), "InternalError")
    monkeypatch.undo()
    assert isinstance(client.ask(submit("k")), msg.Granted)


def test_a_size_below_what_is_kept_is_refused(house: House) -> None:
    """One size is the most the notebook may hold in all; it holds more already."""
    client = house.notebook()
    client.ask(submit("a", persistent=GiB))
    client.ask(end("a", held=GiB))
    text = refused(client.ask(submit("b", size=100 * MiB)), "Refused")
    assert text.startswith("this notebook already keeps 1.0 GiB, more than the 100 MiB")


def test_what_a_notebook_is_to_get_at_its_next_start_is_in_its_environment_then(
    house: House,
) -> None:
    """Not before; 0 forgets it; what is no size is refused and changes nothing."""
    client = house.notebook()
    opened = client.opened  # type: ignore[attr-defined]
    assert opened.environment == {}
    assert client.ask(msg.SetNeeds(3 * GiB)) == msg.Ok()
    for wrong in (-1, LARGEST_SIZE):
        assert str(wrong) in refused(client.ask(msg.SetNeeds(wrong)), "UserError")
    again = house.call(msg.Restart(opened.session, opened.token)).body
    assert isinstance(again, msg.Opened)
    assert again.environment == {"LAUNCHED_WITH": str(3 * GiB)}
    assert again.needs == 3 * GiB
    house.bind(again)
    house.ledger.flush()
    assert [row.needs for row in house.ledger.load().sessions] == [3 * GiB]
    client = house.attach(again)
    assert client.ask(msg.SetNeeds(0)) == msg.Ok()
    house.ledger.flush()
    assert [row.needs for row in house.ledger.load().sessions] == [0]
    last = house.call(msg.Restart(again.session, again.token)).body
    assert isinstance(last, msg.Opened)
    assert last.environment == {}


@pytest.mark.parametrize(("needs", "kept"), [(3 * GiB, 3 * GiB), (-1, 0), (2**63, LARGEST_SIZE)])
def test_what_it_is_opened_with_is_what_it_needs(house: House, needs: int, kept: int) -> None:
    """It chooses the device, is in its environment, and stays with the session at a restart."""
    opened = house.open(needs=needs)
    assert opened.environment == ({"LAUNCHED_WITH": str(kept)} if kept else {})
    again = house.call(msg.Restart(opened.session, opened.token)).body
    assert isinstance(again, msg.Opened)
    assert again.needs == opened.needs == kept
