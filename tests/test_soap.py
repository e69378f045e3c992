"""SOAP and its kin, and their square states: against the authors' code, over checkpoints, dtypes and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpuopt
from cases import Case
from gpuopt import InputError, RuleSyntaxError, State, backends, bases
from gpuopt.rules.products import learn_bases, to_bases
from matrix_steps import Steps, product_shapes
from samples import HOST_BACKENDS, bits, difference

STEPS = Steps((6, 8), (5,), (4, 2, 3, 3), (3, 5, 5), (9, 1))
OPTIONS: dict[str, Any] = {"lr": 0.01, "precondition_frequency": 2}
KIN = ("SOAPMuon", "SPlus", "Shampoo")


def test_defaults_are_the_authors_steps_and_the_first_gradient_makes_none() -> None:
    mine = STEPS.arrays(0)
    oracle, opt = Case("SOAP").oracle(mine), gpuopt.SOAP(mine, backend="numpy")
    before = [a.copy() for a in mine]
    for seed in range(1, 51):
        opt.step(STEPS.arrays(seed))
        oracle.step(STEPS.arrays(seed))
        if seed == 1:
            moved = [not np.array_equal(a, b) for a, b in zip(mine, before, strict=True)]
            assert moved == [len(shape) == 1 for shape in STEPS.shapes]
    assert max(difference(a, b) for a, b in zip(mine, oracle.params, strict=True)) < 1e-12


def test_bases_are_orthogonal_and_diagonalize_what_gradients_have_in_common() -> None:
    g = np.random.default_rng(0).standard_normal((2, 4, 6))
    q_left, gram = np.zeros((2, 4, 4)), np.zeros((2, 4, 4))
    for renewal in (0, 2, *([1] * 58)):
        assert np.array_equal(bases.learn_bases(g.copy(), q_left, None, gram, None, renewal, renewal == 0), g)
    x = bases.to_bases(g.copy(), q_left, None)
    assert np.allclose(q_left.swapaxes(1, 2) @ q_left, np.eye(4)) and np.allclose(gram, g @ g.swapaxes(1, 2))
    found = x @ x.swapaxes(1, 2)
    assert np.allclose(found, found * np.eye(4)) and np.allclose(bases.from_bases(x, q_left, None), g)


def test_what_lies_in_the_bases_stays_where_it_is_when_they_turn() -> None:
    rng = np.random.default_rng(0)
    g, m = rng.standard_normal((2, 2, 4, 6))
    states = [np.eye(n) + np.zeros((2, n, n)) for n in (4, 6)] + [np.zeros((2, n, n)) for n in (4, 6)]
    for renewal in (0, 2, 1, 1):
        bases.learn_sides(g, *states[2:], 0.5)
        before, q = bases.from_bases(m.copy(), *states[:2]), [a.copy() for a in states[:2]]
        assert bases.turn_bases(m, *states, renewal) is m
        assert np.allclose(bases.from_bases(m.copy(), *states[:2]), before)
        assert [np.array_equal(a, b) for a, b in zip(q, states, strict=False)] == [not renewal] * 2


def test_three_pairs_of_products_make_a_step_and_two_more_turn_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    opt, calls = gpuopt.SOAP([np.ones((3, 4))], precondition_frequency=3, backend="numpy"), product_shapes(monkeypatch)
    rng, found = np.random.default_rng(0), []
    for _ in range(6):
        calls.clear()
        opt.step([rng.standard_normal((3, 4))])
        found.append(len(calls))
    assert found == [
        6,
        10,
        6,
        6,
        12,
        6,
    ]  # all eigenvectors behind the first; the power iteration is a product of each side


def test_roots_undo_what_gradients_have_in_common() -> None:
    g = np.random.default_rng(0).standard_normal((2, 4, 6))
    root, gram = np.zeros((2, 4, 4)), np.zeros((2, 4, 4))
    bases.learn_roots(g, root, None, gram, None, 1, 1.0, 2.0, 0.5, 0.1)
    assert np.allclose(root @ (2 * g @ g.swapaxes(1, 2) + 0.1 * np.eye(4)) @ root, np.eye(4))
    before = root.copy()
    bases.learn_roots(g, root, None, gram, None, 0, 0.5, 2.0, 0.5, 0.1)
    assert np.array_equal(root, before)
    bases.learn_roots(
        0 * g, root, None, gram - np.eye(4) * 50, None, 1, 0.0, 1.0, 1.0, 0.1
    )  # no average, as rounding may have it
    assert np.allclose(np.linalg.eigvalsh(root)[:, -1], 10)


@pytest.mark.parametrize("name", ["SOAP", *KIN])
def test_matrices_of_zeros_stay_and_a_side_that_comes_later_stops_nothing(name: str) -> None:
    mine = STEPS.arrays(0)
    opt = getattr(gpuopt, name)(mine, backend="numpy", weight_decay=0.0, max_precond_dim=6, precondition_frequency=50)
    for _ in range(3):
        opt.step([0 * a for a in mine])
    assert bits(mine) == bits(STEPS.arrays(0))
    STEPS.stepped(opt, (1, 2))
    opt.param_groups[0]["max_precond_dim"] = 8
    before = mine[0].copy()
    STEPS.stepped(opt, (3,))
    assert (mine[0] != before).all() and all(np.isfinite(a).all() for a in mine)


@pytest.mark.parametrize(
    ("name", "dtype", "more"),
    [
        ("SOAP", np.float32, {}),
        ("SOAPMuon", np.float32, {}),
        ("SPlus", np.float16, {"ema_decay": 0.9}),
        ("Shampoo", np.float32, {"state_format": "bfloat16"}),
    ],
)
def test_a_checkpoint_goes_on_bit_for_bit_and_backends_agree(name: str, dtype: Any, more: dict[str, Any]) -> None:
    options = OPTIONS | {"max_grad_norm": 2.0} | more
    STEPS.check_checkpoint(getattr(gpuopt, name), options, dtype, 3, 7)


def test_square_states_are_kept_for_sides_that_are_short_enough() -> None:
    mine = [np.ones((6, 8), np.float16), np.ones((4, 2, 3, 3)), np.ones((3, 5, 5)), np.ones(5)]
    opt = gpuopt.SOAP([{"params": mine}, {"params": [np.ones((2, 2))], "matrix": False}], max_precond_dim=6)
    opt.step([[a * 0.5 for a in mine], [np.ones((2, 2))]])
    of_each = [
        {name: (a.shape, a.dtype) for name, a in state.items() if name.startswith(("basis", "gram"))}
        for state in opt.state_dict()["state"].values()
    ]
    assert {name: found for name, (found, _) in of_each[2].items()} == {
        f"{what}_{side}": (3, 5, 5) for what in ("basis", "gram") for side in ("left", "right")
    }
    assert of_each[0] == dict.fromkeys(("basis_left", "gram_left"), ((6, 6), np.float32))
    assert of_each[1] == dict.fromkeys(("basis_left", "gram_left"), ((4, 4), np.float64))
    assert not of_each[3] and not of_each[4]
    opt.param_groups[0]["max_precond_dim"] = 8  # the rows of 8 get theirs, from now on
    opt.step([[a * 0.5 for a in mine], [np.ones((2, 2))]])
    assert opt.state_dict()["state"][0]["gram_right"].shape == (8, 8)


@pytest.mark.parametrize(
    ("name", "backend"), [*(("SOAP", b) for b in HOST_BACKENDS), *((name, "numpy") for name in KIN)]
)
def test_what_is_not_finite_spoils_its_own_matrix_alone_or_is_skipped(name: str, backend: str) -> None:
    mine, clean = STEPS.arrays(0), STEPS.arrays(0)
    opts = [
        getattr(gpuopt, name)(a, backend=backend, skip_nonfinite=skip, **OPTIONS)
        for a, skip in ((mine, False), (clean, True))
    ]
    for opt in opts:
        STEPS.stepped(opt, (1, 2))
        wrong = STEPS.arrays(3)
        wrong[0][1, 1] = np.inf
        opt.step(wrong)
        STEPS.stepped(opt, (4, 5))
    assert np.isnan(mine[0]).any() and all(np.isfinite(a).all() for a in mine[1:])
    assert all(np.isfinite(a).all() for a in clean) and opts[1].skipped == 1


def test_what_is_not_finite_has_no_eigenvectors_and_what_lapack_gives_up_has_unit_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gram = np.diag([3.0, 1.0, 2.0]) + 0.1
    expected = bases.eigenvectors(gram[None])
    with np.errstate(all="ignore"):
        found = bases.eigenvectors(np.array([gram, np.full((3, 3), np.inf)]))
    assert np.array_equal(found[0], expected[0]) and np.isnan(found[1]).all()
    real = np.linalg.eigh

    def eigh(a: Any) -> Any:
        if (a == 0).any():
            raise np.linalg.LinAlgError("Eigenvalues did not converge")
        return real(a)

    monkeypatch.setattr(np.linalg, "eigh", eigh)
    found = bases.eigenvectors(np.array([gram, np.diag([1.0, 2.0, 3.0])]))
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], np.eye(3))


def test_where_the_host_does_not_know_the_step_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose backend alone keeps counts."""
    opt = gpuopt.SOAP([np.ones((3, 4))], backend="numba", skip_nonfinite=True)
    monkeypatch.setattr(backends.get("numba", "cpu"), "device", "cuda")
    with pytest.raises(InputError, match="SOAP multiplies matrices by the step count, which stays on the GPU"):
        opt.step([np.ones((3, 4))])


def test_mistakes_of_a_rule_are_named() -> None:
    with pytest.raises(RuleSyntaxError, match="only products write it, expected readonly=True"):
        gpuopt.rule(state=[State("q", "q", shape="left")])
    with pytest.raises(RuleSyntaxError, match="begins as the identity: expected the shape of a side, left or right"):
        gpuopt.rule(state=[State("q", "q", init="identity", shape="row")])
    with pytest.raises(
        RuleSyntaxError, match="`to_bases` takes states of matrices and scalars, arguments of the rule itself"
    ):

        @gpuopt.rule(state=[State("q", "q", shape="left", readonly=True)])
        def computed(p, g, q, *, lr):
            return p - lr * to_bases(g, q, g + 1)

    @gpuopt.rule(state=["m", State("q", "q", shape="left", readonly=True)])
    def elements(p, g, m, q, *, lr, matrix: bool):
        u = g
        if matrix:
            u = to_bases(g, q, m)
        return p - lr * u, m

    with pytest.raises(RuleSyntaxError, match="takes states of matrices and scalars, and `m` is neither"):
        gpuopt.optimizer(elements, np.ones((3, 3)), lr=0.1).step(np.ones((3, 3)))
    with pytest.raises(InputError, match="learn_bases has a value only where an optimizer runs the rule"):
        learn_bases(np.ones((2, 2)), None, None, None, None, 0, 1)
    with pytest.raises(InputError, match="unknown option 'split_heads' of SOAP"):
        gpuopt.SOAP(np.ones((4, 4)), split_heads=2)
