"""Functions of torch's libraries: whether they may be called as they are called here, and what their arguments are.

Used by `watch` and `counters`, and by `gpuopt.torch.hooks`. C++ functions are called only where torch's own headers declare them
as they are called here; a torch without headers is not asked. Knows no rule.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpuopt.native import switch
from gpuopt.native.memory import WORD, memory

FACTS = (
    "is_defined",
    "get_data_ptr",
    "get_dtype",
    "get_dim",
    "get_sizes",
    "get_strides",
)  # aoti_torch_*: C, and stable
GRAD, BUMP = "_ZNK3c1010TensorImpl4gradEv", "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE"
LISTENING = "_ZN2at12hasCallbacksEv"
# By header, what each of the C++ functions returns and takes.
DECLARED = {
    "c10/core/TensorImpl.h": "const at::Tensor& grad() const;",
    "torch/csrc/autograd/variable.h": "void bump_version(const Variable&",
    "ATen/record_function.h": "bool hasCallbacks();",
}
IMPL = 192  # bytes of a TensorImpl
PLAIN = {torch.Tensor, torch.nn.Parameter}  # subclasses may keep their data elsewhere


@cache
def trouble() -> str | None:
    """Why no function of torch's libraries is called; None where all of them can be."""
    if (found := switch.objection("python", "torch")) is not None:
        return found
    headers = Path(torch.__file__).parent / "include"
    try:
        for name in (GRAD, BUMP, LISTENING, *(f"aoti_torch_{fact}" for fact in FACTS)):
            getattr(library(), name)
        other = [name for name, text in DECLARED.items() if text not in (headers / name).read_text()]
    except (OSError, AttributeError) as error:
        return str(error)
    return f"{other[0]} declares another function" if other else None


@cache
def library() -> Any:
    """torch's libraries."""
    return ctypes.CDLL(torch._C.__file__)


def always() -> bool:
    """What is certain where nobody says whether a profiler listens."""
    return True


def listener() -> Callable[[], bool]:
    """A function that tells whether a profiler or another observer listens to torch's records."""

    def asked() -> Callable[[], bool]:
        found: Any = ctypes.PyDLL(torch._C.__file__)[LISTENING]
        found.restype = ctypes.c_bool
        result: Callable[[], bool] = found
        return result

    switch.decided["torch's observers"] = why_not = trouble()
    return always if why_not is not None else asked()


listening = listener()


def word_of_impl(tensors: Sequence[torch.Tensor]) -> int | None:
    """Which 8 bytes of a tensor's Python object hold the address of its TensorImpl: looked for, not assumed. They follow
    `torch.utils.swap_tensors`, and asking each object for `_cdata` would take half of the time of a look.
    """
    size = min(type(t).__basicsize__ for t in tensors) // 8
    return _word(((id(t), t._cdata) for t in tensors), size)


def word_of_storage(tensors: Sequence[torch.Tensor]) -> int:
    """Which 8 bytes of a TensorImpl hold the address of its storage: known, it is asked for ahead. The first if none does."""
    return _word(((t._cdata, t.untyped_storage()._cdata) for t in tensors), IMPL // 8) or 0


def slots(tensors: Sequence[torch.Tensor]) -> NDArray[np.int64] | None:
    """Which 8 bytes of these DTensors hold how they are cut, which the address of their local tensor, which 8 bytes of a TensorImpl
    that of its Python object; and the address of the type of plain tensors. None where they cannot be found.
    """
    if not tensors:
        return np.zeros(4, np.int64)
    size, every = min(type(t).__basicsize__ for t in tensors) // 8, [(t, t._spec, t._local_tensor) for t in tensors]  # type: ignore[attr-defined]
    found = [
        _word(((id(t), id(spec)) for t, spec, _ in every), size),
        _word(((id(t), id(local)) for t, _, local in every), size),
        _word(((t._cdata, id(t)) for t in tensors), IMPL // 8),
    ]
    plain = all(type(local) is torch.Tensor for *_, local in every)
    return np.array([*found, id(torch.Tensor)], np.int64) if plain and None not in found else None


def _word(objects: Iterable[tuple[int, int]], size: int) -> int | None:
    """Which of the first words of each object is the number that goes with it."""
    same = np.ones(size, bool)
    for address, number in objects:
        same &= memory(address, WORD, size) == number
    return int(np.argmax(same)) if same.any() else None
