"""Torch's own table of optimizers as inputs for ours, and the same scenario run with torch's class and with ours.

The classes are those that both have, looked up each time, so an optimizer that is added later joins by itself. DIFFERENT is the one
list of what is not as in torch on purpose. Knows no rule by name, but for rows of that list.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch.testing._internal.common_optimizers import _get_optim_inputs_including_global_cliquey_kwargs, optim_db

import gpuopt.torch
from torch_samples import default_dtype


def takes_any_shape(cls: Any) -> bool:
    """Torch's Muon refuses all but matrices."""
    try:
        cls([torch.nn.Parameter(torch.zeros(3))])
    except ValueError:
        return False
    return True


def takes_empty(cls: Any) -> bool:
    """Torch's Adafactor divides by the number of elements."""
    p = torch.nn.Parameter(torch.zeros((0,) if takes_any_shape(cls) else (0, 1)))
    p.grad = torch.zeros_like(p)
    try:
        cls([p]).step()
    except ZeroDivisionError:
        return False
    return True


# All but those of matrices, which torch multiplies in bfloat16.
OURS = {
    name: made
    for name in gpuopt.torch.__all__
    if name.lower() in gpuopt.torch.optimizers()
    and ((made := getattr(gpuopt.torch, name)).twin or not hasattr(torch.optim, name))
}
SHARED = [info for info in optim_db if info.optim_cls.__name__ in OURS]
INFOS = [
    info for info in SHARED if takes_any_shape(info.optim_cls)
]  # the scenarios have vectors and scalars among the rest
CLASSES = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
HALVES = (torch.float16, torch.bfloat16)
FLAGS = ("foreach", "fused", "capturable", "differentiable")


@dataclass
class Case:
    """One way of making an optimizer: the torch class's row of the table, and keyword arguments for the constructor."""

    info: Any
    kwargs: dict[str, Any]
    desc: str
    tags: set[str] = field(default_factory=set)  # what the scenario is about, for DIFFERENT

    def dtype(self, dtype: Any) -> Any:
        """The dtype itself, or the one of the states where they are wider."""
        return torch.float32 if "wide" in self.tags and dtype in HALVES else dtype

    def make(self, cls: Any, params: Any, **more: Any) -> Any:
        return cls(params, **{**copy.deepcopy(self.kwargs), **more})


def cases(info: Any, *tags: str, differentiable: bool = False) -> Iterator[Case]:
    """Every configuration of the table on a CPU, with each of the flags that choose an implementation. Torch's list has `foreach`
    for GPUs only, though it is there on CPUs too.
    """
    skip = () if differentiable else ("differentiable",)
    for given in _get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info, skip=skip):
        yield Case(info, given.kwargs, given.desc, set(tags))
        chosen = any(given.kwargs.get(flag) for flag in ("fused", "differentiable"))
        if not chosen and not with_tensors(given.kwargs):
            yield Case(info, {**given.kwargs, "foreach": True}, f"{given.desc} & foreach", set(tags))


def eps_of(cls: Any, dtype: Any) -> dict[str, Any]:
    """Adafactor's eps in numbers: None stands for that of the parameter's dtype, which a reference's wider parameter has not."""
    parameter = inspect.signature(cls).parameters.get("eps")
    given = members(parameter.default) if parameter else ()
    return {"eps": tuple(torch.finfo(dtype).eps if e is None else e for e in given)} if None in given else {}


def with_tensors(kwargs: dict[str, Any]) -> bool:
    return any(isinstance(v, torch.Tensor) for value in kwargs.values() for v in members(value))


def members(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


@dataclass
class Outcome:
    """What came of a scenario: a tree of values, or what was raised; and the categories of the warnings."""

    value: Any
    error: Exception | None
    warned: set[str]


def outcome(scenario: Callable[..., Any], cls: Any, case: Case) -> Outcome:
    value, error = None, None
    torch.manual_seed(0)
    torch.set_warn_always(True)  # else some of torch's warnings come once in a process
    kept = any(state.cell for state in OURS[case.info.name].rule.states)  # numbers, as wide as a parameter of float64
    try:
        with warnings.catch_warnings(record=True) as caught, default_dtype(torch.float64 if kept else torch.float32):
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", "Sparse invariant checks")  # of how torch makes sparse tensors inside
            value = scenario(cls, case)
    except Exception as raised:
        error = raised
    finally:
        torch.set_warn_always(False)
    return Outcome(value, error, {w.category.__name__ for w in caught})


# ---------------------------------------------------------------------------------------------------- what differs


@dataclass
class Row:
    """applies: to which cases. reference: what torch is run with instead, if anything. expects: compares ours with torch's, as
    `same` does.
    """

    reason: str
    applies: Callable[[Case], Any]
    reference: Callable[[Case], Case] = lambda case: case
    expects: Callable[[Outcome, Outcome], str | None] = lambda found, expected: same(found, expected)


def demanded(case: Case) -> set[str]:
    """The flags of a case that torch's implementation of them would refuse, or be wrong with, here."""
    kwargs = case.kwargs
    found = set() if kwargs.get("capturable") and kwargs.get("differentiable") else {"capturable"} & set(kwargs)
    if kwargs.get("fused") and case.tags & {"complex", "strided", "sparse"}:
        found.add("fused")
    if kwargs.get("differentiable") and not kwargs.get("fused") and "flags" in case.tags:
        found.add("differentiable")
    if "differentiable" not in inspect.signature(case.info.optim_cls).parameters:  # of Adafactor
        found |= {"differentiable"} & set(kwargs)
    return found


def mixed(case: Case) -> bool:
    """Whether there are tensors of one number, with foreach or beside a number."""
    lr, betas = case.kwargs.get("lr"), members(case.kwargs.get("betas", ()))
    tensors = [isinstance(b, torch.Tensor) for b in betas]
    one = isinstance(lr, torch.Tensor) and lr.numel() == 1
    return len(set(tensors)) > 1 or bool(case.kwargs.get("foreach") and (one or any(tensors)))


def alone(case: Case) -> Case:
    """What torch is run with instead: without the flags, and with numbers in place of such tensors."""
    kwargs = {k: v for k, v in case.kwargs.items() if k not in demanded(case)}
    return replace(case, kwargs={k: as_number(v) for k, v in kwargs.items()} if mixed(case) else kwargs)


def as_number(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(as_number, value))
    return float(value) if isinstance(value, torch.Tensor) else value


def in_float32(found: Outcome, expected: Outcome) -> str | None:
    """Of lists of snapshots, torch's in float32: parameters alike to the digits that ours have; our states in float32."""
    if found.error is not None or expected.error is not None:
        return f"ours {found.error!r}, torch's {expected.error!r}"
    for ours, theirs in zip(found.value, expected.value, strict=True):
        dtypes = {v.dtype for s in ours[1].values() for k, v in s.items() if k != "step"}
        if not dtypes <= {torch.float32, torch.float64}:
            return f"states in {dtypes}"
        where = first(difference(p.to(q.dtype), q, digits=wide(p, q)) for p, q in zip(ours[0], theirs[0], strict=True))
        if where is not None or [list(s) for s in ours[1].values()] != [list(s) for s in theirs[1].values()]:
            return where or "other states"
    return None


def wide(p: Any, q: Any) -> float:
    """As many ulp of the wider dtype as a few of the narrower."""
    return 8 * torch.finfo(p.dtype).eps / torch.finfo(q.dtype).eps if p.is_floating_point() else 0


def takes_rows(found: Outcome) -> bool:
    """Whether nothing was wrong, but for a class that looks at whole tensors."""
    return found.error is None or isinstance(found.error, gpuopt.InputError)


def refused(found: Outcome, expected: Outcome) -> str | None:
    return None if isinstance(found.error, RuntimeError) else f"ours {found.error!r}"


DIFFERENT = {
    "sparse gradients": Row(
        "every class steps the rows that a sparse gradient has, as SparseAdam does, where torch's takes none but dense ones",
        lambda case: "sparse" in case.tags and not case.info.supports_sparse,
        expects=lambda found, expected: None if expected.error and takes_rows(found) else f"ours {found.error!r}",
    ),
    "one implementation": Row(
        "foreach, fused, capturable and differentiable choose among torch's implementations, each with demands of its own "
        "(fused takes no complex and no sparse tensors and on a CPU reads strided ones as if they were dense, foreach takes no "
        "tensors of one number, differentiable rounds to float32); here there is one, so a flag demands nothing, every class has "
        "capturable and differentiable, tensors and numbers may be mixed, and the result is that of torch without the flag",
        lambda case: demanded(case) or case.kwargs.get("capturable") or mixed(case),
        alone,
        lambda found, expected: None if found.error and expected.error else same(found, expected),
    ),
    "16-bit parameters": Row(
        "their states are float32, and they come out as a float32 parameter would, rounded: in 16 bits a second moment stops "
        "growing, and eps is 0",
        lambda case: "16-bit" in case.tags,
        lambda case: replace(case, tags=case.tags | {"wide"}),
        expects=in_float32,
    ),
    "devices": Row(
        "a gradient on another device than cpu and cuda is refused: torch goes through its steps on meta, which change nothing",
        lambda case: "meta" in case.tags,
        expects=refused,
    ),
    "initial values of groups": Row(
        "Adagrad's initial_accumulator_value in a group is that group's: torch takes the constructor's for every group",
        lambda case: "group" in case.tags and case.kwargs.get("initial_accumulator_value"),
        expects=lambda found, expected: None if found.error is None and same(found, expected) else "as torch",
    ),
    "mistakes": Row(
        "an infinite or NaN rate, with which torch makes every parameter NaN, is refused; so is a step of a group that holds a "
        "parameter twice, which torch warns will be an error",
        lambda case: case.tags & {"twice", "infinite"},
        expects=lambda found, expected: None if isinstance(found.error, ValueError) else f"ours {found.error!r}",
    ),
}
assert len(DIFFERENT) <= 6


# ---------------------------------------------------------------------------------------------------- comparison


def compare(scenario: Callable[..., Any], case: Case, fails: bool) -> str | None:
    """How our outcome differs from torch's, None where it does not. Torch itself is to raise nothing unless `fails`."""
    row = next((row for row in DIFFERENT.values() if row.applies(case)), Row("", lambda case: True))
    expected = outcome(scenario, case.info.optim_cls, row.reference(case))
    found = outcome(scenario, OURS[case.info.name], case)
    if expected.error is not None and not fails:
        raise expected.error
    return row.expects(found, expected)


def same(found: Outcome, expected: Outcome) -> str | None:
    if found.error is not None or expected.error is not None:
        alike = expected.error is not None and isinstance(found.error, type(expected.error))
        return None if alike else f"ours {found.error!r}, torch's {expected.error!r}"
    if found.warned != expected.warned:
        return f"warns {found.warned}, torch {expected.warned}"
    return difference(found.value, expected.value)


def difference(found: Any, expected: Any, path: str = "", digits: float = 64) -> str | None:
    """Where two trees differ, None where they do not. Tensors by so many ulp of their largest value, because torch rounds in
    another order and some scenarios take twenty steps; all else exactly.
    """
    if isinstance(expected, dict):
        if list(found) != list(expected):
            return f"{path}: keys {list(found)}, torch {list(expected)}"
        return first(difference(found[k], expected[k], f"{path}.{k}", digits) for k in expected)
    if isinstance(expected, (list, tuple)):
        if len(found) != len(expected):
            return f"{path}: {found}, torch {expected}"
        pairs = enumerate(zip(found, expected, strict=True))
        return first(difference(a, b, f"{path}[{k}]", digits) for k, (a, b) in pairs)
    if not isinstance(expected, torch.Tensor) or not isinstance(found, torch.Tensor):
        return None if type(found) is type(expected) and found == expected else f"{path}: {found!r}, torch {expected!r}"
    if not expected.shape and found.is_floating_point() and expected.is_floating_point() and not path.endswith(".step"):
        # One number beside a parameter: torch keeps it in the default dtype, we as wide as the parameter.
        narrow = min(found.dtype, expected.dtype, key=lambda dtype: dtype.itemsize)
        found, expected = found.to(narrow), expected.to(narrow)
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return f"{path}: {found.dtype} {found.shape}, torch {expected.dtype} {expected.shape}"
    if not expected.numel():
        return None
    eps = torch.finfo(expected.dtype).eps if expected.is_floating_point() or expected.is_complex() else 0
    off = float((found.detach() - expected.detach()).abs().max()) / max(float(expected.detach().abs().max()), 1e-30)
    return None if off <= digits * eps else f"{path}: off by {off}"


def first(found: Iterator[str | None]) -> str | None:
    return next((f for f in found if f is not None), None)


def check(scenario: Callable[[Any, Case], Any], found: Iterable[Case], fails: bool = False) -> None:
    """scenario: of a class and a Case -> a tree of values. Fails with every case in which ours differs."""
    wrong = [
        f"{case.info.name}({case.kwargs}): {w}" for case in found if (w := compare(scenario, case, fails)) is not None
    ]
    assert not wrong, "\n".join(wrong)


# ---------------------------------------------------------------------------------------------------- parts of scenarios


def snapshot(opt: Any, params: Any) -> Any:
    """Parameters and states as they are now, and the groups, but for their parameters and the flags that change nothing. Torch
    writes None for a state that it does not keep.
    """
    saved = opt.state_dict()
    states = {k: {n: detached(v) for n, v in s.items() if v is not None} for k, s in saved["state"].items()}
    groups = [{k: v for k, v in group.items() if k not in ("params", *FLAGS)} for group in saved["param_groups"]]
    return [detached(list(params)), {k: s for k, s in states.items() if s}, copy.deepcopy(groups)]


def detached(value: Any) -> Any:
    if isinstance(value, list):
        return [detached(v) for v in value]
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def layer(dtype: Any = torch.float64, contiguous: bool = True) -> tuple[Any, Any, Any]:
    """Weight, bias and input of a linear layer, drawn anew."""
    if contiguous:
        weight, bias = torch.randn(10, 5, dtype=dtype), torch.randn(10, dtype=dtype)
    else:
        weight, bias = torch.randn(10, 5, 2, dtype=dtype)[..., 0], torch.randn(10, 2, dtype=dtype)[..., 0]
    return torch.nn.Parameter(weight), torch.nn.Parameter(bias), torch.randn(5, dtype=dtype)


def closure_of(opt: Any, weight: Any, bias: Any, x: Any) -> Callable[[], Any]:
    def closure() -> Any:
        opt.zero_grad()
        loss = (weight.mv(x) + bias).pow(2).sum()
        loss.backward()
        return loss

    return closure


def model_of(dtype: Any) -> Any:
    linear, sigmoid = torch.nn.Linear, torch.nn.Sigmoid
    return torch.nn.Sequential(linear(2, 3), sigmoid(), linear(3, 1), sigmoid()).to(dtype)
