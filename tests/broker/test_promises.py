"""Real-time jobs at the broker: proven before they are queued, and their windows carried out on the device (W1 to W11)."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

import pytest

from gpushare_kernel.broker import promises
from gpushare_kernel.core.values import GiB, JobId, PauseStatus, SessionId
from gpushare_kernel.devices.base import PauseOutcome
from gpushare_kernel.realtime import proof
from gpushare_kernel.wire import limit_texts
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.realtime import (
    RealtimeChain,
    RealtimeLayer,
    RealtimePlacement,
    RealtimeTask,
)
from gpushare_kernel.wire.texts import barred_text
from tests.broker.house import Caller, House
from tests.broker.test_desk import end, job_of, refused, session_of, submit
from tests.procs import eventually

CORES = len(os.sched_getaffinity(0))


def camera(
    period: float = 0.2, deadline: float = 0.15, work: float = 0.004, layers: int = 3, **more: Any
) -> RealtimeTask:
    layer = RealtimeLayer({f"c{n}": work for n in range(1, CORES + 1)})
    return RealtimeTask("camera", period, deadline, (layer,) * layers, **more)


def realtime(client: Caller, name: str = "cam", **task: Any) -> msg.Reply:
    return client.ask(
        msg.Submit(JobId(name), "cell", persistent=0, ephemeral=0, realtime=camera(**task))
    )


def standing(house: House, job: JobId) -> Any:
    return house.do(lambda: house.broker.scheduler.turns.gate.windows.standing.get(job))


def test_a_job_with_a_deadline_is_granted_where_it_runs_and_what_was_proven(house: House) -> None:
    """W10: Its nodes and stages, a bound within its deadline, and what may drain beside it; forgotten at its end."""
    client = house.notebook()
    granted = realtime(client)
    assert isinstance(granted, msg.Granted)
    placement = granted.placement
    assert placement is not None
    assert placement.configuration
    assert placement.stages[0][1] == 0
    assert placement.stages[-1][2] == 3
    assert 0.012 < placement.bound <= 0.15
    assert 0.01 <= placement.absorbs < 0.15
    one = standing(house, job_of(client, "cam"))
    assert (one.promise.period, one.promise.bound) == (0.2, placement.bound)
    assert isinstance(client.ask(end("cam")), msg.Report)
    assert standing(house, job_of(client, "cam")) is None
    assert house.do(lambda: next(iter(house.broker.promises.values())).placements) == {}


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"deadline": 0.25}, ["deadline 0.25 s is later than its period 0.2 s"]),
        ({"work": 0.06}, ["its layers take 0.18 s", "more than its deadline of 0.15 s"]),
        ({"work": 0.0485}, ["pipeline camera may take", "longer than its deadline of 150 ms", "3 ms of that are for others' work to stop", "times as long"]),
        ({"work": float("nan")}, ["must be above 0 seconds, not nan"]),
    ],
)  # fmt: skip
def test_what_cannot_be_promised_is_refused_with_the_numbers(
    house: House, task: dict[str, float], words: list[str]
) -> None:
    """I7: the rule, the value, the next step; nothing is left of it, and its name is free again."""
    client = house.notebook()
    said = refused(realtime(client, **task), "Refused")
    assert all(word in said for word in words), said
    assert isinstance(realtime(client), msg.Granted)


@pytest.mark.parametrize(
    "task", [{"layers": 0}, {"layers": 501}, {"period": -1.0}, {"weight": 0.0}]
)
def test_what_is_no_task_is_not_even_tried(house: House, task: dict[str, Any]) -> None:
    """A client's numbers are not believed: limits before any proof."""
    client = house.notebook()
    refused(realtime(client, **task), "BadDeclaration")
    assert isinstance(realtime(client), msg.Granted)


def test_those_who_run_keep_their_nodes(house: House) -> None:
    """W10: A second job is placed beside the first; a third that does not fit is refused, and says what would do."""
    one, two = house.notebook("a.ipynb"), house.notebook("b.ipynb")
    first = realtime(one)
    second = realtime(two, work=0.006)
    assert isinstance(first, msg.Granted)
    assert isinstance(second, msg.Granted)
    assert first.placement is not None
    assert second.placement is not None
    assert second.placement.configuration == first.placement.configuration
    promise = standing(house, job_of(one, "cam")).promise
    assert promise.absorbs == pytest.approx(second.placement.absorbs)
    said = refused(realtime(two, name="more", period=0.05, deadline=0.05, work=0.012), "Refused")
    assert "pipeline camera may take" in said or "pipeline camera has no bound" in said
    assert "its deadline" in said
    assert "It fits" in said
    assert isinstance(two.ask(end("cam")), msg.Report)


def chain(name: str, work: float, layers: int = 2) -> RealtimeChain:
    layer = RealtimeLayer({f"c{n}": work for n in range(1, CORES + 1)})
    return RealtimeChain(name, (layer,) * layers)


def test_best_effort_of_the_same_notebook_is_in_the_bound(house: House) -> None:
    """R4: a layer of it may block each release; what leaves a deadline no room is refused, and nothing changes."""
    client = house.notebook()
    granted = realtime(client)
    assert isinstance(granted, msg.Granted)
    assert granted.placement is not None
    job = job_of(client, "cam")
    before = granted.placement.bound

    placed = client.ask(msg.RealtimeBeside((chain("train", 0.02),)))
    assert isinstance(placed, msg.RealtimePlaced)
    (placement,) = placed.placements.values()
    assert before + 0.02 <= placement.bound <= 0.15
    assert placement.absorbs < granted.placement.absorbs
    # Both at their most, others' drain and a layer of its own: the deadline holds.
    drain = standing(house, job).promise.drain
    assert placement.spare > 0
    assert granted.placement.spare == 0
    assert placement.bound + (placement.absorbs - drain) + placement.spare <= 0.15 + 1e-6
    assert placement.bounds == {"cam": placement.bound}
    assert placement.stages == granted.placement.stages
    assert [stage[1:] for stage in placement.beside["train"]][-1][1] == 2
    assert standing(house, job).promise.bound == placement.bound

    said = refused(client.ask(msg.RealtimeBeside((chain("train", 0.02), chain("slow", 0.2)))), "Refused")  # fmt: skip
    assert said.startswith("not every deadline could be promised: pipeline camera may take")
    assert "than its deadline of 150 ms" in said
    assert "another" not in said
    assert standing(house, job).promise.bound == placement.bound
    again = client.ask(
        msg.RealtimeBeside((chain("train", 0.01, layers=5),))
    )  # another of that name
    assert isinstance(again, msg.RealtimePlaced)
    assert before + 0.01 <= again.placements[JobId("cam")].bound < placement.bound
    assert isinstance(client.ask(end("cam")), msg.Report)
    assert client.ask(msg.RealtimeBeside((chain("slow", 0.2),))) == msg.RealtimePlaced({})


def test_a_job_is_proven_beside_its_notebooks_best_effort(house: House) -> None:
    """R4: also where that was there first."""
    client = house.notebook()
    said = refused(realtime(client, beside=(chain("slow", 0.2),)), "Refused")
    assert "It fits without best effort" in said
    granted = realtime(client, beside=(chain("train", 0.02),))
    assert isinstance(granted, msg.Granted)
    assert granted.placement is not None
    assert granted.placement.bound >= 0.012 + 0.02
    assert list(granted.placement.beside) == ["train"]


def test_a_refusal_has_the_names_of_that_notebook_and_nobody_elses() -> None:
    """I9: one's own other pipelines by their names, best effort too; those of others are just that."""
    mine, other = SessionId("s1"), SessionId("s2")
    tasks = {JobId("s1/rt-1"): camera(), JobId("s1/rt-10"): RealtimeTask("front", 1, 1, ()), JobId("s2/rt-1"): RealtimeTask("secret", 1, 1, ())}  # fmt: skip
    beside = {mine: (chain("train", 0.1),), other: (chain("hidden", 0.1),)}
    asked = promises._Set(tasks, beside, (), {})
    why = f"{proof.CANNOT}: task s1/rt-10 may take 2 s. It fits without task s1/rt-1, task s1|train, task s2/rt-1 or task s2|hidden."
    elsewhere = "a pipeline of another notebook"
    rest = f"pipeline front may take 2 s. It fits without pipeline camera, pipeline train, {elsewhere} or {elsewhere}."
    assert promises._told(why, asked, mine, JobId("s1/rt-1")) == f"{proof.CANNOT}: {rest}"
    assert promises._told(why, asked, mine, None) == f"{proof.CANNOT_BESIDE}: {rest}"
    assert (proof.CANNOT, proof.CANNOT_BESIDE) == (promises.CANNOT, promises.CANNOT_BESIDE)


def test_who_leaves_while_another_is_proven_is_gone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """W10: a proof that began before does not bring it back, for the next one to be refused for its sake."""
    one, two, three = (house.notebook(f"{name}.ipynb") for name in "abc")
    assert isinstance(realtime(one, work=0.015), msg.Granted)
    slow = "import sys, subprocess, time; time.sleep(0.5); sys.exit(subprocess.call([sys.executable, '-m', 'gpushare_kernel.realtime.proof']))"
    monkeypatch.setattr(promises, "_PROOF", (sys.executable, "-c", slow))
    number = two.send(msg.Submit(JobId("cam"), "cell", persistent=0, ephemeral=0, realtime=camera(work=0.015)))  # fmt: skip
    there = next(iter(house.broker.promises.values()))
    house.saw(lambda: there.proves(job_of(two, "cam")))
    assert isinstance(one.ask(end("cam")), msg.Report)
    granted = two.reply(number)
    assert isinstance(granted, msg.Granted)
    assert house.do(lambda: [*there.placements]) == [job_of(two, "cam")]
    assert isinstance(two.ask(end("cam")), msg.Report)
    monkeypatch.undo()
    assert isinstance(realtime(three, work=0.04), msg.Granted)


@pytest.mark.parametrize("times", [{"period": 1e300}, {"deadline": 1e-12}, {"work": 1e300}])
def test_times_that_nobody_means_are_refused_with_the_rule(house: House, times: Any) -> None:
    """W10: by the analysis, in words; it does not fail on them."""
    said = refused(realtime(house.notebook(), **times), "Refused")
    assert "must be 1e-06 to 86400 seconds" in said or "86400 seconds at most" in said
    assert "Please report it" not in said


def test_giving_up_while_it_is_proven(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """W10: Interrupt leaves at once, and nothing of the job stays; so does a client that is gone."""
    monkeypatch.setattr(promises, "_PROOF", ("sleep", "30"))
    client = house.notebook()
    number = client.send(
        msg.Submit(JobId("cam"), "cell", persistent=0, ephemeral=0, realtime=camera())
    )
    assert isinstance(client.ask(msg.Cancel(JobId("cam"))), msg.Ok)
    refused(client.reply(number), "Cancelled")
    assert house.broker.jobs == {}
    assert job_of(client, "cam") not in house.broker.scheduler.jobs


def test_a_proof_that_fails_or_takes_too_long_is_said(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No proof, no promise."""
    client = house.notebook()
    monkeypatch.setattr(promises, "_PROOF", ("false",))
    assert "the proof failed" in refused(realtime(client), "Refused")
    monkeypatch.setattr(promises, "_PROOF", ("sleep", "30"))
    monkeypatch.setattr(promises, "LIMIT", 0.05)
    assert "takes longer than 0.05 s" in refused(realtime(client), "Refused")


def returned(house: House, placement: Any, **more: Any) -> Caller:
    """A notebook whose broker went away while its real-time job ran, and whose client is back."""
    client = house.notebook("cam.ipynb")
    held = msg.HeldJob(JobId("cam"), "cell", 0, 0, 1, 1, running=True)
    again = house.attach(client.opened, held=(held,))  # type: ignore[attr-defined]
    again.opened = client.opened  # type: ignore[attr-defined]
    again.tell(msg.RealtimeKept(JobId("cam"), camera(), placement, **more))
    return again


def placement(*stages: tuple[int, int, int], nodes: tuple[str, ...] = (f"c{CORES}",)) -> Any:
    return RealtimePlacement(nodes, stages, 0.15, 0.05)


def test_what_another_broker_promised_is_promised_again(house: House) -> None:
    """W11: where it runs, proven anew; on its grid; the others stand aside as before."""
    other = house.notebook("hog.ipynb")
    assert isinstance(other.ask(submit("train", size=GiB)), msg.Granted)
    first = time.monotonic() + 0.1
    client = returned(house, placement((0, 0, 3)), first=first)
    windows = house.broker.scheduler.turns.gate.windows
    house.saw(lambda: windows.standing)
    one = standing(house, job_of(client, "cam"))
    assert 0.012 < one.promise.bound <= 0.15
    gate = house.broker.scheduler.turns.gate
    house.saw(lambda: gate.shut and gate.held.keys() == {session_of(other)})
    assert house.broker.scheduler.sessions[session_of(client)].realtime
    assert isinstance(client.ask(end("cam")), msg.Report)
    house.saw(lambda: not gate.held)
    assert house.do(lambda: next(iter(house.broker.promises.values())).placements) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        placement((0, 0, 2)),
        placement((1, 0, 3)),
        placement((0, 1, 3)),
        placement((0, 0, 3), nodes=(f"c{CORES + 1}",)),
        placement((0, 0, 3), nodes=("whatever",)),
        placement(),
    ],
)
def test_what_cannot_be_promised_again_is_said(house: House, wrong: Any) -> None:
    """W11: it takes turns like everybody else, and its user reads why and what to do."""
    client = returned(house, wrong)
    said = lambda: [one.text for one in client.notices if isinstance(one, msg.Announce)]  # noqa: E731
    eventually(lambda: client.ask(msg.GetSnapshot()) and said())
    (text,) = said()
    assert "takes turns like everybody else since the broker has restarted" in text
    assert "Close it, and open it again." in text
    assert standing(house, job_of(client, "cam")) is None
    assert isinstance(client.ask(end("cam")), msg.Report)


def test_a_window_holds_others_from_before_the_release_until_it_is_done(house: House) -> None:
    """W1, W2: On a grid; what the device is asked for is a pause before each release and a resume after each end."""
    other, client = house.notebook("hog.ipynb"), house.notebook("cam.ipynb")
    assert isinstance(other.ask(submit("train", size=GiB)), msg.Granted)
    assert isinstance(realtime(client), msg.Granted)
    house.device.calls.clear()
    first = time.monotonic() + 0.1
    client.tell(msg.RealtimeGrid(JobId("cam"), first))
    gate = house.broker.scheduler.turns.gate
    house.saw(lambda: gate.shut and not gate._tickets)
    assert time.monotonic() < first + 0.1
    assert [what for what, _ in house.device.calls] == ["pause"]
    assert gate.held.keys() == {session_of(other)}
    client.tell(msg.RealtimeDone(JobId("cam")))
    house.saw(lambda: [what for what, _ in house.device.calls] == ["pause", "resume"])
    house.saw(lambda: len(house.device.calls) == 3)  # the next release
    assert isinstance(client.ask(end("cam")), msg.Report)
    house.saw(lambda: [what for what, _ in house.device.calls][-1] == "resume")
    assert not gate.held


def test_snapshots_say_how_deadlines_stand(house: House) -> None:
    """For the live view: what was promised, what the longest response left, and what was late."""
    client = house.notebook("cam.ipynb")
    granted = realtime(client)
    assert isinstance(granted, msg.Granted)
    assert granted.placement is not None
    answer = client.ask(msg.GetSnapshot())
    assert isinstance(answer, msg.SnapshotReply)
    (told,) = answer.snapshot.rt
    assert (told.session, told.period, told.deadline) == (session_of(client), 0.2, 0.15)
    assert (told.releases, told.misses) == (0, 0)
    assert told.margin == pytest.approx(0.15 - granted.placement.bound)
    client.tell(msg.RealtimeReleased(JobId("cam")))
    client.tell(msg.RealtimeDone(JobId("cam")))
    answer = client.ask(msg.GetSnapshot())
    assert isinstance(answer, msg.SnapshotReply)
    (told,) = answer.snapshot.rt
    assert (told.releases, told.misses) == (1, 0)
    assert 0.1 < told.margin < 0.15


def test_a_sporadic_release_opens_a_window_and_an_overrun_closes_it(house: House) -> None:
    """W3: It never says that it is done: at its bound the others run again, and its user is told."""
    other, client = house.notebook("hog.ipynb"), house.notebook("cam.ipynb")
    assert isinstance(other.ask(submit("train", size=GiB)), msg.Granted)
    assert isinstance(realtime(client), msg.Granted)
    house.device.calls.clear()
    client.tell(msg.RealtimeReleased(JobId("cam")))
    house.saw(lambda: [what for what, _ in house.device.calls] == ["pause", "resume"])
    assert isinstance(client.ask(end("cam")), msg.Report)
    said = [one.text for one in client.notices if isinstance(one, msg.Announce)]
    assert any("three in a row are in time again" in text for text in said), said


def test_who_takes_too_long_to_stop_is_shown_as_paused_for_it(house: House) -> None:
    """W5: the others and its own user see why it stands still; once the promise is over it does not."""
    other, client = house.notebook("hog.ipynb"), house.notebook("cam.ipynb")
    assert isinstance(realtime(client), msg.Granted)
    house.device.answers["pause"].append(PauseOutcome(PauseStatus.PAUSED, 0.3))
    assert isinstance(other.ask(submit("train", size=GiB)), msg.Granted)
    client.tell(msg.RealtimeReleased(JobId("cam")))
    client.tell(msg.RealtimeDone(JobId("cam")))
    gate = house.broker.scheduler.turns.gate
    house.saw(lambda: gate.bars(house.broker.scheduler.sessions[session_of(other)]))
    answer = client.ask(msg.GetSnapshot())
    assert isinstance(answer, msg.SnapshotReply)
    seen = {one.name: (one.state, one.why_paused) for one in answer.snapshot.sessions}
    assert seen == {"hog.ipynb": ("paused", "real-time"), "cam.ipynb": ("busy", None)}
    assert isinstance(client.ask(end("cam")), msg.Report)
    other.ask(msg.GetSnapshot())
    said = [one.text for one in other.notices if isinstance(one, msg.Announce)]
    assert said == [barred_text(1.25 * 0.3 + 0.0005, one_absorbs(said[0]))]
    house.saw(lambda: not gate.held)


def test_work_that_nobody_can_pause_is_told_to_who_has_a_deadline(house: House) -> None:
    """W4: It was admitted before that was seen; what the device says of the pause is what its user reads."""
    other, client = house.notebook("hog.ipynb"), house.notebook("cam.ipynb")
    assert isinstance(realtime(client), msg.Granted)
    assert isinstance(other.ask(submit("train", size=GiB)), msg.Granted)
    house.device.answers["pause"].append(PauseOutcome(PauseStatus.UNSUPPORTED, 0.0))
    client.tell(msg.RealtimeReleased(JobId("cam")))
    house.saw(lambda: not house.broker.scheduler.sessions[session_of(other)].pausable)
    said = limit_texts.beside_text(PauseStatus.UNSUPPORTED)
    for who, told in ((client, 1), (other, 0)):
        who.ask(msg.GetSnapshot())
        texts = [one.text for one in who.notices if isinstance(one, msg.Announce)]
        assert texts.count(said) == told


def one_absorbs(text: str) -> float:
    """Return the seconds that a text says deadlines leave."""
    return float(text.split("deadlines leave ")[1].split(" ms", maxsplit=1)[0]) / 1000


def test_nobody_moves_the_windows_of_another(house: House) -> None:
    """I9: a job is of who submitted it; a grid that is no time ends the line."""
    client, stranger = house.notebook("a.ipynb"), house.notebook("b.ipynb")
    assert isinstance(realtime(client), msg.Granted)
    stranger.tell(msg.RealtimeGrid(JobId("cam"), time.monotonic()))
    with pytest.raises(Exception, match=r"closed|gone|ended|reset"):
        stranger.ask(msg.GetSnapshot())
    assert standing(house, job_of(client, "cam")).next is None


def test_a_proof_that_is_given_up_before_it_began_is_none_that_is_being_made() -> None:
    """W10: Nothing of it has run, so nothing of it could say that it is over; its name is free again."""

    async def given_up() -> bool:
        kept, job = promises.Promises(0), JobId("s/cam")
        kept.begin(job, camera(), 0.003, lambda _: None)
        assert kept.proves(job)
        kept.forget(job)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return kept.proves(job)

    assert not asyncio.run(given_up())
