"""Once a matrix, for Numba on a CPU: the matrices from `lo` to `hi`. The sums of its blocks are joined, in the order of
per_matrix.cuh, and the numbers of its rows and columns that the next pass uses are computed.

A line HOLE("name") is where gpuopt/compiler/to_numba.py puts the statements of one program. Names in capitals are constants;
`load_word` and its like are bound by gpuopt/compiler/numba_cpu.py.
"""

HOLE("constants")


def per_matrix(table, columns, matrices, lo, hi, rows, values, slots):
    lanes = np.empty((MATRIX_SUMS + 1, THREADS), np.float64)
    for m in range(lo, hi):
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
            for i in range(height):
                at = load_word(shape, OF_ROW_BLOCKS) + (matrix * height + i) * wide
                HOLE("join_row")
        if COLUMN_SUMS > 0:
            for i in range(width):
                at = load_word(shape, OF_COLUMN_BLOCKS) + matrix * high * width + i
                HOLE("join_column")
        lanes[:, :] = np.float64(0)
        if SUMS_OF_ROWS > 0:
            for i in range(height):
                lane = i % THREADS
                HOLE("sum_row")
        if SUMS_OF_COLUMNS > 0:
            for i in range(width):
                lane = i % THREADS
                HOLE("sum_column")
        half = THREADS // 2 if MATRIX_SUMS > 0 else 0
        while half > 0:
            for lane in range(half):
                for k in range(MATRIX_SUMS):
                    lanes[k, lane] = lanes[k, lane] + lanes[k, lane + half]
            half //= 2
        HOLE("take_sums")
        HOLE("matrix")
        HOLE("finish_matrix")
        if ROWS_OUT > 0:
            for i in range(height):
                HOLE("finish_row")
        if COLUMNS_OUT > 0:
            for i in range(width):
                HOLE("finish_column")
