"""What codes of states do to an update whose gradients go on as they are: its size, and the noise of its two parts.

    python benchmarks/formats_noise.py  # half a minute

No training: gradients of 4,096 elements, in rows of 256, are drawn again and again, each of its element's own size; sizes differ
within a block by that factor (log-normal). Tails are those of the normal distribution, or of Student's t with four degrees of
freedom.
Printed are, of the second half of all steps: the mean of |m / sqrt(v)| with m exact, over that of float32, with and without the
format's correction; the mean of v over that of float32; the noise of m, as a share of the variance of m, of the mean and the median
element.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.formats import formats, philox
from gpuopt.formats.language import Format

Array = NDArray[Any]
SHAPE, BETA1 = (16, 256), 0.9
SPREADS = (0.0, 0.5, 1.0)  # of the logarithm of sizes


class Kept:
    """A state of zeros in a format."""

    def __init__(self, of: Format) -> None:
        self.of, self.step = of, 0
        self.kinds = [plane.stored if plane.whole else "float32" for plane in of.planes]
        self.put(np.zeros(SHAPE))

    def put(self, x: Array) -> None:
        """Encode."""
        random = philox.words(0, 0, self.step, 0, 0, x.size) if self.of.random else None
        made = self.of.encoded(x.astype(np.float32).reshape(-1), False, random, SHAPE)
        self.planes = [np.asarray(plane).astype(kind) for plane, kind in zip(made, self.kinds, strict=True)]
        self.step += 1

    def take(self) -> tuple[Array, Array]:
        """Value and correction."""
        found = self.of.decoded(self.planes, False, SHAPE)
        value, correction = found if len(found) > 1 else (found[0], np.ones(SHAPE))
        return value.reshape(SHAPE).astype(np.float64), correction.reshape(SHAPE).astype(np.float64)


def sizes(spread: float) -> Array:
    """Of the gradients of each element."""
    return np.exp(spread * np.random.default_rng(0).standard_normal(SHAPE))


def gradients(spread: float, tails: str, steps: int) -> Iterator[Array]:
    """One after another, of variance 1 but for their sizes."""
    rng, size = np.random.default_rng(1), sizes(spread)
    for _ in range(steps):
        yield size * (rng.standard_normal(SHAPE) if tails == "normal" else rng.standard_t(4, SHAPE) / 2**0.5)


def second(name: str, spread: float, tails: str, beta2: float, steps: int) -> tuple[float, float, float]:
    """Sizes of the update with and without correction, and of v."""
    kept, m, v = Kept(formats()[name]), np.zeros(SHAPE), np.zeros(SHAPE)
    found = []
    for t, g in enumerate(gradients(spread, tails, steps)):
        m, v = BETA1 * m + (1 - BETA1) * g, beta2 * v + (1 - beta2) * g * g
        coded, correction = kept.take()
        coded = beta2 * coded + (1 - beta2) * g * g
        kept.put(coded)
        if t >= steps // 2:
            exact = np.mean(np.abs(m) / np.sqrt(v))
            sizes = [np.mean(np.abs(m) / np.sqrt(x)) / exact for x in (coded * correction, coded)]
            found.append((*sizes, np.mean(coded / v)))
    return tuple(np.mean(found, axis=0))


def first(name: str, spread: float, steps: int) -> tuple[float, float]:
    """The noise of the mean and of the median element."""
    kept, m = Kept(formats()[name]), np.zeros(SHAPE)
    found = []
    for t, g in enumerate(gradients(spread, "normal", steps)):
        m = BETA1 * m + (1 - BETA1) * g
        coded = BETA1 * kept.take()[0] + (1 - BETA1) * g
        kept.put(coded)
        if t >= steps // 2:
            found.append((coded - m) ** 2)
    noise = np.mean(found, axis=0) / sizes(spread) ** 2 * (1 + BETA1) / (1 - BETA1)
    return float(noise.mean()), float(np.median(noise))


def main() -> None:
    print("second moments: size of the update, without correction, v")
    for beta2, steps in ((0.999, 4000), (0.95, 400)):
        for name in ("squares8", "squares4"):
            for tails in ("normal", "t4"):
                for spread in SPREADS:
                    values = "  ".join(f"{x:.3f}" for x in second(name, spread, tails, beta2, steps))
                    print(f"{name}  beta2 {beta2:<5}  {tails:6}  factor {np.exp(spread):.1f}   {values}", flush=True)
    print("first moments: noise of the mean element, of the median one")
    for name in ("signed8", "float8", "signed4"):
        for spread in SPREADS:
            values = "  ".join(f"{x:.4f}" for x in first(name, spread, 400))
            print(f"{name}  normal  factor {np.exp(spread):.1f}   {values}", flush=True)


if __name__ == "__main__":
    main()
