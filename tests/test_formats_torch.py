"""Formats of parameters in `gpuopt.torch`: the bits of arrays, checkpoints, gradient release, mixed dtypes, and what is refused."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from gpuopt import rules
from gpuopt.errors import InputError
from gpuopt.formats import OF_PARAMETERS
from gpuopt.formats.dtypes import numpy_dtype

DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


def start(dtype: torch.dtype, seed: int = 0) -> torch.nn.Parameter:
    values = np.random.default_rng(seed).standard_normal((40, 25)).astype(np.float32)
    return torch.nn.Parameter(torch.from_numpy(values).to(dtype))


def raw(tensor: torch.Tensor) -> Any:
    """Its bits, as NumPy has them."""
    tensor = tensor.detach()
    return tensor.view(torch.uint16).numpy() if tensor.dtype in DTYPES else tensor.numpy()


def stepped(opt: Any, p: torch.nn.Parameter, steps: range) -> None:
    for k in steps:
        p.grad = start(p.dtype, 100 + k).detach()
        opt.step()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OF_PARAMETERS)
def test_torch_and_arrays_have_the_same_bits(name: str, dtype: torch.dtype) -> None:
    p = start(dtype)
    q = raw(p).copy().view(numpy_dtype(DTYPES[dtype]))
    options = {"lr": 1e-3, "param_format": name, "state_format": "bfloat16", "seed": 4}
    theirs, ours = gpuopt.torch.AdamW([p], **options), gpuopt.AdamW([q], **options)
    for k in range(4):
        stepped(theirs, p, range(k, k + 1))
        ours.step([raw(p.grad).view(q.dtype)])
    assert np.array_equal(raw(p), q.view(np.uint16))
    found = ours.state_dict()["state"][0]
    for key, value in theirs.state[p].items():
        if key != "step":
            assert np.array_equal(raw(value), found[key].view(raw(value).dtype)), key
    (one,), (other,) = gpuopt.full_precision(theirs), gpuopt.full_precision(ours)
    assert one.dtype == torch.float32 and np.array_equal(one.numpy(), other)


@pytest.mark.parametrize("name", OF_PARAMETERS)
def test_a_checkpoint_goes_on_with_the_same_bits(name: str) -> None:
    """Through torch.save with weights_only and a deepcopy."""
    p, q = start(torch.bfloat16), start(torch.bfloat16)
    options = {"lr": 1e-3, "param_format": name, "seed": 1}
    whole, first = gpuopt.torch.AdamW([p], **options), gpuopt.torch.AdamW([q], **options)
    first.init_state()
    stepped(whole, p, range(6))
    stepped(first, q, range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again = gpuopt.torch.AdamW([q], **options)
    again.load_state_dict(torch.load(file, weights_only=True))
    planes = {k: v.dtype for k, v in whole.state[p].items() if k.startswith("param_")}
    stepped(again, q, range(3, 4))
    assert planes == {k: v.dtype for k, v in again.state[q].items() if k.startswith("param_")}
    other = copy.deepcopy(again)
    r = other.param_groups[0]["params"][0]
    stepped(again, q, range(4, 6))
    stepped(other, r, range(4, 6))
    for tensor, opt in ((q, again), (r, other)):
        assert np.array_equal(raw(tensor), raw(p))
        assert all(np.array_equal(raw(opt.state[tensor][key]), raw(whole.state[p][key])) for key in planes)


def test_states_may_be_allocated_beforehand() -> None:
    p, q = start(torch.bfloat16), start(torch.bfloat16)
    made = [gpuopt.torch.AdamW([x], lr=1e-3, param_format="master32") for x in (p, q)]
    made[1].init_state()
    assert torch.equal(made[1].state[q]["param_master"], q.detach().float())
    for opt, x in zip(made, (p, q), strict=True):
        stepped(opt, x, range(3))
    assert np.array_equal(raw(p), raw(q))


def test_checkpoints_go_from_format_to_format_and_to_torch() -> None:
    p = start(torch.bfloat16)
    saved: Any = None
    for name in ("split8", "native", "master32", "stochastic"):
        opt = gpuopt.torch.AdamW([p], lr=1e-3, param_format=name)
        if saved is not None:
            opt.load_state_dict(saved)
        stepped(opt, p, range(2))
        saved = copy.deepcopy(opt.state_dict())
    assert float(opt.state[p]["step"]) == 8


def test_release_of_gradients_and_a_scaler_do_what_a_step_does() -> None:
    results = []
    for release in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 1)).bfloat16()
        model[1].float()  # as norms are kept: left alone by the format
        opt = gpuopt.torch.AdamW(model.parameters(), lr=0.01, param_format="split8", seed=9)
        end = gpuopt.torch.release_gradients(model, opt) if release else None
        for _ in range(3):
            hidden = model[1](model[0](torch.ones(4, 8).bfloat16()).float())
            model[2](hidden.bfloat16()).square().mean().backward()
            opt.step()
            opt.zero_grad()
        if end is not None:
            end()
        results.append([full.tolist() for full in gpuopt.full_precision(opt)])
        assert "param_low" in opt.state[model[0].weight] and "param_low" not in opt.state[model[1].weight]
    assert results[0] == results[1]


AVERAGING = ("schedulefreesgd", "schedulefreeadamw", "schedulefreeradam")


@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.parametrize("kept", OF_PARAMETERS)
def test_averaged_parameters_are_those_of_full_precision(kept: str, name: str) -> None:
    """eval() shows them, train() brings back what was trained, by arrays and by torch alike."""
    p, wide = start(torch.bfloat16), start(torch.float32)
    q = raw(p).copy().view(numpy_dtype("bfloat16"))
    options = {"lr": 0.1, "param_format": kept, "seed": 2}
    title = rules.get(name).title
    theirs, ours = getattr(gpuopt.torch, title)([p], **options), gpuopt.create(name, [q], **options)
    with torch.no_grad():
        wide.copy_(p)
    exact = getattr(gpuopt.torch, title)([wide], lr=0.1)
    for k in range(5):
        stepped(theirs, p, range(k, k + 1))
        wide.grad = p.grad.float()
        exact.step()
        ours.step([raw(p.grad).view(q.dtype)])
    (average,), (expected,) = theirs.averaged_params(), exact.averaged_params()
    trained = gpuopt.full_precision(theirs)[0]
    for opt in (theirs, ours):
        opt.eval()
    assert np.array_equal(raw(p), q.view(np.uint16))
    # five roundings to 8 bits of numbers up to 4, each by less than 2^-6
    tolerance = {"stochastic": 5 / 64, "kahan": 2e-4, "split8": 2e-4}.get(kept, 1e-6)
    assert (gpuopt.full_precision(theirs)[0] - expected).abs().max() < tolerance
    assert (average.float() - expected).abs().max() < 0.03
    for opt in (theirs, ours):
        opt.train()
    assert np.array_equal(raw(p), q.view(np.uint16))
    assert (gpuopt.full_precision(theirs)[0] - trained).abs().max() < min(10 * tolerance, 0.3)


def test_a_state_observed_between_steps_goes_with_a_format() -> None:
    p = np.ones(50, np.float16)
    opt = gpuopt.SophiaG([p], lr=1e-3, param_format="split8")
    opt.update_hessian([np.ones(50, np.float16)])
    opt.step([np.ones(50, np.float16)])
    assert opt.state_dict()["state"][0]["param_low"].dtype == np.int8


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"param_format = 'kahan' is for parameters of 16 bits.*float32: leave it at native"
    ):
        gpuopt.torch.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1, param_format="kahan")
    with pytest.raises(InputError, match=r"full_precision: found SGD: expected an optimizer of gpuopt"):
        gpuopt.full_precision(torch.optim.SGD([start(torch.bfloat16)], lr=0.1))
