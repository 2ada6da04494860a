"""The admin guide is run as it is written: a step that is missing or wrong fails here, before it fails for somebody."""

from __future__ import annotations

import faulthandler
import json
import re

import pytest

from benchmarks.hub_setup import guide
from benchmarks.hub_setup.inside import BACK, BACK_SECTION, GUIDE, blocks
from tests.hub.conftest import A_TEST

MISSING = guide.missing()


def test_the_guide_has_blocks_to_run() -> None:
    """All of the first recipe, and none of the others."""
    found = blocks((guide.ROOT / GUIDE).read_text())
    assert "python3 -m venv" in found[0]
    assert any("gpushare install --hub" in one for one in found)
    assert not any("tljh" in one for one in found)


@pytest.mark.root
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
def test_two_users_share_at_its_end_and_nothing_is_left_of_it() -> None:
    """Every block, on a machine of its own; each of two users runs a cell, in an account of their own; then it is taken back, and kernels start without us."""
    faulthandler.cancel_dump_traceback_later()  # it downloads: minutes, and has a limit of its own
    steps = guide.run()
    faulthandler.dump_traceback_later(A_TEST, exit=True)
    for one in steps:
        assert one["status"] == 0, f"{one['step']}\n{one['output']}"
    back = blocks((guide.ROOT / BACK).read_text(), BACK_SECTION)
    forth = blocks((guide.ROOT / GUIDE).read_text())
    assert len(back) == 1
    assert len(steps) == len(forth) + 1 + len(back) + 1
    assert "ok" in steps[-1]["output"].splitlines()
    seen = json.loads(steps[len(forth)]["output"].splitlines()[0])
    assert [(user, name) for user, name, *_ in seen["sessions"]] == [("ann", "ann.ipynb"), ("bob", "bob.ipynb")]  # fmt: skip
    said = next(one["output"] for one in steps if "gpushare install --hub" in one["step"])
    assert not re.search(r"\bsudo\b", said)
