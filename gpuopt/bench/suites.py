"""What is measured: cases of optimizer, formats and shapes, grouped into suites, the most valuable first.

Called by `gpuopt.bench`. Optimizers and formats are listed by the library, so that a new one appears here by itself.
Must not know any provider: which of them can run a case is theirs to say.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import gpuopt
from gpuopt.bench import shapes
from gpuopt.bench.shapes import Shape
from gpuopt.compiler.program import Program
from gpuopt.formats.dtypes import STORAGES
from gpuopt.source import program

LR = 1e-2
WEIGHT_DECAY = 0.1  # large enough that a step without it is seen to be wrong
# Where the defaults would measure another optimizer, or (prodigy) steps so small that float32 parameters hardly move.
HYPER: dict[str, dict[str, Any]] = {"sgd": {"momentum": 0.9}, "prodigy": {"lr": 1.0, "d0": 1e-3}}
MAIN = "adamw"


@dataclass(frozen=True)
class Case:
    """One thing to measure. value: 0 for what the README shows, then less and less needed when time is short."""

    suite: str
    name: str
    shapes: tuple[Shape, ...]
    optimizer: str = MAIN
    dtype: str = "float32"
    state_format: str = "float32"
    param_format: str = "native"
    value: int = 5
    steps: int = 3  # that are compared with float64
    warm: bool = False  # many steps in a row on the same arrays, which stay in the cache if they fit
    fresh: bool = False  # gradients in other arrays than those of the step before

    @property
    def parameters(self) -> int:
        """Elements of all tensors together."""
        return shapes.numel(self.shapes)

    @property
    def formats(self) -> dict[str, str]:
        """The options of `gpuopt.create` that choose formats."""
        return {"state_format": self.state_format, "param_format": self.param_format}

    @property
    def bytes_moved(self) -> int:
        """The least of one step, as the passes of the rule's program move it: arrays that it reads and writes."""
        made = program_of(self.optimizer, self.dtype, self.state_format, self.param_format)
        return round(self.parameters * made.traffic())

    @property
    def bytes_held(self) -> int:
        """Parameters, gradients and states of one session."""
        made = program_of(self.optimizer, self.dtype, self.state_format, self.param_format)
        return self.parameters * sum(STORAGES[role.storage].itemsize for role in made.roles)


@cache
def program_of(optimizer: str, dtype: str, state_format: str, param_format: str) -> Program:
    """The program of a case, by the hyperparameters that every provider gets."""
    options = hyper(optimizer) | {"state_format": state_format, "param_format": param_format}
    return program(optimizer, param_dtype=dtype, **options)


def hyper(optimizer: str) -> dict[str, Any]:
    """The hyperparameters that every provider gets: the library's defaults, with a decay and a rate that can be seen."""
    from gpuopt import rules
    from gpuopt.optim.hyper import own_defaults

    own = own_defaults(rules.get(optimizer))
    found = {k: (LR if v is inspect.Parameter.empty else v) for k, v in own.items()}
    found["lr"] = LR
    if "weight_decay" in found:
        found["weight_decay"] = WEIGHT_DECAY
    return found | HYPER.get(optimizer, {})


# ---------------------------------------------------------------------------------------------------- suites


def large(device: str) -> Iterable[Case]:
    """One tensor, from a thousand parameters to as many as memory allows."""
    for size in shapes.SIZES:
        value = 0 if size == 64 * 10**6 else 3 if size < 10**9 else 8
        yield Case("large", f"1 x {size}", ((size,),), value=value)


def many(device: str) -> Iterable[Case]:
    """Many small tensors."""
    for size in shapes.SMALL_TENSORS:
        for count in shapes.COUNTS:
            if count * size > 10**7 * (1 if device == "cpu" else 100):
                continue
            key = (count, size) in ((1_000, 1_000), (10_000, 64))
            yield Case("many", f"{count} x {size}", ((size,),) * count, value=0 if key else 2 if size == 1_000 else 6)


def warm(device: str) -> Iterable[Case]:
    """Many small tensors, nothing done between steps."""
    for count, size in ((1_000, 1_000), (10_000, 64)):
        yield Case("warm", f"{count} x {size}", ((size,),) * count, value=2, warm=True)


def models(device: str) -> Iterable[Case]:
    """The true shapes of models."""
    for name, model in shapes.MODELS.items():
        if name != ("llama-7b/8" if device == "cpu" else "llama-7b/64"):
            yield Case("models", name, model, value=0 if name == shapes.GPT2 else 4)


def optimizers(device: str) -> Iterable[Case]:
    """Every optimizer of the library on one large tensor, which shows bytes per second, and on the tensors of GPT-2."""
    size = 10**7 if device == "cpu" else 2 * 10**8
    for name in gpuopt.optimizers():
        yield Case("optimizers", f"1 x {size}", ((size,),), optimizer=name, value=1)
        yield Case("optimizers", shapes.GPT2, shapes.MODELS[shapes.GPT2], optimizer=name, value=5)


def formats(device: str) -> Iterable[Case]:
    """Every state format and parameter format; compared with float64 over more steps, since they differ in accuracy."""
    from gpuopt.optim.settings import PARAM_FORMATS, STATE_FORMATS

    size = 10**7 if device == "cpu" else 2 * 10**8
    for label, tensors in ((f"1 x {size}", ((size,),)), (shapes.GPT2, shapes.MODELS[shapes.GPT2])):
        value = 3 if len(tensors) == 1 else 7
        for state in STATE_FORMATS:
            for dtype in ("float32", "bfloat16"):
                yield Case("formats", label, tensors, MAIN, dtype, state, value=value, steps=30)
        others: tuple[str, ...] = PARAM_FORMATS[1:]
        for param in others:
            for state in [s for s in STATE_FORMATS if s in ("float32", "int8")]:
                yield Case("formats", label, tensors, MAIN, "bfloat16", state, param, value=value, steps=30)


def host(device: str) -> Iterable[Case]:
    """Tensors so small that only the host's work is left: time until `step()` returns, launches, allocations."""
    for count in shapes.HOST_COUNTS:
        yield Case("host", f"{count} x 16", ((16,),) * count, value=4)
    yield Case("host", "150 x 16, new gradient arrays", ((16,),) * 150, value=4, fresh=True)


SUITES: dict[str, Callable[[str], Iterable[Case]]] = {
    "large": large,
    "many": many,
    "warm": warm,
    "models": models,
    "optimizers": optimizers,
    "formats": formats,
    "host": host,
}
PROCESS_SUITES = ("start",)  # measured in processes of their own, see `start`
QUICK_LIMIT = 10**6  # parameters of a case in a quick run


def cases(names: Iterable[str], device: str, memory: int, quick: bool) -> list[Case]:
    """The cases of these suites that fit into `memory` bytes with two providers, the most valuable first."""
    found = [case for name in names if name in SUITES for case in SUITES[name](device)]
    if quick:
        found = [shrunk(case) for case in found if case.suite in ("optimizers", "formats") or _is_quick(case)]
        found = list({replace(case, value=0): case for case in reversed(found)}.values())[::-1]
    fitting = [case for case in found if 2.5 * case.bytes_held <= memory]
    return sorted(fitting, key=lambda case: case.value)


def _is_quick(case: Case) -> bool:
    count = len(case.shapes)
    return case.parameters <= QUICK_LIMIT and count <= 1_000 and not (case.suite == "many" and count in (10, 100))


def shrunk(case: Case) -> Case:
    """The same case with tensors small enough for a quick run."""
    if case.parameters <= QUICK_LIMIT:
        return case
    return Case(
        case.suite, f"1 x {QUICK_LIMIT}", ((QUICK_LIMIT,),), case.optimizer, case.dtype, case.state_format,
        case.param_format, case.value, case.steps,
    )  # fmt: skip
