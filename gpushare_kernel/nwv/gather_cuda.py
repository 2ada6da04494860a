"""The gather as one kernel of ours (CuPy, NVRTC): reads pages and table once, writes the weights once.

A block writes `CHUNK` weights of one parameter, 16 bytes a thread and turn. Which parameter is found in a short list of
where each one's blocks end. Page size and types are constants of the compiled kernel, so a division is a multiplication.
Halves are turned by hand (PTX, bit shifts): no header is included, whatever CUDA there is to compile against.

Products and sums are rounded one by one, as torch does on a CPU: the same bits come out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gpushare_kernel.nwv.gather import Norm, Pages
from gpushare_kernel.nwv.layout import Layout, Place

CHUNK = 8192
"""Weights a block writes."""
THREADS = 256
_MOST = 2**31 - CHUNK
"""Weights of one model that the kernel counts; larger ones are torch's."""
_PAGE = {
    torch.float32: "FLOAT",
    torch.float16: "HALF",
    torch.bfloat16: "BFLOAT",
    torch.int8: "INT8",
    torch.uint8: "INT4",
}
_OUT = {torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BFLOAT"}
_INDEX = {
    torch.uint8: "unsigned char",
    torch.uint16: "unsigned short",
    torch.int32: "int",
    torch.uint32: "unsigned int",
    torch.int64: "long long",
}

SOURCE = r"""
#define FLOAT 0
#define HALF 1
#define BFLOAT 2
#define INT8 3
#define INT4 4

#if PAGE == FLOAT
typedef float page_t;
#elif PAGE == INT8
typedef signed char page_t;
#elif PAGE == INT4
typedef unsigned char page_t;
#else
typedef unsigned short page_t;
#endif
#if OUT == FLOAT
typedef float out_t;
#define WIDE 4
#else
typedef unsigned short out_t;
#define WIDE 8
#endif

__device__ __forceinline__ float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ float page_to_float(page_t value) {
#if PAGE == HALF
    return half_to_float(value);
#elif PAGE == BFLOAT
    return __uint_as_float(((unsigned int)value) << 16);
#else
    return (float)value;
#endif
}

__device__ __forceinline__ out_t float_to_out(float value) {
#if OUT == FLOAT
    return value;
#elif OUT == HALF
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    unsigned int bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (unsigned short)((bits >> 16) | 0x40);  // stays not a number
    return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

__device__ __forceinline__ out_t weight(page_t raw, float page_scale, float shift, float scale) {
#if PLAIN
    return (out_t)raw;
#else
    float value = page_to_float(raw);
#if PAGE == INT8 || PAGE == INT4
    value = __fmul_rn(value, page_scale);
#endif
#if NORM
    value = __fadd_rn(__fmul_rn(value, scale), shift);
#endif
    return float_to_out(value);
#endif
}

struct alignas(sizeof(page_t) * WIDE) Read { page_t values[WIDE]; };
struct alignas(16) Written { out_t values[WIDE]; };

extern "C" __global__ void __launch_bounds__(THREADS) gather(
        const page_t* __restrict__ pages, const unsigned short* __restrict__ scales, const INDEX* __restrict__ table,
        char* __restrict__ memory, const unsigned int* __restrict__ firsts, const unsigned int* __restrict__ counts,
        const unsigned long long* __restrict__ offsets, const unsigned int* __restrict__ ends, int parameters,
        float shift, float scale) {
    int low = 0, high = parameters - 1;
    while (low < high) {  // the first whose blocks end behind this one
        int middle = (low + high) / 2;
        if (ends[middle] > blockIdx.x) high = middle; else low = middle + 1;
    }
    unsigned int before = low ? ends[low - 1] : 0;
    unsigned int begin = (blockIdx.x - before) * CHUNK;
    unsigned int count = min(counts[low] - begin, (unsigned int)CHUNK);
    unsigned int first = firsts[low] + begin;
    out_t* out = (out_t*)(memory + offsets[low]) + begin;
#pragma unroll 2
    for (unsigned int at = threadIdx.x * WIDE; at < count; at += THREADS * WIDE) {
        unsigned int place = (first + at) / PAGE_SIZE, within = (first + at) % PAGE_SIZE;
        if (at + WIDE <= count && within + WIDE <= PAGE_SIZE) {
            unsigned long long page = (unsigned long long)table[place];
            float page_scale = 1.0f;
#if PAGE == INT8 || PAGE == INT4
            page_scale = half_to_float(scales[page]);
#endif
            Written done;
#if PAGE == INT4
            const unsigned char* source = pages + page * (PAGE_SIZE / 2);
#pragma unroll
            for (int k = 0; k < WIDE; k++) {
                unsigned int nibble = source[(within + k) >> 1] >> (((within + k) & 1) * 4);
                float value = __fmul_rn((float)((int)(nibble & 15u) - 8), page_scale);
#if NORM
                value = __fadd_rn(__fmul_rn(value, scale), shift);
#endif
                done.values[k] = float_to_out(value);
            }
#else
            const page_t* source = pages + page * PAGE_SIZE + within;
            Read read;
            if (((unsigned long long)source & (sizeof(Read) - 1)) == 0) {
                read = *(const Read*)source;
            } else {
#pragma unroll
                for (int k = 0; k < WIDE; k++) read.values[k] = source[k];
            }
#pragma unroll
            for (int k = 0; k < WIDE; k++) done.values[k] = weight(read.values[k], page_scale, shift, scale);
#endif
            *(Written*)(out + at) = done;
        } else {
            for (unsigned int k = at; k < count && k < at + WIDE; k++) {  // over the edge of a page, or the end
                unsigned int one = first + k;
                unsigned long long page = (unsigned long long)table[one / PAGE_SIZE];
                unsigned int w = one % PAGE_SIZE;
                float page_scale = 1.0f;
#if PAGE == INT8 || PAGE == INT4
                page_scale = half_to_float(scales[page]);
#endif
#if PAGE == INT4
                unsigned int nibble = pages[page * (PAGE_SIZE / 2) + (w >> 1)] >> ((w & 1) * 4);
                float value = __fmul_rn((float)((int)(nibble & 15u) - 8), page_scale);
#if NORM
                value = __fadd_rn(__fmul_rn(value, scale), shift);
#endif
                out[k] = float_to_out(value);
#else
                out[k] = weight(pages[page * PAGE_SIZE + w], page_scale, shift, scale);
#endif
            }
        }
    }
}
"""


def available(layout: Layout) -> bool:
    """Tell whether the kernel can do it: CuPy is there, and a model is not larger than it counts."""
    return _cupy() is not None and all(one.first + one.count < _MOST for one in layout.places)


@functools.cache
def _cupy() -> Any:
    try:
        import cupy  # noqa: PLC0415  an extra
    except ImportError:
        return None
    return cupy


class _Theirs:
    """A stream of torch's as CuPy takes it since 14."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


def _stream(handle: int, device: int) -> Any:
    stream = _cupy().cuda.Stream
    if hasattr(stream, "from_external"):
        return stream.from_external(_Theirs(handle))
    return _cupy().cuda.ExternalStream(handle, device)


@functools.cache
def _kernel(page: str, out: str, index: str, page_size: int, *, plain: bool, norm: bool) -> Any:
    defined = constants(page, out, index, page_size, plain=plain, norm=norm)
    head = "".join(f"#define {name} {value}\n" for name, value in defined.items())
    return _cupy().RawKernel(head + SOURCE, "gather", options=("--std=c++14",))


def constants(
    page: str, out: str, index: str, page_size: int, *, plain: bool, norm: bool
) -> dict[str, object]:
    """Return what `SOURCE` is compiled for. `plain`: weights are what is in the pages; `norm`: they are shifted and scaled."""
    return {
        "PAGE": page,
        "OUT": out,
        "INDEX": index,
        "PAGE_SIZE": f"{page_size}u",
        "PLAIN": int(plain),
        "NORM": int(norm),
        "CHUNK": f"{CHUNK}u",
        "THREADS": f"{THREADS}u",
    }


class KernelGather:
    """One launch for each type of weights in the layout: nearly always one."""

    def __init__(self, pages: Pages, table: torch.Tensor, norm: Norm, layout: Layout) -> None:
        self._pages, self._table = pages, table
        self._shift, self._scale = np.float32(norm.shift), np.float32(norm.scale)
        kinds = dict.fromkeys(place.dtype for place in layout.places)
        self._launches = [
            _Launch(pages, table, norm, dtype, [p for p in layout.places if p.dtype == dtype and p.count])
            for dtype in kinds
        ]  # fmt: skip

    @property
    def size(self) -> int:
        """Bytes of the lists of parameters on the device."""
        return sum(launch.size for launch in self._launches)

    def __call__(self, memory: torch.Tensor) -> None:
        """Write them, on torch's current stream."""
        pages, scales = self._pages.pages, self._pages.scales
        device = pages.device.index or 0
        stream = torch.cuda.current_stream(pages.device).cuda_stream
        with _cupy().cuda.Device(device), _stream(stream, device):
            for launch in self._launches:
                if launch.blocks:
                    launch.kernel(
                        (launch.blocks,),
                        (THREADS,),
                        (
                            _pointer(pages),
                            np.uint64(0) if scales is None else _pointer(scales),
                            _pointer(self._table),
                            _pointer(memory),
                            *launch.lists,
                            np.int32(launch.parameters),
                            self._shift,
                            self._scale,
                        ),
                    )


class _Launch:
    """The parameters of one type."""

    def __init__(
        self, pages: Pages, table: torch.Tensor, norm: Norm, dtype: torch.dtype, places: Sequence[Place]
    ) -> None:  # fmt: skip
        blocks = np.cumsum([-(-place.count // CHUNK) for place in places], dtype=np.uint32)
        self.parameters = len(places)
        self.blocks = int(blocks[-1]) if places else 0
        lists = (
            np.array([place.offset for place in places], np.uint64),
            np.array([place.first for place in places], np.uint32),
            np.array([place.count for place in places], np.uint32),
            blocks,
        )
        # One piece of memory, as bytes: torch moves it, and nobody but the kernel reads it.
        joined = np.frombuffer(b"".join(one.tobytes() for one in lists) or bytes(1), np.uint8)
        self._lists = torch.from_numpy(joined.copy()).to(pages.device)
        begin = self._lists.data_ptr()
        offsets, firsts, counts, ends = (begin + n * self.parameters for n in (0, 8, 12, 16))
        self.lists = [np.uint64(one) for one in (firsts, counts, offsets, ends)]
        self.kernel = _kernel(
            _PAGE[pages.pages.dtype],
            _OUT[dtype],
            _INDEX[table.dtype],
            pages.page_size,
            plain=norm.none and pages.pages.dtype == dtype,
            norm=not norm.none,
        )

    @property
    def size(self) -> int:
        """Bytes of its lists."""
        return self._lists.nbytes


def _pointer(tensor: torch.Tensor) -> np.uint64:
    return np.uint64(tensor.data_ptr())
