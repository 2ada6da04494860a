"""DART (Xiang and Kim, RTSS 2019): deadlines that are proven at admission and held at run time, beside best effort.

Pure, and importing core values only: `model`, `taskset`, `configurations`, `allocation`, `response`, `analysis`, `simulation`.
"""
