"""What administrators do: maintenance, evict, announce; who may, and what is written down of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gpushare_kernel.broker.administration import named
from gpushare_kernel.broker.audit import Audit, entries
from gpushare_kernel.broker.daemon import _remember
from gpushare_kernel.broker.ledger import Ledger
from gpushare_kernel.broker.persons import Person, user_name
from gpushare_kernel.broker.settings import Settings
from gpushare_kernel.core.values import GiB, UserId, WaitReason
from gpushare_kernel.wire import admin_texts
from gpushare_kernel.wire import messages as msg
from tests.broker.house import Caller, House
from tests.broker.test_desk import as_root, end, refused, submit
from tests.broker.test_groups import snapshot

NOBODY = 65534
ME = user_name(os.geteuid())


@pytest.fixture
def parks(tmp_path: Path) -> Any:
    """A broker whose device gives memory back."""
    with House(tmp_path, can_park=True, divisible=False, plain_persistent=0) as made:
        yield made


def told(client: Caller) -> list[str]:
    """What a notebook has been told that it is to show."""
    client.ask(msg.GetSnapshot())
    return [one.text for one in client.notices if isinstance(one, msg.Announce)]


def acts(house: House) -> list[tuple[str, str, str]]:
    reply = house.call(msg.Observe()).ask(msg.GetAudit())
    assert isinstance(reply, msg.Audited)
    return [(one.what, one.whom, one.detail) for one in reply.entries]


# --- maintenance -----------------------------------------------------------------------------------------------


def test_a_maintenance_from_its_beginning_to_its_end(house: House) -> None:
    """Notebooks are told, what runs is named, what waits reads why; at the end it goes on by itself."""
    runs, waits = house.notebook("train.ipynb"), house.notebook("later.ipynb")
    runs.ask(submit("a", persistent=GiB))
    admin = house.call(msg.Observe())
    assert admin.ask(msg.Drain(on=True, note="new driver")) == msg.Ok()
    view = snapshot(house).maintenance
    assert (view.note, view.running, view.empty) == ("new driver", ("train.ipynb",), False)
    number = waits.send(submit("b", persistent=GiB))
    house.saw(lambda: house.broker.scheduler.held_back)
    (waiter,) = snapshot(house).queue
    assert (waiter.reason, waiter.note) == (WaitReason.MAINTENANCE, "new driver")
    runs.ask(end("a"))
    assert snapshot(house).maintenance.empty
    assert told(runs) == [admin_texts.maintenance_begins_text("new driver")]
    admin.ask(msg.Drain(on=False))
    assert isinstance(waits.reply(number), msg.Granted)
    assert snapshot(house).maintenance is None
    assert told(runs)[-1] == "The maintenance is over: cells that waited for that go on."
    assert acts(house) == [("drain", "", "new driver"), ("drain --end", "", "")]


def test_it_outlives_the_broker_and_so_does_a_word_to_everybody(tmp_path: Path) -> None:
    """Until somebody ends them."""
    with House(tmp_path) as house:
        admin = house.call(msg.Observe())
        admin.ask(msg.Drain(on=True, note="new driver"))
        admin.ask(msg.Proclaim("away on Monday"))
    ledger = Ledger(tmp_path / "ledger.sqlite")
    notes = ledger.load().notes
    ledger.close()
    with House(tmp_path) as house:
        house.do(lambda: house.broker.upkeep.restore(notes))
        assert snapshot(house).maintenance.note == "new driver"
        assert house.broker.scheduler.draining
        assert snapshot(house).announcement.text == "away on Monday"
        house.call(msg.Observe()).ask(msg.Drain(on=False))
        house.call(msg.Observe()).ask(msg.Proclaim(""))
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.load().notes == ()
    ledger.close()


def test_idle_memory_is_set_aside_for_it(parks: House) -> None:
    """Where the device can; who is at work follows at its end."""
    parks.device.frees = GiB
    idle, busy = parks.notebook("idle.ipynb"), parks.notebook("busy.ipynb")
    idle.ask(submit("a", persistent=GiB))
    idle.ask(end("a", held=GiB))
    busy.ask(submit("b", persistent=GiB))
    parks.call(msg.Observe()).ask(msg.Drain(on=True))
    parks.saw(lambda: parks.broker.upkeep.view(Person(os.geteuid())).parked == 1)
    busy.ask(end("b", held=GiB))
    parks.saw(lambda: parks.broker.upkeep.view(Person(os.geteuid())).parked == 2)
    view = snapshot(parks).maintenance
    assert (view.empty, view.holding) == (True, ())


# --- evict -----------------------------------------------------------------------------------------------------------


def test_evict_sets_aside_what_can_be_and_asks_for_the_rest(parks: House) -> None:
    """Both are told; whoever asked reads what is left and why. No process ends (I8)."""
    parks.device.frees = GiB
    idle, stuck, busy = (parks.notebook(f"{name}.ipynb") for name in ("idle", "stuck", "busy"))
    for client, job in ((idle, "a"), (stuck, "b")):
        client.ask(submit(job, persistent=GiB))
        client.ask(end(job, held=GiB))
    busy.ask(submit("c", persistent=GiB))
    kernel = parks.kernel(stuck.opened)  # type: ignore[attr-defined]
    parks.do(lambda: parks.broker.engine.bar(kernel, "it maps what others own"))
    reply = parks.call(msg.Observe()).ask(msg.Evict(ME))
    assert isinstance(reply, msg.EvictedNow)
    assert (reply.parked, reply.after_cell) == ((f"{ME}: idle.ipynb",), (f"{ME}: busy.ipynb",))
    (left,) = reply.left
    assert (left.name, left.size, left.why) == (f"{ME}: stuck.ipynb", GiB, "it maps what others own")  # fmt: skip
    assert told(idle) == [admin_texts.set_aside_by_admin_text(after_cell=False)]
    assert told(stuck) == [admin_texts.asked_by_admin_text(GiB)]
    assert msg.Trim() in stuck.notices
    parks.saw(lambda: sum(one.parked is not None for one in parks.broker.sessions()) == 1)
    assert len(parks.broker.registry) == 3
    assert [act[0] for act in acts(parks)] == ["evict"] * 3


def test_evict_of_somebody_who_is_not_there(house: House) -> None:
    house.notebook("hw.ipynb")
    text = refused(house.call(msg.Observe()).ask(msg.Evict("zoe")), "NotYours")
    assert text == f"there is no notebook or user 'zoe'. There are notebooks of: {ME}. jupyter gpushare status lists them."  # fmt: skip


# --- a word to everybody ------------------------------------------------------------------------------------------------


def test_a_word_reaches_every_notebook_and_every_status(house: House) -> None:
    """Also those that come later; in one line."""
    here = house.notebook("here.ipynb")
    reply = house.call(msg.Observe()).ask(msg.Proclaim("GPU 1 is away\non Monday"))
    assert reply == msg.Proclaimed(1)
    later = house.notebook("later.ipynb")
    text = "From your administrator: GPU 1 is away on Monday"
    assert told(here) == told(later) == [text]
    assert all(one.keep for one in here.notices if isinstance(one, msg.Announce))
    assert snapshot(house).announcement.text == "GPU 1 is away on Monday"
    house.call(msg.Observe()).ask(msg.Proclaim(""))
    assert snapshot(house).announcement is None
    assert told(house.notebook("last.ipynb")) == []


def test_a_word_is_no_novel(house: House) -> None:
    text = refused(house.call(msg.Observe()).ask(msg.Proclaim("x" * 501)), "BadDeclaration")
    assert text == "that may have 500 characters, and it has 501. Say it shorter, with a link."


# --- who may -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def open_doors(tmp_path: Path) -> None:
    """Other users reach the socket."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)


ACTS = (msg.Drain(on=True), msg.Evict("root"), msg.Proclaim("hi"), msg.ReloadSettings(), msg.GetAudit())  # fmt: skip


@as_root
@pytest.mark.usefixtures("open_doors")
def test_others_may_not(house: House) -> None:
    """And nothing has changed, and nothing is written down."""
    _, *replies = house.as_user(NOBODY, msg.Observe(), *ACTS)
    for reply in replies:
        assert "only an administrator (root, the broker's owner, or who its configuration names) may" in refused(reply, "NotYours")  # fmt: skip
    assert snapshot(house).maintenance is None
    assert acts(house) == []


@as_root
@pytest.mark.usefixtures("open_doors")
def test_who_the_file_names_may(house: House) -> None:
    """Under its own name in what is written down; it sees what an administrator sees."""
    settings = Settings(admins=frozenset({user_name(NOBODY)}))
    house.do(lambda: house.broker.groups.follow(settings))
    house.notebook("hw.ipynb")
    _, _, seen = house.as_user(NOBODY, msg.Observe(), msg.Proclaim("hi"), msg.GetSnapshot())
    assert seen.snapshot.sessions[0].name == "hw.ipynb"
    (entry,) = house.broker.audit.read(10)
    assert (entry.who, entry.uid, entry.what, entry.detail) == (user_name(NOBODY), NOBODY, "announce", "hi")  # fmt: skip


@as_root
@pytest.mark.usefixtures("open_doors")
def test_acts_on_notebooks_of_others_are_written_down_and_on_ones_own_not(parks: House) -> None:
    """park, by its owner's name, too."""
    parks.device.frees = GiB
    settings = Settings(admins=frozenset({user_name(NOBODY)}))
    parks.do(lambda: parks.broker.groups.follow(settings))
    client = parks.notebook("hw.ipynb")
    client.ask(submit("a", persistent=GiB))
    client.ask(end("a", held=GiB))
    client.ask(msg.Release())
    client.ask(submit("b", persistent=GiB))
    client.ask(end("b", held=GiB))
    _, parked = parks.as_user(NOBODY, msg.Observe(), msg.ParkNotebook("root"))
    assert isinstance(parked, msg.ParkedNow)
    assert acts(parks) == [("park", "root: hw.ipynb", "")]


def test_the_audit_log_is_bounded_and_its_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files; what is no line of it is passed over; a disk that takes nothing keeps nobody from acting."""
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, most=1000)
    for number in range(100):
        audit.note("ann", 1000, "evict", f"bob: {number}.ipynb")
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= 1000
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes() + b"nonsense\n")
    found = entries(path, 3)
    assert [one.whom for one in found] == [f"bob: {n}.ipynb" for n in (97, 98, 99)]
    Audit(tmp_path / "nowhere" / "audit.jsonl").note("ann", 1000, "drain")
    (tmp_path / "audit.jsonl.1").unlink()
    (tmp_path / "audit.jsonl.1").mkdir()
    os_close, closed = os.close, []
    monkeypatch.setattr(os, "close", lambda fd: (closed.append(fd), os_close(fd)))
    Audit(path, most=10).note("ann", 1000, "drain")
    assert len(closed) == 1, "a descriptor that is closed twice is somebody else's by then"
    assert Audit(None).read(10) == ()


def test_an_announcement_is_told_once_to_each_kernel(tmp_path: Path) -> None:
    """Not each time its line breaks, nor by the next broker; another one is."""
    with House(tmp_path) as house:
        client = house.notebook()
        opened = client.opened  # type: ignore[attr-defined]
        admin = house.call(msg.Observe())
        admin.ask(msg.Proclaim("away on Monday"))
        assert told(client) == ["From your administrator: away on Monday"]
        kernel = house.kernel(opened)
        client.close()
        house.saw(lambda: not kernel.lines)
        client = house.attach(opened)
        assert told(client) == []
        admin.ask(msg.Proclaim("on Tuesday"))
        assert told(client) == ["From your administrator: on Tuesday"]
        assert house.ledger.flush()
    with House(tmp_path) as house:
        house.do(lambda: _remember(house.broker, house.ledger.load(), None))
        assert told(house.attach(opened)) == []
        assert told(house.notebook("new.ipynb")) == ["From your administrator: on Tuesday"]


def test_a_notebook_that_is_called_like_a_user_keeps_nobody_from_being_meant(house: House) -> None:
    """By its name with the ending, or its id, it is itself."""
    mine, like = house.open("train.ipynb"), house.open(f"{ME}.ipynb")
    kernels = [house.kernel(one) for one in (mine, like)]
    kernels[1].user = UserId("somebody")
    try:
        assert house.do(lambda: named(house.broker, Person(NOBODY), ME)) == [kernels[0]]
        assert house.do(lambda: named(house.broker, Person(NOBODY), f"{ME}.ipynb")) == [kernels[1]]
        assert house.do(lambda: named(house.broker, Person(NOBODY), like.session)) == [kernels[1]]
    finally:
        kernels[1].user = kernels[0].user
