"""Groups at work in a broker: caps at the door, what the schedulers are told, budgets over restarts, another file."""

from __future__ import annotations

import asyncio
import os
import pwd
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from gpushare_kernel.broker import daemon
from gpushare_kernel.broker import groups as groups_module
from gpushare_kernel.broker import people as people_module
from gpushare_kernel.broker import persons as persons_module
from gpushare_kernel.broker.daemon import _reload
from gpushare_kernel.broker.ledger import Ledger
from gpushare_kernel.broker.people import People
from gpushare_kernel.broker.persons import Person, user_name
from gpushare_kernel.broker.settings import Caps, Group, Host, Settings, parsed
from gpushare_kernel.broker.spending import KEPT, Spending
from gpushare_kernel.core.errors import BadSettings, UserError
from gpushare_kernel.core.values import DeviceId, GiB, UserId, WaitReason
from gpushare_kernel.devices.base import Inventory
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.realtime import RealtimeLayer, RealtimeTask
from tests.broker.house import LIMIT, House
from tests.broker.test_desk import as_root, refused, submit
from tests.procs import Program

ME = user_name(os.geteuid())
NOBODY = 65534


def follow(house: House, **more: Any) -> None:
    """I am in a group of this sort from now on."""
    fields = {name: more.pop(name) for name in [*more] if name in Group.__dataclass_fields__}
    group = Group("students", frozenset({ME}), caps=Caps(**more), **fields)
    settings = Settings(groups=(group,))
    house.do(lambda: house.broker.groups.follow(settings))


def snapshot(house: House) -> Any:
    reply = house.call(msg.Observe()).ask(msg.GetSnapshot())
    assert isinstance(reply, msg.SnapshotReply)
    return reply.snapshot


def account(house: House) -> Any:
    (mine,) = [user for user in snapshot(house).users if user.own]
    return mine


def test_a_file_is_held_to_the_device_not_to_what_is_free_of_it(tmp_path: Path) -> None:
    """A broker that is started again finds it full of its own sessions: the file is as right as before."""
    full = Inventory(DeviceId("gpu0"), "model", "a GPU", 2 * GiB, 1.0, 0, total=8 * GiB)
    text = 'names = "any"\n[groups.g]\nusers = ["ann"]\nmemory = "{}"\n'
    host = groups_module.host_of([full], People())
    (group,) = parsed(text.format("6GiB"), tmp_path, host).groups
    assert group.caps.memory == 6 * GiB
    with pytest.raises(BadSettings, match=r"8\.0 GiB"):
        parsed(text.format("9GiB"), tmp_path, host)


def test_a_file_is_held_to_the_capacity_that_the_administrator_gave(
    house: House, tmp_path: Path
) -> None:
    """Nobody can have more of the device, however large it is: at the start, and at a reload."""
    path = tmp_path / "gpushare.toml"
    path.write_text('[groups.everybody]\nmemory = "2GiB"\n')
    path.chmod(0o644)
    words = ["--capacity", "1GiB", "--config", str(path)]
    given, where = daemon.parser().parse_args(words), Places(tmp_path, system=False)
    rule = "it is 2.0 GiB, and the largest device here has 1.0 GiB to share"
    with pytest.raises(BadSettings, match=rule):
        daemon._settings(given, where, [house.device])
    path.write_text("")
    known = house.ledger.load()
    broker = house.do(lambda: daemon._broker(given, where, [house.device], known, house.ledger))
    path.write_text('[groups.everybody]\nmemory = "2GiB"\n')
    with pytest.raises(BadSettings, match=rule):
        house.wait(broker.groups.reload())
    house.wait(broker.finish())


# --- caps ------------------------------------------------------------------------------------------------------


def test_one_kernel_more_than_allowed_is_refused_with_those_there_are(house: House) -> None:
    """The rule, what is open, the next step; when one is shut down another opens."""
    follow(house, kernels=2)
    first, _ = house.open("hw1.ipynb"), house.open("hw2.ipynb")
    with pytest.raises(UserError) as problem:
        house.open("hw3.ipynb")
    assert str(problem.value) == "each of the group students may have 2 kernels open, and yours are hw1.ipynb, hw2.ipynb. Shut one down first."  # fmt: skip
    house.call(msg.Close(first.session, first.token)).close()
    house.open("hw3.ipynb")


@as_root
def test_a_kernel_that_root_starts_for_somebody_is_one_of_theirs(house: House) -> None:
    """Beyond the cap it is refused where it is known whose it is; no process is ended for it (I8)."""
    group = Group("students", frozenset({user_name(NOBODY)}), caps=Caps(kernels=1))
    house.do(lambda: house.broker.groups.follow(Settings(groups=(group,))))
    runs = f"os.setuid({NOBODY}); say('up'); wait()"
    first, second = house.open("hw1.ipynb"), house.open("hw2.ipynb")
    with Program(runs) as one, Program(runs) as two:
        for program, opened in ((one, first), (two, second)):
            assert program.said() == ["up"]
            with pytest.raises(UserError, match=r"yours is hw1\.ipynb") if opened is second else nullcontext():  # fmt: skip
                house.bind(opened, program.pid)
        assert house.kernel(first).uid == NOBODY
        assert (house.kernel(second).uid, house.kernel(second).key) == (0, None)
        assert two.process.poll() is None
        house.call(msg.Close(first.session, first.token)).close()
        house.bind(second, two.pid)
        assert house.kernel(second).uid == NOBODY


def test_a_group_that_somebody_comes_to_by_a_reload_ends_no_kernel_and_lets_no_more_in(
    house: House,
) -> None:
    """Those that are open stay, and may be restarted; the next one starts once there are fewer."""
    opened = [house.open(f"hw{n}.ipynb") for n in range(3)]
    follow(house, kernels=2)
    assert len(house.broker.registry) == 3
    again = house.call(msg.Restart(opened[2].session, opened[2].token)).body
    assert isinstance(again, msg.Opened)
    opened[2] = again
    for one in opened[:2]:
        with pytest.raises(UserError, match="may have 2 kernels open"):
            house.open("hw4.ipynb")
        house.call(msg.Close(one.session, one.token)).close()
    house.open("hw4.ipynb")


def test_a_cap_on_memory_holds_from_the_first_cell_on(house: House) -> None:
    """What the cell reads has the cap, what is left of it and the own notebook that holds the rest."""
    follow(house, memory=4 * GiB)
    first, second = house.notebook("a.ipynb"), house.notebook("b.ipynb")
    first.ask(submit("a", persistent=3 * GiB))
    number = second.send(submit("b", persistent=2 * GiB))
    house.saw(lambda: len(house.broker.scheduler.held_back) == 1)
    (waits,) = snapshot(house).queue
    assert (waits.reason, waits.cap, waits.free, waits.group) == (
        WaitReason.CAP, 4 * GiB, GiB, "students")  # fmt: skip
    assert [(one.name, one.own) for one in waits.holders] == [("a.ipynb", True)]
    third = house.notebook("c.ipynb")
    answer = third.ask(submit("x", dry_run=True, ephemeral=2 * GiB))
    assert isinstance(answer, msg.DryRun)
    assert not answer.fits
    follow(house, memory=8 * GiB)
    assert isinstance(second.reply(number), msg.Granted)


def test_what_can_never_be_is_refused(house: House) -> None:
    follow(house, memory=4 * GiB)
    text = refused(house.notebook().ask(submit("a", persistent=5 * GiB)), "Refused")
    assert "each of the group students may hold 4.0 GiB of this device in all" in text


def test_a_deadline_takes_no_more_of_the_device_than_allowed(house: House) -> None:
    """Its longest work in each period; and none at all once a budget is used up."""
    follow(house, realtime=0.25)
    client = house.notebook()
    layer = RealtimeLayer({"c1": 0.03})
    task = RealtimeTask("camera", 0.1, 0.1, (layer,))
    text = refused(client.ask(submit("a", realtime=task)), "UserError")
    assert text == "deadlines of each of the group students may take 25% of the device; yours take 0%, and this one 30% more. Lengthen its period, or close another one."  # fmt: skip
    follow(house, realtime=0.5)
    house.broker.prove, house.broker.proves = lambda *_: None, lambda _: True  # type: ignore[method-assign]
    client.send(submit("pending", realtime=task))
    text = refused(client.ask(submit("c", realtime=task)), "UserError")
    assert "yours take 30%, and this one 30% more" in text, "one that is being proven counts"
    follow(house, day=10.0)
    house.do(lambda: house.broker.groups.spending.note([(ME, 1.0, 11.0)]))
    text = refused(client.ask(submit("b", realtime=task)), "UserError")
    assert text.startswith("your budget of 0.00278 device hours a day is used up")


def test_caps_and_weights_follow_the_clock(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look by the clock tells what has changed."""
    text = f'names = "any"\n[groups.g]\nusers = ["{ME}"]\nmemory = "2GiB"\n[[groups.g.timetable]]\nhours = "18:00-08:00"\nmemory = "6GiB"\nweight = 3\n'
    host = Host(house.broker.groups._people, 8 * GiB, 10, 1.0, 64 * GiB)
    now = time.struct_time((2026, 11, 27, 12, 0, 0, 4, 331, 0))
    monkeypatch.setattr(groups_module.time, "localtime", lambda *_: now)
    house.do(lambda: house.broker.groups.follow(parsed(text, Path("x.toml"), host)))
    house.notebook()
    user = house.broker.scheduler.users[ME]
    assert (user.weight, user.cap, user.cap_ever) == (1.0, 2 * GiB, 6 * GiB)
    now = time.struct_time((2026, 11, 27, 18, 0, 0, 4, 331, 0))
    house.do(house.broker.groups.look)
    assert (user.weight, user.cap) == (3.0, 6 * GiB)
    house.do(lambda: house.broker.groups.follow(Settings()))
    assert (user.weight, user.cap, user.group) == (1.0, None, "")


def test_an_arena_is_no_larger_than_the_group_allows(house: House) -> None:
    """Memory of the host that tensors are set aside in."""
    follow(house, parked=2**30)
    opened = house.open()
    house.bind(opened)
    with pytest.raises(UserError, match=r"may set aside 1\.0 GiB of the host's memory"):
        house.call(msg.LeaseArena(opened.token, 2 * GiB))


def test_what_is_parked_on_another_device_counts_too(house: House) -> None:
    """The host's memory is one."""
    follow(house, parked=4 * GiB)
    house.notebook()
    core = house.broker.scheduler
    assert core.users[ME].parked_cap == 4 * GiB


# --- budgets -----------------------------------------------------------------------------------------------------


def test_a_budget_is_shown_and_who_has_used_it_up_yields(house: House) -> None:
    """To oneself and administrators only."""
    follow(house, day=100.0, week=1000.0)
    house.notebook()
    house.do(lambda: house.broker.groups.spending.note([(ME, 1.0, 40.0)]))
    day, week = account(house).budgets
    assert (day.period, day.limit, day.used) == ("day", 100.0, 40.0)
    assert (week.period, week.limit, week.used) == ("week", 1000.0, 40.0)
    assert 0 < day.renews <= 25 * 3600
    assert not house.broker.scheduler.users[ME].over_budget
    house.do(lambda: house.broker.groups.spending.note([(ME, 1.0, 140.0)]))
    house.do(lambda: house.broker.groups.tell(ME))
    assert house.broker.scheduler.users[ME].over_budget


def ledger_of(folder: Path) -> Ledger:
    return Ledger(folder / "ledger.sqlite")


def test_what_was_used_outlives_a_broker(tmp_path: Path) -> None:
    """Seconds before it count once."""
    ledger = ledger_of(tmp_path)
    today = date.today().toordinal()  # noqa: DTZ011  budgets follow the clock on the wall
    spending, user = Spending(ledger), UserId("ann")
    spending.note([(user, 1.0, 30.0)])
    ledger.close()

    ledger = ledger_of(tmp_path)
    spending = Spending(ledger)
    known = ledger.load()
    assert (user, today, 30.0) in known.spent
    spending.begin(known.spent, [(user, 1.0, 30.0)])
    spending.note([(user, 1.0, 35.0)])
    (day,) = spending.budgets(user, 60.0, None)
    assert day.used == 35.0
    ledger.close()

    ledger = ledger_of(tmp_path)
    assert ledger.load().spent == ((user, today, 35.0),)
    ledger.close()


def test_of_the_days_the_newest_are_remembered(tmp_path: Path) -> None:
    """In the ledger, too: it does not grow for ever."""
    ledger, today = ledger_of(tmp_path), date.today().toordinal()  # noqa: DTZ011
    spending, user = Spending(ledger), UserId("ann")
    spending.begin([(user, today - n, 9.0) for n in range(1, KEPT + 1)], ())
    for n in range(1, KEPT + 1):
        ledger.spent(user, today - n, 9.0)
    spending.note([(user, 1.0, 30.0)])
    ledger.close()
    ledger = ledger_of(tmp_path)
    assert sorted(day for _, day, _ in ledger.load().spent) == [*range(today - KEPT + 1, today + 1)]
    ledger.close()


@pytest.mark.parametrize("days", [-400, 20])
def test_a_clock_that_is_wrong_for_a_moment_costs_nothing(
    days: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was used today counts again once it is right, also for a broker that starts meanwhile."""
    from gpushare_kernel.broker import spending as module

    ledger, today = ledger_of(tmp_path), date.today()  # noqa: DTZ011
    spending, user = Spending(ledger), UserId("ann")
    spending.note([(user, 1.0, 3600.0)])
    for again in (False, True):
        monkeypatch.setattr(module, "_today", lambda: date.fromordinal(today.toordinal() + days))
        if again:
            assert ledger.flush()
            spending = Spending(ledger)
            spending.begin(ledger.load().spent, [(user, 1.0, 3601.0)])
        spending.note([(user, 1.0, 3601.0)])
        monkeypatch.setattr(module, "_today", lambda: today)
        spending.note([(user, 1.0, 3602.0)])
    (day,) = spending.budgets(user, 7200.0, None)
    assert day.used == pytest.approx(3601.0, abs=1.0)
    ledger.close()


def test_a_day_and_a_week_begin_at_midnight(monkeypatch: pytest.MonkeyPatch, house: House) -> None:
    """What was used on Sunday is of no week that begins on Monday."""
    from gpushare_kernel.broker import spending as module

    spending, user = Spending(house.ledger), UserId("ann")
    for day, used in ((date(2026, 11, 22), 7.0), (date(2026, 11, 23), 9.0), (date(2026, 11, 24), 12.0)):  # fmt: skip
        monkeypatch.setattr(module, "_today", lambda day=day: day)
        spending.note([(user, 1.0, used)])
    day, week = spending.budgets(user, 100.0, 100.0)
    assert (day.used, week.used) == (3.0, 5.0)


# --- another file ---------------------------------------------------------------------------------------------------


@pytest.fixture
def written(house: House, tmp_path: Path) -> Callable[[str], None]:
    """Write the file of a broker that follows it."""
    path = tmp_path / "gpushare.toml"

    def write(text: str) -> None:
        path.write_text(text)
        path.chmod(0o644)

    write("")
    house.do(lambda: house.broker.groups.follow(Settings(path=path)))
    return write


def test_a_file_that_is_read_again_holds_at_once(
    house: House, written: Callable[[str], None]
) -> None:
    """And each reload is written down."""
    house.notebook()
    written(f'names = "any"\n[groups.g]\nusers = ["{ME}"]\nweight = 3\nmemory = "2GiB"\n')
    answer = house.call(msg.Observe()).ask(msg.ReloadSettings())
    assert isinstance(answer, msg.SettingsRead)
    assert answer.groups == 1
    user = house.broker.scheduler.users[ME]
    assert (user.weight, user.cap, account(house).group) == (3.0, 2 * GiB, "g")


def test_a_file_that_is_wrong_leaves_what_holds(
    house: House, written: Callable[[str], None]
) -> None:
    """Whoever asked reads why, with the line; so does every status of an administrator until it is mended."""
    written(f'names = "any"\n[groups.g]\nusers = ["{ME}"]\nkernels = 2\n')
    observer = house.call(msg.Observe())
    observer.ask(msg.ReloadSettings())
    written("[groups.g]\nkernel = 3\n")
    text = refused(observer.ask(msg.ReloadSettings()), "BadSettings")
    assert text.endswith("line 2: [groups.g] has no key 'kernel'. Did you mean 'kernels'? What was read before still holds.")  # fmt: skip
    assert house.broker.groups.caps(ME).kernels == 2
    assert snapshot(house).broker.trouble == text
    written("")
    observer.ask(msg.ReloadSettings())
    assert snapshot(house).broker.trouble is None


def test_a_file_that_is_written_after_the_start_is_found(house: House, tmp_path: Path) -> None:
    """Where the system broker has a place for one: by the next reload, and not before it is there."""
    path = tmp_path / "gpushare.toml"
    house.broker.groups.place = path
    admin = house.call(msg.Observe())
    text = refused(admin.ask(msg.ReloadSettings()), "BadSettings")
    assert text.startswith("this broker has no configuration.")
    path.write_text(f'names = "any"\n[groups.g]\nusers = ["{ME}"]\nkernels = 2\n')
    path.chmod(0o644)
    assert admin.ask(msg.ReloadSettings()) == msg.SettingsRead(str(path), 1)
    assert house.broker.groups.caps(ME).kernels == 2
    path.unlink()
    text = refused(admin.ask(msg.ReloadSettings()), "BadSettings")
    assert "cannot be read: No such file" in text


def test_a_signal_to_a_broker_without_a_file_is_in_its_log(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.do(lambda: _reload(house.broker.groups))
    house.saw(lambda: not house.broker.groups._works)
    assert "there is nothing to read again: this broker has no configuration." in caplog.text


def test_a_broker_without_a_file_says_so(house: House) -> None:
    text = refused(house.call(msg.Observe()).ask(msg.ReloadSettings()), "BadSettings")
    assert text.startswith("this broker has no configuration. Start it with one: jupyter gpushare start --config FILE; ")  # fmt: skip
    with pytest.raises(BadSettings):
        house.wait(house.broker.groups.reload())


class Slow(People):
    """A directory that answers when the test says so."""

    def __init__(self) -> None:
        self.answers, self.asked = threading.Event(), list[str]()

    def groups_of(self, user: str) -> frozenset[str]:
        self.asked.append(user)
        self.answers.wait(LIMIT)
        return frozenset({"root"})


@pytest.fixture
def slow(house: House) -> Iterator[Slow]:
    """The one that the broker asks."""
    house.broker.groups._people = made = Slow()
    yield made
    made.answers.set()


BY_UNIX_GROUP = 'admin_groups = ["root"]\n[groups.g]\nunix_groups = ["root"]\nweight = 3\n'


def test_a_reload_that_waits_for_names_holds_up_nobody(
    house: House, written: Callable[[str], None], slow: Slow
) -> None:
    """Somebody's cell is let in meanwhile; what is asked of people who are here is not asked again on the loop."""
    written(BY_UNIX_GROUP)
    kernel = house.notebook()
    admin = house.call(msg.Observe())
    number = admin.send(msg.ReloadSettings())
    house.saw(lambda: slow.asked)
    assert isinstance(kernel.ask(submit("a", persistent=GiB)), msg.Granted)
    assert number not in admin.replies
    slow.answers.set()
    assert isinstance(admin.reply(number), msg.SettingsRead)
    assert house.broker.scheduler.users[ME].weight == 3.0
    assert slow.asked == [ME]


def test_a_reload_whose_names_nobody_tells_is_given_up(
    house: House,
    written: Callable[[str], None],
    slow: Slow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was read before holds, and it says so; one look-up hangs at most, and once it is back a reload is one again."""
    house.notebook()
    written(BY_UNIX_GROUP)
    monkeypatch.setattr(people_module, "LIMIT", 0.05)
    admin = house.call(msg.Observe())
    for _ in range(2):
        text = refused(admin.ask(msg.ReloadSettings()), "BadSettings")
        assert "directory of users and groups did not answer within" in text
        assert text.endswith("What was read before still holds.")
    assert slow.asked == [ME]
    assert snapshot(house).broker.trouble == text
    assert house.broker.groups.settings.groups == ()
    slow.answers.set()
    house.saw(lambda: not house.broker.groups._lookups._hangs)
    assert isinstance(admin.ask(msg.ReloadSettings()), msg.SettingsRead)
    assert snapshot(house).broker.trouble is None


def opening(house: House, name: str, **more: Any) -> tuple[threading.Thread, list[msg.Opened]]:
    """Somebody opens a notebook, and may have to wait for that."""
    opened: list[msg.Opened] = []
    thread = threading.Thread(target=lambda: opened.append(house.open(name, **more)))
    thread.start()
    return thread, opened


def by_unix_group(house: House, **caps: Any) -> None:
    group = Group("g", unix_groups=frozenset({"root"}), caps=Caps(**caps))
    house.do(lambda: house.broker.groups.follow(Settings(groups=(group,))))


def test_a_slow_directory_holds_up_only_who_comes_in(house: House, slow: Slow) -> None:
    """Turns and cells of others go on; the cap of whoever waited is known before the door opens."""
    kernel = house.notebook("a.ipynb")
    by_unix_group(house, kernels=2)
    thread, opened = opening(house, "b.ipynb")
    house.saw(lambda: slow.asked)
    assert isinstance(kernel.ask(submit("a", persistent=GiB)), msg.Granted)
    assert not opened
    slow.answers.set()
    thread.join(LIMIT)
    assert opened
    with pytest.raises(UserError, match="may have 2 kernels open"):
        house.open("c.ipynb")
    assert slow.asked == [ME]


def test_a_directory_that_hangs_keeps_nobody_out(
    house: House, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in no unix group meanwhile, and an administrator reads why; once it answers they are, by the clock."""
    by_unix_group(house, weight=3.0)
    monkeypatch.setattr(people_module, "LIMIT", 0.05)
    monkeypatch.setattr(persons_module, "BELIEVED", 0.0)
    house.notebook()
    user = house.broker.scheduler.users[ME]
    assert user.weight == 1.0
    assert snapshot(house).broker.trouble == (
        "This host's directory of users and groups did not answer within 5 s: who comes in is in no unix group until it does. "
        "Ask it by hand: getent passwd, getent group."
    )
    slow.answers.set()
    house.saw(lambda: (house.broker.groups.look(), user.weight == 3.0)[1])
    assert snapshot(house).broker.trouble is None


def test_a_host_without_a_thread_left_keeps_nobody_out(
    house: House, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as with a directory that does not answer; when there is a thread again, it is asked again."""
    by_unix_group(house, weight=3.0)
    monkeypatch.setattr(persons_module, "BELIEVED", 0.0)
    slow.answers.set()
    start = threading.Thread.start

    def none_left(thread: threading.Thread) -> None:
        if thread.name == "gpushare-names":
            msg = "can't start new thread"
            raise RuntimeError(msg)
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        house.notebook()
    user = house.broker.scheduler.users[ME]
    assert user.weight == 1.0
    house.saw(lambda: (house.broker.groups.look(), user.weight == 3.0)[1])


def test_a_name_that_is_slow_to_come_holds_up_only_its_own(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), list[int]()
    getpwuid = pwd.getpwuid

    def slowly(uid: int) -> pwd.struct_passwd:
        asked.append(uid)
        answers.wait(LIMIT)
        return getpwuid(0)

    monkeypatch.setattr(pwd, "getpwuid", slowly)
    who = Person(4_000_001)
    meeting = asyncio.run_coroutine_threadsafe(house.broker.groups.meet(who), house._loop)
    try:
        house.saw(lambda: asked)
        assert not meeting.done()
    finally:
        answers.set()
    meeting.result(LIMIT)
    assert who.user == "root"
    assert asked == [4_000_001]


def test_who_comes_in_while_the_clock_looks_them_up_waits_too(house: House, slow: Slow) -> None:
    """A broker that is started again finds its users' notebooks before it knows their groups."""
    house.open("a.ipynb")
    by_unix_group(house, kernels=2)
    house.do(house.broker.groups.look)
    house.saw(lambda: slow.asked)
    thread, opened = opening(house, "b.ipynb")
    house.saw(lambda: house.broker.groups._lookups._turn._waiters)
    assert not opened
    slow.answers.set()
    thread.join(LIMIT)
    assert opened
    with pytest.raises(UserError, match="may have 2 kernels open"):
        house.open("c.ipynb")


def test_whom_the_ledger_tells_of_is_shown_in_the_group_of_their_unix_group(
    house: House, slow: Slow
) -> None:
    """They are looked up once, beside the loop, and not again and again while they are away."""
    house.do(lambda: house.broker.know_user(UserId("away"), 5.0, 1.0))
    by_unix_group(house)
    house.do(house.broker.groups.look)
    house.saw(lambda: slow.asked == ["away"])
    slow.answers.set()
    house.saw(lambda: house.broker.groups.of(UserId("away")) is not None)
    house.do(house.broker.groups.look)
    assert slow.asked == ["away"]


def test_a_process_that_nobody_opened_waits_for_its_users_name(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not asked for on the loop."""
    answers = threading.Event()
    root, uid = pwd.getpwuid(0), 4_000_003
    monkeypatch.setattr(pwd, "getpwuid", lambda _: (answers.wait(LIMIT), root)[1])
    try:
        assert not house.do(lambda: house.broker.groups.knows(uid))
    finally:
        answers.set()
    house.saw(lambda: house.broker.groups.knows(uid))
    assert Person(uid).user == "root"


class Forgetful(People):
    """A directory that does not know somebody the first time."""

    def __init__(self) -> None:
        self.asked = 0

    def groups_of(self, user: str) -> frozenset[str] | None:
        self.asked += 1
        return None if self.asked == 1 else frozenset({"root"})


def test_an_account_that_is_not_found_once_has_its_groups_seconds_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caps and an administrator's rights, without a reload; meanwhile nobody asks at each look."""
    house.broker.groups._people = people = Forgetful()
    group = Group("g", unix_groups=frozenset({"root"}), caps=Caps(kernels=1))
    settings = Settings(admin_groups=frozenset({"root"}), groups=(group,))
    house.do(lambda: house.broker.groups.follow(settings))
    house.open("a.ipynb")
    house.do(house.broker.groups.look)
    assert people.asked == 1
    assert not house.do(lambda: house.broker.groups.administers(ME))
    now = time.monotonic()
    monkeypatch.setattr(groups_module, "monotonic", lambda: now + 2 * persons_module.BELIEVED)
    with pytest.raises(UserError, match="may have 1 kernel open"):
        house.open("b.ipynb")
    assert house.do(lambda: house.broker.groups.administers(ME))
    assert people.asked == 2


def test_a_reload_that_does_not_find_somebody_asks_again(
    house: House, written: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persons_module, "BELIEVED", 0.0)
    house.notebook()
    house.broker.groups._people = people = Forgetful()
    written(BY_UNIX_GROUP)
    assert isinstance(house.call(msg.Observe()).ask(msg.ReloadSettings()), msg.SettingsRead)
    assert people.asked == 1
    user = house.broker.scheduler.users[ME]
    house.saw(lambda: (house.broker.groups.look(), user.weight == 3.0)[1])


# --- who may map whose bundles ------------------------------------------------------------------------------------


def test_bundles_are_shared_within_a_trust_group(house: House) -> None:
    """Else each user's are its own; of several groups the first counts."""
    vision = Group("vision", frozenset({"ann", "bob"}), trust="eyes")
    other = Group("other", frozenset({"cyd", "ann"}))
    friends = Group("friends", frozenset({"dan"}), trust="eyes")
    house.do(lambda: house.broker.groups.follow(Settings(groups=(vision, other, friends))))
    realm = house.broker.groups.realm
    assert realm(UserId("ann")) == realm(UserId("bob")) == realm(UserId("dan")) == "trust eyes"
    assert realm(UserId("cyd")) == "user cyd"
    assert realm(UserId("eve")) == "user eve"
