"""`gpuopt.kernel_source`: the generated text of a kernel, complete, for reading and for compiling by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from gpuopt import rules
from gpuopt.compiler import to_cuda, to_numba, to_numba_cuda
from gpuopt.compiler.host import row_inputs
from gpuopt.compiler.lower import Program, Role, Signature, program_for
from gpuopt.errors import InputError, entry
from gpuopt.formats.dtypes import PARAMETER_DTYPES, STORAGES, state_dtype, state_storage
from gpuopt.messages import suggestion
from gpuopt.optim.hyper import check_group, defaults_of
from gpuopt.optim.settings import Settings
from gpuopt.rules.language import Rule, checked_rule

CUDA = {
    "update": to_cuda.update_source,
    "sums": lambda made: to_cuda.sums_source(made.roles[1].storage, made.compute),
    "prepare": lambda made: to_cuda.prepare_source(made, row_inputs(made)),
}
NUMBA_CUDA = {
    "update": to_numba_cuda.cuda_source,
    "sums": lambda made: to_numba_cuda.sums_source(made.roles[1].storage, made.compute),
    "prepare": lambda made: to_numba_cuda.prepare_source(made, row_inputs(made)),
}
TEXTS: dict[str, dict[str, Callable[[Program], str]]] = {
    "numpy": {"update": lambda made: made.signature.definition.tree.source},
    "numba": {"update": to_numba.cpu_source},
    "cuda": CUDA,
    "cupy": CUDA,
    "numba-cuda": NUMBA_CUDA,
}


# Options of a whole optimizer that change its kernels or are accepted; `found_inf` is how gpuopt.torch passes a GradScaler's.
WIDE = tuple(field.name for field in fields(Settings) if field.name != "found_inf")


def program(
    rule: str | Rule, *, param_dtype: str = "float32", grad_dtype: str | None = None, mask: bool = False, **options: Any
) -> Program:
    """The straight-line program of a rule; options as for the optimizer (`amsgrad=True`, `max_grad_norm=1` ...)."""
    rule = rules.get(rule) if isinstance(rule, str) else checked_rule(rule)
    check_choice("param_dtype", param_dtype, PARAMETER_DTYPES)
    compute = STORAGES[param_dtype].compute
    grad_dtype = grad_dtype or param_dtype
    allowed = [d for d in PARAMETER_DTYPES if STORAGES[d].compute == compute]
    check_choice("grad_dtype", grad_dtype, allowed, f" for {param_dtype}")
    check_choice("mask", mask, (False, True))
    group, settings = checked(rule, options)
    flags = rule.flags(group) | {
        "@scaled": bool(group["maximize"]) or (settings.max_grad_norm, settings.grad_scale) != (None, None),
        "@clipped": group["clip_value"] is not None,
        "@sparse": bool(group["l1"]),
        "@masked": mask,
    }
    formats = settings.formats(rule)
    roles = [Role("p", param_dtype, True), Role("g", grad_dtype, False)]
    stored = {name: state_storage(state_dtype(chosen, compute)) for name, chosen in formats.items()}
    roles += [Role(s.name, stored[s.name], not s.readonly) for s in rule.active_states(flags)]
    roles += [Role("@mask", "bool", False)] if mask else []
    return program_for(Signature(rule, tuple(sorted(flags.items())), tuple(roles), compute))


def checked(rule: Rule, options: dict[str, Any]) -> tuple[dict[str, Any], Settings]:
    """A group of hyperparameters and the settings that these options mean, checked as the optimizer checks them.

    A hyperparameter that the optimizer requires is 1 where it is not given. Raises InputError.
    """
    known = defaults_of(rule)
    for name in options:
        if name not in known and name not in WIDE:
            all_of_it = [*known, *WIDE, "mask"]
            hint = suggestion(name, all_of_it)
            raise InputError(f"unknown option {name!r} of {rule.title}; it takes {', '.join(all_of_it)}{hint}")
    group = {k: (1.0 if v is inspect.Parameter.empty else v) for k, v in known.items()}
    group |= {k: v for k, v in options.items() if k in known}
    check_group(group, rule, rule.title)
    for field in fields(Settings):
        if field.name in options and isinstance(field.default, bool):
            check_choice(field.name, options[field.name], (False, True))
    settings = Settings(**{k: v for k, v in options.items() if k in WIDE})
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
    "numba", "numba-cuda": typed Python; "numpy": the rule's own source. part: "update", or on GPUs "sums" (the global
    norm) and "prepare" (decisions on the device). options: `param_dtype`, `grad_dtype`, `mask=True`, and those of the optimizer.
    Raises InputError for a name or option that does not exist, and for a value that the optimizer would refuse.
    """
    check_choice("backend", backend, TEXTS)
    check_choice("part", part, TEXTS[backend], f" for {backend}")
    return TEXTS[backend][part](program(rule, **options))
