"""Sums over every element of every tensor for Numba on a CPU: the chunks from `lo` to `hi`, in the order of reduce.cuh.

The accumulators of a block, N a lane, are here the entries of an array. A line HOLE("name") is where gpuopt/compiler/to_numba.py
puts the statements of one pass. Names in capitals are constants; `load_word` and its like are bound by
gpuopt/compiler/numba_cpu.py.
"""

HOLE("constants")


def reduce(table, columns, chunks, lo, hi, rows, values, slots, partials):
    sums = np.empty((SUMS, THREADS * N), C)
    for chunk in range(lo, hi):
        word = load_word(chunks, chunk)
        record = table + (word >> 32) * columns * 8
        shape = record + columns * 8  # the end of the record
        first = (word & 0xFFFFFFFF) * CHUNK
        count = min(CHUNK, load_word(record, COL_NUMEL) - first)
        entry = load_word(record, COL_ROW) * SCALARS
        HOLE("scalars")
        value = (word >> 32) * VALUES
        HOLE("values")
        HOLE("addresses")
        HOLE("begin")
        full = count // (THREADS * N)
        for j in range(full + 1):
            strip = j * THREADS * N
            begin = first + strip
            end = min(THREADS * N, count - strip)
            start = 0
            while start < end:  # at once, or row by row where numbers of rows and columns are used
                stop = end
                HOLE("row")
                for lane in range(start, stop):
                    i = strip + lane
                    HOLE("measure")
                start = stop
        for lane in range(THREADS):
            for k in range(lane * N + 1, lane * N + N):
                HOLE("join_pack")
            HOLE("take_lane")
        half = THREADS // 2
        while half > 0:
            for lane in range(half):
                HOLE("join_lanes")
            half //= 2
        for k in range(SUMS):
            store_sum(partials, chunk * SUMS + k, np.float64(sums[k, 0]))
