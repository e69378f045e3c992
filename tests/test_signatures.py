"""Where a user finds the optimizers: classes, signatures, `create`, `optimizer`, `make_optimizer`, `kernel_source`."""

from __future__ import annotations

import ast
import inspect
import math
import re
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
from gpuopt.source import parts, program
from samples import bits
from summing_rules import HYPER, RULES

LR, WD, EPS = {"lr": 1e-3}, {"weight_decay": 0.0}, {"eps": 1e-8}
ADAM = LR | {"betas": (0.9, 0.999)} | EPS | WD
BENDING: dict[str, Any] = {"adaptive_clip": None, "cautious": False, "clip_update_rms": None, "radial_brake": None}
BENDING |= {"update_floor": None, "update_norm": None, "row_update_floor": None, "hyperball": False}
BENDING |= {"ema_decay": None, "tail_ema": None, "lookahead": None, "anchor": None}
SIGNATURES = {
    "GD": {"lr": inspect.Parameter.empty} | WD,
    "SGD": LR | {"momentum": 0.0, "dampening": 0.0} | WD | {"nesterov": False},
    "DGD": {"lr": inspect.Parameter.empty, "lr_decay": 0.9} | WD,
    "Adagrad": {"lr": 1e-2, "lr_decay": 0.0} | WD | {"initial_accumulator_value": 0.0, "eps": 1e-10},
    "RMSprop": {"lr": 1e-2, "alpha": 0.99} | EPS | WD | {"momentum": 0.0, "centered": False},
    "Adam": ADAM | {"amsgrad": False, "decoupled_weight_decay": False},
    "AdamW": ADAM | {"weight_decay": 1e-2, "amsgrad": False},
    "Lion": {"lr": 1e-4, "betas": (0.9, 0.99)} | WD,
    "Adadelta": {"lr": 1.0, "rho": 0.9, "eps": 1e-6} | WD,
    "Adamax": ADAM | {"lr": 2e-3},
    "RAdam": ADAM | {"decoupled_weight_decay": False},
    "SignSGD": LR | WD,
    "Signum": LR | {"momentum": 0.9} | WD,
    "Tiger": LR | {"beta": 0.965, "weight_decay": 0.01},
    "AdEMAMix": LR
    | {"betas": (0.9, 0.999, 0.9999), "alpha": 2.0, "alpha_warmup": 0.0, "beta3_warmup": 0.0} | EPS | WD,
    "Adan": LR | {"betas": (0.98, 0.92, 0.99)} | EPS | WD | {"no_prox": False},
    "AdaBelief": ADAM | {"eps": 1e-16},
    "ADOPT": ADAM | {"betas": (0.9, 0.9999), "eps": 1e-6, "decouple": False},
    "LaProp": ADAM | {"lr": 4e-4, "eps": 1e-15},
    "Grams": ADAM | {"eps": 1e-6},
    "LAMB": LR
    | {"bias_correction": True, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01, "grad_averaging": True}
    | {"max_grad_norm": 1.0, "trust_clip": False, "always_adapt": False},
    "LARS": {"lr": 1.0, "momentum": 0.0, "dampening": 0.0}
    | WD | {"nesterov": False, "trust_coeff": 1e-3} | EPS | {"trust_clip": False, "always_adapt": False},
    "NovoGrad": LR | {"betas": (0.95, 0.98)} | EPS | WD | {"grad_averaging": False, "amsgrad": False},
    "StableAdamW": {"lr": inspect.Parameter.empty, "betas": (0.9, 0.99), "weight_decay": 0.01, "eps": 1e-6},
    "AdamMini": ADAM,
    "AdamP": ADAM | {"delta": 0.1, "wd_ratio": 0.1, "nesterov": False},
    "MARS": {"lr": 3e-3, "betas": (0.95, 0.99)}
    | EPS | WD | {"amsgrad": False, "gamma": 0.025, "mars_type": "mars-adamw"},
    "Prodigy": {"lr": 1.0, "betas": (0.9, 0.999)} | EPS | WD
    | {"decouple": True, "use_bias_correction": False, "safeguard_warmup": False}
    | {"d0": 1e-6, "d_coef": 1.0, "growth_rate": math.inf},
    "Yogi": ADAM | {"lr": 1e-2, "eps": 1e-3, "initial_accumulator_value": 1e-6},
    "NAdam": ADAM | {"lr": 2e-3, "momentum_decay": 4e-3, "decoupled_weight_decay": False},
    "ASGD": {"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6} | WD,
    "Rprop": {"lr": 1e-2, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50)},
    "QHAdam": LR | {"betas": (0.9, 0.999), "nus": (1.0, 1.0)} | EPS | WD | {"decouple_weight_decay": False},
    "FOCUS": {"lr": 1e-2, "betas": (0.9, 0.999), "gamma": 0.1} | WD,
    "MADGRAD": {"lr": 1e-2, "momentum": 0.9} | WD | {"eps": 1e-6, "decouple_decay": False},
    "ScheduleFreeSGD": {"lr": 1.0, "momentum": 0.9} | WD | {"warmup_steps": 0, "r": 0.0, "weight_lr_power": 2.0},
    "ScheduleFreeAdamW": ADAM | {"lr": 2.5e-3, "warmup_steps": 0, "r": 0.0, "weight_lr_power": 2.0},
    "ScheduleFreeRAdam": ADAM | {"lr": 2.5e-3, "r": 0.0, "weight_lr_power": 2.0, "silent_sgd_phase": True},
    "SophiaG": {"lr": 1e-4, "betas": (0.965, 0.99), "rho": 0.04, "weight_decay": 0.1, "bs": 5120},
    "AdamAtan2": {"lr": 1e-4, "betas": (0.9, 0.99)} | WD | {"a": 1.27, "b": 1.0},
    "Adafactor": {"lr": 1e-2, "beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0} | WD,
    "AdafactorT5": {"lr": 1.0, "eps": (1e-30, 1e-3), "clip_threshold": 1.0, "decay_rate": -0.8, "momentum": 0.0}
    | WD
    | {"scale_parameter": True, "relative_step": True, "warmup_init": False},
    "CAME": {"lr": 2e-4, "betas": (0.9, 0.999, 0.9999), "eps": (1e-30, 1e-16), "clip_threshold": 1.0} | WD,
}  # fmt: skip
NS = {"ns_coefficients": "keller", "ns_steps": None}
REST = {"adamw_betas": (0.9, 0.95), "adamw_eps": 1e-8}
SCALED = {"nesterov": True} | NS | {"adjust_lr_fn": None}
OF_MATRICES = {
    "Muon": LR | {"weight_decay": 0.1, "momentum": 0.95} | SCALED | REST,
    "NorMuon": {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "second_momentum": 0.95}
    | SCALED
    | {"eps": 1e-10}
    | REST,
    "AdaMuon": {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.95, "nesterov": True} | NS | EPS | REST,
    "Muon2": {"lr": 0.1, "weight_decay": 0.0125, "momentum": 0.95, "second_momentum": 0.95}
    | SCALED
    | {"eps": 1e-10}
    | REST,
    "NAMO": {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.95, "second_momentum": 0.95} | SCALED | EPS | REST,
    "Scion": {"lr": 2**-12, "momentum": 0.1, "scale": 50.0, "unconstrained": False} | NS,
    "APOLLO": ADAM
    | {"eps": 1e-6, "rank": 256, "scale": 1.0, "scale_type": "channel", "update_proj_gap": 200, "norm_growth": 1.01},
    "Dion2": {"lr": 0.01, "weight_decay": 0.01, "fraction": 0.25, "ef_decay": 0.95}
    | {"ns_coefficients": "polar_express", "ns_steps": None, "adjust_lr_fn": "rms_to_rms"}
    | REST,
    "Kron": {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0, "precond_lr": 0.1, "precond_init_scale": 1.0}
    | {"max_size_triangular": 8192, "max_prob": 1.0, "min_prob": 0.03, "prob_decay": 0.001, "flat_start": 500}
    | REST,
    "SOAP": {"lr": 3e-3, "weight_decay": 0.01, "betas": (0.95, 0.95), "shampoo_beta": -1.0}
    | EPS
    | {"precondition_frequency": 10, "max_precond_dim": 10000, "correct_bias": True},
    "SOAPMuon": {"lr": 0.0375, "weight_decay": 0.0, "momentum": 0.95, "second_momentum": 0.9, "shampoo_beta": -1.0}
    | {"nesterov": True, "eps": 1e-8, "precondition_frequency": 1, "max_precond_dim": 10000}
    | {"ns_coefficients": "converging", "ns_steps": None, "adjust_lr_fn": None}
    | REST,
    "Shampoo": {"lr": 1e-3, "weight_decay": 0.01, "betas": (0.9, 0.999), "shampoo_beta": -1.0}
    | {"eps": 1e-8, "exponent": 0.25, "matrix_eps": 1e-12}
    | {"precondition_frequency": 10, "max_precond_dim": 8192},
    "SPlus": {"lr": 0.1, "weight_decay": 0.01, "betas": (0.9, 0.999), "precondition_frequency": 100}
    | {"max_precond_dim": 10000, "nonstandard_constant": 1e-3},
}
KEPT = {
    "max_precond_dim",
    "rank",
    "fraction",
    "max_size_triangular",
}  # of rules whose products keep states of whole matrices
WHOLE = [title for title, own in OF_MATRICES.items() if KEPT & own.keys()]
SIGNATURES |= OF_MATRICES
NAMED = {("Muon", "ns_coefficients"), ("Muon", "ns_steps")}  # torch has the numbers
SHARED = [
    "backend",
    "state_format",
    "param_format",
    "max_grad_norm",
    "grad_scale",
    "skip_nonfinite",
    "mask",
    "bounds",
    "weight_decay_mask",
    "matrices",
    "rest",
    "capturable",
    "seed",
    "state_device",
]


def test_the_list_of_names() -> None:
    assert gpuopt.optimizers() == sorted(title.lower() for title in SIGNATURES)


@pytest.mark.parametrize("title", SIGNATURES)
def test_class_signature_and_create(title: str) -> None:
    """Names, order and defaults are torch's where torch has the optimizer; by name and by class it is the same."""
    cls = getattr(gpuopt, title)
    assert (
        issubclass(cls, gpuopt.Optimizer) and cls.__name__ == cls.__qualname__ == title and cls.__module__ == "gpuopt"
    )
    own = SIGNATURES[title] | {"maximize": False, "l1": 0.0, "clip_value": None}
    own |= ({} if "weight_decay" in own else WD) | {"weight_decay_mode": None, "lr_max": None} | BENDING
    own |= {"matrix": True} if title in OF_MATRICES else {}
    own |= {"split_heads": 1} if title in OF_MATRICES and title not in WHOLE else {}
    parameters_of = inspect.signature(cls).parameters
    assert list(parameters_of) == ["params", *own, *(name for name in SHARED if name not in own)]
    assert {name: parameters_of[name].default for name in own} == own
    results = []
    for make in (cls, lambda p, **options: gpuopt.create(title, p, **options)):
        p = np.linspace(-1, 1, 5)
        make(p, lr=0.1, backend="numpy").step(np.linspace(1, 2, 5))
        results.append(bits(p))
    assert results[0] == results[1]


def test_defaults_are_those_of_torch() -> None:
    for title in SIGNATURES:
        theirs = getattr(torch.optim, title, None)
        for name, parameter in inspect.signature(theirs).parameters.items() if theirs else ():
            if name in SIGNATURES[title] and (title, name) not in NAMED:
                assert inspect.signature(getattr(gpuopt, title)).parameters[name].default == parameter.default, (
                    title,
                    name,
                )


def test_positional_hyperparameters() -> None:
    assert gpuopt.Adam(np.ones(3), 0.25, (0.5, 0.75), backend="numpy").param_groups[0]["betas"] == (0.5, 0.75)


def test_unknown_optimizer_lists_the_names() -> None:
    with pytest.raises(
        gpuopt.InputError, match=r"unknown optimizer 'adamx': expected one of adabelief, .*adamw, .*lion"
    ):
        gpuopt.create("adamx", np.ones(3))
    with pytest.raises(AttributeError, match="no attribute 'AdamX'"):
        gpuopt.AdamX  # noqa: B018


def test_repr_names_optimizer_backend_and_values() -> None:
    text = repr(gpuopt.AdamW([{"params": np.ones(3)}, {"params": np.ones(2), "lr": 0.5}], backend="numpy"))
    assert all(
        word in text for word in ("AdamW", "numpy", "group 0: 1 tensors", "lr=0.001", "lr=0.5", "weight_decay=0.01")
    )


@pytest.mark.parametrize("name", gpuopt.optimizers())
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("backend", ["numpy", "numba", "cuda", "cupy", "numba-cuda"])
def test_kernel_source(name: str, dtype: str, backend: str) -> None:
    text = gpuopt.kernel_source(name, backend=backend, param_dtype=dtype, max_grad_norm=1.0, mask=True, bounds=True)
    if backend in ("cuda", "cupy"):
        assert 'extern "C" __global__' in text and "gpuopt_update" in text
        assert f"rules/{name}.py" in text, "#line points at the rule"
        assert "#include" not in text, "headers are pasted in"
        update = text[text.index("struct Update") :]
        assert all(name in update for name in ("mask", "lower", "upper"))
    else:
        functions = {n.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)}
        assert functions & ({name} if backend == "numpy" else {"walk"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "metal"}, ("backend = 'metal'", "numpy", "numba", "cuda", "cupy", "numba-cuda")),
        ({"part": "everything"}, ("part = 'everything'", "sums, prepare, all_tensors, update")),
        ({"param_dtype": "int8"}, ("param_dtype = 'int8'", "float64", "bfloat16")),
        ({"grad_dtype": "int8"}, ("grad_dtype = 'int8'", "float32", "bfloat16")),
        ({"param_dtype": "float64", "grad_dtype": "float32"}, ("grad_dtype = 'float32'", "float64")),
        ({"state_format": "float99"}, ("state_format", "float99")),
    ],
    ids=str,
)
def test_kernel_source_refuses(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(gpuopt.InputError) as caught:
        gpuopt.kernel_source("adamw", **options)
    assert all(word in str(caught.value) for word in words), caught.value


FUNCTIONS = {"sums": "reduce", "prepare": "prepare", "all_tensors": "all_tensors"}


def function_of(part: str) -> str:
    """The function in the text of a part."""
    return FUNCTIONS.get(part) or re.sub(r"_\d+$", "", part)


@pytest.mark.parametrize("part", FUNCTIONS)
@pytest.mark.parametrize("backend", ["numpy", "numba", "cuda", "cupy", "numba-cuda"])
def test_kernel_source_of_the_other_parts(backend: str, part: str) -> None:
    if backend in ("numpy", "numba"):
        with pytest.raises(gpuopt.InputError, match=f"part = '{part}'"):
            gpuopt.kernel_source("adamw", backend=backend, part=part)
        return
    text = gpuopt.kernel_source("adamw", backend=backend, part=part)
    assert (f"\ndef {function_of(part)}(" if backend == "numba-cuda" else f"gpuopt_{function_of(part)}(") in text


@pytest.mark.parametrize("backend", ["numba", "cuda", "numba-cuda"])
def test_kernel_source_of_the_passes_of_a_rule_that_sums(backend: str) -> None:
    """In the order in which a step runs them; NumPy runs the rule as it is."""
    expected = {
        "trusting": ["reduce_1", "per_tensor_1", "reduce_2", "per_tensor_2"],
        "distant": ["reduce_1", "per_tensor_1", "per_tensor_2", "reduce_2", "per_tensor_3", "per_tensor_4"],
        "lined": [f"{kind}_{k}" for k in (1, 2, 3) for kind in ("reduce", "per_tensor", "per_matrix")],
    }
    decided = [] if backend == "numba" else ["sums", "prepare"]
    joined = [] if backend == "numba" else ["all_tensors"]
    for name, rule in RULES.items():
        found = parts(program(rule, **HYPER[name]), backend)
        assert list(found) == [*decided, *expected[name], *joined, "update"]
        for part in expected[name]:
            text = gpuopt.kernel_source(rule, backend=backend, part=part, **HYPER[name])
            begin = "gpuopt_" if backend == "cuda" else r"\ndef "
            assert re.search(rf"{begin}{function_of(part)}(_along)?\(", text)
    assert list(parts(program(RULES["trusting"], **HYPER["trusting"]), "numpy")) == ["update"]
