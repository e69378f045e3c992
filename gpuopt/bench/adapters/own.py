"""gpuopt itself, on every backend of a device, and its PyTorch adapter where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gpuopt
from gpuopt import backends
from gpuopt.bench import data
from gpuopt.bench.adapters.torch_steps import TorchSession, torch_tensors
from gpuopt.bench.providers import Provider, Session, importable
from gpuopt.bench.suites import Case, hyper
from gpuopt.formats.dtypes import numpy_dtype


def space_of(device: str) -> Any:
    """The array module: NumPy, or CuPy for a GPU."""
    return np if device == "cpu" else import_module("cupy")


def array(xp: Any, kind: int, index: int, shape: tuple[int, ...], dtype: str) -> Any:
    """A tensor of the case on the device."""
    size = int(np.prod(shape))
    host = data.values(kind, index, 0, size).astype(numpy_dtype(dtype), copy=False).reshape(shape)
    return host if xp is np else xp.asarray(host)


class ArraySession(Session):
    """gpuopt on NumPy or CuPy arrays."""

    def __init__(self, case: Case, backend: str, device: str) -> None:
        self.xp = space_of(device)
        self.params = [array(self.xp, data.PARAMETERS, k, s, case.dtype) for k, s in enumerate(case.shapes)]
        self.grads = [array(self.xp, data.GRADIENTS, k, s, case.dtype) for k, s in enumerate(case.shapes)]
        self.others = [g.copy() for g in self.grads] if case.fresh else self.grads
        options = hyper(case.optimizer) | case.formats
        self.optimizer = gpuopt.create(case.optimizer, self.params, backend=backend, **options)

    def step(self) -> None:
        self.grads, self.others = self.others, self.grads
        self.optimizer.step(self.grads)

    def scale(self, factor: float) -> None:
        for grad in {id(g): g for g in (*self.grads, *self.others)}.values():
            grad *= grad.dtype.type(factor)

    def read(self, tensor: int, start: int, stop: int) -> NDArray[np.float64]:
        part = self.params[tensor].reshape(-1)[start:stop]
        return np.asarray(part if self.xp is np else part.get()).astype(np.float64)

    def wait(self) -> None:
        if self.xp is not np:
            self.xp.cuda.Device().synchronize()

    def launches(self) -> int | None:
        return int(self.optimizer.launches)


class Own(Provider):
    """One backend of gpuopt."""

    own = renews = True
    distribution = "gpuopt"

    def __init__(self, device: str, backend: str) -> None:
        super().__init__(device)
        self.backend = backend
        self.name = f"gpuopt {backend}"
        self.rank = {"numba": 0, "cupy": 0, "numba-cuda": 1}.get(backend, 3)

    def missing(self) -> str | None:
        why = backends.missing(self.backend)
        return why or (None if self.device == "cpu" else importable("cupy"))

    def refuses(self, case: Case) -> str | None:
        return None

    def start(self, case: Case) -> Session:
        return ArraySession(case, self.backend, self.device)

    @property
    def version(self) -> str:
        return gpuopt.__version__


class OwnTorch(Provider):
    """gpuopt.torch, the drop-in for torch.optim."""

    own = True
    name = "gpuopt.torch"
    rank = 1

    def missing(self) -> str | None:
        return importable("torch", "gpuopt.torch") or (
            None if self.device == "cpu" or import_module("torch").cuda.is_available() else "torch finds no GPU"
        )

    def refuses(self, case: Case) -> str | None:
        from gpuopt import rules

        title = rules.get(case.optimizer).title
        return None if hasattr(import_module("gpuopt.torch"), title) else f"gpuopt.torch has no {title}"

    def start(self, case: Case) -> Session:
        from gpuopt import rules

        params = torch_tensors(case, self.device)
        made = getattr(import_module("gpuopt.torch"), rules.get(case.optimizer).title)
        return TorchSession(params, made(params, **hyper(case.optimizer), **case.formats))

    @property
    def version(self) -> str:
        return gpuopt.__version__


def providers(device: str) -> Iterator[Provider]:
    """Every backend of the device, listed by the library."""
    for backend, where in backends.DEVICES.items():
        if where == device:
            yield Own(device, backend)
    yield OwnTorch(device)
