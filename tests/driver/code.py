"""The calls about code: modules, kernels, the linker, launches."""

from __future__ import annotations

import ctypes
import re
from functools import cache

from driver import launch, module
from driver.memory import Fault
from driver.transfers import Transfers
from driver.words import INVALID_VALUE, NOT_FOUND, Words, get, low, put, text

THREADS_A_BLOCK, SHARED_BYTES, REGISTERS, PTX_VERSION, BINARY_VERSION = 0, 1, 4, 5, 6  # CUfunction_attribute
FOREIGN = re.compile(r"\.entry\s+(cupy_|spin)")  # kernels of CuPy's own and of tests


class Module:
    """The kernels of one module."""

    def __init__(self, kernels: dict[str, module.Kernel]) -> None:
        self.kernels = kernels


class Linker:
    """The PTX it was given; the "cubin" it gives is the same text."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.result: ctypes.Array[ctypes.c_char] | None = None


@cache
def loaded(source: str) -> Module:
    """The module of a text, parsed once: a kernel has no state of its own."""
    return Module(module.load(source, foreign=bool(FOREIGN.search(source))))


class Code(Transfers):
    """seed: of the order in which threads go on, None for those furthest behind first; launches: (kernel, blocks, threads)."""

    def __init__(self) -> None:
        super().__init__()
        self.seed: int | None = None
        self.launches: list[tuple[str, int, int]] = []

    # ---- modules

    def cuModuleLoadData(self, a: Words) -> None:
        source = ctypes.string_at(a[1])
        if b".version" not in source[:4000]:
            raise Fault("a module that is no PTX (does nvJitLink take the place of the driver's linker?)")
        put(a[0], self.new(loaded(source.decode())))

    def cuModuleUnload(self, a: Words) -> None:
        self.everything()
        del self.objects[a[0]]

    def cuModuleGetGlobal(self, a: Words) -> int:
        return NOT_FOUND

    def cuModuleGetFunction(self, a: Words) -> int | None:
        kernel = self.known(Module, a[1]).kernels.get(text(a[2]))
        if kernel is None:
            return NOT_FOUND
        put(a[0], self.new(kernel))
        return None

    def cuKernelGetFunction(self, a: Words) -> None:
        put(a[0], a[1])

    def cuFuncGetAttribute(self, a: Words) -> None:
        kernel = self.known(module.Kernel, a[2])
        values = {THREADS_A_BLOCK: kernel.threads, SHARED_BYTES: kernel.shared_bytes}
        values |= {REGISTERS: 32, PTX_VERSION: 90, BINARY_VERSION: 90}
        put(a[0], values.get(low(a[1]), 0), 4)

    def cuFuncGetParamInfo(self, a: Words) -> int | None:
        params = list(self.known(module.Kernel, a[0]).params.values())
        if a[1] >= len(params):
            return INVALID_VALUE
        for at, value in zip(a[2:4], params[a[1]], strict=True):
            if at:
                put(at, value)
        return None

    # ---- the linker

    def cuLinkCreate(self, a: Words) -> None:
        put(a[3], self.new(Linker()))

    def cuLinkAddData(self, a: Words) -> None:
        self.known(Linker, a[0]).parts.append(ctypes.string_at(a[2], a[3]))

    def cuLinkComplete(self, a: Words) -> None:
        linker = self.known(Linker, a[0])
        if len(linker.parts) != 1:
            raise Fault(f"{len(linker.parts)} modules linked")
        linker.result = ctypes.create_string_buffer(linker.parts[0])
        put(a[1], ctypes.addressof(linker.result))
        put(a[2], len(linker.result))

    def cuLinkDestroy(self, a: Words) -> None:
        del self.objects[a[0]]

    # ---- launches

    def launch(self, function: int, shape: list[int], stream: int, parameters: int, extra: int) -> None:
        """shape: blocks along three axes, threads along three axes, bytes of dynamic shared memory."""
        kernel = self.known(module.Kernel, function)
        grid, block = shape[0], shape[3]
        if [*shape[1:3], *shape[4:]] != [1, 1, 1, 1, 0] or extra or not grid or not block:
            raise Fault(f"{kernel.name}: launched with {shape}, extra {extra:#x}")
        sizes = [size for _, size in kernel.params.values()]
        data = [ctypes.string_at(get(parameters + 8 * k), size) for k, size in enumerate(sizes)]
        self.launches.append((kernel.name, grid, block))
        self.enqueue(self.stream(stream), lambda: launch.run(kernel, self.memory, grid, block, data, self.seed))

    def cuLaunchKernel(self, a: Words) -> None:
        self.launch(a[0], [low(word) for word in a[1:8]], a[8], a[9], a[10])

    def cuLaunchKernelEx(self, a: Words) -> None:
        self.launch(a[1], [get(a[0] + 4 * k, 4) for k in range(7)], get(a[0] + 32), a[2], a[3])
