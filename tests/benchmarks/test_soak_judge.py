"""What the soak's judge makes of what was seen."""

from __future__ import annotations

import pytest

from benchmarks.soak.judge import Gone, PauseWatch, Served, Tally, left_over, wrong


def test_a_pause_without_a_broker_ends_when_the_kernel_runs():
    """Not when a new broker lives: one that leaves it standing is to be seen."""
    watch = PauseWatch()
    watch.look(10.0, Gone.NOBODY, {"a", "b"})
    assert not watch.open
    watch.look(11.0, Gone.BROKER, {"a", "b"})
    watch.look(11.25, Gone.BROKER, {"b"})
    watch.look(12.0, Gone.NOBODY, {"b"})
    assert watch.open
    watch.look(13.5, Gone.NOBODY, set())
    assert watch.pauses[Gone.BROKER] == [0.25, 2.5]
    assert watch.longest(Gone.BROKER) == 2.5
    assert watch.longest(Gone.BOTH) == 0.0


def test_where_the_guardian_goes_too_the_other_limit_holds():
    """Whenever it went while the kernel stood."""
    watch = PauseWatch()
    watch.look(1.0, Gone.BROKER, {"a"})
    watch.look(1.5, Gone.BOTH, {"a"})
    watch.look(2.0, Gone.BROKER, {"a"})
    watch.look(4.0, Gone.NOBODY, set())
    assert watch.pauses == {Gone.BROKER: [], Gone.BOTH: [3.0]}


def test_who_is_never_let_go_on_counts_to_the_end():
    """Else the worst of all would not be seen."""
    watch = PauseWatch()
    watch.look(1.0, Gone.BROKER, {"a"})
    watch.finish(9.0)
    assert watch.longest(Gone.BROKER) == 8.0


@pytest.mark.parametrize(
    ("fill", "missed"),
    [
        (lambda tally: None, []),
        (lambda tally: tally.lost.append("x"), ["lost_states"]),
        (lambda tally: tally.leaks.append("x"), ["leaks"]),
        (lambda tally: tally.invariants.append("x"), ["invariants_broken"]),
        (lambda tally: tally.errors.append("x"), ["unexpected_errors"]),
        (lambda tally: tally.stuck.append("x"), ["stuck_cells"]),
        (
            lambda tally: tally.pauses.pauses[Gone.BROKER].append(1.1),
            ["longest_pause_without_broker"],
        ),
        (lambda tally: tally.pauses.pauses[Gone.BOTH].append(4.9), []),
        (lambda tally: tally.pauses.pauses[Gone.BOTH].append(5.1), ["longest_pause_without_both"]),
    ],
)
def test_each_must_is_judged(fill, missed):
    """One of each kind is too much."""
    tally = Tally()
    fill(tally)
    assert [figure.name for figure in tally.figures() if not figure.met] == missed


def test_what_a_log_says():
    """A broken rule is one wherever it stands; other errors count where no fault explains them."""
    lines = [
        {"level": "info", "message": "listening"},
        {"level": "error", "message": "an event failed", "traceback": "T\nInvariantBroken: I1: 3"},
        {"level": "error", "message": "the ledger /x is not written, it is kept in memory: full"},
        {
            "level": "error",
            "message": "housekeeping failed",
            "traceback": "T\nOSError: [Errno 24] T",
        },
        {"level": "error", "message": "housekeeping failed", "traceback": "T\nKeyError: 'x'"},
    ]
    broken, errors = wrong(lines)
    assert broken == ["an event failed: InvariantBroken: I1: 3"]
    assert errors == ["housekeeping failed: KeyError: 'x'"]


def test_files_that_may_stay():
    """What a broker leaves on purpose, and nothing else."""
    kept = ["broker.lock", "start.lock", "intents", "ledger.sqlite", "ledger.sqlite.corrupt-1-wal", "broker.log.3", "stopped"]  # fmt: skip
    assert left_over([*kept, "intents.new", "broker.sock", "ballast"]) == ["ballast", "broker.sock", "intents.new"]  # fmt: skip


def test_only_time_with_a_broker_makes_a_cell_late():
    """A cell waits for memory that only a broker brings back; without one for ever it is late all the same."""
    served = Served()
    served.look(0.0, here=True)
    late = served.wait(90.0)
    served.look(60.0, here=True)
    served.look(61.0, here=False)
    served.look(500.0, here=True)
    assert served.seconds == 60.0
    assert not late()
    served.look(530.0, here=True)
    assert late()
    assert served.wait(90.0, most=-1.0)()
