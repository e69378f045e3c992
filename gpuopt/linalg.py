"""Products of matrices on the BLAS of the arrays' own library: NumPy's, CuPy's or torch's, a batch of equal matrices at a time.

Called by `launch.products` and by the NumPy backend, for what rules ask of whole matrices. Knows no rule, optimizer or kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from gpuopt.errors import InputError

Row = tuple[float, ...]  # (a, b, c): x <- a x + b (x x') x + c (x x')^2 x; without c of degree 3


@dataclass(frozen=True)
class Coefficients:
    """Those of an iteration, one row a step, the last one repeated where more steps are asked for. safety, floor: the matrix is
    divided by max(norm, floor) * safety before the first step; rows: by the root of what its rows have in common with all others
    instead, each of its own (AOL, Prach & Lampert 2022).
    """

    table: tuple[Row, ...]
    safety: float = 1.0
    floor: float = 1e-7
    rows: bool = False

    def steps(self, count: int | None) -> list[Row]:
        """The rows of so many steps; of as many as there are for None."""
        count = len(self.table) if count is None else count
        return [self.table[min(k, len(self.table) - 1)] for k in range(count)]


_KELLER = (3.4445, -4.7750, 2.0315)
COEFFICIENTS: dict[str, Coefficients] = {
    # Jordan et al. 2024, what torch has.
    "keller": Coefficients((_KELLER,) * 5),
    # Amsel et al. 2025, as the records of training have it.
    "polar_express": Coefficients(
        (
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ),
        safety=1.02,
    ),
    # Of degree 3: two products a step, where others take three.
    "cubic5": Coefficients(
        (
            (3.3656576, -3.3420992),
            (2.5744352, -1.4957376),
            (2.5368962, -1.4312570),
            (2.4418906, -1.2764040),
            (2.2230472, -0.9630650),
        )
    ),
    # Grishina et al. 2025.
    "cans": Coefficients(
        (
            (8.4703, -25.1081, 18.6293),
            (4.1828, -3.1087, 0.5806),
            (3.9619, -2.9541, 0.5630),
            (3.2866, -2.4647, 0.5074),
            (2.2737, -1.6447, 0.4162),
        )
    ),
    # Boissin et al. 2025: a step less behind rows that are scaled one by one.
    "aol": Coefficients(
        (
            (4.0098, -7.0585, 2.4635),
            (3.4585, -5.5479, 2.5959),
            (2.7573, -3.2939, 1.4254),
            (2.7215, -3.0494, 1.3169),
        ),
        rows=True,
    ),
    # Eight steps that grow fast and two that converge: singular values are 1 to three digits.
    "deepseek": Coefficients((_KELLER,) * 8 + ((2.0, -1.5, 0.5),) * 2),
}
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
        "python -m pip install 'gpuopt[cuda13]'"
    )


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


class Work(NamedTuple):
    """Products of a batch, `cost` in those of two square matrices of the short side."""

    gram: bool
    cost: float


def matmul(x: Any) -> Callable[..., Any]:
    """`matmul(a, b, out=...)` of the library that x belongs to."""
    if isinstance(x, np.ndarray):
        return np.matmul
    found: Callable[..., Any] = import_module(library(x)).matmul
    return found


def plan(rows: Sequence[Row], ratio: float, symmetric: bool) -> Work:
    """Whether the iteration goes by the products of rows, which are square, or by the matrix, whichever multiplies less.

    ratio: of the long side to the short one, 1 or more; symmetric: whether x x' costs half a product, as NumPy's does.
    """
    own, quintic, count = (0.5 if symmetric else 1.0), len(rows[0]) == 3, len(rows)
    direct = count * (ratio * own + quintic * own + ratio)
    pieces = pieces_of(count, quintic)
    gram = sum(ratio * own + ratio + n * quintic * own + (n - 1) * 3 for n in pieces)
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
    by = by_rows if plan(table, ratio, isinstance(x, np.ndarray)).gram else by_matrix
    with np.errstate(all="ignore"):
        scaled(x, found)
        work, multiply = narrowed(x), matmul(x)
        if found.rows:
            balance(work, multiply)
        x[...] = by(work, table, multiply)
    return x


def narrowed(x: Any) -> Any:
    """The matrices as they are multiplied: on a GPU in float16, whose products are several times as fast."""
    on_gpu = getattr(x, "is_cuda", False) or library(x) == "cupy"
    if not on_gpu or "float64" in str(x.dtype):
        return x
    return x.astype("float16") if hasattr(x, "astype") else x.half()


def scaled(x: Any, of: Coefficients) -> None:
    """Divide every matrix by its norm, where it is larger than the floor."""
    flat = x.reshape(len(x), -1)
    if isinstance(x, np.ndarray):
        for row in flat:
            row /= x.dtype.type(max(norm(row), of.floor) * of.safety)
        return
    largest = abs(flat).max(-1, keepdims=True) if hasattr(x, "get") else abs(flat).amax(-1, keepdim=True)
    largest = largest + (largest == 0)
    flat /= largest
    norms = (flat * flat).sum(-1)[:, None] ** 0.5
    flat /= (norms * largest).clip(of.floor) * of.safety / largest


def norm(row: Any) -> float:
    """The Frobenius norm, whatever the size of the numbers."""
    found = float(np.vdot(row, row))
    if 1e-30 < found < 1e30:
        return math.sqrt(found)
    largest = float(np.max(np.abs(row)))
    if not 0 < largest < math.inf:
        return largest
    return float(np.linalg.norm(row.astype(np.float64) / largest)) * largest


def balance(x: Any, multiply: Callable[..., Any]) -> None:
    """Divide every row (column of a tall matrix) by the root of the sum of |x x'| along it: no singular value is above 1 then."""
    tall = x.shape[1] > x.shape[2]
    side = x.swapaxes(1, 2) if tall else x
    shares = abs(multiply(side, side.swapaxes(1, 2))).sum(-1)
    shares = (shares + (shares == 0)) ** 0.5
    x /= shares[:, None, :] if tall else shares[:, :, None]


def shift(square: Any, by: float) -> None:
    """Add a number to the diagonal of every matrix."""
    square.reshape(len(square), -1)[:, :: square.shape[1] + 1] += by


def polynomial(gram: Any, row: Row, multiply: Callable[..., Any], out: Any) -> Any:
    """a + b gram + c gram^2, of symmetric matrices, in `out`."""
    a, b, *c = row
    if c:
        multiply(gram, gram.swapaxes(1, 2), out=out)
        out *= c[0]
        out += gram * b
    else:
        out[...] = gram
        out *= b
    shift(out, a)
    return out


def by_matrix(x: Any, table: Sequence[Row], multiply: Callable[..., Any]) -> Any:
    """The iteration on the matrices themselves: x <- (a + b x x' + c (x x')^2) x, on the short side. Writes into x too."""
    tall = x.shape[1] > x.shape[2]
    gram = out = other = None
    for row in table:
        flipped = x.swapaxes(1, 2)
        gram = multiply(flipped, x, out=gram) if tall else multiply(x, flipped, out=gram)
        out = gram * 0 if out is None else out
        factor = polynomial(gram, row, multiply, out)
        made = multiply(x, factor, out=other) if tall else multiply(factor, x, out=other)
        x, other = made, x
    return x


def by_rows(x: Any, table: Sequence[Row], multiply: Callable[..., Any]) -> Any:
    """The iteration on the products of rows: with y = x x' every step multiplies by a polynomial of y, all of which commute, so
    that x is multiplied once, by their product.
    """
    tall = x.shape[1] > x.shape[2]
    begin = 0
    for count in pieces_of(len(table), len(table[0]) == 3):
        flipped = x.swapaxes(1, 2)
        gram = multiply(flipped, x) if tall else multiply(x, flipped)
        product, factor, spare = None, gram * 0, gram * 0
        for k, row in enumerate(table[begin : begin + count]):
            polynomial(gram, row, multiply, factor)
            if product is None:
                product = factor * 1
            else:
                product, spare = multiply(factor, product, out=spare), product
            if k < count - 1:
                multiply(factor, gram, out=spare)
                multiply(spare, factor, out=gram)
        x = multiply(x, product) if tall else multiply(product, x)
        begin += count
    return x


RUNS: Mapping[str, Callable[..., Any]] = {"orthogonalize": orthogonalize}  # by their names in the rule language
