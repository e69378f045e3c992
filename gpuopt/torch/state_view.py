"""`self.state` of an optimizer, which notices what others do to it and to its entries. Made by the optimizer; knows no rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from itertools import chain
from typing import Any

import torch

from gpuopt.native import objects
from gpuopt.native.objects import contents

HOLDERS = 2  # of an entry that nobody has been given: the view itself, and its list of entries


def no_one() -> None:
    """A reference to nothing."""


class StateView(defaultdict[Any, Any]):
    """`self.state` of an optimizer, which counts what is done to it and to its entries. Copies and pickles are plain.

    Entries are plain dicts, as torch's are, since `state_dict()` hands them out: nothing tells of what is put into them. So they
    are looked at, but only while someone may have one, which is after one was asked for, until no one refers to any.
    What is under keys that are no tensors is others', and stays as it is.
    """

    def __init__(self, states: Mapping[Any, Any]) -> None:
        super().__init__(dict, states)
        # A weak reference to what waits until entries hold what the last step has made of them, where they may not.
        self.settle: Callable[[], Callable[[], None] | None] = no_one
        self.edits = 0
        self._note()

    def __reduce__(self) -> Any:
        return defaultdict, (dict, dict(self))

    def __copy__(self) -> defaultdict[Any, Any]:  # type: ignore[override]
        return defaultdict(dict, self)

    copy = __copy__  # type: ignore[assignment]

    def __getitem__(self, key: Any) -> Any:
        self._hand_out()
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self._hand_out()
        return super().get(key, default)

    def _hand_out(self) -> None:
        self._handed_out = True
        settle = self.settle()
        if settle is not None:
            settle()

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
        elif self._handed_out:
            if contents(self._flat()) != self._noted:
                self.edits += 1
                self._note()
            elif objects.unshared(self._entries, HOLDERS):
                self._handed_out = False
        return self.edits

    def _note(self) -> None:
        """Entries as they are now are what later ones are compared with."""
        found = dict.items(self)
        self._entries = [state for key, state in found if isinstance(key, torch.Tensor) and isinstance(state, dict)]
        self._alive = self._flat()  # or others could take their addresses
        self._noted, self._noted_at = contents(self._alive), self.edits
        self._handed_out = True

    def _flat(self) -> list[Any]:
        return [*chain.from_iterable(self._entries), *chain.from_iterable(map(dict.values, self._entries))]


def _counted(name: str) -> None:
    change = getattr(StateView, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.edits += 1
        return change(self, *args, **kwargs)

    method.__name__ = name
    setattr(StateView, name, method)


for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    _counted(_name)
