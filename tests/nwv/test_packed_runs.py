"""What packing wrote is what the runtime reads: the same weights, bit by bit, from memory and from a file."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from gpushare_kernel import nwv
from tests.nwv.bundles import nets
from tests.nwv.small import unpack


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("mode", ["switch", "layers"])
def test_packed_models_run(bits: int | None, mode: str, tmp_path: Path) -> None:
    """Three nets of different sizes, merged without training."""
    models = nets(3)
    packed = nwv.pack(models, ratio=1.4, bits=bits, progress=False).packed
    loaded = nwv.Packed.load(packed.save(tmp_path / "bundle.safetensors"))
    bundle = nwv.Bundle(loaded, models, device="cpu", mode=mode)
    x = torch.randn(2, 1, 8, 8)
    for name, model in models.items():
        plain = copy.deepcopy(model)
        plain.load_state_dict(unpack(packed, name))
        with torch.no_grad():
            assert torch.equal(bundle[name](x), plain(x))
