"""What an optimizer over arrays takes and refuses as parameters, gradients and checkpoints, and what it tells whom it refuses."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections import deque
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from gpuopt.errors import DtypeError, InputError
from samples import HOST_BACKENDS, bits, refused

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)

# ------------------------------------------------------------------------------------------------ what is taken


@BACKENDS
def test_parameters_may_be_any_iterable(backend: str) -> None:
    made = {"a": np.ones(3), "b": np.ones((2, 2))}
    for wrap in (iter, deque, lambda v: (x for x in v), tuple):
        params = {key: value.copy() for key, value in made.items()}
        opt = gpuopt.GD(wrap(list(params.values())), lr=0.5, backend=backend)
        opt.step(wrap([np.ones(3), np.ones((2, 2))]))
        assert all((p == 0.5).all() for p in params.values())
    params = {key: value.copy() for key, value in made.items()}
    opt = gpuopt.GD(params.values(), lr=0.5, backend=backend)
    opt.step({key: np.ones_like(value) for key, value in params.items()}.values())
    assert all((p == 0.5).all() for p in params.values())
    opt = gpuopt.GD(({"params": iter([p])} for p in params.values()), lr=0.5, backend=backend)
    opt.step([[np.ones(3)], [np.ones((2, 2))]])
    assert all((p == 0).all() for p in params.values())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.nn.Parameter(torch.ones(3)), "gpuopt.torch.AdamW"),
        (torch.ones(3, requires_grad=True), "gpuopt.torch.AdamW"),
        (np.ones(3, int), "float32"),
        (1.0, "numpy.asarray"),
        ("weights", "numpy.asarray"),
        (jnp.ones(3), "read-only"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_is_no_parameter_says_what_to_do(given: Any, words: str) -> None:
    with pytest.raises(gpuopt.GpuoptError) as caught:
        gpuopt.AdamW([given])
    assert words in str(caught.value) and "params[0]" in str(caught.value) and "''" not in str(caught.value)


@BACKENDS
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), 0.5, np.int64(2)], ids=lambda v: type(v).__name__)
def test_a_number_is_the_gradient_of_one_element(backend: str, shape: Any, number: Any) -> None:
    p = np.ones(shape)
    opt = gpuopt.GD([p], lr=0.5, backend=backend)
    for step in range(2):
        opt.step([number * (1 + step)])
    assert p.item() == 1 - 1.5 * float(number)
    with pytest.raises(DtypeError, match="expected a dense array"):
        gpuopt.GD([np.ones(2)], lr=0.5, backend=backend).step([0.5])


@BACKENDS
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_bfloat16_of_other_libraries(backend: str, library: str) -> None:
    """As gradients, read where they are or copied; torch's as parameters too."""

    p, g = (np.arange(1, 5).astype(ml_dtypes.bfloat16) for _ in range(2))
    given = torch.arange(1, 5).to(torch.bfloat16) if library == "torch" else jnp.arange(1, 5).astype(jnp.bfloat16)
    expected = p.copy()
    gpuopt.GD([p], lr=0.5, backend=backend).step([given])
    gpuopt.GD([expected], lr=0.5, backend=backend).step([g])
    assert bits(p.view(np.uint16)) == bits(expected.view(np.uint16))
    if library == "torch":
        gpuopt.GD([given], lr=0.5, backend=backend).step([g])
        assert bits(given.view(torch.uint16).numpy()) == bits(expected.view(np.uint16))


def test_torch_tensors_need_no_import_of_the_adapter() -> None:
    """The same whether `gpuopt.torch` was imported elsewhere or not."""
    text = (
        "import sys, torch, gpuopt; p = torch.ones(3, dtype=torch.bfloat16); assert 'gpuopt.torch' not in sys.modules;"
        "gpuopt.GD([p], lr=0.5).step([torch.ones(3, dtype=torch.bfloat16)]); assert p.tolist() == [0.5] * 3"
    )
    subprocess.run([sys.executable, "-c", text], check=True, timeout=200)


# ------------------------------------------------------------------------------------------------ checkpoints


def trained(backend: str, steps: range, opt: Any = None, p: Any = None, form: str = "float32") -> tuple[Any, Any]:
    p = np.linspace(0, 1, 5).astype(np.float32) if p is None else p
    opt = gpuopt.AdamW([p], lr=0.1, amsgrad=True, backend=backend, state_format=form) if opt is None else opt
    for k in steps:
        opt.step([np.cos(np.arange(5.0) + k).astype(np.float32)])
    return opt, p


@BACKENDS
@pytest.mark.parametrize("way", ["json", "npz"])
@pytest.mark.parametrize("form", ["float32", "bfloat16"])
def test_state_dicts_survive(backend: str, form: str, way: str, tmp_path: Any) -> None:
    """Numbers as lists, indices as text, step counts as arrays: what JSON and npz make of them."""
    _, expected = trained(backend, range(6), form=form)
    opt, p = trained(backend, range(3), form=form)
    saved = opt.state_dict()
    if way == "json":
        plain = {
            i: {k: v if k == "step" else v.astype(float).tolist() for k, v in s.items()}
            for i, s in saved["state"].items()
        }
        saved = json.loads(json.dumps(saved | {"state": plain}))
    else:
        np.savez(tmp_path / "s.npz", **saved["state"][0])
        with np.load(tmp_path / "s.npz") as found:
            saved = saved | {"state": {0: dict(found)}}
    again = gpuopt.AdamW([p], lr=0.1, amsgrad=True, backend=backend, state_format=form)
    again.load_state_dict(saved)
    trained(backend, range(3, 6), again, p)
    assert bits(p) == bits(expected) and again.state_dict()["state"][0]["step"] == 6


@BACKENDS
def test_a_checkpoint_without_its_states_is_refused(backend: str) -> None:
    opt, p = trained(backend, range(3))
    for lost in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step", None):
        saved = opt.state_dict()
        saved["state"][0] = {"step": 3} if lost is None else {k: v for k, v in saved["state"][0].items() if k != lost}
        again = gpuopt.AdamW([p], lr=0.1, amsgrad=True, backend=backend)
        with refused(again, InputError, "params[0]", lost or "exp_avg"):
            again.load_state_dict(saved)


@pytest.mark.parametrize("title", ["AdamW", "SGD", "GD", "Lion"])
@pytest.mark.parametrize("api", ["arrays", "torch"])
def test_an_unknown_option_is_told_all_that_there_are(api: str, title: str) -> None:
    """Each of them, by the signature of the class, and the one that was meant."""
    made = getattr(gpuopt if api == "arrays" else gpuopt.torch, title)
    with pytest.raises((InputError, TypeError)) as caught:
        made([torch.ones(3)], lr=0.1, weight_dekay=0.1)
    said = str(caught.value)
    words = (
        "lr",
        "weight_decay",
        "clip_value",
        "l1",
        "max_grad_norm",
        "mask",
        "seed",
        "state_format",
        "skip_nonfinite",
    )
    names = {n for n, p in inspect.signature(made).parameters.items() if p.kind is not p.VAR_KEYWORD} - {
        "params",
        "self",
    }
    assert {name for name in (*words, *names) if f" {name}," not in said.replace(";", ",")} == set()
    assert "did you mean 'weight_decay'?" in said


@pytest.mark.parametrize("api", ["arrays", "torch"])
def test_repr_shows_what_is_set(api: str) -> None:
    options = {"max_grad_norm": 2.0, "state_format": "bfloat16", "seed": 7}
    opt = (gpuopt if api == "arrays" else gpuopt.torch).AdamW([torch.ones(3)], lr=0.5, **options)
    for text in ("AdamW", "max_grad_norm=2.0", "state_format=bfloat16", "seed=7", "0.5"):
        assert text in repr(opt)
    assert "skip_nonfinite" not in repr(opt) and "grad_scale" not in repr(opt)
    scaled = (gpuopt if api == "arrays" else gpuopt.torch).AdamW([torch.ones(3)], grad_scale=torch.ones(1))
    assert "grad_scale=tensor" in repr(scaled)
