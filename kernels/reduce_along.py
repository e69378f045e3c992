"""Sums along the rows and columns of every matrix for Numba CUDA: the twin of reduce_along.cuh, the same blocks, warps and lanes.

A line HOLE("name") is where gpuopt/compiler/to_numba_cuda.py puts the statements of one pass: `down0_3` is the accumulator of a
lane for the fourth of its columns, `across0_1` that for the second element of each pack. Names in capitals are constants;
`load_word` and its like are bound by gpuopt/backends/numba_cuda.py.
"""

HOLE("constants")

HOLE("function")


def reduce_along(table, columns, blocks, block_count, rows, values, slots):
    shared = cuda.shared.array(SHARED, C)
    lane = cuda.threadIdx.x % WARP
    warp = cuda.threadIdx.x // WARP
    block = cuda.blockIdx.x
    while block < block_count:
        word = load_word(blocks, block)
        record = table + (word >> 32) * columns * 8
        shape = record + columns * 8  # the end of the record
        height = load_word(shape, OF_ROWS)
        width = load_word(shape, OF_COLUMNS)
        wide = (width + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS  # blocks of a row
        high = (height + BLOCK_ROWS - 1) // BLOCK_ROWS
        index = word & 0xFFFFFFFF
        matrix = index // (wide * high)
        first_row = index // wide % high * BLOCK_ROWS
        first_column = index % wide * BLOCK_COLUMNS
        row_count = min(BLOCK_ROWS, height - first_row)
        column_count = min(BLOCK_COLUMNS, width - first_column)
        aligned = load_word(record, COL_ALIGNED) & ALIGNED == ALIGNED and width % N == 0
        at = record + COL_ADDRESS * 8
        entry = load_word(record, COL_ROW) * SCALARS
        HOLE("scalars")
        value = (word >> 32) * VALUES
        HOLE("values")
        HOLE("begin_columns")
        for begin_row in range(0, row_count, BATCH):
            end_row = min(begin_row + BATCH, row_count)
            for r in range(begin_row + warp, end_row, WARPS):
                first = (matrix * height + first_row + r) * width + first_column
                HOLE("begin_row")
                HOLE("measure")
                HOLE("share_row")
            cuda.syncthreads()
            for r in range(begin_row + cuda.threadIdx.x, end_row, THREADS):
                block_at = (
                    load_word(shape, OF_ROW_BLOCKS)
                    + (matrix * height + first_row + r) * wide
                    + first_column // BLOCK_COLUMNS
                )
                HOLE("store_row")
            cuda.syncthreads()
        HOLE("store_columns")
        block += cuda.gridDim.x
