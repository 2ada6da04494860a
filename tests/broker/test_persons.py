"""Many people under one uid: accounts, and what each may see and touch, by the name that a hub vouches for (I9)."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pwd
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from gpushare_kernel.broker import administration, controls, people, persons
from gpushare_kernel.broker.administration import of_user
from gpushare_kernel.broker.persons import Person, Persons
from gpushare_kernel.broker.settings import Caps, Group, Settings
from gpushare_kernel.core.errors import HubAway, NotVouched, UserError
from gpushare_kernel.core.values import GiB, JobId, SessionId, UserId
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire import texts
from tests.broker.house import LIMIT, Caller, House
from tests.procs import Program

ME = Person(os.geteuid())


class PlayedNames:
    """A hub of this process: tokens are `t-NAME`."""

    def __init__(self) -> None:
        self.away = False
        self.slow = threading.Event()
        self.slow.set()
        self.asked: list[str] = []

    @property
    def trouble(self) -> str | None:
        return "JupyterHub (here) cannot be reached." if self.away else None

    async def name(self, token: str) -> str:
        self.asked.append(token)
        await asyncio.to_thread(self.slow.wait, LIMIT)
        if self.away:
            raise HubAway(str(self.trouble))
        if not token.startswith("t-"):
            problem = "JupyterHub does not know the token."
            raise NotVouched(problem)
        return token.removeprefix("t-")


@pytest.fixture
def names() -> PlayedNames:
    """The hub."""
    return PlayedNames()


@pytest.fixture
def house(tmp_path: Path, names: PlayedNames) -> Iterator[House]:
    """A broker that asks it."""
    with House(tmp_path, persons=Persons(names)) as made:
        yield made


def of(house: House, token: str, name: str) -> Caller:
    """A notebook of whoever has this token."""
    return house.notebook(name, hub_token=token)


def seen_by(house: House, caller: Caller) -> dict[str | None, str]:
    reply = caller.ask(msg.GetSnapshot())
    assert isinstance(reply, msg.SnapshotReply)
    return {one.name: one.user for one in reply.snapshot.sessions}


def test_each_has_an_account_and_sees_the_own(house: House) -> None:
    """Two names are two users in one uid; the other is initials without a name."""
    ann, bob = of(house, "t-ann", "a.ipynb"), of(house, "t-bob.lee", "b.ipynb")
    assert seen_by(house, ann) == {"a.ipynb": "ann", None: "bl"}
    assert seen_by(house, bob) == {"b.ipynb": "bob.lee", None: "a"}
    snapshot = house.do(lambda: house.broker.snapshot(ME))
    assert {user.name for user in snapshot.users} == {"ann", "bob.lee"}
    reply = ann.ask(msg.GetSnapshot())
    assert isinstance(reply, msg.SnapshotReply)
    assert reply.snapshot.you == "ann"


@pytest.mark.parametrize(
    "request_",
    [msg.Release, msg.PauseNotebook, msg.ResumeNotebook, msg.ParkNotebook, msg.UnparkNotebook],
)
@pytest.mark.parametrize("by", ["name", "id"])
def test_neither_touches_the_other(house: House, request_: type, by: str) -> None:
    """By its name or its id, from a kernel and from a command line; and none of them administers."""
    ann = of(house, "t-ann", "a.ipynb")
    bob = of(house, "t-bob", "b.ipynb")
    meant = "b.ipynb" if by == "name" else bob.opened.session  # type: ignore[attr-defined]
    line = house.call(msg.Observe("t-ann"))
    for caller in (ann, line):
        reply = caller.ask(request_(meant))
        assert isinstance(reply, msg.Failure)
        assert (reply.code, "Yours: a.ipynb" in reply.message) == ("NotYours", True)
        for forbidden in (msg.Stop(), msg.SetPolicy("fifo")):
            reply = caller.ask(forbidden)
            assert isinstance(reply, msg.Failure)
            assert "you are ann" in reply.message
    assert not house.do(house.broker.stopping.is_set)


def test_a_command_line_acts_for_whom_its_token_names(house: House) -> None:
    """It sees and touches the own; without a token it is the uid, which owns neither."""
    of(house, "t-ann", "a.ipynb")
    line = house.call(msg.Observe("t-ann"))
    assert seen_by(house, line) == {"a.ipynb": "ann"}
    assert isinstance(line.ask(msg.Release("a.ipynb")), msg.ReleasedNow)


@pytest.mark.parametrize("body", [msg.Open("x.ipynb", hub_token="forged"), msg.Observe("forged")])
def test_a_forged_token_is_refused_before_anything_is_made(house: House, body: object) -> None:
    """With the hub's words."""
    with pytest.raises(NotVouched, match="does not know"):
        house.call(body)
    assert len(house.broker.registry) == 0


def test_a_hub_that_is_away_makes_it_the_uids_until_a_restart(
    house: House, names: PlayedNames
) -> None:
    """The notebook starts, its user reads why it is not theirs, and a restart with the hub back makes it so."""
    names.away = True
    opened = house.open("a.ipynb", hub_token="t-ann")
    house.bind(opened)
    caller = house.attach(opened)
    assert house.kernel(opened).person == ME
    reply = caller.ask(msg.GetSnapshot())
    assert isinstance(reply, msg.SnapshotReply)
    assert reply.snapshot.broker is not None
    assert reply.snapshot.broker.hub == names.trouble
    (told,) = [one.text for one in caller.notices if isinstance(one, msg.Announce)]
    assert "cannot be reached" in told
    assert "Restart its kernel once the hub answers." in told
    names.away = False
    again = house.call(msg.Restart(opened.session, opened.token, "t-ann"))
    assert isinstance(again.body, msg.Opened)
    kernel = house.kernel(opened)
    assert (kernel.person, kernel.user, kernel.remark) == (Person(ME.uid, "ann"), "ann", "")
    house.bind(again.body)
    assert seen_by(house, house.attach(again.body)) == {"a.ipynb": "ann"}


def test_a_command_is_told_as_a_notebook_is(house: House, names: PlayedNames) -> None:
    """By whoever started it, who holds its place from outside; once, in its words."""
    names.away = True
    opened = house.open("train", hub_token="t-ann")
    with Program("wait()") as command:
        house.bind(opened, command.pid)
        for told in (1, 0):
            caller = house.attach(opened)
            assert isinstance(caller.ask(msg.GetSnapshot()), msg.SnapshotReply)
            said = [texts.for_command(one.text) for one in caller.notices if isinstance(one, msg.Announce)]  # fmt: skip
            assert len(said) == told
            for text in said:
                assert f"This command counts as one of {ME.user}'s" in text
                assert text.endswith("Start it again once the hub answers.")


def test_a_notebook_that_becomes_somebodys_at_a_restart_is_one_kernel_more(
    house: House, names: PlayedNames
) -> None:
    """Beyond her group's it does not start: nothing of it changes, and it does once she has shut one down."""
    group = Group("students", frozenset({"ann"}), caps=Caps(kernels=1))
    house.do(lambda: house.broker.groups.follow(Settings(groups=(group,))))
    names.away = True
    opened = house.open("a.ipynb", hub_token="t-ann")
    names.away = False
    other = house.open("b.ipynb", hub_token="t-ann")
    restart = msg.Restart(opened.session, opened.token, "t-ann")
    with pytest.raises(UserError, match=r"may have 1 kernel open, and yours is b\.ipynb"):
        house.call(restart)
    assert house.kernel(opened).person == ME
    house.call(msg.Close(other.session, other.token)).close()
    assert isinstance(house.call(restart).body, msg.Opened)
    assert house.kernel(opened).user == "ann"


def test_a_restart_keeps_who_it_was(house: House, names: PlayedNames) -> None:
    """The hub is not asked again, nor needed."""
    opened = house.open("a.ipynb", hub_token="t-ann")
    names.away = True
    again = house.call(msg.Restart(opened.session, opened.token, "t-ann"))
    assert isinstance(again.body, msg.Opened)
    assert house.kernel(opened).user == "ann"
    assert names.asked == ["t-ann"]


def test_a_slow_hub_stalls_nobody(house: House, names: PlayedNames) -> None:
    """While one waits for it, somebody else's cell is admitted; whoever waited comes in afterwards."""
    ann = of(house, "t-ann", "a.ipynb")
    names.slow.clear()
    opened: list[msg.Opened] = []
    waiting = threading.Thread(
        target=lambda: opened.append(house.open("b.ipynb", hub_token="t-bob"))
    )
    waiting.start()
    house.saw(lambda: names.asked[-1] == "t-bob")
    granted = ann.ask(msg.Submit(JobId("j"), "cell", persistent=0, ephemeral=GiB))
    assert isinstance(granted, msg.Granted)
    assert not opened
    names.slow.set()
    waiting.join(LIMIT)
    assert house.kernel(opened[0]).user == "bob"


def test_only_shared_uids_are_asked_about(tmp_path: Path, names: PlayedNames) -> None:
    """Where a uid is a person, a token changes nothing: nobody has an account for each."""
    with House(tmp_path, persons=Persons(names, {ME.uid + 1})) as house:
        opened = house.open("a.ipynb", hub_token="t-ann")
        assert house.kernel(opened).person == ME
    assert names.asked == []


def test_a_hubs_name_that_is_an_account_here_is_another_user() -> None:
    """Who signs up at the hub as root does not share root's account, nor does jovyan that of jovyan's uid; no two names make one."""
    assert Person(65533, "root").user == Person(0, "root").user == "root (hub)"
    assert Person(0).user == "root"
    assert Person(65533, "nobody-of-that-name").user == "nobody-of-that-name"
    assert Person(4711).user == "4711"
    assert Person(4711, "4711").user == "4711 (hub)"
    assert Person(65533, "root (hub)").user == "root (hub) (hub)"


@pytest.mark.parametrize(
    ("who", "look", "names"),
    [
        (Person(4_000_002), "getpwuid", ("4000002", "root")),
        (Person(65533, "zoe-of-ldap"), "getpwnam", ("zoe-of-ldap", "zoe-of-ldap (hub)")),
    ],
)
def test_an_account_that_is_not_found_once_has_its_name_seconds_later(
    house: House, monkeypatch: pytest.MonkeyPatch, who: Person, look: str, names: tuple[str, str]
) -> None:
    """It is not another one for good, for a word that the directory did not have; it is asked when they come in."""
    (unknown, known), missing, root = names, [KeyError()], pwd.getpwuid(0)

    def found(_: object) -> pwd.struct_passwd:
        if missing:
            raise missing.pop()
        return root

    monkeypatch.setattr(pwd, look, found)
    meet = house.broker.groups.meet
    house.wait(meet(who))
    house.wait(meet(who))
    assert who.user == unknown
    now = time.monotonic()
    monkeypatch.setattr(persons, "monotonic", lambda: now + 2 * persons.BELIEVED)
    assert who.user == unknown, "nobody asks on the loop"
    house.wait(meet(who))
    assert who.user == known


def test_a_hubs_name_that_nobody_can_look_up_is_no_accounts(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is called like an account must not have it for a directory that hangs."""
    answers, getpwnam = threading.Event(), pwd.getpwnam
    monkeypatch.setattr(people, "LIMIT", 0.05)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: (answers.wait(LIMIT), getpwnam(name))[1])
    try:
        house.wait(house.broker.groups.meet(Person(65533, "yan-of-ldap")))
        assert Person(65533, "yan-of-ldap").user == "yan-of-ldap (hub)"
    finally:
        answers.set()


def test_of_names_the_latest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub whose users come and go fills no memory."""
    monkeypatch.setattr(persons, "_MOST", 2)
    names = persons._Names[int](lambda uid: (UserId(str(uid)), uid > 1))
    assert [names(uid) for uid in (1, 2, 3)] == ["1", "2", "3"]
    assert list(names._said) == [2, 3]
    assert not names._doubtful


def test_the_account_of_a_shared_uid_is_nobodys_at_the_hub(house: House) -> None:
    """Who shows no token, and the hub's user of the same name: device time, caps and views of their own."""
    name = ME.user
    group = Group("students", frozenset({name}), caps=Caps(kernels=1))
    house.do(lambda: house.broker.groups.follow(Settings(groups=(group,))))
    host, hub = house.notebook("host.ipynb"), of(house, f"t-{name}", "hub.ipynb")
    users = house.do(lambda: [*house.broker.scheduler.users])
    assert sorted(users) == [name, f"{name} (hub)"]
    with pytest.raises(UserError, match=r"may have 1 kernel open, and yours is host\.ipynb"):
        house.open("more.ipynb")
    of(house, f"t-{name}", "more.ipynb")
    assert seen_by(house, hub)["hub.ipynb"] == f"{name} (hub)"
    reply = hub.ask(msg.GetSnapshot())
    assert isinstance(reply, msg.SnapshotReply)
    assert [one.name for one in reply.snapshot.users if one.own] == [f"{name} (hub)"]
    text = hub.ask(msg.Proclaim("hi"))
    assert isinstance(text, msg.Failure)
    assert f"you are {name} (hub)" in text.message
    host.close()


def test_it_outlives_the_broker(tmp_path: Path, names: PlayedNames) -> None:
    """The broker after it knows whose the session is without a word from the hub."""
    with House(tmp_path, persons=Persons(names)) as house:
        opened = of(house, "t-ann", "a.ipynb").opened  # type: ignore[attr-defined]
    names.away = True
    with House(tmp_path, persons=Persons(names)) as house:
        for row in house.ledger.load().sessions:
            house.do(lambda row=row: house.broker.adopt(row))
        kernel = house.do(lambda: house.broker.registry.get(SessionId(opened.session)))
        assert kernel is not None
        assert (kernel.person, kernel.user) == (Person(ME.uid, "ann"), "ann")


def test_whose_account_had_the_name_of_an_account_here_has_its_own_now(
    tmp_path: Path, names: PlayedNames
) -> None:
    """A broker before this one wrote down both under one."""
    with House(tmp_path, persons=Persons(names)) as house:
        of(house, "t-root", "a.ipynb")
    with House(tmp_path, persons=Persons(names)) as house:
        (row,) = house.ledger.load().sessions
        house.do(lambda: house.broker.adopt(dataclasses.replace(row, user=UserId("root"))))
        (kernel,) = house.do(lambda: [*house.broker.registry])
        assert kernel.user == kernel.person.user == "root (hub)"


def test_whom_the_administrators_file_names_administers_by_the_hubs_word(house: House) -> None:
    """Ann, as the hub knows her; not bob beside her under the same uid. What she does is written down under her name."""
    house.do(lambda: house.broker.groups.follow(Settings(admins=frozenset({"ann"}))))
    bob = of(house, "t-bob", "b.ipynb")
    ann = house.call(msg.Observe("t-ann"))
    assert isinstance(ann.ask(msg.Proclaim("hi")), msg.Proclaimed)
    assert isinstance(bob.ask(msg.Proclaim("me, too")), msg.Failure)
    (entry,) = house.broker.audit.read(10)
    assert (entry.who, entry.what, entry.detail) == ("ann", "announce", "hi")


def test_a_uid_that_many_share_does_not_administer_for_being_the_brokers(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gives no token would act for all of them. Root does; and where a uid is one person, the broker's owner does."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert not house.broker.administers(Person(4711))
    assert house.broker.administers(Person(0))
    house.broker.persons = Persons()
    assert house.broker.administers(Person(4711))
    assert not house.broker.administers(Person(4712))


def test_a_file_that_names_the_account_of_a_shared_uid_makes_nobody_an_administrator(
    tmp_path: Path, names: PlayedNames
) -> None:
    """Whoever shows no token would be one. The hub's user of that name is, where the file names that."""
    with House(tmp_path, persons=Persons(names, {4711})) as house:
        broker = house.broker
        settings = Settings(admins=frozenset({"4711", "4712"}))
        house.do(lambda: broker.groups.follow(settings))
        assert house.do(lambda: broker.administers(Person(4712))), "that is one person's"
        assert not house.do(lambda: broker.administers(Person(4711)))
        assert not house.do(lambda: broker.administers(Person(4711, "4711")))
        named = Settings(admins=frozenset({"4711 (hub)"}))
        house.do(lambda: broker.groups.follow(named))
        assert house.do(lambda: broker.administers(Person(4711, "4711")))


@pytest.mark.parametrize("request_", [msg.Evict, msg.Release, msg.UnparkNotebook])
def test_an_administrator_who_names_two_users_at_once_is_told_which(
    house: House, request_: type
) -> None:
    """An account of this host and a user of the hub: each has a name of its own that means nobody else."""
    name, uid = ME.user, ME.uid
    of(house, f"t-{name}", "hub.ipynb")
    settings = Settings(admins=frozenset({"ann"}))
    house.do(lambda: house.broker.groups.follow(settings))
    admin = house.call(msg.Observe("t-ann"))
    if request_ is msg.Evict:  # the one who is there is not meant by the name of another
        alone = admin.ask(request_(name))
        assert isinstance(alone, msg.Failure)
        assert f"There are notebooks of: {name} (hub)" in alone.message
    house.notebook("host.ipynb")
    reply = admin.ask(request_(name))
    assert isinstance(reply, msg.Failure)
    assert reply.message == f"{name!r} is the account of uid {uid} here, and a user of the hub; both have notebooks open. Write {uid}, or '{name} (hub)'."  # fmt: skip
    for whom, session in ((f"{name} (hub)", "hub.ipynb"), (str(uid), "host.ipynb")):
        assert not isinstance(admin.ask(request_(whom)), msg.Failure)
        assert [k.name for k in house.do(partial(of_user, house.broker, whom))] == [session]


@pytest.fixture
def admin(house: House) -> Caller:
    """Zoe, who administers, and has no notebook."""
    settings = Settings(admins=frozenset({"zoe"}))
    house.do(lambda: house.broker.groups.follow(settings))
    return house.call(msg.Observe("t-zoe"))


REQUESTS = (msg.Evict, msg.Release, msg.PauseNotebook, msg.ResumeNotebook, msg.ParkNotebook, msg.UnparkNotebook)  # fmt: skip


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_name_that_several_have_is_nobodys(house: House, admin: Caller, request_: type) -> None:
    """It is refused with those there are, each as it can be written."""
    of(house, "t-ann", "hw1.ipynb")
    of(house, "t-bob", "hw1.ipynb")
    reply = admin.ask(request_("hw1"))
    assert isinstance(reply, msg.Failure)
    assert reply.code == "BadDeclaration"
    assert reply.message == "several people have a notebook 'hw1'. Say whose: ann:hw1.ipynb, bob:hw1.ipynb."  # fmt: skip


def test_whose_notebook_is_meant_can_be_said(house: House, admin: Caller) -> None:
    """With or without its ending, also for one's own; another person's is no one's business."""
    ann, bob = of(house, "t-ann", "hw1.ipynb"), of(house, "t-bob", "hw1.ipynb")
    of(house, "t-bob", "hw2.ipynb")
    for whom in ("bob:hw1", "bob:hw1.ipynb"):
        assert found(house, admin, whom) == ["bob:hw1.ipynb"]
        assert isinstance(bob.ask(msg.ResumeNotebook(whom)), msg.ResumedNow)
        reply = ann.ask(msg.ResumeNotebook(whom))
        assert isinstance(reply, msg.Failure)
        assert reply.code == "NotYours"
    assert found(house, admin, "bob") == ["bob:hw1.ipynb", "bob:hw2.ipynb"]
    reply = admin.ask(msg.Evict("bob:hw3"))
    assert isinstance(reply, msg.Failure)
    assert reply.message.startswith("there is no notebook or user 'bob:hw3'.")


def test_a_user_comes_before_a_notebook_of_that_name_and_ones_own_before_others(
    house: House, admin: Caller
) -> None:
    """Whatever is asked for."""
    of(house, "t-ann", "bob.ipynb")
    of(house, "t-bob", "hw1.ipynb")
    assert found(house, admin, "bob") == ["bob:hw1.ipynb"]
    assert found(house, admin, "bob.ipynb") == ["ann:bob.ipynb"]
    of(house, "t-zoe", "hw1.ipynb")
    assert found(house, admin, "hw1") == ["zoe:hw1.ipynb"]


def found(house: House, admin: Caller, whom: str) -> list[str]:
    """Whose notebooks an administrator means, by evict and by all others."""
    (desk,) = [one for one in house.do(lambda: [*house.broker.observers]) if one.who.hub == "zoe"]
    by_park = house.do(lambda: controls.own(house.broker, desk, whom))
    assert by_park == house.do(lambda: administration.named(house.broker, desk.who, whom))
    assert not isinstance(admin.ask(msg.ResumeNotebook(whom)), msg.Failure)
    return sorted(f"{one.user}:{one.name}" for one in by_park)
