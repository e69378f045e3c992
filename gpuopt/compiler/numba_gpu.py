"""Generated Python text as kernels of a GPU, compiled by Numba, from the disk cache where they are there. Used by
`backends.numba_cuda`.

What is cached is machine code and the name of the kernel in it, under a key that holds the text, what its names stand for, the
versions of all that has a part in it, and the architecture; no pickle. Numba's own cache is not used: it unpickles what it finds.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from gpuopt.compiler import cache as disk
from gpuopt.compiler import conversions
from gpuopt.launch import table as t

KIND = "kernel"  # of entries of the disk cache


def numba_cuda() -> Any:
    """numba.cuda, untyped: its annotations are those of the simulator."""
    from numba import cuda

    return cuda


class Text(NamedTuple):
    """The text of a kernel, its name, the names that it calls, and what tells those from others of the same names."""

    source: str
    name: str
    values: dict[str, Any]
    meaning: str

    @property
    def function(self) -> Callable[..., Any]:
        """The Python function, not yet compiled; the text stays visible in tracebacks."""
        filename = f"<gpuopt cuda {self.name} {hash(self.source):x}>"
        linecache.cache[filename] = (len(self.source), None, self.source.splitlines(True), filename)
        scope = dict(self.values)
        exec(compile(self.source, filename, "exec"), scope)
        made: Callable[..., Any] = scope[self.name]
        return made


def kernel(text: Text, blocks: int, signature: str) -> Any:
    """The kernel for the current GPU, with at most 65536 / (256 * blocks) registers a thread: cuda.core's, or Numba's dispatcher
    where Numba does not say what it has compiled. signature: a letter for each argument, `i` of a whole number, `d` of a double;
    behind them the compute type and count of the scalars that come in one tuple.
    """
    entry = disk.key(text.source, text.name, text.meaning, str(blocks), signature, _architecture(), *_versions())
    found = disk.read(entry, KIND)
    made = None if found is None else _loaded(found)
    if made is not None:
        return made
    dispatcher = _compiled(text.function, blocks, signature)
    try:
        (only,) = dispatcher.overloads.values()
        library = only._codelibrary
        data = library._entry_name.encode() + b"\0" + bytes(library.get_cubin().code)
    except (AttributeError, TypeError):  # another Numba inside
        return dispatcher
    disk.write(entry, data, KIND)
    made = _loaded(data)
    return dispatcher if made is None else made


def _compiled(python: Callable[..., Any], blocks: int, signature: str) -> Any:
    """Numba's dispatcher of the one signature."""
    from numba import types

    letters, _, row = signature.partition(" ")
    found: list[Any] = [types.int64 if letter == "i" else types.float64 for letter in letters]
    if row:
        name, _, count = row.partition(" x ")
        made: Any = types  # untyped
        found.append(made.UniTuple(getattr(types, name), int(count)) if int(count) else made.Tuple(()))
    return numba_cuda().jit(tuple(found), launch_bounds=(t.THREADS, blocks))(python)


def _loaded(data: bytes) -> Any:
    """cuda.core's kernel of an entry; None where this driver or cuda.core does not take it: it is compiled again."""
    name, _, code = data.partition(b"\0")
    try:
        from cuda.core import ObjectCode

        return ObjectCode.from_cubin(code).get_kernel(name.decode())
    except Exception:
        return None


def _architecture() -> str:
    return repr(numba_cuda().get_current_device().compute_capability)


@cache
def _versions() -> tuple[str, ...]:
    """What machine code depends on beside the text: what made it, the driver that linked it, and the intrinsics."""
    import numba

    import gpuopt

    inner = numba_cuda().cudadrv
    here = Path(__file__).parent
    sources = ("numba_ir.py", "numba_arithmetic.py", "numba_lines.py", "numba_packs.py", "numba_random.py")
    own = [(here / name).read_text() for name in sources]
    return (
        gpuopt.__version__,
        numba.__version__,
        version("numba-cuda"),
        repr(inner.nvvm.NVVM().get_version()),
        repr(inner.driver.driver.get_version()),
        *own,
        conversions.text(),
    )
