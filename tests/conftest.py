"""How Hypothesis looks for examples: the same ones in every run, so that a change is judged and not luck.

With GPUSHARE_EXAMPLES it explores at random, that many for each state machine, and makes what fails as short as it can,
which takes minutes: `GPUSHARE_EXAMPLES=2000 pytest -o faulthandler_timeout=0 tests/core`.
"""

from __future__ import annotations

import os

from hypothesis import Phase, settings

# Tests signal themselves with the signals blocked: a thread of a library that has them open would take them, and end us.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
settings.register_profile(
    "same", derandomize=True, print_blob=True, phases=(Phase.explicit, Phase.generate)
)
settings.register_profile("explore", derandomize=False, print_blob=True)
settings.load_profile("explore" if "GPUSHARE_EXAMPLES" in os.environ else "same")
