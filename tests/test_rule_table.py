"""The table of optimizers that `gpuopt show --table` prints: what it says is true of every rule."""

from __future__ import annotations

import re
from functools import cache

import pytest

import gpuopt
from gpuopt import rule_table, rules
from gpuopt.errors import GpuoptError
from gpuopt.rules.language import State


@cache
def lines() -> list[str]:
    """The table, which takes a quarter of a second."""
    return list(rule_table.lines())


def cells(name: str) -> list[str]:
    """The row of an optimizer, without quotes around single names."""
    (line,) = [line for line in lines() if line.startswith(f"| `{name}` |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("name", gpuopt.optimizers())
def test_names_states_and_years_are_those_of_the_class(name: str) -> None:
    _, title, paper, _, states, _, _ = cells(name)
    made = getattr(gpuopt, title.strip("`"))
    assert made.made_by[1] is rules.get(name) and paper in " ".join(made.__doc__.split())
    assert re.search(r"[12]\d{3}$", paper) or name == "dgd", "DGD has no paper"
    assert set(re.findall(r"`([^`]+)`", re.sub(r" if `[^`]+`", "", states))) == {s.key for s in rules.get(name).states}


@pytest.mark.once
def test_torch_has_those_that_it_is_said_to_have() -> None:
    import torch

    for name in rules.NAMES:
        title = rules.get(name).title
        there = f"`torch.optim.{title}`" if hasattr(torch.optim, title) else ""
        assert cells(name)[-1] == there, f"the docstring of {name}.py: 'as in torch.optim.{title}'"


@gpuopt.rule(state={"m": State("m", "average"), "k": State("k", "mask", readonly=True)})
def own(p, g, m, k, *, lr):
    """A rule without a source."""
    m = m + k * g
    p = p - lr * m
    return p, m


def test_a_rule_without_a_source_is_told_how_to_begin() -> None:
    with pytest.raises(GpuoptError, match=r"own begins 'A rule without a source.': expected 'NAME, AUTHORS YEAR'"):
        rule_table.paper(own)
    assert rule_table.traffic(own) == "24" and rule_table.states(own) == "`average`, `mask`"
