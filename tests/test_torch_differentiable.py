"""`differentiable=True`: autograd through steps, for every optimizer and for rules of one's own, in values as ordinary steps.

Derivatives are checked against finite differences, and against torch's own where torch has them. Knows the rules from torch's
table of configurations and from gpuopt's list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from inspect import signature
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal.common_optimizers import optim_db

import gpuopt
import gpuopt.torch
from covering import each
from gpuopt import maximum, rules, sign, sqrt, where
from gpuopt.errors import DtypeError, InputError
from gpuopt.optim.between import averages
from torch_samples import create, default_dtype, everything, furthest, gradients, parameters, title, train

NAMES = [name for name in gpuopt.torch.optimizers() if not rules.get(name).definition().multiplies]
CONFIGURATIONS = [
    pytest.param(info.optim_cls.__name__, given.kwargs, id=f"{info.optim_cls.__name__}-{k}")
    for info in optim_db
    if info.optim_cls.__name__.lower() in NAMES and "differentiable" in signature(info.optim_cls).parameters
    for k, given in enumerate(info.optim_inputs_func(device="cpu"))
]
Tensors = Sequence[torch.Tensor]


@gpuopt.rule(state=("m",))
def curved(p, g, m, *, lr, beta=0.9, weight_decay=0.0, gain):  # type: ignore[no-untyped-def]
    m = m + (g - m) * (1 - beta)
    p = p - lr * (sqrt(abs(m) + 1) * sign(m) * gain + weight_decay * p)
    p = where(p > 2, 0.75, maximum(p, -3))
    return p, m


@curved.prepare
def _(step, *, beta):  # type: ignore[no-untyped-def]
    return dict(gain=1 / sqrt(1 - beta**step))


@gpuopt.rule()
def rounding(p, g, *, lr, rate):  # type: ignore[no-untyped-def]
    p = p - rate * g
    return p


@rounding.prepare
def _(step, *, lr):  # type: ignore[no-untyped-def]
    return dict(rate=math.sqrt(float(lr)))


OWN = gpuopt.torch.make_optimizer(curved)


def double(shape: tuple[int, ...] = (6,), seed: int = 0, shift: float = 0.1) -> torch.Tensor:
    """Positive numbers, in which square roots are smooth."""
    drawn = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift
    return drawn.requires_grad_()


def states_of(cls: Any, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The states of one parameter in training, each of which requires grad but the step, in float64 here: torch computes bias
    corrections in the dtype of the step tensor.
    """
    p = torch.nn.Parameter(double(seed=1).detach())
    opt = cls([p], **options)
    train(opt, [p], range(3))
    # None so small that its root bends within the 1e-6 of a finite difference, as those of Adadelta and Prodigy are; none 0, as the
    # share of schedule-free RAdam is while its rate is 0: weights are divided by a share only where it is more, a jump at 0.
    states = opt.state.get(p, {}).items()
    made = {k: v.detach().double().abs().clamp(min=1e-3) for k, v in states if v is not None}
    if "grad_avg" in made:
        made["grad_avg"] = made["grad_avg"] / 100  # else the variance of a centered RMSprop is negative
    for key in {"weight_max", "hessian"} & set(made):  # away from the kinks of maximum and minimum
        made[key] = made[key] * 2 + 0.01
    return {k: v.requires_grad_(k != "step") for k, v in made.items()}


def stepped(
    cls: Any, options: dict[str, Any], names: Sequence[str], *tensors: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Parameter and states after a step, as functions of parameter, gradient and states before it."""
    p, g, *before = tensors
    p = p.clone()
    p.grad = g
    opt = cls([p], **options, differentiable=True)
    opt.state[p].update({name: state.clone() for name, state in zip(names, before, strict=True)})
    with default_dtype(torch.float64):
        opt.step()
    return p, *(opt.state[p][name] for name in names if name != "step")


def check_derivatives(cls: Any, options: dict[str, Any], check: Any = gradcheck) -> None:
    states = states_of(cls, options)
    inputs = double(seed=2), double(seed=3), *states.values()
    assert check(lambda *tensors: stepped(cls, options, list(states), *tensors), inputs)


# ---------------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS)
def test_every_configuration_of_torch(name: str, options: dict[str, Any]) -> None:
    ours, theirs = getattr(gpuopt.torch, name), getattr(torch.optim, name)
    check_derivatives(ours, options)
    states = states_of(theirs, options)
    inputs = double(seed=2), double(seed=3), *states.values()
    results = [stepped(cls, options, list(states), *inputs) for cls in (ours, theirs)]
    assert furthest(*results) < 1e-15
    wanted = [t for t in inputs if t.requires_grad and t.ndim]  # torch's ASGD makes a number of eta and loses its slope
    slopes = [torch.autograd.grad(sum(torch.sin(r).sum() for r in result), wanted) for result in results]
    assert furthest(*slopes) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name: str) -> None:
    cls = getattr(gpuopt.torch, title(name))
    needed: dict[str, Any] = {"sgd": {"momentum": 0.5}, "prodigy": {"d0": 0.1}}  # finite differences are of order 1e-6
    check_derivatives(cls, {"lr": 0.1, **needed.get(name, {})}, gradgradcheck)


OPTIONS: list[dict[str, Any]] = [
    {"max_grad_norm": 0.5},
    {"max_grad_norm": 100.0, "grad_scale": 4.0},
    {"clip_value": 0.4},
    {"l1": 0.3},
    {"maximize": True, "skip_nonfinite": True},
    {"weight_decay_mode": "corrected", "lr_max": 0.2},
    {"weight_decay_mode": "proximal"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cls", [gpuopt.torch.AdamW, gpuopt.torch.Lion, OWN], ids=lambda c: c.__name__)
def test_options_and_rules_that_torch_does_not_have(cls: Any, options: dict[str, Any]) -> None:
    check_derivatives(cls, {"lr": 0.1, "weight_decay": 0.1, **options})


# ---------------------------------------------------------------------------------------------------- hyperparameters

HYPERPARAMETERS: dict[str, dict[str, float]] = {
    "gd": {"lr": 0.05},
    "sgd": {"lr": 0.05, "momentum": 0.5, "dampening": 0.1, "weight_decay": 0.1},
    "dgd": {"lr": 0.05, "lr_decay": 0.9},
    "adagrad": {"lr": 0.05, "lr_decay": 0.1, "weight_decay": 0.1, "eps": 1e-3},
    "rmsprop": {"lr": 0.05, "alpha": 0.9, "weight_decay": 0.1, "momentum": 0.5, "eps": 1e-3},
    "adam": {"lr": 0.05, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1, "eps": 1e-3},
    "adamw": {"lr": 0.05, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1},
    "lion": {"lr": 0.05, "weight_decay": 0.1},
}


def trained(
    cls: Any, names: Sequence[str], start: torch.Tensor, values: Tensors, steps: int, **more: Any
) -> torch.Tensor:
    """The loss after some steps, as a function of the start and of hyperparameters."""
    given: dict[str, Any] = dict(zip(names, values, strict=True))
    if "beta1" in given:
        given["betas"] = given.pop("beta1"), given.pop("beta2")
    p = start.clone()
    opt = cls([p], **given, differentiable=True, **more)
    target = torch.linspace(-1, 2, p.numel(), dtype=p.dtype)
    for _ in range(steps):
        # The loss sees a copy, since a step changes in place what autograd would keep of the parameter.
        (p.grad,) = torch.autograd.grad((p.clone() - target).pow(4).sum() + p.sum(), p, create_graph=True)
        opt.step()
    return (p.clone() - target).square().sum()


def numbers(values: dict[str, float]) -> list[torch.Tensor]:
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values.values()]


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_hyperparameters_have_derivatives(name: str) -> None:
    cls, values = getattr(gpuopt.torch, title(name)), HYPERPARAMETERS[name]
    assert gradcheck(lambda start, *v: trained(cls, list(values), start, v, 3), (double(), *numbers(values)))


def test_hyperparameters_of_ones_own_rule_have_derivatives() -> None:
    names = ["lr", "beta1", "weight_decay"]

    @gpuopt.rule(state=("m",))
    def own(p, g, m, *, lr, beta1, weight_decay, gain):  # type: ignore[no-untyped-def]
        m = m * beta1 + g
        p = p - lr * gain * m - weight_decay * p
        return p, m

    @own.prepare
    def _(step, *, beta1):  # type: ignore[no-untyped-def]
        return dict(gain=1 / (1 - beta1**step))

    def loss(start: torch.Tensor, lr: torch.Tensor, beta: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        p = start.clone()
        opt = gpuopt.torch.make_optimizer(own)([p], lr=lr, betas=(beta,), weight_decay=decay, differentiable=True)
        for step in range(3):
            p.grad = torch.cos(p.clone() + step)
            opt.step()
        return p.clone().square().sum()

    assert gradcheck(loss, (double(), *numbers(dict.fromkeys(names, 0.3))))


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize(("name", "options"), [("AdamW", {"lr": 0.1}), ("Adam", {"lr": 0.1, "weight_decay": 0.1})])
def test_derivatives_by_hyperparameters_are_torchs(name: str, options: dict[str, float], shape: Any) -> None:
    found = []
    for module in (torch.optim, gpuopt.torch):
        torch.set_default_dtype(torch.float64)  # of the step tensors: torch computes bias corrections in it
        try:
            start, values = double(), [torch.full(shape, v, requires_grad=True) for v in options.values()]
            loss = trained(getattr(module, name), list(options), start, values, 3)
        finally:
            torch.set_default_dtype(torch.float32)
        found.append([loss, *torch.autograd.grad(loss, [start, *values])])
    assert furthest(*found) < 1e-10


def test_a_hyperparameter_that_is_zero_has_its_derivative() -> None:
    """But for a decay of zero, which is left out as in torch."""
    values = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.0}
    start, (lr, decay, momentum) = double(), numbers(values)
    loss = trained(gpuopt.torch.SGD, list(values), start, [lr, decay, momentum], 3)
    found = torch.autograd.grad(loss, [decay, momentum])
    after = trained(gpuopt.torch.SGD, list(values), start, numbers({**values, "momentum": 1e-7}), 3)
    assert float(found[0]) == 0
    assert float(found[1]) == pytest.approx(float(after - loss) / 1e-7, rel=1e-4)


def test_prepare_that_makes_a_number_of_it_is_refused() -> None:
    p, lr = double().clone(), torch.tensor(0.1, requires_grad=True)
    p.grad = torch.ones_like(p)
    opt = gpuopt.torch.make_optimizer(rounding)([p], lr=lr, differentiable=True)
    before = p.detach().clone()
    with pytest.raises(InputError, match="lose its derivative"):
        opt.step()
    assert torch.equal(p, before) and not opt.state
    opt.param_groups[0]["lr"] = 0.25
    opt.step()
    assert torch.equal(p, before - 0.5)


# ---------------------------------------------------------------------------------------------------- values

VALUES: list[dict[str, Any]] = [
    {},
    {"max_grad_norm": 0.5, "skip_nonfinite": True},
    {"clip_value": 0.3, "maximize": True},
    {"grad_scale": 8.0, "l1": 0.01},
    {"weight_decay": 0.1, "weight_decay_mode": "cautious"},
    {"mask": True},
    {"bounds": True},
]


@pytest.mark.parametrize(
    ("name", "options", "dtype"),
    each(NAMES, VALUES, [torch.float64, torch.float32, torch.bfloat16, torch.complex64], whole=["adamw"]),
    ids=str,
)
def test_as_ordinary_steps(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    """A group without grad mode is a step by torch's operations: the same numbers, states and step counts."""
    ordinary, params = parameters(dtype=dtype), parameters(dtype=dtype)
    made = []
    for tensors, differentiable in ((ordinary, False), (params, True)):
        given = dict(options)
        if "mask" in given:
            given["mask"] = {p: torch.view_as_real(p) > 0 if p.is_complex() else p > 0 for p in tensors}
        if "bounds" in given:
            if dtype.is_complex or averages(rules.get(name)):
                return  # they are refused
            given["bounds"] = {p: (-0.5, torch.full_like(p, 0.5)) for p in tensors}
        opt = create(name, [{"params": tensors, "differentiable": differentiable}], **given)
        train(opt, tensors, range(4))
        made.append(opt.state_dict()["state"])
    ulp = torch.finfo(dtype).eps
    assert furthest(params, ordinary) <= 16 * ulp
    assert [list(s) for s in made[1].values()] == [list(s) for s in made[0].values()]
    for state, other in zip(made[1].values(), made[0].values(), strict=True):
        assert [v.dtype for v in state.values()] == [v.dtype for v in other.values()]
        largest = max(float(v.abs().max()) if v.numel() else 0.0 for v in other.values())  # Prodigy's are of order 1e4
        assert furthest(state.values(), other.values()) <= 16 * torch.finfo(torch.float32).eps * 8 * max(1.0, largest)


@pytest.mark.parametrize("name", NAMES)
def test_ordinary_steps_go_on_from_differentiable_ones_and_back(name: str) -> None:
    params, usual = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    opt, other = create(name, params), create(name, usual)
    for number in range(9):
        opt.param_groups[0]["differentiable"] = number % 3 == 1
        for optimizer, tensors in ((opt, params), (other, usual)):
            train(optimizer, tensors, [number])
    assert furthest(params, usual) < 1e-14
    assert [s.get("step") for s in opt.state_dict()["state"].values()] == [
        s.get("step") for s in other.state_dict()["state"].values()
    ]


def test_missing_gradients_closures_and_skipped_steps() -> None:
    a, b = double().clone(), double(seed=1).clone()
    opt = gpuopt.torch.AdamW([a, b], differentiable=True, skip_nonfinite=True)
    before = [a.detach().clone(), b.detach().clone()]

    def closure() -> torch.Tensor:
        loss = (a.clone() ** 2).sum()
        (a.grad,) = torch.autograd.grad(loss, a, create_graph=True)
        return loss

    assert opt.step(closure).requires_grad
    assert not torch.equal(a, before[0]) and torch.equal(b, before[1]) and list(opt.state) == [a]
    a.grad = torch.full_like(a, torch.nan)
    saved = everything(opt)
    opt.step()
    assert everything(opt) == saved


def test_a_grad_scaler_unscales_and_skips() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    p, q = double().clone(), double().clone()
    opt, other = (gpuopt.torch.SGD([t], lr=0.1, differentiable=True) for t in (p, q))
    for value in (1.0, math.inf):
        scaler.scale(torch.zeros(()))  # makes the scale
        p.grad, q.grad = torch.full_like(p, 8.0 * value), torch.ones_like(q)
        scaler.step(opt)
        scaler.update()
        if math.isfinite(value):
            other.step()
    assert torch.equal(p, q)


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "option", [{"state_format": "bfloat16"}, {"state_format": {"m": "bfloat16"}}, {"capturable": True}]
)
def test_what_has_no_derivative_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"differentiable=True cannot go with {next(iter(option))}"):
        gpuopt.torch.AdamW(parameters(), differentiable=True, **option)
    opt = gpuopt.torch.AdamW(parameters(), **option)
    opt.param_groups[0]["differentiable"] = True
    train_once = list(opt.param_groups[0]["params"])
    before = everything(opt)
    with pytest.raises(InputError, match="differentiable=True cannot go with"):
        train(opt, train_once, [0])
    assert everything(opt) == before
    with pytest.raises(InputError, match="differentiable=True cannot go with Muon, which multiplies matrices"):
        gpuopt.torch.Muon(parameters(), differentiable=True)


@pytest.mark.parametrize("name", NAMES)
def test_fused_is_refused_in_torchs_words(name: str) -> None:
    with pytest.raises(
        (RuntimeError, TypeError), match=r"`fused` does not support `differentiable`|no argument 'fused'"
    ):
        create(name, parameters(), differentiable=True, fused=True)


def test_leaves_and_sparse_gradients_are_refused_before_anything_is_written() -> None:
    clone, leaf = double().clone(), double()
    opt = gpuopt.torch.AdamW([clone, leaf], differentiable=True)
    before = everything(opt)
    clone.grad, leaf.grad = gradients([clone, leaf], 0)
    with pytest.raises(InputError, match="leaf that requires grad"):
        opt.step()
    leaf.grad, clone.grad = None, torch.ones(6, dtype=torch.float64).to_sparse()
    with pytest.raises(DtypeError, match="sparse"):
        opt.step()
    assert everything(opt) == before and not opt.state


def test_gradient_release_refuses_it() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="differentiable"):
        gpuopt.torch.release_gradients(model, gpuopt.torch.AdamW(model.parameters(), differentiable=True))
