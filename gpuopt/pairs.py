"""Complex arrays as real ones, as torch's optimizers step them: each number is a pair along one more, last axis of 2.

Called by `gpuopt.arrays` for every library whose dtypes are NumPy's. Knows no rule and no backend.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.formats.dtypes import numpy_dtype

if TYPE_CHECKING:
    from gpuopt.arrays import View

REAL = {"complex64": "float32", "complex128": "float64"}
COMPLEX = {real: made for made, real in REAL.items()}


def is_complex(array: Any) -> bool:
    """Whether an array of any library holds complex numbers of a kind that is stepped."""
    return str(getattr(array, "dtype", "")).removeprefix("torch.") in REAL


def paired(view: View) -> View:
    """The View of the real numbers in a complex array; of a real one itself."""
    if view.dtype not in REAL:
        return view
    shape, strides = (*view.shape, 2), (*(2 * s for s in view.strides), 1)
    return replace(view, shape=shape, strides=strides, dtype=REAL[view.dtype], pairs=True)


def as_pairs(array: Any) -> Any:
    """The same memory as real numbers with a last axis of 2, in any memory order."""
    return array[..., None].view(REAL[array.dtype.name])


def state_like(like: Any, dtype: str) -> tuple[Any, np.dtype[Any]]:
    """What a state of this storage is shaped as, and its dtype: complex where the parameter is, but pairs where no complex dtype
    has parts of this one.
    """
    if is_complex(like) and dtype in COMPLEX:
        return like, np.dtype(COMPLEX[dtype])
    return (as_pairs(like) if is_complex(like) else like), numpy_dtype(dtype)


def alike(values: Any, state: Any) -> Any:
    """Pairs as complex numbers where a state is complex, and complex numbers as pairs where it is not; anything else as it is."""
    if is_complex(state) and not is_complex(values) and values.ndim > state.ndim:
        kept = str(state.dtype).removeprefix("torch.")
        return values.astype(REAL[kept], order="C").view(kept)[..., 0]
    return as_pairs(values) if is_complex(values) and not is_complex(state) else values


def filled(value: float, array: Any) -> complex:
    """What fills a state so that all its real numbers have this value: both parts begin alike, as in torch."""
    return complex(value, value) if is_complex(array) else value
