"""gpuopt: optimizers whose update is one fused pass over all parameters, on CuPy, Numba CUDA, Numba and NumPy.

Everything public is here and imported on first use: `import gpuopt` alone imports no CUDA, no Numba and no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "gpuopt.errors": (
        "GpuoptError",
        "InputError",
        "DtypeError",
        "BackendUnavailable",
        "CompileError",
        "CommunicationError",
        "RuleSyntaxError",
        "RulePicklingError",
        "KindError",
        "ArgumentError",
        "OptionError",
        "DeviceError",
        "LayoutError",
        "FileError",
    ),
    "gpuopt.rules.language": ("rule", "Rule", "State"),
    "gpuopt.rules.primitives": (
        "sqrt",
        "sign",
        "minimum",
        "maximum",
        "where",
        "tensor_sum",
        "tensor_max",
        "global_sum",
        "row_sum",
        "column_sum",
        "numel",
        "rows",
        "columns",
        "epsilon",
        "bits",
        "from_bits",
        "block_max",
        "block_min",
    ),
    "gpuopt.rules.products": (
        "orthogonalize",
        "orthogonalize_largest",
        "learn_bases",
        "turn_bases",
        "learn_sides",
        "learn_roots",
        "to_bases",
        "from_bases",
        "scale_by_projection",
        "whiten",
    ),
    "gpuopt.source": ("kernel_source",),
    "gpuopt.formats.language": ("format",),
    "gpuopt.optim.checkpoint": ("save", "load"),
    "gpuopt.optim.full_precision": ("full_precision",),
    "gpuopt.sizes": ("memory",),
    "gpuopt.attention": ("qk_clip",),
    "gpuopt.minimizing.loop": ("minimize",),
    "gpuopt.minimizing.scipy_method": ("scipy_method",),
    "gpuopt.streams": ("stream",),
    "gpuopt.optim.optimizer": ("Optimizer",),
    "gpuopt.optim.sam": ("SAM",),
    "gpuopt.optim.factory": ("create", "optimizer", "optimizers", "make_optimizer"),
}
_MODULES = ("backends", "distributed", "schedules", "training")  # the module itself is callable: gpuopt.backends()
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    value: Any
    if name in _MODULES:
        value = import_module(f"gpuopt.{name}")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name == "__all__":
        value = ["__version__", *import_module("gpuopt.rules").titles(), *_HOME, *_MODULES]
    elif not name.startswith("_") and import_module("gpuopt.rules").titled(name) is not None:
        value = import_module("gpuopt.optim.factory").named(name)
    else:
        from pkgutil import iter_modules

        from gpuopt.messages import no_attribute

        modules = {module.name for module in iter_modules(__path__)}  # `from gpuopt import arrays` asks here first
        known = () if name in modules else __getattr__("__all__")
        raise AttributeError(no_attribute("gpuopt", name, known))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__getattr__("__all__"))
