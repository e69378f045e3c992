"""PyTorch's own inputs for its optimizers, ours beside torch's: sparse gradients, complex parameters, parameters on meta."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

import gpuopt.torch
from gpuopt.native.torch import watch
from torch_inputs import CLASSES, INFOS, OURS, Case, cases, check, model_of, snapshot
from torch_samples import everything, gradients, parameters

SPARSE = [info for info in INFOS if info.supports_sparse]


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("info", SPARSE, ids=lambda info: info.name)
def test_sparse_gradients_among_many(info: Any, released: bool) -> None:
    """An embedding's among those of more tensors than Python looks at itself, sparse in some steps; with gradient release too."""

    def scenario(cls: Any, case: Case) -> Any:
        model = torch.nn.ModuleList(
            [torch.nn.Embedding(7, 3), *(torch.nn.Linear(3, 3) for _ in range(watch.FROM))]
        ).double()
        opt = case.make(cls, list(model.parameters()))
        ours = released and cls is OURS[info.name]
        end = gpuopt.torch.release_gradients(model, opt) if ours else opt.step
        for step in range(8):
            model[0].sparse = step not in (0, 5, 6)
            opt.zero_grad()
            x = model[0](torch.tensor([1, 1, step % 7]))
            sum((layer(x) ** 2).sum() for layer in list(model)[1:]).backward()
            if not ours:
                opt.step()
        if ours:
            end()
        return snapshot(opt, list(model.parameters()))

    check(scenario, [Case(info, {"lr": 1e-3}, "")])


@pytest.mark.parametrize(
    "options", [{"max_grad_norm": 0.5}, {"skip_nonfinite": True}, {"l1": 0.1}, {"clip_value": 0.2}], ids=str
)
@pytest.mark.parametrize("info", SPARSE, ids=lambda info: info.name)
def test_sparse_gradients_with_our_options(info: Any, options: Any) -> None:
    """Bit for bit as dense ones."""
    results = []
    for sparse in (True, False):
        params = parameters(((4, 3), (5,)))
        opt = OURS[info.name](params, lr=0.1, **options)
        for number in range(4):
            for p, g in zip(params, gradients(params, number), strict=True):
                g *= number != 2 or torch.inf
                p.grad = g.to_sparse() if sparse else g
            opt.step()
        results.append(everything(opt))
    assert results[0] == results[1]


def rosenbrock(xy: Any) -> Any:
    return (1 - xy[0]) ** 2 + 100 * (xy[1] - xy[0] ** 2) ** 2


def slope(xy: Any) -> Any:
    return torch.stack((-400 * xy[0] * (xy[1] - xy[0] ** 2) - 2 * (1 - xy[0]), 200 * (xy[1] - xy[0] ** 2)))


def one_of_two(gradient: Any, index: int, sparse: bool) -> Any:
    """The gradient in one coordinate; a sparse one is given in two pieces."""
    if not sparse:
        return gradient * (torch.arange(2) == index)
    value = gradient[index].detach()
    return torch.sparse_coo_tensor(
        [[index, index]], torch.stack([value / 4, value - value / 4]), (2,), check_invariants=False
    )


@pytest.mark.parametrize("scheduled", [True, False])
@CLASSES
def test_sparse_gradients(info: Any, scheduled: bool) -> None:
    """Down a valley by one coordinate at a time, as torch and as with dense gradients, where torch takes sparse ones."""
    changed, schedulers = info.metadata_for_sparse

    def scenario(cls: Any, case: Case, sparse: bool = True) -> Any:
        params = [torch.nn.Parameter(torch.tensor([1.5, 1.5], dtype=d)) for d in (torch.float64, torch.float32)]
        opt, seen = case.make(cls, params), []
        made = [make(opt) for make in (schedulers if scheduled else [])]
        for step in range(50):
            for p in params:
                p.grad = one_of_two(slope(p.detach()), step % 2, sparse)
            opt.step()
            for scheduler in made:
                scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
            seen.append(params[0].detach().clone())
        same = sparse and info.supports_sparse
        assert not same or torch.allclose(torch.stack(seen), torch.stack(scenario(cls, case, sparse=False)[0]))
        return seen, snapshot(opt, params[:1])

    check(
        scenario, [replace(c, kwargs=c.kwargs | changed) for c in cases(info, "sparse")], fails=not info.supports_sparse
    )


@CLASSES
def test_sparse_gradients_and_decay(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        p = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
        opt, seen = case.make(cls, [p]), []
        for rows in ([0], [1, 1], [], [0, 1]):
            p.grad = torch.sparse_coo_tensor(
                [rows], torch.rand(len(rows), 3, dtype=torch.float64), (2, 3), check_invariants=False
            )
            opt.step()
            seen.append(p.detach().clone())
        return seen

    check(scenario, cases(info, "sparse"), fails=True)


COMPLEX = pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
# Torch's Adafactor takes none; ours takes its real numbers one by one, see test_complex.py.
TAKE_COMPLEX = pytest.mark.parametrize("info", [i for i in INFOS if i.supports_complex], ids=lambda info: info.name)


@COMPLEX
@TAKE_COMPLEX
def test_complex_parameters_beside_real_ones(info: Any, dtype: Any) -> None:
    real = dtype.to_real()

    def scenario(cls: Any, case: Case) -> Any:
        params = [
            torch.randn(s, dtype=d, requires_grad=True) for s, d in (((10, 5), dtype), (10, dtype), ((10, 5), real))
        ]
        opt, seen = case.make(cls, params), []
        for _ in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            opt.step()
            seen.append(snapshot(opt, params))
        return seen

    check(scenario, cases(info, "complex"))


@COMPLEX
@TAKE_COMPLEX
def test_a_complex_parameter_is_its_two_parts(info: Any, dtype: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        whole = torch.randn(2, dtype=dtype, requires_grad=True)
        parts = [part.detach().clone().requires_grad_() for part in (whole.real, whole.imag)]
        both, seen = [case.make(cls, [whole]), case.make(cls, parts)], []
        for _ in range(3):
            for opt, given in zip(both, (whole, None), strict=True):
                opt.zero_grad()
                rosenbrock(torch.complex(*parts) if given is None else given).abs().backward()
                opt.step()
            near = torch.allclose(whole.real, parts[0]) and torch.allclose(whole.imag, parts[1])
            seen.append([near, whole.detach().clone(), *(p.detach().clone() for p in parts)])
        return seen

    check(scenario, cases(info, "complex"))


@CLASSES
def test_parameters_on_meta_are_materialized_later(info: Any) -> None:
    def step(opt: Any, model: Any) -> Any:
        for p in model.parameters():
            p.grad = torch.rand_like(p)
        opt.step()

    def on_meta(cls: Any, case: Case) -> Any:
        model = model_of(torch.float64).to("meta")
        step(case.make(cls, list(model.parameters())), model)

    def later(cls: Any, case: Case) -> Any:
        model = model_of(torch.float64).to("meta")
        opt = case.make(cls, list(model.parameters()))
        if cls is not case.info.optim_cls or case.kwargs.get("fused"):
            with pytest.raises(RuntimeError, match="meta"):
                step(opt, model)
        opt.zero_grad()
        model.to_empty(device="cpu")
        for p in model.parameters():
            torch.nn.init.uniform_(p)
        step(opt, model)
        return [p.detach().clone() for p in model.parameters()]

    check(on_meta, cases(info, "meta"), fails=True)
    check(later, cases(info))
