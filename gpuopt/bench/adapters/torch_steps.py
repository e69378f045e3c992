"""torch.optim in its four forms: for-loop, foreach, fused, and a step compiled by torch.compile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.bench import data
from gpuopt.bench.providers import Provider, Session, distribution_version, importable
from gpuopt.bench.suites import Case, hyper

COMPILED_LIMIT = 200  # tensors whose step compiles within a minute


def torch_tensors(case: Case, device: str) -> list[Any]:
    """The parameters of a case as torch tensors, gradients in `.grad`."""
    torch = import_module("torch")
    dtype = getattr(torch, case.dtype)
    params = []
    for k, shape in enumerate(case.shapes):
        made = []
        for kind in (data.PARAMETERS, data.GRADIENTS):
            host = torch.from_numpy(data.values(kind, k, 0, int(np.prod(shape)))).reshape(shape)
            made.append(torch.empty(shape, dtype=dtype, device=device).copy_(host))
        made[0].grad = made[1]
        params.append(made[0])
    return params


class TorchSession(Session):
    """Any optimizer with torch's interface."""

    def __init__(self, params: list[Any], optimizer: Any, step: Callable[[], Any] | None = None) -> None:
        self.torch = import_module("torch")
        self.params, self.optimizer = params, optimizer
        self.run = step or optimizer.step

    def step(self) -> None:
        self.run()

    def scale(self, factor: float) -> None:
        for p in self.params:
            p.grad.mul_(factor)

    def read(self, tensor: int, start: int, stop: int) -> NDArray[np.float64]:
        part = self.params[tensor].detach().reshape(-1)[start:stop]
        return np.asarray(part.to(device="cpu", dtype=self.torch.float64).numpy())

    def wait(self) -> None:
        if self.params[0].is_cuda:
            self.torch.cuda.synchronize()


class TorchStep(Provider):
    """One implementation of torch.optim."""

    distribution = "torch"
    float32_sums = True

    def __init__(self, device: str, form: str, options: dict[str, Any], rank: int) -> None:
        super().__init__(device)
        self.form, self.options, self.rank = form, options, rank
        self.name = f"torch {form}"

    def missing(self) -> str | None:
        why = importable("torch")
        if why is None and self.device != "cpu" and not import_module("torch").cuda.is_available():
            why = "torch finds no GPU"
        return why

    def refuses(self, case: Case) -> str | None:
        from gpuopt import rules

        title = rules.get(case.optimizer).title
        made = getattr(import_module("torch").optim, title, None)
        if made is None:
            return f"torch.optim has no {title}"
        unknown = set(hyper(case.optimizer)) | set(self.options)
        unknown -= set(inspect.signature(made).parameters)
        if unknown:
            return f"torch.optim.{title} has no option {sorted(unknown)[0]!r}"
        states = {"float32": "float32", "float64": "float32"}.get(case.dtype, case.dtype)
        if case.state_format != states or case.param_format != "native":
            return "torch keeps states in the parameter's dtype only"
        if self.form == "compiled" and len(case.shapes) > COMPILED_LIMIT:
            return f"compiling a step of {len(case.shapes)} tensors takes minutes"
        return None

    def start(self, case: Case) -> Session:
        from gpuopt import rules

        torch = import_module("torch")
        params = torch_tensors(case, self.device)
        made = getattr(torch.optim, rules.get(case.optimizer).title)
        optimizer = made(params, **hyper(case.optimizer), **self.options)
        step = torch.compile(optimizer.step, fullgraph=False) if self.form == "compiled" else None
        return TorchSession(params, optimizer, step)

    def bytes_needed(self, case: Case) -> float:
        """foreach and for-loop hold temporaries of parameter size."""
        return case.bytes_held * (1.0 if self.form == "fused" else 1.6)

    @property
    def version(self) -> str:
        return distribution_version("torch")


def providers(device: str) -> Iterator[Provider]:
    """The four forms."""
    yield TorchStep(device, "fused", {"fused": True}, 1)
    yield TorchStep(device, "foreach", {"foreach": True}, 2)
    yield TorchStep(device, "for-loop", {"foreach": False}, 4)
    yield TorchStep(device, "compiled", {"foreach": True}, 6)
