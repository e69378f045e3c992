"""The NumPy backend: the reference. The rule itself runs on arrays, in blocks that stay in the cache; nothing is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.backends.host import HostBackend
from gpuopt.compiler.lower import Program
from gpuopt.compiler.names import OPTION
from gpuopt.formats import philox
from gpuopt.formats.dtypes import STORAGES, numpy_dtype
from gpuopt.formats.stochastic import encode
from gpuopt.launch import table as t
from gpuopt.launch.launcher import Launch
from gpuopt.peek import memory
from gpuopt.rules import options
from gpuopt.rules.language import Rule, compute_dtype

BLOCK = 16384  # elements: five float32 temporaries of 64 KB stay in a 1 MB cache


def missing() -> str | None:
    """NumPy is a dependency of gpuopt and always there."""
    return None


class Backend(HostBackend):
    """See gpuopt.backends."""

    name = "numpy"

    def update(self, launch: Launch, multiplier: float) -> None:
        """Run the options before the rule, the rule, and the options behind it, on each block of each tensor."""
        program = launch.plan.program
        compute = numpy_dtype(program.compute)
        rule, flags = program.signature.rule, dict(program.signature.flags)
        scalars = self.scalars(launch, multiplier)
        for record in launch.plan.table:
            count = int(record[t.NUMEL])
            flats = {
                r.name: memory(int(record[t.ADDRESS + k]), numpy_dtype(r.storage), count)
                for k, r in enumerate(program.roles)
            }
            step = launch.clocks[int(record[t.ROW])].step
            for begin in range(0, count, BLOCK):
                block = {name: values[begin : begin + BLOCK] for name, values in flats.items()}
                size = min(BLOCK, count - begin)
                with compute_dtype(compute), np.errstate(all="ignore"):
                    x = {name: values.astype(compute) for name, values in block.items()}
                    apply(rule, flags, x, *scalars[int(record[t.ROW])])
                    bits = random_bits(program, record, step, begin, size)
                    for k, role in enumerate(program.roles):
                        if role.written:
                            made = np.broadcast_to(np.asarray(x[role.name], compute), size)
                            block[role.name][...] = encode(role.storage, made, bits.get(k))

    def scalars(self, launch: Launch, multiplier: float) -> list[tuple[dict[str, float], dict[str, float]]]:
        """Hyperparameters and what `prepare` derives from them, for each clock."""
        definition = launch.plan.program.signature.definition
        return [
            ({**clock.values(), "grad_multiplier": multiplier}, dict(clock.prepared(definition)))
            for clock in launch.clocks
        ]

    def rehearse(self, launch: Launch, multiplier: float) -> None:
        """The rule on no elements: what it raises for these scalars, a division by zero say, it raises here."""
        compute, signature = numpy_dtype(launch.plan.program.compute), launch.plan.program.signature
        for values in self.scalars(launch, multiplier):
            x: dict[str, Any] = {r.name: np.empty(0, compute) for r in launch.plan.program.roles}
            with compute_dtype(compute), np.errstate(all="ignore"):
                apply(signature.rule, dict(signature.flags), x, *values)

    def sums(self, launch: Launch) -> NDArray[Any]:
        """Partial sums of every chunk, in the order of kernels/reduce.cuh."""
        program = launch.plan.program
        compute = numpy_dtype(program.compute)
        storage = next(r.storage for r in program.roles if r.name == "g")
        width = 16 // STORAGES[storage].itemsize
        partials = []
        role = [r.name for r in program.roles].index("g")
        for record in launch.plan.table:
            values = memory(int(record[t.ADDRESS + role]), numpy_dtype(storage), int(record[t.NUMEL]))
            count = -(-values.size // t.CHUNK)
            with compute_dtype(compute), np.errstate(all="ignore"):
                terms = options.sums.function(values.astype(compute))
                padded = np.zeros((len(terms), count * t.CHUNK), compute)
                for k, term in enumerate(terms):
                    padded[k, : values.size] = term
                partials.append(
                    lanes_of(padded.reshape(len(terms), count, t.CHUNK // (t.THREADS * width), t.THREADS, width)).T
                )
        return np.concatenate(partials) if partials else np.empty((0, 2), compute)


def random_bits(
    program: Program, record: NDArray[np.int64], step: int, first: int, count: int
) -> dict[int, NDArray[np.uint32]]:
    """Role index -> the random bits of `count` elements from `first` on, for roles that are rounded at random."""
    seed, tensor = int(record[t.SEED]), int(record[t.TENSOR])
    words = [philox.words(seed, tensor, step, stream, first, count) for stream in range(program.streams)]
    return {k: words[draw.stream] >> np.uint32(draw.shift) for k, draw in program.draws.items()}


def apply(
    rule: Rule, flags: Mapping[str, Any], x: dict[str, Any], scalars: Mapping[str, Any], prepared: Mapping[str, Any]
) -> None:
    """The functions themselves, on arrays; `x` maps roles to values and is updated."""
    shared = {**scalars, **{n.removeprefix(OPTION): v for n, v in flags.items() if n.startswith(OPTION)}}
    x["g"] = call(options.before.function, {**shared, "g": x["g"]})
    own = {**{s.name: None for s in rule.states}, **scalars, **prepared, **flags, **x}
    result = call(rule.function, own)
    results = result if isinstance(result, tuple) else (result,)
    names = ("p", *(s.name for s in rule.states if not s.readonly))
    x |= {n: value for n, value in zip(names, results, strict=True) if n in x}
    x["p"] = call(options.after.function, {**shared, "p": x["p"], "mask": x.get(OPTION + "mask")})


def call(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """The function with each of its arguments by name."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return function(
        *(values[n] for n in names[: code.co_argcount]), **{n: values[n] for n in names[code.co_argcount :]}
    )


def lanes_of(terms: NDArray[Any]) -> NDArray[Any]:
    """[sums, chunks, turns, lanes, pack] -> [sums, chunks]: each lane in turn, then the tree over lanes."""
    lanes = np.zeros_like(terms[:, :, 0, :, 0])
    for turn in range(terms.shape[2]):
        for k in range(terms.shape[4]):
            lanes = lanes + terms[:, :, turn, :, k]
    half = t.THREADS // 2
    while half:
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        half //= 2
    return np.asarray(lanes[..., 0])
