"""CuPy's own wheel on the driver without a GPU: `folder()` is where to import it from, made once with pip and a compiler.

CuPy's wheel holds NVIDIA's runtime library in one module, cupy_backends.cuda.api.runtime, and that library refuses every
driver that is not NVIDIA's. So that module alone is built anew, from CuPy's sdist of the same version, on entry points that
hand their calls to the driver. All the rest is the wheel as users install it.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

CUPY, CYTHON, CUDA = "14.2.0", "3.2.4", 13020  # the wheel says which Cython and which CUDA made it
TOOLS = (f"cython=={CYTHON}", "setuptools", "nvidia-cuda-crt>=13,<14", "nvidia-cuda-runtime>=13,<14")
MODULE = "cupy_backends/cuda/api/runtime"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpuopt-stand-in"
STUBS = r"""
#include <dlfcn.h>
#include <stdint.h>
typedef uint64_t W;
static int call(const char* name, W* words) {
  static int (*to)(const char*, W*);
  if (!to) to = dlsym(dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD), "stand_in_call");
  return to(name, words);
}
#define ENTRY(name) \
  int name(W a, W b, W c, W d, W e, W f, W g, W h) { W words[12] = {a, b, c, d, e, f, g, h}; return call(#name, words); }
const char* cudaGetErrorName(int code) {
  return code == 600 ? "cudaErrorNotReady" : code == 2 ? "cudaErrorMemoryAllocation" : "cudaErrorUnknown";
}
const char* cudaGetErrorString(int code) { return "see the FAULT printed above"; }
"""
PROFILER = """#pragma once
#include "driver_types.h"
extern "C" { cudaError_t cudaProfilerStart(void); cudaError_t cudaProfilerStop(void); }
"""
CYTHONIZE = """
from setuptools import Extension
from Cython.Build import cythonize
directives = dict(linetrace=False, profile=False, embedsignature=True, c_api_binop_methods=True, binding=False)
environment = dict(CUPY_USE_CUDA_PYTHON=False, CUPY_CUFFT_STATIC=False, CUPY_CYTHON_VERSION={cython!r},
                   CUPY_CUDA_VERSION={version}, CUPY_HIP_VERSION=0)
cythonize([Extension({name!r}, [{path!r}], language="c++")], language_level=3,
          compiler_directives=directives, compile_time_env=environment)
"""


def folder() -> Path:
    """The folder that holds the packages of CuPy for this Python; made if it is not there, by one process at a time."""
    made = CACHE / f"cupy-{CUPY}-{sys.implementation.cache_tag}-3"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="making-") as work:
                make(Path(work)).rename(made)
    return made


def run(command: list[str], cwd: Path, **environment: str) -> None:
    """A step of making it. Raises RuntimeError with what it printed."""
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:]
        raise RuntimeError(f"CuPy for the stand-in: `{' '.join(command[:6])} ...` failed in {cwd}:\n{said}")


def pip(work: Path, *words: str) -> None:
    run([sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *words], work)


def make(work: Path) -> Path:
    """The packages, in a folder inside `work`."""
    packages, tools = work / "packages", work / "tools"
    pip(work, "download", "--no-deps", "--only-binary", ":all:", "-d", str(work), f"cupy-cuda13x=={CUPY}")
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        wheel.extractall(packages)
    pip(work, "install", "--no-deps", "--target", str(tools), *TOOLS)
    source = unpacked(work, tools)
    script = CYTHONIZE.format(cython=CYTHON, version=CUDA, name=MODULE.replace("/", "."), path=f"{MODULE}.pyx")
    run([sys.executable, "-c", script], source, PYTHONPATH=str(tools))
    declared = (source / MODULE).with_name("_runtime_extern.pxi").read_text()
    names = sorted(set(re.findall(r"\b(cuda[A-Z]\w+)\(", declared)) - {"cudaGetErrorName", "cudaGetErrorString"})
    (work / "stubs.c").write_text(STUBS + "".join(f"ENTRY({n})\n" for n in names))
    (work / "cuda_profiler_api.h").write_text(PROFILER)
    (built,) = (packages / MODULE).parent.glob("runtime.*.so")
    headers = [sysconfig.get_paths()["include"], work, *tools.glob("nvidia/*/include")]
    flags = ["-O1", "-w", "-fPIC"]
    run([os.environ.get("CC", "cc"), *flags, "-c", "stubs.c"], work)
    compiler = [os.environ.get("CXX", "c++"), *flags, "-shared", "-Wl,-Bsymbolic", *(f"-I{h}" for h in headers)]
    run([*compiler, str((source / MODULE).with_suffix(".cpp")), "stubs.o", "-o", str(built)], work)
    return packages


def unpacked(work: Path, tools: Path) -> Path:
    """CuPy's sdist. pip unpacks it, then fails to find a CUDA toolkit; what it unpacked is all that is wanted."""
    words = ["download", "--no-clean", "--no-deps", "--no-build-isolation", "--no-binary", "cupy", "-d", str(work)]
    environment = os.environ | {"TMPDIR": str(work), "PYTHONPATH": str(tools)}
    command = [sys.executable, "-m", "pip", *words, f"cupy=={CUPY}"]
    done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True)
    found = next(work.glob("pip-download-*/cupy_*"), None)
    if found is None:
        raise RuntimeError(f"CuPy for the stand-in: pip did not unpack the sdist:\n{done.stderr[-2000:]}")
    return found
