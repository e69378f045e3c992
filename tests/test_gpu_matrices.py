"""Optimizers of matrices on a GPU: stages and products in their order, skipped steps, CUDA graphs. Marked `gpu`.

Products themselves are made on the host here, by what NumPy does, so that bits can be compared and the driver in software, which
has no BLAS, runs them too; those of the arrays' own library are looked at where there is hardware.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import InputError, linalg
from gpuopt.launch import padding, products
from graphs import BACKENDS
from host_products import check_bases, host_products
from samples import difference

pytestmark = pytest.mark.gpu
SHAPES = ((40, 50), (50, 40), (40, 50), (3, 20, 30), (7,), (4, 2, 3, 3))


def numbers(seed: int, dtype: str) -> list[Any]:
    from gpuopt.formats.dtypes import numpy_dtype

    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(numpy_dtype(dtype)) for shape in SHAPES]


def there(array: Any) -> Any:
    import cupy

    raw = cupy.asarray(array.view(f"u{array.itemsize}"))
    return raw if array.dtype.kind == "u" else raw.view(array.dtype)


def trained(backend: str, name: str, dtype: str, broken: int = -1, **options: Any) -> list[bytes]:
    """The bits of all parameters after four steps, one of which may have a NaN in its gradients."""
    place = np.copy if backend == "numpy" else there
    params = [place(a) for a in numbers(0, dtype)]
    opt = gpuopt.create(name, params, backend=backend, lr=0.02, **options)
    for step in range(1, 5):
        grads = numbers(step, dtype)
        if step == broken:
            grads[1][3, 3] = np.nan
        opt.step([place(g) for g in grads])
    assert opt.skipped == (broken > 0)
    return [(p if backend == "numpy" else p.get()).tobytes() for p in params]


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of arrays on a device are made on the host."""
    host_products(monkeypatch)


@pytest.mark.usefixtures("hosted")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "dtype", "options"),
    [
        ("muon", "float32", {"max_grad_norm": 1.0}),
        ("normuon", "float32", {"state_format": "int8"}),
        ("namo", "bfloat16", {"rest": {"lr": 1e-3}, "state_format": "bfloat16", "param_format": "split8"}),
        ("adamuon", "float32", {"skip_nonfinite": True, "broken": 2}),
        ("soap", "float32", {"max_grad_norm": 1.0, "precondition_frequency": 1}),
        ("apollo", "float32", {"max_grad_norm": 1.0, "rank": 4, "update_proj_gap": 2}),
        ("dion2", "float32", {"skip_nonfinite": True, "broken": 2}),
        ("kron", "float32", {"max_prob": 0.5, "max_size_triangular": 40}),
        ("soap", "bfloat16", {"state_format": "bfloat16", "max_precond_dim": 40}),
        ("soapmuon", "float32", {"update_floor": 0.35}),
    ],
)
def test_stages_have_the_bits_of_numpy(name: str, dtype: str, options: dict[str, Any], backend: str) -> None:
    assert trained(backend, name, dtype, **options) == trained("numpy", name, dtype, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_near_shapes_are_one_batch(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prices, options = padding.GPU, {"skip_nonfinite": True, "broken": 2}
    expected = trained("numpy", "muon", "float32", **options)
    host_products(monkeypatch)
    monkeypatch.setattr(padding, "GPU", prices)
    multiply, seen = products.RUNS["orthogonalize"], []

    def noted(x: Any, *words: Any) -> Any:
        seen.append(x.shape)
        return multiply(x, *words)

    monkeypatch.setitem(products.RUNS, "orthogonalize", noted)  # type: ignore[arg-type]
    found = trained(backend, "muon", "float32", **options)
    assert seen == [(3 + 3 + 1, 40, 50)] * 4, "a stack of three among them, and a convolution"
    for a, b in zip(found, expected, strict=True):
        assert difference(np.frombuffer(a, np.float32), np.frombuffer(b, np.float32)) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_bases_are_not_renewed_where_the_count_is_on_the_device(backend: str) -> None:
    for options in ({"skip_nonfinite": True}, {"capturable": True}):
        p = there(np.ones((3, 4), np.float32))
        opt = gpuopt.SOAP([p], backend=backend, **options)
        with pytest.raises(InputError, match="SOAP multiplies matrices by the step count, which stays on the GPU"):
            opt.step([there(np.ones((3, 4), np.float32))])
        assert (p.get() == 1).all()


@pytest.mark.hardware
def test_bases_of_the_library_are_those_of_numpy() -> None:
    import cupy

    check_bases(cupy.asarray, cupy.asnumpy, 40, 60, 1e-10)


@pytest.mark.hardware
@pytest.mark.parametrize("name", linalg.COEFFICIENTS)
def test_products_of_the_library_are_near_those_of_numpy(name: str) -> None:
    """Operands have 11 bits there, sums 24."""
    import cupy

    for shape in ((3, 64, 64), (2, 48, 300), (2, 300, 48)):
        x = np.random.default_rng(0).standard_normal(shape)
        exact = linalg.orthogonalize(x.copy(), name)
        assert difference(linalg.orthogonalize(cupy.asarray(x), name).get(), exact) < 1e-10
        assert difference(linalg.orthogonalize(cupy.asarray(x.astype(np.float32)), name).get(), exact) < 0.05


@pytest.mark.hardware
def test_a_captured_step_multiplies_too() -> None:
    import torch

    import gpuopt.torch

    params = [torch.nn.Parameter(torch.randn(64, 48, device="cuda")) for _ in range(2)]
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    for p, q in zip(params, twins, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    opts = [gpuopt.torch.Muon(of, lr=0.02, capturable=True) for of in (params, twins)]
    for opt in opts:
        opt.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        opts[0].step()
    for _ in range(3):
        graph.replay()
        opts[1].step()
    assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))
