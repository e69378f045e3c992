"""How arrays lie in memory, by shapes and strides in elements. Used by `arrays` and its kin; knows no library of arrays."""

from __future__ import annotations

from typing import Any


def lowest(address: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> int:
    """The address of the lowest element: not the first one where a stride is negative."""
    return address + itemsize * sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if s < 0 and n > 1)


def shifted(address: int, itemsize: int) -> int:
    """Elements from a multiple of 16 of them to this address: packs are of no more."""
    return address // itemsize % 16


def canonical(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides that matter: those of axes longer than 1."""
    return tuple(s for n, s in zip(shape, strides, strict=True) if n > 1)


def is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in any order of axes."""
    if 0 in shape:
        return True
    expected = 1
    axes = sorted((abs(s), n) for n, s in zip(shape, strides, strict=True) if n > 1)
    for stride, n in axes:
        if stride != expected:
            return False
        expected *= n
    return True


def in_c_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements lie in the order of their indices, without gaps: rows one behind the other."""
    size, expected = 1, list[int]()
    for n in reversed(shape):
        expected.append(size)
        size *= max(1, n)
    return canonical(shape, strides) == canonical(shape, tuple(reversed(expected)))


def strides_of(array: Any) -> tuple[int, ...]:
    """Those of an array of NumPy or CuPy, in elements."""
    size = array.dtype.itemsize
    return tuple(s // size for s in array.strides) if size else ()
