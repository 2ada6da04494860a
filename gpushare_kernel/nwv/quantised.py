"""Pages in few bits: one scale a page, codes symmetric about zero.

Training sees what will be stored: `stored` rounds on the way forward and lets gradients through (straight-through estimator,
Bengio et al. 2013), so nothing is lost between the last step and the file.
"""

from __future__ import annotations

import torch

LEVELS = {8: 127, 4: 7}
"""The largest code by bits. -8 in 4 bits is not used: codes are symmetric."""


def encode(values: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and (N,) float16 scales of (N, P) values; codes as `Packed.pages` has them (`gather.Pages` reads them back)."""
    codes, scales = _codes(values, bits)
    whole = codes.to(torch.int8)
    if bits == 4:  # noqa: PLR2004
        raised = (whole + 8).to(torch.uint8)
        whole = raised[:, 0::2] | (raised[:, 1::2] << 4)
    return whole, scales


def stored(values: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """Return (N, P) values as they will be read back; gradients pass as if nothing was rounded."""
    with torch.no_grad():
        if bits in LEVELS:
            codes, scales = _codes(values, bits)
            rounded = codes * scales.to(torch.float32)[:, None]
        else:
            rounded = values.to(dtype).to(torch.float32)
    return values + (rounded - values).detach() if values.requires_grad else rounded


def _codes(values: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    most = LEVELS[bits]
    scales = (values.detach().abs().amax(dim=1) / most).to(torch.float16)
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))  # a page of zeros
    codes = (values.detach() / scales.to(torch.float32)[:, None]).round().clamp(-most, most)
    return codes, scales
