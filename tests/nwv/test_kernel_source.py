"""The gather's CUDA source, compiled as C++ and run thread by thread: which weight goes where needs no GPU to be seen."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from gpushare_kernel.nwv import gather_cuda
from gpushare_kernel.nwv.gather import Norm, Pages, TorchGather
from gpushare_kernel.nwv.layout import laid_out
from tests.nwv.bundles import Net, made

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

SHIM = """
#include <cstring>
#include <algorithm>
using std::min;
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(x)
struct dim { unsigned x; };
static dim blockIdx, threadIdx;
static float __uint_as_float(unsigned v) { float f; memcpy(&f, &v, 4); return f; }
static unsigned __float_as_uint(float v) { unsigned f; memcpy(&f, &v, 4); return f; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
"""
RUN = """
extern "C" void run(unsigned blocks, const page_t* pages, const unsigned short* scales, const INDEX* table, char* memory,
        const unsigned* firsts, const unsigned* counts, const unsigned long long* offsets, const unsigned* ends, int parameters,
        float shift, float scale) {
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < THREADS; threadIdx.x++)
            gather(pages, scales, table, memory, firsts, counts, offsets, ends, parameters, shift, scale);
}
"""
PTX = {
    'asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));': "{ _Float16 h; memcpy(&h, &bits, 2); value = (float)h; }",
    'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));': "{ _Float16 h = (_Float16)value; memcpy(&bits, &h, 2); }",
}  # fmt: skip


def compiled(folder: Path, defined: dict[str, object]) -> Any:
    """The kernel as a function that runs all its threads, one after the other."""
    source = gather_cuda.SOURCE
    for ptx, plain in PTX.items():
        assert ptx in source
        source = source.replace(ptx, plain)
    head = "".join(f"#define {name} {value}\n" for name, value in defined.items())
    (folder / "gather.cpp").write_text(SHIM + head + source + RUN)
    subprocess.run(["g++", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w", "-o", folder / "gather.so", folder / "gather.cpp"], check=True)  # fmt: skip
    return ctypes.CDLL(str(folder / "gather.so"))


@pytest.mark.parametrize(
    ("page_size", "bits", "pages", "dtype", "normal"),
    [
        (24, 32, torch.float32, torch.float32, True),
        (100, 32, torch.float32, torch.float32, False),
        (2, 32, torch.float32, torch.bfloat16, True),
        (24, 16, torch.float16, torch.float16, False),
        (100, 16, torch.float16, torch.float32, True),
        (24, 16, torch.bfloat16, torch.bfloat16, True),
        (24, 8, None, torch.float32, True),
        (100, 4, None, torch.float32, False),
        (2, 4, None, torch.float16, True),
    ],
)
def test_the_kernel_writes_what_torch_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_size: int, bits: int, pages: torch.dtype | None, dtype: torch.dtype, normal: bool) -> None:  # noqa: PLR0917  # fmt: skip
    """B1: bit by bit; parameters that begin and end anywhere in a page, and one of several blocks."""

    def kernel(page: str, out: str, index: str, size: int, *, plain: bool, norm: bool) -> Any:
        folder = tmp_path / "-".join((page, out, index.replace(" ", "")))
        folder.mkdir(exist_ok=True)
        return compiled(folder, gather_cuda.constants(page, out, index, size, plain=plain, norm=norm))  # fmt: skip

    monkeypatch.setattr(gather_cuda, "_kernel", kernel)
    models = {"a": Net(5, 7, dtype), "b": torch.nn.Linear(301, 67, dtype=dtype)}
    one = made(models, page_size=page_size, bits=bits, dtype=pages, normal=normal).packed
    shelf = Pages(one.pages, one.scales, one.page_size, one.bits)
    for name, member in one.members.items():
        layout, norm, table = laid_out(member.pieces), Norm(member.shift, member.scale), one.tables[name]  # fmt: skip
        expected = torch.zeros(layout.size, dtype=torch.uint8)
        TorchGather(shelf, table, norm, layout)(expected)
        room = torch.zeros(layout.size + 256, dtype=torch.uint8)
        start = -room.data_ptr() % 256
        found = room[start : start + layout.size]
        (launch,) = gather_cuda.KernelGather(shelf, table, norm, layout)._launches
        scales = 0 if one.scales is None else one.scales.data_ptr()
        pointers = [one.pages.data_ptr(), scales, table.data_ptr(), found.data_ptr(), *map(int, launch.lists)]  # fmt: skip
        launch.kernel.run(launch.blocks, *map(ctypes.c_void_p, pointers), launch.parameters, ctypes.c_float(norm.shift), ctypes.c_float(norm.scale))  # fmt: skip
        assert torch.equal(found, expected)
    assert launch.blocks > launch.parameters
