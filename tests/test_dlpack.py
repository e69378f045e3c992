"""Arrays of a library that gpuopt does not know, through DLPack: stepped where they lie, or refused with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
from samples import HOST_BACKENDS, Array, bits, gradients, parameters

SHAPES = [(3, 4), (2, 3, 5), (7,)]
STEPS = 4


class Foreign:
    """An array that offers DLPack and nothing else."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("backend", HOST_BACKENDS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_as_numpy_arrays(order: Any, backend: str) -> None:
    """Gradients too, and in another memory order than their parameters'."""
    found, expected = parameters(SHAPES), parameters(SHAPES)
    ours = gpuopt.AdamW([Foreign(p) for p in found], lr=0.1, backend=backend)
    usual = gpuopt.AdamW(expected, lr=0.1, backend=backend)
    for step in range(STEPS):
        ours.step([Foreign(np.asarray(g, order=order)) for g in gradients(step, SHAPES)])
        usual.step(gradients(step, SHAPES))
    assert bits(found) == bits(expected)
    assert bits(ours.state_dict()["state"]) == bits(usual.state_dict()["state"])


def test_torch_tensors_without_gpuopt_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpuopt.arrays, "KINDS", tuple(k for k in gpuopt.arrays.KINDS if k.name != "torch"))
    monkeypatch.setattr(gpuopt.arrays, "_by_type", {})
    p, expected = torch.ones(5), np.ones(5, np.float32)
    for params, grad in ((p, torch.full((5,), 0.5)), (expected, np.full(5, 0.5, np.float32))):
        gpuopt.Lion(params, lr=0.1).step(grad)
    assert p.numpy().tobytes() == expected.tobytes()
    with pytest.raises(gpuopt.InputError, match=r"params\[0\]: a Tensor .* requires grad.*gpuopt\.torch\.Lion"):
        gpuopt.Lion([torch.ones(5, requires_grad=True)], lr=0.1)


def test_an_array_that_may_not_be_written_is_refused() -> None:
    """JAX's arrays are such."""
    import jax.numpy

    with pytest.raises(gpuopt.InputError, match=r"params\[0\]: the array is read-only"):
        gpuopt.SGD([jax.numpy.ones(3)], lr=0.1)
    p = np.ones(3, np.float32)
    gpuopt.SGD([p], lr=0.5).step([jax.numpy.ones(3)])
    assert p.tolist() == [0.5] * 3
