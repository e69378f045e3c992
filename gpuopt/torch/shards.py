"""Parameters that are parts of a tensor, as FSDP2 and tensor parallelism leave them: DTensors of torch. Their memory is that of the
local tensor, which is what is stepped; which part it is, and who has the others, is said in a `launch.shards.Shard`.

Called by the optimizer and by whatever looks at its tensors. No tensor is copied, nothing is sent but gradients in another
placement than their parameter's, and `torch.distributed.tensor` is imported only where someone else has. Knows no rule.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, prod
from typing import Any
from weakref import WeakValueDictionary

import torch

from gpuopt.distributed.torch_group import TorchCommunicator
from gpuopt.errors import InputError
from gpuopt.launch.shards import Shard, shard_of
from gpuopt.optim.parameters import Parameter

PLAIN = {torch.Tensor, torch.nn.Parameter}


def dtensors() -> Any:
    """torch's module of DTensors; None where nobody has imported it, so that there are none."""
    return sys.modules.get("torch.distributed.tensor")


def is_part(tensor: Any) -> bool:
    """Whether a tensor is a DTensor."""
    if type(tensor) in PLAIN:
        return False
    module = dtensors()
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with memory: the part that this process has of a DTensor, complete if it is still on its way; any other tensor
    itself.
    """
    if not is_part(tensor):
        return tensor
    found: Any = tensor._local_tensor  # type: ignore[attr-defined]
    return found if type(found) in PLAIN else arrived(found)


def arrived(tensor: Any) -> torch.Tensor:
    """The result of a collective operation of torch, which may still run; another subclass as it is."""
    return tensor.wait() if hasattr(tensor, "wait") else tensor  # type: ignore[no-any-return]


def locals_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The states of a parameter, each with the memory that it has here."""
    return {key: local(value) if isinstance(value, torch.Tensor) else value for key, value in entry.items()}


def whole(p: torch.Tensor) -> bool:
    """Whether every process has all of a parameter."""
    return not is_part(p) or not cuts(p)


def cuts(p: Any) -> tuple[tuple[int, int], ...]:
    """(mesh dimension, axis of the tensor) of each cut of a DTensor into more than one part."""
    mesh = p.device_mesh
    found = [(k, of.dim) for k, of in enumerate(p.placements) if not of.is_replicate() and hasattr(of, "dim")]
    return tuple((k, axis) for k, axis in found if mesh.size(k) > 1)


def like(made: torch.Tensor, p: Any, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """A tensor of this process as a part of one that is cut as a DTensor is, or itself where p is none. shape: of the whole one, by
    default p's.
    """
    if not is_part(p):
        return made
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import TensorMeta

    size = torch.Size(p.shape if shape is None else shape)
    meta = TensorMeta(size, strides_like(made, size), made.dtype)
    return DTensor(made, replace(p._spec, tensor_meta=meta), requires_grad=False)  # type: ignore[no-untyped-call]


def strides_like(made: torch.Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a dense tensor of a shape whose axes lie in memory as those of another do."""
    strides, step = [0] * len(shape), 1
    for axis in sorted(range(len(shape)), key=lambda k: (made.stride(k), -k)):
        strides[axis] = step
        step *= max(1, shape[axis])
    return tuple(strides)


# ----------------------------------------------------------------------------------------------- which part


def part(p: torch.Tensor, label: str) -> Shard | None:
    """Which part of a tensor a parameter is; None of one that every process has whole. Raises InputError for a placement that no
    Shard describes.
    """
    if not is_part(p):
        return None
    of: Any = p
    if any(placement.is_partial() for placement in of.placements):
        raise InputError(f"{label}: placements {of.placements}: expected a parameter that is no sum still to be made")
    if of.device_mesh.get_coordinate() is None:
        raise InputError(
            f"{label}: this process is not in its mesh: expected a parameter of {of.device_mesh} only there"
        )
    cut = cuts(p)
    if not cut:
        return None
    indices = [consecutive(of, axis, size, label) for axis, size in enumerate(p.shape)]
    shape, offset = tuple(size for _, size in indices), tuple(first for first, _ in indices)
    if prod(shape) != local(p).numel():
        raise InputError(
            f"{label}: a local tensor of shape {tuple(local(p).shape)}: expected {shape}, as {of.placements} cut {tuple(p.shape)}"
        )
    pairs = ((2,), (0,)) if p.is_complex() else ((), ())  # a complex number is two real ones, on one more axis
    mine, others = tuple(local(p).shape), communicator(of.device_mesh, tuple(k for k, _ in cut))
    found = shard_of((*p.shape, *pairs[0]), (*mine, *pairs[0]), (*offset, *pairs[1]), others)
    if found is None:
        raise InputError(
            f"{label}: shape {tuple(p.shape)} with placements {of.placements}: expected at most one cut axis behind the first"
        )
    return found


def consecutive(p: Any, axis: int, size: int, label: str) -> tuple[int, int]:
    """The first index along an axis of this size that this process has, and how many, of what is cut as a DTensor is. Raises
    InputError where others are between them.
    """
    found = torch.arange(size)
    for k, placement in enumerate(p.placements):
        if getattr(placement, "dim", None) == axis and not placement.is_partial():
            parts, rank = p.device_mesh.size(k), p.device_mesh.get_local_rank(k)
            pieces = found.chunk(getattr(placement, "split_factor", 1)) if len(found) else ()
            mine = [chunk[rank] for chunk in (piece.chunk(parts) for piece in pieces) if rank < len(chunk)]
            found = torch.cat(mine) if mine else found[:0]
    if not len(found):
        return 0, 0
    first, last = int(found[0]), int(found[-1])
    if last - first != len(found) - 1:
        raise InputError(f"{label}: placements {p.placements}: expected indices of axis {axis} that follow each other")
    return first, len(found)


def communicator(mesh: Any, dims: tuple[int, ...]) -> OverMesh:
    """Of the processes that have the other parts, over these dimensions of a mesh; the same object while anyone has it. Groups are
    those of the mesh: none is made, which would have to be done everywhere at once.
    """
    groups = tuple(mesh.get_group(k) for k in dims)
    found = _over.get(groups)
    if found is None:
        found = _over[groups] = OverMesh([TorchCommunicator(group) for group in groups])
    return found


def part_shape(p: torch.Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what this process has of a tensor that is cut as a parameter is."""
    if not is_part(p):
        return shape
    return tuple(consecutive(p, axis, size, "state")[1] for axis, size in enumerate(shape))


class OverMesh:
    """Processes of some dimensions of a mesh: along one after another."""

    def __init__(self, along: Sequence[TorchCommunicator]) -> None:
        self.along = along
        self.rank, self.size = 0, 1
        for each in along:
            self.rank, self.size = self.rank * each.size + each.rank, self.size * each.size

    def all_reduce(self, array: Any, op: str = "sum", stream: Any = None) -> None:
        """See `launch.shards.Communicator`."""
        for each in self.along:
            each.all_reduce(array, op, stream)


def blocks_whole(p: torch.Tensor, sizes: Sequence[int]) -> bool:
    """Whether blocks of so many elements, which begin with each row (all axes behind the first), are not cut, in any process: all
    say the same.
    """
    if not is_part(p):
        return True
    of: Any = p
    behind = [(k, axis) for k, axis in cuts(p) if axis]
    if not behind:
        return True
    if len(behind) > 1 or behind[0][1] != 1:
        return False
    parts, inner = of.device_mesh.size(behind[0][0]), prod(p.shape[2:])
    run, row = -(-p.shape[1] // parts) * inner, p.shape[1] * inner
    return all(run % size == 0 and ceil(ceil(row / size) / parts) * size == run for size in sizes)


_over: WeakValueDictionary[tuple[Any, ...], OverMesh] = WeakValueDictionary()  # by their groups


class Parts:
    """The memory of parameters and of their gradients, which DTensors have in other tensors, and may get in others again."""

    def __init__(self, params: Sequence[torch.Tensor]) -> None:
        self.params, self.some = list(params), any(map(is_part, params))
        self._known: list[Any] = [None] * len(self.params)  # how the last gradients were cut, where that was right

    def tensors(self) -> list[torch.Tensor]:
        """Of the parameters."""
        return list(map(local, self.params)) if self.some else self.params

    def wrappers(self) -> list[torch.Tensor]:
        """The DTensors among them, which autograd knows apart from their memory."""
        return [p for p in self.params if is_part(p)] if self.some else []

    def gradients(self, given: list[torch.Tensor], of: Sequence[Parameter]) -> tuple[list[torch.Tensor], bool]:
        """Of these gradients, one for each parameter, and whether all of them are cut as their parameters are. One that is not is
        sent where it belongs, and sums are made. Raises InputError where that cannot be.
        """
        if not self.some:
            return given, True
        found, alike = [], True
        for k, (p, g) in enumerate(zip(self.params, given, strict=True)):
            spec = getattr(g, "_spec", None)
            if spec is None or spec is not self._known[k]:
                g, same = self._placed(k, p, g, of[k].label)
                alike = alike and same
            found.append(local(g))
        return found, alike

    def _placed(self, k: int, p: torch.Tensor, g: Any, label: str) -> tuple[Any, bool]:
        placed = as_placed(g, p, f"gradient of {label}")
        if placed is g and is_part(g):
            self._known[k] = g._spec
        return placed, placed is g


# ----------------------------------------------------------------------------------------------- values of a whole tensor


def part_of(value: Any, p: Any, label: str) -> torch.Tensor:
    """What this process has of a tensor that lies beside a parameter. value: a DTensor, or all of it, of NumPy or torch, in the
    shape of the parameter or with one number for each block of a row. Raises InputError where it does not go with the parameter.
    """
    if is_part(value):
        return local(as_placed(value, p, label))
    tensor = torch.as_tensor(value)
    for axis, size in enumerate(tensor.shape):
        tensor = tensor.narrow(axis, *consecutive(p, axis, size, label))
    return tensor.clone(memory_format=torch.contiguous_format)


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, on every process: of a DTensor the parts are sent around. Those of 16-bit codes as integers, which gloo
    knows.
    """
    if not is_part(tensor):
        return tensor
    part, codes = local(tensor), tensor.dtype is torch.uint16
    made: Any = like(part.view(torch.int16) if codes else part, tensor)
    found: torch.Tensor = made.full_tensor()
    return found.view(torch.uint16) if codes else found


def cut_alike(tensor: torch.Tensor, p: Any) -> bool:
    """Whether a tensor is cut as a DTensor is, on the same mesh."""
    return is_part(tensor) and same_cut(tensor._spec, p._spec)  # type: ignore[attr-defined]


def same_cut(spec: Any, other: Any) -> bool:
    """Whether two DTensors with these are cut alike."""
    return spec is other or (spec.placements == other.placements and spec.mesh == other.mesh)


def described(tensor: Any) -> str:
    """What errors say of it."""
    return f"a DTensor with placements {tensor.placements}" if is_part(tensor) else f"a {type(tensor).__name__}"


def as_placed(value: Any, p: Any, label: str) -> Any:
    """A DTensor cut as a parameter is: itself, or sent where it has to be. Raises InputError where it is on another mesh."""
    if not is_part(p) and not is_part(value):
        return value
    if not is_part(value) or not is_part(p):
        raise InputError(f"{label}: found {described(value)}: expected {described(p)}, as its parameter is")
    theirs, own = value._spec, p._spec
    if same_cut(theirs, own):
        return value
    if theirs.mesh != own.mesh:
        raise InputError(f"{label}: on {theirs.mesh}: expected {own.mesh}, the mesh of the parameter")
    with torch.no_grad():
        return value.redistribute(placements=own.placements)
