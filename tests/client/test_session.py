"""A session against a broker played by the test: attach, queue, interrupt, come back, fork."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from gpushare_kernel.client.lanes import new_job_id
from gpushare_kernel.client.session import Session
from gpushare_kernel.core.errors import BadToken, BrokerUnavailable, Refused, UserError, WaitEnded
from gpushare_kernel.core.values import GiB, Wait, WaitReason
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import (
    CANCELLED,
    Announce,
    Cancel,
    CellEnded,
    CellStarted,
    DryRun,
    End,
    Failure,
    GetSnapshot,
    Ok,
    Release,
    ReleasedNow,
    SetNeeds,
    Slowed,
    SnapshotReply,
    Submit,
    Waiting,
)
from gpushare_kernel.wire.snapshot import Snapshot
from tests.client.scripted_broker import ScriptedBroker, attached, report

New = Callable[[], Session]
WAIT = Wait(WaitReason.MEMORY, needs=6 * GiB, free=2 * GiB, ahead=2)


def submit(**changes: object) -> Submit:
    """Return a job of 6 GiB."""
    return Submit(job=new_job_id(), name="hw1.ipynb", size=6 * GiB, **changes)  # type: ignore[arg-type]


def in_thread(call: Callable[[], object]) -> Future[object]:
    """Run a blocking call beside the test, which plays the broker meanwhile."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return future


def interrupt_when(condition: threading.Event) -> None:
    """Press Ctrl-C in the main thread once `condition` holds."""

    def press() -> None:
        condition.wait(20)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()


def test_attaching_needs_no_caller(broker: ScriptedBroker, new_session: New) -> None:
    """`start` returns at once; the token goes out and the device's numbers come back."""
    session = new_session()
    session.start()
    peer = broker.accept()
    assert peer.attach.token == "the-token"
    assert peer.attach.held == ()
    assert session.wait_attached(20) == attached()
    assert session.noun == "memory"


def test_a_gpu_is_called_one(broker: ScriptedBroker, new_session: New) -> None:
    """Only a CUDA device has GPU memory."""
    session = new_session()
    session.start()
    broker.accept(attached("cuda"))
    session.wait_attached(20)
    assert session.noun == "GPU memory"


def test_grant_starts_the_job(broker: ScriptedBroker, new_session: New) -> None:
    """A submit blocks until it is granted, and tells why it waits meanwhile."""
    session, reasons = new_session(), []
    running = in_thread(lambda: session.submit(submit(), on_wait=reasons.append))
    peer = broker.accept()
    number, asked = peer.expect(Submit)
    peer.notice(Waiting(asked.job, WAIT))
    peer.grant(number, asked, slot=3)
    job = running.result(20)
    assert reasons == [WAIT]
    assert (job.id, job.slot, job.persistent) == (asked.job, 3, 3 * GiB)


def test_refusal_is_raised_by_its_class(broker: ScriptedBroker, new_session: New) -> None:
    """What can never fit is refused with the broker's words."""
    session = new_session()
    running = in_thread(lambda: session.submit(submit()))
    peer = broker.accept()
    number, _ = peer.expect(Submit)
    peer.reply(number, Failure("Refused", "needs 6.0 GiB, the device has 4.0 GiB"))
    with pytest.raises(Refused, match=r"^needs 6\.0 GiB"):
        running.result(20)


def test_wait_over_cancels(broker: ScriptedBroker, new_session: New) -> None:
    """After `wait` seconds the job leaves the queue and the error has the numbers."""
    session, told = new_session(), threading.Event()

    def on_wait(_: Wait | None) -> None:
        told.set()

    running = in_thread(lambda: session.submit(submit(), wait=0.2, on_wait=on_wait))
    peer = broker.accept()
    number, asked = peer.expect(Submit)
    peer.notice(Waiting(asked.job, WAIT))
    cancel_number, cancel = peer.expect(Cancel)
    assert cancel.job == asked.job
    peer.reply(cancel_number, Ok())
    peer.reply(number, Failure("Cancelled", "left the queue"))
    with pytest.raises(WaitEnded, match=r"the cell has not run\. It needs 6\.0 GiB, 2\.0 free"):
        running.result(20)


def test_no_wait_for_what_never_fits_says_that(broker: ScriptedBroker, new_session: New) -> None:
    """`--wait 0`: a refusal is on its way as the time ends, and "run it again later" would be wrong."""
    session = new_session()
    running = in_thread(lambda: session.submit(submit(), wait=0.0))
    peer = broker.accept()
    number, _ = peer.expect(Submit)
    peer.expect(Cancel)
    peer.reply(number, Failure("Refused", "this can never fit: it needs 6.0 GiB"))
    with pytest.raises(Refused, match=r"^this can never fit: it needs 6\.0 GiB"):
        running.result(20)


def test_no_wait_has_the_numbers_too(broker: ScriptedBroker, new_session: New) -> None:
    """Why it would have waited comes after the time is over."""
    session = new_session()
    running = in_thread(lambda: session.submit(submit(), wait=0.0))
    peer = broker.accept()
    number, asked = peer.expect(Submit)
    peer.notice(Waiting(asked.job, WAIT))
    peer.expect(Cancel)
    peer.reply(number, Failure(CANCELLED, "left the queue"))
    with pytest.raises(WaitEnded, match=r"the cell has not run\. It needs 6\.0 GiB, 2\.0 free"):
        running.result(20)


def test_grant_faster_than_cancel_runs(broker: ScriptedBroker, new_session: New) -> None:
    """A grant that crosses the cancel stands: the job runs after all."""
    session = new_session()
    running = in_thread(lambda: session.submit(submit(), wait=0.1))
    peer = broker.accept()
    number, asked = peer.expect(Submit)
    peer.expect(Cancel)
    peer.grant(number, asked)
    assert running.result(20).id == asked.job


def test_interrupt_leaves_the_queue_at_once(broker: ScriptedBroker, new_session: New) -> None:
    """Ctrl-C while queued raises although the broker says nothing, and gives up the place."""
    session, queued = new_session(), threading.Event()
    session.start()
    peer = broker.accept()
    session.wait_attached(20)
    interrupt_when(queued)
    peer_side = in_thread(lambda: (peer.expect(Submit), queued.set()))
    with pytest.raises(KeyboardInterrupt):
        session.submit(submit())
    peer_side.result(20)
    peer.expect(Cancel)


def test_grant_crossing_an_interrupt_is_given_back(
    broker: ScriptedBroker, new_session: New
) -> None:
    """What is granted after the waiter has left is ended: nobody else would ever end it."""
    session, queued = new_session(), threading.Event()
    session.start()
    peer = broker.accept()
    session.wait_attached(20)
    interrupt_when(queued)
    peer_side = in_thread(lambda: (peer.expect(Submit), queued.set())[0])
    with pytest.raises(KeyboardInterrupt):
        session.submit(submit())
    number, asked = peer_side.result(20)  # type: ignore[misc]
    peer.expect(Cancel)
    peer.grant(number, asked)
    _, end = peer.expect(End)
    assert end.job == asked.job


def test_interrupt_works_under_a_running_loop(broker: ScriptedBroker, new_session: New) -> None:
    """A loop that took SIGINT for itself cannot run its handler while we block it: we raise anyway."""
    import asyncio

    session, queued = new_session(), threading.Event()
    session.start()
    peer = broker.accept()
    session.wait_attached(20)
    peer_side = in_thread(lambda: (peer.expect(Submit), queued.set()))

    async def cell() -> None:
        mine = signal.getsignal(signal.SIGINT)
        interrupt_when(queued)
        try:
            with pytest.raises(KeyboardInterrupt):
                session.submit(submit())
        finally:
            assert signal.getsignal(signal.SIGINT) is mine

    with asyncio.Runner() as runner:
        previous = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            runner.run(cell())
        finally:
            signal.signal(signal.SIGINT, previous)
    peer_side.result(20)


def test_waiting_while_asyncio_is_imported(
    broker: ScriptedBroker, new_session: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread: there is half a module, and no loop runs here."""
    session = new_session()
    session.start()
    broker.accept()
    monkeypatch.setitem(sys.modules, "asyncio", types.ModuleType("asyncio"))
    assert session.wait_attached(20).capacity


def test_broker_gone_while_queued(broker: ScriptedBroker, new_session: New) -> None:
    """The job is submitted again at the next broker. The lost place is said once, and when it is true: there is another broker."""
    session, said = new_session(), []
    session.listen(lambda notice: said.append(notice.text))  # type: ignore[union-attr]
    running = in_thread(lambda: session.submit(submit(), say=said.append))
    peer = broker.accept()
    for _ in range(2):
        peer.expect(Submit)
        before = list(said)
        peer.close()
        peer = broker.accept(welcome=False)
        assert said == before
        peer.welcome()
    number, asked = peer.expect(Submit)
    peer.grant(number, asked)
    running.result(20)
    assert said == [texts.PLACE_LOST]


def test_who_runs_hears_that_it_runs_on(broker: ScriptedBroker, new_session: New) -> None:
    """Also beside another cell of this notebook that waits, and before that goes on waiting."""
    session, said = new_session(), []
    session.listen(lambda notice: said.append(notice.text))  # type: ignore[union-attr]
    running = in_thread(lambda: session.submit(submit()))
    peer = broker.accept()
    number, asked = peer.expect(Submit)
    peer.grant(number, asked)
    running.result(20)
    waiting = in_thread(lambda: session.submit(submit(), say=said.append))
    peer.expect(Submit)
    peer.close()
    peer = broker.accept()
    number, asked = peer.expect(Submit)
    assert said == [texts.BROKER_AWAY, texts.PLACE_LOST]
    peer.grant(number, asked)
    waiting.result(20)


@pytest.mark.parametrize("broken", ["no stderr", "a listener"])
def test_who_waits_is_told_whatever_else_fails(
    broker: ScriptedBroker, new_session: New, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A connection ends while a job runs and another waits: that it has ended cannot be said, and the reader goes on."""
    session = new_session()
    if broken == "a listener":

        def fails(_: object) -> None:
            raise RuntimeError

        session.listen(fails)
    else:
        monkeypatch.setattr(sys, "stderr", None)
    running = in_thread(lambda: session.submit(submit()))
    peer = broker.accept()
    number, asked = peer.expect(Submit)
    peer.grant(number, asked)
    running.result(20)
    waiting = in_thread(lambda: session.submit(submit()))
    peer.expect(Submit)
    peer.notice(Announce("maintenance at noon"))
    peer.close()
    peer = broker.accept()
    number, asked = peer.expect(Submit)
    peer.grant(number, asked)
    waiting.result(20)


def test_running_jobs_are_confirmed(broker: ScriptedBroker, new_session: New) -> None:
    """A new broker is told at once what ran on, and reads its words from the new page."""
    session = new_session()
    session.listen(lambda _: None)
    running = in_thread(lambda: session.submit(submit()))
    first = broker.accept()
    number, asked = first.expect(Submit)
    first.grant(number, asked, slot=5)
    job = running.result(20)
    first.close()
    second = broker.accept()
    (held,) = second.attach.held
    assert (held.job, held.slot, held.running) == (asked.job, 5, True)
    session.wait_attached(20)
    second.page.set(5, 1)
    assert job.read(5) == 1


def test_end_during_the_handshake_is_said_after_it(
    broker: ScriptedBroker, new_session: New
) -> None:
    """A job confirmed as held, but over before the answer, is ended with the new broker."""
    session = new_session()
    session.listen(lambda _: None)
    running = in_thread(lambda: session.submit(submit()))
    first = broker.accept()
    number, asked = first.expect(Submit)
    first.grant(number, asked)
    job = running.result(20)
    first.close()
    second = broker.accept(welcome=False)
    assert second.attach.held
    assert job.end() is None
    second.welcome()
    _, end = second.expect(End)
    assert end.job == asked.job


def test_a_token_nobody_knows_is_final(broker: ScriptedBroker, new_session: New) -> None:
    """A refused attach is raised to whoever asks, and not tried again."""
    session = new_session()
    session.start()
    broker.accept(Failure("BadToken", "no such session"))
    with pytest.raises(BadToken, match="no such session"):
        session.wait_attached(20)
    with pytest.raises(BadToken):
        session.submit(submit())


def test_nobody_there(new_session: New, tmp_path: object) -> None:
    """Questions to a broker that is not there end with the next step to take."""
    session = new_session(tmp_path / "nowhere.sock")  # type: ignore[call-arg, operator]
    with pytest.raises(BrokerUnavailable, match="jupyter gpushare doctor"):
        session.wait_attached(0.2)


def test_wait_over_without_a_broker(new_session: New, tmp_path: object) -> None:
    """`--wait` holds for a broker that is away too."""
    session, told = new_session(tmp_path / "nowhere.sock"), []  # type: ignore[call-arg, operator]
    with pytest.raises(WaitEnded, match="the cell has not run"):
        session.submit(submit(), wait=0.5, on_wait=told.append)
    assert told == [None]


def test_stopped_on_purpose_is_not_waited_for(new_session: New, tmp_path: Path) -> None:
    """Where somebody ended the broker for good, who asks is told so at once, not that one comes back."""
    session, told = new_session(tmp_path / "nowhere.sock"), []
    (tmp_path / "stopped").touch()
    with pytest.raises(BrokerUnavailable, match=f"^{texts.BROKER_STOPPED}$"):
        session.submit(submit(), on_wait=told.append)
    assert told == []
    with pytest.raises(BrokerUnavailable, match=f"^{texts.BROKER_STOPPED}$"):
        session.wait_attached(threading.TIMEOUT_MAX)


def test_stopped_on_purpose_while_queued(broker: ScriptedBroker, new_session: New) -> None:
    """Nothing restarted and nothing runs on: the one thing that is said is that it was stopped."""
    session, said = new_session(), []
    session.listen(lambda notice: said.append(notice.text))  # type: ignore[union-attr]
    waiting = in_thread(lambda: session.submit(submit(), on_wait=said.append, say=said.append))
    peer = broker.accept()
    peer.expect(Submit)
    (broker.path.parent / "stopped").touch()
    broker.close()
    with pytest.raises(BrokerUnavailable, match=f"^{texts.BROKER_STOPPED}$"):
        waiting.result(20)
    assert said == []


def test_cells_are_said_again_to_a_new_broker(broker: ScriptedBroker, new_session: New) -> None:
    """A plain cell under way is known to the broker that comes after."""
    session = new_session()
    session.listen(lambda _: None)
    session.start()
    session.cell_started(7)
    first = broker.accept()
    assert first.expect(CellStarted)[1].cell == 7
    first.close()
    second = broker.accept()
    assert second.expect(CellStarted)[1].cell == 7
    session.wait_attached(20)
    session.cell_ended(7)
    assert second.expect(CellEnded)[1].cell == 7


def test_questions(broker: ScriptedBroker, new_session: New) -> None:
    """Release, snapshot, needs and dry run are one request and one reply each."""
    session = new_session()
    view = Snapshot(schema=1, broker=None)
    questions: list[tuple[Callable[[], object], type, object, object]] = [
        (lambda: session.release("hw2"), Release, ReleasedNow(GiB, ("hw2",)), None),
        (session.snapshot, GetSnapshot, SnapshotReply(view), view),
        (lambda: session.set_needs(GiB), SetNeeds, Ok(), ...),
        (lambda: session.dry_run(submit(dry_run=True)), Submit, DryRun(True, 1, 2, 3), None),
    ]
    session.start()
    peer = broker.accept()
    for ask, request, reply, expected in questions:
        asking = in_thread(ask)
        number, _ = peer.expect(request)
        peer.reply(number, reply)
        assert asking.result(20) == (None if expected is ... else expected or reply)


def test_a_broker_of_before_is_not_asked_what_it_does_not_know(broker: ScriptedBroker, new_session: New) -> None:  # fmt: skip
    """It would take the request for a broken frame and hang up: an error says so, and the line stays."""
    session = new_session()
    session.start()
    peer = broker.accept(welcome=False)
    peer.welcome(with_tally=False, version=1)
    session.wait_attached(20)
    with pytest.raises(UserError, match="speaks protocol version 1, and this is known since 2"):
        session.set_needs(GiB)
    asking = in_thread(session.snapshot)
    number, _ = peer.expect(GetSnapshot)
    peer.reply(number, SnapshotReply(Snapshot(schema=1, broker=None)))
    asking.result(20)


def test_notices_reach_listeners(broker: ScriptedBroker, new_session: New) -> None:
    """What the broker says unasked is passed on, in order."""
    session, heard, twice = new_session(), [], threading.Semaphore(0)
    session.listen(lambda notice: (heard.append(notice), twice.release()))  # type: ignore[func-returns-value]
    session.start()
    peer = broker.accept()
    peer.notice(Slowed(people=3, fraction=0.25))
    peer.notice(Announce("maintenance at noon"))
    assert twice.acquire(timeout=20)
    assert twice.acquire(timeout=20)
    assert heard == [Slowed(people=3, fraction=0.25), Announce("maintenance at noon")]


def test_idle_session_does_not_wake_up(broker: ScriptedBroker, new_session: New) -> None:
    """An idle session's reader sits in one system call."""
    session = new_session()
    session.start()
    broker.accept()
    session.wait_attached(20)
    (tid,) = [t.native_id for t in threading.enumerate() if t.name == "gpushare-reader"]
    before = _switches(tid)
    time.sleep(0.5)
    assert _switches(tid) - before <= 1


def test_several_jobs_at_once(broker: ScriptedBroker, new_session: New) -> None:
    """Threads of one session queue and run independently."""
    session = new_session()
    session.start()
    peer = broker.accept()
    running = [in_thread(lambda: session.submit(submit())) for _ in range(3)]
    asked = [peer.expect(Submit) for _ in range(3)]
    for slot, (number, body) in enumerate(reversed(asked), 1):
        peer.grant(number, body, slot=slot)
    jobs = [future.result(20) for future in running]
    assert {job.slot for job in jobs} == {1, 2, 3}


def test_report_at_the_end(broker: ScriptedBroker, new_session: New) -> None:
    """Ending a job returns what became of it."""
    session = new_session()
    running = in_thread(lambda: session.submit(submit()))
    peer = broker.accept()
    number, asked = peer.expect(Submit)
    peer.grant(number, asked)
    job = running.result(20)
    ending = in_thread(job.end)
    number, end = peer.expect(End)
    peer.reply(number, report(asked.job))
    assert end.peak >= end.persistent
    assert ending.result(20) == report(asked.job)


def test_closing_ends_the_thread_and_the_connection(
    broker: ScriptedBroker, new_session: New
) -> None:
    """After `close` nothing of the session is left in the process."""
    session = new_session()
    session.start()
    peer = broker.accept()
    session.wait_attached(20)
    session.close()
    assert peer.next() is None
    assert not [t for t in threading.enumerate() if t.name == "gpushare-reader"]


def _switches(tid: int | None) -> int:
    with open(f"/proc/self/task/{tid}/status", encoding="ascii") as status:  # noqa: PTH123
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["voluntary_ctxt_switches"]) + int(lines["nonvoluntary_ctxt_switches"])
