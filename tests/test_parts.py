"""Functions of an author's own that a rule calls: what they do, on every backend, as if written out, and what cannot be called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from gpuopt import maximum, row_sum, rule, sqrt, tensor_sum, where
from gpuopt.source import program
from own_rules import load
from samples import HOST_BACKENDS, bits, gradients, parameters
from shim.arena import Case, assert_same
from shim.backend import Backend, installed

pytestmark = pytest.mark.once


def squeezed(x, most):  # type: ignore[no-untyped-def]
    """Its variables have the names of the rule's."""
    p = x / (1 + abs(x))
    m = p * most
    return m


def lifted(m, p):  # type: ignore[no-untyped-def]
    """A part of a part."""
    return m + p


def halves(x, p, *, up: bool):  # type: ignore[no-untyped-def]
    """Two values, a flag, and parts of its own."""
    m = squeezed(x, 2.0)
    if up:
        m = lifted(m, p)
    g = squeezed(m, 0.5)
    return m * 0.5, g - x


def sized(x):  # type: ignore[no-untyped-def]
    """A sum of the tensor, and one a row."""
    size = sqrt(tensor_sum(x * x))
    return x / maximum(size, 1e-3), row_sum(x)


def power(step, beta):  # type: ignore[no-untyped-def]
    kept = beta**step if step > 1 else beta
    return 1 - kept, kept


@rule(state=("m",))
def by_parts(p, g, m, *, lr, beta=0.9, up: bool = False, new, kept):  # type: ignore[no-untyped-def]
    """Parts in turn, one of them twice, and results that take the place of their arguments."""
    p, x = halves(g, p, up=up)
    g = squeezed(x, lr * 3)
    m = kept * m + new * g
    m, along = sized(m)
    p = p - lr * (m + 0.25 * along)
    return p, m


@by_parts.prepare
def _(step, *, beta):  # type: ignore[no-untyped-def]
    new, kept = power(step, beta)
    return dict(new=new, kept=kept)


@rule(state=("m",))
def written_out(p, g, m, *, lr, beta=0.9, up: bool = False, new, kept):  # type: ignore[no-untyped-def]
    """The same without."""
    a = g / (1 + abs(g))
    b = a * 2.0
    if up:
        b = b + p
    c = b / (1 + abs(b))
    x = c * 0.5 - g
    p = b * 0.5
    d = x / (1 + abs(x))
    m = kept * m + new * (d * (lr * 3))
    along = row_sum(m)
    m = m / maximum(sqrt(tensor_sum(m * m)), 1e-3)
    p = p - lr * (m + 0.25 * along)
    return p, m


@written_out.prepare
def _(step, *, beta):  # type: ignore[no-untyped-def]
    kept = beta**step if step > 1 else beta
    return dict(new=1 - kept, kept=kept)


HYPER: dict[str, Any] = {"lr": 0.03, "up": True}
SIZES = [0, 1, 12, 33, 4097, 40_000]


@pytest.fixture(scope="module")
def shim() -> Iterator[Backend]:
    with installed() as backend:
        yield backend


@pytest.mark.parametrize(("dtype", "up"), [("float64", False), ("float32", True), ("bfloat16", False)])
def test_a_part_is_as_written_out_on_every_backend(shim: Backend, dtype: str, up: bool) -> None:
    """With steps that the device decides on, so that it computes what `prepare` calls."""
    options = {"skip_nonfinite": True}
    made = [Case(r, HYPER | {"up": up}, dtype, SIZES, odd=0, options=options) for r in (by_parts, written_out)]
    expected, _ = made[1].run("numpy")
    for case in made:
        for backend in ("numpy", "numba", "shim-device"):
            assert_same(expected, case.run(backend)[0], backend)


def test_torch_takes_derivatives_through_parts() -> None:
    found = []
    for each in (by_parts, written_out):
        p, g = (torch.from_numpy(a) for a in (*parameters(((3, 4),)), *gradients(0, ((3, 4),))))
        p, g = p.requires_grad_(), g.requires_grad_()
        moved = p.clone()
        moved.grad = g
        gpuopt.torch.make_optimizer(each)([moved], differentiable=True, **HYPER).step()
        found.append(torch.autograd.grad(moved.sin().sum(), (p, g)))
    assert all(bool((a == b).all()) for a, b in zip(*found, strict=True))


def test_what_a_part_means_is_looked_at_before_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part, and what a part calls, may be bound anew, or be given other code."""
    moved = []
    for name in ("lifted", "halves", None, "code"):
        p = np.ones((2, 2))
        opt = gpuopt.optimizer(by_parts, p, backend="numba", **HYPER)
        opt.step(np.ones((2, 2)))
        if name:
            with monkeypatch.context() as patch:
                if name == "code":
                    patch.setattr(lifted, "__code__", thrice.__code__)
                else:
                    patch.setitem(globals(), name, {"lifted": twice, "halves": plainly}[name])
                opt.step(np.ones((2, 2)))
        else:
            opt.step(np.ones((2, 2)))
        moved.append(bits(p))
    assert len(set(map(str, moved))) == 4


def twice(m, p):  # type: ignore[no-untyped-def]
    return m + 2 * p


def thrice(m, p):  # type: ignore[no-untyped-def]
    return m + 3 * p


def plainly(x, p, *, up: bool):  # type: ignore[no-untyped-def]
    return p, x


PARTS = """
from gpuopt import rule, sqrt, tensor_sum

def one(x, y):
    return x * y

def two(x):
    return x, x

def scaled(x, *, by=2.0):
    return x * by

def flagged(x, *, flag: bool):
    return x

def endless(x):
    y = endless(x)
    return y

def round_about(x):
    y = back(x)
    return y

def back(x):
    y = round_about(x)
    return y

def broken(x):
    y = x ** 2
    return y

def unknown(x):
    return x * lr

@rule
def mine(p, g, *, lr, flag: bool = False):
    {line}
    return p
"""
MISTAKES = {
    "p = one(g)": "`one` takes 2 argument(s), not 1",
    "p = two(g)": "`two` returns 2 value(s), not 1",
    "p, q = one(p, g)": "`one` returns 1 value(s), not 2",
    "p = scaled(g, by=3.0)": "`scaled` takes its arguments by position, and flags by their own names",
    "p = flagged(g)": "`flagged` takes its arguments by position, and flags by their own names",
    "p = flagged(g, flag=True)": "`flagged` takes its arguments by position, and flags by their own names",
    "p = p - lr * one(p, g)": "`one(...)`, a function of your own, stands alone: `x = one(...)`",
    "p = endless(g)": "`endless` calls itself",
    "p = round_about(g)": "`round_about` calls itself",
    "p = one(*g)": "`one` takes its arguments by position",
    "flag = one(p, g)": "flag `flag` is a compile-time constant",
    "p, q = p, g": "`p, q = p, g` is not part of the rule language",
}
INNERMOST = {"p = endless(g)": "y = endless(x)", "p = round_about(g)": "y = round_about(x)"}
INSIDE = {"p = broken(g)": "powers belong in `prepare`", "p = unknown(g)": "`lr` is neither an argument of `unknown`"}


@pytest.mark.parametrize("line", MISTAKES)
def test_what_cannot_be_called_is_refused_at_the_call(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(gpuopt.RuleSyntaxError) as caught:
        load(tmp_path, PARTS.format(line=line), monkeypatch)
    assert MISTAKES[line] in str(caught.value)
    assert caught.value.text is not None and caught.value.text.strip() == INNERMOST.get(line, line)


@pytest.mark.parametrize("line", INSIDE)
def test_a_mistake_in_a_part_is_shown_there(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(gpuopt.RuleSyntaxError) as caught:
        load(tmp_path, PARTS.format(line=line), monkeypatch)
    assert INSIDE[line] in str(caught.value)
    assert caught.value.text is not None and caught.value.text.strip() in ("y = x ** 2", "return x * lr")


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_variables_of_parts_are_their_own(backend: str) -> None:
    """Those of the rule keep their values, whatever a part calls its own; both calls of one part have variables of their own."""

    @rule
    def kept(p, g, *, lr):  # type: ignore[no-untyped-def]
        m = g * 2
        x = squeezed(g, 1.0)
        y = squeezed(m, 1.0)
        p = p - lr * (m + where(x < y, x, 0))
        return p

    p, g = np.ones(5), np.linspace(0.1, 1, 5)
    gpuopt.optimizer(kept, p, lr=0.5, backend=backend).step(g)
    assert bits(p) == bits(1 - 0.5 * (g * 2 + g / (1 + abs(g))))
    assert program(kept).traffic() == 12
