"""Once a tensor, for Numba CUDA: the twin of per_tensor.cuh. A block joins the sums of the tensor's chunks, and its first thread
computes in float64 the numbers that the next pass needs.

A line HOLE("name") is where gpuopt/compiler/to_numba_cuda.py puts the statements of one program. Names in capitals are constants;
`load_word` and its like are bound by gpuopt/backends/numba_cuda.py. `D` is float64.
"""

HOLE("constants")


def per_tensor(table, columns, tensor_count, begins, wide, partials, totals, values):
    shared = cuda.shared.array((SPACE, THREADS), D)
    lane = cuda.threadIdx.x
    tensor = cuda.blockIdx.x
    while tensor < tensor_count:
        record = table + tensor * columns * 8
        if SUMS > 0:
            end = load_word(begins, tensor + 1)
            HOLE("begin")
            for c in range(load_word(begins, tensor) + lane, end, THREADS):
                HOLE("join_chunk")
            HOLE("share")
            half = THREADS // 2
            while half > 0:
                cuda.syncthreads()
                if lane < half:
                    HOLE("join_lanes")
                half //= 2
        if lane == 0:
            for k in range(SUMS):
                store_double(totals, tensor * TOTALS + FIRST + k, shared[k, 0])
            entry = load_word(record, COL_ROW) * WIDES
            HOLE("wides")
            HOLE("derived")
            HOLE("values")
        cuda.syncthreads()
        tensor += cuda.gridDim.x
