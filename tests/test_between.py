"""What is done between two steps: parameters to evaluate that are not those to train, and states from gradients of another kind.

Both optimizers, the one over arrays and torch's; the schedule-free rules and SophiaG are the ones that have such functions.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from formulas import average
from gpuopt.errors import InputError, RuleSyntaxError
from samples import HOST_BACKENDS, Array, bits, refused

FREE = ("ScheduleFreeSGD", "ScheduleFreeAdamW", "ScheduleFreeRAdam")
SHAPES = ((4, 3), (), (5,))


def drawn(step: int, dtype: Any = np.float64) -> list[Array]:
    rng = np.random.default_rng(step)
    return [np.asarray(rng.normal(size=shape)).astype(dtype) for shape in SHAPES]


class Averages:
    """The average of all z by hand: with constant rates and r = 0 each has the same weight."""

    def __init__(self, params: list[Array]) -> None:
        self.x, self.count = [p.copy() for p in params], 0

    def add(self, points: list[Array]) -> None:
        self.count += 1
        self.x = [x + (z - x) / self.count for x, z in zip(self.x, points, strict=True)]


@pytest.mark.parametrize("backend", HOST_BACKENDS)
@pytest.mark.parametrize("title", FREE[:2])
def test_eval_brings_the_average_of_all_points_and_train_takes_it_back(title: str, backend: str) -> None:
    params = drawn(0)
    tree = {"a": params[0], "b": [params[1], params[2]]}
    opt, by_hand = getattr(gpuopt, title)(tree, lr=0.1, backend=backend), Averages(params)
    opt.eval()
    opt.train()  # before the first step both are the same
    for step in range(1, 8):
        opt.step({"a": drawn(step)[0], "b": drawn(step)[1:]})
        by_hand.add([opt.state_dict()["state"][k]["z"] for k in range(3)])
    trained = bits(params)
    averaged = opt.averaged_params()
    assert bits(params) == trained and list(averaged) == ["a", "b"] and len(averaged["b"]) == 2
    before = [p.copy() for p in params]
    opt.eval()
    opt.eval()  # again it changes nothing
    found = [averaged["a"], *averaged["b"]]
    assert bits(found) == bits(params) == bits([opt.averaged_params()["a"], *opt.averaged_params()["b"]])
    for p, x in zip(params, by_hand.x, strict=True):
        np.testing.assert_allclose(p, x, rtol=1e-12, atol=1e-13)
    opt.train()
    for p, y in zip(params, before, strict=True):
        np.testing.assert_allclose(p, y, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("title", FREE)
def test_a_step_in_the_wrong_mode_is_an_error(title: str) -> None:
    params = drawn(0)
    opt = getattr(gpuopt, title)(params, lr=0.1, backend="numpy")
    opt.step(drawn(1))
    opt.eval()
    with refused(opt, InputError, title, "call opt.train() before a step"):
        opt.step(drawn(2))
    opt.train()
    opt.step(drawn(2))

    p = torch.nn.Parameter(torch.ones(3))
    theirs = getattr(gpuopt.torch, title)([p], lr=0.1)
    p.grad = torch.ones(3)
    theirs.step()
    theirs.eval()
    before = p.detach().clone()
    with pytest.raises(InputError, match=r"call opt\.train\(\) before a step"):
        theirs.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex128], ids=str)
@pytest.mark.parametrize("title", FREE)
def test_torch_goes_with_arrays(title: str, dtype: torch.dtype) -> None:
    values = torch.Generator().manual_seed(0)
    p, grads = (torch.randn(n, 4, 3, generator=values, dtype=dtype) for n in (1, 9))
    array, ours = p[0].clone(), torch.nn.Parameter(p[0].clone())
    over_arrays = getattr(gpuopt, title)([array], lr=0.1, backend="numba")
    opt = getattr(gpuopt.torch, title)([ours, torch.nn.Parameter(torch.ones(2))], lr=0.1)
    for g in grads:
        ours.grad = g
        opt.step()
        over_arrays.step([g])
    assert torch.equal(array, ours)
    averaged = opt.averaged_params()
    assert averaged[0].dtype == dtype and torch.equal(averaged[1], torch.ones(2))
    opt.eval()
    over_arrays.eval()
    assert torch.equal(ours, averaged[0]) and ours.requires_grad
    torch.testing.assert_close(array, ours.detach())
    opt.train()
    ours.grad = grads[0]
    opt.step()


@pytest.mark.parametrize("title", FREE)
def test_checkpoints_keep_the_mode(title: str) -> None:
    params = drawn(0)
    opt = getattr(gpuopt, title)(params, lr=0.1, backend="numpy")
    opt.step(drawn(1))
    opt.eval()
    again = getattr(gpuopt, title)([p.copy() for p in params], lr=0.1, backend="numpy")
    again.load_state_dict(opt.state_dict())
    for other in (again, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        with pytest.raises(InputError, match=r"opt\.train\(\)"):
            other.step(drawn(2))
        other.train()
        other.step(drawn(2))
    p = torch.nn.Parameter(torch.ones(3))
    theirs = getattr(gpuopt.torch, title)([p], lr=0.1)
    p.grad = torch.ones(3)
    theirs.step()
    theirs.eval()
    follower = getattr(gpuopt.torch, title)([p], lr=0.1)
    follower.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for other in (follower, pickle.loads(pickle.dumps(theirs))):
        with pytest.raises(InputError, match=r"opt\.train\(\)"):
            other.step()


def test_the_share_of_a_step_stays_true_in_float32() -> None:
    """A sum of weights would stop growing, or grow wrongly: with equal weights the share is 1 / t."""
    p, g = np.ones(1, np.float32), np.full(1, 1e-3, np.float32)
    opt = gpuopt.ScheduleFreeSGD(p, lr=0.3, backend="numba")
    for _ in range(20_000):
        opt.step(g)
    share = float(opt.state_dict()["state"][0]["weight_share"])
    assert abs(share * 20_000 - 1) < 1e-5


def test_other_rules_evaluate_what_they_train() -> None:
    opt, theirs = gpuopt.Adam(np.ones(3)), gpuopt.torch.Adam([torch.nn.Parameter(torch.ones(3))])
    for made in (opt, theirs):
        with pytest.raises(InputError, match="Adam evaluates the parameters that it trains"):
            made.averaged_params()
        for name in ("eval", "train", "update_hessian"):  # accelerate calls train() wherever there is one
            with pytest.raises(AttributeError, match=name):
                getattr(made, name)


# ---------------------------------------------------------------------------------------------------- other gradients


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_update_hessian_is_the_authors(backend: str) -> None:
    params, twins = drawn(0), [torch.nn.Parameter(torch.from_numpy(p)) for p in drawn(0)]
    options: dict[str, Any] = {"lr": 0.01, "bs": 8, "betas": (0.9, 0.8)}
    opt, theirs = gpuopt.SophiaG(params, backend=backend, **options), gpuopt.torch.SophiaG(twins, **options)
    expected, curved = [p.copy() for p in params], [np.zeros_like(p) for p in params]
    moments = [np.zeros_like(p) for p in params]
    for step in range(1, 7):
        if step % 2:
            others = drawn(100 + step)
            opt.update_hessian([others[0], None, others[2]])
            for k in (0, 2):
                average(curved[k], 0.8, others[k], others[k])
                twins[k].grad = torch.from_numpy(others[k])
            twins[1].grad = None
            theirs.update_hessian()
        grads = drawn(step)
        opt.step(grads)
        for k, g in enumerate(grads):
            twins[k].grad = torch.from_numpy(g)
            expected[k] *= 1 - 0.01 * 0.1
            average(moments[k], 0.9, g)
            expected[k] -= (
                0.01 * np.sign(moments[k]) * np.minimum(np.abs(moments[k]) / (0.04 * 8 * curved[k] + 1e-15), 1)
            )
        theirs.step()
    for p, twin, wanted in zip(params, twins, expected, strict=True):
        np.testing.assert_allclose(p, wanted, rtol=1e-12)
        np.testing.assert_allclose(twin.detach().numpy(), wanted, rtol=1e-12)
    assert opt.state_dict()["state"][0]["step"] == 6, "only steps are counted"


def test_mistakes_with_other_gradients() -> None:
    opt = gpuopt.SophiaG([np.ones(3)], backend="numpy")
    with refused(opt, InputError, "gradient of params[0]", "shape (2,)"):
        opt.update_hessian([np.ones(2)])
    theirs = gpuopt.torch.SophiaG([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(InputError, match="2 gradients: expected one or None for each of 1 parameters"):
        theirs.update_hessian([None, None])
    with pytest.raises(InputError, match=r"gradient of shape \(2,\)"):
        theirs.update_hessian([torch.ones(2)])


def test_a_rule_of_ones_own() -> None:
    @gpuopt.rule(state={"a": gpuopt.State("a", "average", exact=True)})
    def averaging(p, g, a, *, lr, beta=0.5):  # type: ignore[no-untyped-def]
        p = p - lr * g
        a = beta * a + (1 - beta) * p
        return p, a

    with pytest.raises(RuleSyntaxError, match="takes `p, b`: expected `p` and states of averaging: a"):

        @averaging.evaluate
        def wrong(p, b):  # type: ignore[no-untyped-def]
            return b

    with pytest.raises(RuleSyntaxError, match="takes `gamma`, which is no hyperparameter of averaging"):

        @averaging.evaluate
        def wrong_too(p, a, *, gamma):  # type: ignore[no-untyped-def]
            return a

    @averaging.evaluate
    def _(p, a):  # type: ignore[no-untyped-def]
        return a

    p = np.ones(2)
    opt = gpuopt.optimizer(averaging, [p], lr=1.0, state_format="bfloat16", backend="numpy")
    opt.step([np.ones(2)])
    opt.step([np.ones(2)])
    (x,) = opt.averaged_params()
    assert x.tolist() == [-0.5, -0.5] and p.tolist() == [-1, -1]
    with pytest.raises(InputError, match=r"averaging.* has no way back"):
        opt.eval()
