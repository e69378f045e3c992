"""`gpuopt memory` and `gpuopt.memory`: what they count is what optimizers allocate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from gpuopt import cli, rules
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.sizes import COMBINATIONS, PEERS
from repository import ROOT

SHAPES = [(8, 16), (3, 5, 7), (11,), (64, 80), (9, 8, 70)]


@pytest.mark.parametrize("name", rules.NAMES)
def test_bytes_are_those_that_an_optimizer_has(name: str) -> None:
    """Rows, columns and numbers of tensors included, in every combination of formats."""
    found = {row.name: row for row in gpuopt.memory(SHAPES, name).rows}
    assert set(found) == set(COMBINATIONS)
    for label, row in found.items():
        dtype, options = COMBINATIONS[label]
        params = [np.ones(shape).astype(numpy_dtype(dtype)) for shape in SHAPES]
        opt: Any = gpuopt.create(name, params, lr=0.1, backend="numpy", **options)
        opt.step([np.ones_like(p) for p in params])
        count = sum(p.size for p in params)
        assert row.weights * count == sum(p.nbytes for p in params) == row.gradient * count
        shared = {s.name for s in rules.get(name).states if s.shape == "global"}
        arrays = {id(a): a.nbytes for p in opt._engine.parameters for n, a in p.states.items() if n not in shared}
        common = {n: a.nbytes for p in opt._engine.parameters for n, a in p.states.items() if n in shared}
        assert opt.nbytes == sum(arrays.values()) + sum(common.values())
        assert (row.states + row.beside) * count == pytest.approx(opt.nbytes)
        assert row.host * count == pytest.approx(opt.nbytes_on_host)
        assert row.on_device == row.total - row.host and bool(row.host) <= ("state_device" in options)
        assert row.total == row.weights + row.beside + row.states + row.gradient


def test_a_model_of_torch_is_counted_without_its_memory() -> None:
    model = torch.nn.Linear(1000, 1000, device="meta")
    found = gpuopt.memory(model, "adamw", dtype="bfloat16", param_format="split8")
    assert found.parameters == 1_001_000
    (row,) = found.rows
    assert (row.name, row.total) == ("bfloat16 param_format=split8", 2 + 1 + 8 + 2)
    p = torch.nn.Parameter(torch.ones(10, 10, dtype=torch.bfloat16))
    opt = gpuopt.torch.AdamW([p], param_format="split8", state_format="bfloat16")
    assert opt.nbytes == 0
    p.grad = torch.ones_like(p)
    opt.step()
    assert opt.nbytes == (1 + 4) * 100


def test_the_bytes_that_the_readme_tells_are_those_of_adamw() -> None:
    rows = re.findall(
        r"^\| `(\w+)`[^|]* \|[^|]*\|[^|]*\| ([\d.]+) \| ([\d.]+), ([\d.]+) \|$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    assert [row[0] for row in rows] == ["float32", "bfloat16", "float8", "int8", "auto4", "int4"]
    for kept, *told in rows:
        (row,) = gpuopt.memory(8e9, dtype="bfloat16", param_format="split8", state_format=kept).rows
        found = row.states, row.total - row.gradient, row.total
        assert all(abs(a - float(b)) < 0.006 for a, b in zip(found, told, strict=True)), (kept, found)


def test_rows_and_columns_count_where_shapes_are_known() -> None:
    (row,) = gpuopt.memory([(50, 30)], "adafactor", dtype="float32").rows
    assert row.states * 1500 == 4 * (50 + 30)
    (row,) = gpuopt.memory(1500, "adafactor", dtype="float32").rows
    assert row.states == 0


@pytest.mark.parametrize("wrong", ["many", -1, 1.5, None, [], "8 e9", float("inf"), [(2, -1)]])
def test_what_is_no_number_of_parameters(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"parameters: found .*expected"):
        gpuopt.memory(wrong)


def test_the_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["memory", "8e9", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "AdamW, 8,000,000,000 parameters" in said and all(peer.name in said for peer in PEERS)
    assert re.search(r"float32 +4 +0 +8 +4 +16 +0 +119\.2 +89\.4", said)
    assert re.search(r"float32, states on the host +4 +0 +8 +4 +16 +8 +59\.6 +29\.8", said)
    assert re.search(r"bf16 split8, bf16 states +2 +1 +4 +2 +9 ", said)
    assert (tmp_path / "gpuopt-memory.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["memory", "1e6", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(rules.NAMES)
