"""What was given is looked at again: groups and arrays that a caller exchanges, arrays of two libraries that meet, numbers in the
place of arrays, and memory whose owner has given it up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import gpuopt
from gpuopt.optim.hyper import GROUP_OPTIONS
from samples import HOST_BACKENDS, refused

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
TITLES = ("GD", "SGD", "DGD", "Adagrad", "RMSprop", "Adam", "AdamW", "Lion")


def stepped(title: str, backend: str = "numpy", **options: Any) -> Any:
    opt = getattr(gpuopt, title)([np.ones(2), np.ones(3)], lr=0.1, backend=backend, **options)
    opt.step([np.ones(2), np.ones(3)])
    return opt


# ---------------------------------------------------------------------------------------------------- groups


@BACKENDS
@pytest.mark.parametrize("title", TITLES)
def test_a_hyperparameter_taken_out_of_its_group_is_missed(title: str, backend: str) -> None:
    opt = stepped(title, backend)
    group = opt.param_groups[0]
    for name in [n for n in group if n not in ("params", *GROUP_OPTIONS)]:
        before = [w.copy() for w in group["params"]]
        value = group.pop(name)
        with pytest.raises(gpuopt.InputError, match=rf"param_groups\[0\]: {name} is missing"):
            opt.step([np.ones(2), np.ones(3)])
        assert all(np.array_equal(a, b) for a, b in zip(before, group["params"], strict=True))
        group[name] = value
    opt.step([np.ones(2), np.ones(3)])


EXCHANGED: dict[str, Callable[[Any], Any]] = {
    "list": lambda opt: opt.param_groups[0].update(params=[np.ones(2), np.ones(3)]),
    "one of them": lambda opt: opt.param_groups[0]["params"].__setitem__(1, np.ones(3)),
    "one more": lambda opt: opt.param_groups[0]["params"].append(np.ones(3)),
    "one less": lambda opt: opt.param_groups[0]["params"].pop(),
    "none": lambda opt: opt.param_groups[0].pop("params"),
    "a group more": lambda opt: opt.param_groups.append({"params": [np.ones(1)]}),
    "no group": lambda opt: opt.param_groups.clear(),
    "other groups": lambda opt: setattr(opt, "param_groups", []),
}


@pytest.mark.parametrize("what", EXCHANGED)
def test_arrays_and_groups_that_nothing_would_update_are_refused(what: str) -> None:
    opt = stepped("AdamW")
    EXCHANGED[what](opt)
    with pytest.raises(gpuopt.InputError, match=r"param_groups.*: .*(that were given).*add_param_group"):
        opt.step([np.ones(2), np.ones(3)])


@BACKENDS
def test_groups_in_another_list_are_read(backend: str) -> None:
    opt, same = stepped("GD", backend), stepped("GD", backend)
    opt.param_groups = [{**group, "lr": 0.5, "params": list(group["params"])} for group in opt.param_groups]
    same.param_groups[0]["lr"] = 0.5
    for each in (opt, same):
        each.step([np.ones(2), np.ones(3)])
    assert opt.param_groups[0]["params"][0].tolist() == same.param_groups[0]["params"][0].tolist()


# ---------------------------------------------------------------------------------------------------- two libraries


class Other:
    """An array that speaks DLPack only."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def as_torch(array: Any) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


LIBRARIES: dict[str, Callable[[Any], Any]] = {"numpy": lambda a: a, "torch": as_torch, "dlpack": Other}
VALUES = np.arange(12.0).reshape(3, 4) - 5


def laid(order: str, dtype: Any) -> Any:
    """The values in a memory order."""
    values = VALUES.astype(dtype)
    wide = np.zeros((3, 8), dtype)
    wide[:, ::2] = values
    return {"C": values, "F": np.asfortranarray(values), "gaps": wide[:, ::2]}[order]


@BACKENDS
@pytest.mark.parametrize(
    "dtype", [np.float32, np.complex64, ml_dtypes.bfloat16], ids=["float32", "complex64", "bfloat16"]
)
@pytest.mark.parametrize(("of_p", "of_g"), [*itertools.product(LIBRARIES, [*LIBRARIES, "jax"])])
def test_gradients_and_masks_of_another_library_in_any_order(of_p: str, of_g: str, dtype: Any, backend: str) -> None:
    """Whatever the library, the memory is the one of the array held here."""
    if dtype is ml_dtypes.bfloat16 and "dlpack" in (of_p, of_g):
        dtype = np.float16  # NumPy's DLPack knows no bfloat16
    mask = VALUES > -4
    expected = np.where(mask, -2 * VALUES, 0)
    for of_m, (p_order, g_order) in zip(
        itertools.cycle(LIBRARIES), itertools.product("CF", ("C", "F", "gaps")), strict=False
    ):
        held = np.zeros_like(laid(p_order, dtype))
        values = laid(g_order, dtype)
        g = jnp.asarray(values) if of_g == "jax" else LIBRARIES[of_g](values)
        opt = gpuopt.GD(LIBRARIES[of_p](held), lr=1.0, backend=backend, mask=LIBRARIES[of_m](mask))
        opt.step(g)
        opt.step(g)
        assert np.array_equal(held.astype(np.complex128), expected), (of_m, p_order, g_order)


def test_values_that_are_not_in_memory_are_refused() -> None:
    """torch conjugates and negates when it reads."""
    g = torch.full((2,), 1 + 2j, dtype=torch.complex128).conj()
    for array in (g, g.imag, torch._neg_view(torch.ones(2, dtype=torch.float64))):
        with pytest.raises(gpuopt.InputError, match=r"resolve_conj\(\)"):
            gpuopt.GD(array.clone() if array is g else np.zeros(2), lr=1.0).step(array)
    with pytest.raises(gpuopt.InputError, match=r"params.*resolve_conj\(\)"):
        gpuopt.GD(g, lr=1.0)


# ---------------------------------------------------------------------------------------------------- numbers


@BACKENDS
def test_numbers_of_every_kind_for_one_element(backend: str) -> None:
    for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
        for number in (
            1.5,
            np.float32(1.5),
            np.float16(1.5),
            ml_dtypes.bfloat16(1.5),
            np.longdouble(1.5),
            np.int8(1),
            1,
        ):
            w = np.zeros(1, dtype)
            gpuopt.GD(w, lr=1.0, backend=backend).step(number)
            assert float(w[0]) == -float(number)


@BACKENDS
@pytest.mark.parametrize("number", [np.timedelta64(1, "s"), np.datetime64(1, "s"), np.bool_(True), True, np.str_("1"), "1",
                                    Fraction(1), 10**400, 1j, np.complex64(1)], ids=lambda n: type(n).__name__)  # fmt: skip
def test_what_is_no_number_for_one_element(number: Any, backend: str) -> None:
    opt = gpuopt.GD(np.zeros(1), lr=1.0, backend=backend)
    with refused(opt, gpuopt.GpuoptError, "gradient of params"):
        opt.step(number)


REMEDIES: dict[str, tuple[Any, Any, str]] = {
    "float64": (np.zeros(2, np.float32), np.zeros(2), ".astype('float32')"),
    "int": (np.zeros(2), np.zeros(2, int), ".astype('float64')"),
    "complex": (np.zeros(2, complex), np.zeros(2, np.complex64), ".astype('complex128')"),
    "torch": (torch.zeros(2), torch.zeros(2).double(), ".to(torch.float32)"),
    "torch int": (torch.zeros(2, dtype=torch.int64), None, ".to(torch.float32)"),
    "torch gaps": (torch.zeros(4)[::2], None, ".clone(memory_format=torch.contiguous_format)"),
    "long complex": (np.zeros(2, np.clongdouble), None, ".astype('complex64')"),
}


@pytest.mark.parametrize("what", REMEDIES)
def test_the_remedy_is_the_librarys_own(what: str) -> None:
    p, g, remedy = REMEDIES[what]
    with pytest.raises(gpuopt.GpuoptError) as caught:
        gpuopt.GD(p, lr=1.0).step(g)
    assert remedy in str(caught.value)


# ---------------------------------------------------------------------------------------------------- given up


@BACKENDS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_gradient_of_jax_that_was_deleted_is_refused(dtype: Any, backend: str) -> None:
    opt = gpuopt.GD(np.zeros(4, dtype), lr=1.0, backend=backend)
    g = jnp.ones(4, dtype)
    opt.step(g)
    g.delete()
    with refused(opt, gpuopt.InputError, "gradient of params", "has no memory: its owner has given it up"):
        opt.step(g)
