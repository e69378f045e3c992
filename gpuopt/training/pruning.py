"""Magnitude pruning: the least weights go to zero, more of them from time to time, by masks that the fused step applies.

Called by users as `gpuopt.training.MagnitudePruning`. The masks are given to an optimizer once and changed in place afterwards: a
step reads them where they lie. Zhu & Gupta 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpuopt import arrays
from gpuopt.errors import InputError, entries, entry
from gpuopt.optim import trees
from gpuopt.optim.hyper import check_whole
from gpuopt.training.checks import choice, real
from gpuopt.training.problem import is_model, leaves_of
from gpuopt.training.saving import checked

SCOPES = ("layer", "global")


@entry
def cubic_sparsity(
    step: float, sparsity: float, begin_step: int, end_step: int, initial_sparsity: float = 0.0
) -> float:
    """The share of weights that are zero after `step` steps: from `initial_sparsity` at begin_step to `sparsity` at end_step, fast
    at first; arguments as of `MagnitudePruning`.

    sparsity + (initial_sparsity - sparsity) (1 - (step - begin_step) / (end_step - begin_step))^3, Zhu & Gupta 2017, equation 1.
    Raises InputError naming the argument.
    """
    final, begin, end, initial = checked_schedule(sparsity, begin_step, end_step, initial_sparsity)
    done = min(max((real("step", step, "[0, inf)") - begin) / (end - begin), 0.0), 1.0)
    return final + (initial - final) * (1 - done) ** 3


def checked_schedule(sparsity: Any, begin_step: Any, end_step: Any, initial: Any) -> tuple[float, int, int, float]:
    """The arguments of a schedule. Raises InputError naming the one that cannot be used."""
    final, first = real("sparsity", sparsity, "[0, 1)"), real("initial_sparsity", initial, "[0, 1)")
    begin = check_whole("begin_step", begin_step, 0)
    if first > final:
        raise InputError(f"initial_sparsity = {first}: expected at most sparsity, which is {final}")
    return final, begin, check_whole("end_step", end_step, begin + 1), first


@entries
class MagnitudePruning:
    """Masks for an optimizer, and a schedule that sets more of them to false.

    params: arrays in any container that optimizers take, or a torch.nn.Module. sparsity: the share of weights that are zero in the
    end, in [0, 1). begin_step, end_step: between these the share grows as `cubic_sparsity`. frequency: steps between two changes
    (10). initial_sparsity: the share at begin_step (0). scope: "layer", the same share in each array, or "global", the least
    weights of all of them together. prune: a function of path and array (of name and parameter for a model) that says what is
    pruned; by default what has two or more axes, so no biases.

    pruning = MagnitudePruning(params, 0.9, 100, 1000); opt = gpuopt.AdamW(params, lr=1e-3, mask=pruning.mask); then
    `opt.step(grads); pruning.step()`. Of a torch model, parameters are pruned in place of `torch.nn.utils.prune`, which keeps a
    second copy of each weight. Tensors of torch whose memory has gaps, and those in another order than C's where an optimizer looks
    at rows (Adafactor), are stepped in copies, masks too: make them contiguous first.

    Source: Zhu & Gupta 2017, To prune, or not to prune. Raises InputError naming the argument.
    """

    def __init__(
        self,
        params: Any,
        sparsity: float,
        begin_step: int,
        end_step: int,
        *,
        frequency: int = 10,
        initial_sparsity: float = 0.0,
        scope: str = "layer",
        prune: Callable[[Any, Any], bool] | None = None,
    ) -> None:
        self._schedule = checked_schedule(sparsity, begin_step, end_step, initial_sparsity)
        self.frequency = check_whole("frequency", frequency, 1)
        self.scope = choice("scope", scope, SCOPES)
        if prune is not None and not callable(prune):
            raise InputError(f"prune = {prune!r}: expected a function of path and array, or None")
        self._tensors = Tensors(params) if is_model(params) else Arrays(params)
        wanted = prune or (lambda path, array: array.ndim > 1)
        self._pruned = [
            (array, self._tensors.ones(array)) if wanted(path, array) else None for path, array in self._tensors
        ]
        self._pairs = [pair for pair in self._pruned if pair is not None]
        if not self._pairs:
            raise InputError(
                "params: nothing to prune: expected an array of two or more axes, or one that `prune` chooses"
            )
        self._steps = 0

    @property
    def mask(self) -> Any:
        """What the optimizer takes as `mask`: mirrors params, boolean arrays or None; by parameter for a torch model."""
        return self._tensors.mirrored([pair and pair[1] for pair in self._pruned])

    @property
    def steps(self) -> int:
        """How often `step` was called."""
        return self._steps

    @property
    def sparsity(self) -> float:
        """The share of the pruned arrays' weights that masks keep at zero now."""
        kept = sum(int(mask.sum()) for _, mask in self._pairs)
        return 1 - kept / sum(self._tensors.size(mask) for _, mask in self._pairs)

    def step(self) -> None:
        """Count a step of the optimizer, and prune where the schedule says so: in place in masks and weights."""
        self._steps += 1
        n, (_, begin, end, _) = self._steps, self._schedule
        if begin <= n <= end and ((n - begin) % self.frequency == 0 or n == end):
            self.prune(cubic_sparsity(n, *self._schedule))

    def prune(self, sparsity: float) -> None:
        """Set masks to false, and weights to zero, for this share of the weights: exactly so many, the least in magnitude."""
        share, tensors = real("sparsity", sparsity, "[0, 1]"), self._tensors
        magnitudes = [abs(array).reshape(-1) for array, _ in self._pairs]
        if self.scope == "global":
            sizes = np.cumsum([len(m) for m in magnitudes])[:-1].tolist()
            kept = tensors.split(tensors.greatest(tensors.joined(magnitudes), share), sizes)
        else:
            kept = [tensors.greatest(m, share) for m in magnitudes]
        for (array, mask), keep in zip(self._pairs, kept, strict=True):
            tensors.apply(array, mask, keep.reshape(array.shape))

    def state_dict(self) -> dict[str, Any]:
        """{"steps": int, "masks": [a copy of each, None for what is not pruned]}, in the order of the parameters; the arguments of
        the constructor are the caller's.
        """
        return {"steps": self._steps, "masks": [pair and self._tensors.copy(pair[1]) for pair in self._pruned]}

    def load_state_dict(self, saved: Any) -> None:
        """Go on from what `state_dict` returned: counts, and masks in place, so that an optimizer that has them reads the new ones;
        weights are the caller's. Raises InputError, before anything is written, for what does not fit these parameters.
        """
        shapes = [pair and tuple(pair[1].shape) for pair in self._pruned]
        (self._steps,), masks = checked(saved, ["steps"], "masks", shapes)
        for pair, mask in zip(self._pruned, masks, strict=True):
            if pair is not None:
                self._tensors.assign(pair[1], mask)


class Arrays:
    """Arrays of NumPy and CuPy, by the functions of their own library."""

    def __init__(self, params: Any) -> None:
        self.structure, self.leaves = leaves_of(params)
        for label, array in self.leaves:
            if arrays.kind_of(array, label).name not in ("numpy", "cupy"):
                raise InputError(
                    f"{label}: a {type(array).__name__}: expected an array of NumPy or CuPy, or a torch model"
                )

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return zip(trees.paths(self.structure), (array for _, array in self.leaves), strict=True)

    def ones(self, array: Any) -> Any:
        """A mask in the memory order of the array, so that an optimizer takes itself and no copy; pairs for complex numbers."""
        mask = arrays.kind_of(array, "params").zeros(array, "bool")
        mask[...] = True
        return mask

    def size(self, mask: Any) -> int:
        """Its elements."""
        return int(mask.size)

    def copy(self, mask: Any) -> Any:
        """In the same library."""
        return mask.copy()

    def assign(self, mask: Any, value: Any) -> None:
        """The value, of NumPy or the mask's library, or a list, into the mask."""
        arrays.kind_of(mask, "mask").assign(mask, value if arrays.is_array(value) else np.asarray(value, bool))

    def mirrored(self, masks: list[Any]) -> Any:
        """The masks as the parameters are given."""
        return trees.rebuilt(self.structure, iter(masks))

    def greatest(self, magnitudes: Any, share: float) -> Any:
        """True for all but the least so many of them."""
        xp, count = namespace(magnitudes), round(share * len(magnitudes))
        keep = xp.ones(len(magnitudes), bool)
        if count:
            keep[xp.argpartition(magnitudes, min(count, len(magnitudes) - 1))[:count]] = False
        return keep

    def joined(self, magnitudes: list[Any]) -> Any:
        """All of them in one."""
        return namespace(magnitudes[0]).concatenate(magnitudes)

    def split(self, keep: Any, at: list[int]) -> list[Any]:
        """The reverse."""
        return list(namespace(keep).split(keep, at))

    def apply(self, array: Any, mask: Any, keep: Any) -> None:
        """Into the mask, and zeros into the array."""
        mask[...] = keep[..., None] if mask.ndim > array.ndim else keep
        array[~keep] = 0


class Tensors:
    """The parameters of a torch model."""

    def __init__(self, model: Any) -> None:
        self.named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return iter(self.named)

    def ones(self, tensor: Any) -> Any:
        """A mask in the memory order of the tensor."""
        import torch

        shaped = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
        return torch.ones_like(shaped, dtype=torch.bool, memory_format=torch.preserve_format)

    def size(self, mask: Any) -> int:
        """Its elements."""
        return int(mask.numel())

    def copy(self, mask: Any) -> Any:
        """On the same device."""
        return mask.clone()

    def assign(self, mask: Any, value: Any) -> None:
        """The value, a tensor of any device, an array or a list, into the mask."""
        import torch

        mask.copy_(torch.as_tensor(value))

    def mirrored(self, masks: list[Any]) -> Any:
        """The masks by parameter."""
        return {p: mask for (_, p), mask in zip(self.named, masks, strict=True) if mask is not None}

    def greatest(self, magnitudes: Any, share: float) -> Any:
        """True for all but the least so many of them."""
        count = round(share * len(magnitudes))
        keep = magnitudes.detach().new_ones(len(magnitudes), dtype=bool)
        keep[magnitudes.detach().topk(count, largest=False).indices] = False
        return keep

    def joined(self, magnitudes: list[Any]) -> Any:
        """All of them in one."""
        import torch

        return torch.cat([m.detach().float() for m in magnitudes])

    def split(self, keep: Any, at: list[int]) -> list[Any]:
        """The reverse."""
        return list(keep.tensor_split(at))

    def apply(self, array: Any, mask: Any, keep: Any) -> None:
        """Into the mask, and zeros into the parameter."""
        mask.copy_(keep[..., None].expand_as(mask) if mask.ndim > array.ndim else keep)
        array.detach()[~keep] = 0


def namespace(array: Any) -> Any:
    """numpy or cupy."""
    from importlib import import_module

    return import_module(type(array).__module__.partition(".")[0])
