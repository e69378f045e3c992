"""`gpuopt.kernel_source`: the generated text of a kernel, complete, for reading and for compiling by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from gpuopt import rules
from gpuopt.compiler import to_cuda, to_numba, to_numba_cuda
from gpuopt.compiler.host import row_inputs
from gpuopt.compiler.lower import Program, Role, Signature, program_for
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import PARAMETER_DTYPES, STORAGES, state_storage
from gpuopt.optim.hyper import defaults_of
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


def program(
    rule: str | Rule, *, param_dtype: str = "float32", grad_dtype: str | None = None, mask: bool = False, **options: Any
) -> Program:
    """The straight-line program of a rule; options as for the optimizer (`amsgrad=True`, `max_grad_norm=1` ...)."""
    rule = rules.get(rule) if isinstance(rule, str) else checked_rule(rule)
    if param_dtype not in PARAMETER_DTYPES:
        raise InputError(f"param_dtype = {param_dtype!r}: expected one of {', '.join(PARAMETER_DTYPES)}")
    grad_dtype = grad_dtype or param_dtype
    allowed = [d for d in PARAMETER_DTYPES if STORAGES[d].compute == STORAGES[param_dtype].compute]
    if grad_dtype not in allowed:
        raise InputError(f"grad_dtype = {grad_dtype!r}: expected one of {', '.join(allowed)} for {param_dtype}")
    fields = {k: (1.0 if v is inspect.Parameter.empty else v) for k, v in defaults_of(rule).items()}
    wide = {"state_format", "max_grad_norm", "grad_scale", "skip_nonfinite"}
    unknown = set(options) - set(fields) - wide
    if unknown:
        raise InputError(f"unknown option {sorted(unknown)[0]!r} of {rule.title}")
    group = fields | {k: v for k, v in options.items() if k in fields}
    flags = rule.flags(group) | {
        "@scaled": bool(group["maximize"]) or bool({"max_grad_norm", "grad_scale"} & set(options)),
        "@clipped": group["clip_value"] is not None,
        "@sparse": bool(group["l1"]),
        "@masked": mask,
    }
    compute = STORAGES[param_dtype].compute
    settings = Settings(options.get("state_format", "float32"))
    settings.check(rule)
    formats = settings.formats(rule)
    roles = [Role("p", param_dtype, True), Role("g", grad_dtype, False)]
    roles += [Role(s.name, state_storage(formats[s.name], compute), not s.readonly) for s in rule.active_states(flags)]
    roles += [Role("@mask", "bool", False)] if mask else []
    return program_for(Signature(rule, tuple(sorted(flags.items())), tuple(roles), compute))


def kernel_source(rule: str | Rule, *, backend: str = "cuda", part: str = "update", **options: Any) -> str:
    """The complete translation unit of a kernel.

    rule: a name or a rule of your own. backend: "cuda" (or "cupy"): CUDA C++ that NVRTC and nvcc compile as it is;
    "numba", "numba-cuda": typed Python; "numpy": the rule's own source. part: "update", or on GPUs "sums" (the global
    norm) and "prepare" (decisions on the device). options: `param_dtype`, `grad_dtype`, `mask=True`, and those of the optimizer.
    Raises InputError for a name or option that does not exist.
    """
    if backend not in TEXTS:
        raise InputError(f"backend = {backend!r}: expected one of {', '.join(TEXTS)}")
    if part not in TEXTS[backend]:
        parts = {name: list(texts) for name, texts in TEXTS.items() if name in (backend, "cuda")}
        raise InputError(f"part = {part!r} of {backend}: expected one of {parts}")
    return TEXTS[backend][part](program(rule, **options))
