"""I9: what whom sees. The broker filters; the schema is the documented one."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from gpushare_kernel.broker.aliases import Aliases, initials
from gpushare_kernel.broker.persons import Person
from gpushare_kernel.core.reasons import why
from gpushare_kernel.core.values import GiB, Usage, UserId
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.snapshot import Snapshot
from tests.broker.house import House
from tests.broker.test_desk import end, submit

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
NOBODY = 65534

# The keys that were promised first, and those that came later. Keys are added, never renamed or retyped.
KEYS = {
    "": {"schema", "broker", "devices", "sessions", "queue", "users"}
    | {"at", "rt", "bundles", "arenas", "you", "maintenance", "announcement"},
    "broker": {"pid", "version", "uptime"} | {"system", "longest_wait_today", "trouble", "hub"},
    "devices": {"id", "kind", "name", "capacity", "reserve", "persistent", "lanes"}
    | {
        "policy",
        "compute",
        "free",
        "total",
        "desktop",
        "foreign",
        "limits",
        "lost",
        "turns",
        "can",
        "context",
    },
    "turns": {"session", "began", "ended", "kind"},
    "lanes": {"id", "size", "occupant", "members"} | {"used"},
    "sessions": {"id", "user", "name", "pid", "state", "mode", "p", "device_time"}
    | {
        "device",
        "own",
        "jobs",
        "demand",
        "turns",
        "doing",
        "why_paused",
        "spare",
        "parked",
        "why_not_parked",
        "holds",
        "granted",
    },
    "queue": {"job", "session", "reason", "ahead", "eta"}
    | {
        "needs",
        "waited",
        "name",
        "free",
        "holders",
        "until",
        "exact",
        "cap",
        "group",
        "note",
        "over_budget",
    },
    "users": {"name", "weight", "device_time"}
    | {"group", "memory", "kernels", "budgets", "own", "parked"},
}


def busy(house: House) -> Snapshot:
    """One notebook runs, one waits; return the owner's view."""
    first, second = house.notebook("thesis.ipynb"), house.notebook("other.ipynb")
    first.ask(submit("a", persistent=3 * GiB, ephemeral=2 * GiB))
    second.send(submit("b", persistent=4 * GiB))
    house.saw(lambda: len(house.broker.scheduler.book.queue) == 1)
    reply = house.call(msg.Observe()).ask(msg.GetSnapshot())
    assert isinstance(reply, msg.SnapshotReply)
    return reply.snapshot


def test_the_documented_keys_are_there_and_no_others(house: House) -> None:
    """Golden: whoever adds a key adds it here and in the document."""
    tree = msgspec.to_builtins(busy(house))
    assert set(tree) == KEYS[""]
    assert set(tree["broker"]) == KEYS["broker"]
    for name in ("lanes", "turns"):
        assert set(tree["devices"][0][name][0]) == KEYS[name]
    for name in ("devices", "sessions", "queue", "users"):
        assert tree[name]
        assert all(set(one) == KEYS[name] for one in tree[name])
    assert tree["schema"] == 1


def test_a_lane_is_as_full_as_its_occupant_holds_beyond_what_it_keeps(house: House) -> None:
    """As last seen by whoever looks once a second, and only for those who may see sizes."""
    house.device.used = Usage(0.0, 0.0)
    client = house.notebook()
    client.ask(submit("a", persistent=3 * GiB, ephemeral=2 * GiB))
    kernel = house.kernel(client.opened)  # type: ignore[attr-defined]
    engine = house.broker.engine

    def used(uid: int) -> int | None:
        """Return how full it is said to be to `uid`."""
        (lane,) = house.do(lambda: house.broker.snapshot(Person(uid))).devices[0].lanes
        return lane.used

    assert used(os.getuid()) is None
    for held, fill in ((4 * GiB, GiB), (GiB, 0), (7 * GiB, 2 * GiB)):
        house.device.used = Usage(0.0, 0.0, held)
        house.do(lambda: engine.usage(kernel, memory=True))
        assert (used(os.getuid()), used(NOBODY)) == (fill, None)
    house.do(lambda: house.broker.emptied(kernel))
    assert kernel.held is None


@pytest.mark.parametrize(("divisible", "spare"), [(True, (2 * GiB, 0)), (False, (3 * GiB, GiB))])
def test_what_a_release_would_give_back(
    tmp_path: Path, divisible: bool, spare: tuple[int, int]
) -> None:
    """Of a host's session what it does not use; a GPU's client may have all of it in its pools."""
    with House(tmp_path, divisible=divisible) as house:
        house.device.used = Usage(0.0, 0.0)
        client = house.notebook()
        client.ask(submit("a", persistent=3 * GiB))
        client.ask(end("a", held=GiB))
        (before,) = house.do(lambda: house.broker.snapshot(Person(os.getuid()))).sessions
        house.device.used = Usage(0.0, 0.0, GiB)
        client.ask(msg.Release())
        (after,) = house.do(lambda: house.broker.snapshot(Person(os.getuid()))).sessions
        (other,) = house.do(lambda: house.broker.snapshot(Person(NOBODY))).sessions
    assert (before.p, after.p) == (3 * GiB, GiB)
    assert (before.spare, after.spare) == spare
    assert other.spare is None


def test_an_owner_sees_everything_of_his_own(house: House) -> None:
    """Names, pids, sizes, who occupies what, who waits and why."""
    seen = busy(house)
    first, second = seen.sessions
    assert (first.name, first.pid, first.p, first.own) == (
        "thesis.ipynb",
        os.getpid(),
        3 * GiB,
        True,
    )
    assert (first.state, first.mode, second.mode) == ("busy", "alone", None)
    (device,) = seen.devices
    assert (device.id, device.kind, device.capacity, device.persistent) == (
        "played0",
        "model",
        8 * GiB,
        3 * GiB,
    )
    (lane,) = device.lanes
    assert (lane.size, lane.occupant) == (2 * GiB, f"{first.id}/a")
    (waiting,) = seen.queue
    assert (waiting.session, waiting.reason, waiting.ahead, waiting.eta) == (
        second.id,
        "memory",
        0,
        None,
    )
    assert waiting.needs == 4 * GiB


@as_root
def test_to_others_a_person_is_initials(house: House, tmp_path: Path) -> None:
    """No notebook name, no pid, no size of a session or cell reaches another user's process, whatever it asks."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    mine = busy(house)
    _, reply = house.as_user(NOBODY, msg.Observe(), msg.GetSnapshot())
    seen: Snapshot = reply.snapshot
    for session in seen.sessions:
        assert (session.name, session.pid, session.p, session.own) == (None, None, None, False)
        assert session.user == initials(UserId(mine.users[0].name))
    assert seen.queue[0].needs == 0
    assert {user.name for user in seen.users} == {initials(UserId(mine.users[0].name))}
    turns = [turn for device in seen.devices for turn in device.turns]
    assert {turn.session for turn in turns} == {seen.sessions[0].id}
    text = msgspec.json.encode(seen).decode()
    assert [lane.size for device in seen.devices for lane in device.lanes] == [0]
    for secret in (
        "thesis",
        "other.ipynb",
        f'"{mine.users[0].name}"',
        f":{4 * GiB}",
        f":{2 * GiB}",
    ):
        assert secret not in text


def test_a_brief_one_is_of_ones_own(house: House) -> None:
    """Devices, sessions and what these wait for are as in the whole; lanes, turns and other people are not in it."""
    whole = busy(house)
    brief = house.call(msg.Observe()).ask(msg.GetSnapshot(brief=True)).snapshot
    assert [one.id for one in brief.sessions] == [one.id for one in whole.sessions]
    assert [(one.job, one.needs, one.ahead) for one in brief.queue] == [
        (one.job, one.needs, one.ahead) for one in whole.queue
    ]
    (device,) = brief.devices
    assert (device.free, device.capacity, device.lanes, device.turns) == (3 * GiB, 8 * GiB, (), ())
    assert (brief.users, brief.broker) == ((), None)
    (runs, waits) = (
        next(s for s in brief.sessions if s.name == name)
        for name in ("thesis.ipynb", "other.ipynb")
    )
    assert (runs.granted, waits.granted) == (5 * GiB, None)


def test_nobody_is_sampled_for_a_brief_one(house: House) -> None:
    """Every page's status bar asks for it: the scheduler does not notice."""
    busy(house)
    line, seen = house.call(msg.Observe()), []
    engine = house.broker.engine
    house.do(lambda: setattr(engine, "sample", lambda *of: seen.append(of)))
    for _ in range(3):
        line.ask(msg.GetSnapshot(brief=True))
    assert not seen
    house.broker._sampled = -1.0
    line.ask(msg.GetSnapshot())
    assert seen


@as_root
def test_a_brief_one_has_nothing_of_others(house: House, tmp_path: Path) -> None:
    """Not even that they are there."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    busy(house)
    _, reply = house.as_user(NOBODY, msg.Observe(), msg.GetSnapshot(brief=True))
    assert (reply.snapshot.sessions, reply.snapshot.queue) == ((), ())


@as_root
def test_a_waiters_line_names_others_by_initials_only(house: House, tmp_path: Path) -> None:
    """Who holds the memory is said as far as the waiter may know it."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    busy(house)
    broker = house.broker
    (job,) = list(broker.scheduler.book.queue)
    own = house.do(lambda: broker.named(why(broker.scheduler, job), Person(os.getuid())))
    theirs = house.do(lambda: broker.named(why(broker.scheduler, job), Person(NOBODY)))
    assert [holder.name for holder in own.holders] == ["thesis.ipynb"]
    assert [(holder.name, holder.own) for holder in theirs.holders] == [("r", False)]


@pytest.mark.parametrize(
    ("user", "seen"),
    [
        ("ann", "a"),
        ("ann.lee", "al"),
        ("ann-marie_lee.x", "aml"),
        ("1000", "1"),
        ("..", "?"),
        ("", "?"),
    ],
)
def test_initials(user: str, seen: str) -> None:
    """Three letters at most."""
    assert initials(UserId(user)) == seen


def test_who_has_the_same_initials_has_a_number() -> None:
    """Nobody is taken for somebody else, and everybody is called the same every time."""
    aliases = Aliases()
    people = [UserId(name) for name in ("ann.lee", "al.long", "bob", "a.l", "al2", "al.2")]
    told = [aliases.of(one) for one in people]
    assert told == ["al", "al2", "b", "al3", "a", "a2"]
    assert [aliases.of(one) for one in reversed(people)] == told[::-1]
