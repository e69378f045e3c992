"""Random numbers that depend on nothing but where they are used: the generator of every storage format that rounds at random.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): seed, tensor, step and element in, 32 bits
out, so that no thread, block, tile, device or other tensor has a part in them. This is the reference, in NumPy; kernels/random.cuh
and `compiler.numba_random` are its twins, bit for bit. Knows no format and no backend.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
WORD = 32  # bits of one
PER_BLOCK = (
    4  # words of one call: elements 4 k to 4 k + 3 share it, or twice as many where half a word is enough for each
)
MASK = 0xFFFFFFFF


def philox(counter: tuple[NDArray[np.uint64], int, int, int], key: tuple[int, int]) -> NDArray[np.uint32]:
    """The four words of each counter, whose first two words may be joined in 64 bits: [len(counter[0]), 4]."""
    low, high, c2, c3 = counter
    a, b = low & np.uint64(MASK), (low >> np.uint64(32)) | np.uint64(high)
    c, d = np.full_like(a, c2), np.full_like(a, c3)
    for number in range(ROUNDS):
        k0, k1 = (np.uint64((k + number * w) & MASK) for k, w in zip(key, WEYL, strict=True))
        first, second = a * np.uint64(MULTIPLIERS[0]), c * np.uint64(MULTIPLIERS[1])
        a, c = (second >> np.uint64(32)) ^ b ^ k0, (first >> np.uint64(32)) ^ d ^ k1
        b, d = second & np.uint64(MASK), first & np.uint64(MASK)
    return np.stack([a, b, c, d], axis=1).astype(np.uint32)


def words(
    seed: int, tensor: int, step: int, stream: int, first: int, count: int, bits: int = WORD
) -> NDArray[np.uint32]:
    """Random bits, 32 or 16, for each of `count` elements from `first` on, in the order of memory: [count].

    Counter: the block of elements (56 bits) with the stream above it, the step, the tensor (32 bits each); key: the seed (64
    bits). A rule whose states need more than 32 bits an element takes them from stream 0, 1, ... Where all of them together need
    no more than 16, two elements share a word: the bits of elements are those of words, lowest first, one after another.
    """
    each = per_call(bits)
    begin, end = first // each, -(-(first + count) // each)
    made = _blocks(seed, tensor, step, stream, np.arange(begin, end), bits)
    return made.reshape(-1)[first - begin * each :][:count]


def words_of(
    seed: int, tensor: int, step: int, stream: int, elements: NDArray[np.int64], bits: int = WORD
) -> NDArray[np.uint32]:
    """The same bits, of any elements: [elements]."""
    each = per_call(bits)
    blocks, place = np.unique(elements // each, return_inverse=True)
    result: NDArray[np.uint32] = _blocks(seed, tensor, step, stream, blocks, bits)[place, elements % each]
    return result


def per_call(bits: int) -> int:
    """Elements that one call gives so many bits each."""
    return PER_BLOCK * WORD // bits


def _blocks(seed: int, tensor: int, step: int, stream: int, blocks: NDArray[np.int64], bits: int) -> NDArray[np.uint32]:
    """The bits of blocks of elements: [blocks, per_call(bits)]."""
    counter = blocks.astype(np.uint64), stream << 24, step & MASK, tensor & MASK
    made = philox(counter, (seed & MASK, seed >> 32 & MASK))
    shifts = np.arange(0, WORD, bits).astype(np.uint32)
    parts: NDArray[np.uint32] = made[..., None] >> shifts & np.uint32((1 << bits) - 1)
    return parts.reshape(len(blocks), per_call(bits))
