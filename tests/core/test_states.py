"""The states as tables: what may follow what, and the page that shows them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from gpushare_kernel.core.errors import InvalidTransition
from gpushare_kernel.core.records import Job
from gpushare_kernel.core.states import JOB, PRESENCE, Phase, checked, diagram, page
from gpushare_kernel.core.values import JobId, JobState, Need, Presence, SessionId

DOCUMENT = Path(__file__).parents[2] / "docs" / "states.md"


def test_every_state_is_in_its_table() -> None:
    """A state that the table forgot would be a trap."""
    assert set(PRESENCE) == set(Presence)
    assert set(JOB) == set(JobState)


@pytest.mark.parametrize(
    "state", [JobState.DONE, JobState.REFUSED, JobState.CANCELLED, JobState.LOST]
)
def test_a_job_that_is_over_stays_over(state: JobState) -> None:
    """Nothing follows an end."""
    assert JOB[state] == frozenset()


def test_every_state_can_be_reached_and_every_job_can_end() -> None:
    """No state is unreachable from the first one; from each a job or session can end."""
    for table, first, ends in (
        (PRESENCE, Presence.OPENED, {Presence.CLOSED}),
        (
            JOB,
            JobState.SUBMITTED,
            {JobState.DONE, JobState.REFUSED, JobState.CANCELLED, JobState.LOST},
        ),
    ):
        assert _reachable(table, first) == set(table)  # type: ignore[arg-type]
        assert all(_reachable(table, state) & ends for state in table)  # type: ignore[arg-type]


def _reachable(table: dict[object, frozenset[object]], start: object) -> set[object]:
    found, rest = {start}, [start]
    while rest:
        new = table[rest.pop()] - found
        found |= new
        rest += new
    return found


def test_only_what_the_table_knows_happens() -> None:
    """Every pair: allowed as the table says, staying always; the error names who, from where and what would be allowed."""
    for now, then in itertools.product(JobState, JobState):
        if then is now or then in JOB[now]:
            assert checked(JOB, now, then, "job j") is then
        else:
            with pytest.raises(
                InvalidTransition, match=f"job j: {now} cannot become {then}; allowed: "
            ):
                checked(JOB, now, then, "job j")


def test_a_job_changes_by_the_table_only() -> None:
    """A refused job cannot run, and keeps its state."""
    job = Job(JobId("j"), SessionId("s"), 1, Need(0, 0), None, 0.0)
    job.become(JobState.REFUSED)
    with pytest.raises(InvalidTransition):
        job.become(JobState.RUNNING)
    assert job.state is JobState.REFUSED


def test_diagrams_are_made_from_the_tables() -> None:
    """Each arrow of the table is a line, and ends are marked."""
    lines = diagram(JOB).splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert "    queued --> admitted" in lines
    assert "    done --> [*]" in lines
    arrows = sum(len(nexts) or 1 for nexts in JOB.values())
    assert len(lines) == 1 + arrows


def test_the_document_shows_these_tables() -> None:
    """docs/states.md is what `python -m gpushare_kernel.core.states` prints: change the table, print it again."""
    assert DOCUMENT.read_text(encoding="utf-8") == page()
    assert all(f"| `{phase}` |" in page() for phase in Phase)
