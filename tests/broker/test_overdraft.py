"""Over its grant, and idle with much: which step is due when. Pure: the test says what time it is."""

from __future__ import annotations

from gpushare_kernel.broker.overdraft import IdleHolders, Over, Overdraft, Step
from gpushare_kernel.core.values import GiB, MiB, SessionId

A = SessionId("a")


class Play:
    """One session over its grant of 4 GiB, looked at once a second."""

    def __init__(self, over: Over = Over.TELL) -> None:
        self.overdraft = Overdraft(over)
        self.now = 0.0
        self.held = 6 * GiB
        self.limit: int | None = 4 * GiB
        self.people = 0
        #: What was done, and when.
        self.steps: list[tuple[float, Step]] = []

    def look(self) -> Step | None:
        step = self.overdraft.look(
            A, held=self.held, limit=self.limit, people=self.people, at=self.now
        )
        if step is not None:
            self.steps.append((self.now, step))
        self.now += 1.0
        return step

    def run(self, until: float) -> None:
        while self.now < until:
            self.look()


def test_it_is_told_once_and_asked_once_where_nobody_waits() -> None:
    """Nobody is paused for memory that nobody wants."""
    play = Play(Over.END)
    play.run(600)
    assert play.steps == [(0, Step.TELL), (10, Step.ASK)]


def test_it_is_paused_where_somebody_waits_and_let_on_after_a_minute() -> None:
    """Told at once, asked after 10 s, paused after 30 s, for 60 s; then not paused for this again."""
    play = Play()
    play.people = 1
    play.run(600)
    assert play.steps == [(0, Step.TELL), (10, Step.ASK), (30, Step.PAUSE), (90, Step.LET_ON)]


def test_once_under_its_grant_it_begins_anew() -> None:
    """It gave back what it had too much: the next time is another matter."""
    play = Play()
    play.people = 1
    play.run(120)
    play.held = 4 * GiB
    assert play.look() is None
    play.held = 6 * GiB
    play.run(152)
    assert play.steps[4:] == [(121, Step.TELL), (131, Step.ASK), (151, Step.PAUSE)]


def test_it_is_let_on_as_soon_as_that_helps_nobody() -> None:
    """Under its grant, its job over, or nobody waiting any more."""
    for change in ({"held": 4 * GiB}, {"limit": None}, {"people": 0}):
        play = Play()
        play.people = 1
        play.run(40)
        for name, value in change.items():
            setattr(play, name, value)
        assert play.look() is Step.LET_ON
        assert play.look() is None


def test_who_was_let_on_is_spared_until_it_was_under_its_grant() -> None:
    """Also where the pause was short because nobody waited any more."""
    play = Play()
    play.people = 1
    play.run(40)
    play.people = 0
    assert play.look() is Step.LET_ON
    play.people = 1
    play.run(300)
    assert play.steps[-1] == (40, Step.LET_ON)


def test_it_is_asked_for_others_before_it_is_paused_for_them() -> None:
    """Somebody comes late: it hears that they wait, and has a moment for what it was asked."""
    play = Play()
    play.run(50)
    play.people = 2
    play.run(70)
    assert play.steps == [(0, Step.TELL), (10, Step.ASK), (50, Step.ASK), (60, Step.PAUSE)]


def test_allocators_round_up() -> None:
    """512 MiB, or a twentieth of a large grant, are nobody's fault."""
    play = Play()
    for limit, allowed in ((GiB, 512 * MiB), (40 * GiB, 2 * GiB)):
        play.limit, play.held = limit, limit + allowed
        assert play.look() is None
        play.held += 1
        assert play.look() is Step.TELL
        play.held = 0
        play.look()


def test_it_is_ended_only_where_that_is_wanted_and_gently_first() -> None:
    """After its pause: an interrupt; where that does not help in 10 s the end, once."""
    play = Play(Over.END)
    play.people = 1
    play.run(600)
    assert play.steps[3:] == [(90, Step.LET_ON), (91, Step.INTERRUPT), (101, Step.TERMINATE)]


def test_an_interrupt_that_helps_is_all() -> None:
    """Its cell is over, and so is what it was granted."""
    play = Play(Over.END)
    play.people = 1
    play.run(95)
    assert play.steps[-1] == (91, Step.INTERRUPT)
    play.limit = None
    play.run(300)
    assert play.steps[-1] == (91, Step.INTERRUPT)


def test_a_pause_that_cannot_begin_is_tried_again_for_as_long_as_one_lasts() -> None:
    """A signal is on its way, or a profiler runs; an end comes no sooner for that."""
    play = Play(Over.END)
    play.people = 1
    play.run(30)
    for _ in range(60):
        assert play.look() is Step.PAUSE
        play.overdraft.not_paused(A)
    assert play.look() is Step.INTERRUPT


def test_who_is_gone_is_forgotten() -> None:
    """A session of the same name would be another one."""
    play = Play()
    play.run(5)
    play.overdraft.keep([A])
    assert play.look() is None
    play.overdraft.keep([])
    assert play.look() is Step.TELL


def due(
    idle: IdleHolders, at: float, *, held: int = GiB, since: float = 0.0, people: int = 2
) -> bool:
    return idle.due(A, held=held, idle_since=since, people=people, at=at)


def test_an_idle_holder_is_asked_once_in_an_idle_time() -> None:
    """After a minute, for a quarter of a GiB or more, while somebody waits."""
    idle = IdleHolders()
    assert not due(idle, 59.0)
    assert not due(idle, 60.0, people=0)
    assert not due(idle, 60.0, held=255 * MiB)
    assert due(idle, 60.0)
    assert not due(idle, 6000.0)


def test_whoever_works_now_and_then_is_not_asked_all_day() -> None:
    """The next idle time asks again, but not within ten minutes of the last."""
    idle = IdleHolders()
    assert due(idle, 60.0)
    assert not due(idle, 300.0, since=200.0)
    assert due(idle, 660.0, since=200.0)
    idle.keep([])
    assert due(idle, 661.0, since=200.0)
