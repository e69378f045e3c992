"""Run as a program under NUMBA_ENABLE_CUDASIM=1 by test_numba_cuda.py: the Numba CUDA backend, whole steps, in the simulator.

Prints one line for each case that agrees bit for bit with NumPy and exits with an error at the first that does not.
"""

from __future__ import annotations

import sys
from unittest import mock

import numpy as np

import gpuopt
from gpuopt import arrays, backends, rules
from gpuopt.launch.launcher import StepRequest
from launches import HYPER, OnGpu, make, one_of_its_kind, same_bits, simulated, variants
from simulator_runtime import SimulatedBackend

DTYPES = ("float32", "bfloat16", "float16", "float64")
# Every dtype, plain and with options, a rule that sums in each half, of those that `make` can set up (`simulated`). Each rule's
# kernels, in every format and option, run as PTX elsewhere: here it is shown that the simulator takes their text.
RULES = ("sgd", "lamb", "adamw", "lars")
SIZES = [1, 5, 0, 300, 1030]


def check(name: str, dtype: str, options: bool, state_format: str = "float32", param_format: str = "native") -> None:
    """Two steps by NumPy and by the simulator; with options the norm, the skip and the rows are decided by GPU kernels."""
    request = StepRequest(max_norm=1.0, check_finite=True, on_device=True) if options else StepRequest()
    made = variants(name, dtype, options, state_format, param_format)
    expected, counter, left = make(made, SIZES)
    found, device_clock, right = make(made, SIZES)
    defaults = {
        k: float(v) if type(v) is int else v for k, v in rules.get(name).hyperparameters.items()
    }  # as optimizers do
    given = defaults | HYPER | {"lr": 0.0078125, "beta1": 0.875}
    there = given | {"lr": OnGpu(0.0078125, "float64"), "beta1": OnGpu(0.875, "float32")}
    counter.environment, device_clock.environment = lambda step: given, lambda step: there if options else given
    simulator, reference = SimulatedBackend(), backends.get("numpy")
    for bad in (False, True, False):
        if options:
            for tensor in (left[3], right[3]):
                tensor["g"][299] = np.nan if bad else 0.25
        elif bad:
            continue
        reference.step([expected], request, [counter])
        simulator.step([found], request, [device_clock])
    skipped = simulator.synchronize([device_clock], found.shared)
    assert counter.step == device_clock.step == 5, (name, dtype, counter.step, device_clock.step)
    assert skipped == int(options), (name, dtype, skipped)
    assert same_bits(left, right), (name, dtype, options)
    print(f"{name} {dtype} {'options' if options else 'plain'} agrees", flush=True)


def check_blocks(name: str, state_format: str) -> None:
    """Two steps of an optimizer whose states are in blocks of rows, whole ones and broken ones."""
    simulator, get, found = SimulatedBackend(), backends.get, {}
    with (
        mock.patch.dict(backends.MODULES, {"simulated": "numpy"}),
        mock.patch.dict(backends.DEVICES, {"simulated": "cpu"}),
        mock.patch.object(backends, "get", lambda n, *rest: simulator if n == "simulated" else get(n, *rest)),
    ):
        for backend in ("numpy", "simulated"):
            rng = np.random.default_rng(0)
            params = [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 345), (2, 256))]
            made = gpuopt.create(name, params, lr=1e-2, backend=backend, state_format=state_format)
            for _ in range(2):
                made.step([rng.standard_normal(p.shape).astype(np.float32) for p in params])
            states = made.state_dict()["state"].values()
            found[backend] = [x.tobytes() for x in params]
            found[backend] += [np.asarray(v).tobytes() for state in states for v in state.values()]
    assert found["numpy"] == found["simulated"], (name, state_format)
    print(f"{name} {state_format} in blocks agrees", flush=True)


if __name__ == "__main__":
    assert backends.missing("numba-cuda") is None, "the simulator needs no driver and no compiler"
    assert set(RULES) <= set(simulated(rules.NAMES)), "steps of others cannot be set up here"
    arrays.register(one_of_its_kind())
    for index, rule in enumerate(RULES):
        check(rule, DTYPES[index], options=index >= 2)
    check("adamw", "float32", True, "bfloat16")  # three states that are rounded at random
    check("sgd", "float16", False, "float32", "split8")
    check_blocks("adamw", "int4")
    sys.exit(0)
