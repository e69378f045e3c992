"""The calls about code: modules, kernels, the linker, launches."""

from __future__ import annotations

import ctypes
import re
from functools import cache

from driver import launch, module
from driver.answers import DEVICES
from driver.memory import Fault
from driver.transfers import Transfers
from driver.words import INVALID_VALUE, NOT_FOUND, Words, get, low, put, text

THREADS_A_BLOCK, SHARED_BYTES, REGISTERS, PTX_VERSION, BINARY_VERSION = 0, 1, 4, 5, 6  # CUfunction_attribute
FOREIGN = re.compile(r"\.entry\s+(cupy_|spin)")  # kernels of CuPy's own and of tests


class Module:
    """The kernels of one module. device: where it was loaded; None for a library, which is for all of them."""

    def __init__(self, kernels: dict[str, module.Kernel], device: int | None) -> None:
        self.kernels, self.device = kernels, device


class Function:
    """A kernel of a module."""

    def __init__(self, kernel: module.Kernel, device: int | None) -> None:
        self.kernel, self.device = kernel, device


class Linker:
    """The PTX it was given; the "cubin" it gives is the same text."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.result: ctypes.Array[ctypes.c_char] | None = None


@cache
def kernels(source: str) -> dict[str, module.Kernel]:
    """The kernels of a text, parsed once: they have no state of their own."""
    return module.load(source, foreign=bool(FOREIGN.search(source)))


class Code(Transfers):
    """seed: of the order in which threads go on, None for those furthest behind first; launches: (kernel, blocks, threads)."""

    def __init__(self) -> None:
        super().__init__()
        self.seed: int | None = None
        self.launches: list[tuple[str, int, int]] = []

    # ---- modules

    def loaded(self, a: Words, device: int | None) -> None:
        source = ctypes.string_at(a[1])
        if b".version" not in source[:4000]:
            raise Fault("a module that is no PTX (does nvJitLink take the place of the driver's linker?)")
        put(a[0], self.new(Module(kernels(source.decode()), device)))

    def cuModuleLoadData(self, a: Words) -> None:
        self.loaded(a, self.device)

    def cuLibraryLoadData(self, a: Words) -> None:
        self.loaded(a, None)

    def cuModuleUnload(self, a: Words) -> None:
        for device in range(DEVICES):
            self.everything(device)
        del self.objects[a[0]]

    def cuModuleGetGlobal(self, a: Words) -> int:
        return NOT_FOUND

    def cuModuleGetFunction(self, a: Words) -> int | None:
        found = self.known(Module, a[1])
        kernel = found.kernels.get(text(a[2]))
        if kernel is None:
            return NOT_FOUND
        put(a[0], self.new(Function(kernel, found.device)))
        return None

    def cuKernelGetFunction(self, a: Words) -> None:
        put(a[0], a[1])

    def cuFuncGetAttribute(self, a: Words) -> None:
        kernel = self.known(Function, a[2]).kernel
        values = {THREADS_A_BLOCK: kernel.threads, SHARED_BYTES: kernel.shared_bytes}
        values |= {REGISTERS: 32, PTX_VERSION: 90, BINARY_VERSION: 90}
        put(a[0], values.get(low(a[1]), 0), 4)

    def cuFuncGetParamInfo(self, a: Words) -> int | None:
        params = list(self.known(Function, a[0]).kernel.params.values())
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
        found, queue = self.known(Function, function), self.stream(stream)
        kernel = found.kernel
        grid, block = shape[0], shape[3]
        if [*shape[1:3], *shape[4:]] != [1, 1, 1, 1, 0] or extra or not grid or not block:
            raise Fault(f"{kernel.name}: launched with {shape}, extra {extra:#x}")
        sizes = [size for _, size in kernel.params.values()]
        data = [ctypes.string_at(get(parameters + 8 * k), size) for k, size in enumerate(sizes)]
        self.launches.append((kernel.name, grid, block))
        if not queue.device == self.device == (self.device if found.device is None else found.device):
            at = f"on device {self.device} in a stream of device {queue.device}"
            raise Fault(f"{kernel.name}: a kernel of device {found.device} is launched {at}")
        memory = self.memories[queue.device]
        self.enqueue(queue, lambda: launch.run(kernel, memory, grid, block, data, self.seed))

    def cuLaunchKernel(self, a: Words) -> None:
        self.launch(a[0], [low(word) for word in a[1:8]], a[8], a[9], a[10])

    def cuLaunchKernelEx(self, a: Words) -> None:
        self.launch(a[1], [get(a[0] + 4 * k, 4) for k in range(7)], get(a[0] + 32), a[2], a[3])
