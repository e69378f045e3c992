"""What a generated text for Numba CUDA calls: loads, stores, random bits, arithmetic, and what lanes do together, as intrinsics.

Bound to the names of the text by the backend numba-cuda; the simulator of the tests has another such class. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpuopt.compiler import numba_gpu


class IntrinsicMemory:
    """The loads, stores and arithmetic that a generated text calls, as LLVM intrinsics."""

    def __init__(self, compute: str) -> None:
        from numba.cuda.extending import intrinsic

        self.compute, self.intrinsic = compute, intrinsic

    def load(self, storage: str, scope: int = 0, scopes: int = 1, compute: str | None = None) -> Callable[..., Any]:
        from gpuopt.compiler import numba_ir

        return numba_ir.load(self.intrinsic, storage, compute or self.compute, scope, scopes, space=1)

    def store(self, storage: str, scope: int = 0, scopes: int = 1, compute: str | None = None) -> Callable[..., Any]:
        from gpuopt.compiler import numba_ir

        return numba_ir.store(self.intrinsic, storage, compute or self.compute, scope, scopes, 1)

    def load_pack(self, storage: str, count: int) -> Callable[..., Any]:
        from gpuopt.compiler import numba_packs

        return numba_packs.load_pack(self.intrinsic, storage, self.compute, count)

    def store_pack(self, storage: str, count: int) -> Callable[..., Any]:
        from gpuopt.compiler import numba_packs

        return numba_packs.store_pack(self.intrinsic, storage, self.compute, count)

    def random(self, bits: int) -> dict[str, Any]:
        from gpuopt.compiler import numba_random

        return {"philox": numba_random.philox(self.intrinsic, bits), "chosen": numba_random.chosen(self.intrinsic)}

    def meet(self) -> Callable[..., Any]:
        """A barrier of the warp."""
        cuda = numba_gpu.numba_cuda()

        def meet() -> None:
            cuda.syncwarp()

        made: Callable[..., Any] = self.device()(meet)
        return made

    def exchange(self) -> Callable[..., Any]:
        """What the lane of that number, but for the bits of a mask, has."""
        cuda = numba_gpu.numba_cuda()

        def exchange(x: Any, mask: Any) -> Any:
            return cuda.shfl_xor_sync(0xFFFFFFFF, x, mask)

        made: Callable[..., Any] = self.device()(exchange)
        return made

    def device(self) -> Callable[..., Any]:
        """Makes a function one of the device, which is put into the place of each call."""
        made: Callable[..., Any] = numba_gpu.numba_cuda().jit(device=True, forceinline=True)
        return made

    def quotient(self) -> Callable[..., Any]:
        from gpuopt.compiler import numba_arithmetic

        return numba_arithmetic.quotient(self.intrinsic)

    def double_bits(self) -> Callable[..., Any]:
        from gpuopt.compiler import numba_arithmetic

        return numba_arithmetic.double_bits(self.intrinsic)

    def power_of_two(self) -> Callable[..., Any]:
        from gpuopt.compiler import numba_arithmetic

        return numba_arithmetic.power_of_two(self.intrinsic)

    def arithmetic(self) -> dict[str, Any]:
        from gpuopt.compiler import numba_arithmetic

        return numba_arithmetic.arithmetic(self.intrinsic, "cuda") | {
            "ipow": numba_arithmetic.integer_power(self.intrinsic)
        }
