"""Sums over every element of every tensor for Numba CUDA: the twin of reduce.cuh, the same chunks, accumulators and tree.

A line HOLE("name") is where gpuopt/compiler/to_numba_cuda.py puts the statements of one pass: `sum0` is the tuple of the
N accumulators of a lane for the first sum. Names in capitals are constants; `load_word` and its like are bound by
gpuopt/backends/numba_cuda.py.
"""

HOLE("constants")

HOLE("function")


def reduce(table, columns, chunks, chunk_count, rows, values, slots, partials, skip):
    if STORES and skip != 0 and load_flag(skip, 0) != 0:
        return
    shared = cuda.shared.array((SUMS, THREADS), C)
    lane = cuda.threadIdx.x
    chunk = cuda.blockIdx.x
    while chunk < chunk_count:
        word = load_word(chunks, chunk)
        record = table + (word >> 32) * columns * 8
        first = (word & 0xFFFFFFFF) * CHUNK
        count = min(CHUNK, load_word(record, COL_NUMEL) - first)
        aligned = load_word(record, COL_ALIGNED) & ALIGNED == ALIGNED
        at = record + COL_ADDRESS * 8
        shape = record + columns * 8  # the end of the record
        entry = load_word(record, COL_ROW) * SCALARS
        HOLE("scalars")
        value = (word >> 32) * VALUES
        HOLE("values")
        HOLE("begin")
        if aligned and count == CHUNK:
            # Up to AHEAD loads are on their way before the first is measured, since one at a time would not keep the memory of
            # a large GPU busy.
            for j in range(0, STEPS, AHEAD):
                element = first + lane * N + j * THREADS * N
                HOLE("load_ahead")
                HOLE("measure_ahead")
        else:
            for i in range(lane * N, count, THREADS * N):
                element = first + i
                if aligned and i + N <= count:
                    HOLE("measure_pack")
                else:
                    HOLE("measure_single")
        HOLE("share")
        half = THREADS // 2
        while half > 0:
            cuda.syncthreads()
            if lane < half:
                HOLE("join_lanes")
            half //= 2
        if lane == 0:
            for j in range(SUMS):
                store_sum(partials, chunk * SUMS + j, shared[j, 0])
        cuda.syncthreads()  # lane 1 may not start the next chunk while lane 0 still reads shared[j, 1]
        chunk += cuda.gridDim.x
