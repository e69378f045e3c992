"""What `self.state` shows of an optimizer, and whether someone changed it. Called by the optimizer; knows no rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpuopt.launch.launcher import Clock
from gpuopt.peek import Words

# The dtypes in which a step count is kept as it is found; another is replaced by one that torch would make.
DTYPES: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.int64: np.int64,
    torch.int32: np.int32,
}


def step_tensor(step: float, group: Mapping[str, Any]) -> torch.Tensor:
    """A step count as torch makes it in a group: float64 where that is the default, unless `fused` is asked for, else float32,
    which counts to 2^24.
    """
    wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    return torch.tensor(float(step), dtype=torch.float64 if wide else torch.float32)


def usable(tensor: Any) -> bool:
    """Whether a step count can be kept where it is."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.dtype in DTYPES
        and tensor.numel() == 1
        and tensor.data_ptr() % tensor.itemsize == 0 != tensor.data_ptr()
    )


class Field:
    """Step tensors of one dtype, read and written together, each where it lies.

    which: for each of them, the place of its clock among all.
    """

    def __init__(self, dtype: Any, addresses: NDArray[np.int64], which: list[int]) -> None:
        self.words = Words(addresses, np.dtype(dtype))
        self.which: Any = np.array(which) if len(set(which)) > 1 else which[0]
        self.expected = np.empty(len(addresses), dtype)

    def show(self, steps: Sequence[int]) -> None:
        """Write the counts of the clocks."""
        self.expected[...] = steps[self.which] if isinstance(self.which, int) else np.array(steps)[self.which]
        self.words.write(self.expected)

    def changed(self) -> bool:
        """Whether any of them is not what was written last."""
        found: bytes = self.words.read().tobytes()
        return found != self.expected.tobytes()


class Counts:
    """The step tensors that `self.state` shows, one for each parameter, which agree with clocks that parameters share.

    They are ordinary tensors, which others may write, move and replace. Whoever reads or writes them here has made sure that
    they lie where they lay.
    """

    def __init__(self, clocks: Sequence[Clock], tensors: Sequence[torch.Tensor]) -> None:
        self.tensors, self.of = list(tensors), list(clocks)
        self.clocks = list({id(clock): clock for clock in clocks}.values())
        place = {id(clock): k for k, clock in enumerate(self.clocks)}
        self.places = [tensor.data_ptr() for tensor in tensors]
        self.fields = []
        for dtype in {tensor.dtype for tensor in tensors}:
            mine = [k for k, tensor in enumerate(tensors) if tensor.dtype == dtype]
            addresses = np.array([self.places[k] for k in mine], np.int64)
            self.fields.append(Field(DTYPES[dtype], addresses, [place[id(clocks[k])] for k in mine]))
        self.show()

    def show(self) -> None:
        """Bring the counts into the tensors."""
        steps = [clock.step for clock in self.clocks]
        for field in self.fields:
            field.show(steps)
        self.shown = steps
        self.settled: dict[int, int] = {}  # what tensors show since then, by their places

    def changed(self) -> bool:
        """Whether someone else wrote into one of them."""
        return True in [field.changed() for field in self.fields]

    def settle(self) -> None:
        """Bring counts that came back from a GPU into the tensors that nobody has changed or moved."""
        place = {id(clock): step for clock, step in zip(self.clocks, self.shown, strict=True)}
        changed = False
        for k, (tensor, address, clock) in enumerate(zip(self.tensors, self.places, self.of, strict=True)):
            shown = self.settled.get(k, place[id(clock)])
            untouched = tensor.data_ptr() == address and bool((tensor == torch.full_like(tensor, shown)).all())
            if shown != clock.step and untouched:
                tensor.fill_(clock.step)
                self.settled[k] = clock.step
            changed |= not untouched
        if not changed:
            self.show()


class ShownState(dict[str, Any]):
    """One parameter's entry of `self.state`; appends to `edits` when someone puts something into it or takes it out.

    Copies and pickles are plain dicts. Made without `edits`, as tools do that rebuild a mapping by its type, it tells nobody
    until it is put into `self.state`.
    """

    def __init__(self, state: Mapping[str, Any], edits: list[str] | None = None) -> None:
        super().__init__(state)
        self.edits = [] if edits is None else edits

    def __reduce__(self) -> Any:
        return dict, (dict(self),)

    def __copy__(self) -> dict[str, Any]:
        return dict(self)


class ShownStates(defaultdict[Any, Any]):
    """`self.state` of an optimizer, which tells of edits as its entries do. Copies and pickles are plain.

    What is under keys that are no tensors is others', and stays as it is.
    """

    def __init__(self, states: Mapping[Any, Any], edits: list[str]) -> None:
        super().__init__(lambda: ShownState({}, edits), states)
        self.edits = edits
        self.watch()

    def __reduce__(self) -> Any:
        return defaultdict, (dict, dict(self))

    def __copy__(self) -> defaultdict[Any, Any]:  # type: ignore[override]
        return defaultdict(dict, self)

    copy = __copy__  # type: ignore[assignment]

    def watch(self) -> None:
        """Let every entry tell of edits from now on; those until now are forgotten."""
        for key, state in self.items():
            told = isinstance(state, ShownState) and state.edits is self.edits
            if isinstance(key, torch.Tensor) and isinstance(state, dict) and not told:
                self[key] = ShownState(state, self.edits)
        self.edits.clear()


def _telling(cls: type, name: str) -> None:
    change = getattr(cls, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.edits.append(name)
        return change(self, *args, **kwargs)

    method.__name__ = name
    setattr(cls, name, method)


for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    for _cls in (ShownState, ShownStates):
        _telling(_cls, _name)
