"""How much memory an optimizer takes: bytes a parameter of every optimizer and format, and of other libraries; `gpuopt memory 8e9`.

Public: `gpuopt.memory`. Counts the states that optimizers would make, so that a new optimizer or format appears by
itself. Knows no kernel and allocates nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuopt import drawing, rules
from gpuopt.errors import InputError, entry
from gpuopt.formats.dtypes import STORAGES
from gpuopt.messages import abbreviated
from gpuopt.optim.keeping import keeping
from gpuopt.optim.states import kept_dtype
from gpuopt.rules.language import Rule, checked_rule
from gpuopt.source import LARGE, checked, program

GIB = 2**30
# What `gpuopt memory` tells of each optimizer: a name, dtype of parameters and gradients, options.
COMBINATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "float32": ("float32", {}),
    "float32, states on the host": ("float32", {"state_device": "host"}),
    "bf16 master32": ("bfloat16", {"param_format": "master32"}),
    "bf16 split8": ("bfloat16", {"param_format": "split8"}),
    "bf16 split8, bf16 states": ("bfloat16", {"param_format": "split8", "state_format": "bfloat16"}),
    "bf16, bf16 states": ("bfloat16", {"state_format": "bfloat16"}),
    "bf16, int8 states": ("bfloat16", {"state_format": "int8"}),
    "bf16 split8, int8 states": ("bfloat16", {"param_format": "split8", "state_format": "int8"}),
    "bf16 split8, int4 states": ("bfloat16", {"param_format": "split8", "state_format": "int4"}),
}


@dataclass(frozen=True)
class Bytes:
    """Bytes a parameter: what shows of it, what a format keeps beside it, the optimizer's states, the gradient. host: those of what
    lies beside it and of the states that are kept in host memory.
    """

    name: str
    weights: float
    beside: float
    states: float
    gradient: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.beside + self.states + self.gradient

    @property
    def on_device(self) -> float:
        """All but what is kept in host memory."""
        return self.total - self.host


# AdamW of other libraries, by their documentation and code: parameters and gradients in bfloat16 but for the first.
PEERS = (
    Bytes("torch, float32", 4, 0, 8, 4),
    Bytes("apex or DeepSpeed, float32 master", 2, 4, 8, 2),
    Bytes("optimi, Kahan", 2, 2, 4, 2),
    Bytes("flashoptim, 24-bit weights, 8-bit states", 2, 1, 2.125, 2),
    Bytes("bitsandbytes or torchao, 8-bit states", 2, 0, 2.03, 2),
    Bytes("torchao, 4-bit states", 2, 0, 1.06, 2),
)


def bytes_of(
    rule: Rule, name: str, dtype: str, options: Mapping[str, Any], shapes: Sequence[tuple[int, ...]] = ()
) -> Bytes:
    """Of one optimizer with these options. States of one number a tensor, row or column count where shapes are given."""
    program(rule, param_dtype=dtype, **options)  # raises for what the optimizer would refuse
    group, settings = checked(rule, dict(options))
    kept = keeping(rule, settings.param_format, settings.codes(rule))
    formats, width = settings.formats(rule), STORAGES[dtype].itemsize
    beside = {state.name for state in getattr(kept, "of_parameter", ())}
    totals, hosted, seen, count = [0, 0], 0, set[str](), 0
    for shape in shapes or [LARGE]:
        count += math.prod(shape)
        for state in kept.active_states(kept.shaped(kept.flags(group), tuple(shape), dtype=dtype)):
            if state.name in seen or not (shapes or state.walked or state.plane):
                continue
            numbers = math.prod(shape if state.walked else kept.shape_of(state, tuple(shape), group))
            nbytes = numbers * STORAGES[kept_dtype(state, formats, dtype)].itemsize
            totals[state.name in beside] += nbytes
            hosted += nbytes if state.large and settings.on_host else 0
            seen |= {state.name} if state.shape == "global" else set()
    return Bytes(name, width, totals[1] / count, totals[0] / count, width, hosted / count)


@dataclass(frozen=True)
class Memory:
    """What `gpuopt.memory` found. rows: bytes a parameter of the optimizer in every combination of formats, or of the one that was
    asked for; peers: AdamW of other libraries; parameters: how many there are.
    """

    optimizer: str
    parameters: int
    rows: tuple[Bytes, ...]
    peers: tuple[Bytes, ...] = PEERS

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """The table, line by line."""
        yield f"{self.optimizer}, {self.parameters:,} parameters; bytes each, and GiB on the device, without what is on the host"
        head = f"{'weights':>8}{'beside':>8}{'states':>8}{'gradient':>9}{'all':>7}{'on host':>8}"
        yield f"{'':42}{head}{'GiB':>9}{'without gradient':>18}"
        for title, rows in (("", self.rows), ("AdamW elsewhere", self.peers)):
            if title:
                yield title
            for row in rows:
                numbers = (
                    f"{row.weights:8g}{row.beside:8g}{row.states:8.4g}{row.gradient:9g}{row.total:7.4g}{row.host:8.4g}"
                )
                yield f"  {row.name:40}{numbers}{self.gib(row):9.1f}{self.gib(row, False):18.1f}"

    def gib(self, row: Bytes, gradient: bool = True) -> float:
        """GiB of all parameters together on the device; without the gradient as where `release_gradients` frees it at once."""
        return (row.on_device - (0 if gradient else row.gradient)) * self.parameters / GIB

    def plot(self, path: str | Path) -> Path:
        """Draw it into the PNG `path`; returns the path. Raises GpuoptError where matplotlib is missing."""
        rows = [*self.rows, *self.peers]
        made = drawing.figure(9, 1.2 + 0.32 * len(rows))
        axes = made.subplots()
        drawing.plain(axes, f"{self.optimizer} here, AdamW elsewhere: {self.parameters:,} parameters, GiB")
        places = range(len(rows), 0, -1)
        left = [0.0] * len(rows)
        for part, colour in zip(
            ("weights", "beside", "states", "gradient"), (*drawing.OURS[:3], drawing.GREY), strict=True
        ):
            widths = [getattr(row, part) * self.parameters / GIB for row in rows]
            axes.barh(list(places), widths, left=left, color=colour, label=part, height=0.7)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for place, row, end in zip(places, rows, left, strict=True):
            axes.text(end, place, f" {row.total:.4g} bytes", va="center", fontsize=drawing.SMALL, color=drawing.INK)
        axes.set_yticks(list(places), [row.name for row in rows], fontsize=drawing.SMALL)
        axes.set_xlim(0, 1.15 * max(left))
        axes.legend(fontsize=drawing.SMALL, frameon=False, loc="lower right")
        return drawing.save(made, Path(path))


@entry
def memory(parameters: Any, optimizer: str | Rule = "adamw", *, dtype: str | None = None, **options: Any) -> Memory:
    """Bytes that an optimizer takes, beside those of other libraries.

    parameters: how many there are, or arrays, tensors or shapes, or a model of torch, which may be on the device "meta". optimizer:
    a name or a rule of your own. dtype: of parameters and gradients; with it or with options of the optimizer, such as
    `state_format="bfloat16"`, the one combination of formats, without them all that there are.
    Raises InputError for what is no number of parameters and for options that the optimizer would refuse.
    """
    rule = rules.get(optimizer) if isinstance(optimizer, str) else checked_rule(optimizer)
    shapes = shapes_of(parameters)
    count = sum(map(math.prod, shapes)) if shapes is not None else number_of(parameters)
    if dtype is None and not options:
        chosen = COMBINATIONS
    else:
        chosen = {
            " ".join([dtype or "float32", *(f"{k}={v}" for k, v in options.items())]): (dtype or "float32", options)
        }
    return Memory(rule.title, count, tuple(bytes_of(rule, name, *each, shapes or ()) for name, each in chosen.items()))


def shapes_of(parameters: Any) -> list[tuple[int, ...]] | None:
    """The shapes of arrays, of a list of shapes or of a model; None for a number."""
    if callable(getattr(parameters, "parameters", None)):
        parameters = list(parameters.parameters())
    if hasattr(parameters, "shape"):
        parameters = [parameters]
    if isinstance(parameters, Mapping):
        parameters = parameters.values()
    if not isinstance(parameters, Iterable) or isinstance(parameters, str):
        return None
    given: list[Any] = list(parameters)
    found = [tuple(each.shape if hasattr(each, "shape") else each) for each in given]
    if not all(isinstance(n, int) and n >= 0 for shape in found for n in shape) or not found:
        raise InputError(
            f"parameters: found {abbreviated(parameters)}: expected a number, arrays, shapes or a model of torch"
        )
    return found


def number_of(parameters: Any) -> int:
    """A count such as 8e9. Raises InputError for what is none."""
    try:
        count = float(parameters)
    except (TypeError, ValueError, OverflowError):
        count = math.nan
    if not 1 <= count < 1e18 or count != int(count):
        raise InputError(f"parameters: found {abbreviated(parameters)}: expected how many there are, such as 8e9")
    return int(count)


def everything(count: int) -> Iterator[str]:
    """Bytes a parameter of every optimizer in every combination of formats on the device, gradients included, line by line."""
    yield f"bytes a parameter with its gradient, on the device; of {count:,} parameters, a byte is {count / GIB:.4g} GiB"
    yield f"{'':20}" + "".join(f"{name:>29}" for name in COMBINATIONS)
    for name in rules.NAMES:
        found = {row.name: row.on_device for row in memory(count, name).rows}
        yield f"{name:20}" + "".join(f"{found[column]:29.4g}" for column in COMBINATIONS)
