"""gpuopt.torch's optimizers of matrices over whole models, and the benchmark of a step beside torch.optim.Muon."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt.torch
from gpuopt import bases, linalg, projections, selections, whitening
from gpuopt.draws import Draw
from gpuopt.errors import InputError, KindError
from host_products import check_bases
from repository import ROOT
from samples import difference


class Model(torch.nn.Module):
    """Some of every kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden = torch.nn.Embedding(40, 8), torch.nn.Linear(8, 16)
        self.norm, self.conv = torch.nn.BatchNorm1d(16), torch.nn.Conv2d(2, 4, 3)
        self.out, self.score = torch.nn.Linear(16, 40, bias=False), torch.nn.Linear(16, 3)

    def forward(self, codes: Any) -> Any:
        x = self.norm(torch.relu(self.hidden(self.table(codes))))
        return self.out(x).square().mean() + self.score(x).square().mean() + self.conv(torch.ones(1, 2, 4, 4)).sum()


def stepped(opt: torch.optim.Optimizer, model: torch.nn.Module, steps: int) -> None:
    for _ in range(steps):
        opt.zero_grad()
        model(torch.arange(40)).backward()
        opt.step()


def test_a_model_is_divided_by_its_layers() -> None:
    torch.manual_seed(0)
    model = Model()
    opt = gpuopt.torch.NorMuon(model, lr=0.02, rest={"lr": 1e-3}, state_format="auto8")
    found = {row[0]: row[2].split(" ")[0] for row in opt.routing().rows}
    assert found.pop("hidden.weight") == found.pop("conv.weight") == "NorMuon"
    assert set(found.values()) == {"AdamW"} and set(found) | {"hidden.weight", "conv.weight"} == {
        n for n, _ in model.named_parameters()
    }
    stepped(opt, model, 2)
    assert set(opt.state[model.out.weight]) == {"step", "exp_avg", "exp_avg_sq"}
    assert opt.state[model.conv.weight]["second_momentum_buffer"].shape == (4, 1, 1, 1)
    by_name = gpuopt.torch.Muon(model, matrices=lambda name, p: name == "out.weight")
    assert [row[0] for row in by_name.routing().rows if row[2].startswith("Muon")] == ["out.weight"]


def test_a_schedule_scales_both_groups_and_a_checkpoint_goes_on_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = Model()
    opt = gpuopt.torch.Muon(model, lr=0.02, rest={"lr": 1e-3})
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
    stepped(opt, model, 1)
    schedule.step()
    assert [group["lr"] for group in opt.param_groups] == [0.01, 5e-4]
    twin = Model()
    twin.load_state_dict(model.state_dict())
    again = gpuopt.torch.Muon(twin, lr=0.02, rest={"lr": 1e-3})
    again.load_state_dict(copy.deepcopy(opt.state_dict()))  # torch's would share the states
    stepped(opt, model, 2)
    stepped(again, twin, 2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_near_torchs_own() -> None:
    """Which multiplies in bfloat16."""
    made = torch.Generator().manual_seed(0)
    params = [torch.randn(48, 64, generator=made, requires_grad=True) for _ in range(2)]
    twins = [p.detach().clone().requires_grad_() for p in params]
    ours, theirs = gpuopt.torch.Muon(params, lr=0.02), torch.optim.Muon(twins, lr=0.02)
    before = [p.detach().clone() for p in params]
    for _ in range(3):
        for p, q in zip(params, twins, strict=True):
            p.grad = torch.randn(p.shape, generator=made)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    for p, q, first in zip(params, twins, before, strict=True):
        assert (p - q).norm() < 0.02 * (q - first).norm()


def test_what_nobody_could_mean_is_refused() -> None:
    with pytest.raises(
        KindError, match=r"params: a model: expected its parameters, such as AdamW\(model.parameters\(\)\)"
    ):
        gpuopt.torch.AdamW(Model())
    with pytest.raises(InputError, match="matrices: found list: expected a function of name and parameter"):
        gpuopt.torch.Muon(Model(), matrices=[True])
    with pytest.raises(InputError, match="rest: Lion does the same with every tensor"):
        gpuopt.torch.Lion(Model().parameters(), rest={"lr": 0.1})


def test_the_benchmark_writes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("bench_matrices", ROOT / "benchmarks" / "bench_matrices.py")
    assert spec and spec.loader
    bench = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, bench)
    spec.loader.exec_module(bench)
    monkeypatch.setattr(bench, "LAYER", ((12, 8), (8, 8)))
    rows = bench.main(["--layers", "2", "--rounds", "1", "--out", str(tmp_path / "matrices.csv")])
    assert [row.coefficients for row in rows] == list(bench.SETS) and all(
        row.matrices == 4 and row.seconds > 0 for row in rows
    )
    assert len((tmp_path / "matrices.csv").read_text().splitlines()) == 1 + len(rows)


def test_qk_clip_takes_tensors() -> None:
    query, key = torch.randn(8, 5), torch.randn(8, 5)
    arrays = query.numpy().copy(), key.numpy().copy()
    found = torch.tensor([300.0, 50.0])
    factors = gpuopt.qk_clip(query, key, found)
    assert torch.equal(factors, torch.from_numpy(gpuopt.qk_clip(*arrays, [300.0, 50.0])))
    assert (
        np.allclose(query.numpy(), arrays[0])
        and np.allclose(key.numpy(), arrays[1])
        and torch.equal(found, torch.tensor([300.0, 50.0]))
    )


def test_torch_gives_what_numpy_gives_and_half_precision_is_near() -> None:
    x = np.random.default_rng(4).standard_normal((2, 20, 48))
    for name in linalg.COEFFICIENTS:
        expected = linalg.orthogonalize(x.copy(), name)
        assert difference(linalg.orthogonalize(torch.from_numpy(x.copy()), name).numpy(), expected) < 1e-12, name
    rng, values = np.random.default_rng(5), 1 / np.arange(1.0, 41)  # most of them small, as those of gradients are
    falling = (
        (np.linalg.qr(rng.standard_normal((40, 40)))[0] * values) @ np.linalg.qr(rng.standard_normal((120, 40)))[0].T
    )[None]
    for name, given, most in (("cubic5", x, 0.02), ("keller", falling, 0.08), ("polar_express", falling, 0.2)):
        exact = given / np.linalg.norm(given, axis=(1, 2), keepdims=True)
        table, half = linalg.COEFFICIENTS[name].steps(None), torch.from_numpy(exact).half()
        expected = linalg.by_matrix(exact.copy(), table, linalg.library_of(exact))
        for by in (linalg.by_matrix, linalg.by_rows):
            found = by(half.clone(), table, linalg.library_of(half)).double().numpy()
            assert difference(found, expected) < most, (name, by, "float16 has 11 bits, and five steps magnify")


def soap_arrays(seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in ((6, 8), (5,), (4, 2, 3, 3), (3, 5, 5), (9, 1))]


KEPT: dict[str, dict[str, Any]] = {
    **{name: {"precondition_frequency": 2} for name in ("SOAP", "SOAPMuon", "SPlus", "Shampoo")},
    "APOLLO": {"rank": 3, "update_proj_gap": 2},
    "Dion2": {},
    "Kron": {"max_size_triangular": 5, "max_prob": 0.7},
}


@pytest.mark.parametrize("name", KEPT)
def test_rules_whose_products_keep_states_step_the_same_bits(name: str) -> None:
    options = {"lr": 0.01, **KEPT[name]}
    mine, tensors = soap_arrays(0), [torch.tensor(a, requires_grad=True) for a in soap_arrays(0)]
    opt = getattr(gpuopt, name)(mine, backend="numba", **options)
    theirs = getattr(gpuopt.torch, name)(tensors, **options)
    for seed in range(1, 6):
        opt.step(soap_arrays(seed))
        for tensor, g in zip(tensors, soap_arrays(seed), strict=True):
            tensor.grad = torch.tensor(g)
        theirs.step()
        theirs.load_state_dict(theirs.state_dict())
    assert all(np.array_equal(a, t.detach().numpy()) for a, t in zip(mine, tensors, strict=True))


def test_projections_of_torch_are_those_of_numpy() -> None:
    draw = Draw(0, 0)
    assert np.allclose(draw.normals(3, torch.empty(2, 5)).numpy(), draw.normals(3, np.empty((2, 5))), 1e-12)
    for shape, low in (((2, 6, 4), (2, 6, 3)), ((2, 4, 6), (2, 3, 6))):
        here = [
            np.random.default_rng(1).standard_normal(shape),
            np.zeros((2, 3, 4)),
            *np.zeros((2, *low)),
            np.zeros((2, 1, 1)),
        ]
        there = [torch.tensor(a) for a in here]
        for g, *states in (here, there):
            for count in (1, 2):
                projections.scale_by_projection(g, "channel", *states, count, 200, 0.9, 0.99, 1e-6, 1.01, draw)
        assert all(np.allclose(a, b.numpy(), 1e-12) for a, b in zip(here, there, strict=True))


def test_whitening_of_torch_is_that_of_numpy() -> None:
    draw, rng = Draw(0, 0), np.random.default_rng(1)
    here = [rng.standard_normal((2, 40, 6)), np.zeros((2, 40, 40)), np.zeros((2, 1, 6))]
    there = [torch.tensor(a) for a in here]
    for g, *factors in (here, there):
        for count in (1, 2):
            whitening.whiten(g, *factors, count, 1.0, 0.1, 2.0, draw)
        whitening.level(*factors)
    assert all(np.allclose(a, b.numpy(), 1e-10) for a, b in zip(here, there, strict=True))


def test_selections_of_torch_are_those_of_numpy() -> None:
    rng = np.random.default_rng(1)
    for shape in ((2, 12, 5), (2, 5, 12)):
        here = [rng.integers(-2, 3, shape) / 1.0, np.zeros((2, shape[1], 1)), np.zeros((2, 1, shape[2]))]
        here[0][1, 1, 1] = np.nan
        there = [torch.tensor(a) for a in here]
        for x, *chosen in (here, there):
            selections.orthogonalize_largest(x, "keller", None, 0.4, *chosen)
        assert all(np.allclose(a, b.numpy(), 1e-12, equal_nan=True) for a, b in zip(here, there, strict=True))


def test_bases_of_torch_are_those_of_numpy() -> None:
    grams = check_bases(torch.tensor, lambda tensor: tensor.numpy(), 4, 6, 1e-12)[2]
    grams[0, 0, 0] = torch.nan
    assert [bool(found.isnan().all()) for found in bases.eigenvectors(grams)] == [True, False]
