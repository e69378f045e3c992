"""Parameters of every kind: frozen ones are left alone, those on no device, with gaps in memory or of complex numbers are taken and
stepped as torch's own optimizers take and step them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gpuopt.torch
from gpuopt.native.torch import watch
from torch_samples import create, default_dtype, furthest, pair, parameters, title, train

NAMES = gpuopt.torch.optimizers()
BOTH = [name for name in NAMES if getattr(gpuopt.torch, title(name)).twin]
ULPS = 64 * torch.finfo(torch.float32).eps


# ---------------------------------------------------------------------------------------------------- frozen parameters


def freed(p: torch.Tensor) -> torch.Tensor:
    made = torch.zeros(4)
    made.untyped_storage().resize_(0)
    return made


FROZEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "uint8": lambda p: torch.zeros(4, dtype=torch.uint8),
    "int64": lambda p: torch.zeros(4, dtype=torch.int64),
    "bool": lambda p: torch.zeros(4, dtype=torch.bool),
    "float8": lambda p: torch.zeros(4).to(torch.float8_e4m3fn),
    "meta": lambda p: torch.zeros(4, device="meta"),
    "sparse": lambda p: torch.eye(3).to_sparse(),
    "csr": lambda p: torch.eye(3).to_sparse_csr(),
    "strided": lambda p: torch.zeros(8)[::2],
    "expanded": lambda p: torch.zeros(1).expand(4),
    "alias": lambda p: p.detach(),
    "freed": freed,
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("count", [1, 2 * watch.FROM], ids=["few", "many"])
@pytest.mark.parametrize("kind", FROZEN)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_frozen_parameters_are_left_alone(name: str, kind: str, count: int) -> None:
    results = []
    for module in (gpuopt.torch, torch.optim):
        params = parameters([(3,)] * count)
        frozen = torch.nn.Parameter(FROZEN[kind](params[0]), requires_grad=False)
        opt = getattr(module, title(name))([frozen, *params], lr=0.1)
        for number in range(6):
            train(opt, params, [number])
        assert frozen not in opt.state and frozen._version in (0, params[0]._version)
        assert len(opt.state_dict()["param_groups"][0]["params"]) == count + 1
        results.append(params)
    assert furthest(*results) <= ULPS


@pytest.mark.parametrize("name", NAMES)
def test_meta_parameters_are_taken_at_construction(name: str) -> None:
    opt = create(name, [torch.nn.Parameter(torch.zeros(4, device="meta"))])
    opt.step()
    assert opt.state_dict()["param_groups"][0]["params"] == [0]


LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "every second": lambda: torch.zeros(8)[::2],
    "columns": lambda: torch.zeros(4, 6)[:, :3],
    "turned columns": lambda: torch.zeros(4, 6)[:, 1:4].t(),
    "padded": lambda: torch.zeros(2, 3, 8)[..., 2:7].permute(2, 0, 1),
    "imaginary parts": lambda: torch.zeros(4, dtype=torch.complex64).imag,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", BOTH)
def test_parameters_with_gaps_are_stepped_as_torch_steps_them(name: str, layout: str) -> None:
    results = []
    for module in (gpuopt.torch, torch.optim):
        params = [torch.nn.Parameter(LAYOUTS[layout]()), *parameters([(3,)])]
        opt = getattr(module, title(name))(params, lr=0.1)
        for number in range(5):
            before = params[0]._version
            train(opt, params, [number])
            assert params[0]._version > before
        results.append(params + [v for s in opt.state.values() for v in s.values() if isinstance(v, torch.Tensor)])
    assert furthest(*results) <= ULPS


# ---------------------------------------------------------------------------------------------------- complex parameters


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize(
    "name", [name for name in BOTH if name != "adafactor"]
)  # which takes no complex numbers in torch
def test_complex_states_are_torchs(name: str, dtype: Any) -> None:
    options = {"initial_accumulator_value": 0.5} if name == "adagrad" else {"momentum": 0.9} if name == "sgd" else {}
    made = pair(name, dtype=dtype, **options)
    with default_dtype(dtype):
        for opt, params in made:
            train(opt, params, range(3))
    (ours, found), (theirs, expected) = made
    assert furthest(found, expected) <= ULPS
    for p, q in zip(found, expected, strict=True):
        assert list(ours.state[p]) == list(theirs.state[q])
        for key, value in theirs.state[q].items():
            assert ours.state[p][key].dtype is value.dtype and furthest([ours.state[p][key]], [value]) <= ULPS


def test_the_first_accumulator_of_complex_numbers_is_torchs() -> None:
    for dtype in (torch.complex64, torch.float32):
        (ours, (p, _)), (theirs, (q, _)) = pair("adagrad", dtype=dtype, initial_accumulator_value=0.5)
        assert torch.equal(ours.state[p]["sum"], theirs.state[q]["sum"])
