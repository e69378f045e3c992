"""Rules that look at whole tensors, as optimizers of torch: states of one number in `self.state` and in checkpoints, autograd
through a sum over all parameters, gradient release.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from samples import bits, difference, gradients, parameters
from test_sums import centred, centred_in_numpy
from torch_samples import bits as torch_bits

RULES = ("adammini", "lamb", "lars", "mars", "novograd", "prodigy", "stableadamw")


def trained(
    opt: Any, params: Sequence[torch.Tensor], steps: Sequence[int], without: Sequence[int] = (), down: bool = True
) -> None:
    """down: gradients lead to zero, but for some noise, so that Prodigy's rate grows."""
    for step in steps:
        for k, (p, g) in enumerate(zip(params, gradients(step, [tuple(p.shape) for p in params]), strict=True)):
            noise = torch.from_numpy(np.array(g)).to(p.dtype)
            p.grad = None if k in without else p.detach() + noise / 8 if down else noise
        opt.step()


def tensors(shapes: Sequence[tuple[int, ...]] = ((3, 4), (7,), (5,)), dtype: Any = torch.float32) -> list[Any]:
    return [torch.nn.Parameter(torch.from_numpy(p.copy()).to(dtype)) for p in parameters(shapes)]


def test_a_number_for_all_is_one_tensor_in_torch() -> None:
    params = tensors()
    opt = gpuopt.torch.Prodigy(params)
    trained(opt, params, range(3))
    for key in ("d", "d_max", "d_numerator"):
        assert len({id(opt.state[p][key]) for p in params}) == 1 and opt.state[params[0]][key].shape == ()
    assert float(opt.state[params[2]]["d"]) > 1e-6
    one = gpuopt.torch.NovoGrad(tensors())
    one.init_state()
    assert {v["exp_avg_sq"].shape for v in one.state.values()} == {()}


@pytest.mark.parametrize("way", ["load", "save", "deepcopy", "pickle"])
def test_a_number_for_all_after_loading(way: str, tmp_path: Path) -> None:
    """torch gives each parameter a copy. One that had no gradient since must not bring its own back."""
    params = tensors()
    opt = gpuopt.torch.Prodigy(params)
    trained(opt, params, range(3))
    if way == "deepcopy":
        again, others = copy.deepcopy((opt, params))
    elif way == "pickle":
        again, others = pickle.loads(pickle.dumps((opt, params)))
    else:
        others = [torch.nn.Parameter(p.detach().clone()) for p in params]
        again = gpuopt.torch.Prodigy(others)
        torch.save(opt.state_dict(), tmp_path / "saved.pt")
        loaded = torch.load(tmp_path / "saved.pt", weights_only=True) if way == "save" else opt.state_dict()
        again.load_state_dict(copy.deepcopy(loaded))
        assert len({id(again.state[p]["d"]) for p in others}) == 1
    for each, tensors_ in ((opt, params), (again, others)):
        trained(each, tensors_, range(3, 6), without=[0])
        trained(each, tensors_, range(6, 8))
        assert len({id(each.state[p]["d"]) for p in tensors_}) == 1
    assert torch_bits([params, opt.state_dict()]) == torch_bits([others, again.state_dict()])


def test_a_parameter_that_joins_later_does_not_begin_anew_for_all() -> None:
    params = tensors()
    opt = gpuopt.torch.Prodigy(params)
    trained(opt, params, range(5), without=[0])
    reached = float(opt.state[params[1]]["d"])
    assert reached > 1e-6 and params[0] not in opt.state
    trained(opt, params, range(5, 6))
    assert float(opt.state[params[0]]["d"]) >= reached and opt.state[params[0]]["d"] is opt.state[params[1]]["d"]


def test_torch_and_arrays_agree() -> None:
    for name in RULES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            params = tensors(dtype=dtype)
            arrays = [p.detach().clone().numpy() for p in params] if dtype != torch.bfloat16 else None
            opt = gpuopt.torch.create(name, params, lr=0.01)
            trained(opt, params, range(4), down=False)
            assert all(bool(p.isfinite().all()) for p in params)
            if arrays is not None:
                same = gpuopt.create(name, arrays, lr=0.01, backend="numpy")
                for step in range(4):
                    same.step([np.asarray(g, arrays[0].dtype) for g in gradients(step, [a.shape for a in arrays])])
                assert bits(arrays) == bits([p.detach().numpy() for p in params]), (name, dtype)


def test_checkpoints_that_do_not_fit() -> None:
    params = tensors()
    opt = gpuopt.torch.NovoGrad(params)
    trained(opt, params, range(2))
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][1]["exp_avg_sq"] = torch.ones(7)
    with pytest.raises(gpuopt.InputError, match=r"exp_avg_sq of .*: torch.float32 \(7,\): expected one real number"):
        opt.load_state_dict(saved)
    saved["state"][1]["exp_avg_sq"] = torch.ones(1, dtype=torch.float64)  # of one element is one number
    opt.load_state_dict(saved)
    assert opt.state[params[1]]["exp_avg_sq"].shape == () and opt.state[params[1]]["exp_avg_sq"].dtype == torch.float32
    opt.state[params[1]]["exp_avg_sq"] = torch.tensor(2.0, dtype=torch.float64)  # as someone may put there
    trained(opt, params, [2])
    assert params[1].grad is not None
    expected = 0.98 * 2.0 + 0.02 * float(params[1].grad.double().square().sum())
    assert float(opt.state[params[1]]["exp_avg_sq"]) == pytest.approx(expected, rel=1e-6)


def test_gradient_release_refuses_what_needs_every_gradient() -> None:
    model = torch.nn.Linear(3, 2)
    for name in ("LAMB", "Prodigy"):
        with pytest.raises(
            gpuopt.InputError, match=f"cannot go with {name}: a step of it needs every gradient at once"
        ):
            gpuopt.torch.release_gradients(model, getattr(gpuopt.torch, name)(model.parameters()))
    gpuopt.torch.release_gradients(model, gpuopt.torch.NovoGrad(model.parameters()))()


def test_autograd_goes_through_a_sum_over_all_parameters() -> None:
    """A gradient of one parameter moves another, by the norm that both are part of; finite differences say the same."""

    def stepped(*grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        params = [torch.full_like(g, 2.0) for g in grads]
        for p, g in zip(params, grads, strict=True):
            p.requires_grad_(False)
            p.grad = g
        opt = gpuopt.torch.LAMB(params, lr=0.1, differentiable=True)
        opt.step()
        return tuple(params)

    inputs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([3.0, -2.0], [1.0, 0.5, -4.0])]
    assert torch.autograd.gradcheck(stepped, inputs)
    moved = torch.autograd.grad(stepped(*inputs)[1].sum(), inputs)
    assert all(bool(m.abs().sum() > 0) for m in moved)
    made = gpuopt.torch.make_optimizer(centred)
    (p,) = (torch.ones(4, dtype=torch.float64),)
    p.grad = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    before = [p.numpy().copy()]
    made([p], lr=0.1, differentiable=True).step()
    centred_in_numpy(before, [p.grad.numpy()], 0.1)
    assert difference(p.numpy(), before[0]) < 1e-14
