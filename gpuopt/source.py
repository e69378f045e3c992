"""`gpuopt.kernel_source`: the generated text of a kernel, complete, for reading and for compiling by hand."""

from __future__ import annotations

import inspect
from typing import Any

from gpuopt import rules
from gpuopt.compiler import to_cuda, to_numba
from gpuopt.compiler.host import row_inputs
from gpuopt.compiler.lower import Program, Role, Signature, program_for
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import PARAMETER_DTYPES, STORAGES, state_storage
from gpuopt.optim.hyper import defaults_of
from gpuopt.optim.settings import Settings
from gpuopt.rules.language import Rule

TEXTS = {"cuda": to_cuda.update_source, "cupy": to_cuda.update_source, "numba": to_numba.cpu_source}
PARTS = ("update", "sums", "prepare")


def program(
    rule: str | Rule, *, param_dtype: str = "float32", grad_dtype: str | None = None, mask: bool = False, **options: Any
) -> Program:
    """The straight-line program of a rule; options as for the optimizer (`amsgrad=True`, `max_grad_norm=1` ...)."""
    rule = rules.get(rule) if isinstance(rule, str) else rule
    if param_dtype not in PARAMETER_DTYPES:
        raise InputError(f"param_dtype = {param_dtype!r}: expected one of {', '.join(PARAMETER_DTYPES)}")
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
    formats = Settings(options.get("state_format", "float32")).formats(rule)
    roles = [Role("p", param_dtype, True), Role("g", grad_dtype or param_dtype, False)]
    roles += [Role(s.name, state_storage(formats[s.name], compute), not s.readonly) for s in rule.active_states(flags)]
    roles += [Role("@mask", "bool", False)] if mask else []
    return program_for(Signature(rule, tuple(sorted(flags.items())), tuple(roles), compute))


def kernel_source(rule: str | Rule, *, backend: str = "cuda", part: str = "update", **options: Any) -> str:
    """The complete translation unit of a kernel.

    rule: a name or a rule of your own. backend: "cuda" (or "cupy"): CUDA C++ that NVRTC and nvcc compile as it is;
    "numba", "numba-cuda": typed Python; "numpy": the rule's own source. part: "update", or for CUDA "sums" (the global norm) and
    "prepare" (decisions on the device). options: `param_dtype`, `grad_dtype`, `mask=True`, and those of the optimizer.
    Raises InputError for a name or option that does not exist.
    """
    made = program(rule, **options)
    if backend == "numpy":
        return inspect.getsource(made.signature.rule.function)
    if backend == "numba-cuda":
        from gpuopt.compiler.to_numba_cuda import cuda_source

        return cuda_source(made)
    if backend not in TEXTS:
        raise InputError(f"backend = {backend!r}: expected one of numpy, numba-cuda, {', '.join(TEXTS)}")
    if part not in PARTS or (part != "update" and backend == "numba"):
        raise InputError(f"part = {part!r}: expected one of {', '.join(PARTS)} (only 'update' for numba)")
    if part == "sums":
        return to_cuda.sums_source(made.roles[1].storage, made.compute)
    if part == "prepare":
        return to_cuda.prepare_source(made, row_inputs(made))
    return TEXTS[backend](made)
