"""Products of matrices on the BLAS of the arrays' own library: NumPy's, CuPy's or torch's, a batch of equal matrices at a time.

Called by `launch.products` and by the NumPy backend, for what rules ask of whole matrices. Knows no rule, optimizer or kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from gpuopt.coefficients import COEFFICIENTS, Coefficients, Row
from gpuopt.errors import InputError
from gpuopt.householder import orthogonal
from gpuopt.messages import install

RESTART = 3  # steps on the products of rows after which those of degree 5 begin again from the matrix, whose rounding errors grow


def multipliable(x: Any) -> Any:
    """The same memory as an array of a library that multiplies matrices. Raises InputError where there is none."""
    if isinstance(x, np.ndarray) or library(x) in ("torch", "cupy"):
        return x
    for name, function in (("cupy", "asarray"), ("torch", "as_tensor")):
        try:
            return getattr(import_module(name), function)(x)
        except ImportError:
            continue
    raise InputError(
        f"products of matrices on arrays of {library(x)} are made by CuPy or torch, and neither is installed: "
        f"{install('cuda13')}"
    )


def numbers(x: Any, count: int) -> Any:
    """0, 1, ... on the device of an array, int64."""
    made = import_module(library(x))
    where = {"device": x.device} if library(x) == "torch" else {}
    return made.arange(count, dtype=made.int64, **where)


def zeros(x: Any, shape: tuple[int, ...]) -> Any:
    """An array of zeros where this one is, of its dtype."""
    where = {"device": x.device} if library(x) == "torch" else {}
    return import_module(library(x)).zeros(shape, dtype=x.dtype, **where)


def on_gpu(x: Any) -> bool:
    """Whether its products are made on a GPU."""
    return bool(getattr(x, "is_cuda", False)) or library(x) == "cupy"


def largest(x: Any) -> Any:
    """The largest number along the last axis."""
    found = x.max(-1)
    return getattr(found, "values", found)  # torch tells where they are besides


def library(x: Any) -> str:
    """The name of the package that an array is of."""
    return type(x).__module__.partition(".")[0]


class Handle(NamedTuple):
    """A CUDA stream as libraries pass it to each other."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


def on_stream(x: Any, handle: int) -> AbstractContextManager[Any]:
    """A context in which its library enqueues its work on a CUDA stream; nothing on the host."""
    if isinstance(x, np.ndarray):
        return nullcontext()
    if library(x) == "cupy":
        cuda = import_module("cupy").cuda
        if cuda.get_current_stream().ptr == handle:
            return nullcontext()
        made = getattr(cuda.Stream, "from_external", None)  # of CuPy 14
        stream: AbstractContextManager[Any] = made(Handle(handle)) if made else cuda.ExternalStream(handle)
        return stream
    cuda = import_module("torch").cuda
    found: AbstractContextManager[Any] = cuda.stream(cuda.ExternalStream(handle, x.device))
    return found


PANELS, LEAST = 4, 256  # of a symmetric product, for matrices of so many rows
FEW, MANY = 256, 1024  # rows of a panel of a product that goes into an average, and of how many there are some
CACHED = 8 << 20  # bytes of matrices that are multiplied together on the host


class Work(NamedTuple):
    """Products of a batch, `cost` in those of two square matrices of the short side."""

    gram: bool
    cost: float


class Library:
    """Products of batches by the package that arrays are of, `out` an array for the result or None."""

    of_square = of_symmetric = 1.0  # what these cost, where other products of as many rows and columns cost 1

    def __init__(self, x: Any) -> None:
        made = import_module(library(x))
        self.product: Callable[..., Any] = made.matmul
        self.decompose: Callable[..., Any] = made.linalg.qr

    def square(self, x: Any, out: Any = None, tall: bool = False) -> Any:
        """x x', or x' x of a tall matrix."""
        flipped = x.swapaxes(1, 2)
        return self.product(flipped, x, out=out) if tall else self.product(x, flipped, out=out)

    def symmetric(self, a: Any, b: Any, out: Any = None) -> Any:
        """a b, of symmetric matrices whose product is symmetric."""
        return self.product(a, b, out=out)

    def follow(self, average: Any, x: Any, gain: float, tall: bool = False) -> None:
        """Bring x x', or x' x, into an average of such products, in place."""
        average += (self.square(x, tall=tall) - average) * gain

    def orthogonal(self, a: Any) -> Any:
        """The orthogonal factor of one square matrix, see `householder.orthogonal`."""
        return self.decompose(a)[0]

    def columns(self, a: Any, order: Any) -> Any:
        """Those of one matrix, in this order."""
        return a[:, order]


class Host(Library):
    """NumPy's BLAS, which makes one half of x x' only; of other symmetric products the panels on and above the diagonal."""

    def __init__(self, sides: Sequence[int]) -> None:
        self.product = np.matmul
        self.panels = PANELS if min(sides) >= LEAST else 1
        self.of_square, self.of_symmetric = 0.5, (1 + 1 / self.panels) / 2

    def symmetric(self, a: Any, b: Any, out: Any = None) -> Any:
        if self.panels == 1:
            return self.product(a, b, out=out)
        out, size = np.empty_like(a) if out is None else out, -(-a.shape[1] // self.panels)
        for begin in range(0, a.shape[1], size):
            end = begin + size
            self.product(a[:, begin:end], b[:, :, begin:], out=out[:, begin:end, begin:])
            out[:, end:, begin:end] = out[:, begin:end, end:].swapaxes(1, 2)
        return out

    def follow(self, average: Any, x: Any, gain: float, tall: bool = False) -> None:
        """The panels on and above the diagonal, each of which meets its part of the average in the caches."""
        x = x.swapaxes(1, 2) if tall else x
        size = FEW if x.shape[1] >= MANY else MANY
        for begin in range(0, x.shape[1], size):
            end = begin + size
            part = average[:, begin:end, begin:]
            part += (self.product(x[:, begin:end], x[:, begin:].swapaxes(1, 2)) - part) * gain
            average[:, end:, begin:end] = part[:, :, size:].swapaxes(1, 2)

    def orthogonal(self, a: Any) -> Any:
        return orthogonal(a)

    def columns(self, a: Any, order: Any) -> Any:
        return a.take(order, 1)  # in C order, several times as fast


def library_of(x: Any, sides: Sequence[int] = ()) -> Library:
    """What multiplies the matrices of a batch, or others of these sides where it is."""
    return Host(sides or x.shape[1:]) if isinstance(x, np.ndarray) else Library(x)


def plan(rows: Sequence[Row], ratio: float, by: Library) -> Work:
    """Whether the iteration goes by the products of rows, which are square, or by the matrix, whichever multiplies less.

    ratio: of the long side to the short one, 1 or more.
    """
    quintic, count = len(rows[0]) == 3, len(rows)
    direct = count * (ratio * by.of_square + quintic * by.of_square + ratio)
    pieces = pieces_of(count, quintic)
    each = by.of_square + 2 * by.of_symmetric
    gram = sum(ratio * by.of_square + ratio + n * quintic * by.of_square + (n - 1) * each for n in pieces)
    return Work(gram < direct, min(gram, direct))


def pieces_of(count: int, quintic: bool) -> list[int]:
    """Steps between the restarts of an iteration on products of rows."""
    return [RESTART, count - RESTART] if quintic and count > RESTART else [count]


def orthogonalize(x: Any, coefficients: str = "keller", steps: int | None = None) -> Any:
    """Bring the singular values of every matrix of a batch near 1, in place, by products of matrices alone.

    x: float32 or float64 [matrices, rows, columns], C-contiguous, of NumPy, CuPy or torch; coefficients: a name in COEFFICIENTS;
    steps: of the iteration, as many as that has by default. A matrix of zeros stays so; NaN makes a matrix of NaN. On a GPU float32
    matrices are multiplied in float16, with sums in float32.

    Raises InputError for another name. Newton-Schulz iteration: Bernstein & Newhouse 2024; Jordan et al. 2024.
    """
    if coefficients not in COEFFICIENTS:
        raise InputError(f"coefficients = {coefficients!r}: expected one of {', '.join(COEFFICIENTS)}")
    found = COEFFICIENTS[coefficients]
    rows, columns = x.shape[1:]
    if 0 in x.shape:
        return x
    table, ratio = found.steps(steps), max(rows, columns) / min(rows, columns)
    with np.errstate(all="ignore"):
        scaled(x, found)
        for part in portions(x):
            if found.tight:
                tighten(part, library_of(part))
            work = narrowed(part)
            by = library_of(work)
            if found.rows:
                balance(work, by)
            part[...] = (by_rows if plan(table, ratio, by).gram else by_matrix)(work, table, by)
    return x


def flops(x: Any, sides: Sequence[int], coefficients: str = "keller", steps: int | None = None) -> float:
    """What `orthogonalize` computes for one matrix of these sides, in the library of x; the short side first."""
    short, long = sides
    return 2 * short**3 * plan(COEFFICIENTS[coefficients].steps(steps), long / short, library_of(x, sides)).cost


def portions(x: Any) -> list[Any]:
    """The batch on a GPU, where it fills the device; on the host so many matrices that they stay in its caches."""
    if not isinstance(x, np.ndarray):
        return [x]
    count = max(1, CACHED // max(1, x[0].nbytes))
    return [x[k : k + count] for k in range(0, len(x), count)]


def narrowed(x: Any) -> Any:
    """The matrices as they are multiplied: on a GPU in float16, whose products are several times as fast."""
    if not on_gpu(x) or "float64" in str(x.dtype):
        return x
    return x.astype("float16") if hasattr(x, "astype") else x.half()


def scaled(x: Any, of: Coefficients) -> None:
    """Divide every matrix by its norm, where it is larger than the floor."""
    flat = x.reshape(len(x), -1)
    if isinstance(x, np.ndarray):
        for row in flat:
            row /= x.dtype.type(max(norm(row), of.floor) * of.safety)
        return
    sizes = largest(abs(flat))[:, None]
    sizes = sizes + (sizes == 0)
    flat /= sizes
    norms = (flat * flat).sum(-1)[:, None] ** 0.5
    flat /= (norms * sizes).clip(of.floor) * of.safety / sizes


def norm(row: Any) -> float:
    """The Frobenius norm, whatever the size of the numbers."""
    found = float(np.vdot(row, row))
    if 1e-30 < found < 1e30:
        return math.sqrt(found)
    largest = float(np.max(np.abs(row)))
    if not 0 < largest < math.inf:
        return largest
    return float(np.linalg.norm(row.astype(np.float64) / largest)) * largest


def tighten(x: Any, by: Library) -> None:
    """Divide every matrix by the root of the norm of x x' over its own norm, which is in the first one's place then."""
    gram = by.square(x, tall=x.shape[1] > x.shape[2])
    trace = gram.reshape(len(gram), -1)[:, :: gram.shape[1] + 1].sum(1)
    share = (gram * gram).sum((1, 2)) ** 0.5 / (trace + (trace == 0))
    x /= ((share + (share == 0)) ** 0.5)[:, None, None]


def balance(x: Any, by: Library) -> None:
    """Divide every row (column of a tall matrix) by the root of the sum of |x x'| along it: no singular value is above 1 then."""
    tall = x.shape[1] > x.shape[2]
    shares = abs(by.square(x, tall=tall)).sum(-1)
    shares = (shares + (shares == 0)) ** 0.5
    x /= shares[:, None, :] if tall else shares[:, :, None]


def polynomial(gram: Any, row: Row, by: Library, out: Any) -> Any:
    """a + b gram + c gram^2, of symmetric matrices, in `out`."""
    a, b, *c = row
    if c:
        by.square(gram, out)
        out *= c[0]
        out += gram * b
    else:
        out[...] = gram
        out *= b
    out.reshape(len(out), -1)[:, :: out.shape[1] + 1] += a  # the diagonal
    return out


def by_matrix(x: Any, table: Sequence[Row], by: Library) -> Any:
    """The iteration on the matrices themselves: x <- (a + b x x' + c (x x')^2) x, on the short side. Writes into x too."""
    tall = x.shape[1] > x.shape[2]
    gram = factor = other = None
    for row in table:
        gram = by.square(x, gram, tall)
        factor = polynomial(gram, row, by, gram * 0 if factor is None else factor)
        made = by.product(x, factor, out=other) if tall else by.product(factor, x, out=other)
        x, other = made, x
    return x


def by_rows(x: Any, table: Sequence[Row], by: Library) -> Any:
    """The iteration on the products of rows: with y = x x' every step multiplies by a polynomial of y, all of which commute, so
    that x is multiplied once, by their product, and y becomes the polynomial's square times y.
    """
    tall = x.shape[1] > x.shape[2]
    begin = 0
    for count in pieces_of(len(table), len(table[0]) == 3):
        gram = by.square(x, tall=tall)
        product, factor, spare, fresh = None, gram * 0, gram * 0, gram * 0
        for k, row in enumerate(table[begin : begin + count]):
            polynomial(gram, row, by, factor)
            if product is None:
                product = factor * 1
            else:
                product, spare = by.symmetric(factor, product, out=spare), product
            if k < count - 1:
                gram, fresh = by.symmetric(by.square(factor, spare), gram, out=fresh), gram
        x = by.product(x, product) if tall else by.product(product, x)
        begin += count
    return x
