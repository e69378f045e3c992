"""Every CPU configuration of torch's own table of optimizers, ours beside torch's: parameters, states, groups, repr.

The table is read from torch and the optimizers from gpuopt, so a rule that is added later is checked without a change here.
Knows no rule by name.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torch_inputs import OURS, SHARED, takes_any_shape, takes_empty
from torch_samples import default_dtype

SHAPES = ((10, 5), (10,), (0,), (3, 4, 5), ())
STEPS = 7
# float32: torch rounds a step size in float64 and its operands in another order, so a few ulp of the largest value.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 8 * torch.finfo(torch.float32).eps}
TABLE = [
    pytest.param(info.optim_cls, OURS[info.optim_cls.__name__], given.kwargs, id=f"{info.optim_cls.__name__}-{k}")
    for info in SHARED
    for k, given in enumerate(info.optim_inputs_func(device="cpu"))
]


def protocol(cls: Any, kwargs: dict[str, Any], dtype: torch.dtype) -> tuple[list[torch.nn.Parameter], Any]:
    """Seven steps: a missing gradient at step 3, a layer frozen for steps 4 to 6, an empty parameter all the time where torch
    takes one.
    """
    with default_dtype(dtype):
        return stepped(cls, kwargs, dtype)


def stepped(cls: Any, kwargs: dict[str, Any], dtype: torch.dtype) -> tuple[list[torch.nn.Parameter], Any]:
    values = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, dtype=dtype, generator=values)) for s in SHAPES]
    params = params if takes_any_shape(cls) else [p for p in params if p.ndim == 2]
    params = params if takes_empty(getattr(torch.optim, cls.__name__)) else [p for p in params if p.numel()]
    opt = cls(params, **kwargs)
    for step in range(STEPS):
        for k, p in enumerate(params):
            grad = torch.randn(p.shape, dtype=dtype, generator=values)
            missing = (step == 3 and k == 1) or (step >= 4 and k == 3)
            p.grad = None if missing else grad
        opt.step()
    return params, opt


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over largest value: a parameter may pass zero on its way."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if not expected.numel():
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def check(found: torch.Tensor, expected: torch.Tensor, bound: float, what: str) -> None:
    assert difference(found.detach(), expected.detach()) <= bound, f"{what}: {found} is not {expected}"


def tensors_of(state: dict[str, Any]) -> dict[str, Any]:
    """The entries of one parameter; torch writes None for a state that it does not keep."""
    return {key: value for key, value in state.items() if value is not None}


def test_the_table_has_every_optimizer_that_torch_and_gpuopt_have() -> None:
    shared = {title for title in OURS if hasattr(torch.optim, title)}
    assert {p.values[0].__name__ for p in TABLE} == shared
    assert len(TABLE) >= 34


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("theirs", "ours", "kwargs"), TABLE)
def test_configuration(theirs: Any, ours: Any, kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    expected, reference = protocol(theirs, kwargs, dtype)
    found, opt = protocol(ours, kwargs, dtype)
    bound = TOLERANCES[dtype]
    for k, (p, q) in enumerate(zip(found, expected, strict=True)):
        check(p, q, bound, f"parameter {k}")

    made, wanted = opt.state_dict(), reference.state_dict()
    assert list(made["state"]) == list(wanted["state"])
    for k, state in wanted["state"].items():
        assert list(made["state"][k]) == list(tensors_of(state))
        for key, value in tensors_of(state).items():
            if not found[k].numel() and key != "step":
                continue  # nothing is done once for a tensor without elements
            exact = key == "step"
            check(made["state"][k][key], value, 0.0 if exact else bound, f"{key} of parameter {k}")

    assert repr(made["param_groups"]) == repr(wanted["param_groups"])
    assert repr(opt) == repr(reference)
    assert repr(opt.defaults) == repr(reference.defaults)
    assert [list(group) for group in opt.param_groups] == [list(group) for group in reference.param_groups]


@pytest.mark.parametrize(("theirs", "ours", "kwargs"), TABLE)
def test_loads_torchs_checkpoint_and_torch_loads_ours(theirs: Any, ours: Any, kwargs: dict[str, Any]) -> None:
    """Torch for seven steps, ours from its checkpoint, torch from ours: as torch alone, to the last digits of float64."""
    expected, reference = protocol(theirs, kwargs, torch.float64)
    found, opt = expected, reference
    for cls in (ours, theirs):
        copies = [torch.nn.Parameter(p.detach().clone()) for p in found]
        following = cls(copies, **kwargs)
        following.load_state_dict({**opt.state_dict(), "state": clones(opt.state_dict()["state"])})
        found, opt = copies, following
        for step in range(3):
            grads = [torch.sin(torch.arange(p.numel(), dtype=p.dtype) + step).view_as(p) for p in found]
            for p, q, g in zip(found, expected, grads, strict=True):
                p.grad, q.grad = g.clone(), g
            with default_dtype(torch.float64):
                opt.step()
                reference.step()
    assert [list(s) for s in opt.state.values()] == [list(s) for s in reference.state.values()]
    for p, q in zip(found, expected, strict=True):
        check(p, q, 1e-12, "parameter")


def clones(states: dict[int, Any]) -> dict[int, Any]:
    """Torch's load_state_dict keeps tensors that need no cast: without a copy two optimizers would share their states."""
    return {k: {n: v.clone() if torch.is_tensor(v) else v for n, v in state.items()} for k, state in states.items()}
