"""Step counts as `self.state` shows them: ordinary tensors, kept equal to the counters of the engine.

Called by the optimizer and its change trackers; knows no rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpuopt.launch.launcher import StepCounter
from gpuopt.native.memory import Words

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


class EqualDtypes:
    """Step tensors of one dtype, read and written together, each where it lies.

    which: for each of them, the place of its counter among all.
    """

    def __init__(self, dtype: Any, addresses: NDArray[np.int64], which: list[int]) -> None:
        self.words = Words(addresses, np.dtype(dtype))
        self.which: Any = np.array(which) if len(set(which)) > 1 else which[0]
        self.expected = np.empty(len(addresses), dtype)

    def write(self, steps: Sequence[int]) -> None:
        """Write the counts of the counters."""
        self.expected[...] = steps[self.which] if isinstance(self.which, int) else np.array(steps)[self.which]
        self.words.write(self.expected)

    def changed(self) -> bool:
        """Whether any of them is not what was written last."""
        found: bytes = self.words.read().tobytes()
        return found != self.expected.tobytes()


class StepTensors:
    """The step tensors of parameters, one each, and the counters that they follow, which parameters may share.

    Others may write, move and replace the tensors. Whoever reads or writes them here has made sure that they lie where they lay.
    """

    def __init__(self, counters: Sequence[StepCounter], tensors: Sequence[torch.Tensor]) -> None:
        self.tensors, self.counter_of = list(tensors), list(counters)
        self.counters = list({id(counter): counter for counter in counters}.values())
        place = {id(counter): k for k, counter in enumerate(self.counters)}
        self.addresses = [tensor.data_ptr() for tensor in tensors]
        self.by_dtype = []
        for dtype in {tensor.dtype for tensor in tensors}:
            mine = [k for k, tensor in enumerate(tensors) if tensor.dtype == dtype]
            addresses = np.array([self.addresses[k] for k in mine], np.int64)
            self.by_dtype.append(EqualDtypes(DTYPES[dtype], addresses, [place[id(counters[k])] for k in mine]))
        self.write()

    def write(self) -> None:
        """Bring the counts into the tensors."""
        steps = [counter.step for counter in self.counters]
        for tensors in self.by_dtype:
            tensors.write(steps)
        self._written = steps
        self._written_later: dict[int, int] = {}  # of single tensors since then, by their places

    def changed(self) -> bool:
        """Whether someone else wrote into one of them."""
        return True in [tensors.changed() for tensors in self.by_dtype]

    def write_unchanged(self) -> None:
        """Bring counts that came back from a GPU into those tensors that nobody has changed or moved."""
        written = {id(counter): step for counter, step in zip(self.counters, self._written, strict=True)}
        changed = False
        for k, (tensor, address, counter) in enumerate(zip(self.tensors, self.addresses, self.counter_of, strict=True)):
            last = self._written_later.get(k, written[id(counter)])
            untouched = tensor.data_ptr() == address and bool((tensor == torch.full_like(tensor, last)).all())
            if last != counter.step and untouched:
                tensor.fill_(counter.step)
                self._written_later[k] = counter.step
            changed |= not untouched
        if not changed:
            self.write()
