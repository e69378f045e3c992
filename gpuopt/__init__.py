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
        "RuleSyntaxError",
        "RulePicklingError",
        "KindError",
        "ArgumentError",
        "OptionError",
        "DeviceError",
        "LayoutError",
    ),
    "gpuopt.rules.language": ("rule", "Rule", "State", "sqrt", "sign", "minimum", "maximum", "where"),
    "gpuopt.source": ("kernel_source",),
    "gpuopt.streams": ("stream",),
    "gpuopt.optim.optimizer": ("Optimizer",),
    "gpuopt.optim.factory": ("create", "optimizer", "optimizers", "make_optimizer"),
}
_CLASSES = ("GD", "SGD", "DGD", "Adagrad", "RMSprop", "Adam", "AdamW", "Lion")
_MODULES = ("backends", "schedules")  # the module itself is callable: gpuopt.backends()
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_CLASSES, *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        value = import_module("gpuopt.optim.factory").named(name)
    elif name in _MODULES:
        value = import_module(f"gpuopt.{name}")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        from gpuopt.messages import no_attribute

        raise AttributeError(no_attribute("gpuopt", name, __all__))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
