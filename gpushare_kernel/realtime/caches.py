"""Empties the caches before a layer that is measured: between two of its runs, other models' layers were there.

A layer that runs again and again finds its weights in the cache. Among others it does not, and takes over twice as long
(measured here: a convolution of 0.5 ms 1.3, a matrix of 0.8 ms 1.6): only that is a worst case. A cache that is larger than
`MOST` is not emptied as a whole: the layers that run in between do not touch so much (300 MiB are 50 ms a layer).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

MOST = 64 * 1024 * 1024
"""Bytes that are written at most to empty a cache."""
_USUAL = 32 * 1024 * 1024
"""Bytes of a processor's last cache, where the system does not say."""
_SIZES = {"K": 1 << 10, "M": 1 << 20}


def emptier(device: str) -> Callable[[], None]:
    """Return what pushes everything else out of the caches of this process's cores, and of `device` where that is a GPU."""
    size = min(MOST, last_level_cache())
    there, back = memoryview(bytearray(size)), memoryview(bytearray(size))

    def empty() -> None:
        there[:] = back

    if device == "cpu":
        return empty
    import torch  # noqa: PLC0415  there where the device is

    words = 2 * torch.cuda.get_device_properties(device).L2_cache_size // 4
    filled = torch.empty(words, dtype=torch.int32, device=device)

    def empty_both() -> None:
        empty()
        filled.zero_()
        torch.cuda.synchronize()

    return empty_both


def last_level_cache(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the bytes of a processor's last cache, as the system says."""
    sizes = [_size(path.read_text(encoding="utf-8").strip()) for path in folder.glob("index*/size")]
    return max(sizes, default=_USUAL)


def _size(text: str) -> int:
    return int(text[:-1]) * _SIZES[text[-1]] if text[-1:] in _SIZES else int(text)
