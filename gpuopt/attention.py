"""What keeps the logits of attention bounded between two steps: `gpuopt.qk_clip`. Called by users; knows no optimizer."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gpuopt.errors import InputError, entry
from gpuopt.optim.hyper import check_number


@entry
def qk_clip(query: Any, key: Any, maxima: Any, threshold: float = 100.0, balance: float = 0.5) -> Any:
    """Scale the query and key weights of heads whose logits grew above a threshold, in place: QK-clip, Kimi Team 2025.

    query: [heads * dim, columns], rows of a head together, as torch.nn.Linear has them; key: the same, or fewer heads whose number
    divides that of the queries (grouped attention), each of which then shrinks by what its own query heads need at most. Both are
    arrays of NumPy or CuPy, or tensors of torch without a gradient graph (`weight.data`), float of any width. maxima: [heads], the
    largest logit of each head in the last forward pass, of the same library, or numbers. threshold: what a logit may be; balance:
    the share of a factor that the queries take, 0 to 1.

    A head with maximum s > threshold has its logits multiplied with threshold / s from the next forward pass on: queries with the
    factor to the power of balance, keys with the rest; other heads keep their bits. Returns the factors, [heads].
    Raises InputError for shapes that do not go together or numbers out of range; nothing is written then.
    """
    check_number("threshold", threshold, "qk_clip", {"threshold": "(0, inf)"})
    check_number("balance", balance, "qk_clip", {"balance": "[0, 1]"})
    shape = tuple(getattr(maxima, "shape", (len(maxima),) if hasattr(maxima, "__len__") else ()))
    heads = shape[0] if len(shape) == 1 else 0
    for name, array in (("query", query), ("key", key)):
        if not heads or getattr(array, "ndim", 0) != 2:
            raise InputError(
                f"qk_clip: {name} of shape {tuple(getattr(array, 'shape', ()))}, maxima of shape {shape}: expected "
                "[heads * dim, columns] and [heads]"
            )
    rows, dim = int(query.shape[0]), int(query.shape[0]) // heads
    groups = int(key.shape[0]) // dim if dim and rows == dim * heads else 0
    if not groups or groups * dim != key.shape[0] or heads % groups:
        raise InputError(
            f"qk_clip: query of {rows} rows and key of {int(key.shape[0])} for {heads} heads: expected dim rows for each head, and "
            "a number of key heads that divides theirs"
        )
    factors = like(query, [1.0] * heads)
    given = like(query, maxima)
    large = given > threshold
    factors[large] = threshold / given[large]
    of_keys = factors.reshape(groups, -1).min(1)
    of_keys = getattr(of_keys, "values", of_keys)  # torch gives the places too
    for array, factor, power in ((query, factors, balance), (key, of_keys, 1 - balance)):
        parts = array.reshape(len(factor), dim, -1)
        parts *= (factor**power).reshape(-1, 1, 1)
    return factors


def like(array: Any, values: Any) -> Any:
    """Numbers as an array of the library, the device and the dtype of another."""
    if hasattr(array, "new_tensor"):
        tensor = values.to(array) if hasattr(values, "new_tensor") else array.new_tensor(values)
        return tensor.clone()
    return import_module(type(array).__module__.partition(".")[0]).array(values, dtype=array.dtype)
