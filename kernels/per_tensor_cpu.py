"""Once a tensor, for Numba on a CPU: the tensors from `lo` to `hi`. The sums of its chunks are joined, in the order of
per_tensor.cuh, and the numbers that the next pass needs of it are computed, in float64.

A line HOLE("name") is where gpuopt/compiler/to_numba.py puts the statements of one program. Names in capitals are constants;
`load_word` and its like are bound by gpuopt/compiler/numba_cpu.py.
"""

HOLE("constants")


def per_tensor(table, columns, begins, lo, hi, wide, partials, totals, values):
    sums = np.empty((SUMS + 1, THREADS), np.float64)
    for tensor in range(lo, hi):
        record = table + tensor * columns * 8
        if SUMS > 0:
            first = load_word(begins, tensor)
            count = load_word(begins, tensor + 1) - first
            HOLE("begin")
            for c in range(count):
                lane = c % THREADS
                HOLE("join_chunk")
            half = THREADS // 2 if count > 1 else 0  # nothing is joined with one
            while half > 0:
                for lane in range(half):
                    HOLE("join_lanes")
                half //= 2
            for k in range(SUMS):
                store_double(totals, tensor * TOTALS + FIRST + k, sums[k, 0])
        entry = load_word(record, COL_ROW) * WIDES
        HOLE("wides")
        HOLE("derived")
        HOLE("values")
