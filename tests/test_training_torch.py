"""`gpuopt.training` on torch models: rates, batch sizes, comparing, pruning, int8 and averages, each with the model put back."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

import gpuopt.torch
from gpuopt import training
from training_problems import images

EPOCH, BATCH = 23, 64
GRID = np.geomspace(1e-4, 1, 12)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices are small: threads of torch and of Numba would only wait for each other."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The digits: training images, test images, labels of both."""
    x, test, y, y_test = images()
    return torch.from_numpy(x), torch.from_numpy(test), torch.from_numpy(y), torch.from_numpy(y_test)


def network() -> torch.nn.Module:
    """Two layers with a normalisation between them, whose buffers change at every forward pass while training."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.BatchNorm1d(128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
    )


def on_rows(model: Any, rows: Any) -> torch.Tensor:
    x, _, y, _ = data()
    rows = torch.as_tensor(rows)
    return torch.nn.functional.cross_entropy(model(x[rows]), y[rows])


def loss(model: Any, step: int) -> torch.Tensor:
    return on_rows(model, np.random.default_rng(step).integers(0, 1437, BATCH))


def accuracy(model: torch.nn.Module) -> float:
    _, test, _, labels = data()
    model.eval()
    with torch.no_grad():
        found = float((model(test).argmax(1) == labels).float().mean())
    model.train()
    return found


def everything(model: torch.nn.Module) -> list[Any]:
    """Parameters, buffers, gradients and modes of a model, in bits."""
    tensors = [*model.parameters(), *model.buffers()]
    grads = [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()]
    return [[t.detach().numpy().tobytes() for t in tensors], grads, [m.training for m in model.modules()]]


def reached(optimizer: Any, lr: float) -> float:
    """The loss of all data after training at one rate."""
    model = network()
    opt = optimizer(model.parameters(), lr=lr)
    for step in range(100):
        opt.zero_grad()
        value = loss(model, step)
        value.backward()
        opt.step()
    with torch.no_grad():
        found = float(on_rows(model, np.arange(1437)))
    return found if math.isfinite(found) else math.inf


@pytest.mark.parametrize("optimizer", [gpuopt.torch.AdamW, torch.optim.SGD])
def test_the_rate_is_within_a_tenth_of_the_best_of_a_grid(optimizer: Any) -> None:
    model = network()
    with torch.no_grad():
        start = float(on_rows(copy.deepcopy(model), np.arange(1437)))
    found = training.lr_range_test(model, loss, optimizer)
    best = min(reached(optimizer, lr) for lr in GRID)
    assert start - reached(optimizer, found.advised) >= 0.9 * (start - best) > 0


def test_a_name_is_gpuopts_own_class_and_everything_is_put_back() -> None:
    model = network()
    model[1].eval()
    model[3].bias.grad = torch.ones(10)
    before = everything(model)

    def training_loss(model: Any, step: int) -> torch.Tensor:
        return loss(model.train(), step)

    by_name = training.lr_range_test(model, training_loss, "sgd", momentum=0.9, trials=2)
    assert everything(model) == before
    by_class = training.lr_range_test(model, training_loss, gpuopt.torch.SGD, momentum=0.9)
    assert by_name.losses.tobytes() == by_class.losses.tobytes()

    def failing(model: Any, step: int) -> torch.Tensor:
        if step == 4:
            raise KeyboardInterrupt
        return loss(model, step)

    with pytest.raises(KeyboardInterrupt):
        training.lr_range_test(model, failing)
    assert everything(model) == before


def test_parameters_that_are_frozen_stay_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    assert not training.lr_range_test(model, loss, "adam", num_steps=20, max_lr=0.1).diverged
    model.requires_grad_(False)
    with pytest.raises(gpuopt.InputError, match="a model without parameters that require grad"):
        training.lr_range_test(model, loss)


@pytest.mark.parametrize("wrong", [lambda m, k: 1.0, lambda m, k: m[0].weight, lambda m, k: (1.0, [])])
def test_a_loss_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(gpuopt.InputError, match=r"loss returned .*: expected a tensor of one element"):
        training.lr_range_test(network(), wrong)


def test_the_batch_size(tmp_path: Path) -> None:
    model = network()
    before = everything(model)
    found = training.find_batch_size(model, on_rows, 1437, "adam", repeats=3)
    assert everything(model) == before
    assert 0 < found.noise_scale < math.inf and found.advised in [row.size for row in found.rows]
    assert found.plot(tmp_path / "batches.png").exists()


def test_comparing_names_the_better_one() -> None:
    """At the best of the same rates, which are too low for plain descent."""
    model = network()
    before = everything(model)
    found = training.compare(model, ["sgd", "adamw"], 40, loss=loss, repeats=2)
    assert everything(model) == before
    assert {c.optimizer for c in found.contenders} == {"sgd", "adamw"}
    assert found.contenders[0].score <= found.contenders[1].score < 2.0
    assert found.metric == "loss" and f"Train with {found.winner} at lr=" in found.advice


def fit(model: torch.nn.Module, opt: Any, steps: int, after: Any = lambda: None) -> None:
    for step in range(steps):
        opt.zero_grad()
        loss(model, step).backward()
        opt.step()
        after()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_nine_of_ten_weights_less_and_as_good_on_the_digits(scope: str) -> None:
    dense, sparse, steps = network(), network(), 20 * EPOCH
    fit(dense, gpuopt.torch.AdamW(dense.parameters(), lr=0.003), steps)
    pruning = training.MagnitudePruning(sparse, 0.9, steps // 5, 4 * steps // 5, scope=scope)
    assert {tuple(p.shape) for p in pruning.mask} == {(128, 64), (10, 128)}
    opt = gpuopt.torch.AdamW(sparse.parameters(), lr=0.003, mask=pruning.mask)
    fit(sparse, opt, steps, pruning.step)
    weights = [sparse[0].weight, sparse[3].weight]
    total = sum(w.numel() for w in weights)
    assert sum(int(w.count_nonzero()) for w in weights) == total - sum(
        round(0.9 * n) for n in ([total] if scope == "global" else [w.numel() for w in weights])
    )
    assert accuracy(dense) > 0.95 and accuracy(sparse) >= accuracy(dense) - 0.01


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_masks_changed_in_place_hold_from_the_next_step_on(layout: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 4, 3)
    if layout == "channels last":
        model = model.to(memory_format=torch.channels_last)
    pruning = training.MagnitudePruning(model, 0.5, 1, 5)
    opt = gpuopt.torch.Adam(model.parameters(), lr=0.1, mask=pruning.mask)
    for k in range(3):
        opt.zero_grad()
        model(torch.ones(1, 3, 5, 5)).square().sum().backward()
        opt.step()
        if k == 0:
            pruning.mask[model.weight][1, 2, 0, 1] = False
    assert model.weight[1, 2, 0, 1] == 0 and model.weight.count_nonzero() == model.weight.numel() - 1


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex_weights_go_by_both_parts() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 4, bias=False).to(torch.complex64)
    pruning = training.MagnitudePruning(model, 0.5, 1, 5)
    opt = gpuopt.torch.SGD(model.parameters(), lr=0.1, mask=pruning.mask)
    pruning.prune(0.5)
    model(torch.ones(2, 6, dtype=torch.complex64)).abs().sum().backward()
    opt.step()
    assert model.weight.count_nonzero() == 12


def test_int8_linear_layers_on_the_digits() -> None:
    model = network()
    fit(model, gpuopt.torch.AdamW(model.parameters(), lr=0.003), 10 * EPOCH)
    kept, before = accuracy(model), everything(model)
    small = training.quantize(model)
    assert everything(model) == before
    assert accuracy(small) >= kept - 0.005
    for index in (0, 3):
        layer, weight = small[index], model[index].weight.detach()
        assert layer.codes.dtype == torch.int8 and int(layer.codes.abs().max()) == 127
        torch.testing.assert_close(layer.scale, weight.abs().amax(1, keepdim=True) / 127, rtol=0, atol=0)
        assert bool(((layer.dequantize() - weight).abs() <= 0.5001 * layer.scale).all())
    assert "in_features=64, out_features=128, bias=True" in repr(small)
    again = training.quantize(network())
    again.load_state_dict(small.state_dict())
    x = data()[1]
    torch.testing.assert_close(again.eval()(x), small.eval()(x), rtol=0, atol=0)


def test_int8_of_one_layer_and_what_has_none() -> None:
    layer = torch.nn.Linear(3, 2, bias=False)
    assert training.quantize(layer)(torch.ones(1, 3)).shape == (1, 2)
    with pytest.raises(gpuopt.InputError, match=r"a model without torch.nn.Linear"):
        training.quantize(torch.nn.ReLU())
    with torch.no_grad():
        layer.weight[0, 0] = math.nan
    with pytest.raises(gpuopt.InputError, match="NaN or infinity"):
        training.quantize(layer)


def test_the_average_is_torchs_and_goes_into_the_model_and_back() -> None:
    model = network()
    swa = training.StochasticWeightAverage(model, start=10, frequency=2)
    theirs = torch.optim.swa_utils.AveragedModel(model)
    opt, taken = gpuopt.torch.SGD(model.parameters(), lr=0.5), 0

    def after() -> None:
        nonlocal taken
        swa.update()
        if taken >= 10 and taken % 2 == 0:
            theirs.update_parameters(model)
        taken += 1

    fit(model, opt, 60, after)
    assert swa.count == int(theirs.n_averaged) == 25
    mean = swa.averaged_params()
    for name, p in theirs.module.named_parameters():
        torch.testing.assert_close(mean[name], p, rtol=0, atol=0)
    before = everything(model)
    with pytest.raises(gpuopt.OptionError, match=r"update_bn: expected eval\(\) before"):
        swa.update_bn([])
    with swa.averaged():
        swa.update_bn(data()[0].split(BATCH))
        torch.testing.assert_close(model[0].weight, mean["0.weight"], rtol=0, atol=0)
        assert accuracy(model) > 0.9
    assert everything(model)[0] == before[0]


def test_a_tensor_is_no_array_of_parameters_to_prune() -> None:
    """Tensors alone are trained by the names of gpuopt.torch, which take a model here."""
    with pytest.raises(gpuopt.InputError, match=r"expected an array of NumPy or CuPy, or a torch model"):
        training.MagnitudePruning([torch.ones(3, 3)], 0.5, 1, 2)
    with pytest.raises(gpuopt.DtypeError, match="expected an array of NumPy or CuPy"):
        training.StochasticWeightAverage([torch.ones(3, 3)])


def test_masks_and_averages_of_a_model_go_on_from_what_was_saved() -> None:
    """Through torch.save, as a checkpoint goes."""

    def made() -> tuple[torch.nn.Module, training.MagnitudePruning, training.StochasticWeightAverage]:
        model = network()
        return model, training.MagnitudePruning(model, 0.5, 1, 3), training.StochasticWeightAverage(model)

    model, pruning, swa = made()
    pruning.step()
    pruning.prune(0.25)
    for _ in range(2):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1)
        swa.update()
    file = io.BytesIO()
    torch.save([pruning.state_dict(), swa.state_dict()], file)
    file.seek(0)
    saved = torch.load(file)
    model, later, average = made()
    later.load_state_dict(saved[0])
    average.load_state_dict(saved[1])
    assert later.steps == 1 and average.count == 2
    for (_, mask), (_, loaded) in zip(pruning.mask.items(), later.mask.items(), strict=True):
        torch.testing.assert_close(loaded, mask, rtol=0, atol=0)
    for name, mean in swa.averaged_params().items():
        torch.testing.assert_close(average.averaged_params()[name], mean, rtol=0, atol=0)
    average.update()
    mean = (2 * swa.averaged_params()["0.weight"] + model[0].weight) / 3
    torch.testing.assert_close(average.averaged_params()["0.weight"], mean)
