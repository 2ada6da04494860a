"""docs/parking.md numbers its rules, and tests quote them: no rule without a test, no quote without a rule."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_rule_is_held_by_a_test_that_says_so() -> None:
    """By its number at the beginning of a docstring, maybe beside others'."""
    rules = re.findall(r"^- \*\*(K\d+)\*\*", (ROOT / "docs/parking.md").read_text(), re.MULTILINE)
    quoted: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for numbers in re.findall(r'"""((?:[A-Z]\d+, )*[A-Z]\d+): ', path.read_text()):
            quoted |= {number for number in numbers.split(", ") if number.startswith("K")}
    assert rules == [f"K{number}" for number in range(1, len(rules) + 1)]
    assert quoted == set(rules)
