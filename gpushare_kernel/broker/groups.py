"""Who is in which group, and what that gives at the moment: told to the schedulers where it changes, held at the door."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Set
from dataclasses import replace
from functools import partial
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
        #: Where a copy of what holds lies, for a broker that is started again after a crash.
        self.good: Path | None = None
        #: Where a file may come to be that was not there at the start.
        self.place: Path | None = None
        #: Bytes of each device that the administrator gave; None: all of it.
        self.capacity: int | None = None
        self._lookups = Lookups()
        self._reloads: set[asyncio.Task[None]] = set()
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

    # --- who they are -----------------------------------------------------------------------------------------

    async def meet(self, who: Person) -> None:
        """Have the host's directory asked about somebody who comes in, beside the loop: one that is slow holds up nobody but them.

        Where it does not answer they come in as they are known, under their uid and in no unix group; it is asked again soon.
        """
        if persons.due(who):
            try:
                await self._lookups.ask(partial(persons.learn, who))
            except TimeoutError:
                _logger.warning(_SILENT, LIMIT)
                persons.doubt(who)
        await self._learn({who.user})

    def _unknown(self, user: UserId) -> bool:
        """Whether it matters in which unix groups `user` is, and nobody knows."""
        wanted = self.settings.admin_groups or _unix_groups(self.settings)
        return bool(wanted) and user not in self._unix

    def _due(self, users: Iterable[UserId]) -> list[UserId]:
        now = monotonic()
        return [u for u in users if self._unknown(u) and self._ask_again.get(u, now) <= now]

    async def _learn(self, users: Iterable[UserId]) -> None:
        """Ask in which unix groups they are, where that is not known; who has no account is asked about again after some seconds."""
        due = self._due(users)
        if not due:
            return
        people = self._people
        found: Mapping[UserId, frozenset[str] | None] = {}
        try:
            found = await self._lookups.ask(lambda: {u: people.groups_of(u) for u in due})
        except TimeoutError:
            _logger.warning(_SILENT, LIMIT)
        self._ask_again.update(dict.fromkeys(due, monotonic() + persons.BELIEVED))
        self._take(found)

    def _take(self, found: Mapping[UserId, frozenset[str] | None]) -> None:
        self._unix.update({user: unix for user, unix in found.items() if unix is not None})

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
        due = self._due(self._here())
        if due and not self._lookups.busy:
            self.begin(self._learn(due))
        self._tell_all()

    def _here(self) -> set[UserId]:
        here = {kernel.user for kernel in self._broker.registry}
        return here | {desk.who.user for desk in self._broker.observers}

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
        self.follow(found, unix)
        _logger.info("the configuration was read again", extra={"groups": len(found.groups)})
        return found

    def _not_taken(self, why: str) -> BadSettings:
        self.trouble = f"{why} What was read before still holds."
        _logger.error("the configuration was not taken: %s", why)
        return BadSettings(self.trouble)

    def begin(self, reloading: Coroutine[None, None, None]) -> None:
        """Have somebody's reload go on while others are answered."""
        task = asyncio.get_running_loop().create_task(reloading)
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

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
