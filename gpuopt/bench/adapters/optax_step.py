"""optax: update and apply in one jitted function with donated buffers, as its documentation recommends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.bench import data
from gpuopt.bench.providers import Provider, Session, distribution_version, importable
from gpuopt.bench.suites import Case, hyper

LIMIT = 400  # arrays beyond which XLA compiles for minutes


def _adamw(optax: Any, h: dict[str, Any]) -> Any:
    b1, b2 = h["betas"]
    return optax.adamw(h["lr"], b1=b1, b2=b2, eps=h["eps"], weight_decay=h["weight_decay"])


def _lion(optax: Any, h: dict[str, Any]) -> Any:
    b1, b2 = h["betas"]
    return optax.lion(h["lr"], b1=b1, b2=b2, weight_decay=h["weight_decay"])


def _adam(optax: Any, h: dict[str, Any]) -> Any:
    b1, b2 = h["betas"]
    decay = optax.add_decayed_weights(h["weight_decay"])
    return optax.chain(decay, optax.adam(h["lr"], b1=b1, b2=b2, eps=h["eps"]))


def _sgd(optax: Any, h: dict[str, Any]) -> Any:
    decay = optax.add_decayed_weights(h["weight_decay"])
    return optax.chain(decay, optax.sgd(h["lr"], momentum=h["momentum"] or None, nesterov=bool(h["nesterov"])))


TRANSFORMS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "adamw": _adamw,
    "adam": _adam,
    "lion": _lion,
    "sgd": _sgd,
}


@cache
def jitted(optimizer: str) -> tuple[Any, Any]:
    """`init(params) -> state` and `update(params, state, grads) -> params, state`; each compiles once for equal shapes."""
    jax, optax = import_module("jax"), import_module("optax")
    transform = TRANSFORMS[optimizer](optax, hyper(optimizer))

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(transform.init), jax.jit(update, donate_argnums=(0, 1))


class OptaxSession(Session):
    """Parameters and state are donated to each step and replaced by its results."""

    def __init__(self, case: Case, device: Any) -> None:
        self.jax = import_module("jax")
        initial, self.update = jitted(case.optimizer)
        self.params = self._arrays(case, data.PARAMETERS, device)
        self.grads = self._arrays(case, data.GRADIENTS, device)
        self.state = initial(self.params)

    def _arrays(self, case: Case, kind: int, device: Any) -> list[Any]:
        made = []
        for k, shape in enumerate(case.shapes):
            host = data.values(kind, k, 0, int(np.prod(shape))).reshape(shape)
            made.append(self.jax.device_put(host.astype(case.dtype), device).copy())
        return made

    def step(self) -> None:
        self.params, self.state = self.update(self.params, self.state, self.grads)

    def scale(self, factor: float) -> None:
        self.grads = [g * factor for g in self.grads]

    def read(self, tensor: int, start: int, stop: int) -> NDArray[np.float64]:
        return np.asarray(self.params[tensor].reshape(-1)[start:stop]).astype(np.float64)

    def wait(self) -> None:
        self.jax.block_until_ready((self.params, self.state))


class Optax(Provider):
    """optax on JAX's device."""

    name = "optax jitted"
    distribution = "optax"
    rank = 4

    def missing(self) -> str | None:
        why = importable("jax", "optax")
        if why is None:
            try:
                self._device()
            except Exception as error:  # jax raises RuntimeError, plug-ins raise their own
                why = f"JAX has no such device ({' '.join(str(error).split())[:100]})"
        return why

    def _device(self) -> Any:
        return import_module("jax").devices("cpu" if self.device == "cpu" else "cuda")[0]

    def refuses(self, case: Case) -> str | None:
        if case.optimizer not in TRANSFORMS:
            return f"optax has no {case.optimizer} that is measured"
        if case.dtype != "float32" or case.state_format != "float32" or case.param_format != "native":
            return "optax is measured with float32 throughout"
        return f"one jit of {len(case.shapes)} arrays takes minutes" if len(case.shapes) > LIMIT else None

    def start(self, case: Case) -> Session:
        return OptaxSession(case, self._device())

    def bytes_needed(self, case: Case) -> float:
        """Host copies while it starts."""
        return case.bytes_held * 1.3

    @property
    def version(self) -> str:
        return distribution_version("optax") + " jax " + distribution_version("jax")


def providers(device: str) -> Iterator[Provider]:
    """The one."""
    yield Optax(device)
