"""Optimizers of matrices over whole models: which tensors are matrices, what the others have, how many products a step makes."""

from __future__ import annotations

import pickle
from typing import Any, Literal, get_args

import numpy as np
import pytest

import gpuopt
from gpuopt import InputError, LayoutError, RuleSyntaxError, linalg
from gpuopt.bench.shapes import MODELS
from gpuopt.rules import parts
from gpuopt.rules.declared import State
from gpuopt.rules.primitives import global_sum
from gpuopt.rules.products import orthogonalize
from matrix_steps import product_shapes

SHAPES = {"w": (6, 8), "e": (10, 4), "b": (5,), "c": (4, 2, 3, 3), "x": (3, 5, 7)}


def params(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def test_what_is_no_matrix_is_in_a_group_of_its_own_and_stepped_by_adamw() -> None:
    mine, twins = params(), params()
    opt = gpuopt.Muon(mine, lr=0.02, rest={"lr": 1e-3, "weight_decay": 0.0}, matrices=lambda path, a: path != ("e",))
    adamw = gpuopt.AdamW([twins["e"], twins["b"]], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for seed in (1, 2, 3):
        grads = params(seed)
        opt.step(grads)
        adamw.step([grads["e"], grads["b"]])
    assert all(np.array_equal(mine[name], twins[name]) for name in "eb")
    assert [(g["lr"], g["matrix"], len(g["params"])) for g in opt.param_groups] == [(0.02, True, 3), (1e-3, False, 2)]
    kept = [set(state) - {"step"} for state in opt.state_dict()["state"].values()]
    assert kept == [
        {"momentum_buffer"},
        {"exp_avg", "exp_avg_sq"},
        {"exp_avg", "exp_avg_sq"},
        *[{"momentum_buffer"}] * 2,
    ]
    table = str(opt.routing()).splitlines()
    assert table[0].split() == ["parameter", "shape", "stepped", "as", "lr", "weight_decay"]
    assert [line.split("  ")[0] for line in table[1:]] == [f"params['{name}']" for name in SHAPES]
    assert "Muon (6 x 8)" in table[1] and "AdamW" in table[2] and "0.001" in table[3] and "Muon (4 x 18)" in table[4]


def test_without_options_there_is_one_group_and_a_group_may_say_that_it_has_no_matrices() -> None:
    assert len(gpuopt.Muon(params()).param_groups) == 1
    opt = gpuopt.Scion(
        [{"params": [np.ones((3, 4))]}, {"params": [np.ones((3, 4))], "matrix": False, "scale": 10.0}], lr=0.1
    )
    opt.step([[np.ones((3, 4))], [np.ones((3, 4))]])
    assert np.allclose(opt.param_groups[1]["params"][0], 1 * 0.9 - 0.1 * 10.0) and "sign" in str(opt.routing())
    with pytest.raises(InputError, match=r"matrix = 1: expected one of \(False, True\)"):
        gpuopt.Muon([{"params": [np.ones((3, 4))], "matrix": 1}])


def test_a_checkpoint_goes_on_bit_for_bit() -> None:
    whole, half = params(), params()
    options = {"lr": 0.02, "rest": {"lr": 1e-3}, "max_grad_norm": 1.0}
    first, second = gpuopt.NorMuon(whole, **options), gpuopt.NorMuon(half, **options)
    for seed in (1, 2):
        first.step(params(seed))
        second.step(params(seed))
    again = gpuopt.NorMuon(half, **options)
    again.load_state_dict(second.state_dict())
    copied = pickle.loads(pickle.dumps(second))
    first.step(params(3))
    again.step(params(3))
    copied.step(params(3))
    others = [a for group in copied.param_groups for a in group["params"]]
    theirs = [a for group in first.param_groups for a in group["params"]]
    assert all(np.array_equal(whole[name], half[name]) for name in SHAPES)
    assert all(np.array_equal(a, b) for a, b in zip(theirs, others, strict=True))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("name", ["Muon", "NorMuon", "AdaMuon"])
def test_heads_of_one_weight_are_matrices_of_their_own(name: str, backend: str) -> None:
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((12, 5))
    parts = [part.copy() for part in np.split(whole, 3)]
    one = getattr(gpuopt, name)([{"params": [whole], "split_heads": 3}, {"params": [np.ones((2, 2))]}], backend=backend)
    each = getattr(gpuopt, name)([parts, np.ones((2, 2))], backend=backend)
    for _ in range(3):
        g, other = rng.standard_normal((12, 5)), np.ones((2, 2))
        one.step([[g], [other]])
        each.step([np.split(g, 3), other])
    assert np.array_equal(whole, np.concatenate(parts)) and "Muon (3 times 4 x 5)" in str(one.routing())
    with pytest.raises(InputError, match=r"shape \(12, 5\): split_heads = 5 does not divide its 12 rows"):
        getattr(gpuopt, name)(np.ones((12, 5)), split_heads=5, backend=backend).step(np.ones((12, 5)))
    with pytest.raises(InputError, match="split_heads = 0: expected a whole number, 1 or more"):
        getattr(gpuopt, name)(np.ones((12, 5)), split_heads=0)


def test_options_that_nobody_could_mean_are_refused() -> None:
    with pytest.raises(InputError, match="matrices: AdamW does the same with every tensor"):
        gpuopt.AdamW(params(), matrices=lambda path, a: True)
    with pytest.raises(InputError, match=r"rest: found float: expected a dict of hyperparameters"):
        gpuopt.Muon(params(), rest=0.1)
    with pytest.raises(InputError, match="rest: unknown option 'rate' of Muon"):
        gpuopt.Muon(params(), rest={"rate": 0.1})
    with pytest.raises(InputError, match=r"ns_coefficients = 'newton': expected one of \('keller'"):
        gpuopt.Muon(params(), ns_coefficients="newton")
    with pytest.raises(LayoutError, match="multiplies matrices and expects them in C order"):
        gpuopt.Muon([np.asfortranarray(np.ones((3, 4)))]).step([np.ones((3, 4))])


def test_a_rule_of_ones_own_multiplies_matrices_and_is_told_where_it_cannot() -> None:
    @gpuopt.rule(state=("b",))
    def spectral(
        p, g, b, *, lr, ns: Literal["keller", "cubic5"] = "cubic5", count: Literal[None, 3] = None, matrix: bool
    ):
        b = 0.9 * b + g
        u = b
        if matrix:
            u = orthogonalize(b, ns, count)
        return p - lr * u, b

    arrays = {backend: [np.ones((3, 4)), np.ones(3)] for backend in ("numpy", "numba")}
    for backend, mine in arrays.items():
        opt = gpuopt.optimizer(spectral, mine, lr=0.1, backend=backend)
        for seed in (1, 2):
            opt.step([np.random.default_rng(seed).standard_normal(a.shape) for a in mine])
    assert all(np.array_equal(a, b) for a, b in zip(*arrays.values(), strict=True))

    with pytest.raises(RuleSyntaxError, match="`orthogonalize` takes a compile-time flag"):

        @gpuopt.rule
        def scalar(p, g, *, lr, ns):
            return p - lr * orthogonalize(g, ns, ns)

    @gpuopt.rule
    def unguarded(p, g, *, lr, ns: Literal["keller"] = "keller", count: Literal[None] = None):
        return p - lr * orthogonalize(g, ns, count)

    with pytest.raises(
        RuleSyntaxError, match=r"orthogonalize needs a tensor of two or more axes: put it under `if matrix:`"
    ):
        gpuopt.optimizer(unguarded, np.ones(3), lr=0.1).step(np.ones(3))
    with pytest.raises(InputError, match="orthogonalize has a value only where an optimizer runs the rule"):
        orthogonalize(np.ones((2, 2)), "keller", None)


def test_a_number_of_all_tensors_is_stored_beside_products() -> None:
    """By the last tensor, in the last stage that needs it."""

    @gpuopt.rule(state=[State("d", "distance", shape="global"), State("b", "b")])
    def travelled(p, g, d, b, *, lr, ns: Literal["keller"] = "keller", count: Literal[None] = None):
        b = 0.5 * b + g
        u = orthogonalize(b, ns, count)
        d = d + global_sum(u * u)
        return p - lr / (1 + d) * u, d, b

    found = []
    for backend in ("numpy", "numba"):
        mine = [np.ones((3, 4)), np.ones((5, 2))]
        opt = gpuopt.optimizer(travelled, mine, lr=0.1, backend=backend)
        for seed in (1, 2, 3):
            opt.step([np.random.default_rng(seed).standard_normal(a.shape) for a in mine])
        states = opt.state_dict()["state"]
        assert states[0]["distance"] == states[1]["distance"] > 5
        found.append([*(a.tobytes() for a in mine), float(states[0]["distance"])])
    assert found[0] == found[1]


def test_a_step_makes_as_many_products_as_there_are_shapes_times_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2-small, in small: every length by 32."""
    shapes = [tuple(max(1, n // 32) for n in shape) for shape in MODELS["gpt2-small"] if len(shape) == 2]
    calls = product_shapes(monkeypatch)
    monkeypatch.setattr(linalg, "CACHED", 1 << 40)
    for name, products in (("keller", 3), ("cubic5", 2)):
        calls.clear()
        mine = [np.ones(shape, np.float32) for shape in shapes]
        gpuopt.Muon(mine, backend="numba", ns_coefficients=name, adjust_lr_fn="none").step([a * 0.5 for a in mine])
        batches = {shape[0] for shape in calls}
        assert batches == {shapes.count(shape) for shape in set(shapes)}, "equal matrices are one batch"
        table = linalg.COEFFICIENTS[name].steps(None)
        expected = 0
        for shape in set(shapes):
            by_rows = linalg.plan(table, max(shape) / min(shape), linalg.Host(np.ones((1, 1, 1)))).gram
            pieces = linalg.pieces_of(5, products == 3)
            each = sum(1 + n * (products - 2) + 3 * (n - 1) + 1 for n in pieces)
            expected += each if by_rows else products * 5
        assert len(calls) == expected


def test_rules_offer_all_coefficients_that_there_are() -> None:
    assert set(get_args(parts.Coefficients)) == set(linalg.COEFFICIENTS)
    assert max(len(found.table) for found in linalg.COEFFICIENTS.values()) in get_args(parts.Steps)
