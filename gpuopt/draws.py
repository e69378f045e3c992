"""Random numbers of products of matrices: those of `formats.philox`, made on the device of the arrays that they are for.

Given to products by `optim.launches`, one `Draw` for each tensor; arrays are of NumPy, CuPy or torch. Knows no rule and no kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from gpuopt.formats.philox import MASK, MULTIPLIERS, PER_BLOCK, ROUNDS, WEYL, words
from gpuopt.linalg import library, numbers

NORMALS, UNIFORMS = 254, 253  # streams of words that no format takes


@dataclass(frozen=True)
class Draw:
    """The random numbers of a tensor in each step, by the optimizer's seed and the tensor's number there."""

    seed: int
    tensor: int

    def uniforms(self, step: int, count: int) -> list[float]:
        """So many numbers from 0 to 1, without 1."""
        return [int(word) / 2**32 for word in words(self.seed, self.tensor, step, UNIFORMS, 0, count)]

    def normals(self, step: int, like: Any) -> Any:
        """Standard normal numbers in the shape of an array, on its device, in float64: two of each two words, Box & Muller 1958."""
        made, count = import_module(library(like)), math.prod(like.shape)
        pairs = self.words(step, like, count + count % 2).reshape(-1, 2)
        first, second = (made.asarray(pairs[:, k], dtype=made.float64) for k in (0, 1))
        radius = (-2 * made.log((first + 1) * 2.0**-32)) ** 0.5
        angle = second * (2 * math.pi * 2.0**-32)
        return (
            made.stack([radius * made.cos(angle), radius * made.sin(angle)], 1).reshape(-1)[:count].reshape(like.shape)
        )

    def words(self, step: int, like: Any, count: int) -> Any:
        """`philox.words` of the stream of normal numbers, in int64, whose products of 32 bits wrap around."""
        a = numbers(like, -(-count // PER_BLOCK))
        c, d = a * 0 + (step & MASK), a * 0 + (self.tensor & MASK)
        a, b = a & MASK, (a >> 32) | (NORMALS << 24)
        for number in range(ROUNDS):
            low, high = (
                (part + number * w) & MASK for part, w in zip((self.seed & MASK, self.seed >> 32), WEYL, strict=True)
            )
            first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
            a, c = ((second >> 32) & MASK) ^ b ^ low, ((first >> 32) & MASK) ^ d ^ high
            b, d = second & MASK, first & MASK
        return import_module(library(like)).stack([a, b, c, d], 1).reshape(-1)[:count]
