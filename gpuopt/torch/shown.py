"""What `self.state` shows of an optimizer, and whether someone changed it. Called by the optimizer; knows no rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from gpuopt.launch.launcher import Clock


class StepTensor:
    """A step count as `self.state` shows it, to all parameters that share the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.shown = clock, clock.step
        # As torch makes them: float64 where that is the default, else float32, which counts to 2^24.
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        self.tensor = torch.tensor(float(clock.step), dtype=dtype, device="cpu")
        self.number = self.tensor.numpy()  # the same memory: torch's own fill_ and item take 20 times as long
        self.address = self.tensor.data_ptr()

    def show(self) -> None:
        """Bring the count into the tensor."""
        if self.shown != self.clock.step:
            self.shown = self.clock.step
            self.number[...] = self.shown

    def changed(self) -> bool:
        """Whether someone else gave the tensor other memory, or wrote another count into it."""
        return self.tensor.data_ptr() != self.address or bool(self.number != self.shown)


class ShownState(dict[str, Any]):
    """One parameter's entry of `self.state`; appends to `edits` when someone puts something into it or takes it out.

    Copies and pickles are plain dicts.
    """

    def __init__(self, state: dict[str, Any], edits: list[str]) -> None:
        super().__init__(state)
        self.edits = edits

    def __reduce__(self) -> Any:
        return dict, (dict(self),)

    def __copy__(self) -> dict[str, Any]:
        return dict(self)


class ShownStates(defaultdict[Any, Any]):
    """`self.state` of an optimizer, which tells of edits as its entries do. Copies and pickles are plain."""

    def __init__(self, states: Mapping[Any, dict[str, Any]], edits: list[str]) -> None:
        super().__init__(lambda: ShownState({}, edits), {k: ShownState(v, edits) for k, v in states.items()})
        self.edits = edits

    def __reduce__(self) -> Any:
        return defaultdict, (dict, dict(self))

    def __copy__(self) -> defaultdict[Any, Any]:  # type: ignore[override]
        return defaultdict(dict, self)

    copy = __copy__  # type: ignore[assignment]

    def watch(self) -> None:
        """Let every entry tell of edits from now on; those until now are forgotten."""
        for key, state in self.items():
            if not isinstance(state, ShownState) or state.edits is not self.edits:
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
