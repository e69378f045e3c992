"""`gpuopt.save` and `gpuopt.load` of torch optimizers: the files are those of the same optimizer over arrays."""

from __future__ import annotations

import copy
from itertools import cycle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import gpuopt
import gpuopt.torch
from samples import Array, bits
from test_state_dict import FULL

SHAPES = {"layer.weight": (60, 100), "layer.bias": (7,), "scale": (), "last": (3, 4)}
# What every rule is tried with, one after the other.
OPTIONS: list[dict[str, Any]] = [
    {"state_format": "int8"},
    {"param_format": "split8", "state_format": "bfloat16", "dtype": ml_dtypes.bfloat16},
    {"lookahead": (2, 0.5), "l1": 0.01, "max_grad_norm": 2.0},
    {"dtype": np.float64},
]


def arrays(seed: int, dtype: Any = np.float32) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape)).astype(dtype) for name, shape in SHAPES.items()}


def tensor(array: Array) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(array.copy())


def over_arrays(name: str, steps: int, dtype: Any = np.float32, **options: Any) -> tuple[Any, dict[str, Array]]:
    opt = getattr(gpuopt, name)(given := arrays(0, dtype), backend="numpy", **options)
    for step in range(steps):
        opt.step(arrays(step + 1, dtype) | ({"layer.bias": None} if step == 1 else {}))
    return opt, given


def of_torch(name: str, given: dict[str, Array], dtype: Any = None, **options: Any) -> Any:
    named = [(key, torch.nn.Parameter(tensor(array))) for key, array in given.items()]
    return getattr(gpuopt.torch, name)(named, **options)


def step(opt: Any, number: int) -> None:
    for p, grad in zip(opt.param_groups[0]["params"], arrays(number).values(), strict=True):
        p.grad = tensor(grad)
    opt.step()


def parameters(opt: Any) -> list[Array]:
    return [p.detach().numpy() for p in opt.param_groups[0]["params"]]


@pytest.mark.parametrize(("name", "options"), [*zip(FULL, cycle(OPTIONS), strict=False)])
def test_the_same_file_from_both(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Every rule, from arrays to tensors and back: equal to the last byte."""
    opt, given = over_arrays(name, 2, **FULL[name].options | options)
    gpuopt.save(opt, tmp_path / "arrays")
    there = of_torch(name, given, **FULL[name].options | options)
    gpuopt.load(there, tmp_path / "arrays")
    gpuopt.save(there, tmp_path / "tensors")
    assert (tmp_path / "arrays").read_bytes() == (tmp_path / "tensors").read_bytes()
    back, _ = over_arrays(name, 0, **FULL[name].options | options)
    gpuopt.load(back, tmp_path / "tensors")
    assert bits(back.state_dict()) == bits(opt.state_dict())


@pytest.mark.parametrize(
    ("name", "options"),
    [("AdamW", {"state_format": "int8"}), ("SGD", {"lookahead": (3, 0.5)}), ("SGD", {"momentum": 0.9})],
)
def test_training_goes_on_in_the_other_framework(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Also where torch's class keeps no step count, which the file does."""
    opt = of_torch(name, arrays(0), lr=0.1, **options)
    for number in (1, 2):
        step(opt, number)
    gpuopt.save(opt, tmp_path / "a")
    given = {key: p.copy() for key, p in zip(SHAPES, parameters(opt), strict=True)}
    others = getattr(gpuopt, name)(given, lr=0.7, backend="numpy", **options)
    again = of_torch(name, given, lr=0.7, **options)
    for each in (others, again):
        gpuopt.load(each, tmp_path / "a")
    for number in (3, 4):
        others.step(arrays(number))
        step(opt, number)
        step(again, number)
    assert bits(parameters(again)) == bits(parameters(opt)) == bits(list(given.values()))


def test_another_reader(tmp_path: Path) -> None:
    """The package `safetensors` reads the file, and what others wrote by it is refused in words."""
    opt, _ = over_arrays("AdamW", 1, param_format="split8", state_format="int4", dtype=ml_dtypes.bfloat16)
    gpuopt.save(opt, tmp_path / "a")
    found, state = safetensors.torch.load_file(tmp_path / "a"), opt.state_dict()["state"]
    assert len(found) == sum(len(entry) - 1 for entry in state.values())
    for name, value in found.items():
        _, index, key = name.split(".")
        assert np.array_equal(value.double().numpy(), state[int(index)][key].astype(np.float64)), name
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata()["rule"] == "adamw"
    safetensors.torch.save_file(found, tmp_path / "b")
    with pytest.raises(gpuopt.FileError, match=r"of no file that gpuopt.save wrote"):
        gpuopt.load(opt, tmp_path / "b")


def test_what_is_torchs_own_in_a_group(tmp_path: Path) -> None:
    """A scheduler's numbers are kept; how steps are made, and that a rate is a tensor, is as it is here."""
    opt = of_torch("AdamW", arrays(0), lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(opt, lambda epoch: 0.5)
    gpuopt.save(opt, tmp_path / "a")
    again = of_torch("AdamW", arrays(0), lr=torch.tensor(0.3), foreach=False, l1=0.2)
    gpuopt.load(again, tmp_path / "a")
    group = again.param_groups[0]
    assert group["initial_lr"] == 0.1 and group["foreach"] is False and group["l1"] == 0
    assert isinstance(group["lr"], torch.Tensor) and group["lr"] == torch.tensor(0.05)
    assert group["param_names"] == list(SHAPES)
    rate, bound = (lambda step: 0.1), (lambda step: 3.0)  # functions of the step stay the caller's
    scheduled = of_torch("AdamW", arrays(0), lr=rate, clip_value=bound)
    gpuopt.save(scheduled, tmp_path / "b")
    gpuopt.load(scheduled, tmp_path / "b")
    assert (scheduled.param_groups[0]["lr"], scheduled.param_groups[0]["clip_value"]) == (rate, bound)
    others, _ = over_arrays("AdamW", 0)
    gpuopt.load(others, tmp_path / "a")
    assert others.param_groups[0]["lr"] == 0.05


def test_memory_of_the_file_is_left_and_that_of_tensors_is_walked(tmp_path: Path) -> None:
    """Tensors that do not lie in C's order, names under wrappers, and a file that is gone."""
    p = torch.nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    opt = gpuopt.torch.Adam([("module.stem.weight", p)], lr=0.1)
    opt.state[p] |= {"step": torch.tensor(3.0), "exp_avg": torch.randn_like(p), "exp_avg_sq": torch.rand_like(p)}
    gpuopt.save(opt, path := tmp_path / "a")
    q = torch.nn.Parameter(p.detach().contiguous())
    again = gpuopt.torch.Adam([("stem._orig_mod.weight", q)], lr=0.2)
    gpuopt.load(again, path)
    path.write_bytes(b"")
    assert all(torch.equal(again.state[q][key], opt.state[p][key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_nothing_is_changed_where_a_file_does_not_fit(tmp_path: Path) -> None:
    opt, _ = over_arrays("Adam", 1)
    gpuopt.save(opt, tmp_path / "a")
    state = opt.state_dict()["state"]
    found = gpuopt.tensor_file.read(tmp_path / "a")
    tensors = {name: gpuopt.tensor_file.Tensor("float32", a.shape, lambda a=a: a) for name, a in found.arrays.items()}
    assert len(state) == 4 and tensors.pop("state.3.exp_avg_sq")
    gpuopt.tensor_file.write(tmp_path / "a", tensors, found.metadata)
    there = of_torch("Adam", arrays(0), lr=0.3)
    there.init_state()
    before, held = copy.deepcopy(there.state_dict()), there.state_dict()["state"][0]["exp_avg"]
    with pytest.raises(gpuopt.InputError, match=r"state of last: 'exp_avg_sq' is missing"):
        gpuopt.load(there, tmp_path / "a")
    assert str(there.state_dict()) == str(before) and there.state_dict()["state"][0]["exp_avg"] is held
    there.state["mine"] = {}
    with pytest.raises(gpuopt.InputError, match=r"state\['mine'\]: no parameter of this optimizer"):
        gpuopt.save(there, tmp_path / "b")
