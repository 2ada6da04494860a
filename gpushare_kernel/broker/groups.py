"""Who is in which group, and what that gives at the moment: told to the schedulers where it changes, held at the door."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Set
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from gpushare_kernel.broker import persons
from gpushare_kernel.broker.ids import session_of
from gpushare_kernel.broker.kernels import Kernel, most_sessions
from gpushare_kernel.broker.people import LIMIT, Lookups, People
from gpushare_kernel.broker.persons import Person
from gpushare_kernel.broker.settings import EVERYBODY, Caps, Group, Host, Settings, read
from gpushare_kernel.broker.spending import Spending
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import BadSettings, UserError
from gpushare_kernel.core.timetable import DAY, in_force
from gpushare_kernel.core.values import DeviceId, SessionId, UserId
from gpushare_kernel.devices.base import Inventory
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.wire import limit_texts
from gpushare_kernel.wire.realtime import RealtimeTask
from gpushare_kernel.wire.snapshot import BudgetView

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker
    from gpushare_kernel.broker.engine import Engine

_AT_ONCE = 16
"""Users who are not here that are looked up in one question."""
_SILENT = "this host's directory of users and groups did not answer within %g s: who comes in is in no unix group until it does"
_logger = logging.getLogger(__name__)


def host_of(inventories: Iterable[Inventory], people: People, capacity: int | None = None) -> Host:
    """Return what the administrator's file is held against; `capacity` is what they gave of each device."""
    every = list(inventories)
    return Host(
        people,
        # Else all there is of it, not what is free of it now: a broker that is started again finds it full of its own sessions.
        capacity or max(one.total or Machine().total() for one in every),
        most_sessions(),
        sum(one.compute for one in every),
        Machine().total(),
    )


class Groups:
    """The administrator's file at work."""

    def __init__(self, broker: Broker, settings: Settings, people: People | None = None) -> None:
        self._broker, self.settings = broker, settings
        self._people = people or People()
        self.spending = Spending(broker.ledger)
        #: Why the file that is there now is not the one that holds; empty: it is.
        self.trouble = ""
        #: That the host's directory did not answer when it was last asked who somebody is; empty: it did.
        self.silence = ""
        #: Where a copy of what holds lies, for a broker that is started again after a crash.
        self.good: Path | None = None
        #: Where a file may come to be that was not there at the start.
        self.place: Path | None = None
        #: Bytes of each device that the administrator gave; None: all of it.
        self.capacity: int | None = None
        self._lookups = Lookups()
        self._works: set[asyncio.Task[object]] = set()
        self._unix: dict[UserId, frozenset[str]] = {}
        self._of: dict[UserId, Group | None] = {}
        #: From when on (on the clock of `monotonic`) the directory is asked again who did not know them.
        self._ask_again: dict[UserId, float] = {}
        self._told: dict[tuple[DeviceId, UserId], ev.UserLimits] = {}

    # --- what is asked -----------------------------------------------------------------------------------

    def of(self, user: UserId) -> Group | None:
        """Return the group of `user`: the first that has it."""
        if user in self._of:
            return self._of[user]
        mine = self._unix.get(user, frozenset())
        found = next(
            (g for g in self.settings.groups if user in g.users or mine & g.unix_groups),
            next((g for g in self.settings.groups if g.name == EVERYBODY), None),
        )
        if not self._unknown(user):
            self._of[user] = found
        return found

    def caps(self, user: UserId) -> Caps:
        """Return what `user` may have at this hour."""
        group = self.of(user)
        if group is None:
            return Caps()
        now = time.localtime()
        entry = in_force(group.periods, now.tm_wday * DAY + now.tm_hour * 60 + now.tm_min)
        return group.caps if entry is None else group.timetable[entry]

    def administers(self, user: UserId) -> bool:
        """Whether the file has `user` act for everybody."""
        mine = self._unix.get(user, frozenset())
        return user in self.settings.admins or bool(self.settings.admin_groups & mine)

    def realm(self, user: UserId) -> str:
        """Return whose bundles `user` may map: those of everybody with the same answer."""
        group = self.of(user)
        return f"user {user}" if group is None or not group.trust else f"trust {group.trust}"

    def budgets(self, user: UserId) -> tuple[BudgetView, ...]:
        """Return what is left of the budgets of `user`."""
        group = self.of(user)
        return () if group is None else self.spending.budgets(user, group.day, group.week)

    def over_budget(self, user: UserId) -> bool:
        """Whether one of them is used up."""
        return any(one.used >= one.limit for one in self.budgets(user))

    def check_kernels(self, user: UserId) -> None:
        """Refuse one kernel more than the group of `user` allows."""
        most, group = self.caps(user).kernels, self.of(user)
        if most is None or group is None:
            return
        mine = [one.name for one in self._broker.registry if one.user == user and not one.keeps_pages]  # fmt: skip
        if len(mine) >= most:
            raise UserError(limit_texts.kernels_text(group.name, most, sorted(mine)))

    def check_moved(self, kernel: Kernel, owner: Person) -> None:
        """Refuse to make a session without a process another user's, where that is one kernel more than they may have."""
        if owner.user != kernel.user:
            self.check_kernels(owner.user)

    def check_realtime(self, kernel: Kernel, task: RealtimeTask) -> None:
        """Refuse a deadline that would take more of the device than the group of its user allows."""
        group = self.of(kernel.user)
        if group is None:
            return
        used_up = next((b for b in self.budgets(kernel.user) if b.used >= b.limit), None)
        if used_up is not None:
            raise UserError(limit_texts.budget_text(used_up.period, used_up.limit, used_up.renews))
        most = self.caps(kernel.user).realtime
        if most is None:
            return
        mine = {one.id for one in self._broker.registry if one.user == kernel.user}
        taken = sum(map(utilisation, self._tasks_of(mine)))
        if taken + utilisation(task) > most:
            raise UserError(limit_texts.realtime_text(group.name, most, taken, utilisation(task)))

    def _tasks_of(self, sessions: Set[SessionId]) -> Iterator[RealtimeTask]:
        """Those whose deadlines are promised, or being proven."""
        for promises in self._broker.promises.values():
            yield from promises.tasks_of(sessions)
        for job, asked in self._broker.asked.items():
            task = asked.submit.realtime
            if task is not None and session_of(job) in sessions and self._broker.proves(job):
                yield task

    # --- who they are -----------------------------------------------------------------------------------------

    async def meet(self, who: Person) -> None:
        """Have the host's directory asked about somebody who comes in, beside the loop: one that is slow holds up nobody but them.

        Where it does not answer they come in as they are known, under their uid and in no unix group; it is asked again soon.
        """
        people, unnamed = self._people, persons.due(who)
        if not unnamed and not self._due([who.user]):
            return

        def look() -> dict[UserId, frozenset[str] | None]:
            if unnamed:
                persons.learn(who)
            return {who.user: people.groups_of(who.user) if self._unknown(who.user) else None}

        if not await self._ask(look) and unnamed:
            persons.doubt(who)
        self._ask_again[who.user] = monotonic() + persons.BELIEVED

    def knows(self, uid: int) -> bool:
        """Whether a uid has a name; else the directory is asked for it from now on."""
        who = Person(uid)
        if persons.due(who) and not self._lookups.busy:
            self.begin(self.meet(who))
        return persons.heard(who)

    def _unknown(self, user: UserId) -> bool:
        """Whether it matters in which unix groups `user` is, and nobody knows."""
        wanted = self.settings.admin_groups or _unix_groups(self.settings)
        return bool(wanted) and user not in self._unix

    def _due(self, users: Iterable[UserId]) -> list[UserId]:
        now = monotonic()
        return [u for u in users if self._unknown(u) and self._ask_again.get(u, now) <= now]

    def _look_up(self) -> None:
        """Have it asked in which unix groups they are of whom nobody knows: who is here after some seconds again, who is shown only once."""
        if self._lookups.busy:
            return
        shown = (user for user in self._broker.scheduler.users if user not in self._ask_again)
        due = self._due(self._here()) or self._due(shown)[:_AT_ONCE]
        people = self._people

        async def looking() -> None:
            await self._ask(lambda: {user: people.groups_of(user) for user in due})
            # Not before: who comes in meanwhile waits for it, too.
            self._ask_again.update(dict.fromkeys(due, monotonic() + persons.BELIEVED))

        if due:
            self.begin(looking())

    async def _ask(self, look: Callable[[], Mapping[UserId, frozenset[str] | None]]) -> bool:
        """Take in what is found, and say whether there was an answer."""
        try:
            self._take(await self._lookups.ask(look))
        except OSError:
            _logger.warning(_SILENT, LIMIT)
            self.silence = f"T{_SILENT[1:] % LIMIT}. Ask it by hand: getent passwd, getent group."
            return False
        self.silence = ""
        return True

    def _take(self, found: Mapping[UserId, frozenset[str] | None]) -> None:
        self._unix.update({user: unix for user, unix in found.items() if unix is not None})

    def _here(self) -> set[UserId]:
        here = {kernel.user for kernel in self._broker.registry}
        return here | {desk.who.user for desk in self._broker.observers}

    # --- what is told ---------------------------------------------------------------------------------------

    def tell(self, user: UserId) -> None:
        """Tell the schedulers what `user` may have now, where that is news."""
        group = self.of(user)
        for name, engine in self._broker.engines.items():
            before = self._told.get((name, user))
            if group is None and before is None:
                continue
            limits = self._limits(user, group, engine)
            if limits != before:
                self._told[name, user] = limits
                engine.feed(replace(limits, at=engine.now))

    def look(self) -> None:
        """The clock goes on and budgets are used: tell what has changed by that for those who are here; who comes is told then."""
        self.spending.note(self._broker.accounts())
        self._look_up()
        self._tell_all()

    def _tell_all(self) -> None:
        for user in {kernel.user for kernel in self._broker.registry}:
            self.tell(user)

    def _limits(self, user: UserId, group: Group | None, engine: Engine) -> ev.UserLimits:
        if group is None:
            return ev.UserLimits(at=0.0, user=user)
        caps, parked = self.caps(user), None
        if caps.parked is not None:  # of all devices together
            parked = caps.parked - sum(_parked(e, user) for e in self._broker.engines.values() if e is not engine)  # fmt: skip
        return ev.UserLimits(
            at=0.0,
            user=user,
            group=group.name,
            weight=caps.weight,
            memory=caps.memory,
            memory_ever=group.most_memory,
            parked=parked,
            over_budget=self.over_budget(user),
        )

    # --- another file ---------------------------------------------------------------------------------------

    async def reload(self) -> Settings:
        """Read the file again and follow it; where it is wrong, the former one holds and `trouble` says so.

        Names are looked up beside the loop, those of who is here included: a directory that hangs holds up no turn.

        Raises
        ------
        BadSettings
            Where it is wrong, there is none to read, or nobody tells who there is on this host.
        """
        path = self.settings.path or self.place
        if path is None or not (self.settings.path or path.exists()):
            problem = (
                "this broker has no configuration. Start it with one: jupyter gpushare start --config FILE; "
                "the system's broker reads /etc/gpushare/gpushare.toml without that."
            )
            _logger.warning("there is nothing to read again: %s", problem)
            raise BadSettings(problem)
        inventories = [engine.device.inventory for engine in self._broker.engines.values()]
        people, host = self._people, host_of(inventories, self._people, self.capacity)
        here = self._here()

        def look() -> tuple[Settings, dict[UserId, frozenset[str] | None]]:
            found = read(path, host)
            wanted = found.admin_groups or _unix_groups(found)
            return found, {user: people.groups_of(user) for user in here} if wanted else {}

        try:
            found, unix = await self._lookups.ask(look)
        except TimeoutError:
            why = (
                f"{path} was not read again: this host's directory of users and groups did not answer within {LIMIT:g} s. "
                "Ask it by hand (getent passwd, getent group), and reload once it answers."
            )
            raise self._not_taken(why) from None
        except BadSettings as problem:
            raise self._not_taken(str(problem)) from None
        self.silence = ""
        self.follow(found, unix)
        _logger.info("the configuration was read again", extra={"groups": len(found.groups)})
        return found

    def _not_taken(self, why: str) -> BadSettings:
        self.trouble = f"{why} What was read before still holds."
        _logger.error("the configuration was not taken: %s", why)
        return BadSettings(self.trouble)

    def begin(self, work: Coroutine[None, None, object]) -> None:
        """Have a reload or a look-up go on while others are answered."""
        task = asyncio.get_running_loop().create_task(work)
        self._works.add(task)
        task.add_done_callback(self._works.discard)

    def follow(
        self, settings: Settings, unix: Mapping[UserId, frozenset[str] | None] | None = None
    ) -> None:
        """`settings` hold from now on; `unix` groups that are known need not be looked up."""
        self.settings, self.trouble = settings, ""
        self._unix.clear()
        self._take(unix or {})
        self._ask_again.clear()
        self._of.clear()
        self.keep()
        self._tell_all()

    def keep(self) -> None:
        """Keep a copy of what holds."""
        if self.good is None or self.settings.path is None:
            return
        fresh = self.good.with_name(f"{self.good.name}.new")
        try:
            fresh.write_text(self.settings.text, encoding="utf-8")
            fresh.chmod(0o600)
            fresh.replace(self.good)
        except OSError as problem:
            _logger.warning("no copy of the configuration is kept: %s", problem)


def _unix_groups(settings: Settings) -> bool:
    return any(group.unix_groups for group in settings.groups)


def utilisation(task: RealtimeTask) -> float:
    """Return the part of a device (or the cores) that a task takes at most: its longest work, in each period."""
    longest = sum(max(layer.worst.values(), default=0.0) for layer in task.layers)
    return longest / task.period


def _parked(engine: Engine, user: UserId) -> int:
    account = engine.scheduler.users.get(user)
    names = () if account is None else account.sessions
    sessions = (engine.scheduler.sessions[name] for name in names)
    return sum(one.parked.size for one in sessions if one.parked is not None)
