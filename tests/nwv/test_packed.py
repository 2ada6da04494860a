"""The bundle as data: sizes, checks, one file. N2, N5."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from gpushare_kernel.nwv import BadBundle, Packed, pack
from gpushare_kernel.nwv.code import code_of
from gpushare_kernel.nwv.packed import table_type
from tests.nwv.small import mlp, unpack


def bundle(bits: int | None = None, dtype: torch.dtype = torch.float32) -> Packed:
    """Return a bundle of two."""
    models = {"a/b": mlp(8, 40, 40, 3).to(dtype), "c": nn.Sequential(mlp(6, 32, 16), nn.BatchNorm1d(16)).to(dtype)}  # fmt: skip
    return pack(models, pages=40, page_size=64, bits=bits).packed


@pytest.mark.parametrize(("bits", "dtype"), [(None, torch.float32), (None, torch.bfloat16), (8, torch.float16), (4, torch.float32)])  # fmt: skip
def test_a_file_has_all_of_it(tmp_path: Path, bits: int | None, dtype: torch.dtype) -> None:
    """What is read is what was written; models come out alike."""
    made = bundle(bits, dtype)
    place = made.save(tmp_path / "bundle.safetensors")
    read = Packed.load(place)
    assert read.members == dict(made.members)
    assert read.sizes() == made.sizes()
    for name in made.members:
        for key, one in unpack(made, name).items():
            assert torch.equal(unpack(read, name)[key], one)
    assert [one.name for one in tmp_path.iterdir()] == ["bundle.safetensors"]


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_every_byte_is_counted(bits: int | None) -> None:
    """N5: the sum of all its tensors, and the parts are what they say."""
    made = bundle(bits)
    tensors = [made.pages, *made.tables.values(), *(one for kept in made.private.values() for one in kept.values())]  # fmt: skip
    tensors += [] if made.scales is None else [made.scales]
    assert made.sizes().total == sum(one.numel() * one.element_size() for one in tensors)
    assert made.sizes(scratch=100).total == made.sizes().total + 100
    assert made.sizes().pages == len(made.pages) * 64 * (bits or 32) // 8


@pytest.mark.parametrize(("pages", "dtype"), [(1, torch.uint8), (256, torch.uint8), (257, torch.uint16), (65536, torch.uint16), (65537, torch.uint32)])  # fmt: skip
def test_a_table_is_as_small_as_it_can_be(pages: int, dtype: torch.dtype) -> None:
    """Numbers up to pages - 1."""
    assert table_type(pages) == dtype


def test_contradictions_are_found() -> None:
    """N2 and its like, each with the model."""
    made = bundle()
    table = made.tables["c"].clone()
    twice = table.clone()
    twice[0] = twice[1]
    for broken, said in [
        (replace(made, tables={**made.tables, "c": twice}), "model c: its table names one page twice"),
        (replace(made, pages=made.pages[:3]), "and there are 3"),
        (replace(made, tables={**made.tables, "c": table[:-1]}), "need a table of"),
        (replace(made, tables={"c": table}), "each model has a table"),
        (replace(made, bits=8), "8-bit pages cannot be torch.float32"),
        (replace(made, page_size=32), "have 32 columns"),
    ]:  # fmt: skip
        with pytest.raises(BadBundle, match=said):
            broken.check()


def test_files_that_are_no_bundles_are_refused(tmp_path: Path) -> None:
    """Another file, another version, half a file."""
    place = bundle().save(tmp_path / "bundle")
    data = place.read_bytes()
    for content, said in [
        (b"hello", "cannot be read as a bundle"),
        (data[: len(data) // 2], "cannot be read as a bundle"),
        (data.replace(b'version\\":1', b'version\\":9'), "is a bundle of version 9"),
    ]:
        place.write_bytes(content)
        with pytest.raises(BadBundle, match=said):
            Packed.load(place)
    with pytest.raises(BadBundle, match="cannot be read"):
        Packed.load(tmp_path / "none")


@pytest.mark.parametrize("bits", [None, 8])
def test_one_bit_that_fell_over_is_told(tmp_path: Path, bits: int | None) -> None:
    """Anywhere in the tensors, or in what is said beside them: another weight was loaded in silence."""
    place = bundle(bits).save(tmp_path / "bundle")
    data = place.read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    at = [*range(head, len(data), 997), len(data) - 1, data.index(b'scale\\":') + 8]
    for number in at:
        flipped = bytearray(data)
        flipped[number] ^= 1
        place.write_bytes(flipped)
        with pytest.raises(BadBundle, match=r"is damaged: its content is not what was saved .checksum.*Copy it again"):  # fmt: skip
            Packed.load(place)
    place.write_bytes(data)
    assert Packed.load(place).page_size == 64


class Twice(nn.Module):
    """A module of our own."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by, self.inner = by, nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Double."""
        found: torch.Tensor = self.by * self.inner(x)
        return found


def test_code_is_told_by_what_it_does() -> None:
    """Not by weights or mode; by settings, forms and methods."""
    one, same = Twice(2.0), Twice(2.0).eval()
    assert code_of(one) == code_of(same)
    assert code_of(one) != code_of(Twice(3.0))
    assert code_of(nn.Conv2d(1, 1, 3)) != code_of(nn.Conv2d(1, 1, 3, padding=1))
    changed = type("Twice", (Twice,), {"forward": lambda self, x: x})
    assert code_of(one) != code_of(changed(2.0))


def test_importing_gpushare_imports_no_torch() -> None:
    """The room is loaded when somebody asks for it."""
    code = "import sys, gpushare_kernel; gpushare_kernel.nwv; assert not {'torch', 'scipy', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
