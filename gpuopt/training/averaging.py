"""Stochastic weight averaging: the mean of the weights along the path of training. Izmailov et al. 2018.

Called by users as `gpuopt.training.StochasticWeightAverage`. Of a torch model, torch.optim.swa_utils keeps the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpuopt import arrays
from gpuopt.errors import DtypeError, InputError, OptionError, entries
from gpuopt.optim import trees
from gpuopt.optim.hyper import check_whole
from gpuopt.training.problem import is_model, leaves_of
from gpuopt.training.saving import checked

NO_AVERAGE = "update: it was not called often enough for an average: expected more than `start` steps"


@entries
class StochasticWeightAverage:
    """The mean of parameters, taken every `frequency` steps from `start` on.

    params: arrays of NumPy or CuPy in any container that optimizers take, or a torch.nn.Module. start: calls of `update` before the
    first weights are taken, such as three quarters of training (0). frequency: calls from one to the next (1), such as the steps of
    one pass over the data.

    Call `update()` after every step of any optimizer; a rate that is constant or goes up and down in cycles is what makes averages
    good. `averaged_params()` gives the mean as new arrays; `eval()` brings it into the parameters themselves and `train()` brings
    back what was there, bit for bit. Means are float64 of float64, float32 of everything else. Normalisation layers of a torch
    model need `update_bn(batches)` afterwards.

    Source: Izmailov et al. 2018, Averaging weights leads to wider optima and better generalization. Raises InputError naming the
    argument, OptionError for calls out of turn.
    """

    def __init__(self, params: Any, *, start: int = 0, frequency: int = 1) -> None:
        self.start, self.frequency = check_whole("start", start, 0), check_whole("frequency", frequency, 1)
        self._mean: ArrayMean | ModelMean = ModelMean(params) if is_model(params) else ArrayMean(params)
        self._calls = 0
        self._kept: Callable[[], None] | None = None

    @property
    def count(self) -> int:
        """How many weights are in the mean."""
        return self._mean.count

    def update(self) -> None:
        """Count a step, and take the parameters into the mean where `start` and `frequency` say so."""
        self._check_training("update")
        past = self._calls - self.start
        self._calls += 1
        if past >= 0 and past % self.frequency == 0:
            self._mean.add()

    def averaged_params(self) -> Any:
        """The mean in new arrays, as the parameters are given; of a model by name, without its buffers."""
        self._check()
        return self._mean.values()

    def eval(self) -> None:
        """Bring the mean into the parameters; the second time nothing happens."""
        self._check()
        if self._kept is None:
            self._kept = self._mean.put()

    def train(self) -> None:
        """Bring back the parameters that `eval` replaced; without one before nothing happens."""
        if self._kept is not None:
            self._kept()
            self._kept = None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """`with swa.averaged():` evaluates with the mean and brings the parameters back."""
        self.eval()
        try:
            yield
        finally:
            self.train()

    def update_bn(self, batches: Any, device: Any = None) -> None:
        """Statistics of the normalisation layers for the mean, by torch.optim.swa_utils.update_bn. batches: of inputs, or of tuples
        that begin with them. Call it between `eval()` and `train()`. Raises OptionError elsewhere, InputError for arrays.
        """
        if not isinstance(self._mean, ModelMean):
            raise InputError("update_bn: arrays have no normalisation layers: expected a torch model")
        if self._kept is None:
            raise OptionError("update_bn: expected eval() before")
        self._mean.update_bn(batches, device)

    def state_dict(self) -> dict[str, Any]:
        """{"calls": int, "count": int, "means": [a copy of each]}, in the order of the parameters, in the dtypes in which means are
        kept. Raises OptionError between `eval()` and `train()`, where the parameters are not those that are trained.
        """
        self._check_training("state_dict")
        return {"calls": self._calls, "count": self._mean.count, "means": self._mean.copies()}

    def load_state_dict(self, saved: Any) -> None:
        """Go on from what `state_dict` returned; `start` and `frequency` are the caller's. Raises InputError, before anything is
        written, for what does not fit these parameters, OptionError as `state_dict`.
        """
        self._check_training("load_state_dict")
        shapes = [mean.shape for mean in self._mean.means]
        (self._calls, count), means = checked(saved, ["calls", "count"], "means", shapes)
        self._mean.load(count, means)

    def _check_training(self, called: str) -> None:
        if self._kept is not None:
            raise OptionError(f"{called}: the parameters are the average now: expected train() before")

    def _check(self) -> None:
        if not self._mean.count:
            raise OptionError(NO_AVERAGE)


class ArrayMean:
    """Of arrays, in the compute type of each."""

    def __init__(self, params: Any) -> None:
        self.structure, self.leaves = leaves_of(params)
        for label, array in self.leaves:
            if arrays.kind_of(array, label).name not in ("numpy", "cupy"):
                raise DtypeError(f"{label}: a {type(array).__name__}: expected an array of NumPy or CuPy")
        self.count = 0
        self.means = [array.astype(mean_dtype(array)) for _, array in self.leaves]

    def add(self) -> None:
        """Take the parameters as they are into the mean."""
        self.count += 1
        for mean, (_, array) in zip(self.means, self.leaves, strict=True):
            taken = array.astype(mean.dtype)
            mean[...] = taken if self.count == 1 else mean + (taken - mean) / self.count

    def copies(self) -> list[Any]:
        """As they are kept."""
        return [mean.copy() for mean in self.means]

    def load(self, count: int, means: list[Any]) -> None:
        """Be the mean of so many; means: arrays or lists."""
        self.count = count
        for mean, value in zip(self.means, means, strict=True):
            arrays.kind_of(mean, "means").assign(mean, value if arrays.is_array(value) else np.asarray(value))

    def values(self) -> Any:
        """In the container, each in the dtype of its parameter."""
        cast = (mean.astype(array.dtype) for mean, (_, array) in zip(self.means, self.leaves, strict=True))
        return trees.rebuilt(self.structure, cast)

    def put(self) -> Callable[[], None]:
        """Into the parameters; what brings back those that were there."""
        kept = [array.copy() for _, array in self.leaves]
        for mean, (_, array) in zip(self.means, self.leaves, strict=True):
            array[...] = mean.astype(array.dtype)

        def back() -> None:
            for (_, array), before in zip(self.leaves, kept, strict=True):
                array[...] = before

        return back


class ModelMean:
    """Of a torch model, by torch.optim.swa_utils.AveragedModel."""

    def __init__(self, model: Any) -> None:
        from torch.optim.swa_utils import AveragedModel

        self.model, self.averaged = model, AveragedModel(model)

    @property
    def count(self) -> int:
        """As torch counts."""
        return int(self.averaged.n_averaged)

    def add(self) -> None:
        """Take the parameters as they are into the mean."""
        self.averaged.update_parameters(self.model)

    @property
    def means(self) -> list[Any]:
        """Those that torch keeps, without a graph."""
        return [p.detach() for p in self.averaged.module.parameters()]

    def copies(self) -> list[Any]:
        """As torch keeps them."""
        return [mean.clone() for mean in self.means]

    def load(self, count: int, means: list[Any]) -> None:
        """Be the mean of so many; means: tensors of any device, arrays or lists."""
        import torch

        self.averaged.n_averaged.fill_(count)
        for mean, value in zip(self.means, means, strict=True):
            mean.copy_(torch.as_tensor(value))

    def values(self) -> Any:
        """By name."""
        return {name: p.detach().clone() for name, p in self.averaged.module.named_parameters()}

    def put(self) -> Callable[[], None]:
        """Into the parameters; what brings back those that were there, and the buffers, which `update_bn` changes."""
        import torch

        tensors = [*self.model.parameters(), *self.model.buffers()]
        kept = [t.detach().clone() for t in tensors]
        with torch.no_grad():
            for p, mean in zip(self.model.parameters(), self.averaged.module.parameters(), strict=True):
                p.copy_(mean)

        def back() -> None:
            with torch.no_grad():
                for tensor, before in zip(tensors, kept, strict=True):
                    tensor.copy_(before)

        return back

    def update_bn(self, batches: Any, device: Any) -> None:
        """Of the model itself, which holds the mean."""
        from torch.optim.swa_utils import update_bn

        update_bn(batches, self.model, device)


def mean_dtype(array: Any) -> Any:
    """Wide enough for a mean of many: that of the array from 32 bits on, float32 below."""
    return array.dtype if array.dtype in (np.float64, np.complex64, np.complex128) else np.dtype("float32")
