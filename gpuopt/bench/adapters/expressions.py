"""The update written as array expressions, one operation after another: what a user of NumPy or CuPy writes by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.bench import data
from gpuopt.bench.adapters.own import array, space_of
from gpuopt.bench.providers import Provider, Session, distribution_version, importable
from gpuopt.bench.suites import Case, hyper


def adamw(xp: Any, p: Any, g: Any, states: list[Any], h: dict[str, Any], t: int) -> None:
    """AdamW in place."""
    m, v = states
    b1, b2 = h["betas"]
    p *= 1 - h["lr"] * h["weight_decay"]
    m *= b1
    m += (1 - b1) * g
    v *= b2
    v += (1 - b2) * g * g
    p -= h["lr"] / (1 - b1**t) * m / (xp.sqrt(v) / (1 - b2**t) ** 0.5 + h["eps"])


def sgd(xp: Any, p: Any, g: Any, states: list[Any], h: dict[str, Any], t: int) -> None:
    """SGD with momentum in place; the first step's buffer is the gradient, as in torch."""
    (m,) = states
    m *= h["momentum"]
    m += g + h["weight_decay"] * p
    p -= h["lr"] * m


FORMULAS: dict[str, tuple[Callable[..., None], int]] = {"adamw": (adamw, 2), "sgd": (sgd, 1)}


class ExpressionSession(Session):
    """One formula on every tensor in turn."""

    def __init__(self, case: Case, device: str) -> None:
        self.xp = space_of(device)
        self.formula, count = FORMULAS[case.optimizer]
        self.hyper, self.t = hyper(case.optimizer), 0
        self.params = [array(self.xp, data.PARAMETERS, k, s, case.dtype) for k, s in enumerate(case.shapes)]
        self.grads = [array(self.xp, data.GRADIENTS, k, s, case.dtype) for k, s in enumerate(case.shapes)]
        self.states = [[self.xp.zeros_like(p) for _ in range(count)] for p in self.params]

    def step(self) -> None:
        self.t += 1
        for p, g, states in zip(self.params, self.grads, self.states, strict=True):
            self.formula(self.xp, p, g, states, self.hyper, self.t)

    def scale(self, factor: float) -> None:
        for grad in self.grads:
            grad *= grad.dtype.type(factor)

    def read(self, tensor: int, start: int, stop: int) -> NDArray[np.float64]:
        part = self.params[tensor].reshape(-1)[start:stop]
        return np.asarray(part if self.xp is np else part.get()).astype(np.float64)

    def wait(self) -> None:
        if self.xp is not np:
            self.xp.cuda.Device().synchronize()


class Expressions(Provider):
    """NumPy or CuPy expressions."""

    rank = 4

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.name = "NumPy expressions" if device == "cpu" else "CuPy expressions"

    def missing(self) -> str | None:
        return None if self.device == "cpu" else importable("cupy")

    def refuses(self, case: Case) -> str | None:
        if case.optimizer not in FORMULAS:
            return f"{case.optimizer} is not written out"
        plain = case.dtype == "float32" and case.state_format == "float32" and case.param_format == "native"
        return None if plain else "expressions are measured with float32 throughout"

    def start(self, case: Case) -> Session:
        return ExpressionSession(case, self.device)

    def bytes_needed(self, case: Case) -> float:
        """Temporaries of parameter size."""
        return case.bytes_held * 1.6

    @property
    def version(self) -> str:
        names = ("numpy",) if self.device == "cpu" else ("cupy-cuda13x", "cupy-cuda12x", "cupy")
        return distribution_version(*names)


def providers(device: str) -> Iterator[Provider]:
    """The one."""
    yield Expressions(device)
