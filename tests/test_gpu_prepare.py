"""`prepare` on the device, in float64, of the rules of this library and of rules of a user's own. Marked `gpu`.

A product and a sum in it must be rounded twice, as in Python: the driver of tests/driver faults where ptxas may fuse them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import maximum, minimum, rule, sqrt, where
from test_gpu import to_cupy

pytestmark = pytest.mark.gpu
BACKENDS = ("cupy", "numba-cuda")


@rule()
def polynomial(p, g, *, lr, rate, drift):
    p = p - rate * g + drift
    return p


@polynomial.prepare
def _(step, *, lr, a=0.3, b=0.7):
    x = a * step + b
    y = x * x - lr * b
    return {"rate": lr * (y + a * b), "drift": 1e-3 * x - 1e-4 * step * a}


@rule(state=("m",))
def horner(p, g, m, *, lr, beta, rate, decay):
    m = beta * m + (1 - beta) * g
    p = p * decay - rate * m
    return p, m


@horner.prepare
def _(step, *, lr, beta, wd=0.01):
    t = 1.0 / (step + 1)
    series = ((0.5 * t - 0.25) * t + 0.125) * t - 1.0
    correction = 1 - beta**step
    return {"rate": -lr * series / correction, "decay": 1 - lr * wd * (1 - t * t)}


@rule()
def choosing(p, g, *, lr, rate):
    p = p - rate * g
    return p


@choosing.prepare
def _(step, *, lr, warm=3.0, low=0.1):
    early = low + (1 - low) * step / warm
    late = sqrt(maximum(low, 1.0 - 0.01 * step * step - low * step))
    return {"rate": lr * where(step < warm, early, late) - minimum(low, lr) * lr}


RULES = {"polynomial": polynomial, "horner": horner, "choosing": choosing}
HYPER: dict[str, dict[str, Any]] = {"horner": {"beta": 0.9}}
DEVICE = {"norm": {"max_grad_norm": 1.0}, "skipping": {"skip_nonfinite": True}, "capturable": {"capturable": True}}


@pytest.mark.parametrize("options", DEVICE.values(), ids=DEVICE)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", RULES)
def test_a_prepare_of_ones_own_gives_the_bits_of_python(name: str, dtype: str, options: dict[str, Any]) -> None:
    made = np.random.default_rng(0).standard_normal((4, 100)).astype(dtype)
    found = []
    for backend in ("numpy", *BACKENDS):
        param = made[0].copy() if backend == "numpy" else to_cupy(made[0])
        given = {"lr": 0.0123, **HYPER.get(name, {}), **options}
        opt = gpuopt.optimizer(RULES[name], [param], backend=backend, **given)
        for _ in range(2):
            for g in made[1:]:
                opt.step([g if backend == "numpy" else to_cupy(g)])
        found.append(param.tobytes() if backend == "numpy" else param.get().tobytes())
    assert found[0] == found[1] == found[2]
