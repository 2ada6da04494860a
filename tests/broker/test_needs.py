"""What jobs have shown fills in what the next ones do not declare: by user, by code, by machine."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gpushare_kernel.broker import needs as module
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.learned import Place, Run
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.values import GiB, JobId, MiB, SessionId, Usage, UserId
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.need_texts import need_sizes
from gpushare_kernel.wire.snapshot import NeedView
from tests.broker.house import Caller, House
from tests.broker.test_desk import job_of, refused, submit

CODE = "cell:0123456789abcdef"
DEFAULT = (64 * MiB, 64 * MiB)


def run(client: Caller, name: str, held: int = GiB, peak: int = 3 * GiB, *, failed: bool = False, frameworks: tuple[str, ...] = (), **more: Any) -> msg.Granted:  # fmt: skip
    """Run a job of `CODE` that holds `held` in the end and `peak` at most; release what it keeps."""
    more = {"code": CODE, "frameworks": frameworks, **more}
    granted = client.ask(submit(name, **more))
    assert isinstance(granted, msg.Granted), granted
    client.ask(msg.End(JobId(name), held, peak, 10, failed, frameworks))
    client.ask(msg.Release())
    return granted


def took(granted: msg.Granted) -> tuple[int, int, int]:
    return granted.persistent, granted.ephemeral, granted.learned


def known(client: Caller, **more: Any) -> tuple[NeedView, ...]:
    answer = client.ask(msg.GetNeeds(**more))
    assert isinstance(answer, msg.NeedsReply)
    return answer.needs


def test_who_declares_nothing_gets_what_was_learned(house: House) -> None:
    """The first run has the default, the second what the first took and a quarter more, and is told from how many runs."""
    client = house.notebook()
    assert took(run(client, "a")) == (*DEFAULT, 0)
    assert took(run(client, "b")) == (GiB + GiB // 4, 2 * GiB + GiB // 2, 1)
    tenth = (GiB + GiB // 10, 2 * GiB + 2 * GiB // 10)
    assert took(run(client, "c")) == (*tenth, 2)
    dry = client.ask(submit("d", code=CODE, dry_run=True))
    assert isinstance(dry, msg.DryRun)
    assert (dry.persistent, dry.ephemeral, dry.learned) == (*tenth, 3)
    assert took(run(client, "e", code="cell:of-others")) == (*DEFAULT, 0)
    assert took(run(client, "f", code="")) == (*DEFAULT, 0)


def test_the_report_of_a_run_has_the_time_that_is_learned_of_it(house: House) -> None:
    """What a cell's last line says of the device's time, and what `%gpushare needs` says, are one number."""
    client = house.notebook()
    client.ask(submit("a", code=CODE))
    report = client.ask(msg.End(JobId("a"), GiB, GiB, 10))
    assert isinstance(report, msg.Report)
    assert report.served == known(client)[0].measured_time
    assert report.served is not None
    assert 0 < report.served <= report.ran + 1e-3


def test_what_is_declared_counts(house: House) -> None:
    """Sizes and times: what was learned only fills in what is missing."""
    client = house.notebook()
    house.device.used = Usage(1.0, 1.0, 0)
    run(client, "a", time=300.0)
    assert took(run(client, "b", size=2 * GiB))[2] == 0
    assert took(run(client, "c", persistent=0, ephemeral=MiB)) == (0, MiB, 0)
    client.ask(submit("d", code=CODE, size=GiB))
    learned = house.broker.scheduler.jobs[job_of(client, "d")].time
    assert learned is not None
    assert 0 < learned < 300
    client.ask(msg.End(JobId("d"), 0, 0, 0))
    client.ask(submit("e", code=CODE, size=GiB, time=7.0))
    assert house.broker.scheduler.jobs[job_of(client, "e")].time == 7.0


def test_a_run_that_failed_teaches_nothing(house: House) -> None:
    """Neither what it held nor how short it was says anything of the next."""
    client = house.notebook()
    run(client, "a", failed=True)
    assert took(run(client, "b")) == (*DEFAULT, 0)
    assert [need.runs for need in known(client)] == [1]


def test_jobs_side_by_side_teach_nothing(house: House) -> None:
    """The peak is the process's: nobody knows whose it was."""
    client = house.notebook()
    client.ask(submit("a", code=CODE, size=GiB))
    client.ask(submit("b", code="cell:b", size=GiB))
    client.ask(msg.End(JobId("a"), 0, GiB, 0))
    client.ask(msg.End(JobId("b"), 0, GiB, 0))
    assert [need.code for need in known(client)] == ["cell:b"]


def test_it_is_told_what_was_declared_measured_and_learned(house: House) -> None:
    """The last run's numbers, and those of the next; the latest used first."""
    client = house.notebook()
    run(client, "a", size=4 * GiB, time=60.0)
    run(client, "b", code="cell:other")
    other, need = known(client)
    assert (other.code, other.declared_size) == ("cell:other", None)
    assert (need.code, need.name, need.runs, need.elsewhere) == (CODE, "cell", 1, "")
    assert (need.declared_size, need.declared_time) == (4 * GiB, 60.0)
    assert (need.measured_persistent, need.measured_ephemeral) == (GiB, 2 * GiB)
    assert need.time == need.measured_time > 0
    assert need.iteration == pytest.approx(need.measured_time / 10)


def test_on_another_device_of_the_kind_the_bytes_are_taken_and_the_time_is_not(
    house: House,
) -> None:
    """Nearly the same memory, another speed; `needs` says where it was learned. On another kind nothing is."""
    client = house.notebook()
    run(client, "a")
    inventory = house.device.inventory
    house.device.inventory = replace(inventory, name="another played device")
    client.ask(submit("b", code=CODE))
    job = house.broker.scheduler.jobs[job_of(client, "b")]
    assert (job.need.ephemeral, job.time) == (2 * GiB + GiB // 2, None)
    (need,) = known(client)
    assert need.elsewhere == "a played device"
    client.ask(msg.End(JobId("b"), GiB, GiB, 0))
    here, there = known(client)
    assert (here.elsewhere, here.runs, there.elsewhere) == ("", 1, "a played device")
    client.ask(msg.Release())
    house.device.inventory = replace(inventory, kind="host", name="a host")
    assert took(run(client, "c")) == (*DEFAULT, 0)


def test_other_versions_of_a_framework_start_anew(house: House) -> None:
    """Before their first run the bytes still count and the time does not; after it only that run does."""
    client = house.notebook()
    old, new = ("torch 2.8.0",), ("torch 2.9.0",)
    run(client, "a", frameworks=old)
    run(client, "b", frameworks=old)
    assert [need.elsewhere for need in known(client, frameworks=new)] == ["torch 2.8.0"]
    client.ask(submit("c", code=CODE, frameworks=new))
    job = house.broker.scheduler.jobs[job_of(client, "c")]
    assert (job.need.persistent, job.time) == (GiB + GiB // 10, None)
    client.ask(msg.End(JobId("c"), 2 * GiB, 2 * GiB, 0, frameworks=new))
    (need,) = known(client, frameworks=new)
    assert (need.runs, need.elsewhere, need.persistent) == (1, "", 2 * GiB + GiB // 2)


def test_nobody_is_refused_for_what_was_learned(house: House) -> None:
    """The margin is cut to what the device can hold; where it cannot even hold what was seen, the default is taken."""
    client = house.notebook()
    run(client, "a", held=GiB, peak=7 * GiB)
    granted = run(client, "b", held=GiB, peak=7 * GiB)
    assert granted.persistent + granted.ephemeral == 8 * GiB
    assert granted.learned == 1
    run(client, "c", held=GiB, peak=20 * GiB)
    assert took(run(client, "d")) == (*DEFAULT, 0)


class _Unwritten:
    """A ledger that keeps nothing."""

    def need_saved(self, row: object) -> None: ...
    def need_dropped(self, row: object) -> None: ...


def a_gpu(*, cap: int | None = None, context: int = 0, kept: int = 0, parked: bool = False) -> Scheduler:  # fmt: skip
    """80 GiB with one session, `s`, of a user who may hold `cap`; it keeps `kept` bytes, on the device or parked."""
    config = Config(capacity=80 * GiB, compute=1.0, divisible=False, enforce=True, can_park=True, reserve=GiB // 2)  # fmt: skip
    core, user, session, job = Scheduler(config), UserId("ann"), SessionId("s"), JobId("first")
    core.handle(ev.UserLimits(at=0.0, user=user, weight=1.0, group="students", memory=cap, memory_ever=cap, parked=None, over_budget=False))  # fmt: skip
    core.handle(ev.SessionOpened(at=0.0, session=session, user=user))
    core.handle(ev.SessionReady(at=0.0, session=session, bare=False, context=context))
    if kept:
        core.handle(ev.JobSubmitted(at=0.0, job=job, session=session, persistent=kept, ephemeral=0))
        core.handle(ev.JobEnded(at=1.0, job=job, persistent=kept))
    if kept and parked:
        out = core.handle(ev.ParkWanted(at=5.0, session=session))
        (ticket,) = [one.ticket for one in out if isinstance(one, do.Park)]
        freed = core.sessions[session].charged + core.sessions[session].context
        core.handle(ev.Parked(at=6.0, session=session, ticket=ticket, freed=freed, contexts=0))
        assert core.sessions[session].parked is not None
    return core


def asks(core: Scheduler, runs: list[Run]) -> tuple[msg.Submit, str]:
    """Submit a job of `s` that declares nothing, after `runs` of its code: return what is asked for it, and why it is refused (empty: it is not)."""
    needs, place, session = module.Needs(_Unwritten()), Place("cuda", "H100"), SessionId("s")  # type: ignore[arg-type]
    for run in runs:
        needs.learn(submit("a", code=CODE), UserId("ann"), place, run)
    body = needs.ask(
        submit("b", code=CODE), UserId("ann"), place, core.sessions[session], core.book
    ).submit
    out = core.handle(
        ev.JobSubmitted(at=7.0, job=JobId("b"), session=session, persistent=body.persistent, ephemeral=body.ephemeral)
    )  # fmt: skip
    return body, "".join(one.message for one in out if isinstance(one, do.Refuse))


def test_the_margin_is_cut_to_what_a_group_may_hold() -> None:
    """A run took 7 GiB of the 8 that each of the group may hold, half of one is the context's: the margin has what is left."""
    body, refused_for = asks(a_gpu(cap=8 * GiB), [Run(0, 7 * GiB, 10.0)])
    assert refused_for == ""
    assert (body.persistent or 0) + (body.ephemeral or 0) == 8 * GiB - GiB // 2
    body, refused_for = asks(a_gpu(cap=6 * GiB), [Run(0, 7 * GiB, 10.0)])
    assert (body.persistent, body.ephemeral, refused_for) == (None, None, "")


def test_the_margin_is_cut_to_what_a_parked_notebook_leaves() -> None:
    """It keeps 40 GiB and comes back with them: 35 GiB more fit, a quarter more than that does not."""
    core = a_gpu(context=GiB // 2, kept=40 * GiB, parked=True)
    body, refused_for = asks(core, [Run(0, 35 * GiB, 10.0)])
    assert refused_for == ""
    assert body.ephemeral == 80 * GiB - 40 * GiB - GiB // 2
    core = a_gpu(context=GiB // 2, kept=40 * GiB, parked=True)
    body, refused_for = asks(core, [Run(0, 45 * GiB, 10.0)])
    assert (body.persistent, body.ephemeral, refused_for) == (None, None, "")


def test_no_more_is_advised_than_each_of_a_group_may_hold(house: House) -> None:
    """What is to be pasted is not refused."""
    client = house.notebook()
    run(client, "a", size=7 * GiB, peak=3 * GiB)
    (free,) = known(client)
    engine = house.broker.engine_of(SessionId(client.opened.session))  # type: ignore[attr-defined]
    user = house.kernel(client.opened).user  # type: ignore[attr-defined]

    def cap() -> None:
        engine.feed(ev.UserLimits(at=engine.now, user=user, weight=1.0, group="students", memory=3 * GiB, memory_ever=3 * GiB, parked=None, over_budget=False))  # fmt: skip

    house.do(cap)
    (capped,) = known(client)
    assert (free.most, capped.most) == (8 * GiB, 3 * GiB)
    assert need_sizes(free) == ("4GiB",)
    assert need_sizes(capped) == ("3072MiB",)


_GIB = st.integers(0, 800).map(lambda tenths: tenths * GiB // 10)


@given(
    seen=st.lists(st.tuples(_GIB, _GIB), min_size=1, max_size=3),
    cap=st.none() | _GIB.filter(bool),
    context=st.sampled_from([0, MiB, GiB]),
    kept=_GIB.filter(lambda size: size < 70 * GiB),
    parked=st.booleans(),
)
def test_whatever_was_learned_is_never_refused(seen: list[tuple[int, int]], cap: int | None, context: int, kept: int, parked: bool) -> None:  # fmt: skip
    """Where sizes are filled in they can be met, and are no less than what was seen."""
    kept = kept if cap is None or kept + max(context, GiB // 2) <= cap else 0
    core = a_gpu(cap=cap, context=context, kept=kept, parked=parked)
    body, refused_for = asks(core, [Run(p, e, 1.0) for p, e in seen])
    if body.ephemeral is not None and body.persistent is not None:
        assert refused_for == ""
        assert body.persistent >= max(p for p, _ in seen)
        assert body.ephemeral >= max(e for _, e in seen)


def test_it_outlives_the_broker(tmp_path: Path) -> None:
    """The ledger has it, on disk, by user; another user learns nothing of it."""
    with House(tmp_path) as house:
        run(house.notebook(), "a")
    with House(tmp_path) as house:
        loaded = house.ledger.load().needs
        assert [(row.code, row.learned.runs[0].ephemeral) for row in loaded] == [(CODE, 2 * GiB)]
        house.do(lambda: house.broker.needs.know(replace(row, user="bob") for row in loaded))  # type: ignore[arg-type]
        client = house.notebook()
        assert known(client) == ()
        house.do(lambda: house.broker.needs.know(loaded))
        assert took(run(client, "b"))[2] == 1


def test_the_table_is_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used code is forgotten, in memory and on disk."""
    monkeypatch.setattr(module, "MOST", 2)
    client = house.notebook()
    run(client, "a", code="cell:a")
    run(client, "b", code="cell:b")
    run(client, "a2", code="cell:a", size=GiB, failed=True)  # used, and so kept
    run(client, "c", code="cell:c")
    assert [need.code for need in known(client)] == ["cell:c", "cell:a"]
    assert house.ledger.flush()
    assert sorted(row.code for row in house.ledger.load().needs) == ["cell:a", "cell:c"]


def test_a_commands_time_is_learned_though_its_process_ended_first(house: House) -> None:
    """Whoever started it says how it ended, after the broker has seen its process go."""
    opened = house.open("train.py")
    with subprocess.Popen(["sleep", "60"]) as process:
        house.bind(opened, process.pid)
        starter = house.attach(opened)
        for name in ("a", "b"):
            starter.ask(submit(name, persistent=GiB, code=f"run:{name}"))
        process.kill()
    house.saw(lambda: not house.broker.scheduler.jobs)
    starter.ask(msg.End(JobId("a"), 0, 0, 0))
    starter.ask(msg.End(JobId("b"), 0, 0, 0, failed=True))
    (need,) = known(starter)
    assert (need.code, need.measured_persistent) == ("run:a", 0)
    assert need.time is not None


@pytest.mark.parametrize("words", [("x" * 65,), ("a\nb",), ("torch 1",) * 9])
def test_words_that_are_no_hash_are_not_kept(house: House, words: tuple[str, ...]) -> None:
    """What a client says is written to disk: it is short and printable, or the line ends."""
    client = house.notebook()
    client.send(msg.GetNeeds(words))
    assert refused(client.reply(0), "BadFrame").startswith("a job names its code and frameworks in")


def test_an_observer_reads_its_own_users(house: House) -> None:
    """A command line is at no device: nothing is elsewhere for it."""
    run(house.notebook(), "a")
    assert [need.elsewhere for need in known(house.call(msg.Observe()))] == [""]


def test_rows_are_by_user() -> None:
    """One user's code says nothing of another's, were it the same."""
    place = Place("cuda", "H100")
    kept: list[object] = []

    class Played:
        def need_saved(self, row: object) -> None:
            kept.append(row)

    needs = module.Needs(Played())  # type: ignore[arg-type]
    needs.learn(submit("a", code=CODE), "ann", place, Run(GiB, 0, 1.0))  # type: ignore[arg-type]
    assert needs._find("bob", CODE, place) is None  # type: ignore[arg-type]
    assert needs._find("ann", CODE, place) is kept[0]  # type: ignore[arg-type]
