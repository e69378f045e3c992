"""The driver of tests/driver by itself: small kernels, compiled here and interpreted, whose results are known beforehand.

What lanes of a warp do together, and instructions that no kernel of the library has. Neither a GPU nor CuPy is needed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from cuda.bindings import nvrtc
from cuda.core import ProgramOptions
from numba import cuda, types
from numpy.typing import NDArray

from driver import launch
from driver.memory import Fault, Memory
from driver.module import Kernel, load
from gpuopt.compiler.nvrtc import OPTIONS
from test_numba_cuda import ptx

pytestmark = pytest.mark.once
Array = NDArray[Any]
SEEDS = (None, 1, 2)
ALL = "0xffffffffu"
INDEX = "int i = blockIdx.x * blockDim.x + threadIdx.x; unsigned lane = threadIdx.x & 31;"


@cache
def compiled(parameters: str, body: str, arch: str = "sm_90") -> Kernel:
    """The kernel `k` with this body, by NVRTC with the flags of the library, as PTX (cuda.core gives that only with a driver)."""
    source = f'extern "C" __global__ void k({parameters}) {{ {INDEX} {body} }}'.encode()
    flags = ProgramOptions(arch=arch, **OPTIONS).as_bytes("nvrtc")
    status, program = nvrtc.nvrtcCreateProgram(source, b"k.cu", 0, [], [])
    assert not int(status)
    (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
    log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
    nvrtc.nvrtcGetProgramLog(program, log)
    assert not int(status), log.decode()
    text = b" " * nvrtc.nvrtcGetPTXSize(program)[1]
    nvrtc.nvrtcGetPTX(program, text)
    return load(text.rstrip(b"\0").decode())["k"]


def run(kernel: Kernel, *arrays: Array, block: int = 32, grid: int = 1, seed: int | None = None) -> list[Array]:
    """The arrays as the kernel leaves them, which it is given by address, or number by number where Numba made it."""
    memory = Memory(1 << 20)
    spans = []
    arguments: list[bytes] = []
    for array in arrays:
        address = memory.allocate(array.nbytes)
        spans.append(memory.span(address, array.nbytes, True, "test"))
        spans[-1][:] = array.view(np.uint8)
        words = (0, 0, array.size, array.itemsize, address, array.size, array.itemsize)
        by_numba = len(kernel.params) > len(arrays)
        arguments += [np.uint64(word).tobytes() for word in (words if by_numba else (address,))]
    launch.run(kernel, memory, grid, block, arguments, seed)
    return [span.view(array.dtype).copy() for span, array in zip(spans, arrays, strict=True)]


def butterfly(x: Array, function: Any) -> Array:
    """Each lane's result, in the order in which the lanes of a warp exchange theirs."""
    lanes = x.reshape(-1, 32)
    for mask in (16, 8, 4, 2, 1):
        lanes = function(lanes, lanes[:, np.arange(32) ^ mask])
    return np.asarray(lanes.reshape(-1))


SUMS = f"""
    float v = x[i]; unsigned w = u[i];
    for (unsigned k = 0; k < late[i]; ++k) v = __fadd_rn(v, x[i]);  // the lanes of a warp come at different times
    for (int m = 16; m; m >>= 1) {{
      v = __fadd_rn(v, __shfl_xor_sync({ALL}, v, m));
      w = max(w, __shfl_xor_sync({ALL}, w, m));
    }}
    __syncwarp();
    x[i] = v; u[i] = w;
"""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_120"])
def test_a_warp_sums_and_finds_its_largest(arch: str, seed: int | None) -> None:
    rng = np.random.default_rng(0)
    x, u = rng.standard_normal(384).astype(np.float32), rng.integers(0, 1 << 32, 384, np.uint32)
    late = rng.integers(0, 4, 384, np.uint32)
    kernel = compiled("float* x, unsigned* u, const unsigned* late", SUMS, arch)
    found = run(kernel, x, u, late, block=128, grid=3, seed=seed)
    begin = x.copy()
    for k in range(3):
        begin = np.where(late > k, begin + x, begin)
    assert found[0].tobytes() == butterfly(begin, np.add).tobytes()
    assert found[1].tobytes() == butterfly(u, np.maximum).tobytes()


@pytest.mark.parametrize("seed", SEEDS)
def test_numba_exchanges_numbers_in_the_same_way(seed: int | None) -> None:
    def kernel(x: Any) -> None:
        i = cuda.grid(1)
        value, mask = x[i], 16
        while mask:
            value = value + cuda.shfl_xor_sync(0xFFFFFFFF, value, mask)
            mask >>= 1
        cuda.syncwarp()
        x[i] = value

    (made,) = load(ptx(kernel, (types.float32[::1],)), foreign=True).values()
    x = np.random.default_rng(1).standard_normal(128).astype(np.float32)
    assert run(made, x, block=64, grid=2, seed=seed)[0].tobytes() == butterfly(x, np.add).tobytes()


@pytest.mark.parametrize("seed", SEEDS)
def test_warps_may_part_but_not_their_lanes(seed: int | None) -> None:
    """One warp exchanges numbers in a loop, the other elsewhere, and both meet at the barrier."""
    body = f"""
        unsigned v = u[i];
        if (threadIdx.x < 32) for (unsigned k = 0; k < u[64]; ++k) v += __shfl_sync({ALL}, v, k);
        else v ^= __shfl_down_sync({ALL}, v, 3);
        __syncthreads();
        out[i] = v;
    """
    u = np.random.default_rng(2).integers(0, 1 << 32, 65, np.uint32)
    u[64] = 5
    one, other = u[:32].copy(), u[32:64]
    for k in range(5):
        one += one[k]
    expected = [*one, *(other ^ np.array([*other[3:], *other[29:]]))]
    kernel = compiled("const unsigned* u, unsigned* out", body)
    assert run(kernel, u, np.zeros(64, np.uint32), block=64, seed=seed)[1].tolist() == expected


def source(mode: str, lane: int, by: int, width: int) -> int:
    """Whose value __shfl_*_sync gives a lane, by the CUDA programming guide."""
    begin = lane // width * width
    at = {"": begin + by % width, "_up": lane - by, "_down": lane + by, "_xor": lane ^ by}[mode]
    inside = at >= begin if mode == "_up" else at < begin + width
    return at if inside else lane


@pytest.mark.parametrize("mode", ["", "_up", "_down", "_xor"])
def test_parts_of_a_warp(mode: str) -> None:
    for width, by in ((32, 1), (32, 21), (16, 5), (8, 3), (8, 9), (2, 1)):
        kernel = compiled("unsigned* u", f"u[i] = __shfl{mode}_sync({ALL}, u[i], {by}, {width});")
        found = run(kernel, np.arange(64, dtype=np.uint32), block=64)[0]
        assert found.tolist() == [lane // 32 * 32 + source(mode, lane % 32, by, width) for lane in range(64)]


def test_the_predicate_tells_whether_there_was_such_a_lane() -> None:
    body = """asm volatile(".reg .pred %%p99; shfl.sync.down.b32 %0|%%p99, %2, 9, 31, -1; selp.u32 %1, 1, 0, %%p99;"
                : "=r"(u[i]), "=r"(p[i]) : "r"(u[i]));"""
    u, p = run(compiled("unsigned* u, unsigned* p", body), np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32))
    assert u.tolist() == [lane + 9 if lane < 23 else lane for lane in range(32)]
    assert p.tolist() == [int(lane < 23) for lane in range(32)]


XOR = f"u[i] = __shfl_xor_sync({ALL}, u[i], 1);"
STUCK = {
    "half have ended": (f"if (lane < 16) {XOR}", 64, 0, "16 are there, 16 have ended"),
    "one is at the barrier": (
        f"if (i != 40) {XOR} __syncthreads();",
        64,
        1,
        "31 are there, 1 wait at a barrier of the block",
    ),
    "two shuffles": (
        f"if (u[i] & 1) {XOR} else u[i] = 7 * __shfl_down_sync({ALL}, u[i] + 3, 2);",
        32,
        0,
        "16 are there, 16 wait at another such instruction",
    ),
    "a part of a warp": (XOR, 48, 1, "16 are there, 16 do not exist"),
    "__syncwarp": ("if (lane) __syncwarp(); u[i] = 1;", 32, 0, "31 are there, 1 have ended"),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", STUCK)
def test_lanes_that_wait_for_ever_are_a_fault(name: str, seed: int | None) -> None:
    body, block, warp, lanes = STUCK[name]
    said = f"^k: warp {warp} of block 0 waits at `(shfl|bar.warp).sync.*` for ever: of 32 lanes {lanes}$"
    with pytest.raises(Fault, match=said):
        run(compiled("unsigned* u", body), np.arange(64, dtype=np.uint32), block=block, seed=seed)


def test_a_part_of_a_warp_by_its_mask_is_not_known() -> None:
    kernel = compiled("unsigned* u", "u[i] = __shfl_xor_sync(0xffff, u[i], 1);")
    with pytest.raises(NotImplementedError, match="0xffff"):
        run(kernel, np.arange(32, dtype=np.uint32))


def test_which_lanes_go_on_together() -> None:
    body = 'unsigned l; asm("mov.u32 %0, %%laneid;" : "=r"(l)); if (u[i] < 5) u[i] = __activemask(); else u[i] = l;'
    found = run(compiled("unsigned* u", body), np.arange(40, dtype=np.uint32), block=40)[0]
    assert found.tolist() == [31] * 5 + [*range(5, 32), *range(8)]


NAN = 0x7FFFFFFF
PAIRS = {  # bits of a and b: what max, min, max.NaN and min.NaN give
    (0x3F800000, 0xC0000000): (0x3F800000, 0xC0000000, 0x3F800000, 0xC0000000),
    (0x00000000, 0x80000000): (0x00000000, 0x80000000, 0x00000000, 0x80000000),
    (0x00000001, 0x80000001): (0x00000001, 0x80000001, 0x00000001, 0x80000001),
    (0x7F800000, 0x3F800000): (0x7F800000, 0x3F800000, 0x7F800000, 0x3F800000),
    (0xFFC00001, 0x3F800000): (0x3F800000, 0x3F800000, NAN, NAN),
    (0x7F800001, 0xFF800000): (0xFF800000, 0xFF800000, NAN, NAN),
    (0xFFC00001, 0x80000000): (0x80000000, 0x80000000, NAN, NAN),
    (0xFFC00001, 0x7FC00000): (NAN, NAN, NAN, NAN),
    (0x80000000, 0x80000000): (0x80000000, 0x80000000, 0x80000000, 0x80000000),
}


@pytest.mark.parametrize(("k", "name"), [*enumerate(("max", "min", "max.NaN", "min.NaN"))])
def test_the_larger_and_the_smaller(k: int, name: str) -> None:
    kernel = compiled("float* a, const float* b", f'asm("{name}.f32 %0, %0, %1;" : "+f"(a[i]) : "f"(b[i]));')
    one, other = np.array([*PAIRS], np.uint32).T.copy()
    expected = [given[k] for given in PAIRS.values()]
    for a, b in ((one, other), (other, one)):
        assert run(kernel, a, b, block=len(PAIRS))[0].tolist() == expected


def test_numbers_are_rounded_to_whole_ones_and_chosen_by_sign() -> None:
    x = np.array([-2.5, -0.4, 0.5, 1.5, 2.7], np.float32)
    for name, function in (("rintf", np.rint), ("floorf", np.floor), ("ceilf", np.ceil), ("truncf", np.trunc)):
        found = run(compiled("float* x", f"x[i] = {name}(x[i]);"), x, block=5)[0]
        assert found.tobytes() == function(x).tobytes()
    whole = run(compiled("float* x", "x[i] = __uint_as_float(__float2uint_rn(x[i]));"), x, block=5)[0]
    assert whole.view(np.uint32).tolist() == [0, 0, 0, 2, 3]
    body = 'asm("slct.u32.{0} %0, 1, 2, %1;" : "=r"(u[i]) : "{1}"(x[i]));'
    for kind, letter, given in (("f32", "f", x), ("s32", "r", x.view(np.int32))):
        made = compiled(f"unsigned* u, {'float' if letter == 'f' else 'int'}* x", body.format(kind, letter))
        assert run(made, np.zeros(5, np.uint32), given, block=5)[0].tolist() == [2, 2, 1, 1, 1]
