"""Which parameters decay: `weight_decay_mask` of arrays, `gpuopt.torch.decay_groups` of a model."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gpuopt
import gpuopt.torch
from samples import HOST_BACKENDS, bits

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
OPTIONS = {"lr": 0.5, "weight_decay": 0.5}


def tree() -> dict[str, Any]:
    return {
        "layers": [{"w": np.ones((2, 3)), "b": np.ones(3)}, {"w": np.ones((3, 1)), "b": np.ones(1)}],
        "scale": np.ones(()),
    }


def decayed(params: dict[str, Any]) -> list[bool]:
    """Which leaves a step with zero gradients has made smaller: w, b, w, b, scale."""
    leaves = [layer[name] for layer in params["layers"] for name in ("w", "b")] + [params["scale"]]
    assert all((leaf == (0.75 if (leaf < 1).any() else 1.0)).all() for leaf in leaves)
    return [bool((leaf < 1).all()) for leaf in leaves]


MASKS: dict[str, Any] = {
    "tree": {"layers": [{"w": True, "b": False}, {"w": np.True_, "b": False}], "scale": False},
    "array": lambda path, array: array.ndim > 1,
    "path": lambda path, array: path[0] == "layers" and path[2] == "w",
}


@BACKENDS
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_leaves_are_sorted_into_groups(mask: Any, backend: str) -> None:
    """Gradients still mirror the parameters as they were given."""
    params = tree()
    opt = gpuopt.AdamW(params, weight_decay_mask=mask, backend=backend, **OPTIONS)
    zeros = {"scale": np.zeros(()), "layers": [{k: 0 * v for k, v in layer.items()} for layer in params["layers"]]}
    opt.step(zeros)
    assert decayed(params) == [True, False, True, False, False]
    assert [g["weight_decay"] for g in opt.param_groups] == [0.5, 0.0]
    assert [len(g["params"]) for g in opt.param_groups] == [2, 3] and opt.launches == 1
    grads = {"scale": None, "layers": [{"w": None, "b": np.full(3, 2.0)}, {"w": None, "b": None}]}
    opt.step(grads)
    assert (params["layers"][0]["b"] < 1).all() and params["scale"] == 1


def test_states_are_saved_and_copied_with_their_tensors() -> None:
    def make() -> tuple[dict[str, Any], Any]:
        params = tree()
        return params, gpuopt.SGD(params, momentum=0.9, weight_decay_mask=MASKS["array"], backend="numpy", **OPTIONS)

    def grads(step: int) -> dict[str, Any]:
        rng = np.random.default_rng(step)
        layers = [{k: rng.standard_normal(v.shape) for k, v in layer.items()} for layer in tree()["layers"]]
        return {"scale": rng.standard_normal(), "layers": layers} | {"scale": np.asarray(rng.standard_normal())}

    params, opt = make()
    opt.step(grads(0))
    saved = opt.state_dict()
    assert [g["params"] for g in saved["param_groups"]] == [[0, 2], [1, 3, 4]]
    other, again = make()
    other["layers"], other["scale"] = deepcopy(params["layers"]), params["scale"].copy()
    again = gpuopt.SGD(other, momentum=0.9, weight_decay_mask=MASKS["array"], backend="numpy", **OPTIONS)
    again.load_state_dict(json.loads(json.dumps(saved, default=lambda a: a.tolist())))
    copy = deepcopy(opt)
    for each in (opt, again, copy):
        each.step(grads(1))
    assert bits(params) == bits(other)
    assert bits([g["params"] for g in copy.param_groups]) == bits([g["params"] for g in opt.param_groups])


@BACKENDS
def test_groups_have_a_mask_each_and_may_come_later(backend: str) -> None:
    a, b, c, d = (np.ones(2) for _ in range(4))
    groups = [{"params": [a, b]}, {"params": {"c": c}, "lr": 0.25}]
    opt = gpuopt.GD(groups, weight_decay_mask=[[False, True], {"c": False}], backend=backend, **OPTIONS)
    opt.add_param_group({"params": [d]}, weight_decay_mask=lambda path, array: path == (0,))
    opt.step([[0 * a, 0 * b], {"c": 0 * c}, [0 * d]])
    assert [x[0] for x in (a, b, c, d)] == [1, 0.75, 1, 0.75]
    assert [g["weight_decay"] for g in opt.param_groups] == [0.5, 0.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        ([True], gpuopt.InputError, "weight_decay_mask: expected 2 entries as in params"),
        ([True, 1], gpuopt.KindError, "weight_decay_mask[1] = 1: expected True or False"),
        (lambda path, array: None, gpuopt.KindError, "weight_decay_mask[0] = None: expected True or False"),
        ({"a": True}, gpuopt.InputError, "weight_decay_mask"),
    ],
)
def test_errors_of_masks(mask: Any, error: Any, words: str) -> None:
    with pytest.raises(error) as caught:
        gpuopt.GD([np.ones(2), np.ones(3)], weight_decay_mask=mask, **OPTIONS)
    assert words in str(caught.value)


# ---------------------------------------------------------------------------------------------------- torch


class LlamaRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))  # by its class, not by its shape


class Model(nn.Module):
    """One of each kind; the output is the table of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.position = nn.Parameter(torch.zeros(1, 3, 4))
        self.attention = nn.MultiheadAttention(4, 2)
        self.lstm = nn.LSTM(4, 4)
        self.norms = nn.ModuleList([nn.LayerNorm(4), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), LlamaRMSNorm()])
        self.conv = nn.Conv2d(4, 4, 1)
        self.bias_table = nn.Parameter(torch.zeros(3, 3))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight


DECAYING = {
    "table.weight", "position", "attention.in_proj_weight", "attention.out_proj.weight", "lstm.weight_ih_l0",
    "lstm.weight_hh_l0", "conv.weight",
}  # fmt: skip


def names(groups: list[dict[str, Any]]) -> list[set[str]]:
    return [{name for name, _ in group["params"]} for group in groups]


def test_biases_norms_and_vectors_do_not_decay() -> None:
    model = Model()
    groups = gpuopt.torch.decay_groups(model, 0.2, named=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names(groups) == [DECAYING, trained - DECAYING]
    assert [g["weight_decay"] for g in groups] == [0.2, 0.0]
    assert sum(len(g["params"]) for g in groups) == len(trained), "a shared parameter comes once"


def test_embeddings_and_names_that_do_not_decay() -> None:
    """The output layer is the table of embeddings, so it does not decay either."""
    model = Model()
    found = names(
        gpuopt.torch.decay_groups(model, embeddings=False, no_decay=["posi*", "lstm.weight_ih_l0"], named=True)
    )
    assert found[0] == DECAYING - {"table.weight", "position", "lstm.weight_ih_l0"}
    model.again = model.conv
    assert names(gpuopt.torch.decay_groups(model, no_decay="again.*", named=True))[0] == DECAYING - {"conv.weight"}
    model.no_weight_decay = lambda: {"conv.weight"}  # type: ignore[assignment]
    assert "conv.weight" in names(gpuopt.torch.decay_groups(model, named=True))[1]


def test_as_the_trainer_of_transformers_chooses() -> None:
    """Its rule for a model of the usual layers, written out here: names with bias or norm, and layers of norms, do not decay."""
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    found = names(gpuopt.torch.decay_groups(layer, named=True))
    assert found[1] == {n for n, _ in layer.named_parameters() if "bias" in n or "norm" in n}


@pytest.mark.parametrize("cls", [gpuopt.torch.AdamW, torch.optim.AdamW, gpuopt.torch.Lion])
@pytest.mark.parametrize("named", [False, True])
def test_any_optimizer_takes_them(cls: Any, named: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    opt = cls(gpuopt.torch.decay_groups(model, 0.5, named=named, lr=0.25), lr=1.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name] * (0.875 if name == "0.weight" else 1))


def test_errors_of_groups() -> None:
    model = nn.Linear(2, 2)
    for wrong, error, words in (
        (lambda: gpuopt.torch.decay_groups(model.parameters()), gpuopt.KindError, "expected a torch.nn.Module"),
        (
            lambda: gpuopt.torch.decay_groups(model, -1.0),
            gpuopt.InputError,
            "weight_decay = -1.0: expected a number in",
        ),
        (lambda: gpuopt.torch.decay_groups(model, no_decay="wieght"), gpuopt.InputError, "no_decay = 'wieght'"),
        (lambda: gpuopt.torch.decay_groups(nn.LazyLinear(2)), gpuopt.InputError, "has no shape yet"),
        (lambda: gpuopt.torch.decay_groups(model.requires_grad_(False)), gpuopt.InputError, "requires a gradient"),
    ):
        with pytest.raises(error) as caught:
            wrong()
        assert words in str(caught.value)
