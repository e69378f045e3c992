"""The launch table of one kernel: which tensors, tiles and addresses one launch covers. Built with NumPy, cached.

Made by the optimizer for each set of tensors that share dtypes and flags; read by the backends. Rebuilt only when the set
changes; when an address moved, only its column. Knows neither the rule's arithmetic nor how a launch is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from gpuopt.compiler.program import Program
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch import table as t
from gpuopt.launch.shards import Shard

Int64 = NDArray[np.int64]


class Plan:
    """table: int64 [tensors, ADDRESS + roles + cells]; tiles, chunks: int64, tensor index in the upper 32 bits, tile in the lower;
    begins: int64 [tensors + 1], the first chunk of each.

    tile_size: elements of one tile, or groups; version: grows whenever `table` changes, so that a device copy knows it is stale;
    cuts: whenever there are other tiles and chunks. most_chunks: of all rows, where only some are stepped.
    """

    def __init__(
        self,
        program: Program,
        numels: Sequence[int],
        rows: Sequence[int],
        addresses: Int64,
        tensors: Sequence[int] | None = None,
        seed: int = 0,
        shapes: Sequence[tuple[int, ...]] = (),
        widths: Sequence[int] = (),
        shards: Sequence[Shard | None] = (),
        labels: Sequence[str] = (),
    ) -> None:
        """tensors: the number of each in the optimizer, their place by default; seed: of random numbers, 0 to 2**64 - 1; shapes:
        the last two axes of each, where the program looks at rows and columns; widths: elements of a row of each, where states
        are kept in blocks or only some rows are stepped: all of them until `pick` says which; shards: which part of a tensor each
        is; labels: what errors call each.
        """
        self.program, self.labels = program, labels
        self.table = np.zeros((len(numels), t.ADDRESS + program.addresses), np.int64)
        self.table[:, t.NUMEL] = numels
        self.table[:, t.ROW] = rows
        self.table[:, t.TENSOR] = np.arange(len(numels)) if tensors is None else tensors
        self.table[:, t.WIDTH] = np.maximum(widths or numels, 1)
        shards = shards or [None] * len(numels)
        self.table[:, t.WHOLE] = [s.numel if s else count for s, count in zip(shards, numels, strict=True)]
        self.table[:, t.SEED] = np.uint64(seed).astype(np.int64)
        self.table[:, t.ADDRESS : t.ADDRESS + addresses.shape[1]] = addresses
        if program.sharded:
            found = [(shard.first, shard.run, shard.skip) if shard else (0, 0, 0) for shard in shards]
            self.table[:, -len(t.SHARD) :] = np.array(found, np.int64).reshape(-1, len(t.SHARD))
        self.version = self.cuts = 0
        self.tile_elements = self.tile_size = 0
        self.tiles: Int64 = np.empty(0, np.int64)
        self._align(slice(None))
        self._cut()
        self.most_chunks = len(self.chunks)
        if program.picked:
            self.table[:, -len(t.PICKED) + 1] = self.table[:, t.NUMEL] // self.table[:, t.WIDTH]
        self.matrices = self.blocks = np.empty(0, np.int64)
        self.sizes: dict[tuple[str, str], int] = {}  # of the slots of the program
        if program.lined:
            self._cut_matrices(np.array(shapes, np.int64).reshape(-1, 2))

    @cached_property
    def digest(self) -> int:
        """A number below 2**32 that says which tensors are stepped, and in which order: of parts the same on all processes."""
        return crc32(self.table[:, [t.TENSOR, t.WHOLE]].tobytes())

    def _cut(self) -> None:
        """Chunks, and tiles where a backend has said of how many elements."""
        numels = self.table[:, t.NUMEL]
        self.total = int(numels.sum())
        self.chunks = cut(numels, t.CHUNK)
        self.begins: Int64 = np.concatenate([[0], np.cumsum(-(-numels // t.CHUNK))]).astype(np.int64)
        if self.tile_elements:
            self.cut_tiles(self.tile_elements)

    def pick(self, counts: Int64, indices: Int64, compact: Int64) -> None:
        """The rows of each tensor that the next step takes, where the program takes some: how many, the addresses of their numbers,
        and whether the gradient has them only.
        """
        numels = counts * self.table[:, t.WIDTH]
        found = np.stack([indices, compact], axis=1)
        known = self.table[:, [-len(t.PICKED), -1]]
        same = np.array_equal(numels, self.table[:, t.NUMEL])
        if not same or not np.array_equal(found, known):
            self.table[:, [-len(t.PICKED), -1]] = found
            self.version += 1
        if not same:
            self.table[:, t.NUMEL] = numels
            self.cuts += 1
            self._cut()

    def cut_tiles(self, tile_size: int) -> None:
        """Cut every tensor into tiles of so many elements; the backend chooses. In a walk over blocks a tile is of groups."""
        in_blocks, self.tile_elements = self.program.in_blocks, tile_size
        self.tile_size = max(1, tile_size // t.GROUP) if in_blocks else tile_size
        sizes = self.groups() if in_blocks else self.table[:, t.NUMEL]
        # A part of a tensor that is empty has a tile too: numbers of the tensor are stored with its first one.
        self.tiles = cut(np.maximum(sizes, 1) if self.program.sharded else sizes, self.tile_size)

    def groups(self) -> Int64:
        """Of each tensor, what a warp takes at a time in a walk over blocks: a tile is some of these."""
        widths = self.table[:, t.WIDTH]
        found: Int64 = self.table[:, t.NUMEL] // widths * -(-widths // t.GROUP)
        return found

    def _cut_matrices(self, shapes: Int64) -> None:
        """Rows, columns and matrices of every tensor, and the blocks that are summed along them."""
        rows, columns = shapes.T
        matrices = self.table[:, t.NUMEL] // (rows * columns)
        down, across = -(-rows // t.BLOCK_ROWS), -(-columns // t.BLOCK_COLUMNS)
        counts = {
            ("", "row"): matrices * rows,
            ("", "column"): matrices * columns,
            ("", "matrix"): matrices,
            ("blocks", "row"): matrices * rows * across,
            ("blocks", "column"): matrices * down * columns,
        }
        firsts = [np.cumsum(found) - found for found in counts.values()]
        self.table[:, -len(t.MATRIX) :] = np.stack([rows, columns, *firsts], axis=1)
        self.sizes = {key: int(found.sum()) for key, found in counts.items()}
        self.matrices, self.blocks = cut(matrices, 1), cut(matrices * down * across, 1)

    def slot_sizes(self) -> list[tuple[int, str]]:
        """Numbers and dtype of every slot of the program."""
        made = []
        for slot in self.program.slots:
            blocks = slot.what == "blocks"
            made.append(
                (self.sizes["blocks" if blocks else "", slot.kind], "float64" if blocks else self.program.compute)
            )
        return made

    def move(self, role: int, addresses: Int64) -> None:
        """New addresses of one role, one for each tensor."""
        column = self.table[:, t.ADDRESS + role]
        changed = np.flatnonzero(column != addresses)
        if changed.size:
            column[changed] = addresses[changed]
            self._align(changed)
            self.version += 1

    def _align(self, which: Int64 | slice) -> None:
        """Choose each tensor's head, 0 to lanes - 1 elements, so that every role is aligned behind it if any head can. In a walk
        over blocks there is none, and aligned is where every lane of every row begins so.

        Where elements are rounded at random, those behind the head begin with one that begins a block of random numbers.
        """
        lanes, program = self.program.lanes, self.program
        addresses = self.table[which, t.ADDRESS : t.ADDRESS + len(program.roles)]
        at_role = 1 << np.arange(1, len(program.roles) + 1)
        if program.picked and not program.in_blocks:  # a row begins anywhere: there is no head
            whole = (self.table[which, t.WIDTH] % lanes == 0)[..., None] & (addresses & 15 == 0)
            self.table[which, t.HEAD] = 0
            self.table[which, t.ALIGNED] = whole.all(axis=1) | (whole * at_role).sum(axis=1)
            return
        if program.in_blocks:
            first = t.ADDRESS + program.first_blocked
            every = np.concatenate([addresses, self.table[which, first : first + len(program.blocked)]], axis=1)
            whole = (self.table[which, t.WIDTH] % t.EACH == 0) & (every & 15 == 0).all(axis=1) & self._drawn(which, 0)
            self.table[which, t.HEAD] = 0
            self.table[which, t.ALIGNED] = whole | ((addresses & 15 == 0) * at_role).sum(axis=1)
            return
        drawn = self._drawn(which, 0)
        if drawn.all() and not np.bitwise_or.reduce(addresses, axis=None) & 15:  # as libraries allocate
            self.table[which, t.HEAD], self.table[which, t.ALIGNED] = 0, 1 | at_role.sum()
            return
        sizes = np.array([STORAGES[r.storage].itemsize for r in program.roles], np.int64)
        widths = sizes * np.minimum(lanes, 16 // sizes)  # bytes of one access
        head = np.zeros(len(addresses), np.int64)
        found = np.zeros(len(addresses), bool)
        for h in range(0, lanes, self._unit if program.draws and not program.sharded else 1):
            fits = ((addresses + h * sizes) & (widths - 1) == 0).all(axis=1) & ~found  # powers of two
            fits &= self._drawn(which, h)
            head[fits] = h
            found |= fits
        first = ((addresses & 15 == 0) * at_role).sum(axis=1)
        self.table[which, t.HEAD] = head
        self.table[which, t.ALIGNED] = found | first

    @cached_property
    def _unit(self) -> int:
        """Elements of a pack whose random bits are made together."""
        program = self.program
        return min(program.per_call, t.EACH if program.in_blocks else program.lanes)

    def _drawn(self, which: Int64 | slice, head: int) -> NDArray[np.bool_]:
        """Of each tensor that is a part, and whose elements are rounded at random, whether packs behind a head begin with an
        element that begins a block of random numbers of the whole, and end before others' elements come.
        """
        table = self.table[which]
        if not (self.program.sharded and self.program.draws):
            return np.full(len(table), not self.program.draws or head % self._unit == 0)
        first, run, skip = table[:, -len(t.SHARD) :].T
        even = (head == 0) & (run % t.EACH == 0) & (skip % self._unit == 0)
        found: NDArray[np.bool_] = ((first + head) % self._unit == 0) & ((run == 0) | even)
        return found


def cut(numels: Int64, size: int) -> Int64:
    """One word for each piece of `size` elements of each tensor."""
    counts = -(-numels // size)
    tensors = np.repeat(np.arange(len(numels), dtype=np.int64), counts)
    starts = np.cumsum(counts) - counts
    return (tensors << 32) | (np.arange(len(tensors), dtype=np.int64) - np.repeat(starts, counts))
