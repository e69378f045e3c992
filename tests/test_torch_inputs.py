"""PyTorch's own inputs for its optimizers, ours beside torch's: training in every configuration that torch tests itself."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from torch_inputs import (
    CLASSES,
    FLAGS,
    HALVES,
    INFOS,
    Case,
    cases,
    check,
    closure_of,
    eps_of,
    layer,
    model_of,
    snapshot,
)

FLOATS = (torch.float64, torch.float32, *HALVES)


def descend(opt: Any, closure: Any, schedulers: Any = (), steps: int = 20, with_closure: bool = False) -> list[bool]:
    """Whether the loss fell over these steps."""
    before = closure().item()
    for _ in range(steps):
        loss = opt.step(closure) if with_closure else (closure(), opt.step())[0]
        for scheduler in schedulers:
            scheduler.step(*([loss] if isinstance(scheduler, ReduceLROnPlateau) else []))
    return [closure().item() < before]


@pytest.mark.parametrize(("contiguous", "scheduled"), [(True, True), (True, False), (False, False)])
@CLASSES
def test_goes_the_right_direction(info: Any, contiguous: bool, scheduled: bool) -> None:
    for made in info.scheduler_inputs if scheduled else [[]]:

        def scenario(cls: Any, case: Case, made: Any = made) -> Any:
            weight, bias, x = layer(contiguous=contiguous)
            opt = case.make(cls, [weight, bias])
            schedulers = [make(opt) for make in made]
            fell = descend(opt, closure_of(opt, weight, bias, x), schedulers)
            return fell, snapshot(opt, [weight, bias]), [s.state_dict().get("_last_lr") for s in schedulers]

        check(scenario, cases(info, *([] if contiguous else ["strided"])))


@CLASSES
def test_schedulers_go_the_right_direction_with_groups(info: Any) -> None:
    for made in info.scheduler_inputs:

        def scenario(cls: Any, case: Case, made: Any = made) -> Any:
            weight, bias, x = layer()
            opt = cls([{"params": [weight]}, {"params": [bias], "lr": 0.01}])
            fell = descend(opt, closure_of(opt, weight, bias, x), [make(opt) for make in made], with_closure=True)
            return fell, snapshot(opt, [weight, bias])

        check(scenario, [Case(info, {}, "default")])


def five_steps(cls: Any, case: Case) -> Any:
    weight, bias, x = layer()
    opt = case.make(cls, [weight, bias])
    descend(opt, closure_of(opt, weight, bias, x), steps=5)
    return snapshot(opt, [weight, bias])[:2]


@CLASSES
def test_a_learning_rate_in_a_tensor(info: Any) -> None:
    for case in cases(info):
        case.kwargs["lr"] = torch.tensor(1e-3, dtype=torch.float64)
        check(five_steps, [case])


@pytest.mark.parametrize("foreach", [False, True])
@CLASSES
def test_betas_in_tensors(info: Any, foreach: bool) -> None:
    for case in cases(info):
        if "betas" in info.optim_cls([torch.zeros(2)]).defaults and not case.kwargs.get("fused"):
            case.kwargs.update(betas=tuple(torch.tensor(b, dtype=torch.float64) for b in (0.8, 0.9)), foreach=foreach)
            check(five_steps, [case])


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
@CLASSES
def test_parameters_of_four_axes(info: Any, order: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        shapes = ((2, 4, 3, 3), (2, 1, 3, 5), (4, 3, 2, 2))
        params = [torch.nn.Parameter(torch.rand(s, dtype=torch.float64).to(memory_format=order)) for s in shapes]
        opt = case.make(cls, params)
        for _ in range(3):
            for p in params:
                p.grad = torch.rand_like(p)
            opt.step()
        return snapshot(opt, params), [p.stride() for p in params]

    check(scenario, cases(info))


@CLASSES
def test_groups_with_their_own_decay(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        weight, bias, x = layer()
        kwargs = dict(case.kwargs)
        opt = cls([{"params": [weight], **kwargs}, {"params": [bias], **kwargs, "weight_decay": 0.0}])
        return descend(opt, closure_of(opt, weight, bias, x)), snapshot(opt, [weight, bias])

    check(scenario, cases(info, "group"))


@CLASSES
def test_groups_with_their_own_rate(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        weight, bias, x = layer()
        still = torch.nn.Parameter(torch.randn(2, dtype=torch.float64))
        before, kwargs = still.detach().clone(), dict(case.kwargs)
        kwargs["lr"] = kwargs.get("lr") or 1e-3
        opt = cls([{"params": [weight, bias], **kwargs}, {"params": [still]}], lr=1e-28)

        def closure() -> Any:
            loss = closure_of(opt, weight, bias, x)()
            still.grad = torch.rand_like(still)
            return loss

        return descend(opt, closure), snapshot(opt, [weight, bias, still]), torch.equal(still, before)

    check(scenario, cases(info, "group"))


WIDTHS = [(dtype, torch.float32) for dtype in FLOATS] + [(torch.float64, torch.float64), (torch.float64, torch.float16)]


# Adam in every width, each other class in three, neighbours in others: it depends on formats and the table of tensors, not on the
# rule.
IN_WIDTHS = [
    pytest.param(
        info, *width, id=f"{info.name}-{width[0]}-{width[1]}", marks=pytest.mark.long if (turn + k) % 2 and turn else []
    )
    for turn, info in enumerate(sorted(INFOS, key=lambda info: info.name != "Adam"))
    for k, width in enumerate(WIDTHS)
]


@pytest.mark.parametrize(("info", "dtype", "default"), IN_WIDTHS)
def test_missing_gradients_frozen_layers_and_scalars(info: Any, dtype: Any, default: Any) -> None:
    """With every flag; the step count's dtype follows torch's default dtype."""

    def scenario(cls: Any, case: Case) -> Any:
        kept = case.dtype(dtype)
        x = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype=dtype).to(kept)
        model, scalar = model_of(dtype).to(kept), torch.tensor(0.7, dtype=kept, requires_grad=True)
        scalar.grad, seen = torch.rand_like(scalar), []
        params = [*model.parameters(), scalar]
        opt = case.make(cls, params, **eps_of(cls, dtype))
        for step in range(7):
            opt.zero_grad()
            if step in (3, 5):
                model[2].requires_grad_(step == 5)
            if step != 2:
                model(x).sum().backward()
            opt.step()
            seen.append(snapshot(opt, params))
        return seen

    old = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        check(scenario, cases(info, *(["16-bit"] if dtype in HALVES else [])))
    finally:
        torch.set_default_dtype(old)


@CLASSES
def test_dtypes_side_by_side(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        params = [torch.rand(2, 3).to(d).to(case.dtype(d)).requires_grad_() for d in FLOATS]
        whole = torch.randint(1024, (2, 3))
        for p in params:
            p.grad = torch.rand(2, 3).bfloat16().to(p.dtype)
        opt = case.make(cls, [*params, whole])
        for _ in range(7):
            opt.step()
        return [snapshot(opt, [*params, whole])]

    check(scenario, cases(info, "16-bit"))


@CLASSES
def test_nothing_happens_without_gradients(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        params = [torch.randn(2, 3) for _ in range(2)]
        opt, before = case.make(cls, params), [p.clone() for p in params]
        loss = torch.tensor([1.0])
        returned = opt.step(lambda: loss)
        return returned is loss, [torch.equal(p, b) for p, b in zip(params, before, strict=True)], snapshot(opt, params)

    check(scenario, cases(info, differentiable=True))


@CLASSES
def test_gradients_of_zero(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        leaf = torch.randn(5, 1, dtype=torch.float64, requires_grad=True)
        param = leaf.clone() if case.kwargs.get("differentiable") else leaf
        opt = case.make(cls, [param])
        param.grad = torch.zeros_like(param)
        opt.step(lambda: torch.tensor([1.0]))
        return snapshot(opt, [param])

    check(scenario, cases(info, "flags", differentiable=True))


@CLASSES
def test_shown(info: Any) -> None:
    check(lambda cls, case: repr(case.make(cls, list(layer()[:2]))), cases(info, differentiable=True))


@pytest.mark.parametrize("scaled", [True, False])
@CLASSES
def test_a_step_that_found_infinity_is_skipped(info: Any, scaled: bool) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        params = [torch.ones(1) for _ in range(5)]
        for p in params:
            p.grad = torch.ones_like(p)
        opt = case.make(cls, params)
        opt.grad_scale, opt.found_inf = torch.ones(1) if scaled else None, torch.ones(())
        opt.step()
        steps = [float(s["step"]) for s in opt.state.values() if "step" in s]
        return [p.clone() for p in params], steps

    check(scenario, (c for c in cases(info) if c.kwargs.get("fused")))


@CLASSES
def test_every_combination_of_flags(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        weight, bias, _ = layer()
        params = [weight.detach().clone(), bias.detach().clone()]
        opt = case.make(cls, params)
        for p in params:
            p.grad = torch.rand_like(p)
        opt.step()
        return snapshot(opt, params)

    chosen = itertools.product([None, False, True], repeat=len(FLAGS))
    given = [{f: v for f, v in zip(FLAGS, values, strict=True) if v is not None} for values in chosen]
    check(scenario, [Case(info, kwargs, "", {"flags"}) for kwargs in given], fails=True)
