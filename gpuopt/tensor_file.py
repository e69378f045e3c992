"""Files of named tensors in the safetensors format: the old file or the new one, never half of one, and a digest of every part.

Called by `optim.checkpoint`; knows no optimizer. Tensors come to the host one by one while the file is written, which the package
`safetensors` does not do, and are read where the file is mapped, so that neither takes the memory of all of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.errors import FileError, InputError
from gpuopt.messages import abbreviated

CODES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
CODES |= {f"{name[0]}{bits}": f"{name}{bits}".lower() for name in ("Int", "UInt") for bits in (8, 16, 32, 64)}
NAMES = {name: code for code, name in CODES.items()}
META = "__metadata__"  # of a header, what is no tensor: text by name
TENSORS, HEADER = (
    "sha256",
    "header_sha256",
)  # there: digests of the tensors as JSON; that of the header, in whose place are zeros
ZEROS = "0" * 64
WORD = 8  # bytes of the length of the header, little-endian
ALIGNED = 64  # what the first tensor's place in the file is a multiple of
PIECE = 1 << 24  # bytes that are hashed and written at once
PREFIX, SUFFIX = ".gpuopt-", ".tmp"  # of files that are being written


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: its dtype, by NumPy's name, its shape, and what gives it as an array on the host when its turn comes."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]


def dtype_of(name: str) -> np.dtype[Any]:
    """The NumPy dtype; bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    return np.dtype(name)


def in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Their names in the order in which they are read and written: wide elements first, so that all are aligned."""
    return sorted(tensors, key=lambda name: -dtype_of(tensors[name].dtype).itemsize)


# --------------------------------------------------------------------------------------------------------- writing


def write(path: Any, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file in the place of what is there, which stays if anything is raised, as OSError where a disk is full.

    It is written beside it, brought to the disk, and then renamed.
    """
    path = os.path.realpath(os.fspath(path))
    if os.path.isdir(path):
        raise InputError(f"{path}: a folder: expected the name of a file")
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise InputError(f"{name}: dtype {tensor.dtype}: expected one of {', '.join(NAMES)}")
    folder = os.path.dirname(path)
    clear(folder)
    file, temporary = begun(folder)
    try:
        with file:
            fill(file, tensors, metadata)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the name too
    finally:
        os.close(descriptor)


def begun(folder: str) -> tuple[IO[bytes], str]:
    """A new file, locked as long as it is open, and its name."""
    while True:
        name = os.path.join(folder, f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}")
        file = open(name, "xb")  # noqa: SIM115
        with suppress(OSError):  # of a file system without locks, on which nothing is removed
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file, name
        file.close()  # another process took it for one that was left behind, before it was locked


def clear(folder: str) -> None:
    """Remove what killed processes have left: files of this kind that nobody has locked."""
    with os.scandir(folder) as found:
        left = [each.path for each in found if each.name.startswith(PREFIX) and each.name.endswith(SUFFIX)]
    for name in left:
        with suppress(OSError), open(name, "rb") as file:  # another's, or already gone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name)


def fill(file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Header and tensors, the widest elements first, so that each is aligned. Digests are known at the end: the header is written
    twice.
    """
    order = in_order(tensors)
    digests = dict.fromkeys(order, ZEROS)
    file.write(header(order, tensors, metadata, digests))
    for name in order:
        digests[name] = add(file, tensors[name])
    file.seek(0)
    file.write(header(order, tensors, metadata, digests))


def add(file: IO[bytes], tensor: Tensor) -> str:
    """Write a tensor; returns its digest."""
    array = tensor.read()
    assert (array.dtype, array.shape) == (dtype_of(tensor.dtype), tensor.shape)
    return digest_of(np.ascontiguousarray(array), file.write)


def digest_of(array: NDArray[Any], to: Callable[[memoryview], Any] = len) -> str:
    """The digest of the bytes of a contiguous array. to: is called with them, piece by piece."""
    data, digest = array.reshape(-1).view(np.uint8), hashlib.sha256()
    for begin in range(0, data.size, PIECE):
        piece = data[begin : begin + PIECE].data
        digest.update(piece)
        to(piece)
    return digest.hexdigest()


def header(
    order: list[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str], digests: Mapping[str, str]
) -> bytes:
    """The bytes before the first tensor: always as many, whatever the digests."""
    table: dict[str, Any] = {META: {**metadata, TENSORS: json.dumps(digests), HEADER: ZEROS}}
    end = 0
    for name in order:
        dtype, shape = tensors[name].dtype, tensors[name].shape
        begin, end = end, end + prod(shape) * dtype_of(dtype).itemsize
        table[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(WORD + len(text)) % ALIGNED)
    signed = text.replace(place(ZEROS), place(hashlib.sha256(text).hexdigest()))
    return len(text).to_bytes(WORD, "little") + signed


def place(digest: str) -> bytes:
    """What stands in a header for its digest, and nowhere else in it."""
    return f'"{HEADER}":"{digest}"'.encode()


# --------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Read:
    """A file of which header and sizes are as they were written. arrays: read-only, where the file is mapped."""

    path: str
    metadata: dict[str, str]
    arrays: dict[str, NDArray[Any]]
    digests: dict[str, str]

    def check(self) -> None:
        """Raise FileError naming the first tensor that is not as it was written."""
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(digest_of, self.arrays.values()))
        for name, digest in zip(self.arrays, found, strict=True):
            if digest != self.digests.get(name):
                raise FileError(f"{self.path}: {name} is damaged: sha256 {digest}: expected {self.digests.get(name)}")


def read(path: Any) -> Read:
    """A file that `write` wrote, with what its header says; the tensors are looked at by `check`.

    Raises FileError for what is none, or is damaged or cut off there, and OSError as `open` does.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < WORD:
            raise FileError(f"{path}: {size} bytes: expected a file that gpuopt.save wrote")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length = int.from_bytes(mapped[:WORD], "little")
    if length > size - WORD:
        raise FileError(
            f"{path}: a header of {abbreviated(length)} bytes in a file of {size}: it is damaged, cut off, or no file that "
            "gpuopt.save wrote"
        )
    table = table_of(mapped[WORD : WORD + length], path)
    metadata, arrays = table.pop(META), dict[str, NDArray[Any]]()
    try:
        digests, end = json.loads(metadata[TENSORS]), WORD + length
        for name, each in table.items():
            arrays[name] = array_of(mapped, name, each, WORD + length, end, path)
            end += arrays[name].nbytes
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: the header is of another kind than gpuopt.save writes: {error!r}") from None
    if end != size:
        raise FileError(f"{path}: {size} bytes: expected {end}, as its header says")
    return Read(path, metadata, arrays, digests)


def table_of(text: bytes, path: str) -> dict[str, Any]:
    """What a header says. Raises FileError unless it has its digest."""
    try:
        table = json.loads(text)
        found = table[META][HEADER]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise FileError(f"{path}: the header is damaged, or of no file that gpuopt.save wrote") from None
    unsigned = text.replace(place(found), place(ZEROS)) if isinstance(found, str) else b""
    made = hashlib.sha256(unsigned).hexdigest()
    if made != found:
        raise FileError(f"{path}: the header is damaged: sha256 {made}: expected {abbreviated(found)}")
    return dict(table)


def array_of(mapped: mmap.mmap, name: str, each: Any, start: int, at: int, path: str) -> NDArray[Any]:
    """What the file holds of a tensor; at: where the one before it ends. Raises FileError where the file ends before it does."""
    dtype, shape, (begin, end) = dtype_of(CODES[each["dtype"]]), tuple(map(int, each["shape"])), each["data_offsets"]
    count = prod(shape)
    if min(shape, default=0) < 0 or start + begin != at or end - begin != count * dtype.itemsize:
        raise FileError(
            f"{path}: {name}: {each}: expected a shape, and as many bytes behind those of the tensor before it"
        )
    if start + end > len(mapped):
        raise FileError(
            f"{path}: cut off: {len(mapped)} bytes end before {name}, of which the last is number {start + end}"
        )
    return np.frombuffer(mapped, dtype, count, at).reshape(shape)
