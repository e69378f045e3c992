"""Once a matrix, for Numba CUDA: the twin of per_matrix.cuh. A block joins the sums of the blocks of a matrix, adds up numbers of
its rows and columns, and computes those that the next pass uses.

A line HOLE("name") is where gpuopt/compiler/to_numba_cuda.py puts the statements of one program. Names in capitals are constants;
`load_word` and its like are bound by gpuopt/backends/numba_cuda.py.
"""

HOLE("constants")


def per_matrix(table, columns, matrices, matrix_count, rows, values, slots, skip):
    lanes = cuda.shared.array((SPACE, THREADS), np.float64)
    if skip != 0 and load_flag(skip, 0) != 0:
        return
    lane = cuda.threadIdx.x
    m = cuda.blockIdx.x
    while m < matrix_count:
        word = load_word(matrices, m)
        record = table + (word >> 32) * columns * 8
        shape = record + columns * 8  # the end of the record
        height = load_word(shape, OF_ROWS)
        width = load_word(shape, OF_COLUMNS)
        wide = (width + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS  # blocks of a row
        high = (height + BLOCK_ROWS - 1) // BLOCK_ROWS
        matrix = word & 0xFFFFFFFF
        first_row = load_word(shape, OF_FIRST_ROW) + matrix * height
        first_column = load_word(shape, OF_FIRST_COLUMN) + matrix * width
        first_matrix = load_word(shape, OF_FIRST_MATRIX) + matrix
        entry = load_word(record, COL_ROW) * SCALARS
        HOLE("scalars")
        value = (word >> 32) * VALUES
        HOLE("values")
        if ROW_SUMS > 0:
            for i in range(lane, height, THREADS):
                at = load_word(shape, OF_ROW_BLOCKS) + (matrix * height + i) * wide
                HOLE("join_row")
        if COLUMN_SUMS > 0:
            for i in range(lane, width, THREADS):
                at = load_word(shape, OF_COLUMN_BLOCKS) + matrix * high * width + i
                HOLE("join_column")
        if MATRIX_SUMS > 0:  # each lane sums what it has joined itself
            HOLE("begin_sums")
            if SUMS_OF_ROWS > 0:
                for i in range(lane, height, THREADS):
                    HOLE("sum_row")
            if SUMS_OF_COLUMNS > 0:
                for i in range(lane, width, THREADS):
                    HOLE("sum_column")
            cuda.syncthreads()  # what was read before is no longer needed
            HOLE("share_sums")
            half = THREADS // 2
            while half > 0:
                cuda.syncthreads()
                if lane < half:
                    for k in range(MATRIX_SUMS):
                        lanes[k, lane] = lanes[k, lane] + lanes[k, lane + half]
                half //= 2
            cuda.syncthreads()
            HOLE("take_sums")
        HOLE("matrix")
        if lane == 0:
            HOLE("finish_matrix")
        if ROWS_OUT > 0:
            for i in range(lane, height, THREADS):
                HOLE("finish_row")
        if COLUMNS_OUT > 0:
            for i in range(lane, width, THREADS):
                HOLE("finish_column")
        m += cuda.gridDim.x
