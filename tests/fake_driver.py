"""A stand-in for the CUDA driver's C library: two devices of a given CUDA version, or an error when it starts."""

from __future__ import annotations

import ctypes

from gpuopt import info


class FakeDriver:
    """What `ctypes.CDLL("libcuda.so.1")` would answer; every call gives 0, success, unless `error` is given for cuInit."""

    capability = ((7, 5), (10, 0))

    def __init__(self, version: int = 13010, error: int = 0) -> None:
        self.version, self.error = version, error

    def cuInit(self, flags: int) -> int:
        return self.error

    def cuDriverGetVersion(self, version: object) -> int:
        return write(version, ctypes.c_int(self.version))

    def cuDeviceGetCount(self, count: object) -> int:
        return write(count, ctypes.c_int(2))

    def cuDeviceGet(self, device: object, index: int) -> int:
        return write(device, ctypes.c_int(index))

    def cuDeviceGetName(self, name: ctypes.Array[ctypes.c_char], length: int, device: ctypes.c_int) -> int:
        name.value = f"Device {device.value}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory: object, device: ctypes.c_int) -> int:
        return write(memory, ctypes.c_size_t(80 << 30))

    def cuDeviceGetAttribute(self, value: object, attribute: int, device: ctypes.c_int) -> int:
        which = (info.COMPUTE_CAPABILITY_MAJOR, info.COMPUTE_CAPABILITY_MINOR).index(attribute)
        return write(value, ctypes.c_int(self.capability[device.value][which]))


def write(reference: object, value: object) -> int:
    reference._obj.value = value.value  # type: ignore[attr-defined]
    return 0
