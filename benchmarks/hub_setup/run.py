"""From a clean machine to two hub users who share: the admin guide's commands as they are written, and how long they took. See README.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, NotMeasured, Options, main, progress
from benchmarks.hub_setup import guide

QUESTION = "The admin guide, word for word on a clean machine: is a step missing, and how long does it take until two users share?"
MOST = 600.0


def measure(options: Options) -> Sequence[Figure]:  # noqa: ARG001  there is no shorter way
    """Run the guide once; after its steps two users' servers are started and share, and then it is taken back."""
    missing = guide.missing()
    if missing:
        msg = f"this benchmark makes a machine of its own: it needs {', '.join(missing)}"
        raise SystemExit(msg)
    steps = guide.run()
    for one in steps:
        progress(f"{one['seconds']:6.1f} s  {one['step'].splitlines()[0]}")
    failed = [one for one in steps if one["status"]]
    if failed:
        msg = f"a step failed: {failed[0]['step']}\n{failed[0]['output']}"
        raise NotMeasured(msg)
    shared = next(n for n, one in enumerate(steps) if one["step"].endswith("share.py"))
    seen = json.loads(steps[shared]["output"].splitlines()[0])
    return (
        Figure(
            "clean_to_sharing",
            "s",
            [sum(one["seconds"] for one in steps[: shared + 1])],
            at_most=MOST,
        ),
        Figure("steps", "blocks", [shared]),
        Figure(
            "install_hub",
            "s",
            [one["seconds"] for one in steps if "gpushare install --hub" in one["step"]],
        ),
        Figure("share_of_one", "%", [seen["share_of_ann"]]),
    )


if __name__ == "__main__":
    sys.exit(main("hub_setup", QUESTION, measure))
