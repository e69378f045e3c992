"""`gpuopt.kernel_source`: the generated text of a kernel, complete, for reading and for compiling by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from gpuopt import rules
from gpuopt.compiler import to_cuda, to_cuda_sums, to_numba_cuda, to_numba_sums, walks
from gpuopt.compiler.host import row_inputs
from gpuopt.compiler.lower import gradient_sums, program_for
from gpuopt.compiler.names import OPTION
from gpuopt.compiler.parts import Pass, PerTensor
from gpuopt.compiler.program import Program
from gpuopt.errors import InputError, entry
from gpuopt.formats.dtypes import PARAMETER_DTYPES, STORAGES
from gpuopt.messages import suggestion
from gpuopt.optim import companions, geometry
from gpuopt.optim.decay import peak_of
from gpuopt.optim.hyper import check_group, defaults_of, switches
from gpuopt.optim.keeping import check_narrow, keeping, of_settings
from gpuopt.optim.launches import signature
from gpuopt.optim.settings import Settings
from gpuopt.optim.states import kept_dtype
from gpuopt.rules.language import Rule, checked_rule
from gpuopt.rules.options import BESIDE

BACKENDS = ("numpy", "numba", "cuda", "cupy", "numba-cuda")
Texts = dict[str, Callable[[], str]]


def parts(made: Program, backend: str) -> Texts:
    """The texts of a program on a backend, by the names of its parts, in the order in which a step runs them. Where there are
    products of matrices between them, those before have the number of their stage.
    """
    if backend == "numpy":
        return {"update": lambda: made.signature.definition.tree.source}
    if made.stages:
        each = [parts(stage, backend) for stage in made.stages]
        first = {"sums": each[0].pop("sums")} if "sums" in each[0] else {}  # of the gradients, once
        numbered = {f"{name}_stage_{k}": text for k, of in enumerate(each[:-1], 1) for name, text in of.items()}
        return first | {n: text for n, text in numbered.items() if not n.startswith(("all_tensors", "sums"))} | each[-1]
    if backend == "numba":
        return {**_passes(made, to_numba_sums), "update": lambda: walks.on_cpu(made)}
    by_numba = backend == "numba-cuda"
    sums: Any = to_numba_cuda if by_numba else to_cuda_sums
    layout, cut = gradient_sums(made.roles[1].storage, made.compute)
    return {
        "sums": lambda: sums.reduce_source(layout, cut),
        "prepare": lambda: (to_numba_cuda if by_numba else to_cuda).prepare_source(made, row_inputs(made)),
        **_passes(made, sums),
        "all_tensors": sums.all_tensors_source,
        "update": lambda: walks.on_gpu(made) if by_numba else to_cuda.update_source(made),
    }


def _passes(made: Program, printer: Any) -> Texts:
    """What comes before the update: reduce_1, per_tensor_1 ..."""
    found: Texts = {}
    for step in made.schedule:
        if isinstance(step, Pass):
            name = "reduce_along" if step.along and printer is not to_cuda_sums else "reduce"
            text = partial(getattr(printer, f"{name}_source"), made.layout_of(step), step)
        else:
            name = "per_tensor" if isinstance(step, PerTensor) else "per_matrix"
            text = partial(getattr(printer, f"{name}_source"), step)
        kind = name.removesuffix("_along")
        found[f"{kind}_{1 + sum(known.startswith(kind) for known in found)}"] = text
    return found


# Options of a whole optimizer that change its kernels or are accepted; `found_inf` is how gpuopt.torch passes a GradScaler's.
WIDE = tuple(field.name for field in fields(Settings) if field.name != "found_inf")
OF_ARRAYS = (
    "mask",
    "bounds",
    "weight_decay_mask",
    "matrices",
    "rest",
)  # of the first two, a kernel knows that there are; of the others, nothing


def program(
    rule: str | Rule,
    *,
    param_dtype: str = "float32",
    grad_dtype: str | None = None,
    mask: bool = False,
    bounds: bool = False,
    anchor: bool | str | None = False,
    matrix: bool = True,
    **options: Any,
) -> Program:
    """The straight-line program of a rule; options as for the optimizer (`amsgrad=True`, `max_grad_norm=1` ...). matrix: of
    tensors of two or more axes.
    """
    rule = rules.get(rule) if isinstance(rule, str) else checked_rule(rule)
    check_choice("param_dtype", param_dtype, PARAMETER_DTYPES)
    compute = STORAGES[param_dtype].compute
    grad_dtype = grad_dtype or param_dtype
    allowed = [d for d in PARAMETER_DTYPES if STORAGES[d].compute == compute]
    check_choice("grad_dtype", grad_dtype, allowed, f" for {param_dtype}")
    for name, value in (("mask", mask), ("bounds", bounds)):
        check_choice(name, value, (False, True))
    check_choice("anchor", anchor, (None, False, True, companions.INITIAL))
    options |= {"anchor": anchor} if isinstance(anchor, str) else {}
    group, settings = checked(rule, options)
    check_narrow(settings.param_format, [param_dtype])
    rule = of_settings(rule, settings, group)
    scaled = (settings.max_grad_norm, settings.grad_scale) != (None, None)
    flags = rule.flags(group) | switches([group], scaled) | geometry.flags(group) | companions.flags(group)
    there = {"mask": mask, "lower": bounds, "upper": bounds, "anchor": anchor is True}
    flags |= {OPTION + flag: there[name] for name, flag in BESIDE.items()}
    return of_flags(rule, flags, param_dtype, grad_dtype, settings.formats(rule), matrix)


LARGE = 4096, 4096  # a tensor whose states are kept in codes


def of_flags(
    rule: Rule,
    flags: dict[str, Any],
    param_dtype: str,
    grad_dtype: str,
    formats: Mapping[str, str],
    matrix: bool = True,
) -> Program:
    """The program of a rule under these flags, those of the options included; formats: of each state; matrix: of tensors of two
    or more axes.
    """
    flags = rule.shaped(flags, LARGE if matrix else LARGE[:1], dtype=param_dtype)
    stored = {s.name: kept_dtype(s, formats, param_dtype) for s in rule.states}
    return program_for(signature(rule, flags, param_dtype, grad_dtype, stored))


def checked(rule: Rule, options: dict[str, Any]) -> tuple[dict[str, Any], Settings]:
    """A group of hyperparameters and the settings that these options mean, checked as the optimizer checks them.

    A hyperparameter that the optimizer requires is 1 where it is not given. Raises InputError.
    """
    known = defaults_of(rule)
    for name in options:
        if name not in known and name not in WIDE and name not in OF_ARRAYS:
            all_of_it = [*known, *WIDE, *OF_ARRAYS]
            hint = suggestion(name, all_of_it)
            raise InputError(f"unknown option {name!r} of {rule.title}; it takes {', '.join(all_of_it)}{hint}")
    group = {k: (1.0 if v is inspect.Parameter.empty else v) for k, v in known.items()}
    group |= {k: v for k, v in options.items() if k in known}
    group |= peak_of(group)
    check_group(group, keeping(rule, "native", (), companions.states_of(group)), rule.title)
    for field in fields(Settings):
        if field.name in options and isinstance(field.default, bool):
            check_choice(field.name, options[field.name], (False, True))
    settings = Settings(**{k: v for k, v in options.items() if k in WIDE and k not in known})
    settings.check(rule)
    return group, settings


def check_choice(name: str, value: Any, choices: Iterable[Any], context: str = "") -> None:
    """Raise InputError, suggesting the nearest, unless the value is one of these."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        listed = [str(choice) for choice in choices]
        hint = "" if context else suggestion(value, listed)
        raise InputError(f"{name} = {value!r}: expected one of {', '.join(listed)}{context}{hint}")


@entry
def kernel_source(rule: str | Rule, *, backend: str = "cuda", part: str = "update", **options: Any) -> str:
    """The complete translation unit of a kernel.

    rule: a name or a rule of your own. backend: "cuda" (or "cupy"): CUDA C++ that NVRTC and nvcc compile as it is;
    "numba", "numba-cuda": typed Python; "numpy": the rule's own source. part: "update"; of a rule that sums "reduce_1",
    "per_tensor_1" ... in the order in which a step runs them; on GPUs "sums" (of the gradients, for their norm), "prepare"
    (decisions on the device) and "all_tensors" (sums over all tensors). options: `param_dtype`, `grad_dtype`, `mask=True`,
    `bounds=True`, and those of the optimizer.
    Raises InputError for a name or option that does not exist, and for a value that the optimizer would refuse.
    """
    check_choice("backend", backend, BACKENDS)
    found = parts(program(rule, **options), backend)
    check_choice("part", part, found, f" for {backend}")
    return found[part]()
