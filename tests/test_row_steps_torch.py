"""Sparse gradients of torch, stepped as rows: torch.optim.SparseAdam is the oracle, and dense gradients where SGD takes both."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gpuopt.torch
from gpuopt.torch import sparse as sparse_gradients
from repository import ROOT


def embedded(make: Callable[[Any], Any], sparse: bool = True, steps: int = 40, dtype: Any = None) -> tuple[Any, Any]:
    """A table trained by the rows that each step looks up, some of them twice, none in one step."""
    torch.manual_seed(0)
    table = torch.nn.Embedding(50, 6, sparse=sparse, dtype=dtype or torch.float64)
    opt = make(table.parameters())
    for step in range(steps):
        opt.zero_grad()
        (table(torch.randint(0, 50, (0 if step == 7 else 9,))) ** 2).sum().backward()
        opt.step()
    return opt, table.weight.detach()


def test_sparse_gradients_are_stepped_as_sparse_adam_does() -> None:
    """With an eps of no weight: SparseAdam's is the bias correction's square root larger."""
    theirs, expected = embedded(lambda params: torch.optim.SparseAdam(params, lr=0.01, eps=1e-40))
    ours, found = embedded(lambda params: gpuopt.torch.Adam(params, lr=0.01, eps=1e-40))
    (left,), (right,) = ours.state.values(), theirs.state.values()
    for a, b in ((found, expected), *((left[k], right[k]) for k in ("exp_avg", "exp_avg_sq"))):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()
    assert int(left["step"]) == int(right["step"]) == 40


def test_sparse_gradients_go_on_from_a_checkpoint_and_from_dense_ones() -> None:
    opts = [embedded(lambda params: gpuopt.torch.AdamW(params, lr=0.1), steps=5) for _ in range(2)]
    torch.manual_seed(1)
    (first, p), (second, q) = opts
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    dense, rows = torch.rand(50, 6, dtype=torch.float64), torch.tensor([[4, 1, 4]])
    for step in range(4):
        sparse = torch.sparse_coo_tensor(rows, torch.rand(3, 6, dtype=torch.float64), (50, 6), check_invariants=False)
        for opt in (first, second):
            (weight,) = opt.param_groups[0]["params"]
            weight.grad = dense if step == 1 else sparse
            before = weight.detach().clone()
            opt.step()
            touched = torch.arange(50) if step == 1 else torch.tensor([1, 4])
            assert (weight.detach() != before).any(dim=1).nonzero().reshape(-1).tolist() == touched.tolist()
    assert torch.equal(p, q)


def test_sgd_without_momentum_steps_the_rows_and_has_the_bits_of_dense_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, take = [], sparse_gradients.taken
    monkeypatch.setattr(sparse_gradients, "taken", lambda *given: seen.append(take(*given)[1]) or take(*given))
    for options in ({"momentum": 0.9}, {"clip_value": 0.1}, {"l1": 0.01}):
        made = [embedded(lambda p, o=options: gpuopt.torch.SGD(p, lr=0.1, **o), sparse)[1] for sparse in (True, False)]
        assert torch.equal(*made)
        assert (seen[-1] == [None]) == ("clip_value" not in options)


def test_sparse_gradients_that_cannot_be_taken() -> None:
    p = torch.nn.Parameter(torch.ones(3, 2))
    for grad, cls, words in (
        (torch.ones(3, 2).to_sparse(), gpuopt.torch.Adam, "gradient of .*: 2 sparse axes: expected one, of rows"),
        (torch.ones(3, 2).to_sparse(1), gpuopt.torch.LAMB, "LAMB looks at whole tensors"),
    ):
        p.grad = grad
        with pytest.raises(gpuopt.GpuoptError, match=words):
            cls([p], lr=0.1).step()
    assert (p == 1).all()


def test_the_benchmark_adds_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("bench_rows", ROOT / "benchmarks" / "bench_rows.py")
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, bench)
    spec.loader.exec_module(bench)
    for _ in range(2):
        made = bench.main(["--rows", "500", "--width", "3", "--rounds", "1", "--out", str(tmp_path / "rows.csv")])
    header, *rows = (tmp_path / "rows.csv").read_text().splitlines()
    assert len(rows) == 2 and made.of_share > 0 and made.times_faster == made.sparse_adam_ms / made.rows_ms
    assert header == bench.RESULTS.read_text().splitlines()[0]
