"""Dion2 and the rows or columns that it chooses: ties, products, batches, checkpoints; its steps are compared in test_oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import InputError, selections
from matrix_steps import Steps, product_shapes

pytestmark = pytest.mark.once
STEPS = Steps((6, 8), (5,), (6, 8), (4, 2, 3, 3), (3, 5, 5), (9, 1), (1, 7))


def chosen(shape: tuple[int, ...]) -> list[Any]:
    return [np.zeros((*shape[:-1], 1)), np.zeros((*shape[:-2], 1, shape[-1]))]


def test_the_first_of_equal_rows_are_chosen_and_one_of_nan_before_all() -> None:
    sums = np.array([[1.0, 3.0, 2.0, 3.0, 0.0, np.inf], [0.0, np.nan, 5.0, 5.0, np.nan, 7.0]])
    expected = [[5, 1, 3, 2, 0, 4], [1, 4, 5, 2, 3, 0]]
    assert selections.largest_first(sums).tolist() == expected
    assert selections.by_counting(np.nan_to_num(sums, nan=np.inf, posinf=np.inf)).tolist() == expected


@pytest.mark.parametrize("shape", [(2, 4, 9), (2, 9, 4), (1, 4, 4), (1, 1, 3)])
def test_rows_or_columns_are_orthogonal_and_all_others_zero_also_if_chosen_again(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape)
    rows, columns = chosen(shape)
    whole = selections.orthogonalize_largest(x.copy(), "deepseek", None, 0.5, rows, columns)
    few, others = (columns, rows) if shape[1] > shape[2] else (rows, columns)
    count = max(1, min(shape[1:]) // 2)
    assert (others == 1).all() and (few.sum((1, 2)) == count).all()
    assert not whole[np.broadcast_to(few == 0, shape)].any()
    assert np.allclose(np.linalg.svd(whole)[1][:, :count], 1, atol=0.02)
    again = chosen(shape)  # as on a GPU behind a skipped step, whose operand is the last result
    selections.orthogonalize_largest(whole.copy(), "deepseek", None, 0.5, *again)
    assert all(np.array_equal(a, b) for a, b in zip(again, (rows, columns), strict=True))


def test_a_quarter_of_the_rows_is_multiplied_in_one_batch_of_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = product_shapes(monkeypatch)
    mine, alone = ([np.ones((40, 60)), np.ones((60, 40)), np.ones((40, 60))] for _ in range(2))
    grads = [np.random.default_rng(k).standard_normal(a.shape) for k, a in enumerate(mine)]
    gpuopt.Dion2(mine, backend="numba").step(grads)
    assert {shape[0] for shape in calls} == {1, 2} and {max(shape[1:]) for shape in calls} <= {10, 60}
    both = len(calls)
    opt = gpuopt.Dion2([{"params": alone[:2]}, {"params": alone[2:], "fraction": 0.5}], backend="numba")
    opt.param_groups[1]["fraction"] = 0.25
    opt.step([grads[:2], grads[2:]])
    assert len(calls) == 2 * both and all(np.array_equal(a, b) for a, b in zip(mine, alone, strict=True))
    opt.param_groups[1]["fraction"] = 0.5
    opt.step([grads[:2], grads[2:]])
    assert len(calls) > 3 * both


@pytest.mark.parametrize(("dtype", "options"), [(np.float32, {"state_format": "bfloat16"}), (np.float16, {})])
def test_a_checkpoint_goes_on_bit_for_bit_and_backends_agree(dtype: Any, options: dict[str, Any]) -> None:
    """A step that was skipped before leaves no trace."""

    def spoil(opt: Any) -> None:
        wrong = STEPS.arrays(4, dtype)
        wrong[0][1, 1] = np.nan
        opt.step(wrong)
        assert opt.skipped == 1

    given = {"fraction": 0.5, "max_grad_norm": 2.0, **options, "skip_nonfinite": True}
    STEPS.check_checkpoint(gpuopt.Dion2, given, dtype, 3, 5, between=spoil)


def test_only_what_was_chosen_moves_and_its_momentum_decays_when_it_is_read() -> None:
    p, g = np.zeros((4, 5)), np.diag([1.0, 4.0, 2.0, 3.0]) @ np.ones((4, 5))
    opt = gpuopt.Dion2([p], lr=1.0, weight_decay=0.0, fraction=0.5, ef_decay=0.5, backend="numpy")
    opt.step([g])
    state = opt.state_dict()["state"][0]
    assert state["chosen_rows"].ravel().tolist() == [0, 1, 0, 1] and np.array_equal(state["momentum_buffer"], g)
    assert p[[1, 3]].all() and not p[[0, 2]].any()
    opt.step([g * 0])
    assert np.array_equal(opt.state_dict()["state"][0]["momentum_buffer"], g * [[1], [0.5], [1], [0.5]])
    zeros = np.ones((4, 5))
    stepping = gpuopt.Dion2([zeros], lr=0.1, weight_decay=0.5, backend="numpy")
    stepping.step([zeros * 0])
    assert np.allclose(zeros, 1 - 0.1 * 0.5)


def test_what_nobody_could_mean_is_refused() -> None:
    with pytest.raises(InputError, match=r"fraction = 0\.0: expected a number in \(0, 1\]"):
        gpuopt.Dion2(np.ones((4, 4)), fraction=0.0)
    with pytest.raises(InputError, match="unknown option 'split_heads' of Dion2"):
        gpuopt.Dion2(np.ones((4, 4)), split_heads=2)
