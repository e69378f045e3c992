"""Generated Python text as compiled C functions for the CPU, from the disk cache where they are there. Used by `backends.numba`.

What is cached is machine code and nothing else, under a key that holds the text, what its names stand for, the versions of Numba,
llvmlite and gpuopt, and the processor; no pickle. Numba's own cache is not used: it unpickles what it finds.
"""

from __future__ import annotations

import ctypes
import linecache
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpuopt.compiler import cache as disk
from gpuopt.compiler import conversions, to_numba_sums, walks
from gpuopt.compiler.parts import Layout, Pass, PerMatrix, PerTensor
from gpuopt.compiler.program import Program

KIND = "object"  # of entries of the disk cache
_alive: list[Any] = []  # compiled functions, whose addresses are in use


@cache
def namespace(compute: str) -> dict[str, Any]:
    """The names that generated text calls, for one compute type, compiled for the CPU."""
    from numba.extending import intrinsic

    from gpuopt.compiler import numba_arithmetic, numba_ir

    return numba_arithmetic.arithmetic(intrinsic, "cpu") | {
        "prefetch": numba_ir.prefetch(intrinsic),
        "C": np.dtype(compute).type,
        "np": np,
        "int64": np.int64,
        "quotient": numba_arithmetic.quotient(intrinsic),
        "load_word": numba_ir.load(intrinsic, "int64", compute, 0, 1),
        "load_scalar": numba_ir.load(intrinsic, compute, compute, 0, 1),
        "store_scalar": numba_ir.store(intrinsic, compute, compute, 0, 1),
        "store_sum": numba_ir.store(intrinsic, "float64", "float64", 0, 1),
        "load_double": numba_ir.load(intrinsic, "float64", "float64", 0, 1),
        "store_double": numba_ir.store(intrinsic, "float64", "float64", 0, 1),
    }


@cache
def walk_address(program: Program) -> int:
    """The compiled walk of a program."""
    roles, blocked = program.roles, program.blocked
    # Of memory that is apart: one for each role, one for random bits, and three in a walk over blocks.
    scopes = len(roles) + len(blocked) + 4

    def names() -> dict[str, Any]:
        from numba.extending import intrinsic

        from gpuopt.compiler import numba_ir, numba_random

        values = dict(namespace(program.compute))
        for k, role in enumerate(roles):
            access = (intrinsic, role.storage, program.compute, k, scopes)
            values[f"load_{k}"] = numba_ir.load(*access)
            if role.written:
                values[f"store_{k}"] = numba_ir.store(*access)
        own = len(roles) + len(blocked)
        for k, role in enumerate(blocked):
            access = (intrinsic, role.storage, program.compute, len(roles) + k, scopes)
            values |= {f"load_block_{k}": numba_ir.load(*access), f"store_block_{k}": numba_ir.store(*access)}
        for k, (name, kind) in enumerate({"kept": "float32", "term": "int32", "nibble": "uint32"}.items(), own + 1):
            access = (intrinsic, kind, program.compute, k, scopes)
            values |= {f"load_{name}": numba_ir.load(*access), f"store_{name}": numba_ir.store(*access)}
        bits = (intrinsic, f"uint{program.bits}", program.compute, own, scopes)
        values |= {"load_bits": numba_ir.load(*bits), "store_bits": numba_ir.store(*bits)}
        values |= {"store_words": numba_ir.store(intrinsic, "uint32", program.compute, own, scopes)}
        values |= {"philox": numba_random.philox(intrinsic), "chosen": numba_random.chosen(intrinsic)}
        return values | {"philox_parts": numba_random.philox(intrinsic, program.bits)}

    meaning = (program.compute, [(r.storage, r.written) for r in (*roles, *blocked)], len(roles))
    return address_of(walks.on_cpu(program), "walk", names, repr(meaning), 8)


@cache
def reduce_address(layout: Layout, cut: Pass) -> int:
    """The compiled pass that sums."""

    def names() -> dict[str, Any]:
        from numba.extending import intrinsic

        from gpuopt.compiler import numba_ir

        of = {k: (intrinsic, layout.roles[k].storage, layout.compute, k, len(layout.roles)) for k in cut.reads}
        found = {f"load_{k}": numba_ir.load(*access) for k, access in of.items()}
        found |= {f"store_{k}": numba_ir.store(*of[k]) for k in cut.writes}
        found |= {
            f"load_block_{k}": numba_ir.load(intrinsic, r.storage, layout.compute, 0, 1)
            for k, (_, r) in enumerate(layout.blocked)
        }
        return namespace(layout.compute) | found

    meaning = repr(
        (layout.compute, [layout.roles[k].storage for k in cut.reads], [r.storage for _, r in layout.blocked])
    )
    if cut.along:
        return address_of(to_numba_sums.reduce_along_source(layout, cut), "reduce_along", names, meaning, 8)
    return address_of(to_numba_sums.reduce_source(layout, cut), "reduce", names, meaning, 9)


@cache
def per_matrix_address(made: PerMatrix) -> int:
    """What is done once a matrix, compiled."""
    source = to_numba_sums.per_matrix_source(made)
    return address_of(source, "per_matrix", lambda: namespace(made.compute), repr(made.compute), 8)


@cache
def per_tensor_address(made: PerTensor) -> int:
    """What is done once a tensor, compiled."""
    source = to_numba_sums.per_tensor_source(made)
    return address_of(source, "per_tensor", lambda: doubles(made.compute), repr(made.compute), 9)


@cache
def doubles(compute: str) -> dict[str, Any]:
    """The names that float64 text calls, which rounds to a compute type at its end."""
    from numba.extending import intrinsic

    from gpuopt.compiler import numba_ir

    scalar = {
        "load_scalar": numba_ir.load(intrinsic, compute, compute, 0, 1),
        "store_scalar": numba_ir.store(intrinsic, compute, compute, 0, 1),
    }
    return namespace("float64") | scalar | {"C": np.dtype(compute).type, "D": np.float64}


@cache
def driver_address(before: int, after: int) -> int:
    """`drive(function, *before, bounds, ranges, *after)`: calls the C function `function(*before, lo, hi, *after)` for each range,
    on all threads.
    """

    def names() -> dict[str, Any]:
        from numba import prange
        from numba.extending import intrinsic

        from gpuopt.compiler import numba_ir

        call = numba_ir.caller(intrinsic, before + 2 + after)
        return {"prange": prange, "call": call, "load_word": numba_ir.load(intrinsic, "int64", "float64", 0, 1)}

    first, last = ([f"{side}{k}" for k in range(count)] for side, count in (("a", before), ("b", after)))
    called = ["function", *first, "load_word(bounds, k)", "load_word(bounds, k + 1)", *last]
    source = (
        f"def drive({', '.join(['function', *first, 'bounds', 'ranges', *last])}):\n"
        f"    for k in prange(ranges):\n        call({', '.join(called)})\n"
    )
    return address_of(source, "drive", names, repr((before, after)), 3 + before + after, parallel=True)


def address_of(
    source: str, name: str, names: Callable[[], dict[str, Any]], meaning: str, arguments: int, parallel: bool = False
) -> int:
    """The address of the compiled C function `name(int64 x arguments)` of a text. meaning: what tells its names from others;
    parallel: whether its `prange` is on all threads.
    """
    if parallel:
        from numba import get_num_threads

        get_num_threads()  # starts the threads, which the code asks for by name
    entry = disk.key(source, name, meaning, *_versions())
    found = disk.read(entry, KIND)
    address = None if found is None else _loaded(found)
    if address is None:
        made = _compiled(source, name, names(), arguments, parallel)
        disk.write(entry, _dumped(made), KIND)
        address = made.address
    return int(address)


def _compiled(source: str, name: str, values: dict[str, Any], arguments: int, parallel: bool) -> Any:
    """The text as a C function; it stays visible in tracebacks."""
    filename = f"<gpuopt {name} {hash(source):x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    scope = dict(values)
    exec(compile(source, filename, "exec"), scope)
    return as_c(scope[name], arguments, parallel=parallel)


def as_c(function: Callable[..., None], arguments: int, **options: Any) -> Any:
    """The C function `function(int64 x arguments)`, compiled; it lives as long as the process."""
    from numba import cfunc, types

    signature = types.void(*[types.int64] * arguments)
    made = cfunc(signature, error_model="numpy", nogil=True, **options)(function)
    _alive.append(made)
    return made


def c_function(function: Callable[..., None], arguments: int) -> int:
    """Its address."""
    address: int = as_c(function, arguments).address
    return address


def as_python(address: int, arguments: int, held: bool) -> Callable[..., None]:
    """A C function of as many whole numbers, to be called from Python. held: whether Python's lock is kept meanwhile."""
    kind = ctypes.PYFUNCTYPE if held else ctypes.CFUNCTYPE
    return kind(None, *[ctypes.c_int64] * arguments)(address)


# ---------------------------------------------------------------------------------------------------- machine code


@cache
def _versions() -> tuple[str, ...]:
    """What machine code depends on beside the text: what made it, with which settings, and for which processor."""
    import llvmlite
    import numba
    from numba.core import config

    import gpuopt

    settings = {
        name: getattr(config, name, None) for name in ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "DEBUGINFO_DEFAULT")
    }
    here = Path(__file__).parent
    own = [
        (here / name).read_text()
        for name in ("numba_ir.py", "numba_arithmetic.py", "numba_lines.py", "numba_random.py")
    ]
    return (
        gpuopt.__version__,
        numba.__version__,
        llvmlite.__version__,
        repr(settings),
        repr(_codegen().magic_tuple()),
        *own,
        conversions.text(),
    )


def _codegen() -> Any:
    from numba.core.registry import cpu_target

    return cpu_target.target_context.codegen()


def _dumped(made: Any) -> bytes:
    """Symbol, machine code and LLVM bitcode of a C function, with the length of each before it."""
    _, _, (code, bitcode) = made._library.serialize_using_object_code()
    parts = (made._wrapper_name.encode(), code, bitcode)
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _loaded(data: bytes) -> int | None:
    """The address of a function that was dumped; None where this Numba does not take it."""
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target
    from numba.core.runtime.nrt import rtsys

    parts = []
    while data:
        size = int.from_bytes(data[:8], "little")
        parts.append(data[8 : 8 + size])
        data = data[8 + size :]
    symbol, code, bitcode = parts
    try:
        with global_compiler_lock:
            rtsys.initialize(cpu_target.target_context)  # the functions that code may call
            library = _codegen().unserialize_library(("gpuopt", "object", (code, bitcode)))
            address = int(library.get_pointer_to_function(symbol.decode()))
    except Exception:  # another Numba inside: it is compiled again
        return None
    _alive.append(library)
    return address or None
