"""CUDA C++ text -> cubin, with NVRTC through cuda.core and fixed flags; works without a GPU. Called by the cupy backend.

No flush to zero, no contraction of a*b+c, IEEE division and square root: a GPU gives the bits a CPU gives. (CuPy's own
compile step always appends -ftz=true, so it is not used.)
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

from gpuopt import driver
from gpuopt.compiler import cache
from gpuopt.errors import CompileError
from gpuopt.messages import install, one_line

OPTIONS = {"std": "c++17", "ftz": False, "prec_div": True, "prec_sqrt": True, "fma": False}


def missing() -> str | None:
    """None where cuda.core and NVRTC import and compile for this driver, else what is wrong and what mends it."""
    try:
        version()
    except Exception as error:
        return f"NVRTC through cuda.core does not import ({one_line(error)}); {install(driver.extra())}"
    return too_new("NVRTC")


def too_new(what: str) -> str | None:
    """None unless `what` compiles with an NVRTC of a later CUDA than the driver can load."""
    try:
        cuda, _, _ = version().partition(".")
    except Exception:  # not there: Numba has ways to compile of its own
        return None
    return driver.too_old_for(int(cuda), f"{what}, with NVRTC {version()},")


@lru_cache(maxsize=1)
def version() -> str:
    """NVRTC's version."""
    from cuda.bindings import nvrtc

    status, major, minor = nvrtc.nvrtcVersion()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"NVRTC does not answer: {status}")
    return f"{major}.{minor}"


@lru_cache(maxsize=1)
def newest() -> int:
    """The newest architecture that this NVRTC knows, such as 120."""
    from cuda.bindings import nvrtc

    status, count = nvrtc.nvrtcGetNumSupportedArchs()
    if status == nvrtc.nvrtcResult.NVRTC_SUCCESS:
        status, known = nvrtc.nvrtcGetSupportedArchs()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"NVRTC does not say which architectures it knows: {status}")
    return int(max(known[:count]))


_importing = threading.Lock()  # two threads that import cuda.core at once can meet it half made


def _program_types() -> tuple[Any, Any]:
    with _importing:
        try:
            from cuda.core import Program, ProgramOptions
        except ImportError:
            from cuda.core.experimental import Program, ProgramOptions  # cuda-core before 0.5
    return Program, ProgramOptions


def compile_cubin(source: str, arch: str) -> bytes:
    """The machine code of a translation unit for an architecture such as "sm_90", from the disk cache if it is there; PTX of the
    newest that NVRTC knows, which the driver translates, for a later one.

    Raises CompileError with the compiler's log.
    """
    import gpuopt

    later = int(arch.removeprefix("sm_")) > newest()
    arch = f"sm_{newest()}" if later else arch
    options = [f"{name}={value}" for name, value in sorted(OPTIONS.items())]
    form = "ptx" if later else "cubin"
    name = cache.key(source, *options, arch, form, version(), gpuopt.__version__)
    found = cache.read(name)
    if found is not None:
        return found
    program_type, options_type = _program_types()
    try:
        program = program_type(source, "c++", options=options_type(arch=arch, **OPTIONS))
        code = bytes(program.compile(form).code) + b"\0" * later  # the driver reads text up to a zero
    except Exception as error:
        raise CompileError(f"NVRTC {version()} could not compile this kernel for {arch}:\n{error}") from error
    cache.write(name, code)
    return code
