"""ZeRO-1: each process steps its rows of the tensors and keeps their states only; gradients are summed where they are needed.

Called by `parallel`. Knows no library that sends messages, and of an optimizer its tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from gpuopt import arrays
from gpuopt.distributed.averaging import Buckets, Flags, checked
from gpuopt.distributed.communicators import Communicator
from gpuopt.distributed.division import Bounds, Order, Tensor, divide
from gpuopt.distributed.flats import clear, empty, flat, is_flat, put, rows, shaped
from gpuopt.errors import InputError
from gpuopt.launch.shards import Shard
from gpuopt.optim.parameters import Parameter, parameter_view
from gpuopt.rules.language import Rule


def tensor_of(rule: Rule, p: Parameter) -> Tensor:
    """A parameter as `division` knows it: a matrix is with one process if the rule looks at its rows, columns or products, and so
    is what does not lie in C order.
    """
    count, *rest = p.view.shape or (1,)
    return Tensor(count, prod(rest), not is_matrix(rule, p) and is_flat(p.array, p.label))


def is_matrix(rule: Rule, p: Parameter) -> bool:
    """Whether the rule looks at rows, columns or products of a parameter."""
    along = rule.definition().along or any(s.hidden for s in rule.states)
    return bool(along) and len(p.view.shape) - p.view.pairs > 1


def part_of(p: Parameter, bounds: Bounds, comm: Communicator) -> Parameter:
    """The rows of a parameter that this process steps, perhaps none."""
    begin, end = bounds[comm.rank : comm.rank + 2]
    count = (p.view.shape or (1,))[0]
    own = p.array if (begin, end) == (0, count) else rows(p.array, begin, end)
    beside = {name: a if own is p.array else rows(a, begin, end) for name, a in p.beside.items()}
    shard = Shard(p.view.shape, begin * (p.view.numel // max(1, count)), communicator=comm)
    return replace(
        p, array=own, view=parameter_view(own, p.label), beside=beside, states={}, grad=None, grad_view=None, copy=None, given=None,
        shard=shard,
    )  # fmt: skip


class Memory:
    """What tensors of one device and dtypes need: a bucket of gradients of all processes and one of parameters, and the sums of the
    gradients of this process's parts.
    """

    def __init__(
        self, members: Sequence[Parameter], tensors: Sequence[Tensor], bounds: Sequence[Bounds], comm: Communicator,
        dtypes: tuple[str, str], length: int,
    ) -> None:  # fmt: skip
        like = members[0].array
        self.members, self.comm = members, comm
        self.order = Order(tensors, bounds, comm.size, max(1, length // comm.size))
        self.pieces = [self.order.pieces(chunk) for chunk in self.order.chunks]
        self.bucket = empty(like, dtypes[0], self.order.length * comm.size)
        same = dtypes[0] == dtypes[1]
        self.values = self.bucket if same else empty(like, dtypes[1], self.order.length * comm.size)
        self.sent = empty(like, dtypes[1], self.order.length)
        self.sums = empty(like, dtypes[0], max(self.order.sizes, default=0))
        # A tensor in another memory order travels through one in C order.
        self.copies = {
            k: empty(like, dtypes[1], p.view.numel) for k, p in enumerate(members) if not is_flat(p.array, p.label)
        }

    def reduce(self, grads: Sequence[Any]) -> None:
        """Sum gradients, one for each member, flat or None; each process its parts."""
        for (begin, end), of_all in zip(self.order.chunks, self.pieces, strict=True):
            for piece in (piece for pieces in of_all for piece in pieces):
                place, grad = self.bucket[piece.at : piece.at + piece.end - piece.begin], grads[piece.tensor]
                clear(place) if grad is None else put(place, grad[piece.begin : piece.end])
            self.comm.reduce_scatter(self.bucket[: (end - begin) * self.comm.size], self.sums[begin:end])

    def gather(self) -> None:
        """Bring the parts of all other processes into the tensors."""
        flats = [self.copies[k] if k in self.copies else flat(p.array, p.label) for k, p in enumerate(self.members)]
        for k, copy in self.copies.items():
            put(copy, flat(self.members[k].array, self.members[k].label))
        for (begin, end), of_all in zip(self.order.chunks, self.pieces, strict=True):
            first = self.comm.rank * (end - begin)
            for piece in of_all[self.comm.rank]:
                at = piece.at - first
                put(self.sent[at : at + piece.end - piece.begin], flats[piece.tensor][piece.begin : piece.end])
            whole = self.values[: (end - begin) * self.comm.size]
            self.comm.all_gather(self.sent[: end - begin], whole)
            for rank, pieces in enumerate(of_all):
                for piece in pieces if rank != self.comm.rank else ():
                    put(
                        flats[piece.tensor][piece.begin : piece.end],
                        whole[piece.at : piece.at + piece.end - piece.begin],
                    )
        for k, copy in self.copies.items():
            p = self.members[k]
            arrays.kind_of(p.array, p.label).assign(p.array, shaped(copy, p.view.shape, p.view.pairs))


class Scattered:
    """The division of an optimizer's tensors, and what travels. parameters: whole tensors; parts: what this process steps."""

    def __init__(self, rule: Rule, parameters: Sequence[Parameter], comm: Communicator, buckets: Buckets) -> None:
        self.parameters, self.comm, self.buckets = parameters, comm, buckets
        self.bounds: dict[int, Bounds] = {}
        self.memories: list[Memory] = []
        for (_, dtype, own), members in buckets.together(parameters).items():
            tensors = [tensor_of(rule, p) for p in members]
            bounds = divide(tensors, comm.size)
            self.bounds |= {p.index: b for p, b in zip(members, bounds, strict=True)}
            self.memories.append(Memory(members, tensors, bounds, comm, (dtype, own), buckets.length(dtype)))
        self.parts = [part_of(p, self.bounds[p.index], comm) for p in parameters]
        self.flags = Flags(empty(parameters[0].array, "float32", len(parameters))) if buckets.unused else None
        self.own = self._own()

    def _own(self) -> list[Any]:
        """The sums of the gradients of this process's parts, in their shapes."""
        found: dict[int, Any] = {}
        for memory in self.memories:
            for piece in memory.order.parts[self.comm.rank]:
                found[memory.members[piece.tensor].index] = memory.sums[piece.at : piece.at + piece.end - piece.begin]
            for p in memory.members:
                found.setdefault(p.index, memory.sums[:0])
        return [shaped(found[p.index], p.view.shape, p.view.pairs) for p in self.parts]

    def sums(self, leaves: Sequence[Any]) -> list[Any]:
        """The sum of the gradients of each part, None where no process has one."""
        self._check_places()
        leaves = checked(leaves, self.parameters, self.buckets.unused)
        there = [True] * len(leaves)
        if self.flags is not None:
            self.flags.write(leaves)
            self.comm.all_reduce(self.flags.array, "max")
            there = self.flags.read()
        for memory in self.memories:
            given = [(leaves[p.index], f"gradient of {p.label}") for p in memory.members]
            memory.reduce([None if grad is None else flat(grad, label) for grad, label in given])
        return [array if found else None for array, found in zip(self.own, there, strict=True)]

    def spread(self) -> None:
        """Bring the parts that other processes have stepped into the tensors."""
        for memory in self.memories:
            memory.gather()

    def _check_places(self) -> None:
        """Raise InputError where a tensor has other memory than when it was divided."""
        for p in self.parameters:
            if not arrays.kind_of(p.array, p.label).fixed and parameter_view(p.array, p.label) != p.view:
                raise InputError(f"{p.label}: it has moved since its states were divided: call data_parallel again")
