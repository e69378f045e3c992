"""Schedules against torch's and optax's, and every hyperparameter as a function of the step, on both APIs."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import schedules
from samples import HOST_BACKENDS, bits, gradients, parameters, refused

VALUE, STEPS = 0.3, 40
BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)


def of_torch(make: Callable[[Any, Any], Any]) -> list[float]:
    """The rates of a torch scheduler, one for each step."""
    import torch

    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=VALUE)
    scheduler, found = make(torch.optim.lr_scheduler, opt), []
    for _ in range(STEPS):
        found.append(float(opt.param_groups[0]["lr"]))
        opt.step()
        scheduler.step()
    return found


TORCH: dict[str, tuple[Any, Callable[[Any, Any], Any]]] = {
    "constant": (schedules.constant(VALUE), lambda s, o: s.ConstantLR(o, factor=1.0)),
    "linear": (schedules.linear(VALUE, 15, end=VALUE / 4), lambda s, o: s.LinearLR(o, 1.0, 0.25, total_iters=15)),
    "polynomial": (schedules.polynomial(VALUE, 25, power=2.5), lambda s, o: s.PolynomialLR(o, 25, power=2.5)),
    "cosine": (schedules.cosine(VALUE, STEPS, end=0.01), lambda s, o: s.CosineAnnealingLR(o, STEPS, eta_min=0.01)),
    "exponential": (schedules.exponential(VALUE, 0.9), lambda s, o: s.ExponentialLR(o, 0.9)),
    "step": (schedules.step(VALUE, 7, rate=0.5), lambda s, o: s.StepLR(o, 7, gamma=0.5)),
    "milestones": (schedules.step(VALUE, [3, 20, 21], rate=0.5), lambda s, o: s.MultiStepLR(o, [3, 20, 21], gamma=0.5)),
    "restarts": (
        schedules.warm_restarts(VALUE, 6, factor=2, end=0.02),
        lambda s, o: s.CosineAnnealingWarmRestarts(o, 6, T_mult=2, eta_min=0.02),
    ),
    "equal restarts": (schedules.warm_restarts(VALUE, 6), lambda s, o: s.CosineAnnealingWarmRestarts(o, 6)),
    "one_cycle": (schedules.one_cycle(VALUE, STEPS), lambda s, o: s.OneCycleLR(o, VALUE, STEPS, cycle_momentum=False)),
    "one_cycle, short warm-up": (
        schedules.one_cycle(VALUE, STEPS + 5, warm=0.1, divisor=5.0, final_divisor=10.0),
        lambda s, o: s.OneCycleLR(
            o, VALUE, STEPS + 5, pct_start=0.1, div_factor=5.0, final_div_factor=10.0, cycle_momentum=False
        ),
    ),
    "warm-up": (
        schedules.warm_up(schedules.constant(VALUE), 10, start=VALUE / 5),
        lambda s, o: s.LinearLR(o, 0.2, 1.0, total_iters=10),
    ),
    "joined": (
        schedules.join([schedules.exponential(VALUE, 0.8), schedules.step(VALUE, 4)], [12]),
        lambda s, o: s.SequentialLR(o, [s.ExponentialLR(o, 0.8), s.StepLR(o, 4)], [12]),
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_as_torch(name: str) -> None:
    ours, theirs = TORCH[name]
    assert [ours(step) for step in range(STEPS)] == pytest.approx(of_torch(theirs), rel=1e-12, abs=1e-15)


def of_optax() -> dict[str, tuple[Any, Any]]:
    import optax

    return {
        "linear": (schedules.linear(VALUE, 15, end=0.1), optax.linear_schedule(VALUE, 0.1, 15)),
        "polynomial": (schedules.polynomial(VALUE, 9, 3.0, 0.1), optax.polynomial_schedule(VALUE, 0.1, 3.0, 9)),
        "cosine": (schedules.cosine(VALUE, 15, end=0.03), optax.cosine_decay_schedule(VALUE, 15, alpha=0.1)),
        "exponential": (
            schedules.exponential(VALUE, 0.5, steps=7, end=0.05),
            optax.exponential_decay(VALUE, 7, 0.5, end_value=0.05),
        ),
        "warm-up": (
            schedules.warm_up(schedules.cosine(VALUE, 20), 5, start=0.05),
            optax.warmup_cosine_decay_schedule(0.05, VALUE, 5, 25),
        ),
        "joined": (
            schedules.join(
                [schedules.linear(0.1, 5, end=VALUE), schedules.constant(0.2), schedules.rex(0.1, 9)], [5, 9]
            ),
            optax.join_schedules(
                [optax.linear_schedule(0.1, VALUE, 5), optax.constant_schedule(0.2), schedules.rex(0.1, 9)], [5, 9]
            ),
        ),
    }


@pytest.mark.parametrize("name", ["linear", "polynomial", "cosine", "exponential", "warm-up", "joined"])
def test_as_optax(name: str) -> None:
    """optax computes in float32."""
    ours, theirs = of_optax()[name]
    if name == "joined":  # optax evaluates all of them, on arrays
        ours, theirs = of_optax()["joined"]
        assert [ours(k) for k in (0, 3, 5, 8)] == pytest.approx([0.1, 0.22, 0.2, 0.2], rel=1e-6)
        assert ours(12) == pytest.approx(0.1 * (1 - 3 / 9) / (1 - 3 / 18))
        return
    assert [ours(step) for step in range(STEPS)] == pytest.approx([float(theirs(k)) for k in range(STEPS)], rel=1e-5)


def test_formulas_that_no_library_here_has() -> None:
    """Vaswani et al.'s rate, WSD's three parts, and the reflected exponential, by hand."""
    noam = schedules.warm_up(schedules.inverse_sqrt(VALUE, 10), 10)
    assert [noam(k) for k in (0, 5, 10, 20)] == pytest.approx([0.0, VALUE / 2, VALUE, VALUE])
    assert schedules.inverse_sqrt(VALUE, 10)(40) == pytest.approx(VALUE / 2)
    for shape, half in (("sqrt", 1 - math.sqrt(0.5)), ("linear", 0.5), ("cosine", 0.5)):
        wsd = schedules.warmup_stable_decay(VALUE, 4, 6, 10, shape=shape, end=0.1)
        middle = 0.1 + (VALUE - 0.1) * half
        assert [wsd(k) for k in (0, 2, 4, 9, 10, 15, 20, 99)] == pytest.approx(
            [0, VALUE / 2, VALUE, VALUE, VALUE, middle, 0.1, 0.1]
        )
    rex = schedules.rex(VALUE, 10, end=0.1)
    assert [rex(k) for k in (0, 5, 10, 11)] == pytest.approx([VALUE, 0.1 + 0.2 * 0.5 / 0.75, 0.1, 0.1])


@pytest.mark.parametrize(
    "options", [{}, {"patience": 2, "threshold": 0.05}, {"patience": 0, "cooldown": 3, "rate": 0.5}]
)
def test_plateau_as_torch(options: dict[str, Any]) -> None:
    import torch

    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=VALUE)
    names = {"rate": "factor"}
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        opt, min_lr=1e-3, **{names.get(k, k): v for k, v in options.items()}
    )
    ours = schedules.plateau(VALUE, end=1e-3, **options)
    source = np.random.default_rng(0)
    for epoch in range(80):
        metric = 1 / (1 + epoch) + 0.02 * source.normal() if epoch < 30 else 0.05
        theirs.step(metric)
        ours.update(metric)
        assert ours(epoch) == pytest.approx(opt.param_groups[0]["lr"], rel=1e-12)
    assert ours(0) < VALUE


EVERY = [ours for ours, _ in TORCH.values()] + [schedules.rex(1.0, 5), schedules.warmup_stable_decay(1.0, 1, 2, 3)]


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_copies_pickles_and_reads_as_it_was_made(schedule: Any) -> None:
    again = eval(repr(schedule), vars(schedules))
    for other in (again, copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert other == schedule and hash(other) == hash(schedule)
        assert [other(k) for k in range(50)] == [schedule(k) for k in range(50)]
    assert schedule != schedules.constant(7.0)


def test_in_torchs_lambda_lr_and_its_checkpoint() -> None:
    import torch

    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=VALUE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, schedules.cosine(1.0, STEPS))
    other = torch.optim.lr_scheduler.LambdaLR(opt, schedules.cosine(1.0, 3))
    other.load_state_dict(scheduler.state_dict())
    assert other.lr_lambdas == [schedules.cosine(1.0, STEPS)]
    opt.step()
    scheduler.step()
    assert opt.param_groups[0]["lr"] == pytest.approx(VALUE * schedules.cosine(1.0, STEPS)(1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: schedules.cosine("fast", 10), ["cosine", "value = 'fast'", "number"]),
        (lambda: schedules.cosine(math.nan, 10), ["value = nan"]),
        (lambda: schedules.cosine(0.1, 0), ["steps = 0", "1 or more"]),
        (lambda: schedules.cosine(0.1, 2.5), ["steps = 2.5", "whole number"]),
        (lambda: schedules.linear(0.1, True), ["steps = True"]),
        (lambda: schedules.step(0.1, 0), ["every = 0"]),
        (lambda: schedules.exponential(0.1, -0.5), ["rate = -0.5", "0 or more"]),
        (lambda: schedules.polynomial(0.1, 5, power=-1), ["power = -1"]),
        (lambda: schedules.warm_up(0.1, 5), ["schedule = 0.1", "function of the step"]),
        (lambda: schedules.warm_restarts(0.1, 5, factor=0), ["factor = 0"]),
        (lambda: schedules.warm_restarts(0.1, 5, factor=1.5), ["factor = 1.5"]),
        (lambda: schedules.one_cycle(0.1, 5, warm=2.0), ["warm = 2.0"]),
        (lambda: schedules.warmup_stable_decay(0.1, 1, 2, 3, shape="square"), ["shape = 'square'", "sqrt"]),
        (lambda: schedules.join([schedules.constant(0.1)], [5]), ["1 schedules", "[5]"]),
        (lambda: schedules.join([schedules.constant(0.1), 0.5], [5]), ["2 schedules"]),
        (lambda: schedules.join([schedules.constant(0.1)] * 3, [5, 4]), ["growing"]),
        (lambda: schedules.plateau(0.1, patience=-1), ["plateau: patience = -1", "0 or more"]),
    ],
)
def test_what_cannot_be_used(make: Callable[[], Any], words: list[str]) -> None:
    with pytest.raises(gpuopt.InputError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), caught.value


# ---------------------------------------------------------------------------------------------------- hyperparameters

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": schedules.cosine(0.1, 9), "momentum": schedules.linear(0.9, 6, end=0.5)}),
    (
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "dampening": lambda taken: 0.1 * taken, "weight_decay": schedules.rex(0.1, 5)},
    ),
    ("AdamW", {"betas": (schedules.linear(0.95, 5, end=0.8), 0.99), "weight_decay": lambda taken: 0.1 + taken / 10}),
    ("Adam", {"betas": lambda taken: (0.9 - taken / 20, 0.99), "eps": schedules.exponential(1e-3, 0.5)}),
    ("RMSprop", {"alpha": schedules.constant(0.9), "momentum": 0.5, "l1": schedules.linear(0.1, 4)}),
    ("Lion", {"lr": schedules.step(0.1, 2), "clip_value": lambda taken: None if taken < 2 else 0.1}),
    ("DGD", {"lr": lambda taken: 0.1, "lr_decay": schedules.constant(0.5)}),
]


def values_at(options: dict[str, Any], taken: int) -> dict[str, Any]:
    """What a user would set by hand before a step."""
    found = {}
    for name, value in options.items():
        value = value(taken) if callable(value) else value
        found[name] = tuple(b(taken) if callable(b) else b for b in value) if name == "betas" else value
    return found


@BACKENDS
@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_every_hyperparameter_may_follow_a_schedule(name: str, options: dict[str, Any], backend: str) -> None:
    """The bits are those of values set by hand before each step."""
    found, expected = parameters(), parameters()
    ours = getattr(gpuopt, name)(found, backend=backend, **options)
    usual = getattr(gpuopt, name)(expected, backend=backend, **values_at(options, 0))
    for step in range(6):
        usual.param_groups[0].update(values_at(options, step))
        for opt in (ours, usual):
            opt.step(gradients(step))
    assert bits(found) == bits(expected)
    again = getattr(gpuopt, name)(parameters(), backend=backend, **options)
    again.load_state_dict(ours.state_dict())
    assert again.param_groups[0] | {"params": 0} == ours.param_groups[0] | {"params": 0}
    plain = getattr(gpuopt, name)(parameters(), backend=backend, **values_at(options, 1))
    saved, own = ours.state_dict(), dict(plain.param_groups[0])
    plain.load_state_dict(saved)
    following = {name for name in options if values_at(options, 0)[name] is not options[name]}
    assert {name for name in following if saved["param_groups"][0][name] is not None} == set()
    assert {name: plain.param_groups[0][name] for name in following} == {name: own[name] for name in following}


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_in_gpuopt_torch(name: str, options: dict[str, Any]) -> None:
    import torch

    import gpuopt.torch

    given = [torch.from_numpy(p.copy()).requires_grad_() for p in parameters()]
    by_hand = [torch.from_numpy(p.copy()).requires_grad_() for p in parameters()]
    ours = getattr(gpuopt.torch, name)(given, **options)
    usual = getattr(gpuopt.torch, name)(by_hand, **values_at(options, 0))
    for step in range(6):
        usual.param_groups[0].update(values_at(options, step))
        for p, q, g in zip(given, by_hand, gradients(step), strict=True):
            p.grad, q.grad = torch.from_numpy(g.copy()), torch.from_numpy(g.copy())
        ours.step()
        usual.step()
    assert all(torch.equal(p, q) for p, q in zip(given, by_hand, strict=True))


@BACKENDS
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("SGD", {"momentum": lambda taken: -1.0 if taken == 2 else 0.9}, ["momentum = -1.0", "[0, inf)"]),
        ("Adam", {"betas": (0.9, lambda taken: 1.0 if taken == 2 else 0.9)}, ["betas = 1.0", "[0, 1)"]),
        ("Adam", {"betas": lambda taken: (0.9,) if taken == 2 else (0.9, 0.9)}, ["betas = (0.9,)", "2 numbers"]),
        ("AdamW", {"weight_decay": lambda taken: "much" if taken == 2 else 0.1}, ["weight_decay = 'much'"]),
        ("Lion", {"clip_value": lambda taken: math.nan if taken == 2 else 1.0}, ["clip_value = nan"]),
        ("SGD", {"momentum": lambda taken: 0.0 if taken == 2 else 0.9, "nesterov": True}, ["nesterov", "momentum 0.0"]),
    ],
)
def test_a_value_that_cannot_be_used_changes_nothing(
    name: str, options: dict[str, Any], words: list[str], backend: str
) -> None:
    opt = getattr(gpuopt, name)(parameters(), backend=backend, **options)
    for step in range(2):
        opt.step(gradients(step))
    for _ in range(2):
        with refused(opt, gpuopt.InputError, *words):
            opt.step(gradients(2))


def test_a_flag_follows_no_schedule() -> None:
    with pytest.raises(gpuopt.InputError, match="amsgrad"):
        gpuopt.Adam(parameters(), amsgrad=lambda taken: True)


@BACKENDS
def test_a_state_begins_with_the_first_value(backend: str) -> None:
    found, expected = parameters(), parameters()
    ours = gpuopt.Adagrad(found, initial_accumulator_value=lambda taken: 0.5 + taken, backend=backend)
    usual = gpuopt.Adagrad(expected, initial_accumulator_value=0.5, backend=backend)
    for step in range(3):
        ours.step(gradients(step))
        usual.step(gradients(step))
    assert bits(found) == bits(expected)
