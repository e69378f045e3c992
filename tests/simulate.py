"""Run as a program under NUMBA_ENABLE_CUDASIM=1 by test_numba_cuda.py: the Numba CUDA backend, whole steps, in the simulator.

Prints one line for each case that agrees bit for bit with NumPy and exits with an error at the first that does not.
"""

from __future__ import annotations

import sys

import numpy as np

from gpuopt import arrays, backends, rules
from gpuopt.launch.launcher import StepRequest
from launches import HYPER, OnGpu, make, one_of_its_kind, same_bits, simulated, variants
from simulator_runtime import SimulatedBackend

DTYPES = ("float32", "bfloat16", "float16", "float64")
# Every dtype plain and with options, over rules that differ in kind, of those that `make` can set up (`simulated`).
# Each rule's kernels, all of them, run as PTX elsewhere.
RULES = ("sgd", "lamb", "stableadamw", "lion", "adamw", "rprop", "lars", "ademamix")
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


if __name__ == "__main__":
    assert backends.missing("numba-cuda") is None, "the simulator needs no driver and no compiler"
    assert set(RULES) <= set(simulated(rules.NAMES)), "steps of others cannot be set up here"
    arrays.register(one_of_its_kind())
    for index, rule in enumerate(RULES):
        check(rule, DTYPES[index % 4], options=index >= 4)
    check("adamw", "float32", True, "bfloat16")  # three states that are rounded at random
    check("lion", "bfloat16", False, "bfloat16")
    check("sgd", "float16", False, "float32", "split8")
    check("sgd", "bfloat16", False, "float32", "kahan")
    sys.exit(0)
