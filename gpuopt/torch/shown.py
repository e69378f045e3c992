"""What `self.state` shows of an optimizer, and whether someone changed it. Called by the optimizer; knows no rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from itertools import chain
from sys import getrefcount
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpuopt.launch.launcher import Clock
from gpuopt.peek import Words, contents

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


class ShownStates(defaultdict[Any, Any]):
    """`self.state` of an optimizer, which counts what is done to it and to its entries. Copies and pickles are plain.

    Entries are plain dicts, as torch's are, since `state_dict()` hands them out: nothing tells of what is put into them. So they
    are looked at, but only while someone may have one, which is after one was asked for, until no one refers to any.
    What is under keys that are no tensors is others', and stays as it is.
    """

    def __init__(self, states: Mapping[Any, Any]) -> None:
        super().__init__(dict, states)
        self.edits = 0
        self._note()

    def __reduce__(self) -> Any:
        return defaultdict, (dict, dict(self))

    def __copy__(self) -> defaultdict[Any, Any]:  # type: ignore[override]
        return defaultdict(dict, self)

    copy = __copy__  # type: ignore[assignment]

    def __getitem__(self, key: Any) -> Any:
        self._handed = True
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self._handed = True
        return super().get(key, default)

    def __iter__(self) -> Iterator[Any]:  # `dict(states)` asks for each entry where this is not dict's own
        return super().__iter__()

    def values(self) -> Any:
        return ValuesView(self)

    def items(self) -> Any:
        return ItemsView(self)

    def version(self) -> int:
        """A number that is another after anything was put in or taken out, here or in an entry."""
        if self.edits != self._noted_at:
            self._note()
        elif self._handed:
            if contents(self._flat()) != self._noted:
                self.edits += 1
                self._note()
            elif max(map(getrefcount, self._entries), default=0) <= ALONE:
                self._handed = False
        return self.edits

    def _note(self) -> None:
        """Entries as they are now are what later ones are compared with."""
        found = dict.items(self)
        self._entries = [state for key, state in found if isinstance(key, torch.Tensor) and isinstance(state, dict)]
        self._alive = self._flat()  # or others could take their addresses
        self._noted, self._noted_at = contents(self._alive), self.edits
        self._handed = True

    def _flat(self) -> list[Any]:
        return [*chain.from_iterable(self._entries), *chain.from_iterable(map(dict.values, self._entries))]


def _alone() -> int:
    """The references to an entry that only ShownStates refers to, as they are counted there."""
    entries: list[dict[str, Any]] = [{}]
    states = dict(enumerate(entries))
    return max(map(getrefcount, entries)) if states else 0


ALONE = _alone()


def _counted(name: str) -> None:
    change = getattr(ShownStates, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.edits += 1
        return change(self, *args, **kwargs)

    method.__name__ = name
    setattr(ShownStates, name, method)


for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    _counted(_name)
