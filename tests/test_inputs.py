"""Bad input: every error comes before anything is written, and names the tensor or value, what was found, what is expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse

import gpuopt
from gpuopt import arrays
from gpuopt.launch.launcher import StepCounter
from gpuopt.optim.parameters import Parameter, check_overlap
from samples import HOST_BACKENDS, Array, bits, gradients, parameters, refused

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
TEN = [(3,)] * 10


def ten(backend: str = "numpy", **options: Any) -> Any:
    """AdamW on ten small tensors that has taken a step."""
    optimizer = gpuopt.AdamW(parameters(TEN), backend=backend, **options)
    optimizer.step(gradients(0, TEN))
    return optimizer


def read_only() -> Array:
    array = np.ones(3)
    array.flags.writeable = False
    return array


def expanded() -> Array:
    """Writable, three times the same element."""
    return np.lib.stride_tricks.as_strided(np.ones(1), (3,), (0,))


def misaligned() -> Array:
    return np.frombuffer(bytearray(25), np.float64, 3, offset=1)


# ---------------------------------------------------------------------------------------------------- parameters

PARAMETERS: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "integer": (lambda: np.ones(3, np.int64), gpuopt.DtypeError, ("dtype int64", "expected one of float64")),
    "unsigned": (lambda: np.ones(3, np.uint8), gpuopt.DtypeError, ("dtype uint8", "expected one of")),
    "boolean": (lambda: np.ones(3, bool), gpuopt.DtypeError, ("dtype bool", "expected one of")),
    "extended": (lambda: np.ones(3, np.longdouble), gpuopt.DtypeError, ("dtype", "expected one of")),
    "float8": (lambda: np.ones(3, ml_dtypes.float8_e4m3), gpuopt.DtypeError, ("dtype float8_e4m3", "expected one of")),
    "objects": (lambda: np.ones(3, object), gpuopt.DtypeError, ("dtype object", "expected one of")),
    "records": (lambda: np.ones(3, [("x", "f4")]), gpuopt.DtypeError, ("dtype", "expected one of")),
    "text": (lambda: np.array(["a"]), gpuopt.DtypeError, ("dtype", "expected one of")),
    "byte-swapped": (lambda: np.ones(3, ">f8" if np.little_endian else "<f8"), gpuopt.DtypeError, ("byte order",)),
    "sparse": (lambda: scipy.sparse.csr_matrix(np.eye(3)), gpuopt.DtypeError, ("csr_matrix", ".toarray()")),
    "sparse array": (lambda: scipy.sparse.coo_array(np.eye(3)), gpuopt.DtypeError, ("coo_array", ".toarray()")),
    "number": (lambda: 1.0, gpuopt.DtypeError, ("dense array", "float")),
    "NumPy number": (lambda: np.float64(1), gpuopt.DtypeError, ("dense array", "float64")),
    "nothing": (lambda: None, gpuopt.DtypeError, ("dense array", "NoneType")),
    "read-only": (read_only, gpuopt.InputError, ("read-only", "writable")),
    "broadcast": (lambda: np.broadcast_to(np.ones(1), (3,)), gpuopt.InputError, ("expected",)),
    "expanded": (expanded, gpuopt.InputError, ("(3,)", "(0,)", "overlaps itself", "dense")),
    "with gaps": (lambda: np.ones(6)[::2], gpuopt.InputError, ("(3,)", "(2,)", "leaves gaps", ".copy()")),
    "columns": (lambda: np.ones((3, 4))[:, :2], gpuopt.InputError, ("(3, 2)", "(4, 1)", "leaves gaps")),
    "misaligned": (misaligned, gpuopt.InputError, ("address", "multiple of 8")),
}


@pytest.mark.parametrize("what", PARAMETERS)
def test_parameter_that_cannot_be_used(what: str) -> None:
    make, error, words = PARAMETERS[what]
    good = np.ones(3)
    with pytest.raises(error) as caught:
        gpuopt.Adam({"w": [good, make()]}, backend="numpy")
    assert all(word in str(caught.value) for word in ("params['w'][1]", *words)), caught.value
    assert good.tolist() == [1, 1, 1]
    optimizer = ten()
    with refused(optimizer, error, "param_groups[1]['params']", *words):
        optimizer.add_param_group({"params": make()})


def overlaps() -> dict[str, list[Array]]:
    memory = np.arange(12.0)
    matrix = memory.reshape(3, 4)
    return {
        "the same array twice": [memory, memory],
        "views of the same memory": [memory[:6], memory[3:9]],
        "one inside another": [memory, matrix[1]],
        "by one element": [memory[:7], memory[6:]],
        "reversed": [memory[:6], memory[8:4:-1]],
        "another dtype": [memory[:2], memory.view(np.float32)[2:6]],
        "far apart in the list": [memory[:4], np.ones(3), memory[8:], np.ones(4), memory[3:5]],
    }


@pytest.mark.parametrize("what", overlaps())
def test_parameters_that_share_memory(what: str) -> None:
    params = overlaps()[what]
    with pytest.raises(gpuopt.InputError, match=r"params\[\d\] overlaps params\[\d\] in memory"):
        gpuopt.SGD(params, backend="numpy")
    with pytest.raises(gpuopt.InputError, match=r"param_groups\[\d\]\['params'\] overlaps .* in memory"):
        gpuopt.SGD([{"params": p} for p in params], backend="numpy")


def test_an_overlap_is_found_beside_arrays_of_another_device() -> None:
    """Addresses of two devices may interleave; a stranger between two tensors must not hide that they share memory."""
    views = [(0, 100, "cpu"), (8, 1, "cuda:0"), (16, 2, "cpu")]
    counter = StepCounter(0, 0, lambda step: {})
    parameters = [
        Parameter(f"tensor {k}", None, arrays.View(address, (size,), (1,), "float32", device), 0, counter)
        for k, (address, size, device) in enumerate(views)
    ]
    with pytest.raises(gpuopt.InputError, match="tensor 2 overlaps tensor 0"):
        check_overlap(parameters)
    check_overlap(parameters[1:])


def test_neighbours_in_memory_do_not_overlap() -> None:
    memory = np.zeros(12)
    params = [memory[4:8], memory[:4], memory[8:8], memory[8:]]
    gpuopt.SGD(params, lr=1.0, backend="numpy").step([np.full(len(p), -2.0) for p in params])
    assert memory.tolist() == [2.0] * 12


@pytest.mark.parametrize("empty", [[], {}, [[], {"a": []}], [{"params": []}]], ids=str)
def test_no_parameters(empty: Any) -> None:
    with pytest.raises(gpuopt.InputError, match="expected at least one array, found none"):
        gpuopt.SGD(empty, backend="numpy")


# ---------------------------------------------------------------------------------------------------- gradients

GRADIENTS: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "longer": (lambda: np.ones(4), gpuopt.InputError, ("shape (4,)", "expected (3,)")),
    "of another rank": (lambda: np.ones((3, 1)), gpuopt.InputError, ("shape (3, 1)", "expected (3,)")),
    "0-d": (lambda: np.array(1.0), gpuopt.InputError, ("shape ()", "expected (3,)")),
    "narrower": (lambda: np.ones(3, np.float32), gpuopt.DtypeError, ("float32", "float64")),
    "half": (lambda: np.ones(3, np.float16), gpuopt.DtypeError, ("float16", "float64")),
    "integer": (lambda: np.ones(3, np.int32), gpuopt.DtypeError, ("int32", "floating-point")),
    "boolean": (lambda: np.ones(3, bool), gpuopt.DtypeError, ("bool", "floating-point")),
    "byte-swapped": (lambda: np.ones(3, ">f8" if np.little_endian else "<f8"), gpuopt.DtypeError, ("byte order",)),
    "misaligned": (misaligned, gpuopt.InputError, ("address", "multiple of 8")),
    "sparse": (lambda: scipy.sparse.csr_matrix(np.eye(3)), gpuopt.DtypeError, ("csr_matrix", ".toarray()")),
    "a list": (lambda: [1.0, 2.0, 3.0], gpuopt.DtypeError, ("dense array", "list")),
    "a number": (lambda: 1.0, gpuopt.DtypeError, ("dense array", "float")),
}


@BACKENDS
@pytest.mark.parametrize("what", GRADIENTS)
def test_gradient_that_cannot_be_used(what: str, backend: str) -> None:
    """In tensor 7 of 10: nothing is written, tensors 1 to 6 included, and the next good step is as if nothing happened."""
    make, error, words = GRADIENTS[what]
    optimizer, undisturbed = ten(backend), ten(backend)
    bad = gradients(1, TEN)
    bad[6] = make()
    for _ in range(2):
        with refused(optimizer, error, "gradient of params[6]", *words):
            optimizer.step(bad)
    for one in (optimizer, undisturbed):
        one.step(gradients(2, TEN))
    assert bits(optimizer.state_dict()) == bits(undisturbed.state_dict())
    assert bits(optimizer.param_groups) == bits(undisturbed.param_groups)


def test_gradient_that_cannot_be_used_in_the_first_step() -> None:
    params = parameters(TEN)
    optimizer = gpuopt.AdamW(params, backend="numpy")
    with refused(optimizer, gpuopt.InputError, "gradient of params[6]"):
        optimizer.step([*gradients(0, TEN)[:6], np.ones(4), *gradients(0, TEN)[7:]])


def test_gradient_in_the_memory_of_a_parameter() -> None:
    memory = np.arange(40.0)
    params = [memory[:10], memory[10:20], memory[30:31]]
    good = [np.ones(10), np.ones(10), np.ones(1)]
    optimizer = gpuopt.SGD(params, momentum=0.9, backend="numpy")
    optimizer.step(good)
    cases = {
        "itself": (0, params[0], 0),
        "a copy of the view": (0, memory[:10], 0),
        "another parameter": (0, params[1], 1),
        "the last element": (0, memory[19:29], 1),
        "reversed": (1, memory[9::-1], 0),
        "with gaps": (0, memory[11:31:2], 1),
        "with a gap before the parameter": (1, memory[20:40:2], 2),
    }
    for index, grad, other in cases.values():
        grads = list(good)
        grads[index] = grad
        with refused(optimizer, gpuopt.InputError, f"gradient of params[{index}]", "memory", f"params[{other}]"):
            optimizer.step(grads)
    optimizer.step([memory[20:30], memory[20:30], good[2]])  # beside them, and the same for two: only read


class Elsewhere:
    """An array of a library of its own, on a GPU as far as anyone can tell."""

    def __init__(self, array: Array) -> None:
        self.array = array


def test_gradient_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def view(array: Elsewhere) -> arrays.View:
        return arrays.View(4096, array.array.shape, (1,), array.array.dtype.name, "cuda:0")

    kind = replace(arrays.KINDS[0], name="elsewhere", matches=lambda a: isinstance(a, Elsewhere), describe=view)
    monkeypatch.setattr(arrays, "KINDS", (kind, *arrays.KINDS))
    optimizer = ten()
    with refused(optimizer, gpuopt.InputError, "gradient of params[6]", "on cuda:0", "expected cpu"):
        optimizer.step([*gradients(0, TEN)[:6], Elsewhere(np.ones(3)), *gradients(0, TEN)[7:]])


STRUCTURES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "one too few": ({"a": [np.ones(2)], "b": np.ones(2)}, ("grads['a']", "expected 2 entries", "found 1")),
    "a missing key": ({"a": [np.ones(2)] * 2}, ("grads", "'a'", "'b'")),
    "a key too many": ({"a": [None] * 2, "b": None, "c": None}, ("grads", "'a'", "'b'", "'c'")),
    "a list for a dict": ([np.ones(2)] * 3, ("grads", "dict", "list")),
    "an array for a list": ({"a": np.ones((2, 2)), "b": np.ones(2)}, ("grads['a']", "2 entries", "ndarray")),
    "nothing": (None, ("grads", "dict", "NoneType")),
}


@pytest.mark.parametrize("what", STRUCTURES)
def test_gradients_of_another_structure(what: str) -> None:
    grads, words = STRUCTURES[what]
    optimizer = gpuopt.Adam({"a": [np.ones(2), np.ones(2)], "b": np.ones(2)}, backend="numpy")
    with refused(optimizer, gpuopt.InputError, *words):
        optimizer.step(grads)


@pytest.mark.parametrize(
    "grads", [[np.ones(2)], [np.ones(2)] * 3, {"params": np.ones(2)}, None], ids=["1", "3", "dict", "None"]
)
def test_gradients_for_another_number_of_groups(grads: Any) -> None:
    optimizer = gpuopt.Adam([{"params": np.ones(2)}, {"params": np.ones(2)}], backend="numpy")
    with refused(optimizer, gpuopt.InputError, "one entry for each of 2 groups"):
        optimizer.step(grads)


# ---------------------------------------------------------------------------------------------------- masks

MASKS = {
    "float": (np.ones(3), ("float64", "expected bool")),
    "longer": (np.ones(4, bool), ("(4,)", "(3,)")),
    "a list": ([True, False, True], ("expected",)),
}


@pytest.mark.parametrize("what", MASKS)
def test_mask_that_cannot_be_used(what: str) -> None:
    mask, words = MASKS[what]
    with pytest.raises(gpuopt.GpuoptError) as caught:
        gpuopt.SGD([np.ones(3), np.ones(3)], mask=[None, mask], backend="numpy")
    assert all(word in str(caught.value) for word in ("mask", *words)), caught.value


@pytest.mark.parametrize("mask", [[None], [None] * 3, np.ones(3, bool)], ids=["1", "3", "array"])
def test_mask_of_another_structure(mask: Any) -> None:
    for params in ([np.ones(3), np.ones(3)], [{"params": np.ones(3)}, {"params": np.ones(3)}]):
        with pytest.raises(gpuopt.InputError, match=r"mask.*expected"):
            gpuopt.SGD(params, mask=mask, backend="numpy")


def test_nan_is_no_bad_input_by_itself() -> None:
    """Without skip_nonfinite a NaN goes where the arithmetic takes it, and nowhere else."""
    p = np.ones(3)
    gpuopt.Adam(p, backend="numpy").step(np.array([1.0, math.nan, 1.0]))
    assert np.isnan(p).tolist() == [False, True, False]
