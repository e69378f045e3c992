"""`gpuopt.torch` with states in 8 and 4 bits: the bits of the optimizer over arrays, checkpoints, and what lies between steps."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from gpuopt.errors import InputError

KINDS = ("int8", "int4", "float8")


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    made = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=made)) for s in ((24, 300), (5000,), (16, 8, 6, 6))]


def steps(opt: Any, p: list[torch.nn.Parameter], which: range) -> None:
    for k in which:
        made = torch.Generator().manual_seed(100 + k)
        for x in p:
            x.grad = 0.1 * x.detach() + 0.1 * torch.randn(x.shape, generator=made)
        opt.step()


@pytest.mark.parametrize("kept", KINDS)
def test_bits_are_those_of_arrays(kept: str) -> None:
    p = parameters()
    q = [x.detach().numpy().copy() for x in p]
    ours = gpuopt.torch.AdamW(p, lr=1e-2, state_format=kept, seed=3)
    theirs = gpuopt.AdamW(q, lr=1e-2, state_format=kept, seed=3)
    for k in range(4):
        steps(ours, p, range(k, k + 1))
        theirs.step([x.grad.numpy() for x in p if x.grad is not None])
    assert all(np.array_equal(x.detach().numpy(), y) for x, y in zip(p, q, strict=True))
    assert ours.nbytes == theirs.nbytes
    state = theirs.state_dict()["state"][0]
    assert all(np.array_equal(ours.state[p[0]][key].numpy(), state[key]) for key in state if key != "step")


@pytest.mark.parametrize("kept", KINDS)
def test_a_resumed_run_goes_on_with_the_same_bits(kept: str) -> None:
    p, q = parameters(), parameters()
    one = gpuopt.torch.AdamW(p, lr=1e-2, state_format=kept)
    steps(one, p, range(6))
    two = gpuopt.torch.AdamW(q, lr=1e-2, state_format=kept)
    steps(two, q, range(3))
    file = io.BytesIO()
    torch.save(two.state_dict(), file)
    file.seek(0)
    again = gpuopt.torch.AdamW(q, lr=1e-2, state_format=kept)
    again.load_state_dict(torch.load(file))
    steps(again, q, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(p, q, strict=True))
    other = copy.deepcopy(one)
    assert all(
        torch.equal(a, b) for a, b in zip(*(next(iter(o.state.values())).values() for o in (one, other)), strict=True)
    )


@pytest.mark.parametrize("bfloat16", [False, True])
def test_checkpoints_of_torch_go_into_codes_and_back(bfloat16: bool) -> None:
    """torch casts what it loads to the parameter's dtype: codes and scales come through all the same."""
    p = [torch.nn.Parameter(x.detach().bfloat16()) for x in parameters()] if bfloat16 else parameters()
    exact = torch.optim.AdamW(p, lr=1e-2)
    for k in range(20):
        made = torch.Generator().manual_seed(k)
        for x in p:
            x.grad = torch.randn(x.shape, generator=made).to(x.dtype)
        exact.step()
    saved: Any = exact.state_dict()
    for kept in ("int8", "int4", "float8", "int8"):
        opt = gpuopt.torch.AdamW(p, lr=1e-2, state_format=kept)
        opt.load_state_dict(saved)
        names = {v.dtype for key, v in opt.state[p[0]].items() if key.endswith("_code")}
        assert names == {torch.uint8} and "exp_avg" not in opt.state[p[0]] and "exp_avg" in opt.state[p[1]]
        saved = opt.state_dict()
    opt = gpuopt.torch.AdamW(p, lr=1e-2)
    opt.load_state_dict(saved)
    m, v = (opt.state[p[0]][key].float() for key in ("exp_avg", "exp_avg_sq"))
    there = exact.state[p[0]]
    for found, wanted in ((m, there["exp_avg"]), (v, there["exp_avg_sq"])):
        both = torch.stack([found.reshape(-1), wanted.float().reshape(-1)])
        assert torch.corrcoef(both)[0, 1] > 0.9
    opt.step()


def test_a_weight_whose_rows_lie_apart_is_stepped_in_a_copy() -> None:
    """A convolution in the order channels_last: blocks are of rows in C order, and the bits are those of that order."""
    plain = torch.nn.Parameter(torch.randn(16, 8, 6, 6, generator=torch.Generator().manual_seed(1)))
    moved = torch.nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    assert not moved.is_contiguous()
    for p in (plain, moved):
        opt = gpuopt.torch.AdamW([p], lr=1e-2, state_format="int8")
        steps(opt, [p], range(3))
    assert torch.equal(plain, moved) and moved.is_contiguous(memory_format=torch.channels_last)


def test_what_is_observed_between_steps_is_kept_in_codes() -> None:
    p = torch.nn.Parameter(torch.ones(64, 100))
    opt = gpuopt.torch.SophiaG([p], lr=1e-3, state_format={"exp_avg": "int8", "hessian": "int8"})
    p.grad = torch.full_like(p, 0.5)
    opt.update_hessian()
    opt.step()
    assert opt.state[p]["hessian_squares8_code"].any() and torch.isfinite(p).all()


def test_what_cannot_go_with_codes_is_said() -> None:
    with pytest.raises(InputError, match=r"differentiable=True cannot go with state_format = 'sign"):
        gpuopt.torch.SGD(parameters(), lr=1e-2, momentum=0.9, state_format="int8", differentiable=True)
    opt = gpuopt.torch.SGD(parameters(), lr=1e-2, momentum=0.9, state_format="int8")
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0] = {"momentum_buffer": torch.ones(3, 3)}
    with pytest.raises(InputError, match=r"momentum_buffer of .*: shape \(3, 3\): expected \(24, 300\)"):
        opt.load_state_dict(saved)


def test_averages_are_evaluated_where_states_are_in_codes() -> None:
    p, q = parameters(), parameters()
    one = gpuopt.torch.ScheduleFreeAdamW(p, lr=1e-2, state_format="int8")
    two = gpuopt.torch.ScheduleFreeAdamW(q, lr=1e-2)
    for opt, x in ((one, p), (two, q)):
        opt.train()
        steps(opt, x, range(5))
        opt.eval()
    assert "exp_avg_sq_squares8_code" in one.state[p[0]] and "z" in one.state[p[0]], (
        "what is a place is rounded only if it is named"
    )
    assert torch.allclose(p[0], q[0], atol=2e-2)
