"""Whose device time has a series of its own: pure sums."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpushare_kernel.broker.series import OTHER, Series
from gpushare_kernel.core.values import UserId

NAMES = [UserId(name) for name in "abcdef"]
STEPS = st.lists(st.dictionaries(st.sampled_from(NAMES), st.floats(0, 100)), max_size=20)


def test_those_who_used_most_since_the_start_have_one() -> None:
    """What was in the accounts before does not count; the rest is one series."""
    people = Series(2, {NAMES[0]: 1000.0})
    people.look({NAMES[0]: 1001.0, NAMES[1]: 5.0, NAMES[2]: 3.0, NAMES[3]: 0.5})
    assert people.named == {NAMES[1], NAMES[2]}
    assert dict(people.used) == {NAMES[1]: 5.0, NAMES[2]: 3.0, OTHER: 1.5}
    assert people.label(NAMES[0]) == OTHER


def test_who_becomes_one_of_them_begins_at_nothing() -> None:
    """What it used before was counted for the others, and stays there."""
    people = Series(1, {})
    people.look({NAMES[0]: 10.0, NAMES[1]: 4.0})
    people.look({NAMES[0]: 10.0, NAMES[1]: 24.0})
    assert people.named == {NAMES[1]}
    assert dict(people.used) == {NAMES[0]: 10.0, OTHER: 4.0, NAMES[1]: 20.0}


@given(st.integers(0, 4), STEPS)
def test_series_only_grow_and_their_sum_is_all_that_was_used(
    most: int, steps: list[dict[UserId, float]]
) -> None:
    """Whoever changes places."""
    people, accounts = Series(most, {}), dict.fromkeys(NAMES, 0.0)
    for step in steps:
        before = dict(people.used)
        for user, more in step.items():
            accounts[user] += more
        people.look(accounts)
        assert len(people.named) <= most
        assert all(people.used[name] >= used for name, used in before.items())
        assert abs(sum(people.used.values()) - sum(accounts.values())) < 1e-6
