"""What only administrators may ask for, and what is written down of it: who, when, what, whom."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from gpushare_kernel.broker.kernels import Kernel
from gpushare_kernel.broker.persons import HUB, Person
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.errors import BadDeclaration, GpushareError, NotYours
from gpushare_kernel.wire import admin_texts
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.admin import Left
from gpushare_kernel.wire.codec import failure_from

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker
    from gpushare_kernel.broker.desk import Desk

LONGEST_WORD = 500
MOST_ENTRIES = 5000
Asked = msg.Drain | msg.Evict | msg.Proclaim | msg.GetAudit


def check(broker: Broker, desk: Desk, what: str) -> None:
    """Refuse whoever does not administer.

    Raises
    ------
    NotYours
        With who may.
    """
    if not broker.administers(desk.who):
        you = desk.who.user if desk.who.hub else f"uid {desk.who.uid}"
        problem = f"only an administrator (root, the broker's owner, or who its configuration names) may {what}, and you are {you}."
        raise NotYours(problem)


def answer(broker: Broker, desk: Desk, body: Asked) -> msg.Reply:
    """Do what an administrator asks for."""
    match body:
        case msg.Drain():
            check(broker, desk, "begin or end a maintenance")
            return _drain(broker, desk, body)
        case msg.Evict():
            check(broker, desk, "have others' memory set aside")
            return _evict(broker, desk, body)
        case msg.Proclaim():
            check(broker, desk, "announce something")
            text = checked_words(body.text)
            note(broker, desk, "announce", detail=text or "(taken back)")
            return msg.Proclaimed(broker.upkeep.proclaim(text))
        case msg.GetAudit():
            check(broker, desk, "read what administrators did")
            return msg.Audited(broker.audit.read(min(max(1, body.most), MOST_ENTRIES)))


def reload(broker: Broker, desk: Desk, answer: Callable[[msg.Reply], None]) -> None:
    """Have the configuration read again, and answer once it is, or why not."""
    check(broker, desk, "have the configuration read again")

    async def reloading() -> None:
        try:
            found = await broker.groups.reload()
        except GpushareError as problem:
            broker.refusals[type(problem).__name__] += 1
            answer(failure_from(problem))
            return
        note(broker, desk, "reload", detail=str(found.path))
        answer(msg.SettingsRead(str(found.path), len(found.groups)))

    broker.groups.begin(reloading())


def note(broker: Broker, desk: Desk, what: str, whom: str = "", detail: str = "") -> None:
    """Write down what the caller did."""
    broker.audit.note(desk.who.user, desk.who.uid, what, whom, detail)


def note_others(broker: Broker, desk: Desk, what: str, kernels: Iterable[Kernel]) -> None:
    """Write down what an administrator did to the notebooks of others."""
    for kernel in kernels:
        if kernel.person != desk.who:
            note(broker, desk, what, f"{kernel.user}: {kernel.name}")


def checked_words(text: str) -> str:
    """Return what is shown to everybody, in one line that breaks no screen."""
    words = "".join(c if c.isprintable() else " " for c in text).strip()
    if len(words) > LONGEST_WORD:
        problem = f"that may have {LONGEST_WORD} characters, and it has {len(words)}. Say it shorter, with a link."
        raise BadDeclaration(problem)
    return words


def of_user(broker: Broker, whom: str) -> list[Kernel]:
    """Return the notebooks of that user, by the account's name or by its uid; none where there are none.

    Raises
    ------
    BadDeclaration
        Where an account of this host and a user of the hub are called so, and both have some.
    """
    if whom.isdecimal():
        return [k for k in broker.registry if not k.hub and str(k.uid) == whom]
    found = [k for k in broker.registry if k.user == whom]
    if found and any(k.user == whom + HUB for k in broker.registry):
        problem = f"{whom!r} is the account of uid {found[0].uid} here, and a user of the hub; both have notebooks open. Write {found[0].uid}, or '{whom}{HUB}'."
        raise BadDeclaration(problem)
    return found


def called(kernels: Iterable[Kernel], name: str) -> list[Kernel]:
    """Return those of that name, with or without its ending, or id."""
    stem = name.removesuffix(".ipynb")
    return [k for k in kernels if stem in {k.id, k.name.removesuffix(".ipynb")}]


def meant(broker: Broker, who: Person, whom: str) -> list[Kernel]:
    """Return the notebooks that an administrator means: of that user; `user:notebook`; of that name or id, one's own first.

    Raises
    ------
    BadDeclaration
        Where two users are called so, or several people have a notebook of that name.
    """
    user, colon, name = whom.partition(":")
    found = of_user(broker, whom) or (called(of_user(broker, user), name) if colon else [])
    if found:
        return found
    found = called(broker.registry, whom)
    found = [k for k in found if k.person == who] or found
    if len({k.user for k in found}) > 1:
        which = ", ".join(sorted(shlex.quote(f"{k.user}:{k.name}") for k in found))
        problem = f"several people have a notebook {whom!r}. Say whose: {which}."
        raise BadDeclaration(problem)
    return found


def named(broker: Broker, who: Person, whom: str) -> list[Kernel]:
    """Return whom `who`, an administrator, means.

    Raises
    ------
    NotYours
        Where there are none, with the users there are.
    BadDeclaration
        As `meant` does.
    """
    found = meant(broker, who, whom)
    if not len(broker.registry):
        problem = "No notebook is open."
        raise NotYours(problem)
    if not found:
        users = ", ".join(sorted({k.user for k in broker.registry}))
        problem = f"there is no notebook or user {whom!r}. There are notebooks of: {users}. jupyter gpushare status lists them."
        raise NotYours(problem)
    return found


def _drain(broker: Broker, desk: Desk, body: msg.Drain) -> msg.Reply:
    if body.on:
        text = checked_words(body.note) or broker.upkeep.note  # who only watches takes nothing back
        broker.upkeep.drain(text)
        note(broker, desk, "drain", detail=text)
    elif broker.upkeep.since is not None:
        broker.upkeep.end()
        note(broker, desk, "drain --end")
    return msg.Ok()


def _evict(broker: Broker, desk: Desk, body: msg.Evict) -> msg.Reply:
    """Memory that can be set aside is, now or after its cell; for the rest its user is asked. No process is ended (I8)."""
    parked: list[str] = []
    after_cell: list[str] = []
    left: list[Left] = []
    for kernel in named(broker, desk.who, body.whom):
        engine = broker.engine_of(kernel.id)
        core, session = engine.scheduler, engine.scheduler.sessions[kernel.id]
        size = session.charged + session.context
        if session.parked is not None or session.moving is not None or not (size or session.jobs):
            continue
        why = core.why_not_parked(session)
        label = f"{kernel.user}: {kernel.name}"
        if why:
            holds = session.charged or size  # as every status says it: without its context
            left.append(Left(label, holds, why))
            kernel.notify(msg.Trim())
            kernel.notify(
                msg.Announce(admin_texts.asked_by_admin_text(holds), keep=True, about="evict")
            )
        else:
            busy = bool(session.jobs) or session.cell_open
            (after_cell if busy else parked).append(label)
            engine.feed(ev.ParkWanted(at=engine.now, session=session.id))
            told = admin_texts.set_aside_by_admin_text(after_cell=busy)
            kernel.notify(msg.Announce(told, keep=True, about="evict"))
        note(broker, desk, "evict", label, why)
    return msg.EvictedNow(tuple(parked), tuple(after_cell), tuple(left))
