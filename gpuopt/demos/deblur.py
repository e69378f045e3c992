"""`gpuopt demo --deblur`: a photograph of scikit-learn's, blurred by a moving camera and noisy, restored by `gpuopt.minimize`.

Called by `gpuopt/demos/__init__.py`. The loss and its gradient are plain NumPy or CuPy code; gpuopt is met only in
`gpuopt.minimize`, which keeps the pixels between 0 and 1.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gpuopt
from gpuopt import drawing
from gpuopt.demos.arrays import compute_type
from gpuopt.spaces import to_host

Array = np.ndarray[Any, Any]

NAME = "gpuopt-demo-deblur.png"
NAME_OF_DATA = "scikit-learn (china.jpg)"
PART = (slice(60, 316), slice(60, 444))  # of the photograph: rows, columns
DETAIL = (slice(92, 172), slice(126, 246))  # of that part, drawn larger
LENGTH, ANGLE = 17.0, math.radians(35)  # of the camera's movement, in pixels
NOISE = 0.005  # standard deviation, of pixels from 0 to 1
SMOOTHNESS, CORNER = 3e-4, 1e-2  # weight of the total variation; differences below the corner count as their squares
RATE = 0.04
LEAST = 1e-6  # where the axis of the losses begins
STEPS, QUICK_STEPS = 200, 30


@dataclass(frozen=True)
class Restoration:
    """Pictures of [rows, columns, 3], float64 from 0 to 1; PSNR in dB against the original."""

    original: Array
    blurred: Array
    restored: Array
    losses: Array
    before: float
    after: float
    seconds: float
    message: str

    @property
    def shape(self) -> str:
        """Rows and columns in words."""
        return " x ".join(map(str, self.original.shape[:2]))


def load() -> Array:
    """A part of the photograph china.jpg, [rows, columns, 3], float64 from 0 to 1. Raises GpuoptError where Pillow is missing."""
    from sklearn.datasets import load_sample_image

    try:
        photograph = load_sample_image("china.jpg")
    except ImportError as error:
        raise gpuopt.GpuoptError(f"the photograph is a JPEG, which scikit-learn reads by Pillow: {error}") from None
    return np.asarray(photograph[PART], np.float64) / 255


def movement(shape: tuple[int, int]) -> Array:
    """The blur as an image of these rows and columns, its middle at [0, 0]: a line with a soft edge, whose sum is 1."""
    y, x = (np.fft.fftfreq(n, 1 / n) for n in shape)
    along = np.cos(ANGLE) * x[None, :] + np.sin(ANGLE) * y[:, None]
    across = np.cos(ANGLE) * y[:, None] - np.sin(ANGLE) * x[None, :]
    kernel = np.exp(-(across**2)) / (1 + np.exp(np.clip(3 * (abs(along) - LENGTH / 2), -50, 50)))
    return np.asarray(kernel / kernel.sum())


class Deblurring:
    """The loss of a picture and its gradient: half the squared distance of its blurred self from what was seen, and the total
    variation, which likes areas and edges better than noise. Pictures are [3, rows, columns].
    """

    def __init__(self, xp: Any, seen: Array, kernel: Array, element: np.dtype[Any]) -> None:
        self.xp, self.element, self.compute = xp, element, compute_type(element)
        self.seen = xp.asarray(seen.astype(self.compute))
        self.spectrum = xp.asarray(np.fft.rfft2(kernel).astype(np.result_type(self.compute, np.complex64)))

    def blurred(self, x: Any, back: bool = False) -> Any:
        """The picture through the camera, which sees beyond an edge what is at the other; back: by the transposed map."""
        spectrum = self.spectrum.conj() if back else self.spectrum
        return self.xp.fft.irfft2(self.xp.fft.rfft2(x) * spectrum, x.shape[-2:]).astype(self.compute, copy=False)

    def __call__(self, x: Any) -> tuple[Any, Any]:
        xp, x = self.xp, x.astype(self.compute, copy=False)
        away = self.blurred(x) - self.seen
        down, right = xp.roll(x, -1, -2) - x, xp.roll(x, -1, -1) - x
        size = xp.sqrt(
            (down * down + right * right).sum(0) + CORNER**2
        )  # of all colours together: edges fall in one place
        down, right = down / size, right / size
        gradient = self.blurred(away, back=True)
        gradient += SMOOTHNESS * (xp.roll(down, 1, -2) - down + xp.roll(right, 1, -1) - right)
        loss = 0.5 * (away * away).sum(dtype=np.float64) + SMOOTHNESS * (size - CORNER).sum(dtype=np.float64)
        return loss, gradient.astype(self.element, copy=False)


def psnr(picture: Array, original: Array) -> float:
    """Peak signal to noise ratio in dB, the peak being 1."""
    return float(-10 * np.log10(np.mean((picture - original) ** 2)))


def restore(
    xp: Any, backend: str | None, element: np.dtype[Any], *, lr: float | None = None, quick: bool = False, seed: int = 0
) -> Restoration:
    """Blur the photograph, add noise from `seed`, and restore it in `element`, float32 say."""
    original = load().transpose(2, 0, 1)
    kernel = movement((original.shape[1], original.shape[2]))
    camera = Deblurring(np, original, kernel, np.dtype(np.float64))
    noise = np.random.default_rng(seed).normal(scale=NOISE, size=original.shape)
    seen = np.clip(camera.blurred(original) + noise, 0, 1)
    fun = Deblurring(xp, seen, kernel, element)
    begin = time.perf_counter()
    found = gpuopt.minimize(
        fun,
        xp.asarray(seen.astype(element)),
        "adam",
        lr=RATE if lr is None else lr,
        schedule="cosine",
        bounds=(0, 1),
        maxiter=QUICK_STEPS if quick else STEPS,
        progress=True,
        backend=backend,
    )
    seconds = time.perf_counter() - begin
    restored = to_host(found.x).astype(np.float64)
    return Restoration(
        original=original.transpose(1, 2, 0),
        blurred=seen.transpose(1, 2, 0),
        restored=restored.transpose(1, 2, 0),
        losses=found.losses,
        before=psnr(seen, original),
        after=psnr(restored, original),
        seconds=seconds,
        message=found.message,
    )


def picture(found: Restoration) -> Any:
    """The figure: the three pictures, a detail of each below, and the losses."""
    figure = drawing.figure(12.6, 7.6)
    grid = figure.add_gridspec(3, 3, height_ratios=(1.0, 1.0, 0.5))
    columns = (
        ("Original", found.original),
        (f"Blurred and noisy: {found.before:.1f} dB", found.blurred),
        (f"Restored: {found.after:.1f} dB", found.restored),
    )
    for column, (title, image) in enumerate(columns):
        for row, part in enumerate((image, image[DETAIL])):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(np.clip(part, 0, 1), interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title, fontsize=drawing.SMALL + 1.5, loc="left", color=drawing.INK)
                rows, across = DETAIL
                outline = {"xy": (across.start, rows.start), "width": across.stop - across.start}
                draw_frame(axes, height=rows.stop - rows.start, **outline)
    axes = figure.add_subplot(grid[2, :])
    above = np.maximum(found.losses / found.losses.min() - 1, LEAST)
    axes.plot(np.arange(len(above)), above, color=drawing.STRONG[0], linewidth=1.8)
    axes.set(
        yscale="log", xlim=(0, len(above) - 1), ylim=(LEAST, None), xlabel="step", ylabel="above the least, relative"
    )
    drawing.plain(axes, "Loss: distance from what the camera saw, and total variation")
    return figure


def draw_frame(axes: Any, **place: Any) -> None:
    """Where the detail lies."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle(**place, fill=False, edgecolor="white", linewidth=1.2))


def save(found: Restoration, path: Path) -> Path:
    """Draw it into the PNG `path`, needing no display, and return `path`."""
    return drawing.save(picture(found), path)
