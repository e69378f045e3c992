"""What all communicators have in common: arrays are checked here, and sent by an adapter for one library each.

Subclassed by the adapters beside this file, called by `data_parallel` and by users. Knows no library that sends messages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from gpuopt.distributed.buffers import Buffer, buffer
from gpuopt.errors import DtypeError, InputError, entries

OPERATIONS = ("sum", "max")
SUMMED = ("float64", "float32", "float16", "bfloat16", "int64", "int32")  # dtypes of what is added up or compared


@entries
class Communicator(ABC):
    """Processes that exchange arrays; all of them make the same calls in the same order, with arrays of the same sizes.

    rank: of this process, from 0 to size - 1. Arrays are contiguous, of NumPy, CuPy, Numba CUDA, torch or anything with DLPack or
    `__cuda_array_interface__`; complex numbers are pairs of real ones. stream: of arrays on a GPU, as `gpuopt.stream` takes it;
    None: the current one. Raises InputError or DtypeError before anything is sent, CommunicationError where another process is
    gone or the library gives up.
    """

    rank: int
    size: int

    def all_reduce(self, array: Any, op: str = "sum", stream: Any = None) -> None:
        """Each element becomes the sum ("sum") or the largest ("max") of those that all processes have there, with the same bits
        everywhere. array: float64, float32, float16, bfloat16, int64 or int32.
        """
        found = _reduced(array, op, "array")
        if found.count:
            self._all_reduce(found, op, stream)

    def reduce_scatter(self, array: Any, out: Any, op: str = "sum", stream: Any = None) -> None:
        """array: `size` parts of the same length; out, of this length and dtype, becomes the sum, or the largest, of the parts of
        this rank's number that all processes have. array may be changed.
        """
        found, part = _reduced(array, op, "array"), buffer(out, "out", written=True)
        _check_parts(part, found, self.size, ("out", "array"))
        if part.count:
            self._reduce_scatter(found, part, op, stream)

    def all_gather(self, array: Any, out: Any, stream: Any = None) -> None:
        """out, `size` times as long as array and of its dtype, becomes the arrays of all processes, in the order of ranks."""
        part, found = buffer(array, "array"), buffer(out, "out", written=True)
        _check_parts(part, found, self.size, ("array", "out"))
        if part.count:
            self._all_gather(part, found, stream)

    def broadcast(self, array: Any, root: int = 0, stream: Any = None) -> None:
        """The array becomes that of the process `root`."""
        found = buffer(array, "array", written=True)
        if isinstance(root, bool) or not isinstance(root, int) or not 0 <= root < self.size:
            raise InputError(f"root = {root!r}: expected a rank from 0 to {self.size - 1}")
        if found.count:
            self._broadcast(found, root, stream)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank={self.rank}, size={self.size})"

    # ------------------------------------------------------------------------------------------- of each library

    @abstractmethod
    def _all_reduce(self, array: Buffer, op: str, stream: Any) -> None: ...

    @abstractmethod
    def _reduce_scatter(self, array: Buffer, out: Buffer, op: str, stream: Any) -> None: ...

    @abstractmethod
    def _all_gather(self, array: Buffer, out: Buffer, stream: Any) -> None: ...

    @abstractmethod
    def _broadcast(self, array: Buffer, root: int, stream: Any) -> None: ...


def _reduced(array: Any, op: str, label: str) -> Buffer:
    """The memory of what is reduced. Raises InputError or DtypeError."""
    if op not in OPERATIONS:
        raise InputError(f"op = {op!r}: expected one of {', '.join(map(repr, OPERATIONS))}")
    found = buffer(array, label, written=True)
    if found.dtype not in SUMMED:
        raise DtypeError(f"{label}: dtype {found.dtype}: expected one of {', '.join(SUMMED)}")
    return found


def _check_parts(part: Buffer, whole: Buffer, size: int, names: tuple[str, str]) -> None:
    """Raise InputError unless the whole is as many parts as there are processes, of one dtype and on one device."""
    if part.dtype != whole.dtype or part.device != whole.device:
        raise InputError(
            f"{names[0]} is {part.dtype} on {part.device}, {names[1]} {whole.dtype} on {whole.device}: expected the same"
        )
    if part.count * size != whole.count:
        raise InputError(
            f"{names[0]} has {part.count} elements, {names[1]} {whole.count}: expected {size} times as many, one part a process"
        )
