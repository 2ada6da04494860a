"""How Hypothesis looks for examples: the same ones in every run, so that a change is judged and not luck.

With GPUSHARE_EXAMPLES it explores at random, that many for each state machine: `GPUSHARE_EXAMPLES=2000 pytest tests/core`.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, print_blob=True)
settings.register_profile("explore", derandomize=False, print_blob=True)
settings.load_profile("explore" if "GPUSHARE_EXAMPLES" in os.environ else "same")
