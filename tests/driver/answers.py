"""Calls whose answer is always the same, and calls that are others by another name. Tables; read by driver.py.

A constant answer is a list of (argument that points at the result, value, bytes).
"""

from __future__ import annotations

import os

VERSION = 13090  # newer than any NVRTC: else cuda.core warns that its PTX is too new
CAPABILITY = os.environ.get("PTX_CAPABILITY", "9.0").split(".")
MULTIPROCESSORS = int(os.environ.get("PTX_MULTIPROCESSORS", "2"))
DEVICES = int(os.environ.get("PTX_DEVICES", "2"))  # at most 16
CONTEXT, POOL = 0x50, 0x60  # handles of the first device's; the others' follow

# CUdevice_attribute: what is asked for; the others are 0.
ATTRIBUTES = {
    **{1: 1024, 2: 1024, 3: 1024, 4: 64},  # threads a block, along each axis
    **{5: 2**31 - 1, 6: 65535, 7: 65535},  # blocks of a grid along each axis
    **{8: 49152, 81: 233472, 97: 232448, 111: 1024},  # shared memory
    **{
        9: 65536,
        12: 65536,
        82: 65536,
        39: 2048,
        106: 32,
    },  # constant memory, registers, threads and blocks in residence
    **{10: 32, 11: 2**31 - 1, 13: 1_500_000, 14: 512, 15: 1, 16: MULTIPROCESSORS},
    **{19: 1, 31: 1, 40: 3, 41: 1, 78: 1, 83: 1, 89: 1, 95: 1, 115: 1},  # maps host memory, managed memory, pools, ...
    **{75: int(CAPABILITY[0]), 76: int(CAPABILITY[1])},
}

Constant = tuple[tuple[int, int, int], ...]
CONSTANTS: dict[str, Constant] = {
    "cuDriverGetVersion": ((0, VERSION, 4),),
    "cuDeviceGetCount": ((0, DEVICES, 4),),
    "cuDeviceCanAccessPeer": ((0, 0, 4),),
    "cuDevicePrimaryCtxGetState": ((1, 0, 4), (2, 1, 4)),
    "cuMemPoolGetAttribute": ((2, 0, 8),),
    "cuCtxGetApiVersion": ((1, 3020, 4),),
    "cuCtxGetStreamPriorityRange": ((0, 0, 4), (1, 0, 4)),
    "cuMemHostGetFlags": ((0, 0, 4),),
    "cuStreamGetPriority": ((1, 0, 4),),
    "cuEventElapsedTime": ((0, 0, 4),),
    "cuModuleGetLoadingMode": ((0, 2, 4),),
    "cuKernelGetLibrary": ((0, 0, 8),),
    "cuOccupancyMaxActiveBlocksPerMultiprocessor": ((0, 8, 4),),
    "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags": ((0, 8, 4),),
    **dict.fromkeys(("cuInit", "cuDevicePrimaryCtxRelease", "cuDevicePrimaryCtxSetFlags", "cuMemPoolSetAttribute"), ()),
    "cuGraphUpload": (),
    **dict.fromkeys(
        ("cuFuncSetAttribute", "cuKernelSetAttribute", "cuFuncSetCacheConfig", "cuKernelSetCacheConfig"), ()
    ),
    "cudaGetLastError": (),
    "cudaDriverGetVersion": ((0, VERSION, 4),),
    "cudaRuntimeGetVersion": ((0, VERSION, 4),),
}

# A call that takes the same arguments as another and does the same.
ALIASES = {
    "cuMemAllocAsync": "cuMemAlloc",
    "cuMemAllocFromPoolAsync": "cuMemAlloc",
    "cuMemAllocHost": "cuMemHostAlloc",
    "cuMemcpyDtoH": "cuMemcpyHtoD",
    "cuMemcpy": "cuMemcpyHtoD",
    "cuMemcpyDtoHAsync": "cuMemcpyHtoDAsync",
    "cuMemcpyDtoDAsync": "cuMemcpyHtoDAsync",
    "cuMemcpyAsync": "cuMemcpyHtoDAsync",
    "cuStreamCreateWithPriority": "cuStreamCreate",
    "cuGraphInstantiateWithFlags": "cuGraphInstantiate",
    "cuGraphExecDestroy": "cuGraphDestroy",
    "cuModuleLoadDataEx": "cuModuleLoadData",
    "cuLibraryUnload": "cuModuleUnload",
    "cuLibraryGetModule": "cuKernelGetFunction",
    "cuLibraryGetGlobal": "cuModuleGetGlobal",
    "cuLibraryGetKernel": "cuModuleGetFunction",
    "cuKernelGetAttribute": "cuFuncGetAttribute",
    "cuKernelGetParamInfo": "cuFuncGetParamInfo",
    "cuGetErrorName": "cuGetErrorString",
    "cuDeviceSynchronize": "cuCtxSynchronize",
    "cuDeviceGetMemPool": "cuDeviceGetDefaultMemPool",
    # The runtime API that CuPy's arrays, streams, events, pools and graphs call, by the driver's.
    "cudaGetDevice": "cuCtxGetDevice",
    "cudaGetDeviceCount": "cuDeviceGetCount",
    "cudaDeviceCanAccessPeer": "cuDeviceCanAccessPeer",
    "cudaMalloc": "cuMemAlloc",
    "cudaMallocAsync": "cuMemAlloc",
    "cudaFree": "cuMemFree",
    "cudaFreeAsync": "cuMemFreeAsync",
    "cudaHostAlloc": "cuMemHostAlloc",
    "cudaFreeHost": "cuMemFreeHost",
    "cudaMemcpy": "cuMemcpyHtoD",
    "cudaMemset": "cuMemsetD8",
    "cudaMemsetAsync": "cuMemsetD8Async",
    "cudaStreamCreateWithFlags": "cuStreamCreate",
    "cudaStreamCreateWithPriority": "cuStreamCreate",
    "cudaEventCreateWithFlags": "cuEventCreate",
}
SAME_IN_BOTH = [
    *("MemGetInfo", "DeviceGetAttribute", "DeviceSynchronize"),
    *("StreamDestroy", "StreamSynchronize", "StreamQuery", "StreamWaitEvent"),
    *("StreamIsCapturing", "StreamBeginCapture", "StreamEndCapture"),
    *("GraphInstantiate", "GraphLaunch", "GraphUpload", "GraphDestroy", "GraphExecDestroy"),
    *("EventCreate", "EventDestroy", "EventRecord", "EventQuery", "EventSynchronize"),
]
ALIASES |= {f"cuda{name}": f"cu{name}" for name in SAME_IN_BOTH}

# Calls whose versions take other arguments, of which one is known by its whole name.
OTHER_VERSIONS = ("cuStreamGetCaptureInfo_v2",)

# What waits for the device, and so may not be called while a stream is captured.
WAITS = {
    *("cuCtxSynchronize", "cuStreamSynchronize", "cuEventSynchronize", "cuStreamQuery", "cuEventQuery"),
    *("cuMemcpyHtoD", "cuMemsetD8", "cuMemFree", "cuMemFreeHost"),
}

# What may only be called then by a thread that has relaxed its capture mode.
ALLOCATES = {"cuMemAlloc", "cuMemHostAlloc"}

# What finalizers call: at any time, so also from within another call.
RELEASES = {
    *("cuMemFree", "cuMemFreeAsync", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy"),
    *("cuModuleUnload", "cuLinkDestroy", "cuGraphDestroy"),
}


def real_name(name: str) -> str:
    """The call that does the work: without its version, and not an alias."""
    for suffix in ("_v2", "_v3", "_ptsz", "_ptds"):
        name = name if name in OTHER_VERSIONS else name.removesuffix(suffix)
    while name in ALIASES:
        name = ALIASES[name]
    return name
