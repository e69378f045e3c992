"""The decision for Numba CUDA: the twin of prepare.cuh, one block that decides clip and skip and computes the rows.

A line HOLE("name") is where gpuopt/compiler/to_numba_cuda.py puts the statements of one rule. Names in capitals are constants of
the program; `load_word` and its like are bound by gpuopt/backends/numba_cuda.py. `D` is float64, in which all of it is done.
The first seven arguments are the members of Decision in prepare.cuh.
"""

HOLE("constants")


def prepare(
    sums, max_norm, grad_scale_value, grad_scale, found_inf, check_finite, row_count,
    hyper, counters, rows, wide, skip, skipped,
):  # fmt: skip
    lane = cuda.threadIdx.x
    squares = load_double(sums, 0) if sums != 0 else D(0)
    broken = load_double(sums, 1) if sums != 0 else D(0)
    inverse = div(D(1), D(load_float(grad_scale, 0)) if grad_scale != 0 else D(grad_scale_value))
    norm = mul(sqrt(squares), inverse)
    bounded = D(max_norm) - D(max_norm) == D(0)  # without a bound, squares that overflow do not matter
    multiplier = mul(minimum(div(D(max_norm), norm + D(1e-6)), D(1)), inverse) if bounded else inverse
    skipping = (found_inf != 0 and load_float(found_inf, 0) != D(0)) or (check_finite != 0 and broken != D(0))
    if lane == 0:
        store_word(skip, 0, 1 if skipping else 0)
        if skipped != 0:
            store_word(skipped, 0, load_word(skipped, 0) + (1 if skipping else 0))
    for r in range(lane, row_count, THREADS):
        counter = load_word(counters, 2 * r)
        step = load_word(counter, 0) + (0 if skipping else 1)
        store_word(counter, 0, step)
        numbers = hyper + load_word(counters, 2 * r + 1) * (2 * INPUTS) * 8
        sources = numbers + INPUTS * 8  # 0: the number; else an address: lowest bit set, of a double, else of a float
        if not skipping:
            HOLE("hyper")
            HOLE("prepare")
            HOLE("row")
            HOLE("wide")
